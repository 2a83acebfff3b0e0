/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The flow tables of the other workers of a MUX, for flows whose packets come to another worker than before: their number
 * changed, a NIC's queues did, or another MUX told flows and nobody knows which worker will see them.
 *
 * A worker whose own table does not know a flow asks these before Maglev decides.  What it finds it takes over, and notes
 * a claim: whoever controls the workers has the others forget the flow, so that it is counted once and has one memory.
 * A flow that its own table knows costs nothing, nor does a worker without siblings: they are there only while a flow
 * may be where its packets are not (see lb/mux/workers/engine.py).
 *
 * An entry is one word, read whole while its owner writes, so what is found is right.  A flow that its owner is moving to
 * its other line at that very moment is not found.
 */
#ifndef VIPMUX_SIBLING_TABLES_H
#define VIPMUX_SIBLING_TABLES_H

#include <stdint.h>

#include "flow/flow_table.h"

#define NEIGHBOURS_MAX 128u /* 64 workers, and the tables of as many that were */
#define CLAIMS_MAX 4096u    /* not yet told; what is beyond ages where it is */

struct sibling_tables {
	uint32_t count;
	uint32_t claimed;
	struct flow_table *tables[NEIGHBOURS_MAX]; /* with a reference each */
	uint64_t claims[CLAIMS_MAX];		   /* scrambled keys that were taken over */
};

/* A reference on each of tables[count] is taken.  -EINVAL, -ENOMEM. */
int sibling_tables_create(struct flow_table *const *tables, uint32_t count, struct sibling_tables **out);
void sibling_tables_free(struct sibling_tables *siblings);

void sibling_tables_claim(struct sibling_tables *siblings, uint64_t scrambled);

void sibling_tables_prefetch(const struct sibling_tables *siblings, uint64_t scrambled);

/* What another thread's table says of a flow's age by the clock of ours, which may be a little behind. */
uint16_t sibling_tables_age(const struct flow_table *table, uint16_t stamp);

/*
 * Writes an entry as another table had it, of this age.  own: where an entry of the same key is, or none.  Returns where it is;
 * none: there was no room.
 */
struct flow_slot sibling_tables_put(struct flow_table *table, uint64_t scrambled, struct flow_slot own, uint64_t entry,
				uint16_t age);

/*
 * The flow's entry, taken over into `table` from the sibling that saw its last packet latest; none where no sibling knows
 * it or there is no room.  own: an entry of the same key that is of no use any more, or none.
 */
struct flow_slot sibling_tables_take(struct sibling_tables *siblings, struct flow_table *table, uint64_t scrambled,
				 struct flow_slot own);

#endif
