/* SPDX-License-Identifier: Apache-2.0 */
/* The two ways to look in many home lines at once, side by side; for tests/native/test_flow_burst.py. */
#include "flow_table.h"

int probe_same_slots(const uint64_t *keys, unsigned key_count, const uint64_t *asked, unsigned count, unsigned *found);

#define MOST 4096

/* In a table of these flows.  1: both find the same; 0: not; -1: the processor knows one way only. */
int probe_same_slots(const uint64_t *keys, unsigned key_count, const uint64_t *asked, unsigned count, unsigned *found)
{
	static struct flow_slot plain[MOST], fast[MOST];
	struct flow_table *table;
	int same = 1;

	if (count > MOST || flow_table_create(1, &table))
		return 0;
	*found = 0;
	for (unsigned i = 0; i < key_count; i++)
		flow_table_insert(table, keys[i], i % FLOW_BACKEND_MAX, FLOW_TCP_TRUSTED);
	flow_find_burst_plain(table, asked, plain, count);
	if (table->find_burst == flow_find_burst_plain)
		same = -1;
	else
		flow_table_find_home_burst(table, asked, fast, count);
	for (unsigned i = 0; i < count && same > 0; i++) {
		*found += plain[i].line != NULL;
		same = plain[i].line == fast[i].line && (!plain[i].line || plain[i].way == fast[i].way);
	}
	flow_table_destroy(table);
	return same;
}
