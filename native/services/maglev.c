/* SPDX-License-Identifier: Apache-2.0 */
/* See maglev.h. */
#include "services/maglev.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define SIZE_MAX_SLOTS (1u << 24)

/* Where a member stands in its permutation. */
struct turn {
	uint32_t next;
	uint32_t skip;
	uint32_t weight;
	uint64_t credit; /* parts of a turn saved up; a whole one is worth the largest weight */
	uint16_t backend;
};

/* The member takes the next slot of its permutation that nobody has. */
static void take_slot(uint16_t *slots, uint32_t size, struct turn *turn)
{
	uint32_t at = turn->next;

	while (slots[at] != MAGLEV_NONE) {
		at += turn->skip;
		if (at >= size)
			at -= size;
	}
	slots[at] = turn->backend;
	at += turn->skip;
	turn->next = at >= size ? at - size : at;
}

/*
 * Turns go round until the table is full.  Weights are honoured over the whole table, not in the first round only: in
 * each round a member saves up its weight and takes a slot whenever it has the largest weight together.
 */
static void fill_slots(uint16_t *slots, uint32_t size, struct turn *turns, uint32_t count, uint32_t heaviest)
{
	uint32_t left = size;

	for (;;) {
		for (uint32_t i = 0; i < count; i++) {
			turns[i].credit += turns[i].weight;
			if (turns[i].credit < heaviest)
				continue;
			turns[i].credit -= heaviest;
			take_slot(slots, size, &turns[i]);
			if (--left == 0)
				return;
		}
	}
}

/* Of a size that is not prime some steps come round before they met every slot, and a member would look for ever. */
static bool is_prime(uint32_t number)
{
	if (number % 2 == 0)
		return number == 2;
	for (uint32_t divisor = 3; divisor * divisor <= number; divisor += 2)
		if (number % divisor == 0)
			return false;
	return number > 1;
}

static bool is_sound(const struct maglev_member *member, uint32_t size)
{
	return member->offset < size && member->skip > 0 && member->skip < size && member->backend != MAGLEV_NONE;
}

/* A table of these slots, each as small as they allow.  NULL: no memory. */
static struct maglev *table_of(const uint16_t *slots, uint32_t size)
{
	struct maglev *table;
	bool wide = false;

	for (uint32_t i = 0; i < size; i++)
		wide |= slots[i] != MAGLEV_NONE && slots[i] >= MAGLEV_NONE_NARROW;
	table = malloc(sizeof(*table) + ((size_t)size << wide));
	if (!table)
		return NULL;
	table->references = 1;
	table->size = size;
	table->wide = wide;
	if (wide)
		memcpy(table->slots, slots, size * sizeof(*slots));
	for (uint32_t i = 0; i < size && !wide; i++)
		table->slots[i] = (uint8_t)slots[i]; /* of MAGLEV_NONE the lower half is MAGLEV_NONE_NARROW */
	return table;
}

int maglev_build(uint32_t size, const struct maglev_member *members, uint32_t count, struct maglev **out)
{
	struct turn *turns;
	uint16_t *slots;
	uint32_t used = 0, heaviest = 0;
	int error = 0;

	if (size > SIZE_MAX_SLOTS || !is_prime(size))
		return -EINVAL;
	slots = malloc(size * sizeof(*slots));
	turns = calloc(count ? count : 1, sizeof(*turns));
	if (!slots || !turns) {
		error = -ENOMEM;
		goto out;
	}
	memset(slots, 0xff, size * sizeof(*slots));

	for (uint32_t i = 0; i < count; i++) {
		if (!is_sound(&members[i], size)) {
			error = -EINVAL;
			goto out;
		}
		if (!members[i].weight)
			continue;
		turns[used++] = (struct turn){ .next = members[i].offset,
					       .skip = members[i].skip,
					       .weight = members[i].weight,
					       .backend = members[i].backend };
		if (members[i].weight > heaviest)
			heaviest = members[i].weight;
	}
	if (used)
		fill_slots(slots, size, turns, used, heaviest);
	*out = table_of(slots, size);
	if (!*out)
		error = -ENOMEM;
out:
	free(slots);
	free(turns);
	return error;
}

struct maglev *maglev_get(struct maglev *table)
{
	__atomic_fetch_add(&table->references, 1, __ATOMIC_RELAXED);
	return table;
}

void maglev_put(struct maglev *table)
{
	if (table && __atomic_sub_fetch(&table->references, 1, __ATOMIC_ACQ_REL) == 0)
		free(table);
}
