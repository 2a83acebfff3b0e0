/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The functions that worker_call() runs, and the structs that carry their arguments.  Called by lb/dataplane; the
 * arguments live on the asker's stack, which waits.
 */
#include "worker_ask.h"

#include <errno.h>

#include "api_glue.h"
#include "clock.h"

struct lookup_question {
	const struct mux *mux;
	const struct snapshot *snapshot;
	const struct flow_tuple *tuple;
	struct mux_answer *answer;
};

static void run_lookup(void *argument)
{
	const struct lookup_question *question = argument;

	mux_lookup(question->mux, question->snapshot, question->tuple, question->answer);
}

int worker_ask_lookup(struct worker *worker, const struct mux *mux, const struct snapshot *snapshot,
		      const struct flow_tuple *tuple, struct mux_answer *answer, int timeout_ms)
{
	struct lookup_question question = {mux, snapshot, tuple, answer};

	return worker_call(worker, run_lookup, &question, timeout_ms);
}

struct counters_question {
	const struct mux *mux;
	uint64_t *received;
	uint64_t *reasons;
	struct flow_counters *flows;
};

static void run_counters(void *argument)
{
	const struct counters_question *question = argument;

	mux_counters_read(question->mux, question->received, question->reasons, question->flows);
}

int worker_ask_counters(struct worker *worker, const struct mux *mux, uint64_t *received, uint64_t *reasons,
			struct flow_counters *flows, int timeout_ms)
{
	struct counters_question question = {mux, received, reasons, flows};

	return worker_call(worker, run_counters, &question, timeout_ms);
}

struct adopt_order {
	struct mux *mux;
	const struct snapshot *snapshot;
	uint32_t service_id;
	uint32_t backend;
	const uint64_t *records;
	uint32_t count;
	struct adoption *out;
};

static void run_adopt(void *argument)
{
	const struct adopt_order *order = argument;

	mux_adopt(order->mux, order->snapshot, order->service_id, order->backend, order->records, order->count,
		  clock_now_ns(), order->out);
}

int worker_ask_adopt(struct worker *worker, struct mux *mux, const struct snapshot *snapshot, uint32_t service_id,
		     uint32_t backend, const uint64_t *records, uint32_t count, struct adoption *out, int timeout_ms)
{
	struct adopt_order order = {mux, snapshot, service_id, backend, records, count, out};

	if (count > ADOPT_MAX)
		return -EINVAL;
	return worker_call(worker, run_adopt, &order, timeout_ms);
}

struct forget_order {
	struct mux *mux;
	const struct snapshot *snapshot;
	uint32_t service_id;
	uint32_t backend;
	const uint64_t *records;
	uint32_t count;
	uint32_t *forgotten;
};

static void run_forget(void *argument)
{
	const struct forget_order *order = argument;

	*order->forgotten = mux_forget(order->mux, order->snapshot, order->service_id, order->backend, order->records,
				       order->count, clock_now_ns());
}

int worker_ask_forget(struct worker *worker, struct mux *mux, const struct snapshot *snapshot, uint32_t service_id,
		      uint32_t backend, const uint64_t *records, uint32_t count, uint32_t *forgotten, int timeout_ms)
{
	struct forget_order order = {mux, snapshot, service_id, backend, records, count, forgotten};

	if (count > ADOPT_MAX)
		return -EINVAL;
	return worker_call(worker, run_forget, &order, timeout_ms);
}
