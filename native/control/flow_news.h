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

struct flow_news {
	uint32_t come; /* not known, or with a packet less than `since` ago, in the units of a record's age */
	uint32_t gone; /* known, and not there any more: perhaps over */
};

/*
 * come[now_count], gone[known_count] are written.  All in order.  anew: whatever is not marked comes.  Afterwards what is marked of
 * `now` is what was marked of `known` and does not come: what others told, and nobody here has told since.
 */
struct flow_news flow_news_compare(const struct flow_fact *known, uint32_t known_count, struct flow_fact *now,
				   uint32_t now_count, uint32_t since, bool anew, struct flow_fact *come,
				   struct flow_fact *gone);

/*
 * Of flows that are gone, marks those that are over by what this MUX itself saw: it ended, or a new one on the same ports went to
 * another backend.  Those have the age of that packet then.  What was merely forgotten for want of room is not over.
 */
void flow_news_judge(const struct mux *mux, const struct snapshot *snapshot, struct flow_fact *gone, uint32_t count);

#endif
