/* SPDX-License-Identifier: Apache-2.0 */
/* See neighbours.h. */
#include "flow/neighbours.h"

#include <errno.h>
#include <stdlib.h>

/* Another worker's clock may be ahead of ours by a little: what it saw just now is of no age. */
#define FUTURE_TICKS 64u

uint16_t neighbours_age(const struct flow_table *table, uint16_t stamp)
{
	uint16_t age = (uint16_t)((uint16_t)table->clock - stamp);

	return age > UINT16_MAX - FUTURE_TICKS ? 0 : age;
}

void neighbours_prefetch(const struct neighbours *neighbours, uint64_t scrambled)
{
	for (uint32_t i = 0; i < neighbours->count; i++) {
		const struct flow_table *table = neighbours->tables[i];

		prefetch(&table->lines[flow_table_line_of(table, scrambled)]);
	}
}

struct flow_slot neighbours_put(struct flow_table *table, uint64_t scrambled, struct flow_slot own, uint64_t entry,
				uint16_t age)
{
	if (own.line) {
		flow_slot_rewrite(table, own, flow_entry_backend(entry), flow_entry_class(entry));
	} else {
		if (!flow_table_insert(table, scrambled, flow_entry_backend(entry), flow_entry_class(entry)))
			return own;
		own = flow_table_find(table, scrambled);
	}
	FLOW_STORE(own.line->stamp[own.way], (uint16_t)((uint16_t)table->clock - age));
	return own;
}

void neighbours_claim(struct neighbours *neighbours, uint64_t scrambled)
{
	if (neighbours->claimed < CLAIMS_MAX)
		neighbours->claims[neighbours->claimed++] = scrambled;
}

struct flow_slot neighbours_take(struct neighbours *neighbours, struct flow_table *table, uint64_t scrambled,
				 struct flow_slot own)
{
	uint16_t youngest = own.line ? flow_slot_age(table, own) : UINT16_MAX;
	uint64_t best = 0;

	for (uint32_t i = 0; i < neighbours->count; i++) {
		uint16_t stamp, age;
		uint64_t entry = flow_table_peek(neighbours->tables[i], scrambled, &stamp);

		if (!entry)
			continue;
		age = neighbours_age(table, stamp);
		if (age < table->idle[flow_entry_class(entry)] && age < youngest) {
			best = entry;
			youngest = age;
		}
	}
	if (!best)
		return own;
	own = neighbours_put(table, scrambled, own, best, youngest);
	if (own.line)
		neighbours_claim(neighbours, scrambled);
	return own;
}

/* ---- life ---- */

int neighbours_create(struct flow_table *const *tables, uint32_t count, struct neighbours **out)
{
	struct neighbours *neighbours;

	if (!count || count > NEIGHBOURS_MAX)
		return -EINVAL;
	neighbours = malloc(sizeof(*neighbours));
	if (!neighbours)
		return -ENOMEM;
	neighbours->count = count;
	neighbours->claimed = 0;
	for (uint32_t i = 0; i < count; i++)
		neighbours->tables[i] = flow_table_get(tables[i]);
	*out = neighbours;
	return 0;
}

void neighbours_free(struct neighbours *neighbours)
{
	if (!neighbours)
		return;
	for (uint32_t i = 0; i < neighbours->count; i++)
		flow_table_destroy(neighbours->tables[i]);
	free(neighbours);
}
