/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A flow table whose keys all live in a few lines, beside a plain array of what it was told.  A flow may be gone only if
 * it has expired, or if it made room: then no other of both lines of the new flow may have been cheaper to lose.
 *
 * Input: two bytes an operation; the operation and the key, then its argument.
 */
#include "expect.h"
#include "flow/flow_table.c"

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
static const uint16_t idle[FLOW_IDLES] = { 39, 225, 3354, 225 };

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
	memset(table->crowded, 0, sizeof(table->crowded));
}

static uint64_t age_of(const struct known *flow)
{
	return table->clock - flow->seen;
}

static bool expired(const struct known *flow)
{
	return age_of(flow) >= idle[flow_class_plain(flow->class)];
}

static unsigned tier_of(const struct known *flow)
{
	bool silent = age_of(flow) >= idle[FLOW_TCP_UNTRUSTED];

	switch (flow->class) {
	case FLOW_TCP_UNTRUSTED:
	case FLOW_UDP_UNTRUSTED:
		return FLOW_TIER_UNTRUSTED;
	case FLOW_TCP_YOUNG:
	case FLOW_UDP_YOUNG:
		return silent ? FLOW_TIER_UNTRUSTED : FLOW_TIER_YOUNG;
	case FLOW_TCP_YOUNG_ENDED:
		return silent ? FLOW_TIER_ENDED : FLOW_TIER_YOUNG;
	case FLOW_TCP_TRUSTED_ENDED:
		return silent ? FLOW_TIER_ENDED : FLOW_TIER_TRUSTED;
	default:
		return FLOW_TIER_TRUSTED;
	}
}

/* By tier, then by age. */
static uint64_t rank_of(const struct known *flow)
{
	return (uint64_t)tier_of(flow) << 32 | age_of(flow);
}

/* What a line has, before an insert: the highest rank, and whether a way is free. */
struct has {
	uint64_t highest;
	unsigned used;
	bool free;
};

static struct has look(const struct flow_line *line)
{
	struct has has = { 0 };

	for (unsigned n = 0; n < KEYS; n++) {
		if (!flows[n].present || flow_table_find(table, keys[n]).line != line)
			continue;
		has.used++;
		has.free |= expired(&flows[n]);
		if (rank_of(&flows[n]) > has.highest)
			has.highest = rank_of(&flows[n]);
	}
	has.free |= has.used < FLOW_WAYS;
	return has;
}

/* Of the flows that are gone now and had not expired: their rank, or 0; there is one at most. */
static uint64_t lost(void)
{
	uint64_t rank = 0;
	unsigned count = 0;

	for (unsigned n = 0; n < KEYS; n++) {
		if (!flows[n].present || expired(&flows[n]) || flow_table_find(table, keys[n]).line)
			continue;
		rank = rank_of(&flows[n]) + 1;
		count++;
	}
	expect(count <= 1);
	return rank;
}

/* Whether the right one made room; see flow_table_insert(). */
static void check_order(struct has home, struct has alternate, bool short_cut, bool known_full_before, bool room,
			bool moved)
{
	uint64_t highest = home.highest > alternate.highest ? home.highest : alternate.highest, gone = lost();

	if (home.free)
		expect(room && !gone && !moved);
	else if (short_cut && gone == home.highest + 1)
		expect(home.highest >> 32 != FLOW_TIER_TRUSTED && !moved);
	else if (alternate.free)
		expect(room && !gone && !moved);
	else if (highest >> 32)
		expect(room && gone == highest + 1 && !moved);
	else if (moved)
		expect(room && (!gone || (gone - 1) >> 32 == FLOW_TIER_ENDED));
	else if (gone)
		expect(room && gone == highest + 1 && highest >= flow_ticks(FLOW_SPARE_SECONDS));
	else
		expect(!room && (known_full_before || highest < flow_ticks(FLOW_SPARE_SECONDS)));
}

static void compare(const struct flow_counters *before)
{
	uint64_t evicted = 0, old = 0, live = 0;

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
			bool was_old = expired(flow);

			old += was_old;
			evicted += !was_old;
			flow->present = false;
		}
	}
	expect(live == flow_table_live(table));
	expect(evicted == table->counters.evicted - before->evicted);
	expect(old == table->counters.expired - before->expired);
}

static enum flow_class any_class(uint8_t argument)
{
	return argument % FLOW_CLASSES;
}

static void insert(unsigned n, uint8_t argument)
{
	struct flow_line *line = &table->lines[flow_table_line_of(table, keys[n])];
	struct has home = look(line), alternate = look(alternate_line(table, keys[n]));
	bool short_cut = !home.free && table->crowded[home.highest >> 32] >= CROWDED;
	bool full = known_full(table, index_of(table, line));
	struct flow_counters before = table->counters;
	bool room = flow_table_insert(table, keys[n], argument, any_class(argument));

	expect(room || table->counters.refused == before.refused + 1);
	check_order(home, alternate, short_cut, full, room, table->counters.moved > before.moved);
	if (room)
		flows[n] = (struct known){ true, argument, any_class(argument), table->clock };
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
		flow->class = argument & 8 ? flow_class_after(flow->class, argument & 1) :
					     flow_class_ending(flow->class, argument & 1);
		flow_slot_set_class(table, slot, flow->class);
		break;
	case 4:
		flow_slot_rewrite(table, slot, argument, any_class(argument));
		*flow = (struct known){ true, argument, any_class(argument), table->clock };
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
	static const uint16_t jumps[8] = { 0, 1, 40, 112, 230, 3400, 8200, 65535 };
	struct flow_counters before = table->counters;
	unsigned operation = what >> 5, n = what % KEYS;

	if (operation == 7) {
		flow_table_advance(table, (table->clock + jumps[argument & 7]) << FLOW_TICK_SHIFT);
		if (argument & 8)
			flow_table_sweep(table, argument & 32);
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
