/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The VIP map: which service a packet belongs to, and that service's backends and Maglev table.  Built aside through
 * vip_map_add(), sealed once, immutable from then on and shared by reference between snapshots.
 *
 * The most specific service wins: longer prefix first, then exact port, port range, any port.
 */
#ifndef VIPMUX_VIP_MAP_H
#define VIPMUX_VIP_MAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cpu.h"
#include "flow.h"
#include "flow_table.h"
#include "maglev.h"

#define SERVICE_ID_MAX ((1u << FLOW_SERVICE_BITS) - 1)
#define SERVICE_MTU_MAX 9216u
#define VIP_MAP_FAR 2048u /* services that a second level cache no longer holds beside all else */
#define COUNTER_MAX (1u << 20) /* (service, backend) pairs that can be counted */

enum backend_state {
	BACKEND_ABSENT = 0, /* this number names no backend (any more) */
	BACKEND_UP = 1,
	BACKEND_DRAIN = 2,
	BACKEND_DOWN = 3,
};

/* A backend of one service, found by its number within the service.  Eight to a cache line. */
struct backend {
	uint32_t place;   /* index into the snapshot's hops << 2 | enum backend_state */
	uint32_t counter; /* index into a worker's backend counters */
};

static inline uint32_t backend_hop(const struct backend *backend)
{
	return backend->place >> 2;
}

static inline enum backend_state backend_state(const struct backend *backend)
{
	return (enum backend_state)(backend->place & 3);
}

struct service {
	uint32_t id;           /* stable name of the service in flow keys and counters, 0 to SERVICE_ID_MAX */
	uint16_t first_port;   /* host order */
	uint16_t last_port;
	uint8_t protocol;
	uint8_t family;        /* 4 or 6 */
	uint8_t prefix_length;
	bool hash_source;      /* slot by source address only */
	bool narrow;           /* its flow keys are exact, see flow_key_narrow() */
	uint16_t idle;         /* ticks, of trusted flows (TCP) or all flows (UDP) */
	uint16_t mtu;          /* of the underlay to its backends */
	uint8_t vip[16];       /* wire order, host bits zero; IPv4 in the first 4 bytes */
	struct maglev *maglev;
	uint32_t backend_count;
	struct backend *backends;
	uint32_t references;   /* atomic: maps that have it */
};
_Static_assert(offsetof(struct service, references) <= CACHE_LINE, "what a packet reads is in one cache line");

/*
 * IPv4 services of one address and one port, which most are.  None is more specific, so they are looked for first; the
 * table is open-addressed and nearly empty, so that the first probe tells.  Their addresses are in another of its kind.
 */
struct exact_row {
	uint64_t key; /* see exact_key(); 0: empty */
	union {
		const struct service *service;
		uint64_t services; /* of an address, how many */
	};
};

struct exact_table {
	struct exact_row *rows;
	uint64_t multiplier;
	uint64_t mask;
	unsigned shift; /* the product's highest bits are the place: they depend on all of the key */
};

struct vip_map {
	uint32_t references; /* atomic */
	uint64_t serial; /* 0 of the first map, one more of each that was made by changing it */
	struct flow_seed seed;
	uint16_t idle_untrusted; /* ticks, TCP */
	uint32_t service_count;
	struct service **services;  /* in the order added */
	struct service **by_id;     /* SERVICE_ID_MAX + 1 pointers; NULL: no such service */
	struct exact_table exact;   /* these three are made by vip_map_seal() */
	struct exact_table addresses;
	struct vip_index *index;    /* shared with other maps, as services are */
	uint32_t indexed;           /* so many of the services were there before: they are in the tables and the index */
	bool sealed;
	uint16_t class_idle[FLOW_IDLES]; /* the longest of all services, for the flow table's sweep */
};

/* An empty map.  idle_untrusted in ticks.  -ENOMEM. */
int vip_map_create(const uint8_t seed[16], uint16_t idle_untrusted, struct vip_map **out);

/*
 * A map to be added to and sealed, that begins with what a sealed one has, without the services of these ids.  It shares
 * what it can: services, and the index where no service of it goes.  -EINVAL: one is not there; -ENOMEM.
 */
int vip_map_change(const struct vip_map *before, const uint32_t *gone, uint32_t gone_count, struct vip_map **out);

/*
 * Adds a service; copies everything and takes its own reference of the table.  Backend numbers index `backends`.
 * -EINVAL: id, protocol, family, prefix, ports or MTU out of range, host bits set, id used twice; -ENOMEM.
 */
int vip_map_add(struct vip_map *map, const struct service *service, const struct backend *backends);

/* Builds the index.  -EEXIST: two services tie; -ENOMEM.  Either way not to be added to afterwards. */
int vip_map_seal(struct vip_map *map);

/* The service of a packet; NULL and *is_vip telling whether the address belongs to a VIP at all.  Ports in wire order. */
const struct service *vip_map_find(const struct vip_map *map, uint8_t family, const uint8_t *destination,
				   uint8_t protocol, uint16_t port, bool *is_vip);

/* Whether an address belongs to a VIP. */
bool vip_map_contains(const struct vip_map *map, uint8_t family, const uint8_t *address);

/* address as it lies in memory, port in wire order; protocol and port 0 name the address itself */
static inline uint64_t exact_key(uint32_t address, uint8_t protocol, uint16_t port)
{
	return (uint64_t)address << 32 | (uint64_t)protocol << 16 | port;
}

/* Not keyed: what is stored comes from the operator, a client only asks. */
static inline uint64_t exact_place(const struct exact_table *table, uint64_t key)
{
	return key * table->multiplier >> table->shift;
}

static inline const struct exact_row *exact_row_at(const struct exact_table *table, uint64_t key)
{
	uint64_t at = exact_place(table, key);

	while (UNLIKELY(table->rows[at].key != key) && table->rows[at].key)
		at = (at + 1) & table->mask;
	return &table->rows[at];
}

/* The IPv4 service of exactly this address and port; NULL says nothing about the others that vip_map_find() knows. */
static inline const struct service *vip_map_find_exact4(const struct vip_map *map, const uint8_t *destination,
							uint8_t protocol, uint16_t port)
{
	uint32_t address;

	memcpy(&address, destination, 4);
	return exact_row_at(&map->exact, exact_key(address, protocol, port))->service;
}

/*
 * With many services row and service are in no near cache.  Whoever has several packets asks for the rows of all, then for
 * the services that these name, and finds both there: vip_map_is_far() says whether that is worth while.
 */
static inline bool vip_map_is_far(const struct vip_map *map)
{
	return map->service_count >= VIP_MAP_FAR;
}

static inline const struct exact_row *vip_map_first_row4(const struct vip_map *map, const uint8_t *destination,
							 uint8_t protocol, uint16_t port)
{
	uint32_t address;

	memcpy(&address, destination, 4);
	return &map->exact.rows[exact_place(&map->exact, exact_key(address, protocol, port))];
}

/* vip_map_find() for IPv4, where vip_map_find_exact4() found nothing. */
const struct service *vip_map_find_other4(const struct vip_map *map, const uint8_t *destination, uint8_t protocol,
					  uint16_t port, bool *is_vip);

static inline uint64_t vip_map_serial(const struct vip_map *map)
{
	return map->serial;
}

struct vip_map *vip_map_get(struct vip_map *map);
void vip_map_put(struct vip_map *map);

#endif
