/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What has changed about the unsynchronised flows of a MUX since the others were told: which are new, which go on and must not
 * be forgotten there, and which are over.  Beside the workers, from any one thread at a time; nothing here makes them wait.
 *
 * Facts (flow_table_scan.h) are kept in order: by owner, then by the flow's name.  Numbers of services and backends are
 * this MUX's; whoever keeps facts must look again before a number is lent to another, see lb/dataplane/compile/numbers.py.
 */
#ifndef VIPMUX_FLOW_NEWS_H
#define VIPMUX_FLOW_NEWS_H

#include <stdbool.h>
#include <stdint.h>

#include "control/flow_table_scan.h"

/*
 * Brings facts in order, and keeps of several about one flow the youngest; returns how many are left.  More than young_max
 * that are marked as young are a flood's, and all of them are left out.
 */
uint32_t flow_news_settle(struct flow_fact *facts, uint32_t count, uint32_t young_max);

/* Marks of what is known: whose it is to tell of the flow. */
#define FLOW_OURS 0u
#define FLOW_HEARD 1u     /* another MUX told of it, and its packets go there */
#define FLOW_HEARD_NOW 2u /* the same, since the last comparison */
/* Beside one of these, of flows that are gone. */
#define FLOW_OVER 4u /* by what this MUX itself saw */
#define FLOW_SYNCHRONISED 8u /* it goes on, and any MUX would choose its backend */

struct flow_news {
	uint32_t come; /* not known, or heard but with a packet here meanwhile, or with a packet less than `since` ago */
	uint32_t gone; /* known, and not there any more: perhaps over */
};

/*
 * come[now_count], gone[known_count] are written.  All in order.  anew: all of ours comes.  elapsed: since `known` was `now`; like
 * `since` in the units of a record's age.  Afterwards `now` is marked: heard is what was heard and does not come.
 */
struct flow_news flow_news_compare(const struct flow_fact *known, uint32_t known_count, struct flow_fact *now,
				   uint32_t now_count, uint32_t since, uint32_t elapsed, bool anew, struct flow_fact *come,
				   struct flow_fact *gone);

/* How many flows of one owner are heard. */
struct flow_heard {
	uint32_t owner;
	uint32_t count;
};

/* Of facts in order; returns how many owners there are, of which the first `max` are written. */
uint32_t flow_news_heard(const struct flow_fact *facts, uint32_t count, struct flow_heard *out, uint32_t max);

/*
 * Of flows that are gone, marks those that are over by what this MUX itself saw: it ended, or a new one on the same ports went to
 * another backend.  Those have the age of that packet then.  What was merely forgotten for want of room is not over.  And those that
 * are synchronised: a copy of another MUX's flow is of no use then.
 */
void flow_news_judge(const struct mux *mux, const struct snapshot *snapshot, struct flow_fact *gone, uint32_t count);

#endif
