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

/*
 * Rows per service: many, so that the first probe tells and no branch is mispredicted, as long as the table stays in a second
 * level cache beside all else; few where it would not, for then each probe waits for memory.
 */
#define EXACT_SPARSE 16
#define EXACT_SPARSE_MIN 2
#define EXACT_ROWS_CACHED 16384u /* 256 KiB */
#define ADDRESS_SPARSE 4 /* of addresses: asked for packets to a port that no service has */
#define ROWS_MIN 16
#define SHRINK 4 /* a table so many times larger than it need be is made anew */
#define EXACT_TRIES 32
#define EXACT_MULTIPLIER 0x9e3779b97f4a7c15u

enum row_kind { ROW_EXACT = 1, ROW_RANGES = 2, ROW_VIP = 3 };

struct row_key {
	uint64_t address[2]; /* masked, as it lies in memory */
	uint64_t what;       /* kind, family, prefix length, protocol, port; never 0 */
};

struct row {
	struct row_key key;
	void *value; /* EXACT: struct service; RANGES: struct ranges; VIP: the index itself */
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
	uint32_t references; /* atomic */
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

static int allocate(struct vip_map **out)
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
	*out = map;
	return 0;
}

int vip_map_create(const uint8_t seed[16], uint16_t idle_untrusted, struct vip_map **out)
{
	int error = allocate(out);

	if (error)
		return error;
	(*out)->idle_untrusted = idle_untrusted;
	(*out)->class_idle[FLOW_TCP_UNTRUSTED] = idle_untrusted;
	flow_seed_init(&(*out)->seed, seed);
	return 0;
}

static void index_put(struct vip_index *index)
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
	free(index->rows);
	free(index);
}

static struct service *service_get(struct service *service)
{
	__atomic_fetch_add(&service->references, 1, __ATOMIC_RELAXED);
	return service;
}

