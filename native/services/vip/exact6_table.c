/* SPDX-License-Identifier: Apache-2.0 */
#include "services/vip/exact6_table.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdlib.h>

#define SPARSE 8 /* rows per service */
#define ROWS_MIN 16

int exact6_table_create(struct exact6_table *table, uint32_t count)
{
	uint64_t rows = ROWS_MIN;

	while (rows < (uint64_t)count * SPARSE)
		rows *= 2;
	table->rows = aligned_alloc(CACHE_LINE, rows * sizeof(*table->rows));
	if (!table->rows)
		return -ENOMEM;
	memset(table->rows, 0, rows * sizeof(*table->rows));
	table->mask = rows - 1;
	table->shift = 64 - (unsigned)__builtin_ctzll(rows);
	return 0;
}

int exact6_table_add(struct exact6_table *table, const struct service *service)
{
	uint64_t address[2], what = exact6_what(service->protocol, htons(service->first_port));
	struct exact6_row *row;

	memcpy(address, service->vip, 16);
	row = exact6_row_at(table, address, what);
	if (row->what)
		return -EEXIST;
	*row = (struct exact6_row){ { address[0], address[1] }, what, service };
	return 0;
}

void exact6_table_free(struct exact6_table *table)
{
	free(table->rows);
	table->rows = NULL;
}
