/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Weighted Maglev tables (Eisenbud et al., NSDI 2016, section 3.4): slot -> backend, immutable once built and shared by
 * reference between all services with the same backends, weights and size.
 */
#ifndef VIPMUX_MAGLEV_H
#define VIPMUX_MAGLEV_H

#include <stdint.h>

#define MAGLEV_NONE 0xffffu /* in an empty table: no backend */

/* One backend's share.  offset < size, 1 <= skip < size: its permutation of the slots; weight 0 takes none. */
struct maglev_member {
	uint32_t offset;
	uint32_t skip;
	uint32_t weight;
	uint16_t backend; /* what lookups return; the backend's number within its service */
};

struct maglev {
	uint32_t references; /* atomic */
	uint32_t size;       /* prime */
	uint16_t slots[];
};

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

#endif
