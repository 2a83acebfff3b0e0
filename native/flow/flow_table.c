/* SPDX-License-Identifier: Apache-2.0 */
/* See flow_table.h. */
#include "flow/flow_table.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#ifdef __x86_64__
#include <immintrin.h>
#endif

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25 /* Linux 6.1 */
#endif

#define BACKEND_BITS 12
#define CLASS_SHIFT 12
#define AWAY_BIT (1ULL << 15)
#define KEY_SHIFT FLOW_KEY_SHIFT
#define KEY_MASK (~0ULL << FLOW_REST_BITS) /* remainder and the alternate bit: what must be equal */

/* 48 bits of remainder fit an entry, so a table has at least 2^16 lines (4 MiB). */
#define LINES_MIN (1ULL << 16)
_Static_assert(LINES_MIN == 1ULL << FLOW_KEY_SHIFT, "what the line tells and what an entry holds are all 64 bits");
_Static_assert(AWAY_BIT == (uint64_t)FLOW_CLASSES << CLASS_SHIFT, "no bit has two meanings");
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

/* A counter that other threads may read meanwhile. */
static inline void count(uint64_t *counter, uint64_t step)
{
	FLOW_STORE(*counter, *counter + step);
}

static inline enum flow_class class_of(uint64_t entry)
{
	return (enum flow_class)(entry >> CLASS_SHIFT & (FLOW_CLASSES - 1));
}

static uint64_t lines_for(uint64_t flows)
{
	uint64_t lines = (flows + LINE_LOAD - 1) / LINE_LOAD;

	return lines < LINES_MIN ? LINES_MIN : lines;
}

static size_t no_room_words(const struct flow_table *table)
{
	return table->line_count / 64 + 1;
}

size_t flow_table_bytes(uint64_t flows)
{
	return lines_for(flows) * sizeof(struct flow_line);
}

#define HUGE_PAGE ((size_t)2 << 20)

uint64_t flow_table_line_count(uint64_t flows)
{
	return lines_for(flows);
}

size_t flow_table_map_bytes(uint64_t flows)
{
	return (flow_table_bytes(flows) + HUGE_PAGE - 1) & ~(HUGE_PAGE - 1);
}

bool flow_table_lines_fit(uint64_t lines, size_t bytes)
{
	return lines >= LINES_MIN && lines <= bytes / sizeof(struct flow_line);
}

/*
 * Aligned to huge pages and advised so: random access to 4 KiB pages would miss the TLB at every lookup.  NULL: no memory, errno
 * says why.
 */
static void *map_aligned(int fd, int protection, size_t bytes)
{
	uint8_t *room = mmap(NULL, bytes + HUGE_PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0), *map;
	size_t skip;

	if (room == MAP_FAILED)
		return NULL;
	skip = (HUGE_PAGE - (uintptr_t)room % HUGE_PAGE) % HUGE_PAGE;
	map = mmap(room + skip, bytes, protection, MAP_FIXED | (fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED), fd, 0);
	if (map == MAP_FAILED) {
		munmap(room, bytes + HUGE_PAGE);
		return NULL;
	}
	if (skip)
		munmap(room, skip);
	bytes = (bytes + 4095) & ~(size_t)4095;
	munmap(map + bytes, HUGE_PAGE - skip);
	madvise(map, bytes, MADV_HUGEPAGE);
	return map;
}

int flow_table_map(int fd, int protection, uint64_t lines, size_t bytes, struct flow_table **out)
{
	struct flow_table *table = calloc(1, sizeof(*table));
	int error = ENOMEM;

	if (!table)
		return -ENOMEM;
	table->find_burst = flow_find_burst_scalar;
	table->line_count = lines;
	table->remainder_bits = 64 - (63 - (unsigned)__builtin_clzll(lines));
	table->bytes = bytes;
	table->shared = fd >= 0;
	table->references = 1;
	table->no_room = calloc(no_room_words(table), sizeof(uint64_t));
	if (table->no_room) {
		table->lines = map_aligned(fd, protection, bytes);
		error = errno;
	}
	if (!table->lines) {
		free(table->no_room);
		free(table);
		return -error;
	}
	*out = table;
	return 0;
}

