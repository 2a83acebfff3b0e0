/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Remembered flows: flow key -> backend (its number within the service), trust and age.  One worker owns a table and
 * is the only one to write it; nothing here locks.
 *
 * A table is an array of cache lines of six flows.  The key goes through the keyed bijection of flow.h; the scrambled
 * key's high part picks the line and only the part that the line does not tell is stored, so eight bytes hold key,
 * backend and class, and comparison is exact.  A flow that finds its line full lives in an alternate line, and the home
 * line counts how many do.  See docs/flow.md.
 *
 * Time is a 64-bit count of FLOW_TICK_NS; entries keep the low 16 bits of it.
 */
#ifndef VIPMUX_FLOW_TABLE_H
#define VIPMUX_FLOW_TABLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "machine/cpu.h"

#define FLOW_TICK_SHIFT 28 /* 268 ms; 16 bits of it wrap after 4.9 hours */
#define FLOW_IDLE_MAX_SECONDS 14400
#define FLOW_BACKEND_MAX 4095 /* backends of a service are numbered 0 to 4094 */
#define FLOW_WAYS 6
#define FLOW_OWED_MAX 64

/*
 * What is known of a flow, in three bits of its entry.
 *
 *	untrusted	one packet, or SYNs alone
 *	young		a later packet, but in the tick of the first: what anybody can send who sends twice
 *	trusted		a packet in a later tick
 *	ended		the client said so last (FIN or RST).  That shortens nothing: whoever forges a FIN must not make a
 *			MUX forget a live flow.  Only where there is no room it tells whom to miss least.
 *
 * UDP never ends, and lives as long whether it is trusted or not.
 */
enum flow_class {
	FLOW_TCP_UNTRUSTED = 0,
	FLOW_UDP_UNTRUSTED = 1,
	FLOW_TCP_TRUSTED = 2,
	FLOW_UDP_TRUSTED = 3,
	FLOW_TCP_YOUNG = 4,
	FLOW_TCP_YOUNG_ENDED = 5,
	FLOW_TCP_TRUSTED_ENDED = 6,
	FLOW_UDP_YOUNG = 7,
	FLOW_CLASSES = 8,
};

/* The classes that have an idle timeout of their own are the first four; the others live as long as trusted flows. */
#define FLOW_IDLES 4

/*
 * Who gives way to a new flow where no way is free, the last first; see flow_table_insert().  *Silent* means for as long
 * as an untrusted TCP flow may be.
 */
enum flow_tier {
	FLOW_TIER_TRUSTED = 0,   /* whether ended or not */
	FLOW_TIER_YOUNG = 1,
	FLOW_TIER_UNTRUSTED = 2, /* and young ones that are silent: what a flood leaves behind must not outlive new flows */
	FLOW_TIER_ENDED = 3,     /* those that are silent */
	FLOW_TIERS = 4,
};

/*
 * So long a trusted flow must have been silent before a new one may take its place: what a flood can send within it
 * displaces nobody.  Ten times as long if Maglev would send it elsewhere, for then it would break.
 */
#define FLOW_SPARE_SECONDS 30
#define FLOW_SPARE_UNSYNCHRONISED_SECONDS 300

/* One cache line.  Written only by the worker that owns the table; others may read single words. */
struct flow_line {
	uint64_t entry[FLOW_WAYS]; /* key remainder (48) | alternate | class (3) | backend + 1 (12); 0: empty */
	uint16_t stamp[FLOW_WAYS]; /* low bits of the tick of the last packet */
	uint32_t away;             /* flows at home here that live in their alternate line, see flow_line_away() */
};
_Static_assert(sizeof(struct flow_line) == CACHE_LINE, "one line, one cache line");

