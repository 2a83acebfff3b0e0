/* SPDX-License-Identifier: Apache-2.0 */
/* See regroup_flows.h. */
#include "control/regroup_flows.h"

#include <stdbool.h>

#include "flow/kept_table.h"
#include "services/vip/vip_map.h"

int mux_meet(struct mux *mux, struct flow_table *const *tables, uint32_t count, bool asked)
{
	struct sibling_tables *siblings = NULL, *witnesses = NULL, *before = mux->siblings;
	int error = count ? sibling_tables_create(tables, count, &witnesses) : 0;

	if (!error && count && asked)
		error = sibling_tables_create(tables, count, &siblings);
	if (error) {
		sibling_tables_free(witnesses);
		return error;
	}
	sibling_tables_free(mux->witnesses);
	mux->witnesses = witnesses;
	for (uint32_t i = 0; siblings && before && i < before->claimed; i++)
		sibling_tables_claim(siblings, before->claims[i]);
	mux->siblings = siblings;
	sibling_tables_free(before);
	return 0;
}

uint32_t mux_claims(struct mux *mux, uint64_t *keys, uint32_t max)
{
	struct sibling_tables *siblings = mux->siblings;
	uint32_t count = 0;

	while (siblings && siblings->claimed && count < max) {
		uint64_t key = siblings->claims[--siblings->claimed];

		if (mux->table && flow_table_find(mux->table, key).line)
			keys[count++] = key;
	}
	return count;
}

uint32_t mux_release(struct mux *mux, const uint64_t *keys, uint32_t count)
{
	uint32_t released = 0;

	for (uint32_t i = 0; mux->table && i < count; i++) {
		struct flow_slot slot = flow_table_find(mux->table, keys[i]);

		if (!slot.line)
			continue;
		flow_table_remove(mux->table, slot);
		released++;
	}
	if (mux->table)
		flow_table_settle(mux->table);
	return released;
}

/* Its service and backend are there, so that no number is remembered that may be lent to another. */
static bool means_something(const struct vip_map *map, uint64_t scrambled, uint64_t entry)
{
	const struct service *service = map->by_id[flow_key_service(flow_unscramble(&map->seed, scrambled))];

	return service && flow_entry_backend(entry) < service->backend_count &&
	       backend_state(&service->backends[flow_entry_backend(entry)]) != BACKEND_ABSENT;
}

/* Another worker saw it since, or another table is still to leave it to somebody. */
static bool sibling_knows(const struct sibling_tables *siblings, const struct flow_table *elder, uint64_t scrambled)
{
	uint16_t stamp;

	for (uint32_t i = 0; siblings && i < siblings->count; i++)
		if (siblings->tables[i] != elder && flow_table_peek(siblings->tables[i], scrambled, &stamp))
			return true;
	return false;
}

static bool inherit_one(struct mux *mux, const struct vip_map *map, const struct flow_table *elder, uint64_t scrambled,
			uint64_t entry, uint16_t stamp)
{
	struct flow_table *table = mux->table;
	uint16_t age = sibling_tables_age(table, stamp);

	if (age >= table->idle[flow_entry_class(entry)] || !means_something(map, scrambled, entry) ||
	    flow_table_find(table, scrambled).line || sibling_knows(mux->siblings, elder, scrambled))
		return false;
	return sibling_tables_put(table, scrambled, (struct flow_slot){ NULL, 0 }, entry, age).line != NULL;
}

uint32_t mux_inherit(struct mux *mux, const struct snapshot *snapshot, const struct flow_table *elder, uint64_t first_line,
		     uint32_t lines, uint64_t now_ns)
{
	uint32_t taken = 0;

	if (!mux->table)
		return 0;
	mux_set_time(mux, snapshot, now_ns);
	for (uint64_t line = first_line; line < elder->line_count && line - first_line < lines; line++) {
		for (unsigned way = 0; way < FLOW_WAYS; way++) {
			uint64_t entry = elder->lines[line].entry[way];

			if (entry)
				taken += inherit_one(mux, snapshot->map, elder, flow_entry_key(elder, line, entry), entry,
						     elder->lines[line].stamp[way]);
		}
	}
	flow_table_settle(mux->table);
	return taken;
}

int mux_replace_table(struct mux *mux, uint64_t flows, int fd, uint64_t mark, struct flow_table **before)
{
	struct flow_table *table = NULL;
	int error = 0;

	if (flows)
		error = fd < 0 ? flow_table_create(flows, &table) : kept_table_create(fd, mark, flows, &table);
	if (error)
		return error;
	*before = mux->table;
	mux->table = NULL;
	if (table)
		mux_set_table(mux, table);
	return 0;
}

void mux_inherit_counters(struct mux *mux, const struct flow_table *elder)
{
	const struct flow_counters *from = &elder->counters;
	struct flow_counters *to;

	if (!mux->table)
		return;
	to = &mux->table->counters;
	to->expired += from->expired;
	to->evicted += from->evicted;
	for (unsigned tier = 0; tier < FLOW_TIERS; tier++)
		to->evicted_tier[tier] += from->evicted_tier[tier];
	to->forgotten += from->forgotten;
	to->refused += from->refused;
	to->moved += from->moved;
}
