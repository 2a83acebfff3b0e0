/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Weighted Maglev tables (Eisenbud et al., NSDI 2016, section 3.4): slot -> backend, immutable once built and shared by
 * reference between all services with the same backends, weights and size.
 */
#ifndef VIPMUX_MAGLEV_H
#define VIPMUX_MAGLEV_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#define MAGLEV_NONE 0xffffu /* in an empty table: no backend */

/* One backend's share.  offset < size, 1 <= skip < size: its permutation of the slots; weight 0 takes none. */
struct maglev_member {
	uint32_t offset;
	uint32_t skip;
	uint32_t weight;
	uint16_t backend; /* what lookups return; the backend's number within its service */
};

/*
 * Backends of most services have numbers that fit into a byte: such a table takes half of the memory, and of the caches.  Slots are
 * read by maglev_at() alone.
 */
struct maglev {
	uint32_t references; /* atomic */
	uint32_t size;       /* prime */
	bool wide;           /* a slot has two bytes, in the machine's order; else one, MAGLEV_NONE_NARROW for MAGLEV_NONE */
	uint8_t slots[];
};
#define MAGLEV_NONE_NARROW 0xffu

/*
 * Builds a table of `size` slots.  Members take turns in the order given, each as often as its weight says, and the
 * result depends on nothing else.  With no member of weight > 0 every slot is MAGLEV_NONE.
 * 0, -EINVAL (size not a prime up to 2^24, a permutation out of range, or MAGLEV_NONE for a backend), or -ENOMEM.
 * Thread-safe.
 */
int maglev_build(uint32_t size, const struct maglev_member *members, uint32_t count, struct maglev **out);

struct maglev *maglev_get(struct maglev *table);
void maglev_put(struct maglev *table);

/* Scales a hash to a slot: multiply-shift keeps the spread even without a division. */
static inline uint32_t maglev_slot(const struct maglev *table, uint64_t hash)
{
	return (uint32_t)((hash >> 32) * table->size >> 32);
}

/* Where a slot is, for whoever asks memory for it ahead. */
static inline const uint8_t *maglev_place(const struct maglev *table, uint32_t slot)
{
	return &table->slots[(size_t)slot << table->wide];
}

/* A slot's backend, MAGLEV_NONE where there is none.  slot < size. */
static inline uint16_t maglev_at(const struct maglev *table, uint32_t slot)
{
	const uint8_t *place = maglev_place(table, slot);
	uint16_t backend = *place;

	if (table->wide)
		memcpy(&backend, place, sizeof(backend));
	else if (backend == MAGLEV_NONE_NARROW)
		backend = MAGLEV_NONE;
	return backend;
}

#endif