static void service_put(struct service *service)
{
	if (__atomic_sub_fetch(&service->references, 1, __ATOMIC_ACQ_REL))
		return;
	maglev_put(service->maglev);
	free(service);
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
	index_put(map->index);
	free(map->addresses.rows);
	free(map->exact.rows);
	for (uint32_t i = 0; i < map->service_count; i++)
		service_put(map->services[i]);
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

static void note_longer(uint16_t *longest, uint16_t idle)
{
	if (idle > *longest)
		*longest = idle;
}

static void note_idle(struct vip_map *map, const struct service *service)
{
	if (service->protocol == 6) {
		note_longer(&map->class_idle[FLOW_TCP_TRUSTED], service->idle);
	} else {
		note_longer(&map->class_idle[FLOW_UDP_TRUSTED], service->idle);
		note_longer(&map->class_idle[FLOW_UDP_UNTRUSTED], service->idle);
	}
}

/* Services are kept in an array whose size is the next power of two. */
static size_t room_for(uint32_t count)
{
	size_t room = 1;

	while (room < count)
		room *= 2;
	return room;
}

int vip_map_add(struct vip_map *map, const struct service *service, const struct backend *backends)
{
	struct service **grown, *copy;
	size_t size;

	if (map->sealed || !service_valid(map, service))
		return -EINVAL;
	if ((map->service_count & (map->service_count - 1)) == 0) {
		grown = realloc(map->services, room_for(map->service_count + 1) * sizeof(*grown));
		if (!grown)
			return -ENOMEM;
		map->services = grown;
	}
	/* What a packet reads of it is in its first line. */
	size = sizeof(*copy) + service->backend_count * sizeof(*backends);
	copy = aligned_alloc(CACHE_LINE, (size + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE);
	if (!copy)
		return -ENOMEM;
	*copy = *service;
	copy->backends = (struct backend *)(copy + 1);
	if (service->backend_count)
		memcpy(copy->backends, backends, service->backend_count * sizeof(*backends));
	copy->narrow = service->family == 4 && service->prefix_length == 32 &&
		       service->first_port == service->last_port;
	maglev_get(copy->maglev);
	copy->references = 1;
	map->services[map->service_count++] = copy;
	map->by_id[copy->id] = copy;
	note_idle(map, copy);
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

static int index_add(struct vip_index *index, struct service *service)
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
	row->value = index;

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

static uint64_t exact_rows_for(uint32_t count, uint32_t sparse)
{
	uint64_t rows = ROWS_MIN;

	while (rows < (uint64_t)count * sparse && (rows < EXACT_ROWS_CACHED || rows < (uint64_t)count * EXACT_SPARSE_MIN))
		rows *= 2;
	return rows;
}

static int exact_allocate(struct exact_table *table, uint64_t rows)
{
	free(table->rows);
	table->mask = rows - 1;
	table->rows = aligned_alloc(CACHE_LINE, rows * sizeof(*table->rows));
	table->shift = 64 - (unsigned)__builtin_ctzll(rows);
	return table->rows ? 0 : -ENOMEM;
}

static int exact_copy(struct exact_table *table, const struct exact_table *from)
{
	int error = exact_allocate(table, from->mask + 1);

	if (error)
		return error;
	memcpy(table->rows, from->rows, (from->mask + 1) * sizeof(*from->rows));
	table->multiplier = from->multiplier;
	return 0;
}

/* Whether the table serves so many services as well as a new one would, or nearly. */
static bool exact_fits(const struct exact_table *table, uint32_t count, uint32_t sparse)
{
	uint64_t best = exact_rows_for(count, sparse), rows = table->mask + 1;

	return table->rows && rows >= best && rows <= best * SHRINK;
}

static void exact_clear(struct exact_table *table, uint64_t multiplier)
{
	memset(table->rows, 0, (table->mask + 1) * sizeof(*table->rows));
	table->multiplier = multiplier;
}

/* The row with this key, or the empty one where it goes.  *displaced goes up if that is not where the first probe looks. */
static struct exact_row *exact_row_for(struct exact_table *table, uint64_t key, uint32_t *displaced)
{
	uint64_t place = exact_place(table, key), at = place;

	while (table->rows[at].key && table->rows[at].key != key)
		at = (at + 1) & table->mask;
	*displaced += at != place;
	return &table->rows[at];
}

/* Rows behind the hole, up to the next empty one, move into it where a probe for them comes by. */
static void exact_remove(struct exact_table *table, struct exact_row *row)
{
	uint64_t hole = (uint64_t)(row - table->rows), at = hole;

	for (;;) {
		at = (at + 1) & table->mask;
		if (!table->rows[at].key)
			break;
		if (((at - exact_place(table, table->rows[at].key)) & table->mask) < ((at - hole) & table->mask))
			continue;
		table->rows[hole] = table->rows[at];
		hole = at;
	}
	table->rows[hole] = (struct exact_row){ 0 };
}

static uint64_t service_exact_key(const struct service *service)
{
	return exact_key_of(service, service->protocol, htons(service->first_port));
}

/* Adds those from `first` on; false where two services tie. */
static bool exact_fill(struct exact_table *table, struct service *const *services, uint32_t first, uint32_t count,
		       uint32_t *displaced)
{
	*displaced = 0;
	for (uint32_t i = first; i < count; i++) {
		struct exact_row *row;

		if (!in_exact_table(services[i]))
			continue;
		row = exact_row_for(table, service_exact_key(services[i]), displaced);
		if (row->key)
			return false;
		*row = (struct exact_row){ service_exact_key(services[i]), { services[i] } };
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
	int error = exact_allocate(&map->exact, exact_rows_for(count, EXACT_SPARSE));

	for (unsigned i = 0; i < EXACT_TRIES && fewest && !error; i++, multiplier *= 0xbf58476d1ce4e5b9u) {
		exact_clear(&map->exact, multiplier);
		if (!exact_fill(&map->exact, map->services, 0, count, &displaced))
			error = -EEXIST;
		if (displaced < fewest) {
			fewest = displaced;
			best = multiplier;
		}
	}
	if (error)
		return error;
	exact_clear(&map->exact, best);
	exact_fill(&map->exact, map->services, 0, count, &displaced);
	return 0;
}

static void addresses_add(struct exact_table *table, const struct service *service)
{
	uint64_t key = exact_key_of(service, 0, 0);
	uint32_t ignored = 0;
	struct exact_row *row;

	if (!in_exact_table(service))
		return;
	row = exact_row_for(table, key, &ignored);
	row->key = key;
	row->services++;
}

static void addresses_remove(struct exact_table *table, const struct service *service)
{
	uint32_t ignored = 0;
	struct exact_row *row = exact_row_for(table, exact_key_of(service, 0, 0), &ignored);

	if (!--row->services)
		exact_remove(table, row);
}

/* Both tables with the services that were added; made anew where they are too small or far too large. */
static int seal_tables(struct vip_map *map)
{
	uint32_t ignored, first = map->indexed, count = map->service_count;
	int error = 0;

	if (!exact_fits(&map->exact, count, EXACT_SPARSE))
		error = exact_build(map);
	else if (!exact_fill(&map->exact, map->services, first, count, &ignored))
		error = -EEXIST;
	if (error)
		return error;
	if (!exact_fits(&map->addresses, count, ADDRESS_SPARSE)) {
		error = exact_allocate(&map->addresses, exact_rows_for(count, ADDRESS_SPARSE));
		if (error)
			return error;
		exact_clear(&map->addresses, EXACT_MULTIPLIER);
		first = 0;
	}
	for (uint32_t i = first; i < count; i++)
		addresses_add(&map->addresses, map->services[i]);
	return 0;
}

static int index_build(const struct vip_map *map, struct vip_index **out)
{
	struct vip_index *index = calloc(1, sizeof(*index));
	uint32_t count = 0;
	uint64_t rows = ROWS_MIN;
	int error = 0;

	if (!index)
		return -ENOMEM;
	index->references = 1;
	for (uint32_t i = 0; i < map->service_count; i++)
		count += !in_exact_table(map->services[i]);
	/* At most two rows a service, and a quarter full: a probe that meets another's row costs a misprediction. */
	while (rows < (uint64_t)count * 8)
		rows *= 2;
	index->rows = calloc(rows, sizeof(*index->rows));
	index->row_mask = rows - 1;
	if (!index->rows)
		error = -ENOMEM;
	for (uint32_t i = 0; i < map->service_count && !error; i++)
		error = index_add(index, map->services[i]);
	if (error)
		index_put(index);
	else
		*out = index;
	return error;
}

int vip_map_seal(struct vip_map *map)
{
	int error;

	if (map->sealed)
		return -EINVAL;
	map->sealed = true; /* where this fails there is no index, and the map is good for nothing but being put */
	error = seal_tables(map);
	for (uint32_t i = map->indexed; i < map->service_count && map->index; i++) {
		if (in_exact_table(map->services[i]))
			continue;
		index_put(map->index);
		map->index = NULL;
	}
	if (!error && !map->index)
		error = index_build(map, &map->index);
	if (error) {
		index_put(map->index);
		map->index = NULL;
	}
	return error;
}

/* ---- change ---- */

static int remove_service(struct vip_map *map, uint32_t id)
{
	struct service *service = id <= SERVICE_ID_MAX ? map->by_id[id] : NULL;
	uint32_t ignored = 0;

	if (!service)
		return -EINVAL;
	map->by_id[id] = NULL;
	if (in_exact_table(service)) {
		exact_remove(&map->exact, exact_row_for(&map->exact, service_exact_key(service), &ignored));
		addresses_remove(&map->addresses, service);
	} else {
		index_put(map->index);
		map->index = NULL;
	}
	return 0;
}

static int copy_tables(struct vip_map *map, const struct vip_map *before)
{
	int error = exact_copy(&map->exact, &before->exact);

	if (!error)
		error = exact_copy(&map->addresses, &before->addresses);
	if (!error) {
		map->index = before->index;
		__atomic_fetch_add(&map->index->references, 1, __ATOMIC_RELAXED);
		memcpy(map->by_id, before->by_id, (SERVICE_ID_MAX + 1) * sizeof(*map->by_id));
	}
	return error;
}

static int keep_services(struct vip_map *map, const struct vip_map *before)
{
	map->services = malloc(room_for(before->service_count) * sizeof(*map->services));
	if (!map->services)
		return -ENOMEM;
	for (uint32_t i = 0; i < before->service_count; i++) {
		struct service *service = before->services[i];

		if (!map->by_id[service->id])
			continue;
		map->services[map->service_count++] = service_get(service);
		note_idle(map, service);
	}
	map->indexed = map->service_count;
	return 0;
}

int vip_map_change(const struct vip_map *before, const uint32_t *gone, uint32_t gone_count, struct vip_map **out)
{
	struct vip_map *map;
	int error;

	if (!before->sealed || !before->index)
		return -EINVAL;
	error = allocate(&map);
	if (error)
		return error;
	map->seed = before->seed;
	map->idle_untrusted = before->idle_untrusted;
	map->class_idle[FLOW_TCP_UNTRUSTED] = before->idle_untrusted;
	map->serial = before->serial + 1;
	error = copy_tables(map, before);
	for (uint32_t i = 0; i < gone_count && !error; i++)
		error = remove_service(map, gone[i]);
	if (!error)
		error = keep_services(map, before);
	if (error)
		vip_map_put(map);
	else
		*out = map;
	return error;
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
