/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The functions that worker_call() runs, and the structs that carry their arguments.  Called by lb/dataplane; the
 * arguments live on the asker's stack, which waits.
 */
#include "control/worker_ask.h"

#include <errno.h>
#include <string.h>

#include "machine/clock.h"

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

/* Each whole, while a worker may write them. */
static void copy_counters(uint64_t *out, const uint64_t *from, size_t count)
{
	for (size_t i = 0; i < count; i++)
		out[i] = __atomic_load_n(&from[i], __ATOMIC_RELAXED);
}

void mux_counters_read(const struct mux *mux, uint64_t *received, uint64_t *reasons, struct flow_counters *flows)
{
	if (received)
		copy_counters(received, &mux->counters.received, 1);
	if (reasons)
		copy_counters(reasons, mux->counters.reasons, REASON_COUNT);
	if (!flows)
		return;
	memset(flows, 0, sizeof(*flows));
	if (mux->table)
		copy_counters((uint64_t *)flows, (const uint64_t *)&mux->table->counters,
			      sizeof(*flows) / sizeof(uint64_t));
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

struct adopt_known_order {
	struct adopt_order order;
	uint64_t *records;
	uint32_t left;
};

static void run_adopt_known(void *argument)
{
	struct adopt_known_order *known = argument;
	const struct adopt_order *order = &known->order;

	known->left = mux_adopt_known(order->mux, order->snapshot, order->service_id, order->backend, known->records,
				      order->count, clock_now_ns(), order->out);
}

int worker_ask_adopt_known(struct worker *worker, struct mux *mux, const struct snapshot *snapshot, uint32_t service_id,
			   uint32_t backend, uint64_t *records, uint32_t count, struct adoption *out, uint32_t *left,
			   int timeout_ms)
{
	struct adopt_known_order known = {{mux, snapshot, service_id, backend, records, count, out}, records, count};
	int error = count > ADOPT_MAX ? -EINVAL : worker_call(worker, run_adopt_known, &known, timeout_ms);

	*left = known.left;
	return error;
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

struct meet_order {
	struct mux *mux;
	struct flow_table *const *tables;
	uint32_t count;
	bool asked;
	int error;
};

static void run_meet(void *argument)
{
	struct meet_order *order = argument;

	order->error = mux_meet(order->mux, order->tables, order->count, order->asked);
}

int worker_ask_meet(struct worker *worker, struct mux *mux, struct flow_table *const *tables, uint32_t count,
		    bool asked, int timeout_ms)
{
	struct meet_order order = {mux, tables, count, asked, 0};
	int error = worker_call(worker, run_meet, &order, timeout_ms);

	return error ? error : order.error;
}

struct claims_question {
	struct mux *mux;
	uint64_t *keys;
	uint32_t max;
	uint32_t count;
};

static void run_claims(void *argument)
{
	struct claims_question *question = argument;

	question->count = mux_claims(question->mux, question->keys, question->max);
}

int worker_ask_claims(struct worker *worker, struct mux *mux, uint64_t *keys, uint32_t max, uint32_t *count, int timeout_ms)
{
	struct claims_question question = {mux, keys, max, 0};
	int error = worker_call(worker, run_claims, &question, timeout_ms);

	*count = question.count;
	return error;
}

struct release_order {
	struct mux *mux;
	const uint64_t *keys;
	uint32_t count;
	uint32_t released;
};

static void run_release(void *argument)
{
	struct release_order *order = argument;

	order->released = mux_release(order->mux, order->keys, order->count);
}

int worker_ask_release(struct worker *worker, struct mux *mux, const uint64_t *keys, uint32_t count, uint32_t *released,
		       int timeout_ms)
{
	struct release_order order = {mux, keys, count, 0};
	int error = count > RELEASE_MAX ? -EINVAL : worker_call(worker, run_release, &order, timeout_ms);

	*released = order.released;
	return error;
}

struct inherit_order {
	struct mux *mux;
	const struct snapshot *snapshot;
	const struct flow_table *elder;
	uint64_t first_line;
	uint32_t lines;
	uint32_t taken;
};

static void run_inherit(void *argument)
{
	struct inherit_order *order = argument;

	order->taken = mux_inherit(order->mux, order->snapshot, order->elder, order->first_line, order->lines,
				   clock_now_ns());
}

int worker_ask_inherit(struct worker *worker, struct mux *mux, const struct snapshot *snapshot,
		       const struct flow_table *elder, uint64_t first_line, uint32_t lines, uint32_t *taken, int timeout_ms)
{
	struct inherit_order order = {mux, snapshot, elder, first_line, lines, 0};
	int error = lines > INHERIT_LINES ? -EINVAL : worker_call(worker, run_inherit, &order, timeout_ms);

	*taken = order.taken;
	return error;
}
