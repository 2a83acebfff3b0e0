/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A flow table whose keys all live in a few lines, beside a plain array of what it was told.  A flow may be gone only if
 * it has expired, or if it was untrusted and a counter says that it made room.
 *
 * Input: two bytes an operation; the operation and the key, then its argument.
 */
#include "flow_table.c"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define LINES 3
#define KEYS 32u

struct known {
	bool present;
	unsigned backend;
	enum flow_class class;
	uint64_t seen;
};

static struct flow_table *table;
static uint64_t keys[KEYS];
static struct known flows[KEYS];
static const uint16_t idle[FLOW_CLASSES] = { 39, 225, 3354, 225 };

static void expect(bool claim)
{
	if (!claim)
		abort();
}

/* Keys at home in the first lines whose other line is one of these too. */
static void make_keys(void)
{
	uint64_t step = UINT64_MAX / table->line_count, candidate = 1;

	for (unsigned n = 0; n < KEYS;) {
		uint64_t key = candidate % (step * LINES);

		candidate = candidate * 6364136223846793005u + 1442695040888963407u;
		if (flow_table_line_of(table, key) < LINES && index_of(table, alternate_line(table, key)) < LINES)
			keys[n++] = key;
	}
}

static void start(void)
{
	if (!table) {
		expect(flow_table_create(1, &table) == 0);
		flow_table_set_idle(table, idle);
		make_keys();
	}
	for (unsigned i = 0; i < LINES; i++)
		for (unsigned way = 0; way < FLOW_WAYS; way++)
			if (table->lines[i].entry[way])
				flow_table_remove(table, (struct flow_slot){ &table->lines[i], way });
	flow_table_settle(table);
	memset(flows, 0, sizeof(flows));
}

static void compare(const struct flow_counters *before)
{
	uint64_t evicted = 0, expired = 0, live = 0;

	for (unsigned n = 0; n < KEYS; n++) {
		struct flow_slot slot = flow_table_find(table, keys[n]);
		struct known *flow = &flows[n];

		expect(flow->present || !slot.line);
		if (slot.line) {
			live++;
			expect(flow_slot_backend(slot) == flow->backend && flow_slot_class(slot) == flow->class);
			expect(flow_slot_age(table, slot) == (uint16_t)(table->clock - flow->seen));
			expect(flow_slot_key(table, slot) == keys[n]);
		} else if (flow->present) {
			bool old = table->clock - flow->seen >= idle[flow->class];

			expect(old || !(flow->class & FLOW_CLASS_TRUSTED));
			expired += old;
			evicted += !old;
			flow->present = false;
		}
	}
	expect(live == flow_table_live(table));
	expect(evicted == table->counters.evicted - before->evicted);
	expect(expired == table->counters.expired - before->expired);
}

static void insert(unsigned n, uint8_t argument)
{
	enum flow_class class = argument & 3;
	uint64_t refused = table->counters.refused;
	bool room = flow_table_insert(table, keys[n], argument, class);

	expect(room || table->counters.refused == refused + 1);
	if (room)
		flows[n] = (struct known){ true, argument, class, table->clock };
}

static void change(unsigned operation, unsigned n, uint8_t argument)
{
	struct flow_slot slot = flow_table_find(table, keys[n]);
	struct known *flow = &flows[n];

	switch (operation) {
	case 2:
		flow_slot_touch(table, slot);
		flow->seen = table->clock;
		break;
	case 3:
		if (!(flow->class & FLOW_CLASS_TRUSTED))
			flow_slot_trust(table, slot);
		flow->class |= FLOW_CLASS_TRUSTED;
		break;
	case 4:
		flow_slot_rewrite(table, slot, argument, argument & 3);
		*flow = (struct known){ true, argument, argument & 3, table->clock };
		break;
	case 5:
		flow_table_expire(table, slot);
		break;
	default:
		flow_table_remove(table, slot);
		flow->present = false;
	}
}

static void step(uint8_t what, uint8_t argument)
{
	static const uint16_t jumps[8] = { 0, 1, 2, 40, 230, 3400, 8200, 65535 };
	struct flow_counters before = table->counters;
	unsigned operation = what >> 5, n = what % KEYS;

	if (operation == 7) {
		flow_table_advance(table, (table->clock + jumps[argument & 7]) << FLOW_TICK_SHIFT);
		if (argument & 8)
			flow_table_sweep(table);
		if (argument & 16)
			flow_table_settle(table);
	} else if (flows[n].present) {
		change(operation, n, argument);
	} else {
		insert(n, argument);
	}
	compare(&before);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static uint64_t inputs;

	start();
	for (size_t i = 0; i + 1 < size; i += 2)
		step(data[i], data[i + 1]);
	if (inputs++ % 64 == 0)
		expect(flow_table_check(table) == NULL);
	return 0;
}
