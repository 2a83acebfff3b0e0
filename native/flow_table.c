/* SPDX-License-Identifier: Apache-2.0 */
/* See flow_table.h. */
#include "flow_table.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#ifdef __x86_64__
#include <immintrin.h>
#endif

#define BACKEND_BITS 12
#define CLASS_SHIFT 12
#define AWAY_BIT (1ULL << 15)
#define KEY_SHIFT FLOW_KEY_SHIFT
#define KEY_MASK (~0ULL << FLOW_REST_BITS) /* remainder and the alternate bit: what must be equal */

/* 48 bits of remainder fit an entry, so a table has at least 2^16 lines (4 MiB). */
#define LINES_MIN (1ULL << 16)
_Static_assert(LINES_MIN == 1ULL << FLOW_KEY_SHIFT, "what the line tells and what an entry holds are all 64 bits");
_Static_assert(FLOW_ENDED == 1ULL << (CLASS_SHIFT + 2) && AWAY_BIT == FLOW_ENDED << 1, "no bit has two meanings");
/* Four flows a line of six: 16 bytes a flow, and an insert practically always finds room (tests/native measures it). */
#define LINE_LOAD 4

#define CROWDED 64u       /* alternate lines found full, less those that were not: see note_crowd() */
#define CROWDED_MAX 128u
#define CROWDED_STEP 8u
#define CROWDED_LOOKS 64u

#define SWEEP_TICKS 16       /* one pass */
#define SWEEP_LINES_MAX 4096 /* a bounded piece: some 40 microseconds */
/* An entry may be this much older than the longest idle timeout; more, and its 16-bit stamp might look young again. */
#define JUMP_TICKS 8192
_Static_assert(((uint64_t)FLOW_IDLE_MAX_SECONDS * 1000000000u >> FLOW_TICK_SHIFT) + 2 + JUMP_TICKS + SWEEP_TICKS <
		       65536,
	       "the stamp must not wrap before the sweep comes by");

static flow_find_burst *best_find_burst(void);

static uint64_t lines_for(uint64_t flows)
{
	uint64_t lines = (flows + LINE_LOAD - 1) / LINE_LOAD;

	return lines < LINES_MIN ? LINES_MIN : lines;
}

size_t flow_table_bytes(uint64_t flows)
{
	return lines_for(flows) * sizeof(struct flow_line);
}

