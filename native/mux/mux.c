/* SPDX-License-Identifier: Apache-2.0 */
/* See mux.h.  The stages themselves are in the files that mux_stages.h names. */
#include "mux/mux.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "flow/sibling_tables.h"
#include "mux/fragments.h"
#include "mux/mux_stages.h"
#include "services/snapshot/unsynchronised.h"

/* ---- count ---- */

/* Others read counters meanwhile. */
static inline void add(uint64_t *counter, uint64_t step)
{
	FLOW_STORE(*counter, *counter + step);
}

#define BIT(reason) (1ull << REASON_##reason)

/* Packets that go on with a reason of their own; and those that may be answered. */
#define GOES_ON (BIT(SEGMENTED) | BIT(ICMP_ERROR) | BIT(FRAGMENT))
#define ASKS (BIT(ECHO) | BIT(TTL_EXPIRED) | BIT(NO_SERVICE) | BIT(NO_BACKEND) | BIT(BAD_PROTOCOL) | BIT(TOO_BIG))
_Static_assert(REASON_COUNT < 64, "a bit for each, and for REASON_WAITS");

/* What goes no further.  A packet to one of our services that was answered was not dropped, but came for nothing all the same. */
static void count_dropped(struct mux *mux, unsigned i, const struct frame *frames)
{
	struct packet *packet = &mux->packets[i];
	struct passage *passage = &mux->passages[i];

	if (UNLIKELY(ASKS >> packet->reason & 1) && mux_answers_per_second(mux))
		packet->reason = mux_answer(mux, i, &frames[i]);
	add(&mux->counters.reasons[packet->reason], 1);
	passage->flow = FLOW_NONE;
	if (passage->service)
		add(&mux->service_counters[passage->service->id].dropped, 1);
}

static void count_burst(struct mux *mux, const struct frame *frames)
{
	struct service_counters *services = mux->service_counters;
	uint64_t *backends = mux->backend_counters;
	unsigned count = mux->count, others = 0, waiting = 0;

	for (unsigned i = 0; i < count; i++) {
		const struct packet *packet = &mux->packets[i];
		struct passage *passage = &mux->passages[i];
		struct service_counters *service;

		if (UNLIKELY(packet->reason != REASON_FORWARDED)) {
			others++;
			if (UNLIKELY(packet->reason == REASON_WAITS)) {
				waiting++;
				continue;
			}
			if (!(GOES_ON >> packet->reason & 1)) {
				count_dropped(mux, i, frames);
				continue;
			}
			add(&mux->counters.reasons[packet->reason], 1);
		}
		service = &services[passage->service->id];
		add(&service->packets, 1);
		add(&service->bytes, packet->length);
		if (UNLIKELY(passage->flow == FLOW_NEW))
			add(&service->flows, 1);
		add(&backends[passage->backend->counter], 1);
	}
	add(&mux->counters.received, count - waiting);
	add(&mux->counters.reasons[REASON_FORWARDED], count - others);
}

/* ---- the pipeline ---- */

/* What an entry is worth by the snapshot at hand; see struct flow_table. */
static enum flow_worth judge(const void *owner, uint64_t scrambled, unsigned number, enum flow_class class)
{
	const struct vip_map *map = ((const struct mux *)owner)->snapshot->map;
	uint64_t key = flow_unscramble(&map->seed, scrambled);
	const struct service *service = map->by_id[flow_key_service(key)];

	if (!service || !mux_backend_at(service, number))
		return FLOW_WORTHLESS;
	return flow_is_unsynchronised(map, service, number, key, class) ? FLOW_UNSYNCHRONISED : FLOW_CHEAP;
}

void mux_set_table(struct mux *mux, struct flow_table *table)
{
	mux->table = table;
	flow_table_set_judge(table, judge, mux);
	flow_table_set_find(table, mux->vector->find);
}

void mux_set_time(struct mux *mux, const struct snapshot *snapshot, uint64_t now_ns)
{
	mux->snapshot = snapshot;
	flow_table_set_idle(mux->table, snapshot->map->class_idle);
	flow_table_advance(mux->table, now_ns);
}

