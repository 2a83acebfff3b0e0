/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What control threads do to the flows of a MUX when its workers become more or fewer, or their queues others: who is asked
 * for flows (sibling_tables.h), what an old table leaves to new ones, and what is forgotten since another worker has it.
 *
 * All of it needs the MUX at rest: between two bursts of its worker (worker_ask_*), or without one.
 */
#ifndef VIPMUX_REGROUP_FLOWS_H
#define VIPMUX_REGROUP_FLOWS_H

#include <stdbool.h>
#include <stdint.h>

#include "flow/sibling_tables.h"
#include "mux/mux.h"
#include "services/snapshot/snapshot.h"

#define RELEASE_MAX 256u   /* in one piece */
#define INHERIT_LINES 128u /* in one piece: some 50 microseconds */

/*
 * tables[count] are all others of this MUX; count 0: there are none.  They tell from now on whose flow an ICMP error is about.
 * asked: they are asked for flows as well, which are taken over.  -EINVAL, -ENOMEM: nothing has changed.
 */
int mux_meet(struct mux *mux, struct flow_table *const *tables, uint32_t count, bool asked);

/*
 * Writes at most max keys that were taken over since the last call and that the table still has, so that there is one who knows
 * the flow when others forget it; how many.
 */
uint32_t mux_claims(struct mux *mux, uint64_t *keys, uint32_t max);

/* Removes flows that another worker took over; how many. */
uint32_t mux_release(struct mux *mux, const uint64_t *keys, uint32_t count);

/*
 * Takes over what some lines of a table hold that nobody writes any more; how many flows.  What has expired, what this
 * table or a sibling knows already and what the snapshot has no backend of stays behind.
 */
uint32_t mux_inherit(struct mux *mux, const struct snapshot *snapshot, const struct flow_table *elder, uint64_t first_line,
		     uint32_t lines, uint64_t now_ns);

/*
 * Gives a MUX that no worker runs an empty table for so many flows, 0: none.  fd: the empty file that it is to be in, with the mark of
 * kept_table.h; -1: in memory of its own.  *before: the one that it had, with its reference, NULL: none.  Negative errno: nothing has
 * changed.
 */
int mux_replace_table(struct mux *mux, uint64_t flows, int fd, uint64_t mark, struct flow_table **before);

/* What a table counted counts on here; how many flows it has does not. */
void mux_inherit_counters(struct mux *mux, const struct flow_table *elder);

#endif
