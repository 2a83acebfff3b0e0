/* SPDX-License-Identifier: Apache-2.0 */
/*
 * See vip_map.h.
 *
 * What is no single IPv4 address and port (see struct exact_table) is in the index, one open-addressed hash table with three
 * kinds of rows for every prefix in use:
 *	EXACT  (prefix, protocol, port) -> the service of exactly this port
 *	RANGES (prefix, protocol)       -> the services of port ranges, and the one of any port
 *	VIP    (prefix)                 -> this is a VIP of ours, whatever the port
 * A lookup goes through the prefix lengths in use, longest first.
 */
#include "vip_map.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdlib.h>

#define EXACT_SPARSE 16 /* rows per service */
#define EXACT_TRIES 32
#define EXACT_MULTIPLIER 0x9e3779b97f4a7c15u

enum row_kind { ROW_EXACT = 1, ROW_RANGES = 2, ROW_VIP = 3 };

struct row_key {
	uint64_t address[2]; /* masked, as it lies in memory */
	uint64_t what;       /* kind, family, prefix length, protocol, port; never 0 */
};

struct row {
	struct row_key key;
	void *value; /* EXACT: struct service; RANGES: struct ranges; VIP: the map itself */
};

struct ranges {
	uint32_t count;
	struct service *any;
	struct service **by_port; /* disjoint, ascending */
};

/* A prefix length in use, longest first, and which rows it can have. */
struct length {
	uint8_t bits;
	bool exact;
	bool ranges;
	uint64_t mask[2]; /* as it lies in memory */
};

struct vip_index {
	struct row *rows;
	uint64_t row_mask;
	unsigned length_count[2]; /* of IPv4, of IPv6 */
	struct length lengths[2][129];
};

/* ---- keys ---- */

static inline unsigned family_index(uint8_t family)
{
	return family == 6;
}

static inline void load_address(uint8_t family, const uint8_t *address, uint64_t out[2])
{
	uint32_t word;

	if (family == 6) {
		memcpy(out, address, 16);
		return;
	}
	memcpy(&word, address, 4);
	out[0] = word;
	out[1] = 0;
}

static inline uint64_t row_what(enum row_kind kind, uint8_t family, uint8_t bits, uint8_t protocol, uint16_t port)
{
	return (uint64_t)kind << 48 | (uint64_t)family << 40 | (uint64_t)bits << 32 | (uint64_t)protocol << 16 | port;
}

/* Not keyed: what is stored comes from the operator, a client only asks. */
static inline uint64_t row_hash(const struct row_key *key)
{
	uint64_t a = (key->address[0] ^ key->what) * 0x9e3779b97f4a7c15u;
	uint64_t b = (key->address[1] + key->what) * 0xc2b2ae3d27d4eb4fu;

	a ^= b ^ a >> 29;
	a *= 0xbf58476d1ce4e5b9u;
	return a ^ a >> 32;
}

static inline bool key_equal(const struct row_key *a, const struct row_key *b)
{
	return a->address[0] == b->address[0] && a->address[1] == b->address[1] && a->what == b->what;
}

static void make_mask(uint8_t bits, uint64_t mask[2])
{
	uint8_t bytes[16] = { 0 };

	for (unsigned i = 0; i < bits; i++)
		bytes[i / 8] |= (uint8_t)(0x80 >> i % 8);
	memcpy(mask, bytes, 16);
}

/* ---- life ---- */

int vip_map_create(const uint8_t seed[16], uint16_t idle_untrusted, struct vip_map **out)
{
	struct vip_map *map = calloc(1, sizeof(*map));

	if (!map)
		return -ENOMEM;
	map->by_id = calloc(SERVICE_ID_MAX + 1, sizeof(*map->by_id));
	if (!map->by_id) {
		free(map);
		return -ENOMEM;
	}
	map->references = 1;
	map->idle_untrusted = idle_untrusted;
	map->class_idle[FLOW_TCP_UNTRUSTED] = idle_untrusted;
	flow_seed_init(&map->seed, seed);
	*out = map;
	return 0;
}

