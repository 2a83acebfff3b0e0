/* SPDX-License-Identifier: Apache-2.0 */
/* See adopt_flows.h. */
#include "control/adopt_flows.h"

#include "control/flow_table_scan.h"
#include "services/vip/vip_map.h"

/* The service, if this backend of it may be given flows of others. */
static const struct service *service_at(const struct vip_map *map, uint32_t id, uint32_t backend)
{
	const struct service *service = id <= SERVICE_ID_MAX ? map->by_id[id] : NULL;

	if (!service || backend >= service->backend_count)
		return NULL;
	switch (backend_state(&service->backends[backend])) {
	case BACKEND_UP:
		return service;
	case BACKEND_DRAIN: /* of these UDP flows move at once, where there is anywhere to move */
		return service->protocol == 6 || maglev_at(service->maglev, 0) == MAGLEV_NONE ? service : NULL;
	default:
		return NULL;
	}
}

static uint64_t scrambled_of(const struct vip_map *map, const struct service *service, uint64_t record)
{
	return flow_scramble(&map->seed, flow_key_of(service->id, service->narrow, record >> 16));
}

static uint16_t age_of(uint64_t record)
{
	return (uint16_t)((record & CENSUS_AGE_MAX) << CENSUS_AGE_SHIFT);
}

static void set_age(const struct flow_table *table, struct flow_slot slot, uint16_t age)
{
	FLOW_STORE(slot.line->stamp[slot.way], (uint16_t)((uint16_t)table->clock - age));
}

/* Whoever saw the flow's last packet later knows better where it goes. */
static void adopt_one(struct mux *mux, const struct vip_map *map, const struct service *service, uint32_t backend,
		      uint64_t record, struct adoption *out)
{
	struct flow_table *table = mux->table;
	enum flow_class class = (enum flow_class)(record >> 14 & 3);
	uint16_t age = age_of(record);
	uint16_t life = class == FLOW_TCP_UNTRUSTED ? map->idle_untrusted : service->idle;
	uint64_t scrambled = scrambled_of(map, service, record);
	struct flow_slot slot;

	if (flow_class_is_udp(class) != (service->protocol == 17) || age >= life) {
		out->useless++;
		return;
	}
	slot = flow_table_find(table, scrambled);
	if (slot.line && flow_slot_age(table, slot) <= age + (1u << CENSUS_AGE_SHIFT)) {
		out->known++;
		return;
	}
	if (slot.line && !flow_table_expire(table, slot)) {
		flow_slot_rewrite(table, slot, backend, class);
	} else if (flow_table_insert(table, scrambled, backend, class)) {
		slot = flow_table_find(table, scrambled);
	} else {
		out->refused++;
		return;
	}
	set_age(table, slot, age);
	out->taken++;
}

void mux_adopt(struct mux *mux, const struct snapshot *snapshot, uint32_t service_id, uint32_t backend,
	       const uint64_t *records, uint32_t count, uint64_t now_ns, struct adoption *out)
{
	const struct service *service = service_at(snapshot->map, service_id, backend);

	if (!service || !mux->table) {
		out->useless += count;
		return;
	}
	mux_set_time(mux, snapshot, now_ns);
	for (uint32_t i = 0; i < count; i++)
		adopt_one(mux, snapshot->map, service, backend, records[i], out);
	flow_table_settle(mux->table);
}

uint32_t mux_adopt_known(struct mux *mux, const struct snapshot *snapshot, uint32_t service_id, uint32_t backend,
			 uint64_t *records, uint32_t count, uint64_t now_ns, struct adoption *out)
{
	const struct service *service = service_at(snapshot->map, service_id, backend);
	uint32_t left = 0;

	if (!service || !mux->table)
		return count;
	mux_set_time(mux, snapshot, now_ns);
	for (uint32_t i = 0; i < count; i++) {
		if (flow_table_find(mux->table, scrambled_of(snapshot->map, service, records[i])).line)
			adopt_one(mux, snapshot->map, service, backend, records[i], out);
		else
			records[left++] = records[i];
	}
	flow_table_settle(mux->table);
	return left;
}

uint32_t mux_forget(struct mux *mux, const struct snapshot *snapshot, uint32_t service_id, uint32_t backend,
		    const uint64_t *records, uint32_t count, uint64_t now_ns)
{
	const struct vip_map *map = snapshot->map;
	const struct service *service = service_id <= SERVICE_ID_MAX ? map->by_id[service_id] : NULL;
	uint32_t forgotten = 0;

	if (!service || !mux->table)
		return 0;
	mux_set_time(mux, snapshot, now_ns);
	for (uint32_t i = 0; i < count; i++) {
		struct flow_slot slot = flow_table_find(mux->table, scrambled_of(map, service, records[i]));

		if (!slot.line || flow_slot_backend(slot) != backend ||
		    flow_slot_age(mux->table, slot) < age_of(records[i]))
			continue;
		flow_table_remove(mux->table, slot);
		forgotten++;
	}
	flow_table_settle(mux->table);
	return forgotten;
}
