/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A whole MUX, written to be read: what the pipeline of native/mux/mux.h means, one packet at a time and one step after the
 * other, from the decisions in packet.h, segment.h and the RFCs that they name.  It shares with the pipeline only what has oracles of
 * its own: the tuple's hash and the bijection (flow.h), Maglev's tables, and the flow table, of which it uses the
 * functions that take one flow.  It looks for services through a plain list, parses, cuts and encapsulates byte by byte, and
 * makes every checksum from the beginning.
 */
#ifndef VIPMUX_PLAIN_MUX_H
#define VIPMUX_PLAIN_MUX_H

#include "mux/mux.h"

#define PLAIN_BACKENDS 8u

struct plain_backend {
	uint32_t state; /* enum backend_state */
	uint32_t hop;
	uint32_t counter;
};

/* A service as whoever configures it would say it; port numbers in host order. */
struct plain_service {
	bool present;
	uint32_t id;
	uint8_t family, prefix, protocol;
	uint16_t first, last;
	bool hash_source;
	uint16_t idle, mtu;
	uint8_t vip[16];
	uint32_t count;
	struct plain_backend backends[PLAIN_BACKENDS];
	struct maglev *table;
};

/* The world that packets meet.  services[] by id; those from `crowd` on are exact and in one block of addresses each. */
struct reference_world {
	struct plain_service *services;
	uint32_t count, crowd;
	uint16_t idle_untrusted;
	uint64_t serial; /* goes up with each change, as that of struct vip_map */
	struct hop_spec *hops;
	uint32_t hop_count;
};

/* One frame that leaves. */
struct plain_sent {
	uint32_t at, len; /* bytes, in reference_mux.bytes */
	uint32_t ifindex;
	uint16_t gso_size, csum_start, csum_offset;
	uint8_t offload, origin;
};

struct plain_result {
	uint32_t reason, flow;
	int32_t service, backend;
};

struct plain_datagram;

struct reference_mux {
	struct mux_config config;
	enum link_type link;
	bool sends_whole;
	unsigned fails;      /* every so many-th frame cannot be sent; 0: none */
	uint64_t sends;      /* frames that were to be sent so far */
	struct flow_seed seed;
	struct flow_table *table; /* NULL: stateless */
	const struct reference_world *world;
	uint64_t forgotten, pass_serial;
	uint16_t ids[256];
	uint64_t now;
	struct plain_datagram *datagrams; /* of which fragments are under way; NULL: none was yet */
	uint32_t datagrams_begun;

	/* the burst at hand */
	uint8_t *bytes;
	uint32_t used, room;
	struct plain_sent *sent;
	uint32_t sent_count, sent_room;

	uint64_t received, reasons[REASON_COUNT];
	struct service_counters *services; /* by id */
	uint64_t *backends;                /* by counter */
};

/* Everything of it is zero but what the caller has set: config, link, sends_whole, fails, seed. */
void reference_mux_start(struct reference_mux *mux, uint32_t services, uint32_t counters);
void reference_mux_end(struct reference_mux *mux);

/* Forgets what was sent. */
void reference_mux_burst(struct reference_mux *mux, const struct reference_world *world, uint64_t now_ns);
void reference_mux_packet(struct reference_mux *mux, const struct frame *frame, uint8_t origin, struct plain_result *result);
/* After the packets of a burst. */
void reference_mux_tick(struct reference_mux *mux);

#endif
