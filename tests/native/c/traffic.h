/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Packets of every kind from a seed, and a world of services that they meet: right ones, wrong ones, strange ones, flows that
 * open, go on and end, floods, super-packets with what a driver tells of them, and time.  The same seed gives the same.
 */
#ifndef VIPMUX_TRAFFIC_H
#define VIPMUX_TRAFFIC_H

#include "reference_mux.h"

#define TRAFFIC_FRAME_MAX 100000u
#define TRAFFIC_RECENT 64u
#define TRAFFIC_DATAGRAMS 8u
#define TRAFFIC_CROWD 450000u /* clients of a flooded service that come again, 10.0.0.0 and on; their port is their number */

struct traffic {
	uint64_t chance;
	enum link_type link;
	bool crowded; /* 2,400 services more */
	bool flood;   /* mostly SYNs to service 0, half of them of new clients; a few lines of the flow table have them all */
	bool supers;  /* many super-packets */
	bool exact;   /* IPv4 services have one address and one port each */
	struct flow_seed seed; /* of its world */
	struct traffic_flow {
		uint8_t family, protocol; /* 0: none yet */
		uint8_t source[16], destination[16];
		uint16_t source_port, port;
	} recent[TRAFFIC_RECENT];
	struct traffic_datagram {
		struct traffic_flow flow; /* family 0: none yet */
		uint32_t id, at; /* at: units of eight bytes that have been sent */
	} datagrams[TRAFFIC_DATAGRAMS];
};

uint64_t traffic_random(struct traffic *traffic);
static inline uint32_t traffic_below(struct traffic *traffic, uint32_t limit)
{
	return (uint32_t)((traffic_random(traffic) >> 32) * limit >> 32);
}

/* The first world, and in *out the snapshot that says the same. */
void traffic_make_world(struct traffic *traffic, struct reference_world *world, struct snapshot **out);
/* Changes some of it: services come and go, backends change their state, hops are lost and found. */
void traffic_change_world(struct traffic *traffic, struct reference_world *world, struct snapshot **snapshot);
void traffic_free_world(struct reference_world *world, struct snapshot *snapshot);

/* Writes a frame to `bytes` (TRAFFIC_FRAME_MAX) and says in *frame all but where it is and its headroom. */
void traffic_frame(struct traffic *traffic, const struct reference_world *world, uint8_t *bytes, struct frame *frame);

/* Nanoseconds until the next burst: mostly some microseconds, now and then beyond a timeout. */
uint64_t traffic_pause(struct traffic *traffic, const struct reference_world *world);

#endif
