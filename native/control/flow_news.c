/* SPDX-License-Identifier: Apache-2.0 */
/* See flow_news.h. */
#include "control/flow_news.h"

#include <stdlib.h>

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

struct flow_news flow_news_compare(const struct flow_fact *known, uint32_t known_count, struct flow_fact *now,
				   uint32_t now_count, uint32_t since, bool anew, struct flow_fact *come,
				   struct flow_fact *gone)
{
	struct flow_news news = { 0, 0 };
	uint32_t k = 0, n = 0;

	while (k < known_count || n < now_count) {
		int found = k == known_count ? 1 : n == now_count ? -1 : order(&known[k], &now[n]);

		if (found < 0) {
			gone[news.gone] = known[k];
			gone[news.gone++].mark = 0;
		} else if (found > 0 || age_of(&now[n]) < since || (anew && !known[k].mark)) {
			now[n].mark = 0;
			come[news.come++] = now[n];
		} else {
			now[n].mark = known[k].mark;
		}
		k += found <= 0;
		n += found >= 0;
	}
	return news;
}

static void judge_one(const struct flow_table *table, const struct vip_map *map, struct flow_fact *fact)
{
	uint32_t id = fact->owner >> 12;
	const struct service *service = id <= SERVICE_ID_MAX ? map->by_id[id] : NULL;
	uint64_t entry, clock = __atomic_load_n(&table->clock, __ATOMIC_RELAXED);
	uint16_t stamp, age;

	if (!service)
		return;
	entry = flow_table_peek(table,
				flow_scramble(&map->seed, flow_key_of(id, service->narrow, fact->record >> NAME_SHIFT)), &stamp);
	if (!entry || (flow_entry_backend(entry) == (fact->owner & 0xfff) && !flow_class_has_ended(flow_entry_class(entry))))
		return;
	/* Ages that were told are rounded down, so that others take the flow for younger, by less than one unit. */
	age = (uint16_t)((uint16_t)clock - stamp) >> CENSUS_AGE_SHIFT;
	fact->mark = 1;
	fact->record = (fact->record & ~(uint64_t)CENSUS_AGE_MAX) | (age ? age - 1 : 0);
}

void flow_news_judge(const struct mux *mux, const struct snapshot *snapshot, struct flow_fact *gone, uint32_t count)
{
	for (uint32_t i = 0; mux->table && i < count; i++)
		judge_one(mux->table, snapshot->map, &gone[i]);
}