struct flow_counters {
	uint64_t live[FLOW_CLASSES]; /* entries now in the table; expired ones until the sweep meets them */
	uint64_t expired;
	uint64_t evicted; /* flows that made room for others */
	uint64_t evicted_tier[FLOW_TIERS]; /* the same by tier */
	uint64_t forgotten; /* flows of services and backends that are gone, see flow_table_sweep() */
	uint64_t refused; /* flows that found no room, once for each packet */
	uint64_t moved;   /* trusted flows moved to their other line to make room */
};

struct flow_slot;
struct flow_table;

/* See flow_table_find_home_burst(). */
typedef void flow_find_burst(const struct flow_table *table, const uint64_t *scrambled, struct flow_slot *slots,
			     unsigned count);

/* What the owner of a table knows of an entry. */
enum flow_worth {
	FLOW_WORTHLESS = 0,   /* its service or backend is gone: its next packet would be a new flow's */
	FLOW_CHEAP = 1,       /* Maglev would choose the same backend now */
	FLOW_UNSYNCHRONISED = 2, /* Maglev would choose another one: forgetting it breaks it */
};
typedef enum flow_worth flow_judge(const void *owner, uint64_t scrambled, unsigned backend, enum flow_class class);

struct flow_table {
	struct flow_line *lines;
	uint64_t line_count;
	unsigned remainder_bits;
	uint64_t clock;    /* current tick */
	uint16_t idle[FLOW_CLASSES]; /* ticks; the longest of any service, see flow_table_set_idle() */
	flow_judge *judge;           /* NULL: all are cheap */
	const void *owner;
	uint64_t *no_room; /* a bit for each home line where costly ways to make room failed in this tick */
	bool some_no_room; /* one of them is set */
	uint64_t passes;             /* whole passes of the sweep */
	uint64_t sweep_next;         /* line the sweep goes on from */
	uint64_t sweep_due;          /* lines it is behind */
	uint64_t pass_began;         /* tick when it was last at the first line */
	uint64_t swept_since;        /* since this tick every line has been swept */
	struct flow_counters counters;
	size_t bytes;
	flow_find_burst *find_burst; /* one of those below; see flow_table_set_find() */
	/* Lines whose `away` is one too high still, see flow_table_settle(). */
	struct flow_line *owed[FLOW_OWED_MAX];
	uint8_t owed_shift[FLOW_OWED_MAX];
	unsigned owed_count;
	/* Whether alternate lines are no better anyway, by the tier that home has to lose; see note_crowd(). */
	uint32_t crowded[FLOW_TIERS];
	uint32_t looks;
	uint32_t references; /* atomic: its mux, and who looks on from beside; create sets 1 */
	bool touched;        /* its memory is there */
	bool shared;         /* its memory is a file's, see kept_table.h */
};

/* Where an entry is; line is NULL where there is none. */
struct flow_slot {
	struct flow_line *line;
	unsigned way;
};

/*
 * Room for at least `flows`; -ENOMEM.  Memory is reserved; it comes from the NUMA node of whoever touches it first, so its
 * worker calls flow_table_touch() before the first packet.  Untouched it works as well, but each first use of a page is slow.
 */
int flow_table_create(uint64_t flows, struct flow_table **out);
void flow_table_touch(struct flow_table *table);

/*
 * A table over `bytes` of a file from its beginning, which has `lines` and perhaps more, or with fd -1 over memory of its own.
 * Protections of mmap().  -ENOMEM and others of mmap().
 */
int flow_table_map(int fd, int protection, uint64_t lines, size_t bytes, struct flow_table **out);
uint64_t flow_table_line_count(uint64_t flows); /* of a table for so many */
size_t flow_table_map_bytes(uint64_t flows);    /* what flow_table_create() maps for it */
bool flow_table_lines_fit(uint64_t lines, size_t bytes); /* a table may have so many, and they are no longer than this */

static inline struct flow_table *flow_table_get(struct flow_table *table)
{
	__atomic_fetch_add(&table->references, 1, __ATOMIC_RELAXED);
	return table;
}

/* Lets go of it, from any thread; the last to do so frees it. */
void flow_table_destroy(struct flow_table *table);

