/* SPDX-License-Identifier: Apache-2.0 */
/*
 * See vip_index.h.
 *
 * One open-addressed hash table with three kinds of rows for every prefix in use:
 *	EXACT  (prefix, protocol, port) -> the service of exactly this port, if it is not in the table of IPv6 addresses
 *	RANGES (prefix, protocol)       -> the services of port ranges, and the one of any port
 *	VIP    (prefix)                 -> this is a VIP of ours, whatever the port
 * A lookup goes through the prefix lengths in use, longest first.
 */
#include "services/vip/vip_index.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define ROWS_MIN 16

enum row_kind { ROW_EXACT = 1, ROW_RANGES = 2, ROW_VIP = 3 };

struct row_key {
	uint64_t address[2]; /* masked, as it lies in memory */
	uint64_t what;       /* kind, family, prefix length, protocol, port; never 0 */
};

struct vip_row {
	struct row_key key;
	void *value; /* EXACT: struct service; RANGES: struct ranges; VIP: the index itself */
};

struct ranges {
	uint32_t count;
	struct service *any;
	struct service **by_port; /* disjoint, ascending */
};

/* ---- keys ---- */

static inline uint64_t row_what(enum row_kind kind, uint8_t family, uint8_t bits, uint8_t protocol, uint16_t port)
{
	return (uint64_t)kind << 48 | (uint64_t)family << 40 | (uint64_t)bits << 32 | (uint64_t)protocol << 16 | port;
}

/* Not keyed: what is stored comes from the operator, a client only asks. */
static inline uint64_t row_hash(const struct row_key *key)
{
	uint64_t a = (key->address[0] ^ key->what) * 0x9e3779b97f4a7c15u;
	uint64_t b = (key->address[1] + key->what) * 0xc2b2ae3d27d4eb4fu;

	a ^= b;
	a ^= a >> 32; /* addresses often differ in their last bytes only, the highest here, and products carry upwards only */
	a *= 0xbf58476d1ce4e5b9u;
	return a ^ a >> 32;
}

static inline bool key_equal(const struct row_key *a, const struct row_key *b)
{
	return a->address[0] == b->address[0] && a->address[1] == b->address[1] && a->what == b->what;
}

static struct row_key service_key(const struct service *service, enum row_kind kind)
{
	struct row_key key;
	bool exact = kind == ROW_EXACT;

	address_load(service->family, service->vip, key.address);
	key.what = row_what(kind, service->family, service->prefix_length, kind == ROW_VIP ? 0 : service->protocol,
			    exact ? htons(service->first_port) : 0);
	return key;
}

/* The row with this key, or the empty one where it belongs. */
static struct vip_row *row_at(const struct vip_index *index, const struct row_key *key)
{
	uint64_t i = row_hash(key) & index->row_mask;

	while (index->rows[i].key.what && !key_equal(&index->rows[i].key, key))
		i = (i + 1) & index->row_mask;
	return &index->rows[i];
}

/* ---- build ---- */

static bool any_port(const struct service *service)
{
	return service->first_port == 0 && service->last_port == 65535;
}

/* Puts a range or any-port service into the list of its prefix and protocol, which stays sorted and disjoint. */
static int ranges_add(struct ranges *ranges, struct service *service)
{
	struct service **grown;
	uint32_t at = 0;

	if (any_port(service)) {
		if (ranges->any)
			return -EEXIST;
		ranges->any = service;
		return 0;
	}
	while (at < ranges->count && ranges->by_port[at]->first_port < service->first_port)
		at++;
	if (at > 0 && ranges->by_port[at - 1]->last_port >= service->first_port)
		return -EEXIST;
	if (at < ranges->count && ranges->by_port[at]->first_port <= service->last_port)
		return -EEXIST;
	grown = realloc(ranges->by_port, (ranges->count + 1) * sizeof(*grown));
	if (!grown)
		return -ENOMEM;
	ranges->by_port = grown;
	memmove(&grown[at + 1], &grown[at], (ranges->count - at) * sizeof(*grown));
	grown[at] = service;
	ranges->count++;
	return 0;
}

static struct vip_length *note_length(struct vip_index *index, const struct service *service)
{
	unsigned f = family_index(service->family), at = 0, count = index->length_count[f];
	struct vip_length *lengths = index->lengths[f];

	while (at < count && lengths[at].bits > service->prefix_length)
		at++;
	if (at < count && lengths[at].bits == service->prefix_length)
		return &lengths[at];
	memmove(&lengths[at + 1], &lengths[at], (count - at) * sizeof(*lengths));
	lengths[at] = (struct vip_length){ .bits = service->prefix_length };
	address_mask(service->prefix_length, lengths[at].mask);
	index->length_count[f]++;
	return &lengths[at];
}

