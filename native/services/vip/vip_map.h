/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The VIP map: which service a packet belongs to, and that service's backends and Maglev table.  Built aside through
 * vip_map_add(), sealed once, immutable from then on and shared by reference between snapshots.
 *
 * The most specific service wins: longer prefix first, then exact port, port range, any port.  IPv4 services of one address
 * and port are in the exact table (exact4_table.h), all others in the index (vip_index.h), which has a table of its own for
 * those of IPv6 (exact6_table.h).
 */
#ifndef VIPMUX_VIP_MAP_H
#define VIPMUX_VIP_MAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "flow/flow.h"
#include "flow/flow_table.h"
#include "services/vip/exact4_table.h"
#include "services/service.h"
#include "services/vip/vip_index.h"

#define VIP_MAP_FAR 2048u /* services that a second level cache no longer holds beside all else */

struct vip_map {
	uint32_t references; /* atomic */
	uint64_t serial; /* 0 of the first map, one more of each that was made by changing it */
	struct flow_seed seed;
	uint16_t idle_untrusted; /* ticks, TCP */
	uint32_t service_count;
	struct service **services;  /* in the order added */
	struct service **by_id;     /* SERVICE_ID_MAX + 1 pointers; NULL: no such service */
	struct exact4_table exact;   /* these three are made by vip_map_seal() */
	struct exact4_table addresses;
	struct vip_index *index;    /* shared with other maps, as services are */
	uint32_t indexed;           /* so many of the services were there before: they are in the tables and the index */
	bool sealed;
	bool named; /* a service has connection ids that name backends */
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

/* The IPv4 service of exactly this address and port; NULL says nothing about the others that vip_map_find() knows. */
static inline const struct service *vip_map_find_exact4(const struct vip_map *map, const uint8_t *destination,
							uint8_t protocol, uint16_t port)
{
	return exact4_table_find(&map->exact, destination, protocol, port);
}

/* The IPv6 service of exactly this address and port; NULL says nothing about the others that vip_map_find() knows. */
static inline const struct service *vip_map_find_exact6(const struct vip_map *map, const uint8_t *destination,
							uint8_t protocol, uint16_t port)
{
	return vip_index_find_exact6(map->index, destination, protocol, port);
}

/*
 * With many services row and service are in no near cache.  Whoever has several packets asks for the rows of all, then for
 * the services that these name, and finds both there: vip_map_is_far() says whether that is worth while.
 */
static inline bool vip_map_is_far(const struct vip_map *map)
{
	return map->service_count >= VIP_MAP_FAR;
}

/* Whether all services of IPv4 are in the exact table: what that and its addresses do not know is nobody's. */
static inline bool vip_map_is_exact4(const struct vip_map *map)
{
	return vip_index_is_empty(map->index, 4);
}

/* vip_map_find() for IPv4, where vip_map_find_exact4() found nothing. */
const struct service *vip_map_find_other4(const struct vip_map *map, const uint8_t *destination, uint8_t protocol,
					  uint16_t port, bool *is_vip);

/* The same for IPv6, where vip_map_find_exact6() found nothing. */
const struct service *vip_map_find_other6(const struct vip_map *map, const uint8_t *destination, uint8_t protocol,
					  uint16_t port, bool *is_vip);

static inline uint64_t vip_map_serial(const struct vip_map *map)
{
	return map->serial;
}

struct vip_map *vip_map_get(struct vip_map *map);
void vip_map_put(struct vip_map *map);

#endif