/* Bytes that a table for so many flows takes. */
size_t flow_table_bytes(uint64_t flows);

/* Idle timeouts by class in ticks, the longest that any service asks for: what is older is gone for every service. */
void flow_table_set_idle(struct flow_table *table, const uint16_t idle[FLOW_IDLES]);

/* Asked rarely: which of several trusted flows to lose, and in sweeps. */
void flow_table_set_judge(struct flow_table *table, flow_judge *judge, const void *owner);

/*
 * Sets the clock.  Time never goes back: an earlier value is ignored.  Where the sweep would come too late, after a long
 * jump or many short ones without the packets that drive it, the whole table is swept at once.
 */
void flow_table_advance(struct flow_table *table, uint64_t now_ns);

/*
 * Removes what has expired, a bounded piece of the table at a time; a whole pass takes some 4 seconds.  With `judged`
 * also what the judge calls worthless, which costs some 30 ns for each entry.
 */
void flow_table_sweep(struct flow_table *table, bool judged);

static inline uint64_t flow_table_line_of(const struct flow_table *table, uint64_t scrambled)
{
	return (uint64_t)((unsigned __int128)scrambled * table->line_count >> 64);
}

static inline void flow_table_prefetch(const struct flow_table *table, uint64_t scrambled)
{
	__builtin_prefetch(&table->lines[flow_table_line_of(table, scrambled)], 1);
}

/*
 * When a flow leaves that lived in its alternate line, its home line has one flow less away; that line is in no cache
 * then.  So it is asked for, and counted down here, at the end of a burst.  Until then a lookup may look once more than
 * it must, which changes no answer.
 */
void flow_table_settle(struct flow_table *table);

/* Looks in the home line only: one cache line.  *elsewhere tells that the flow may live in its alternate line. */
static inline struct flow_slot flow_table_find_home(const struct flow_table *table, uint64_t scrambled, bool *elsewhere);

/*
 * Looks in the home lines of many flows, whose keys may be any numbers.  flow_find_burst_scalar() is what it means, and what
 * a new table does; the others do the same faster where vector_level.h says that the processor can run them.
 */
static inline void flow_table_find_home_burst(const struct flow_table *table, const uint64_t *scrambled,
					      struct flow_slot *slots, unsigned count)
{
	table->find_burst(table, scrambled, slots, count);
}

flow_find_burst flow_find_burst_scalar, flow_find_burst_avx2, flow_find_burst_avx512;

static inline void flow_table_set_find(struct flow_table *table, flow_find_burst *find)
{
	table->find_burst = find;
}

/* For a flow that is not at home: asks for its alternate line if a lookup or an insert will read it. */
void flow_table_prefetch_alternate(const struct flow_table *table, uint64_t scrambled);

/* Looks in the alternate line alone, if home says that the flow may be there: for one that is not at home. */
struct flow_slot flow_table_find_away(const struct flow_table *table, uint64_t scrambled);

/* Looks everywhere.  Does not look at the age. */
struct flow_slot flow_table_find(const struct flow_table *table, uint64_t scrambled);

/*
 * For other threads while the owner writes: the whole entry of a key and its stamp, 0 where there is none.  One that the owner
 * is moving at this very moment is not found.
 */
uint64_t flow_table_peek(const struct flow_table *table, uint64_t scrambled, uint16_t *stamp);

/*
 * Writes an entry for a key that is not in the table; false if there was no room.  Room is, in this order:
 *
 *	1. an empty or expired way at home, or else in the alternate line
 *	2. of both lines, the flow of the highest tier: ended and silent, untrusted, young
 *	3. a trusted flow of one of them can move to its own other line, where a way is free or holds one that ended and
 *	   is silent
 *	4. of both, the trusted flow that has been silent longest, and for FLOW_SPARE_SECONDS at least: a worthless or
 *	   cheap one before an unsynchronised one
 *
 * Within a tier the flow that has been silent longest goes.  While nearly every alternate line has nothing better than
 * home has, home alone is looked at.  3 and 4 read up to a dozen lines; where they fail, they are not tried again for a
 * flow of the same home line in the same tick.
 */
