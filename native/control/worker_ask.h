/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Questions about a MUX's pipeline, asked of the worker that runs it, so that flows and counters are seen at rest
 * between two bursts.  Each returns 0, or -ETIMEDOUT when the worker did not come by in time.
 */
#ifndef VIPMUX_WORKER_ASK_H
#define VIPMUX_WORKER_ASK_H

#include "mux/mux.h"
#include "control/adopt_flows.h"
#include "control/regroup_flows.h"
#include "worker/worker.h"

/* See mux_lookup(); the caller holds the snapshot. */
int worker_ask_lookup(struct worker *worker, const struct mux *mux, const struct snapshot *snapshot,
		      const struct flow_tuple *tuple, struct mux_answer *answer, int timeout_ms);

/* Any thread may, without asking, and sees each counter whole; out pointers may be NULL. */
void mux_counters_read(const struct mux *mux, uint64_t *received, uint64_t *reasons, struct flow_counters *flows);
/* The same at rest, so that they add up. */
int worker_ask_counters(struct worker *worker, const struct mux *mux, uint64_t *received, uint64_t *reasons,
			struct flow_counters *flows, int timeout_ms);

/* See mux_adopt(): one piece, count <= ADOPT_MAX, else -EINVAL. */
int worker_ask_adopt(struct worker *worker, struct mux *mux, const struct snapshot *snapshot, uint32_t service_id,
		     uint32_t backend, const uint64_t *records, uint32_t count, struct adoption *out, int timeout_ms);

/*
 * See mux_adopt_known(): one piece, count <= ADOPT_MAX, else -EINVAL.  Of records those that the worker does not know are left,
 * *left of them.
 */
int worker_ask_adopt_known(struct worker *worker, struct mux *mux, const struct snapshot *snapshot, uint32_t service_id,
			   uint32_t backend, uint64_t *records, uint32_t count, struct adoption *out, uint32_t *left,
			   int timeout_ms);

/* See mux_forget(): one piece, count <= ADOPT_MAX, else -EINVAL. */
int worker_ask_forget(struct worker *worker, struct mux *mux, const struct snapshot *snapshot, uint32_t service_id,
		      uint32_t backend, const uint64_t *records, uint32_t count, uint32_t *forgotten, int timeout_ms);

/* See regroup_flows.h. */
int worker_ask_meet(struct worker *worker, struct mux *mux, struct flow_table *const *tables, uint32_t count,
		    bool asked, int timeout_ms);
int worker_ask_claims(struct worker *worker, struct mux *mux, uint64_t *keys, uint32_t max, uint32_t *count,
		      int timeout_ms);
/* One piece each: count <= RELEASE_MAX, lines <= INHERIT_LINES, else -EINVAL. */
int worker_ask_release(struct worker *worker, struct mux *mux, const uint64_t *keys, uint32_t count, uint32_t *released,
		       int timeout_ms);
int worker_ask_inherit(struct worker *worker, struct mux *mux, const struct snapshot *snapshot,
		       const struct flow_table *elder, uint64_t first_line, uint32_t lines, uint32_t *taken, int timeout_ms);

#endif