static int index_add(struct vip_index *index, struct service *service)
{
	bool exact = service->first_port == service->last_port;
	struct vip_length *length;
	struct row_key key;
	struct vip_row *row;

	if (service_is_exact4(service))
		return 0;
	length = note_length(index, service);
	key = service_key(service, ROW_VIP);
	row = row_at(index, &key);
	row->key = key;
	row->value = index;
	if (service_is_exact6(service))
		return exact6_table_add(&index->exact6, service);

	key = service_key(service, exact ? ROW_EXACT : ROW_RANGES);
	row = row_at(index, &key);
	if (exact) {
		if (row->key.what)
			return -EEXIST;
		row->key = key;
		row->value = service;
		length->exact = true;
		return 0;
	}
	if (!row->key.what) {
		row->value = calloc(1, sizeof(struct ranges));
		if (!row->value)
			return -ENOMEM;
		row->key = key;
	}
	length->ranges = true;
	return ranges_add(row->value, service);
}

int vip_index_build(struct service *const *services, uint32_t service_count, struct vip_index **out)
{
	struct vip_index *index = calloc(1, sizeof(*index));
	uint32_t count = 0, count6 = 0;
	uint64_t rows = ROWS_MIN;
	int error;

	if (!index)
		return -ENOMEM;
	index->references = 1;
	for (uint32_t i = 0; i < service_count; i++) {
		count += !service_is_exact4(services[i]);
		count6 += service_is_exact6(services[i]);
	}
	/* At most two rows a service, and a quarter full: a probe that meets another's row costs a misprediction. */
	while (rows < (uint64_t)count * 8)
		rows *= 2;
	index->rows = calloc(rows, sizeof(*index->rows));
	index->row_mask = rows - 1;
	error = index->rows ? exact6_table_create(&index->exact6, count6) : -ENOMEM;
	for (uint32_t i = 0; i < service_count && !error; i++)
		error = index_add(index, services[i]);
	if (error)
		vip_index_put(index);
	else
		*out = index;
	return error;
}

struct vip_index *vip_index_get(struct vip_index *index)
{
	__atomic_fetch_add(&index->references, 1, __ATOMIC_RELAXED);
	return index;
}

void vip_index_put(struct vip_index *index)
{
	if (!index || __atomic_sub_fetch(&index->references, 1, __ATOMIC_ACQ_REL))
		return;
	for (uint64_t i = 0; index->rows && i <= index->row_mask; i++) {
		struct ranges *ranges = index->rows[i].value;

		if (index->rows[i].key.what >> 48 != ROW_RANGES)
			continue;
		free(ranges->by_port);
		free(ranges);
	}
	exact6_table_free(&index->exact6);
	free(index->rows);
	free(index);
}

/* ---- find ---- */

static inline void *row_value(const struct vip_index *index, const struct row_key *key)
{
	return row_at(index, key)->value; /* an empty row's value is NULL */
}

static const struct service *ranges_find(const struct ranges *ranges, uint16_t port)
{
	uint32_t low = 0, high = ranges->count;

	while (low < high) {
		uint32_t middle = (low + high) / 2;
		const struct service *service = ranges->by_port[middle];

		if (port < service->first_port)
			high = middle;
		else if (port > service->last_port)
			low = middle + 1;
		else
			return service;
	}
	return ranges->any;
}

static inline struct row_key masked_key(const uint64_t address[2], const struct vip_length *length)
{
	return (struct row_key){ .address = { address[0] & length->mask[0], address[1] & length->mask[1] } };
}

const struct service *vip_index_find_other(const struct vip_index *index, uint8_t family, const uint8_t *destination,
					   uint8_t protocol, uint16_t port, bool *is_vip)
{
	const struct vip_length *length = index->lengths[family_index(family)];
	const struct vip_length *end = length + index->length_count[family_index(family)];
	uint64_t address[2];

	address_load(family, destination, address);
	for (; length < end; length++) {
		struct row_key key = masked_key(address, length);
		const struct service *service;
		const struct ranges *ranges;

		if (LIKELY(length->exact)) {
			key.what = row_what(ROW_EXACT, family, length->bits, protocol, port);
			service = row_value(index, &key);
			if (LIKELY(service != NULL)) {
				*is_vip = true;
				return service;
			}
		}
		if (length->ranges) {
			key.what = row_what(ROW_RANGES, family, length->bits, protocol, 0);
			ranges = row_value(index, &key);
			service = ranges ? ranges_find(ranges, ntohs(port)) : NULL;
			if (service) {
				*is_vip = true;
				return service;
			}
		}
		if (!*is_vip) {
			key.what = row_what(ROW_VIP, family, length->bits, 0, 0);
			*is_vip = row_value(index, &key) != NULL;
		}
	}
	return NULL;
}

bool vip_index_contains(const struct vip_index *index, uint8_t family, const uint8_t *address)
{
	const struct vip_length *length = index->lengths[family_index(family)];
	const struct vip_length *end = length + index->length_count[family_index(family)];
	uint64_t words[2];

	address_load(family, address, words);
	for (; length < end; length++) {
		struct row_key key = masked_key(words, length);

		key.what = row_what(ROW_VIP, family, length->bits, 0, 0);
		if (row_value(index, &key))
			return true;
	}
	return false;
}
