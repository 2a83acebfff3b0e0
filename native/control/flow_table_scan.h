/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a MUX's flow table holds, seen as a whole and from beside: how many flows each backend has, and which of them
 * only this MUX knows.  Any thread may ask while the worker goes on; nothing here makes it wait.  Entries are read a word
 * at a time while the worker writes them, so a flow that comes, goes or moves meanwhile may be missed or met twice.
 *
 * A flow counts at a backend if its next packet would go there: it is not idle for too long, the backend is up, or drains
 * and the flow is one that stays.  A conversation that its client ended counts while it is younger than an untrusted one
 * may be: the last packets of both sides are under way.
 *
 * Which of them are *unsynchronised*, so that no other MUX knows where they go: see unsynchronised.h.
 */
#ifndef VIPMUX_FLOW_TABLE_SCAN_H
#define VIPMUX_FLOW_TABLE_SCAN_H

#include <stdint.h>

#include "mux/mux.h"
#include "services/snapshot/snapshot.h"

/* Flows of one backend of one service. */
struct flow_scan_row {
	uint32_t tcp;
	uint32_t udp;
	uint32_t unsynchronised; /* of both */
};

/* Adds the flows to rows by the backends' counter indices, as far as these are below `count`. */
void flow_scan_count(const struct mux *mux, const struct snapshot *snapshot, struct flow_scan_row *rows, uint32_t count);

/*
 * An unsynchronised flow, as another MUX of the pool understands it once it knows service and backend: the flow's name (see
 * flow_key_name()) << 16 | plain class (see flow_class_plain()) << 14 | age in units of 4 ticks.
 */
#define CENSUS_AGE_SHIFT 2
#define CENSUS_AGE_MAX 0x3fffu

static inline uint64_t flow_scan_record(uint64_t name, unsigned class, uint16_t age)
{
	return name << 16 | (uint64_t)class << 14 | age >> CENSUS_AGE_SHIFT;
}

/*
 * Writes the unsynchronised flows: a record and its owner (service id << 12 | backend number) each.  Returns how many there
 * are, of which no more than `max` were written.
 */
uint32_t flow_scan_unsynchronised(const struct mux *mux, const struct snapshot *snapshot, uint64_t *records,
			    uint32_t *owners, uint32_t max);

/*
 * The same for flow_news.h, of trusted flows alone: what a flood makes is no news.  Young ones are marked: they are trusted or a
 * flood's, which only their number tells.
 */
struct flow_fact {
	uint64_t record;
	uint32_t owner;
	uint32_t mark;
};

uint32_t flow_scan_facts(const struct mux *mux, const struct snapshot *snapshot, struct flow_fact *facts, uint32_t max);

#endif
