/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The inbound pipeline of a MUX: what happens to a packet between receive and send.  One struct mux belongs to one
 * worker; nothing in it is shared but the snapshot it is handed.
 *
 *	parse -> find service -> find flow -> choose backend -> encapsulate -> send -> count
 *
 * Each stage is one plain loop over the burst; a packet that fails keeps its reason and later stages step over it.  What they
 * leave for each other in struct mux is told in mux_stages.h.
 * The outcome is the same as if packets came one at a time.
 */
#ifndef VIPMUX_MUX_H
#define VIPMUX_MUX_H

#include <stdbool.h>
#include <stdint.h>

#include "flow/flow_table.h"
#include "machine/io.h"
#include "mux/answers.h"
#include "mux/shed.h"
#include "mux/mux_stats.h"
#include "mux/vector_level.h"
#include "packet/packet.h"
#include "services/snapshot/snapshot.h"
#include "worker/pipeline.h"

enum mux_link {
	MUX_LINK_NONE = 0,     /* IP packets, the kernel finds the way (TUN) */
	MUX_LINK_NEXT_HOP = 1, /* Ethernet to the hop's MAC address */
	MUX_LINK_SWAP = 2,     /* Ethernet, addresses of the input swapped (replay) */
};

enum flow_report {
	FLOW_NONE = 0,      /* not forwarded */
	FLOW_NEW = 1,       /* entry made */
	FLOW_KNOWN = 2,     /* entry found */
	FLOW_UNTRACKED = 3, /* forwarded without an entry */
};

struct fragments;
struct kept_fragment;
struct sibling_tables;

struct mux_config {
	uint64_t flows;       /* capacity of the flow table; 0: none, every packet by Maglev */
	uint32_t link;        /* enum mux_link */
	uint32_t detect_partial; /* 1: look for checksums left to the NIC where the io does not tell */
	uint32_t first_id;    /* where outer IDs start */
	uint32_t vector;      /* enum vector_level */
	uint32_t touch_late;  /* 1: the worker touches the flow table's memory first, not mux_create() */
	uint32_t answers;     /* of each kind for each second, at most ANSWERS_MAX; 0: none.  See mux_set_answers() */
	uint32_t unserved;    /* enum mux_unserved */
	uint8_t address[16];  /* of the MUX itself, IPv4 in the first 4 bytes; all zero: it has none */
	uint8_t address6[16];
	struct fragments *fragments; /* of all workers, which each mux takes a reference on; NULL: one of its own, in which none waits */
};

/* A packet on its way through the stages. */
struct passage {
	const struct service *service;
	const struct backend *backend;
	uint64_t hash; /* tuple hash; computed for wide keys and on a miss */
	bool hashed;
	uint8_t flow; /* enum flow_report */
	uint16_t backend_number;
};

struct mux {
	struct pipeline pipeline; /* first: a worker runs it through this */
	struct mux_config config;
	struct flow_table *table; /* NULL without one */
	struct sibling_tables *siblings;  /* who else may know a flow; NULL: nobody */
	struct sibling_tables *witnesses; /* all tables of this MUX but ours: whose flow an ICMP error is about; NULL: there are none */
	struct fragments *fragments;      /* where datagrams go of which fragments are under way */
	struct kept_fragment *released;   /* those that waited for a first fragment of this burst */
	const struct snapshot *snapshot; /* of the burst at hand */
	uint64_t forgotten;    /* see mux_forgotten(); others read it */
	uint64_t pass_serial;  /* serial of the map when the sweep was last at the first line */
	struct io *io;
	uint16_t ids[256]; /* next outer ID, by hop */
	uint16_t answer_id; /* next ID of an answer in IPv4 */
	uint32_t answers;  /* see mux_answers_per_second() */
	struct answer_rate answer_rate;
	uint64_t now;      /* of the burst at hand, ns */

	/* the burst at hand; results stay readable until the next */
	unsigned count;
	bool onward; /* one of its packets goes on from the first stage; of a burst that is none yet, of the one before */
	uint64_t named; /* a bit for each packet whose connection id names its backend: of those names[] is there */
	uint64_t plain; /* a bit for each packet that read_ipv4.h has read: of those outers[] is there */
	struct packet packets[BURST_MAX];
	struct passage passages[BURST_MAX];
	struct outer4 outers[BURST_MAX];
	uint64_t scrambled[BURST_MAX]; /* flow keys, see flow.h */
	struct flow_slot slots[BURST_MAX];
	uint64_t entries[BURST_MAX];   /* what was seen there */
	struct frame out[BURST_MAX];
	unsigned out_count;
	uint8_t listed[BURST_MAX]; /* indices of packets that Maglev is asked for */
	uint64_t addresses[BURST_MAX], ports[BURST_MAX], hashes[BURST_MAX]; /* of packets hashed together */
	uint16_t choices[BURST_MAX]; /* Maglev's, of the packets listed */
	uint16_t names[BURST_MAX]; /* numbers of the backends that connection ids name */
	uint8_t *segments; /* BURST_MAX buffers for segments */
	const struct vector *vector; /* what config.vector chose */

	struct mux_counters counters;
	struct service_counters *service_counters; /* by service id */
	uint64_t *backend_counters;                /* by counter index */
	struct shed shed;
};

/* -ENOMEM; -ENOTSUP: no such vector level here.  The first burst needs a snapshot. */
int mux_create(const struct mux_config *config, struct mux **out);
void mux_destroy(struct mux *mux); /* once the worker that runs it, if one does, has ended */

/* Makes it the mux's own.  mux_create() does so; a test may bring another. */
void mux_set_table(struct mux *mux, struct flow_table *table);

/* What comes before anything that reads ages or makes room: the time, and what the table asks the snapshot for. */
void mux_set_time(struct mux *mux, const struct snapshot *snapshot, uint64_t now_ns);

/*
 * The table has no entry of a service or backend that was absent from the map of this serial (see struct vip_map) on,
 * and nothing is counted for it any more: its numbers may be lent again.  From any thread.
 */
uint64_t mux_forgotten(const struct mux *mux);

/* Of each kind for each second, 0: none.  From any thread. */
static inline void mux_set_answers(struct mux *mux, uint32_t per_second)
{
	__atomic_store_n(&mux->answers, per_second < ANSWERS_MAX ? per_second : ANSWERS_MAX, __ATOMIC_RELAXED);
}

static inline uint32_t mux_answers_per_second(const struct mux *mux)
{
	return __atomic_load_n(&mux->answers, __ATOMIC_RELAXED);
}

/* What a packet of the tuple would get, without touching anything.  Stays valid while the snapshot is held. */
struct mux_answer {
	const struct service *service; /* NULL: none */
	uint32_t slot;
	int32_t backend;     /* number within the service, -1: none */
	int32_t flow_backend; /* what the flow table says, -1: no entry (only where a mux was given) */
	uint32_t flow_class; /* enum flow_class of that entry */
	uint32_t flow_age;   /* its ticks since the last packet */
};
void mux_lookup(const struct mux *mux, const struct snapshot *snapshot, const struct flow_tuple *tuple,
		struct mux_answer *answer);

#endif
