/* SPDX-License-Identifier: Apache-2.0 */
/* See sibling_tables.h. */
#include "flow/sibling_tables.h"

#include <errno.h>
#include <stdlib.h>

/* Another worker's clock may be ahead of ours by a little: what it saw just now is of no age. */
#define FUTURE_TICKS 64u

uint16_t sibling_tables_age(const struct flow_table *table, uint16_t stamp)
{
	uint16_t age = (uint16_t)((uint16_t)table->clock - stamp);

	return age > UINT16_MAX - FUTURE_TICKS ? 0 : age;
}

void sibling_tables_prefetch(const struct sibling_tables *siblings, uint64_t scrambled)
{
	for (uint32_t i = 0; i < siblings->count; i++) {
		const struct flow_table *table = siblings->tables[i];

		prefetch(&table->lines[flow_table_line_of(table, scrambled)]);
	}
}

struct flow_slot sibling_tables_put(struct flow_table *table, uint64_t scrambled, struct flow_slot own, uint64_t entry,
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

void sibling_tables_claim(struct sibling_tables *siblings, uint64_t scrambled)
{
	if (siblings->claimed < CLAIMS_MAX)
		siblings->claims[siblings->claimed++] = scrambled;
}

struct flow_slot sibling_tables_take(struct sibling_tables *siblings, struct flow_table *table, uint64_t scrambled,
				 struct flow_slot own)
{
	uint16_t youngest = own.line ? flow_slot_age(table, own) : UINT16_MAX;
	uint64_t best = 0;

	for (uint32_t i = 0; i < siblings->count; i++) {
		uint16_t stamp, age;
		uint64_t entry = flow_table_peek(siblings->tables[i], scrambled, &stamp);

		if (!entry)
			continue;
		age = sibling_tables_age(table, stamp);
		if (age < table->idle[flow_entry_class(entry)] && age < youngest) {
			best = entry;
			youngest = age;
		}
	}
	if (!best)
		return own;
	own = sibling_tables_put(table, scrambled, own, best, youngest);
	if (own.line)
		sibling_tables_claim(siblings, scrambled);
	return own;
}

/* ---- life ---- */

int sibling_tables_create(struct flow_table *const *tables, uint32_t count, struct sibling_tables **out)
{
	struct sibling_tables *siblings;

	if (!count || count > NEIGHBOURS_MAX)
		return -EINVAL;
	siblings = malloc(sizeof(*siblings));
	if (!siblings)
		return -ENOMEM;
	siblings->count = count;
	siblings->claimed = 0;
	for (uint32_t i = 0; i < count; i++)
		siblings->tables[i] = flow_table_get(tables[i]);
	*out = siblings;
	return 0;
}

void sibling_tables_free(struct sibling_tables *siblings)
{
	if (!siblings)
		return;
	for (uint32_t i = 0; i < siblings->count; i++)
		flow_table_destroy(siblings->tables[i]);
	free(siblings);
}
