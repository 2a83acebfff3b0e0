/* SPDX-License-Identifier: Apache-2.0 */
/* See api_glue.h. */
#include "api/api_glue.h"

#include <string.h>

static const struct {
	const char *name;
	const char *sentence;
	uint32_t verdict;
} REASON_TEXTS[REASON_COUNT] = {
#define X(NAME, name, verdict, sentence) { name, sentence, verdict },
	REASONS(X)
#undef X
};

uint32_t reason_count(void)
{
	return REASON_COUNT;
}

const char *reason_name(uint32_t reason)
{
	return reason < REASON_COUNT ? REASON_TEXTS[reason].name : NULL;
}

const char *reason_sentence(uint32_t reason)
{
	return reason < REASON_COUNT ? REASON_TEXTS[reason].sentence : NULL;
}

uint32_t reason_verdict(uint32_t reason)
{
	return reason < REASON_COUNT ? REASON_TEXTS[reason].verdict : VERDICT_COUNT;
}

void maglev_slots(const struct maglev *table, uint16_t *slots)
{
	for (uint32_t i = 0; i < table->size; i++)
		slots[i] = maglev_at(table, i);
}

uint16_t flow_ticks_of(uint32_t seconds)
{
	return flow_ticks(seconds);
}

struct pipeline *mux_pipeline(struct mux *mux)
{
	return &mux->pipeline;
}

void mux_shed(struct mux *mux, const uint64_t *rules, uint32_t count)
{
	shed_set(&mux->shed, rules, count);
}

void mux_answers(struct mux *mux, uint32_t per_second)
{
	mux_set_answers(mux, per_second);
}

const char *mux_vector(const struct mux *mux)
{
	return mux->vector->name;
}

struct flow_table *mux_table(struct mux *mux)
{
	return mux->table ? flow_table_get(mux->table) : NULL;
}

uint64_t flow_table_lines(const struct flow_table *table)
{
	return table->line_count;
}

const struct service_counters *mux_service_counters(const struct mux *mux)
{
	return mux->service_counters;
}

const uint64_t *mux_backend_counters(const struct mux *mux)
{
	return mux->backend_counters;
}

const char *mux_check(const struct mux *mux)
{
	return mux->table ? flow_table_check(mux->table) : NULL;
}

int mux_run_loaded(struct mux *mux, struct snapshot *snapshot, struct io *io, uint64_t now_ns,
		   struct memory_result *results)
{
	struct frame frames[BURST_MAX];
	int count = io->ops->receive(io, frames, BURST_MAX);

	if (count <= 0)
		return count;
	mux->pipeline.burst(&mux->pipeline, snapshot, io, frames, (unsigned)count, now_ns);
	for (int i = 0; i < count; i++) {
		const struct passage *passage = &mux->passages[i];

		results[i] = (struct memory_result){
			.reason = mux->packets[i].reason,
			.flow = passage->flow,
			.service = passage->service ? (int32_t)passage->service->id : -1,
			.backend = passage->flow ? passage->backend_number : -1,
		};
	}
	io->ops->release(io);
	mux->pipeline.tick(&mux->pipeline, snapshot, now_ns);
	return count;
}

void io_stats_read(const struct io *io, struct io_stats *out)
{
	io->ops->stats(io, out);
}

void io_close(struct io *io)
{
	io_put(io);
}