int flow_table_create(uint64_t flows, struct flow_table **out)
{
	return flow_table_map(-1, PROT_READ | PROT_WRITE, lines_for(flows), flow_table_map_bytes(flows), out);
}

void flow_table_touch(struct flow_table *table)
{
	const size_t page = 4096;

	if (table->touched)
		return;
	/* Empty lines are written as they are: what was used before stays. */
	for (size_t at = 0; at < table->bytes; at += page) {
		struct flow_line *line = (struct flow_line *)((uint8_t *)table->lines + at);

		FLOW_STORE(line->away, line->away);
	}
	/* Of what is shared the kernel makes huge pages only when it is asked outright; small ones serve as well, if slower. */
	if (table->shared)
		madvise(table->lines, table->bytes & ~(HUGE_PAGE - 1), MADV_COLLAPSE);
	table->touched = true;
}

void flow_table_destroy(struct flow_table *table)
{
	if (!table || __atomic_sub_fetch(&table->references, 1, __ATOMIC_ACQ_REL))
		return;
	munmap(table->lines, table->bytes);
	free(table->no_room);
	free(table);
}

void flow_table_set_idle(struct flow_table *table, const uint16_t idle[FLOW_IDLES])
{
	for (unsigned class = 0; class < FLOW_CLASSES; class++)
		table->idle[class] = idle[flow_class_plain(class)];
}

void flow_table_set_judge(struct flow_table *table, flow_judge *judge, const void *owner)
{
	table->judge = judge;
	table->owner = owner;
}

