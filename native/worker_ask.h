/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Questions about a MUX's pipeline, asked of the worker that runs it, so that flows and counters are seen at rest
 * between two bursts.  Each returns 0, or -ETIMEDOUT when the worker did not come by in time.
 */
#ifndef VIPMUX_WORKER_ASK_H
#define VIPMUX_WORKER_ASK_H

#include "adopt.h"
#include "mux.h"
#include "worker.h"

/* See mux_lookup(); the caller holds the snapshot. */
int worker_ask_lookup(struct worker *worker, const struct mux *mux, const struct snapshot *snapshot,
		      const struct flow_tuple *tuple, struct mux_answer *answer, int timeout_ms);

/* See mux_counters_read(). */
int worker_ask_counters(struct worker *worker, const struct mux *mux, uint64_t *received, uint64_t *reasons,
			struct flow_counters *flows, int timeout_ms);

/* See mux_adopt(): one piece, count <= ADOPT_MAX, else -EINVAL. */
int worker_ask_adopt(struct worker *worker, struct mux *mux, const struct snapshot *snapshot, uint32_t service_id,
		     uint32_t backend, const uint64_t *records, uint32_t count, struct adoption *out, int timeout_ms);

/* See mux_forget(): one piece, count <= ADOPT_MAX, else -EINVAL. */
int worker_ask_forget(struct worker *worker, struct mux *mux, const struct snapshot *snapshot, uint32_t service_id,
		      uint32_t backend, const uint64_t *records, uint32_t count, uint32_t *forgotten, int timeout_ms);

#endif