/*
 * A pass of the sweep that begins after a change forgets what that change took away, so that its numbers can be lent
 * again.  While nothing changes, passes look at ages alone.
 */
static void sweep(struct mux *mux)
{
	uint64_t passes = mux->table->passes;
	bool judged = mux->pass_serial > mux->forgotten;

	flow_table_sweep(mux->table, judged);
	if (mux->table->passes == passes)
		return;
	if (judged)
		FLOW_STORE(mux->forgotten, mux->pass_serial);
	mux->pass_serial = mux->snapshot->map->serial;
}

uint64_t mux_forgotten(const struct mux *mux)
{
	return __atomic_load_n(&mux->forgotten, __ATOMIC_RELAXED);
}

/* Between choosing and emitting: by then it is known whose packet it is, and the dear part is still to come. */
static void shed_burst(struct mux *mux)
{
	for (unsigned i = 0; i < mux->count; i++) {
		const struct passage *passage = &mux->passages[i];

		if ((mux->packets[i].reason == REASON_FORWARDED || GOES_ON >> mux->packets[i].reason & 1) &&
		    shed_takes(&mux->shed, passage->service->id, passage->flow == FLOW_KNOWN))
			mux->packets[i].reason = REASON_SHED;
	}
}

static void run_burst(struct mux *mux, const struct snapshot *snapshot, struct io *io, struct frame *frames, unsigned count,
		      uint64_t now_ns)
{

	mux->snapshot = snapshot;
	mux->io = io;
	mux->count = count;
	mux->out_count = 0;
	mux->now = answers_clock(mux->now, now_ns);

	if (mux->table)
		mux_set_time(mux, snapshot, now_ns);
	/* Where nothing was for us, nothing may be again. */
	if (!mux->onward && mux_read_strangers(mux, frames)) {
		add(&mux->counters.received, count);
		add(&mux->counters.reasons[REASON_NOT_VIP], count);
		return;
	}
	mux_read_burst(mux, frames);
	if (LIKELY(mux->onward)) {
		mux_choose_burst(mux, frames);
		if (UNLIKELY(shed_first(&mux->shed)))
			shed_burst(mux);
		mux_emit_burst(mux, frames);
	}
	count_burst(mux, frames);
}

/* Fragments that waited for their first come again, now that it is there; they are later ones, and release nobody. */
static NEVER_INLINE void run_released(struct mux *mux, const struct snapshot *snapshot, struct io *io, uint64_t now_ns)
{
	while (mux->released) {
		struct frame frames[BURST_MAX];
		struct kept_fragment *first = mux->released, *kept = first;
		unsigned count = 0;

		for (; kept && count < BURST_MAX; kept = kept->next)
			frames[count++] = (struct frame){ .data = kept->bytes + IO_HEADROOM, .len = kept->len, .wire_len = kept->len,
							  .headroom = IO_HEADROOM };
		mux->released = kept;
		run_burst(mux, snapshot, io, frames, count, now_ns);
		while (first != kept) {
			struct kept_fragment *next = first->next;

			free(first);
			first = next;
		}
	}
}

static void mux_burst(struct pipeline *pipeline, const struct snapshot *snapshot, struct io *io, struct frame *frames,
		      unsigned count, uint64_t now_ns)
{
	struct mux *mux = (struct mux *)pipeline;

	run_burst(mux, snapshot, io, frames, count, now_ns);
	if (UNLIKELY(mux->released != NULL))
		run_released(mux, snapshot, io, now_ns);
}

/* Those that waited in vain. */
static void count_alone(struct mux *mux, uint64_t now_ns)
{
	uint64_t alone = fragments_expire(mux->fragments, now_ns);

	add(&mux->counters.received, alone);
	add(&mux->counters.reasons[REASON_FRAGMENT_ALONE], alone);
}

static void mux_tick(struct pipeline *pipeline, const struct snapshot *snapshot, uint64_t now_ns)
{
	struct mux *mux = (struct mux *)pipeline;

	if (!snapshot)
		return;
	count_alone(mux, answers_clock(mux->now, now_ns));
	if (!mux->table) {
		FLOW_STORE(mux->forgotten, snapshot->map->serial);
		return;
	}
	mux_set_time(mux, snapshot, now_ns);
	sweep(mux);
}