static enum flow_worth worth_of(const struct flow_table *table, uint64_t line, uint64_t entry)
{
	return table->judge ? table->judge(table->owner, flow_entry_key(table, line, entry),
					   (unsigned)(entry & 0xfff) - 1, class_of(entry)) :
			      FLOW_CHEAP;
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

void flow_find_burst_scalar(const struct flow_table *table, const uint64_t *scrambled, struct flow_slot *slots,
			   unsigned count)
{
	bool elsewhere;

	for (unsigned i = 0; i < count; i++)
		slots[i] = flow_table_find_home(table, scrambled[i], &elsewhere);
}

#ifdef VECTORS_X86
/* flow_line_way() on four entries at once; what the last two words of the line hold is masked off. */
TARGET_AVX2 void flow_find_burst_avx2(const struct flow_table *table, const uint64_t *scrambled,
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

/* The whole line at once, and compared without sign: as flow_line_way() says it. */
TARGET_AVX512 void flow_find_burst_avx512(const struct flow_table *table, const uint64_t *scrambled,
					  struct flow_slot *slots, unsigned count)
{
	const __m512i one = _mm512_set1_epi64(1), most = _mm512_set1_epi64((1 << FLOW_REST_BITS) - 1);

	for (unsigned i = 0; i < count; i++) {
		struct flow_line *line = &table->lines[flow_table_line_of(table, scrambled[i])];
		uint64_t remainder = flow_table_remainder(table, scrambled[i]);
		__m512i key = _mm512_set1_epi64((long long)(remainder << KEY_SHIFT));
		__m512i differs = _mm512_sub_epi64(_mm512_xor_si512(_mm512_load_si512(line), key), one);
		unsigned hits = _mm512_cmplt_epu64_mask(differs, most) & ((1u << FLOW_WAYS) - 1);

		slots[i].line = hits ? line : NULL;
		slots[i].way = hits ? (unsigned)__builtin_ctz(hits) : 0;
	}
}
#endif

static struct flow_line *alternate_line(const struct flow_table *table, uint64_t scrambled)
{
	return &table->lines[alternate_of(table, flow_table_line_of(table, scrambled), flow_table_remainder(table, scrambled))];
}

/*
 * Whether an insert will look beyond home, before its line has been read closely: a guess, from the two bits of a class
 * that are both zero in untrusted flows and empty ways alone, and of which the higher is set in young and ended ones.
 */
static bool will_look_further(const struct flow_table *table, const struct flow_line *home)
{
	uint64_t known = ~0ULL, young_or_ended = 0;

	for (unsigned way = 0; way < FLOW_WAYS; way++) {
		known &= home->entry[way] | home->entry[way] << 1;
		young_or_ended |= home->entry[way];
	}
	if (!(known >> CLASS_SHIFT & 4))
		return table->crowded[FLOW_TIER_UNTRUSTED] < CROWDED;
	return !(young_or_ended >> CLASS_SHIFT & 4) ||
	       (table->crowded[FLOW_TIER_ENDED] < CROWDED && table->crowded[FLOW_TIER_YOUNG] < CROWDED);
}

void flow_table_prefetch_alternate(const struct flow_table *table, uint64_t scrambled)
{
	const struct flow_line *home = &table->lines[flow_table_line_of(table, scrambled)];

	if (flow_line_away(home, flow_table_remainder(table, scrambled)) || will_look_further(table, home))
		__builtin_prefetch(alternate_line(table, scrambled), 1);
}

struct flow_slot flow_table_find_away(const struct flow_table *table, uint64_t scrambled)
{
	const struct flow_line *home = &table->lines[flow_table_line_of(table, scrambled)];
	uint64_t remainder = flow_table_remainder(table, scrambled);
	struct flow_line *line;
	int way;

	if (!flow_line_away(home, remainder))
		return (struct flow_slot){ NULL, 0 };
	line = alternate_line(table, scrambled);
	way = flow_line_way(line, remainder << KEY_SHIFT | AWAY_BIT);
	return way < 0 ? (struct flow_slot){ NULL, 0 } : (struct flow_slot){ line, (unsigned)way };
}

struct flow_slot flow_table_find(const struct flow_table *table, uint64_t scrambled)
{
	bool elsewhere;
	struct flow_slot slot = flow_table_find_home(table, scrambled, &elsewhere);

	return slot.line || !elsewhere ? slot : flow_table_find_away(table, scrambled);
}

static uint64_t peek_line(const struct flow_line *line, uint64_t key, uint16_t *stamp)
{
	for (unsigned way = 0; way < FLOW_WAYS; way++) {
		uint64_t entry = __atomic_load_n(&line->entry[way], __ATOMIC_RELAXED);

		if (!entry || (entry ^ key) >> FLOW_REST_BITS)
			continue;
		*stamp = __atomic_load_n(&line->stamp[way], __ATOMIC_RELAXED);
		return entry;
	}
	return 0;
}

uint64_t flow_table_peek(const struct flow_table *table, uint64_t scrambled, uint16_t *stamp)
{
	const struct flow_line *home = &table->lines[flow_table_line_of(table, scrambled)];
	uint64_t remainder = flow_table_remainder(table, scrambled);
	uint64_t entry = peek_line(home, remainder << KEY_SHIFT, stamp);

	if (entry || !(__atomic_load_n(&home->away, __ATOMIC_RELAXED) >> flow_away_shift(remainder) & FLOW_AWAY_FULL))
		return entry;
	return peek_line(alternate_line(table, scrambled), remainder << KEY_SHIFT | AWAY_BIT, stamp);
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
	count(&table->counters.live[class_of(entry)], -1ULL);
	FLOW_STORE(slot.line->entry[slot.way], 0);
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
	count(&table->counters.expired, 1);
	return true;
}

static void count_away(struct flow_line *line, unsigned shift)
{
	if (LIKELY((line->away >> shift & FLOW_AWAY_FULL) != FLOW_AWAY_FULL))
		line->away += 1u << shift;
}

static void fill_way(struct flow_table *table, struct flow_slot slot, uint64_t entry, uint16_t stamp)
{
	FLOW_STORE(slot.line->entry[slot.way], entry);
	FLOW_STORE(slot.line->stamp[slot.way], stamp);
	count(&table->counters.live[class_of(entry)], 1);
	if (entry & AWAY_BIT)
		count_away(&table->lines[home_of(table, slot)], flow_away_shift(entry >> KEY_SHIFT));
}

/* ---- room ---- */

/*
 * What a line has to offer to a new flow.  `lose` ranks its flows: tier, age, then the first way; the highest of a line
 * is the one to lose.
 */
struct offer {
	unsigned free; /* bit per way that is empty or whose flow has expired */
	int lose;      /* tier << 19 | age << 3 | 7 - way */
};

#define TIER_SHIFT 19

static inline enum flow_tier offer_tier(struct offer offer)
{
	return (enum flow_tier)(offer.lose >> TIER_SHIFT);
}

/* Without the way: what makes one flow rather go than another. */
static inline int offer_rank(struct offer offer)
{
	return offer.lose >> 3;
}

static inline struct flow_slot offer_slot(struct flow_line *line, struct offer offer)
{
	return (struct flow_slot){ line, 7 - ((unsigned)offer.lose & 7) };
}

/* Tiers of the classes, two bits each: of those that had a packet lately, and of those that have been silent. */
#define TIER(class, tier) ((unsigned)(tier) << 2 * (class))
#define TIERS                                                                                                          \
	(TIER(FLOW_TCP_UNTRUSTED, FLOW_TIER_UNTRUSTED) | TIER(FLOW_UDP_UNTRUSTED, FLOW_TIER_UNTRUSTED) |               \
	 TIER(FLOW_TCP_YOUNG, FLOW_TIER_YOUNG) | TIER(FLOW_TCP_YOUNG_ENDED, FLOW_TIER_YOUNG) |                         \
	 TIER(FLOW_UDP_YOUNG, FLOW_TIER_YOUNG))
#define QUIET_TIERS                                                                                                    \
	(TIER(FLOW_TCP_UNTRUSTED, FLOW_TIER_UNTRUSTED) | TIER(FLOW_UDP_UNTRUSTED, FLOW_TIER_UNTRUSTED) |               \
	 TIER(FLOW_TCP_YOUNG, FLOW_TIER_UNTRUSTED) | TIER(FLOW_TCP_YOUNG_ENDED, FLOW_TIER_ENDED) |                      \
	 TIER(FLOW_TCP_TRUSTED_ENDED, FLOW_TIER_ENDED) | TIER(FLOW_UDP_YOUNG, FLOW_TIER_UNTRUSTED))

/* No branches: what is in a way is as good as random. */
__attribute__((unused)) static struct offer offer_of_scalar(const struct flow_table *table, const struct flow_line *line)
{
	struct offer offer = { 0, 0 };
	uint16_t now = (uint16_t)table->clock, quiet = table->idle[FLOW_TCP_UNTRUSTED];

	for (unsigned way = 0; way < FLOW_WAYS; way++) {
		uint64_t entry = line->entry[way];
		unsigned class = entry >> CLASS_SHIFT & (FLOW_CLASSES - 1);
		uint16_t age = (uint16_t)(now - line->stamp[way]);
		unsigned tier = (age >= quiet ? QUIET_TIERS : TIERS) >> 2 * class & 3;
		int lose = (int)(tier << TIER_SHIFT | (unsigned)age << 3 | (7 - way));

		offer.free |= (unsigned)((entry == 0) | (age >= table->idle[class])) << way;
		offer.lose = lose > offer.lose ? lose : offer.lose;
	}
	return offer;
}

#ifdef __x86_64__ /* so with SSE2 */
static inline __m128i bit_mask(__m128i words, int bit)
{
	return _mm_srai_epi16(_mm_slli_epi16(words, 15 - bit), 15);
}

/* Where a is not below b, both without sign. */
static inline __m128i not_below(__m128i a, __m128i b)
{
	return _mm_cmpeq_epi16(_mm_subs_epu16(b, a), _mm_setzero_si128());
}

static inline __m128i choose(__m128i mask, __m128i yes, __m128i no)
{
	return _mm_or_si128(_mm_and_si128(mask, yes), _mm_andnot_si128(mask, no));
}

/* By class, what table->idle has. */
static inline __m128i idle_of(const struct flow_table *table, __m128i bit2, __m128i bit1, __m128i bit0)
{
	__m128i udp = _mm_andnot_si128(_mm_andnot_si128(bit1, bit2), bit0);
	__m128i untrusted = choose(udp, _mm_set1_epi16((short)table->idle[FLOW_UDP_UNTRUSTED]),
				   _mm_set1_epi16((short)table->idle[FLOW_TCP_UNTRUSTED]));
	__m128i trusted = choose(udp, _mm_set1_epi16((short)table->idle[FLOW_UDP_TRUSTED]),
				 _mm_set1_epi16((short)table->idle[FLOW_TCP_TRUSTED]));

	return choose(_mm_or_si128(bit2, bit1), trusted, untrusted);
}

/* The highest of eight numbers of less than 30 bits: as floats from 2.0 on they have the same order. */
static inline int highest(__m128i low_halves, __m128i high_halves)
{
	__m128i high = _mm_or_si128(high_halves, _mm_set1_epi16(0x4000));
	__m128 most = _mm_max_ps(_mm_castsi128_ps(_mm_unpacklo_epi16(low_halves, high)),
				 _mm_castsi128_ps(_mm_unpackhi_epi16(low_halves, high)));

	most = _mm_max_ps(most, _mm_movehl_ps(most, most));
	most = _mm_max_ss(most, _mm_shuffle_ps(most, most, 1));
	return _mm_cvtsi128_si32(_mm_castps_si128(most)) & 0x3fffffff;
}

/*
 * offer_of_scalar() on all ways at once.  Of an entry it takes the lowest 16 bits, which are zero only where a way is
 * empty; a stamp has as many.  Behind the stamps lies `away`, which is masked off.
 */
static inline struct offer offer_of(const struct flow_table *table, const struct flow_line *line)
{
	const uint64_t *entry = line->entry;
	__m128i words = _mm_set_epi16(0, 0, (short)entry[5], (short)entry[4], (short)entry[3], (short)entry[2],
				      (short)entry[1], (short)entry[0]);
	__m128i ways = _mm_set_epi16(0, 0, -1, -1, -1, -1, -1, -1), firsts = _mm_set_epi16(0, 0, 2, 3, 4, 5, 6, 7);
	__m128i stamps = _mm_load_si128((const __m128i *)((const uint8_t *)line + offsetof(struct flow_line, stamp)));
	__m128i age = _mm_and_si128(_mm_sub_epi16(_mm_set1_epi16((short)table->clock), stamps), ways);
	__m128i bit2 = bit_mask(words, CLASS_SHIFT + 2), bit1 = bit_mask(words, CLASS_SHIFT + 1);
	__m128i bit0 = bit_mask(words, CLASS_SHIFT);
	__m128i quiet = not_below(age, _mm_set1_epi16((short)table->idle[FLOW_TCP_UNTRUSTED]));
	__m128i free = _mm_or_si128(not_below(age, idle_of(table, bit2, bit1, bit0)),
				    _mm_cmpeq_epi16(words, _mm_setzero_si128()));
	/* By class: which have ended, which are in tier young while they are not silent; and the two bits of tiers. */
	__m128i ended = _mm_and_si128(bit2, _mm_xor_si128(bit1, bit0));
	__m128i young = _mm_andnot_si128(_mm_andnot_si128(bit0, bit1), bit2);
	__m128i tier0 = choose(quiet, ended, young);
	__m128i tier1 = _mm_or_si128(_mm_andnot_si128(_mm_or_si128(bit2, bit1), ways), _mm_and_si128(quiet, bit2));
	__m128i tier = _mm_or_si128(_mm_and_si128(tier1, _mm_set1_epi16(2 << (TIER_SHIFT - 16))),
				    _mm_and_si128(tier0, _mm_set1_epi16(1 << (TIER_SHIFT - 16))));

	return (struct offer){
		.free = (unsigned)_mm_movemask_epi8(_mm_packs_epi16(_mm_and_si128(free, ways), _mm_setzero_si128())),
		.lose = highest(_mm_or_si128(_mm_slli_epi16(age, 3), firsts),
				_mm_or_si128(tier, _mm_srli_epi16(age, 13))),
	};
}
_Static_assert(offsetof(struct flow_line, stamp) % 16 == 0 && FLOW_WAYS == 6, "as many as are laid out here");
#else
static inline struct offer offer_of(const struct flow_table *table, const struct flow_line *line)
{
	return offer_of_scalar(table, line);
}
#endif

static struct flow_slot take_free(struct flow_table *table, struct flow_line *line, struct offer offer)
{
	struct flow_slot slot = { line, (unsigned)__builtin_ctz(offer.free) };

	if (line->entry[slot.way]) {
		clear_way(table, slot);
		count(&table->counters.expired, 1);
	}
	return slot;
}

static struct flow_slot take_evicted(struct flow_table *table, struct flow_slot slot, enum flow_tier tier)
{
	clear_way(table, slot);
	count(&table->counters.evicted, 1);
	count(&table->counters.evicted_tier[tier], 1);
	return slot;
}

/* The way that a line offers, whatever it costs. */
static struct flow_slot take_offered(struct flow_table *table, struct flow_line *line, struct offer offer)
{
	return offer.free ? take_free(table, line, offer) :
			    take_evicted(table, offer_slot(line, offer), offer_tier(offer));
}

/*
 * In a flood the table is full, and to read one more line for each packet only to see that it has nothing better costs
 * as much as all the rest.  So while nearly all alternate lines turn out to be no better than home, a home line that has
 * a flow of the same tier to lose is enough, and only now and then another line is looked at.  What decides is what
 * inserts have seen, never how far the sweep has come: places must not depend on how bursts fell.
 */
static void note_crowd(struct flow_table *table, struct offer home, struct offer alternate)
{
	uint32_t *crowded = &table->crowded[offer_tier(home)];

	if (!alternate.free && offer_tier(alternate) <= offer_tier(home))
		*crowded += *crowded < CROWDED_MAX;
	else
		*crowded -= *crowded < CROWDED_STEP ? *crowded : CROWDED_STEP;
}

/* The other of the two lines where an entry may be. */
static struct flow_line *other_line(const struct flow_table *table, struct flow_slot slot)
{
	uint64_t entry = slot.line->entry[slot.way], home = home_of(table, slot);

	return &table->lines[entry & AWAY_BIT ? home : alternate_of(table, home, entry >> KEY_SHIFT)];
}

/* Asks for what move_one() reads. */
static void prefetch_others(const struct flow_table *table, struct flow_line *line)
{
	for (unsigned way = 0; way < FLOW_WAYS; way++)
		prefetch(other_line(table, (struct flow_slot){ line, way }));
}

/*
 * Moves one flow of a line of trusted ones to its own other line, if that has a way that is free or a flow that has
 * ended; returns the way it left, or -1.  Not for an untrusted flow: it would do to another new one what it saves this
 * one from, and take a dozen lines from memory for it.
 */
static int move_one(struct flow_table *table, struct flow_line *line)
{
	struct flow_line *others[FLOW_WAYS];
	struct offer best = { 0, 0 };
	int leaves = -1;

	for (unsigned way = 0; way < FLOW_WAYS; way++)
		others[way] = other_line(table, (struct flow_slot){ line, way });
	for (unsigned way = 0; way < FLOW_WAYS && !best.free; way++) {
		struct offer offer = offer_of(table, others[way]);

		if (!offer.free && (offer_tier(offer) != FLOW_TIER_ENDED || offer_rank(offer) <= offer_rank(best)))
			continue;
		best = offer;
		leaves = (int)way;
	}
	if (leaves < 0)
		return -1;

	uint64_t entry = line->entry[leaves];
	uint16_t stamp = line->stamp[leaves];
	struct flow_slot to = take_offered(table, others[leaves], best);

	clear_way(table, (struct flow_slot){ line, (unsigned)leaves });
	fill_way(table, to, entry ^ AWAY_BIT, stamp);
	count(&table->counters.moved, 1);
	return leaves;
}

/* The trusted flow to lose of a line, if its `worth` allows; better than *best by worth, then by age. */
struct spare {
	struct flow_slot slot;
	enum flow_worth worth;
	uint16_t age;
};

static void find_spare(const struct flow_table *table, struct flow_line *line, struct spare *best)
{
	for (unsigned way = 0; way < FLOW_WAYS; way++) {
		struct spare spare = { .slot = { line, way } };

		spare.age = flow_slot_age(table, spare.slot);
		if (spare.age < flow_ticks(FLOW_SPARE_SECONDS))
			continue;
		spare.worth = worth_of(table, index_of(table, line), line->entry[way]);
		if (spare.worth == FLOW_UNSYNCHRONISED && spare.age < flow_ticks(FLOW_SPARE_UNSYNCHRONISED_SECONDS))
			continue;
		if (!best->slot.line || spare.worth < best->worth ||
		    (spare.worth == best->worth && spare.age > best->age))
			*best = spare;
	}
}

static bool known_full(const struct flow_table *table, uint64_t home)
{
	return table->no_room[home / 64] >> home % 64 & 1;
}

static void note_full(struct flow_table *table, uint64_t home)
{
	table->no_room[home / 64] |= 1ULL << home % 64;
	table->some_no_room = true;
}

/* Both lines are full of trusted flows. */
static struct flow_slot room_among_trusted(struct flow_table *table, struct flow_line *home,
					   struct flow_line *alternate)
{
	struct spare spare = { .slot = { NULL, 0 } };
	int way;

	if (known_full(table, index_of(table, home)))
		return spare.slot;
	/* None of a dozen lines is in a cache, and most often all are read: wait for all at once. */
	prefetch_others(table, home);
	prefetch_others(table, alternate);
	way = move_one(table, home);
	if (way >= 0)
		return (struct flow_slot){ home, (unsigned)way };
	way = move_one(table, alternate);
	if (way >= 0)
		return (struct flow_slot){ alternate, (unsigned)way };
	find_spare(table, home, &spare);
	find_spare(table, alternate, &spare);
	if (spare.slot.line)
		return take_evicted(table, spare.slot, FLOW_TIER_TRUSTED);
	note_full(table, index_of(table, home));
	return spare.slot;
}

/* Finds or makes room for a key with this home line; see flow_table_insert() for the order. */
static struct flow_slot make_room(struct flow_table *table, uint64_t scrambled, struct flow_line *home)
{
	struct offer here = offer_of(table, home), there;
	enum flow_tier tier = offer_tier(here);
	struct flow_line *alternate;

	if (here.free)
		return take_free(table, home, here);
	if (tier != FLOW_TIER_TRUSTED && table->crowded[tier] >= CROWDED && ++table->looks % CROWDED_LOOKS)
		return take_offered(table, home, here);
	alternate = alternate_line(table, scrambled);
	there = offer_of(table, alternate);
	note_crowd(table, here, there);
	if (!there.free && tier == FLOW_TIER_TRUSTED && offer_tier(there) == FLOW_TIER_TRUSTED)
		return room_among_trusted(table, home, alternate);
	if (there.free || offer_rank(there) > offer_rank(here))
		return take_offered(table, alternate, there);
	return take_offered(table, home, here);
}

bool flow_table_insert(struct flow_table *table, uint64_t scrambled, unsigned backend, enum flow_class class)
{
	struct flow_line *home = &table->lines[flow_table_line_of(table, scrambled)];
	struct flow_slot slot = make_room(table, scrambled, home);

	if (!slot.line) {
		count(&table->counters.refused, 1);
		return false;
	}
	uint64_t entry = flow_table_remainder(table, scrambled) << KEY_SHIFT | (uint64_t)class << CLASS_SHIFT | (backend + 1);

	fill_way(table, slot, slot.line == home ? entry : entry | AWAY_BIT, (uint16_t)table->clock);
	return true;
}

void flow_slot_set_class(struct flow_table *table, struct flow_slot slot, enum flow_class class)
{
	uint64_t entry = slot.line->entry[slot.way], mask = (uint64_t)(FLOW_CLASSES - 1) << CLASS_SHIFT;

	if (class_of(entry) == class)
		return;
	count(&table->counters.live[class_of(entry)], -1ULL);
	count(&table->counters.live[class], 1);
	FLOW_STORE(slot.line->entry[slot.way], (entry & ~mask) | (uint64_t)class << CLASS_SHIFT);
}

void flow_slot_rewrite(struct flow_table *table, struct flow_slot slot, unsigned backend, enum flow_class class)
{
	uint64_t entry = slot.line->entry[slot.way];

	count(&table->counters.live[class_of(entry)], -1ULL);
	count(&table->counters.live[class], 1);
	FLOW_STORE(slot.line->entry[slot.way], (entry & KEY_MASK) | (uint64_t)class << CLASS_SHIFT | (backend + 1));
	FLOW_STORE(slot.line->stamp[slot.way], (uint16_t)table->clock);
}

/* ---- age ---- */

/* Removes what is older than its class allows; `extra` ticks passed since stamps were last comparable. */
static void sweep_line(struct flow_table *table, struct flow_line *line, uint64_t extra, bool judged)
{
	for (unsigned way = 0; way < FLOW_WAYS; way++) {
		uint64_t entry = line->entry[way];

		if (!entry)
			continue;
		uint16_t age = (uint16_t)((uint16_t)table->clock - line->stamp[way]);

		if (age + extra >= table->idle[class_of(entry)])
			count(&table->counters.expired, 1);
		else if (judged && worth_of(table, index_of(table, line), entry) == FLOW_WORTHLESS)
			count(&table->counters.forgotten, 1);
		else
			continue;
		clear_way(table, (struct flow_slot){ line, way });
	}
}

uint64_t flow_table_live(const struct flow_table *table)
{
	const uint64_t *live = table->counters.live;

	uint64_t sum = 0;

	for (unsigned class = 0; class < FLOW_CLASSES; class++)
		sum += live[class];
	return sum;
}

/* Decides by the clock as it was plus what passed since: after that, 16 bits would lie. */
static void sweep_all(struct flow_table *table, uint64_t passed)
{
	for (uint64_t i = 0; i < table->line_count && flow_table_live(table); i++)
		sweep_line(table, &table->lines[i], passed, false);
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
	FLOW_STORE(table->clock, tick);
	if (UNLIKELY(table->some_no_room)) {
		memset(table->no_room, 0, no_room_words(table) * sizeof(uint64_t));
		table->some_no_room = false;
	}
}

void flow_table_sweep(struct flow_table *table, bool judged)
{
	uint64_t lines = table->sweep_due < SWEEP_LINES_MAX ? table->sweep_due : SWEEP_LINES_MAX;

	if (lines > table->line_count - table->sweep_next)
		lines = table->line_count - table->sweep_next; /* a pass is judged as a whole */
	table->sweep_due -= lines;
	while (lines--) {
		sweep_line(table, &table->lines[table->sweep_next], 0, judged);
		if (++table->sweep_next < table->line_count)
			continue;
		table->sweep_next = 0;
		table->passes++;
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
			live[class_of(line->entry[way])]++;
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
	for (uint64_t i = 0; i < no_room_words(table) && !table->some_no_room; i++)
		if (table->no_room[i])
			return "a line without room that nothing will remind of";

	uint64_t evicted = 0;

	for (unsigned tier = 0; tier < FLOW_TIERS; tier++)
		evicted += table->counters.evicted_tier[tier];
	if (evicted != table->counters.evicted)
		return "the counters of evicted flows do not add up";
	return NULL;
}
