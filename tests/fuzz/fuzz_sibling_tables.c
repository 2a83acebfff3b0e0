/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Three workers' tables, of which the first asks the others: whatever they hold, and however far apart their clocks are, it
 * takes over the entry that was seen latest and has not expired, with its backend, class and age, claims it once, and neither
 * changes theirs nor loses its own.
 *
 * Input: three bytes an operation; what and in which table, the key, its argument.
 */
#include "expect.h"
#include "flow/sibling_tables.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define TABLES 3u /* the first is ours */
#define KEYS 24u

static struct flow_table *tables[TABLES];
static struct sibling_tables *siblings;
static uint64_t keys[KEYS];
static const uint16_t idle[FLOW_IDLES] = { 39, 225, 3354, 225 };

/* At home in few lines, so that these fill. */
static void start(void)
{
	if (!siblings) {
		for (unsigned i = 0; i < TABLES; i++) {
			expect(flow_table_create(1, &tables[i]) == 0);
			flow_table_set_idle(tables[i], idle);
		}
		expect(sibling_tables_create(tables + 1, TABLES - 1, &siblings) == 0);
		for (uint64_t n = 0; n < KEYS; n++)
			keys[n] = n % 2 + 1 + (n << 20);
	}
	for (unsigned i = 0; i < TABLES; i++) {
		for (unsigned n = 0; n < KEYS; n++) {
			struct flow_slot slot = flow_table_find(tables[i], keys[n]);

			if (slot.line)
				flow_table_remove(tables[i], slot);
		}
		flow_table_settle(tables[i]);
		tables[i]->clock = 1 << 16;
	}
	siblings->claimed = 0;
}

struct known {
	unsigned backend;
	enum flow_class class;
	uint16_t age; /* by our clock */
};

static bool known_to(unsigned table, uint64_t key, struct known *out)
{
	struct flow_slot slot = flow_table_find(tables[table], key);
	int16_t ahead;

	if (!slot.line)
		return false;
	out->backend = flow_slot_backend(slot);
	out->class = flow_slot_class(slot);
	out->age = (uint16_t)((uint16_t)tables[0]->clock - slot.line->stamp[slot.way]);
	ahead = (int16_t)-out->age;
	if (table && ahead > 0 && ahead <= 64) /* its clock is a little ahead */
		out->age = 0;
	return true;
}

static bool alive(const struct known *flow)
{
	return flow->age < idle[flow_class_plain(flow->class)];
}

static void take(uint64_t key)
{
	struct known own, best = { 0 }, found, after;
	bool had = known_to(0, key, &own), any = false;
	uint32_t claimed = siblings->claimed;
	uint64_t refused = tables[0]->counters.refused, others[TABLES] = { 0 };
	struct flow_slot slot;

	for (unsigned i = 1; i < TABLES; i++) {
		others[i] = flow_table_live(tables[i]);
		if (!known_to(i, key, &found) || !alive(&found) || (had && found.age >= own.age))
			continue;
		if (!any || found.age < best.age)
			best = found;
		any = true;
	}
	slot = sibling_tables_take(siblings, tables[0], key, flow_table_find(tables[0], key));
	for (unsigned i = 1; i < TABLES; i++)
		expect(flow_table_live(tables[i]) == others[i]);
	if (any && !slot.line) { /* there was no room, which takes nothing */
		expect(!had && tables[0]->counters.refused == refused + 1 && siblings->claimed == claimed);
		return;
	}
	expect(known_to(0, key, &after) == (had || any) && (slot.line != NULL) == (had || any));
	if (!any) {
		expect(siblings->claimed == claimed);
		expect(!had || (after.backend == own.backend && after.class == own.class && after.age == own.age));
		return;
	}
	expect(after.backend == best.backend && after.class == best.class && after.age == best.age);
	expect(claimed == CLAIMS_MAX || (siblings->claimed == claimed + 1 && siblings->claims[claimed] == key));
	expect(siblings->claimed <= CLAIMS_MAX);
}

static void step(uint8_t what, uint64_t key, uint8_t argument)
{
	static const uint16_t jumps[8] = { 0, 1, 40, 63, 66, 230, 3400, 65535 };
	struct flow_table *table = tables[what >> 3 & 3 ? (what >> 3 & 3) - 1 : 0];
	struct flow_slot slot = flow_table_find(table, key);

	switch (what & 7) {
	case 0:
	case 1:
		take(key);
		break;
	case 2:
	case 3:
		if (!slot.line)
			flow_table_insert(table, key, argument, argument % FLOW_CLASSES);
		else
			flow_slot_rewrite(table, slot, argument, argument % FLOW_CLASSES);
		break;
	case 4:
		if (slot.line)
			flow_slot_touch(table, slot);
		break;
	case 5:
		if (slot.line)
			flow_table_remove(table, slot);
		break;
	case 6:
		table->clock += jumps[argument & 7]; /* nobody sweeps meanwhile: what has expired is still there */
		break;
	default: /* told, or full */
		siblings->claimed = argument & 1 ? 0 : CLAIMS_MAX;
	}
	flow_table_settle(table);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static uint64_t inputs;

	start();
	for (size_t i = 0; i + 2 < size; i += 3)
		step(data[i], keys[data[i + 1] % KEYS], data[i + 2]);
	if (inputs++ % 256 == 0)
		for (unsigned i = 0; i < TABLES; i++)
			expect(flow_table_check(tables[i]) == NULL);
	return 0;
}
