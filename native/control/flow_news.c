/* SPDX-License-Identifier: Apache-2.0 */
/* See flow_news.h. */
#include "control/flow_news.h"

#include <stdlib.h>

#include "services/snapshot/unsynchronised.h"
#include "services/vip/vip_map.h"

#define NAME_SHIFT 16

/* Negative, 0, positive as of two flows at two backends. */
static int order(const struct flow_fact *one, const struct flow_fact *other)
{
	uint64_t name = one->record >> NAME_SHIFT, other_name = other->record >> NAME_SHIFT;

	if (one->owner != other->owner)
		return one->owner < other->owner ? -1 : 1;
	return (name > other_name) - (name < other_name);
}

static uint32_t age_of(const struct flow_fact *fact)
{
	return fact->record & CENSUS_AGE_MAX;
}

static int order_with_age(const void *one, const void *other)
{
	int found = order(one, other);

	return found ? found : (int)age_of(one) - (int)age_of(other);
}

static uint32_t without_young(struct flow_fact *facts, uint32_t count, uint32_t young_max)
{
	uint32_t young = 0, left = 0;

	for (uint32_t i = 0; i < count; i++)
		young += facts[i].mark;
	if (young <= young_max)
		return count;
	for (uint32_t i = 0; i < count; i++)
		if (!facts[i].mark)
			facts[left++] = facts[i];
	return left;
}

uint32_t flow_news_settle(struct flow_fact *facts, uint32_t count, uint32_t young_max)
{
	uint32_t left = 0;

	count = without_young(facts, count, young_max);
	qsort(facts, count, sizeof(*facts), order_with_age);
	for (uint32_t i = 0; i < count; i++)
		if (!left || order(&facts[left - 1], &facts[i]))
			facts[left++] = facts[i];
	return left;
}

/* A flow of which another told had a packet here since: its age is not what it was and the time that has passed. */
static bool has_moved_here(const struct flow_fact *known, const struct flow_fact *now, uint32_t elapsed)
{
	uint32_t expected = age_of(known) + elapsed;

	return known->mark == FLOW_HEARD && expected < CENSUS_AGE_MAX && age_of(now) + 1 < expected;
}

struct flow_news flow_news_compare(const struct flow_fact *known, uint32_t known_count, struct flow_fact *now,
				   uint32_t now_count, uint32_t since, uint32_t elapsed, bool anew, struct flow_fact *come,
				   struct flow_fact *gone)
{
	struct flow_news news = { 0, 0 };
	uint32_t k = 0, n = 0;

	while (k < known_count || n < now_count) {
		int found = k == known_count ? 1 : n == now_count ? -1 : order(&known[k], &now[n]);

		if (found < 0) {
			gone[news.gone++] = known[k];
		} else if (found > 0 || age_of(&now[n]) < since || (anew && known[k].mark == FLOW_OURS) ||
			   has_moved_here(&known[k], &now[n], elapsed)) {
			now[n].mark = FLOW_OURS;
			come[news.come++] = now[n];
		} else {
			now[n].mark = known[k].mark == FLOW_OURS ? FLOW_OURS : FLOW_HEARD;
		}
		k += found <= 0;
		n += found >= 0;
	}
	return news;
}

uint32_t flow_news_heard(const struct flow_fact *facts, uint32_t count, struct flow_heard *out, uint32_t max)
{
	uint32_t owners = 0, last = 0;

	for (uint32_t i = 0; i < count; i++) {
		if (facts[i].mark == FLOW_OURS)
			continue;
		if (!owners || facts[i].owner != last) {
			last = facts[i].owner;
			if (owners++ < max)
				out[owners - 1] = (struct flow_heard){ last, 0 };
		}
		if (owners <= max)
			out[owners - 1].count++;
	}
	return owners;
}

static void judge_one(const struct flow_table *table, const struct vip_map *map, struct flow_fact *fact)
{
	uint32_t id = fact->owner >> 12, number = fact->owner & 0xfff;
	const struct service *service = id <= SERVICE_ID_MAX ? map->by_id[id] : NULL;
	uint64_t entry, key, clock = __atomic_load_n(&table->clock, __ATOMIC_RELAXED);
	uint16_t stamp, age;

	if (!service)
		return;
	key = flow_key_of(id, service->narrow, fact->record >> NAME_SHIFT);
	entry = flow_table_peek(table, flow_scramble(&map->seed, key), &stamp);
	if (!entry)
		return;
	if (flow_entry_backend(entry) == number && !flow_class_has_ended(flow_entry_class(entry))) {
		if (!flow_is_unsynchronised(map, service, number, key, flow_entry_class(entry)))
			fact->mark |= FLOW_SYNCHRONISED;
		return;
	}
	/* Ages that were told are rounded down, so that others take the flow for younger, by less than one unit. */
	age = (uint16_t)((uint16_t)clock - stamp) >> CENSUS_AGE_SHIFT;
	fact->mark |= FLOW_OVER;
	fact->record = (fact->record & ~(uint64_t)CENSUS_AGE_MAX) | (age ? age - 1 : 0);
}

void flow_news_judge(const struct mux *mux, const struct snapshot *snapshot, struct flow_fact *gone, uint32_t count)
{
	for (uint32_t i = 0; mux->table && i < count; i++)
		judge_one(mux->table, snapshot->map, &gone[i]);
}
