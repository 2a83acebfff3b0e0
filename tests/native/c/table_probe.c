/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The flow table in the form of plain calls, for tests/native/table.py.  It includes the source file, so that it can
 * aim at chosen lines; what it owns is what flow_table_create() returns.
 */
#include "flow/flow_table.c"

struct found {
	uint64_t line;
	uint32_t way;
	uint32_t backend;
	uint32_t class;
	uint32_t age;
};

struct flow_table *probe_create(uint64_t flows);
uint64_t probe_lines(const struct flow_table *table);
void probe_counters(const struct flow_table *table, struct flow_counters *out);
uint64_t probe_clock(const struct flow_table *table);
bool probe_find(struct flow_table *table, uint64_t scrambled, struct found *out);
bool probe_found_at_home(struct flow_table *table, uint64_t scrambled, bool *elsewhere);
uint64_t probe_key(struct flow_table *table, uint64_t scrambled);
void probe_touch(struct flow_table *table, uint64_t scrambled);
void probe_class(struct flow_table *table, uint64_t scrambled, unsigned class);
unsigned probe_class_after(unsigned class, bool later_tick);
unsigned probe_class_ending(unsigned class, bool ended);
void probe_places(const struct flow_table *table, uint64_t scrambled, uint64_t *home, uint64_t *alternate);
unsigned probe_crowd(const struct flow_table *table, unsigned tier);
void probe_judge(struct flow_table *table);
bool probe_full(const struct flow_table *table, uint64_t scrambled);
bool probe_offers_agree(struct flow_table *table, uint64_t seed, unsigned lines);
void probe_remove(struct flow_table *table, uint64_t scrambled);
void probe_rewrite(struct flow_table *table, uint64_t scrambled, unsigned backend, unsigned class);
void probe_crowded(const struct flow_table *table, uint64_t lines, uint64_t *keys, unsigned count);

struct flow_table *probe_create(uint64_t flows)
{
	struct flow_table *table;

	return flow_table_create(flows, &table) ? NULL : table;
}

uint64_t probe_lines(const struct flow_table *table)
{
	return table->line_count;
}

void probe_counters(const struct flow_table *table, struct flow_counters *out)
{
	*out = table->counters;
}

uint64_t probe_clock(const struct flow_table *table)
{
	return table->clock;
}

bool probe_find(struct flow_table *table, uint64_t scrambled, struct found *out)
{
	struct flow_slot slot = flow_table_find(table, scrambled);

	if (!slot.line)
		return false;
	*out = (struct found){ .line = index_of(table, slot.line),
			       .way = slot.way,
			       .backend = flow_slot_backend(slot),
			       .class = flow_slot_class(slot),
			       .age = flow_slot_age(table, slot) };
	return true;
}

bool probe_found_at_home(struct flow_table *table, uint64_t scrambled, bool *elsewhere)
{
	return flow_table_find_home(table, scrambled, elsewhere).line != NULL;
}

uint64_t probe_key(struct flow_table *table, uint64_t scrambled)
{
	return flow_slot_key(table, flow_table_find(table, scrambled));
}

void probe_touch(struct flow_table *table, uint64_t scrambled)
{
	flow_slot_touch(table, flow_table_find(table, scrambled));
}

void probe_class(struct flow_table *table, uint64_t scrambled, unsigned class)
{
	flow_slot_set_class(table, flow_table_find(table, scrambled), class);
}

unsigned probe_class_after(unsigned class, bool later_tick)
{
	return flow_class_after(class, later_tick);
}

unsigned probe_class_ending(unsigned class, bool ended)
{
	return flow_class_ending(class, ended);
}

void probe_places(const struct flow_table *table, uint64_t scrambled, uint64_t *home, uint64_t *alternate)
{
	*home = flow_table_line_of(table, scrambled);
	*alternate = index_of(table, alternate_line(table, scrambled));
}

/* Whether the alternate line may be left out for a home line that has this tier to lose. */
unsigned probe_crowd(const struct flow_table *table, unsigned tier)
{
	return table->crowded[tier] >= CROWDED;
}

/* Says of a flow what its backend's number says: a multiple of three is worthless, one more is cheap. */
static enum flow_worth judge_by_number(const void *owner, uint64_t scrambled, unsigned backend, enum flow_class class)
{
	(void)owner;
	(void)scrambled;
	(void)class;
	return (enum flow_worth)(backend % 3);
}

void probe_judge(struct flow_table *table)
{
	flow_table_set_judge(table, judge_by_number, NULL);
}

/* Whether costly ways to make room are not tried for this key until the next tick. */
bool probe_full(const struct flow_table *table, uint64_t scrambled)
{
	return known_full(table, flow_table_line_of(table, scrambled));
}

/* splitmix64 */
static uint64_t next_random(uint64_t *state)
{
	uint64_t x = *state += 0x9e3779b97f4a7c15u;

	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
	x = (x ^ x >> 27) * 0x94d049bb133111ebu;
	return x ^ x >> 31;
}

/* Whether all ways of a line at once are judged as one after the other: lines at random, most ages small, some ways empty. */
bool probe_offers_agree(struct flow_table *table, uint64_t seed, unsigned lines)
{
	struct flow_line line __attribute__((aligned(CACHE_LINE)));

	while (lines--) {
		line.away = (uint32_t)next_random(&seed);
		for (unsigned way = 0; way < FLOW_WAYS; way++) {
			uint64_t random = next_random(&seed), age = random >> 32;

			line.entry[way] = random & 7 ? next_random(&seed) | 1 : 0;
			line.stamp[way] = (uint16_t)(table->clock - (random & 24 ? age % 4500 : age));
		}

		struct offer offer = offer_of(table, &line), plain = offer_of_scalar(table, &line);

		if (offer.free != plain.free || offer.lose != plain.lose)
			return false;
	}
	return true;
}

void probe_remove(struct flow_table *table, uint64_t scrambled)
{
	flow_table_remove(table, flow_table_find(table, scrambled));
}

void probe_rewrite(struct flow_table *table, uint64_t scrambled, unsigned backend, unsigned class)
{
	flow_slot_rewrite(table, flow_table_find(table, scrambled), backend, class);
}

/* Keys at home in the first `lines` lines whose alternate line is one of them too: a small table within the large. */
void probe_crowded(const struct flow_table *table, uint64_t lines, uint64_t *keys, unsigned count)
{
	uint64_t step = UINT64_MAX / table->line_count, candidate = 0x9e3779b97f4a7c15u;

	while (count) {
		uint64_t key = candidate % (step * lines);

		candidate = candidate * 6364136223846793005u + 1442695040888963407u;
		if (flow_table_line_of(table, key) >= lines || index_of(table, alternate_line(table, key)) >= lines)
			continue;
		keys[--count] = key;
	}
}
