/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A worker's counters.  One writer, plain adds; readers take each word as it is and sum over workers, so a sum may be a
 * burst behind.  received equals the sum of reasons once the worker rests.
 */
#ifndef VIPMUX_MUX_STATS_H
#define VIPMUX_MUX_STATS_H

#include <stdint.h>

#include "machine/cpu.h"
#include "packet/mux_reason.h"

struct service_counters {
	uint64_t packets; /* forwarded */
	uint64_t bytes;   /* of their IP packets, outer header not counted */
	uint64_t flows;   /* entries made */
	uint64_t dropped;
};

struct mux_counters {
	uint64_t received;
	uint64_t reasons[REASON_COUNT];
} CACHE_ALIGNED;

#endif