static void index_free(struct vip_index *index)
{
	if (!index)
		return;
	for (uint64_t i = 0; index->rows && i <= index->row_mask; i++) {
		struct ranges *ranges = index->rows[i].value;

		if (index->rows[i].key.what >> 48 != ROW_RANGES)
			continue;
		free(ranges->by_port);
		free(ranges);
	}
	free(index->rows);
	free(index);
}

struct vip_map *vip_map_get(struct vip_map *map)
{
	__atomic_fetch_add(&map->references, 1, __ATOMIC_RELAXED);
	return map;
}

void vip_map_put(struct vip_map *map)
{
	if (!map || __atomic_sub_fetch(&map->references, 1, __ATOMIC_ACQ_REL))
		return;
	index_free(map->index);
	free(map->exact.rows);
	free(map->addresses.rows);
	for (uint32_t i = 0; i < map->service_count; i++) {
		maglev_put(map->services[i]->maglev);
		free(map->services[i]);
	}
	free(map->services);
	free(map->by_id);
	free(map);
}

/* ---- add ---- */

static bool service_valid(const struct vip_map *map, const struct service *service)
{
	uint8_t limit = service->family == 6 ? 128 : 32;
	uint64_t address[2], mask[2];

	if ((service->family != 4 && service->family != 6) || service->prefix_length > limit || !service->maglev)
		return false;
	if ((service->protocol != 6 && service->protocol != 17) || service->first_port > service->last_port)
		return false;
	if (service->mtu > SERVICE_MTU_MAX) /* segments of a super-packet have buffers of this size */
		return false;
	if (service->id > SERVICE_ID_MAX || map->by_id[service->id] || service->backend_count > FLOW_BACKEND_MAX)
		return false;
	load_address(service->family, service->vip, address);
	make_mask(service->prefix_length, mask);
	return !(address[0] & ~mask[0]) && !(address[1] & ~mask[1]);
}

static void note_idle(uint16_t *longest, uint16_t idle)
{
	if (idle > *longest)
		*longest = idle;
}

int vip_map_add(struct vip_map *map, const struct service *service, const struct backend *backends)
{
	struct service **grown, *copy;

	if (map->index || !service_valid(map, service))
		return -EINVAL;
	if ((map->service_count & (map->service_count - 1)) == 0) {
		size_t room = map->service_count ? map->service_count * 2 : 1;

		grown = realloc(map->services, room * sizeof(*grown));
		if (!grown)
			return -ENOMEM;
		map->services = grown;
	}
	copy = malloc(sizeof(*copy) + service->backend_count * sizeof(*backends));
	if (!copy)
		return -ENOMEM;
	*copy = *service;
	copy->backends = (struct backend *)(copy + 1);
	if (service->backend_count)
		memcpy(copy->backends, backends, service->backend_count * sizeof(*backends));
	copy->narrow = service->family == 4 && service->prefix_length == 32 &&
		       service->first_port == service->last_port;
	maglev_get(copy->maglev);
	map->services[map->service_count++] = copy;
	map->by_id[copy->id] = copy;
	if (copy->protocol == 6) {
		note_idle(&map->class_idle[FLOW_TCP_TRUSTED], copy->idle);
	} else {
		note_idle(&map->class_idle[FLOW_UDP_TRUSTED], copy->idle);
		note_idle(&map->class_idle[FLOW_UDP_UNTRUSTED], copy->idle);
	}
	return 0;
}

/* ---- seal ---- */

static bool any_port(const struct service *service)
{
	return service->first_port == 0 && service->last_port == 65535;
}

static struct row_key service_key(const struct service *service, enum row_kind kind)
{
	struct row_key key;
	bool exact = kind == ROW_EXACT;

	load_address(service->family, service->vip, key.address);
	key.what = row_what(kind, service->family, service->prefix_length, kind == ROW_VIP ? 0 : service->protocol,
			    exact ? htons(service->first_port) : 0);
	return key;
}

/* The row with this key, or the empty one where it belongs. */
static struct row *row_at(const struct vip_index *index, const struct row_key *key)
{
	uint64_t i = row_hash(key) & index->row_mask;

