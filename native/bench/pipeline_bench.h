/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How long the pipeline takes per packet, in memory: `lb bench pipeline` runs this.  Packets are made outside the timed
 * part and lie in a ring, which is written whole before its packets are run.  So its size decides where they come from: of a few
 * thousand frames the headers are in the second-level or third-level cache, as behind a kernel that copies or a NIC that writes
 * there; of the most they come from memory, where the third-level cache is no larger than they and the flow table.
 */
#ifndef VIPMUX_PIPELINE_BENCH_H
#define VIPMUX_PIPELINE_BENCH_H

#include <stdint.h>

#include "mux/mux.h"

enum bench_mode {
	BENCH_HIT = 0,       /* known flows, drawn at random */
	BENCH_FLOOD = 1,     /* a SYN of a new flow each time */
	BENCH_MIX = 2,       /* nine known, one new */
	BENCH_STATELESS = 3, /* known flows, for a mux without a table */
	BENCH_MISS = 4,      /* destinations that are no VIP */
	BENCH_SCRIPT = 5,    /* what bench_send() is told; nothing by itself */
};

#define BENCH_SEGMENT 2048u /* packets timed together */
#define BENCH_FRAMES_MAX (1u << 20)

struct bench_sample {
	double ns;    /* per packet, of one segment */
	double probe; /* ns of a fixed loop of additions, the slower of one before and one after */
};

struct bench;

/*
 * Services of the snapshot must be of one family, with one port each; frames of the ring a multiple of BENCH_SEGMENT, up to
 * BENCH_FRAMES_MAX.  -ENOMEM, -EINVAL.
 */
int bench_create(struct mux *mux, struct snapshot *snapshot, uint32_t mode, uint32_t flows, uint32_t frames,
		 struct bench **out);

/* Runs until `max` samples are taken or `seconds` have passed; returns how many. */
uint32_t bench_run(struct bench *bench, double seconds, struct bench_sample *samples, uint32_t max);

/*
 * The same packets, of which only what memory alone demands is done: a line of each header read, a line of the flow table, an
 * outer header written.  What the pipeline takes beyond that is its own.
 */
uint32_t bench_floor(struct bench *bench, double seconds, struct bench_sample *samples, uint32_t max);

/* What became of the packets of bench_send(), and how much CPU time the pipeline took for all of them. */
struct bench_sent {
	uint64_t fresh;     /* new flows */
	uint64_t known;
	uint64_t untracked;
	uint64_t dropped;
	uint64_t ns;
};

/*
 * One packet with these TCP flags of each of `count` flows from number `first` on, at a time of its own making: hours
 * pass as fast as packets do.  The number alone decides addresses and ports.  Adds to *out.  backends[count] are the
 * numbers that they went to, BENCH_NO_BACKEND where they were dropped; or NULL.
 */
#define BENCH_NO_BACKEND 0xffffu
void bench_send(struct bench *bench, const struct snapshot *snapshot, uint64_t first, uint32_t count, uint32_t flags,
		uint64_t now_ns, uint16_t *backends, struct bench_sent *out);

void bench_destroy(struct bench *bench);

#endif