void mux_lookup(const struct mux *mux, const struct snapshot *snapshot, const struct flow_tuple *tuple,
		struct mux_answer *answer)
{
	const struct vip_map *map = snapshot->map;
	const struct service *service;
	uint64_t hash = flow_tuple_hash(&map->seed, tuple, false), key;
	struct flow_slot slot;
	uint32_t source;
	bool is_vip;

	*answer = (struct mux_answer){ .backend = -1, .flow_backend = -1 };
	service = vip_map_find(map, tuple->family, tuple->destination, tuple->protocol, tuple->destination_port,
			       &is_vip);
	if (!service)
		return;
	answer->service = service;
	answer->slot = maglev_slot(service->maglev,
				   service->hash_source ? flow_tuple_hash(&map->seed, tuple, true) : hash);
	if (maglev_at(service->maglev, answer->slot) != MAGLEV_NONE)
		answer->backend = maglev_at(service->maglev, answer->slot);
	if (!mux || !mux->table)
		return;
	memcpy(&source, tuple->source, 4);
	key = service->narrow ? flow_key_narrow(service->id, source, tuple->source_port) :
				flow_key_wide(service->id, hash);
	slot = flow_table_find(mux->table, flow_scramble(&map->seed, key));
	if (!slot.line)
		return;
	answer->flow_backend = (int32_t)flow_slot_backend(slot);
	answer->flow_class = flow_slot_class(slot);
	answer->flow_age = flow_slot_age(mux->table, slot);
}

/* ---- life ---- */

static void mux_warm(struct pipeline *pipeline)
{
	struct mux *mux = (struct mux *)pipeline;

	if (mux->table)
		flow_table_touch(mux->table);
}

static void mux_free(struct pipeline *pipeline)
{
	struct mux *mux = (struct mux *)pipeline;

	fragments_put(mux->fragments);
	sibling_tables_free(mux->siblings);
	sibling_tables_free(mux->witnesses);
	flow_table_destroy(mux->table);
	free(mux->segments);
	free(mux->service_counters);
	free(mux->backend_counters);
	free(mux);
}

int mux_create(const struct mux_config *config, struct mux **out)
{
	const struct vector *vector = vector_get(config->vector);
	struct mux *mux;
	int error = 0;

	if (!vector)
		return -ENOTSUP;
	mux = aligned_alloc(CACHE_LINE, (sizeof(*mux) + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE);
	if (!mux)
		return -ENOMEM;
	memset(mux, 0, sizeof(*mux));
	mux->pipeline.burst = mux_burst;
	mux->pipeline.tick = mux_tick;
	mux->pipeline.warm = mux_warm;
	mux->pipeline.destroy = mux_free;
	mux->pipeline.references = 1;
	mux->config = *config;
	mux->vector = vector;
	for (unsigned i = 0; i < 256; i++)
		mux->ids[i] = (uint16_t)config->first_id;
	mux->answer_id = (uint16_t)config->first_id;
	mux_set_answers(mux, config->answers);
	mux->segments = malloc((size_t)BURST_MAX * SEGMENT_ROOM);
	/* Untouched pages of these cost nothing: only services and backends that exist are ever counted. */
	mux->service_counters = calloc(SERVICE_ID_MAX + 1, sizeof(*mux->service_counters));
	mux->backend_counters = calloc(COUNTER_MAX, sizeof(*mux->backend_counters));
	if (!mux->segments || !mux->service_counters || !mux->backend_counters)
		error = -ENOMEM;
	if (!error && config->fragments)
		mux->fragments = fragments_get(config->fragments);
	else if (!error)
		error = fragments_create(0, &mux->fragments);
	if (!error && config->flows)
		error = flow_table_create(config->flows, &mux->table);
	if (mux->table)
		mux_set_table(mux, mux->table);
	if (mux->table && !config->touch_late)
		flow_table_touch(mux->table);
	if (error) {
		mux_destroy(mux);
		return error;
	}
	*out = mux;
	return 0;
}

void mux_destroy(struct mux *mux)
{
	if (mux)
		pipeline_put(&mux->pipeline);
}
