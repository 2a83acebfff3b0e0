/* SPDX-License-Identifier: Apache-2.0 */
#include "services/vip/exact4_table.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdlib.h>

/*
 * Rows per service: many, so that the first probe tells and no branch is mispredicted, as long as the table stays in a second
 * level cache beside all else; few where it would not, for then each probe waits for memory.
 */
#define EXACT_SPARSE 16
#define EXACT_SPARSE_MIN 2
#define EXACT_ROWS_CACHED 16384u /* 256 KiB */
#define ADDRESS_SPARSE 4 /* of addresses: asked for packets to a port that no service has */
#define ROWS_MIN 16
#define SHRINK 4 /* a table so many times larger than it need be is made anew */
#define EXACT_TRIES 32
#define EXACT_MULTIPLIER 0x9e3779b97f4a7c15u

/* ---- rows ---- */

static uint64_t exact_key_of(const struct service *service, uint8_t protocol, uint16_t port)
{
	uint32_t address;

	memcpy(&address, service->vip, 4);
	return exact_key(address, protocol, port);
}

static uint64_t exact_rows_for(uint32_t count, uint32_t sparse)
{
	uint64_t rows = ROWS_MIN;

	while (rows < (uint64_t)count * sparse && (rows < EXACT_ROWS_CACHED || rows < (uint64_t)count * EXACT_SPARSE_MIN))
		rows *= 2;
	return rows;
}

static int exact_allocate(struct exact4_table *table, uint64_t rows)
{
	free(table->rows);
	table->mask = rows - 1;
	table->rows = aligned_alloc(CACHE_LINE, rows * sizeof(*table->rows));
	table->shift = 64 - (unsigned)__builtin_ctzll(rows);
	return table->rows ? 0 : -ENOMEM;
}

/* Whether the table serves so many services as well as a new one would, or nearly. */
static bool exact_fits(const struct exact4_table *table, uint32_t count, uint32_t sparse)
{
	uint64_t best = exact_rows_for(count, sparse), rows = table->mask + 1;

	return table->rows && rows >= best && rows <= best * SHRINK;
}

static void exact_clear(struct exact4_table *table, uint64_t multiplier)
{
	memset(table->rows, 0, (table->mask + 1) * sizeof(*table->rows));
	table->multiplier = multiplier;
}

/* The row with this key, or the empty one where it goes.  *displaced goes up if that is not where the first probe looks. */
static struct exact_row *exact_row_for(struct exact4_table *table, uint64_t key, uint32_t *displaced)
{
	uint64_t place = exact_place(table, key), at = place;

	while (table->rows[at].key && table->rows[at].key != key)
		at = (at + 1) & table->mask;
	*displaced += at != place;
	return &table->rows[at];
}

/* Rows behind the hole, up to the next empty one, move into it where a probe for them comes by. */
static void exact_remove(struct exact4_table *table, struct exact_row *row)
{
	uint64_t hole = (uint64_t)(row - table->rows), at = hole;

	for (;;) {
		at = (at + 1) & table->mask;
		if (!table->rows[at].key)
			break;
		if (((at - exact_place(table, table->rows[at].key)) & table->mask) < ((at - hole) & table->mask))
			continue;
		table->rows[hole] = table->rows[at];
		hole = at;
	}
	table->rows[hole] = (struct exact_row){ 0 };
}

int exact4_table_copy(struct exact4_table *table, const struct exact4_table *from)
{
	int error = exact_allocate(table, from->mask + 1);

	if (error)
		return error;
	memcpy(table->rows, from->rows, (from->mask + 1) * sizeof(*from->rows));
	table->multiplier = from->multiplier;
	return 0;
}

void exact4_table_free(struct exact4_table *table)
{
	free(table->rows);
	table->rows = NULL;
}

/* ---- services ---- */

static uint64_t service_exact_key(const struct service *service)
{
	return exact_key_of(service, service->protocol, htons(service->first_port));
}

/* Adds those from `first` on; false where two services tie. */
static bool exact_fill(struct exact4_table *table, struct service *const *services, uint32_t first, uint32_t count,
		       uint32_t *displaced)
{
	*displaced = 0;
	for (uint32_t i = first; i < count; i++) {
		struct exact_row *row;

		if (!service_is_exact4(services[i]))
			continue;
		row = exact_row_for(table, service_exact_key(services[i]), displaced);
		if (row->key)
			return false;
		*row = (struct exact_row){ service_exact_key(services[i]), { services[i] } };
	}
	return true;
}

/*
 * A packet whose service is displaced costs a mispredicted branch, so several multipliers are tried and the best
 * one is kept: with some hundred services there is one that displaces none.
 */
static int exact_build(struct exact4_table *table, struct service *const *services, uint32_t count)
{
	uint32_t displaced, fewest = UINT32_MAX;
	uint64_t best = 0, multiplier = EXACT_MULTIPLIER;
	int error = exact_allocate(table, exact_rows_for(count, EXACT_SPARSE));

	for (unsigned i = 0; i < EXACT_TRIES && fewest && !error; i++, multiplier *= 0xbf58476d1ce4e5b9u) {
		exact_clear(table, multiplier);
		if (!exact_fill(table, services, 0, count, &displaced))
			error = -EEXIST;
		if (displaced < fewest) {
			fewest = displaced;
			best = multiplier;
		}
	}
	if (error)
		return error;
	exact_clear(table, best);
	exact_fill(table, services, 0, count, &displaced);
	return 0;
}

int exact_services_add(struct exact4_table *table, struct service *const *services, uint32_t first, uint32_t count)
{
	uint32_t ignored;

	if (!exact_fits(table, count, EXACT_SPARSE))
		return exact_build(table, services, count);
	return exact_fill(table, services, first, count, &ignored) ? 0 : -EEXIST;
}

void exact_services_remove(struct exact4_table *table, const struct service *service)
{
	uint32_t ignored = 0;

	exact_remove(table, exact_row_for(table, service_exact_key(service), &ignored));
}

/* ---- addresses ---- */

static void count_address(struct exact4_table *table, const struct service *service)
{
	uint64_t key = exact_key_of(service, 0, 0);
	uint32_t ignored = 0;
	struct exact_row *row;

	if (!service_is_exact4(service))
		return;
	row = exact_row_for(table, key, &ignored);
	row->key = key;
	row->services++;
}

int exact_addresses_add(struct exact4_table *addresses, struct service *const *services, uint32_t first, uint32_t count)
{
	int error;

	if (!exact_fits(addresses, count, ADDRESS_SPARSE)) {
		error = exact_allocate(addresses, exact_rows_for(count, ADDRESS_SPARSE));
		if (error)
			return error;
		exact_clear(addresses, EXACT_MULTIPLIER);
		first = 0;
	}
	for (uint32_t i = first; i < count; i++)
		count_address(addresses, services[i]);
	return 0;
}

void exact_addresses_remove(struct exact4_table *addresses, const struct service *service)
{
	uint32_t ignored = 0;
	struct exact_row *row = exact_row_for(addresses, exact_key_of(service, 0, 0), &ignored);

	if (!--row->services)
		exact_remove(addresses, row);
}