int flow_table_create(uint64_t flows, struct flow_table **out)
{
	struct flow_table *table = calloc(1, sizeof(*table));
	const size_t huge = 2 << 20;
	uint8_t *map;

	if (!table)
		return -ENOMEM;
	table->find_burst = best_find_burst();
	table->line_count = lines_for(flows);
	table->remainder_bits = 64 - (63 - (unsigned)__builtin_clzll(table->line_count));
	table->bytes = (flow_table_bytes(flows) + huge - 1) & ~(huge - 1);

	/* Aligned to huge pages and advised so: random access to 4 KiB pages would miss the TLB at every lookup. */
	map = mmap(NULL, table->bytes + huge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (map == MAP_FAILED) {
		free(table);
		return -ENOMEM;
	}
	size_t skip = (huge - (uintptr_t)map % huge) % huge;

	if (skip)
		munmap(map, skip);
	if (huge - skip)
		munmap(map + skip + table->bytes, huge - skip);
	table->lines = (struct flow_line *)(map + skip);
	madvise(table->lines, table->bytes, MADV_HUGEPAGE);
	memset(table->lines, 0, table->bytes);
	*out = table;
	return 0;
}

void flow_table_destroy(struct flow_table *table)
{
	if (!table)
		return;
	munmap(table->lines, table->bytes);
	free(table);
}

void flow_table_set_idle(struct flow_table *table, const uint16_t idle[FLOW_CLASSES])
{
	memcpy(table->idle, idle, sizeof(table->idle));
}

/* ---- places ---- */

/* How far the alternate line lies from home, 1 to line_count - 1; told by the remainder, so it can be undone. */
static inline uint64_t away_distance(const struct flow_table *table, uint64_t remainder)
{
	uint64_t mixed = (remainder * 0x9e3779b97f4a7c15u) >> 32;

	return 1 + (mixed * (table->line_count - 1) >> 32);
}

static inline uint64_t alternate_of(const struct flow_table *table, uint64_t home, uint64_t remainder)
{
	uint64_t line = home + away_distance(table, remainder);

	return line >= table->line_count ? line - table->line_count : line;
}

static inline uint64_t index_of(const struct flow_table *table, const struct flow_line *line)
{
	return (uint64_t)(line - table->lines);
}

/* The home line of an entry that is in `line`. */
static inline uint64_t home_of_entry(const struct flow_table *table, uint64_t line, uint64_t entry)
{
	if (!(entry & AWAY_BIT))
		return line;
	uint64_t distance = away_distance(table, entry >> KEY_SHIFT);

	return line >= distance ? line - distance : line + table->line_count - distance;
}

static inline uint64_t home_of(const struct flow_table *table, struct flow_slot slot)
{
	return home_of_entry(table, index_of(table, slot.line), slot.line->entry[slot.way]);
}

uint64_t flow_entry_key(const struct flow_table *table, uint64_t line, uint64_t entry)
{
	uint64_t remainder = entry >> KEY_SHIFT, home = home_of_entry(table, line, entry);
	uint64_t mask = (1ULL << table->remainder_bits) - 1;
	/* The keys of a line are those from ceil(home * 2^64 / lines) on, fewer than 2^remainder_bits of them. */
	unsigned __int128 scaled = ((unsigned __int128)home << 64) + table->line_count - 1;
	uint64_t first = (uint64_t)(scaled / table->line_count);

	return first + ((remainder - first) & mask);
}

uint64_t flow_slot_key(const struct flow_table *table, struct flow_slot slot)
{
	return flow_entry_key(table, index_of(table, slot.line), slot.line->entry[slot.way]);
}

/* ---- find ---- */

void flow_find_burst_plain(const struct flow_table *table, const uint64_t *scrambled, struct flow_slot *slots,
			   unsigned count)
{
	bool elsewhere;

	for (unsigned i = 0; i < count; i++)
		slots[i] = flow_table_find_home(table, scrambled[i], &elsewhere);
}

#ifdef __x86_64__
/* flow_line_way() on four entries at once; what the last two words of the line hold is masked off. */
__attribute__((target("avx2,bmi"))) static void find_burst_avx2(const struct flow_table *table,
								 const uint64_t *scrambled,
								 struct flow_slot *slots, unsigned count)
{
	const __m256i one = _mm256_set1_epi64x(1), zero = _mm256_setzero_si256();

	for (unsigned i = 0; i < count; i++) {
		struct flow_line *line = &table->lines[flow_table_line_of(table, scrambled[i])];
		uint64_t remainder = flow_table_remainder(table, scrambled[i]);
		__m256i key = _mm256_set1_epi64x((long long)(remainder << KEY_SHIFT));
		__m256i low = _mm256_load_si256((const __m256i *)line);
		__m256i high = _mm256_load_si256((const __m256i *)line + 1);

		low = _mm256_sub_epi64(_mm256_xor_si256(low, key), one);
		high = _mm256_sub_epi64(_mm256_xor_si256(high, key), one);
		low = _mm256_cmpeq_epi64(_mm256_srli_epi64(low, FLOW_REST_BITS), zero);
		high = _mm256_cmpeq_epi64(_mm256_srli_epi64(high, FLOW_REST_BITS), zero);

		unsigned hits = (unsigned)_mm256_movemask_pd(_mm256_castsi256_pd(low)) |
				(unsigned)_mm256_movemask_pd(_mm256_castsi256_pd(high)) << 4;

		hits &= (1u << FLOW_WAYS) - 1;
		slots[i].line = hits ? line : NULL;
		slots[i].way = hits ? (unsigned)__builtin_ctz(hits) : 0;
	}
}
flow_find_burst *const flow_find_burst_avx2 = find_burst_avx2;

flow_find_burst *flow_find_burst_for(bool avx2, bool bmi)
{
	return avx2 && bmi ? find_burst_avx2 : flow_find_burst_plain;
}

static flow_find_burst *best_find_burst(void)
{
	/* Both, for the compiler uses both; a hypervisor may mask either. */
	return flow_find_burst_for(__builtin_cpu_supports("avx2"), __builtin_cpu_supports("bmi"));
}
#else
flow_find_burst *const flow_find_burst_avx2;

flow_find_burst *flow_find_burst_for(bool avx2, bool bmi)
{
	(void)avx2;
	(void)bmi;
	return flow_find_burst_plain;
}

static flow_find_burst *best_find_burst(void)
{
	return flow_find_burst_plain;
}
#endif

static struct flow_line *alternate_line(const struct flow_table *table, uint64_t scrambled)
{
	return &table->lines[alternate_of(table, flow_table_line_of(table, scrambled), flow_table_remainder(table, scrambled))];
}

static bool all_trusted(const struct flow_line *line)
{
	uint64_t all = ~0ULL;

	for (unsigned way = 0; way < FLOW_WAYS; way++)
		all &= line->entry[way];
	return all >> CLASS_SHIFT & FLOW_CLASS_TRUSTED;
}

void flow_table_prefetch_alternate(const struct flow_table *table, uint64_t scrambled)
{
	const struct flow_line *home = &table->lines[flow_table_line_of(table, scrambled)];

	if (flow_line_away(home, flow_table_remainder(table, scrambled)) | (table->crowded < CROWDED) |
	    all_trusted(home))
		__builtin_prefetch(alternate_line(table, scrambled), 1);
}

struct flow_slot flow_table_find(const struct flow_table *table, uint64_t scrambled)
{
	bool elsewhere;
	struct flow_slot slot = flow_table_find_home(table, scrambled, &elsewhere);

	if (slot.line || !elsewhere)
		return slot;

	struct flow_line *line = alternate_line(table, scrambled);
	int way = flow_line_way(line, flow_table_remainder(table, scrambled) << KEY_SHIFT | AWAY_BIT);

	return way < 0 ? (struct flow_slot){ NULL, 0 } : (struct flow_slot){ line, (unsigned)way };
}

/* ---- change ---- */

static void count_back(struct flow_line *line, unsigned shift)
{
	if (LIKELY((line->away >> shift & FLOW_AWAY_FULL) != FLOW_AWAY_FULL))
		line->away -= 1u << shift;
}

void flow_table_settle(struct flow_table *table)
{
	for (unsigned i = 0; i < table->owed_count; i++)
		count_back(table->owed[i], table->owed_shift[i]);
	table->owed_count = 0;
}

static void owe(struct flow_table *table, struct flow_line *line, unsigned shift)
{
	if (UNLIKELY(table->owed_count == FLOW_OWED_MAX))
		flow_table_settle(table);
	__builtin_prefetch(line, 1);
	table->owed[table->owed_count] = line;
	table->owed_shift[table->owed_count++] = (uint8_t)shift;
}

static void clear_way(struct flow_table *table, struct flow_slot slot)
{
	uint64_t entry = slot.line->entry[slot.way];

	if (entry & AWAY_BIT)
		owe(table, &table->lines[home_of(table, slot)], flow_away_shift(entry >> KEY_SHIFT));
	table->counters.live[entry >> CLASS_SHIFT & 3]--;
	slot.line->entry[slot.way] = 0;
	table->changes++;
}

void flow_table_remove(struct flow_table *table, struct flow_slot slot)
{
	clear_way(table, slot);
}

bool flow_table_expire(struct flow_table *table, struct flow_slot slot)
{
	if (flow_slot_age(table, slot) < table->idle[flow_slot_class(slot)])
		return false;
	clear_way(table, slot);
	table->counters.expired++;
	return true;
}

static void count_away(struct flow_line *line, unsigned shift)
{
	if (LIKELY((line->away >> shift & FLOW_AWAY_FULL) != FLOW_AWAY_FULL))
		line->away += 1u << shift;
}

static void fill_way(struct flow_table *table, struct flow_slot slot, uint64_t entry, uint16_t stamp)
{
	slot.line->entry[slot.way] = entry;
	slot.line->stamp[slot.way] = stamp;
	table->counters.live[entry >> CLASS_SHIFT & 3]++;
	if (entry & AWAY_BIT)
		count_away(&table->lines[home_of(table, slot)], flow_away_shift(entry >> KEY_SHIFT));
	table->changes++;
}

/* What a line has to offer to a new flow. */
struct offer {
	unsigned free; /* bit per way that is empty or whose flow has expired */
	int oldest;    /* age << 3 | 7 - way of the untrusted flow that has been silent longest, -1 if all are trusted */
};

/* No branches: what is in a way is as good as random. */
static struct offer offer_of(const struct flow_table *table, const struct flow_line *line)
{
	struct offer offer = { 0, -1 };

	for (unsigned way = 0; way < FLOW_WAYS; way++) {
		uint64_t entry = line->entry[way];
		unsigned class = entry >> CLASS_SHIFT & 3;
		uint16_t age = (uint16_t)((uint16_t)table->clock - line->stamp[way]);
		/* Ties go to the first way. */
		int score = ((int)age << 3 | (int)(7 - way)) | -(int)(class >> 1);

		offer.free |= (unsigned)((entry == 0) | (age >= table->idle[class])) << way;
		offer.oldest = score > offer.oldest ? score : offer.oldest;
	}
	return offer;
}

static struct flow_slot take_free(struct flow_table *table, struct flow_line *line, struct offer offer)
{
	struct flow_slot slot = { line, (unsigned)__builtin_ctz(offer.free) };

	if (line->entry[slot.way]) {
		clear_way(table, slot);
		table->counters.expired++;
	}
	return slot;
}

static struct flow_slot take_evicted(struct flow_table *table, struct flow_line *line, struct offer offer)
{
	struct flow_slot slot = { line, 7 - ((unsigned)offer.oldest & 7) };

	clear_way(table, slot);
	table->counters.evicted++;
	return slot;
}

/*
 * In a flood the table is full, and to read one more line for each packet only to see that it is full as well costs
 * as much as all the rest.  So while nearly all alternate lines turn out to be full, a home line that has an untrusted flow
 * to lose is enough, and only now and then another line is looked at.  What decides is what inserts have seen, never
 * how far the sweep has come: places must not depend on how bursts fell.
 */
static void note_crowd(struct flow_table *table, struct offer alternate)
{
	if (!alternate.free)
		table->crowded += table->crowded < CROWDED_MAX;
	else
		table->crowded -= table->crowded < CROWDED_STEP ? table->crowded : CROWDED_STEP;
}

/* The other of the two lines where an entry may be. */
static struct flow_line *other_line(const struct flow_table *table, struct flow_slot slot)
{
	uint64_t entry = slot.line->entry[slot.way], home = home_of(table, slot);

	return &table->lines[entry & AWAY_BIT ? home : alternate_of(table, home, entry >> KEY_SHIFT)];
}

/* Moves one flow of a full line to its own other line, if that has room; returns the way it left, or -1. */
static int move_one(struct flow_table *table, struct flow_line *line)
{
	struct flow_line *others[FLOW_WAYS];

	/* None of these is in a cache: wait for all at once. */
	for (unsigned way = 0; way < FLOW_WAYS; way++) {
		others[way] = other_line(table, (struct flow_slot){ line, way });
		__builtin_prefetch(others[way], 1);
	}
	for (unsigned way = 0; way < FLOW_WAYS; way++) {
		struct offer offer = offer_of(table, others[way]);
		struct flow_slot from = { line, way }, to;
		uint64_t entry = line->entry[way];
		uint16_t stamp = line->stamp[way];

		if (!offer.free)
			continue;
		to = take_free(table, others[way], offer);
		clear_way(table, from);
		fill_way(table, to, entry ^ AWAY_BIT, stamp);
		table->counters.moved++;
		return (int)way;
	}
	return -1;
}

/* Finds or makes room for a key whose two lines are given; see flow_table_insert() for the order. */
static struct flow_slot make_room(struct flow_table *table, struct flow_line *home, struct flow_line *alternate)
{
	struct offer here = offer_of(table, home), there;
	int way;

	if (here.free)
		return take_free(table, home, here);
	if (here.oldest >= 0 && table->crowded >= CROWDED && ++table->looks % CROWDED_LOOKS)
		return take_evicted(table, home, here);
	there = offer_of(table, alternate);
	note_crowd(table, there);
	if (there.free)
		return take_free(table, alternate, there);

	if (here.oldest >= 0 || there.oldest >= 0) {
		bool stay = here.oldest >> 3 >= there.oldest >> 3;

		return stay ? take_evicted(table, home, here) : take_evicted(table, alternate, there);
	}

	way = move_one(table, home);
	if (way >= 0)
		return (struct flow_slot){ home, (unsigned)way };
	way = move_one(table, alternate);
	if (way >= 0)
		return (struct flow_slot){ alternate, (unsigned)way };
	return (struct flow_slot){ NULL, 0 };
}

bool flow_table_insert(struct flow_table *table, uint64_t scrambled, unsigned backend, enum flow_class class)
{
	struct flow_line *home = &table->lines[flow_table_line_of(table, scrambled)];
	struct flow_slot slot = make_room(table, home, alternate_line(table, scrambled));

	if (!slot.line) {
		table->counters.refused++;
		return false;
	}
	uint64_t entry = flow_table_remainder(table, scrambled) << KEY_SHIFT | (uint64_t)class << CLASS_SHIFT | (backend + 1);

	fill_way(table, slot, slot.line == home ? entry : entry | AWAY_BIT, (uint16_t)table->clock);
	return true;
}

void flow_slot_rewrite(struct flow_table *table, struct flow_slot slot, unsigned backend, enum flow_class class)
{
	uint64_t *entry = &slot.line->entry[slot.way];

	table->counters.live[*entry >> CLASS_SHIFT & 3]--;
	table->counters.live[class]++;
	*entry = (*entry & KEY_MASK) | (uint64_t)class << CLASS_SHIFT | (backend + 1);
	slot.line->stamp[slot.way] = (uint16_t)table->clock;
	table->changes++;
}

/* ---- age ---- */

/* Removes what is older than its class allows; `extra` ticks passed since stamps were last comparable. */
static void sweep_line(struct flow_table *table, struct flow_line *line, uint64_t extra)
{
	for (unsigned way = 0; way < FLOW_WAYS; way++) {
		if (!line->entry[way])
			continue;
		uint16_t age = (uint16_t)((uint16_t)table->clock - line->stamp[way]);

		if (age + extra < table->idle[line->entry[way] >> CLASS_SHIFT & 3])
			continue;
		clear_way(table, (struct flow_slot){ line, way });
		table->counters.expired++;
	}
}

uint64_t flow_table_live(const struct flow_table *table)
{
	const uint64_t *live = table->counters.live;

	return live[0] + live[1] + live[2] + live[3];
}

/* Decides by the clock as it was plus what passed since: after that, 16 bits would lie. */
static void sweep_all(struct flow_table *table, uint64_t passed)
{
	for (uint64_t i = 0; i < table->line_count && flow_table_live(table); i++)
		sweep_line(table, &table->lines[i], passed);
	table->sweep_due = 0;
}

void flow_table_advance(struct flow_table *table, uint64_t now_ns)
{
	uint64_t tick = now_ns >> FLOW_TICK_SHIFT;

	if (LIKELY(tick <= table->clock))
		return;
	uint64_t passed = tick - table->clock;

	if (UNLIKELY(tick - table->swept_since > JUMP_TICKS)) {
		sweep_all(table, passed);
		table->swept_since = table->pass_began = tick;
	} else {
		table->sweep_due += table->line_count * passed / SWEEP_TICKS;
		if (table->sweep_due > table->line_count)
			table->sweep_due = table->line_count;
	}
	table->clock = tick;
}

void flow_table_sweep(struct flow_table *table)
{
	uint64_t count = table->sweep_due < SWEEP_LINES_MAX ? table->sweep_due : SWEEP_LINES_MAX;

	table->sweep_due -= count;
	while (count--) {
		sweep_line(table, &table->lines[table->sweep_next], 0);
		if (++table->sweep_next < table->line_count)
			continue;
		table->sweep_next = 0;
		table->swept_since = table->pass_began;
		table->pass_began = table->clock;
	}
}

/* ---- self-check ---- */

const char *flow_table_check(const struct flow_table *table)
{
	uint64_t live[FLOW_CLASSES] = { 0 };
	uint64_t away_flags = 0, away_counts = 0;
	bool stuck = false; /* a counter of flows away was once full, see flow_line_away() */

	for (uint64_t i = 0; i < table->line_count; i++) {
		struct flow_line *line = &table->lines[i];

		for (uint32_t left = line->away; left; left >>= 4) {
			unsigned away = left & FLOW_AWAY_FULL;

			away_counts += away;
			stuck |= away == FLOW_AWAY_FULL;
		}
		for (unsigned way = 0; way < FLOW_WAYS; way++) {
			struct flow_slot slot = { line, way };

			if (!line->entry[way])
				continue;
			if (!(line->entry[way] & 0xfff))
				return "an entry without a backend";
			live[flow_slot_class(slot)]++;
			away_flags += !!(line->entry[way] & AWAY_BIT);

			struct flow_slot found = flow_table_find(table, flow_slot_key(table, slot));

			if (found.line != line || found.way != way)
				return "an entry that a lookup of its key does not find";
		}
	}
	if (away_flags != away_counts - table->owed_count && !stuck)
		return "lines count other flows away than there are";
	for (unsigned c = 0; c < FLOW_CLASSES; c++)
		if (live[c] != table->counters.live[c])
			return "the counters of live flows are wrong";
	return NULL;
}