bool flow_table_insert(struct flow_table *table, uint64_t scrambled, unsigned backend, enum flow_class class);

void flow_table_remove(struct flow_table *table, struct flow_slot slot);

static inline unsigned flow_entry_backend(uint64_t entry)
{
	return (unsigned)(entry & 0xfff) - 1;
}

static inline enum flow_class flow_entry_class(uint64_t entry)
{
	return (enum flow_class)(entry >> 12 & 7);
}

static inline unsigned flow_slot_backend(struct flow_slot slot)
{
	return flow_entry_backend(slot.line->entry[slot.way]);
}

static inline enum flow_class flow_slot_class(struct flow_slot slot)
{
	return flow_entry_class(slot.line->entry[slot.way]);
}

static inline bool flow_class_is_udp(enum flow_class class)
{
	return (1u << FLOW_UDP_UNTRUSTED | 1u << FLOW_UDP_TRUSTED | 1u << FLOW_UDP_YOUNG) >> class & 1;
}

static inline bool flow_class_is_trusted(enum flow_class class)
{
	return (1u << FLOW_TCP_TRUSTED | 1u << FLOW_UDP_TRUSTED | 1u << FLOW_TCP_TRUSTED_ENDED) >> class & 1;
}

static inline bool flow_class_has_ended(enum flow_class class)
{
	return (1u << FLOW_TCP_YOUNG_ENDED | 1u << FLOW_TCP_TRUSTED_ENDED) >> class & 1;
}

/* Which of the first four says how long a flow of this class lives, and what another MUX is told of it. */
static inline enum flow_class flow_class_plain(enum flow_class class)
{
	if (class < FLOW_IDLES)
		return class;
	return class == FLOW_UDP_YOUNG ? FLOW_UDP_TRUSTED : FLOW_TCP_TRUSTED;
}

/* Trusted and not ended: packets change nothing about it but its age. */
static inline bool flow_class_is_settled(enum flow_class class)
{
	return (class & ~1u) == FLOW_TCP_TRUSTED;
}

/* A later packet has come, in a later tick or in that of the packet before. */
static inline enum flow_class flow_class_after(enum flow_class class, bool later_tick)
{
	switch (class) {
	case FLOW_TCP_UNTRUSTED:
		return later_tick ? FLOW_TCP_TRUSTED : FLOW_TCP_YOUNG;
	case FLOW_UDP_UNTRUSTED:
	case FLOW_UDP_YOUNG:
		return later_tick ? FLOW_UDP_TRUSTED : FLOW_UDP_YOUNG;
	case FLOW_TCP_YOUNG:
		return later_tick ? FLOW_TCP_TRUSTED : class;
	case FLOW_TCP_YOUNG_ENDED:
		return later_tick ? FLOW_TCP_TRUSTED_ENDED : class;
	default:
		return class;
	}
}

/* The client said that the conversation ends, or goes on with it.  One packet alone ends nothing. */
static inline enum flow_class flow_class_ending(enum flow_class class, bool ended)
{
	switch (class) {
	case FLOW_TCP_YOUNG:
	case FLOW_TCP_YOUNG_ENDED:
		return ended ? FLOW_TCP_YOUNG_ENDED : FLOW_TCP_YOUNG;
	case FLOW_TCP_TRUSTED:
	case FLOW_TCP_TRUSTED_ENDED:
		return ended ? FLOW_TCP_TRUSTED_ENDED : FLOW_TCP_TRUSTED;
	default:
		return class;
	}
}

/* Words that other threads read while the worker writes them: a plain store, said so. */
#define FLOW_STORE(place, value) __atomic_store_n(&(place), value, __ATOMIC_RELAXED)

