/* SPDX-License-Identifier: Apache-2.0 */
/* See flow_table_scan.h. */
#include "control/flow_table_scan.h"

#include "services/snapshot/unsynchronised.h"
#include "services/vip/vip_map.h"

/* An entry touched after the clock was read seems to be of the future: it is new. */
#define FUTURE_TICKS 64u

/* One entry, read once. */
struct flow {
	const struct service *service;
	const struct backend *backend;
	unsigned number; /* the backend's */
	uint64_t key;
	enum flow_class class;
	uint16_t age;
};

typedef void flow_visitor(void *context, const struct vip_map *map, const struct flow *flow);

static uint16_t age_of(uint64_t clock, uint16_t stamp)
{
	uint16_t age = (uint16_t)((uint16_t)clock - stamp);

	return age > UINT16_MAX - FUTURE_TICKS ? 0 : age;
}

static uint16_t life_of(const struct vip_map *map, const struct flow *flow)
{
	bool short_lived = flow->class == FLOW_TCP_UNTRUSTED || flow_class_has_ended(flow->class);

	return short_lived ? map->idle_untrusted : flow->service->idle;
}

/* Whether Maglev has a backend for new flows of a service: its slots all name one, or none does. */
static bool takes_flows(const struct service *service)
{
	return maglev_at(service->maglev, 0) != MAGLEV_NONE;
}

/* What keep_remembered() of mux_choose.c would say to a packet that goes on with the flow. */
static bool stays(const struct flow *flow)
{
	switch (backend_state(flow->backend)) {
	case BACKEND_UP:
		return true;
	case BACKEND_DRAIN:
		return !flow_class_is_udp(flow->class) || !takes_flows(flow->service);
	default:
		return false;
	}
}

/* False: the entry means nothing (any more). */
static bool read_flow(const struct mux *mux, const struct vip_map *map, uint64_t line, unsigned way, struct flow *flow)
{
	const struct flow_table *table = mux->table;
	uint64_t entry = __atomic_load_n(&table->lines[line].entry[way], __ATOMIC_RELAXED);
	uint16_t stamp;

	if (!entry)
		return false;
	stamp = __atomic_load_n(&table->lines[line].stamp[way], __ATOMIC_RELAXED);
	flow->key = flow_unscramble(&map->seed, flow_entry_key(table, line, entry));
	flow->service = map->by_id[flow_key_service(flow->key)];
	flow->number = (unsigned)(entry & 0xfff) - 1;
	flow->class = (enum flow_class)(entry >> 12 & 7);
	flow->age = age_of(__atomic_load_n(&table->clock, __ATOMIC_RELAXED), stamp);
	if (!flow->service || flow->number >= flow->service->backend_count)
		return false;
	flow->backend = &flow->service->backends[flow->number];
	return flow->age < life_of(map, flow) && stays(flow);
}

static void visit(const struct mux *mux, const struct snapshot *snapshot, flow_visitor *visitor, void *context)
{
	struct flow flow;

	if (!mux->table)
		return;
	for (uint64_t line = 0; line < mux->table->line_count; line++)
		for (unsigned way = 0; way < FLOW_WAYS; way++)
			if (read_flow(mux, snapshot->map, line, way, &flow))
				visitor(context, snapshot->map, &flow);
}

static bool is_unsynchronised(const struct vip_map *map, const struct flow *flow)
{
	return flow_is_unsynchronised(map, flow->service, flow->number, flow->key, flow->class);
}

/* ---- the three questions ---- */

struct counting {
	struct flow_scan_row *rows;
	uint32_t count;
};

static void count_flow(void *context, const struct vip_map *map, const struct flow *flow)
{
	struct counting *counting = context;

	if (flow->backend->counter >= counting->count)
		return;
	struct flow_scan_row *row = &counting->rows[flow->backend->counter];

	if (flow_class_is_udp(flow->class))
		row->udp++;
	else
		row->tcp++;
	row->unsynchronised += is_unsynchronised(map, flow);
}

void flow_scan_count(const struct mux *mux, const struct snapshot *snapshot, struct flow_scan_row *rows, uint32_t count)
{
	struct counting counting = { rows, count };

	visit(mux, snapshot, count_flow, &counting);
}

struct listing {
	uint64_t *records;
	uint32_t *owners;
	uint32_t max;
	uint32_t found;
};

static void list_flow(void *context, const struct vip_map *map, const struct flow *flow)
{
	struct listing *listing = context;

	if (!is_unsynchronised(map, flow))
		return;
	if (listing->found < listing->max) {
		listing->records[listing->found] = flow_scan_record(flow_key_name(flow->key), flow_class_plain(flow->class), flow->age);
		listing->owners[listing->found] = flow->service->id << 12 | flow->number;
	}
	listing->found++;
}

uint32_t flow_scan_unsynchronised(const struct mux *mux, const struct snapshot *snapshot, uint64_t *records, uint32_t *owners,
			    uint32_t max)
{
	struct listing listing = { records, owners, max, 0 };

	visit(mux, snapshot, list_flow, &listing);
	return listing.found;
}

struct stating {
	struct flow_fact *facts;
	uint32_t max;
	uint32_t found;
};

static void state_flow(void *context, const struct vip_map *map, const struct flow *flow)
{
	struct stating *stating = context;

	if (flow->class == FLOW_TCP_UNTRUSTED || flow->class == FLOW_UDP_UNTRUSTED || !is_unsynchronised(map, flow))
		return;
	if (stating->found < stating->max)
		stating->facts[stating->found] = (struct flow_fact){
			.record = flow_scan_record(flow_key_name(flow->key), flow_class_plain(flow->class), flow->age),
			.owner = flow->service->id << 12 | flow->number,
			.mark = !flow_class_is_trusted(flow->class),
		};
	stating->found++;
}

uint32_t flow_scan_facts(const struct mux *mux, const struct snapshot *snapshot, struct flow_fact *facts, uint32_t max)
{
	struct stating stating = { facts, max, 0 };

	visit(mux, snapshot, state_flow, &stating);
	return stating.found;
}