	while (index->rows[i].key.what && !key_equal(&index->rows[i].key, key))
		i = (i + 1) & index->row_mask;
	return &index->rows[i];
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

static struct length *note_length(struct vip_index *index, const struct service *service)
{
	unsigned f = family_index(service->family), at = 0, count = index->length_count[f];
	struct length *lengths = index->lengths[f];

	while (at < count && lengths[at].bits > service->prefix_length)
		at++;
	if (at < count && lengths[at].bits == service->prefix_length)
		return &lengths[at];
	memmove(&lengths[at + 1], &lengths[at], (count - at) * sizeof(*lengths));
	lengths[at] = (struct length){ .bits = service->prefix_length };
	make_mask(service->prefix_length, lengths[at].mask);
	index->length_count[f]++;
	return &lengths[at];
}

static bool in_exact_table(const struct service *service)
{
	return service->family == 4 && service->prefix_length == 32 && service->first_port == service->last_port;
}

static int index_add(struct vip_map *map, struct vip_index *index, struct service *service)
{
	bool exact = service->first_port == service->last_port;
	struct length *length;
	struct row_key key;
	struct row *row;

	if (in_exact_table(service))
		return 0;
	length = note_length(index, service);
	key = service_key(service, ROW_VIP);
	row = row_at(index, &key);
	row->key = key;
	row->value = map;

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

static uint64_t exact_key_of(const struct service *service, uint8_t protocol, uint16_t port)
{
	uint32_t address;

	memcpy(&address, service->vip, 4);
	return exact_key(address, protocol, port);
}

static int exact_allocate(struct exact_table *table, uint32_t count)
{
	uint64_t rows = 16;

	while (rows < (uint64_t)count * EXACT_SPARSE)
		rows *= 2;
	free(table->rows); /* of a seal that failed */
	table->rows = aligned_alloc(CACHE_LINE, rows * sizeof(*table->rows));
	table->mask = rows - 1;
	table->shift = 64 - (unsigned)__builtin_ctzll(rows);
	return table->rows ? 0 : -ENOMEM;
}

static void exact_clear(struct exact_table *table, uint64_t multiplier)
{
	memset(table->rows, 0, (table->mask + 1) * sizeof(*table->rows));
	table->multiplier = multiplier;
}

/* Puts a row where it belongs; false where its key is there already.  *displaced goes up if its place was taken. */
static bool exact_add(struct exact_table *table, struct exact_row new, uint32_t *displaced)
{
	uint64_t place = exact_place(table, new.key), at = place;

	while (table->rows[at].key) {
		if (table->rows[at].key == new.key)
			return false;
		at = (at + 1) & table->mask;
	}
	*displaced += at != place;
	table->rows[at] = new;
	return true;
}

/* Fills the empty table; false where two services tie.  *displaced: how many are not where the first probe looks. */
static bool exact_fill(struct exact_table *table, struct service *const *services, uint32_t count, uint32_t *displaced)
{
	*displaced = 0;
	for (uint32_t i = 0; i < count; i++) {
		const struct service *service = services[i];
		uint16_t port = htons(service->first_port);

		if (in_exact_table(service) &&
		    !exact_add(table, (struct exact_row){ exact_key_of(service, service->protocol, port), service },
			       displaced))
			return false;
	}
	return true;
}

/*
 * A packet whose service is displaced costs a mispredicted branch, so several multipliers are tried and the best
 * one is kept: with some hundred services there is one that displaces none.
 */
static int exact_build(struct vip_map *map)
{
	uint32_t displaced, fewest = UINT32_MAX, count = map->service_count;
	uint64_t best = 0, multiplier = EXACT_MULTIPLIER;
	int error = exact_allocate(&map->exact, count);

	for (unsigned i = 0; i < EXACT_TRIES && fewest && !error; i++, multiplier *= 0xbf58476d1ce4e5b9u) {
		exact_clear(&map->exact, multiplier);
		if (!exact_fill(&map->exact, map->services, count, &displaced))
			error = -EEXIST;
		if (displaced < fewest) {
			fewest = displaced;
			best = multiplier;
		}
	}
	if (error)
		return error;
	exact_clear(&map->exact, best);
	exact_fill(&map->exact, map->services, count, &displaced);
	return 0;
}

static int exact_build_addresses(struct vip_map *map)
{
	uint32_t ignored = 0;
	int error = exact_allocate(&map->addresses, map->service_count);

	if (error)
		return error;
	exact_clear(&map->addresses, EXACT_MULTIPLIER);
	for (uint32_t i = 0; i < map->service_count; i++)
		if (in_exact_table(map->services[i]))
			exact_add(&map->addresses, (struct exact_row){ exact_key_of(map->services[i], 0, 0), NULL },
				  &ignored);
	return 0;
}

int vip_map_seal(struct vip_map *map)
{
	struct vip_index *index;
	uint64_t rows = 16;
	int error = exact_build(map);

	if (!error)
		error = exact_build_addresses(map);
	if (error)
		return error;
	index = calloc(1, sizeof(*index));
	if (!index)
		return -ENOMEM;
	/* At most two rows a service, and a quarter full: a probe that meets another's row costs a misprediction. */
	while (rows < (uint64_t)map->service_count * 8)
		rows *= 2;
	index->rows = calloc(rows, sizeof(*index->rows));
	index->row_mask = rows - 1;
	if (!index->rows) {
		free(index);
		return -ENOMEM;
	}
	for (uint32_t i = 0; i < map->service_count; i++) {
		error = index_add(map, index, map->services[i]);
		if (error) {
			index_free(index);
			return error;
		}
	}
	map->index = index;
	return 0;
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

static inline struct row_key masked_key(const uint64_t address[2], const struct length *length)
{
	return (struct row_key){ .address = { address[0] & length->mask[0], address[1] & length->mask[1] } };
}

static inline bool in_exact_addresses(const struct vip_map *map, const uint64_t address[2])
{
	return exact_row_at(&map->addresses, exact_key((uint32_t)address[0], 0, 0))->key != 0;
}

/* Looks in the index.  Leaves *is_vip true where it is so already. */
static inline const struct service *index_find(const struct vip_index *index, uint8_t family, const uint64_t address[2],
					       uint8_t protocol, uint16_t port, bool *is_vip)
{
	const struct length *length = index->lengths[family_index(family)];
	const struct length *end = length + index->length_count[family_index(family)];

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

const struct service *vip_map_find_other4(const struct vip_map *map, const uint8_t *destination, uint8_t protocol,
					  uint16_t port, bool *is_vip)
{
	uint64_t address[2];

	load_address(4, destination, address);
	*is_vip = in_exact_addresses(map, address);
	if (LIKELY(!map->index->length_count[0]))
		return NULL;
	return index_find(map->index, 4, address, protocol, port, is_vip);
}

const struct service *vip_map_find(const struct vip_map *map, uint8_t family, const uint8_t *destination,
				   uint8_t protocol, uint16_t port, bool *is_vip)
{
	const struct service *service;
	uint64_t address[2];

	if (family == 4) {
		service = vip_map_find_exact4(map, destination, protocol, port);
		*is_vip = true;
		return service ? service : vip_map_find_other4(map, destination, protocol, port, is_vip);
	}
	load_address(family, destination, address);
	*is_vip = false;
	return index_find(map->index, family, address, protocol, port, is_vip);
}

bool vip_map_contains(const struct vip_map *map, uint8_t family, const uint8_t *address)
{
	const struct vip_index *index = map->index;
	const struct length *length = index->lengths[family_index(family)];
	const struct length *end = length + index->length_count[family_index(family)];
	uint64_t words[2];

	load_address(family, address, words);
	if (family == 4 && in_exact_addresses(map, words))
		return true;
	for (; length < end; length++) {
		struct row_key key = masked_key(words, length);

		key.what = row_what(ROW_VIP, family, length->bits, 0, 0);
		if (row_value(index, &key))
			return true;
	}
	return false;
}
