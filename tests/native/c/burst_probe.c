/* SPDX-License-Identifier: Apache-2.0 */
/* What each level of vector instructions does to a burst, in the form of plain calls; for tests/native/test_vector.py. */
#include "mux/vector_level.h"

bool probe_runs(uint32_t level);
unsigned probe_chosen(uint32_t level, const bool has[7]);
void probe_scramble(uint32_t level, const uint8_t seed[16], const uint64_t *keys, uint64_t *out, unsigned count);
void probe_hash4(uint32_t level, const uint8_t seed[16], const uint64_t *addresses, const uint64_t *ports, uint64_t *out,
		 unsigned count);
void probe_hash6(uint32_t level, const uint8_t seed[16], const struct flow_tuple *tuples, uint64_t *out, unsigned count);
int probe_same_slots(uint32_t level, const uint64_t *keys, unsigned key_count, const uint64_t *asked, unsigned count,
		     unsigned *found);

#define MOST 4096

bool probe_runs(uint32_t level)
{
	return vector_get(level) != NULL;
}

/* The level that a processor with these gets where `level` is asked for; 0: none. */
unsigned probe_chosen(uint32_t level, const bool has[7])
{
	struct vector_processor processor = { has[0], has[1], has[2], has[3], has[4], has[5], has[6] };
	const struct vector *chosen = vector_for(level, &processor);

	for (unsigned i = 0; chosen && i < VECTOR_LEVELS; i++)
		if (chosen->name == vector_name(i))
			return i;
	return 0;
}

void probe_scramble(uint32_t level, const uint8_t seed[16], const uint64_t *keys, uint64_t *out, unsigned count)
{
	struct flow_seed expanded;

	flow_seed_init(&expanded, seed);
	vector_get(level)->scramble(&expanded, keys, out, count);
}

void probe_hash4(uint32_t level, const uint8_t seed[16], const uint64_t *addresses, const uint64_t *ports, uint64_t *out,
		 unsigned count)
{
	struct flow_seed expanded;

	flow_seed_init(&expanded, seed);
	vector_get(level)->hash4(&expanded, addresses, ports, out, count);
}

void probe_hash6(uint32_t level, const uint8_t seed[16], const struct flow_tuple *tuples, uint64_t *out, unsigned count)
{
	struct flow_words6 words;
	struct flow_seed expanded;

	flow_seed_init(&expanded, seed);
	for (unsigned i = 0; i < count; i++)
		for (unsigned w = 0; w < FLOW_TUPLE_WORDS; w++)
			memcpy(&words.word[w][i], (const uint8_t *)&tuples[i] + 8 * w, 8);
	vector_get(level)->hash6(&expanded, &words, out, count);
}

/* In a table of these flows, some of which find their line full: whether both find the same. */
int probe_same_slots(uint32_t level, const uint64_t *keys, unsigned key_count, const uint64_t *asked, unsigned count,
		     unsigned *found)
{
	static struct flow_slot plain[MOST], fast[MOST];
	struct flow_table *table;
	int same = 1;

	if (count > MOST || flow_table_create(1, &table))
		return 0;
	*found = 0;
	flow_table_set_idle(table, (const uint16_t[FLOW_IDLES]){ 99, 99, 99, 99 }); /* else all have expired at once */
	flow_table_advance(table, 5ULL << FLOW_TICK_SHIFT); /* all stamps are 5 */
	for (unsigned i = 0; i < key_count; i++)
		flow_table_insert(table, keys[i], i % FLOW_BACKEND_MAX, (enum flow_class)(i % FLOW_CLASSES));
	flow_find_burst_scalar(table, asked, plain, count);
	flow_table_set_find(table, vector_get(level)->find);
	flow_table_find_home_burst(table, asked, fast, count);
	for (unsigned i = 0; i < count && same; i++) {
		*found += plain[i].line != NULL;
		same = plain[i].line == fast[i].line && (!plain[i].line || plain[i].way == fast[i].way);
	}
	flow_table_destroy(table);
	return same;
}
