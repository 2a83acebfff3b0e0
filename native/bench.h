/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How long the pipeline takes per packet, in memory: `lb bench pipeline` runs this.  Packets are made outside the timed
 * part and lie in a ring larger than the second-level cache, as if a NIC had just written them.
 */
#ifndef VIPMUX_BENCH_H
#define VIPMUX_BENCH_H

#include <stdint.h>

#include "mux.h"

enum bench_mode {
	BENCH_HIT = 0,       /* known flows, drawn at random */
	BENCH_FLOOD = 1,     /* a SYN of a new flow each time */
	BENCH_MIX = 2,       /* nine known, one new */
	BENCH_STATELESS = 3, /* known flows, for a mux without a table */
	BENCH_MISS = 4,      /* destinations that are no VIP */
};

#define BENCH_SEGMENT 2048u /* packets timed together */

struct bench_sample {
	double ns;    /* per packet, of one segment */
	double probe; /* ns of a fixed loop of additions, the slower of one before and one after */
};

struct bench;

/* Services of the snapshot must be IPv4 with one port.  -ENOMEM, -EINVAL. */
int bench_create(struct mux *mux, struct snapshot *snapshot, uint32_t mode, uint32_t flows, struct bench **out);

/* Runs until `max` samples are taken or `seconds` have passed; returns how many. */
uint32_t bench_run(struct bench *bench, double seconds, struct bench_sample *samples, uint32_t max);
void bench_destroy(struct bench *bench);

#endif
