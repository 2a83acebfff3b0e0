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
#include <stdint.h>

#include "flow.h"
#include "flow_table.h"
#include "maglev.h"

#define SERVICE_ID_MAX ((1u << FLOW_SERVICE_BITS) - 1)
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
};

struct vip_map {
	uint32_t references; /* atomic */
	struct flow_seed seed;
	uint16_t idle_untrusted; /* ticks, TCP */
	uint32_t service_count;
	struct service **services;  /* in the order added */
	struct service **by_id;     /* SERVICE_ID_MAX + 1 pointers; NULL: no such service */
	struct vip_index *index;    /* made by vip_map_seal() */
	uint16_t class_idle[FLOW_CLASSES]; /* the longest of all services, for the flow table's sweep */
};

/* An empty map.  idle_untrusted in ticks.  -ENOMEM. */
int vip_map_create(const uint8_t seed[16], uint16_t idle_untrusted, struct vip_map **out);

/*
 * Adds a service; copies everything and takes its own reference of the table.  Backend numbers index `backends`.
 * -EINVAL: id, protocol, family, prefix or ports out of range, host bits set, id used twice; -ENOMEM.
 */
int vip_map_add(struct vip_map *map, const struct service *service, const struct backend *backends);

/* Builds the index.  -EEXIST: two services tie; -ENOMEM.  Not to be added to afterwards. */
int vip_map_seal(struct vip_map *map);

/* The service of a packet; NULL and *is_vip telling whether the address belongs to a VIP at all.  Ports in wire order. */
const struct service *vip_map_find(const struct vip_map *map, uint8_t family, const uint8_t *destination,
				   uint8_t protocol, uint16_t port, bool *is_vip);

/* Whether an address belongs to a VIP. */
bool vip_map_contains(const struct vip_map *map, uint8_t family, const uint8_t *address);

/* Asks the cache for the line that the first probe for this IPv4 destination will read. */
void vip_map_prefetch4(const struct vip_map *map, const uint8_t *destination, uint8_t protocol, uint16_t port);

struct vip_map *vip_map_get(struct vip_map *map);
void vip_map_put(struct vip_map *map);

#endif
