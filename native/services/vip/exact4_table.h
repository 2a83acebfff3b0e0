/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The open-addressed table of IPv4 services of one address and one port, which most are.  None is more specific, so they are
 * looked for first; the table is nearly empty, so that the first probe tells.  Their addresses are in another of its kind,
 * which tells an address that has no service at this port from one of which nothing is known.
 *
 * A table belongs to one map, which alone changes it, before it is sealed; then any thread may look.  Of the services given
 * here, those that are not service_is_exact4() are stepped over.  Zeroed memory is a table that is not made yet: it may be
 * added to and freed, not looked into.
 */
#ifndef VIPMUX_EXACT4_TABLE_H
#define VIPMUX_EXACT4_TABLE_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "machine/cpu.h"
#include "services/service.h"

struct exact_row {
	uint64_t key; /* see exact_key(); 0: empty */
	union {
		const struct service *service;
		uint64_t services; /* of an address, how many */
	};
};

struct exact4_table {
	struct exact_row *rows;
	uint64_t multiplier;
	uint64_t mask;
	unsigned shift; /* the product's highest bits are the place: they depend on all of the key */
};

/* address as it lies in memory, port in wire order; protocol and port 0 name the address itself */
static inline uint64_t exact_key(uint32_t address, uint8_t protocol, uint16_t port)
{
	return (uint64_t)address << 32 | (uint64_t)protocol << 16 | port;
}

/* Not keyed: what is stored comes from the operator, a client only asks. */
static inline uint64_t exact_place(const struct exact4_table *table, uint64_t key)
{
	return key * table->multiplier >> table->shift;
}

static inline const struct exact_row *exact_row_at(const struct exact4_table *table, uint64_t key)
{
	uint64_t at = exact_place(table, key);

	while (UNLIKELY(table->rows[at].key != key) && table->rows[at].key)
		at = (at + 1) & table->mask;
	return &table->rows[at];
}

/* The service of exactly this address and port, as they lie in memory; NULL: none. */
static inline const struct service *exact4_table_find(const struct exact4_table *table, const uint8_t *destination,
						     uint8_t protocol, uint16_t port)
{
	uint32_t address;

	memcpy(&address, destination, 4);
	return exact_row_at(table, exact_key(address, protocol, port))->service;
}

/* Of a table of addresses: whether a service has this one. */
static inline bool exact_addresses_contain(const struct exact4_table *addresses, const uint8_t *address)
{
	uint32_t word;

	memcpy(&word, address, 4);
	return exact_row_at(addresses, exact_key(word, 0, 0))->key != 0;
}

/* Of a table of addresses: the first probe says that no service has that of this exact_key().  False says nothing. */
static inline bool exact_address_is_strange(const struct exact4_table *addresses, uint64_t key)
{
	return !addresses->rows[exact_place(addresses, exact_key((uint32_t)(key >> 32), 0, 0))].key;
}

/* Makes `table` one with what `from` has.  -ENOMEM. */
int exact4_table_copy(struct exact4_table *table, const struct exact4_table *from);
void exact4_table_free(struct exact4_table *table);

/*
 * Adds services[first] to services[count - 1] to a table that has those before; makes it anew, with all, where it is too
 * small or far too large.  -EEXIST: two services tie, the table can only be freed then; -ENOMEM.
 */
int exact_services_add(struct exact4_table *table, struct service *const *services, uint32_t first, uint32_t count);
int exact_addresses_add(struct exact4_table *addresses, struct service *const *services, uint32_t first, uint32_t count);

/* Removes a service that is there. */
void exact_services_remove(struct exact4_table *table, const struct service *service);
void exact_addresses_remove(struct exact4_table *addresses, const struct service *service);

#endif
