/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Taking over flows that another MUX of the pool remembers, and forgetting those that others know better.  Writes the
 * flow table, so only its worker runs this (worker_ask_adopt(), worker_ask_forget()), in pieces of at most ADOPT_MAX
 * flows: some 30 microseconds each.
 */
#ifndef VIPMUX_ADOPT_FLOWS_H
#define VIPMUX_ADOPT_FLOWS_H

#include <stdint.h>

#include "mux/mux.h"
#include "services/snapshot/snapshot.h"

#define ADOPT_MAX 256u

/* What became of them. */
struct adoption {
	uint32_t taken;
	uint32_t known;   /* the table has the flow, with a packet as late as the other MUX saw one */
	uint32_t useless; /* its service or backend is not here, the flow has expired, or its next packet would move it */
	uint32_t refused; /* there was no room */
};

/*
 * Adds the outcome to *out.  records: see flow_table_scan.h; all are flows of one backend of one service.  Ages count from now_ns,
 * by the clock that bursts are given: a MUX that had no packet for long must not take them for older than they are.
 */
void mux_adopt(struct mux *mux, const struct snapshot *snapshot, uint32_t service_id, uint32_t backend,
	       const uint64_t *records, uint32_t count, uint64_t now_ns, struct adoption *out);

/*
 * The same for one of several workers: takes over those that its table knows already, and leaves the others in records, which
 * it shortens to them; how many.  Whichever worker sees a flow later asks for it, so one of them is given the rest.
 */
uint32_t mux_adopt_known(struct mux *mux, const struct snapshot *snapshot, uint32_t service_id, uint32_t backend,
			 uint64_t *records, uint32_t count, uint64_t now_ns, struct adoption *out);

/* Removes flows that are at this backend still and as old as told, or older; returns how many. */
uint32_t mux_forget(struct mux *mux, const struct snapshot *snapshot, uint32_t service_id, uint32_t backend,
		    const uint64_t *records, uint32_t count, uint64_t now_ns);

#endif
