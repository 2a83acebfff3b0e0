/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The open-addressed table of IPv6 services of one address and one port.  None is more specific, so they are looked for first;
 * the table is nearly empty, so that the first probe tells, and a row lies in one cache line.
 *
 * Part of an index (vip_index.h): made and filled by who builds that, immutable from then on.  Then any thread may look.
 */
#ifndef VIPMUX_EXACT6_TABLE_H
#define VIPMUX_EXACT6_TABLE_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "machine/cpu.h"
#include "services/service.h"

struct exact6_row {
	uint64_t address[2]; /* as it lies in memory */
	uint64_t what;       /* protocol and port, see exact6_what(); 0: empty, and so is the rest */
	const struct service *service;
};
_Static_assert(CACHE_LINE % sizeof(struct exact6_row) == 0, "a row lies in one cache line");

struct exact6_table {
	struct exact6_row *rows;
	uint64_t mask;
	unsigned shift; /* the highest bits of the hash are the place: they depend on all of the key */
};

/* port in wire order */
static inline uint64_t exact6_what(uint8_t protocol, uint16_t port)
{
	return (uint64_t)protocol << 16 | port;
}

/* The row with this key, or the empty one where it goes.  Not keyed: what is stored comes from the operator. */
static inline struct exact6_row *exact6_row_at(const struct exact6_table *table, const uint64_t address[2], uint64_t what)
{
	uint64_t hash = (address[0] ^ what) * 0x9e3779b97f4a7c15u + (address[1] ^ what) * 0xc2b2ae3d27d4eb4fu;
	uint64_t at = hash >> table->shift;

	for (;; at = (at + 1) & table->mask) {
		struct exact6_row *row = &table->rows[at];
		uint64_t differs = (row->address[0] ^ address[0]) | (row->address[1] ^ address[1]) | (row->what ^ what);

		if (LIKELY(!differs) || !row->what)
			return row;
	}
}

/* The service of exactly this address and port, as they lie in memory; NULL: none. */
static inline const struct service *exact6_table_find(const struct exact6_table *table, const uint8_t *destination,
						      uint8_t protocol, uint16_t port)
{
	uint64_t address[2];

	memcpy(address, destination, 16);
	return exact6_row_at(table, address, exact6_what(protocol, port))->service;
}

/* An empty table with room for `count` services.  -ENOMEM. */
int exact6_table_create(struct exact6_table *table, uint32_t count);

/* Adds a service that is service_is_exact6().  -EEXIST: another ties with it. */
int exact6_table_add(struct exact6_table *table, const struct service *service);

/* Of a table that is zeroed memory too. */
void exact6_table_free(struct exact6_table *table);

#endif