/* Ticks since its last packet. */
static inline uint16_t flow_slot_age(const struct flow_table *table, struct flow_slot slot)
{
	return (uint16_t)((uint16_t)table->clock - slot.line->stamp[slot.way]);
}

/* Writes only where the tick has changed: an entry in use does not dirty its line with every packet. */
static inline void flow_slot_touch(const struct flow_table *table, struct flow_slot slot)
{
	uint16_t now = (uint16_t)table->clock;

	if (slot.line->stamp[slot.way] != now)
		FLOW_STORE(slot.line->stamp[slot.way], now);
}

/* Writes only where that is new.  Its place and its age do not change. */
void flow_slot_set_class(struct flow_table *table, struct flow_slot slot, enum flow_class class);

/* Removes an entry that the next sweep would; false, and nothing done, where it is not that old. */
bool flow_table_expire(struct flow_table *table, struct flow_slot slot);

/* Gives an entry another backend and class, as if new. */
void flow_slot_rewrite(struct flow_table *table, struct flow_slot slot, unsigned backend, enum flow_class class);

/* Seconds -> ticks such that a flow is never expired early, and at most two ticks late. */
static inline uint16_t flow_ticks(uint32_t seconds)
{
	return (uint16_t)(((uint64_t)seconds * 1000000000u >> FLOW_TICK_SHIFT) + 2);
}

/* The scrambled key of an entry. */
uint64_t flow_slot_key(const struct flow_table *table, struct flow_slot slot);

/* The same for an entry that was read from a line before: for threads that look on while the worker writes. */
uint64_t flow_entry_key(const struct flow_table *table, uint64_t line, uint64_t entry);

/* ---- what every packet goes through is inline ---- */

#define FLOW_KEY_SHIFT 16 /* of the remainder in an entry */
#define FLOW_REST_BITS 15 /* class and backend, below remainder and the alternate bit */

static inline uint64_t flow_table_remainder(const struct flow_table *table, uint64_t scrambled)
{
	return scrambled & ((1ULL << table->remainder_bits) - 1);
}

/*
 * The way that holds remainder and alternate bit `key`, or -1.  Where they are equal, class and backend are all that
 * is left of the difference, and no entry has zero there.  No early exit: six compares without a branch are
 * cheaper than one branch mispredicted.
 */
static inline int flow_line_way(const struct flow_line *line, uint64_t key)
{
	unsigned hits = 0;

	for (unsigned way = 0; way < FLOW_WAYS; way++)
		hits |= (unsigned)((line->entry[way] ^ key) - 1 < (1u << FLOW_REST_BITS) - 1) << way;
	return LIKELY(hits) ? __builtin_ctz(hits) : -1;
}

/*
 * Flows away from a line are counted in eight counters of four bits, by the lowest three bits of the remainder, so that
 * few lookups in vain go to the alternate line.  A counter that was once full stays so, which is always safe.
 */
#define FLOW_AWAY_FULL 15u

static inline unsigned flow_away_shift(uint64_t remainder)
{
	return (unsigned)(remainder & 7) * 4;
}

static inline unsigned flow_line_away(const struct flow_line *line, uint64_t remainder)
{
	return line->away >> flow_away_shift(remainder) & FLOW_AWAY_FULL;
}

static inline struct flow_slot flow_table_find_home(const struct flow_table *table, uint64_t scrambled, bool *elsewhere)
{
	struct flow_line *line = &table->lines[flow_table_line_of(table, scrambled)];
	uint64_t remainder = flow_table_remainder(table, scrambled);
	int way = flow_line_way(line, remainder << FLOW_KEY_SHIFT);

	*elsewhere = flow_line_away(line, remainder) != 0;
	return way < 0 ? (struct flow_slot){ NULL, 0 } : (struct flow_slot){ line, (unsigned)way };
}

/* Entries now in the table. */
uint64_t flow_table_live(const struct flow_table *table);

/* Walks everything; NULL if sound, else the first broken invariant in words. */
const char *flow_table_check(const struct flow_table *table);

#endif
