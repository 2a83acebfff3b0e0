/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A service and its backends, as packets read them.  A copy of what the control plane gave, made once, immutable from then
 * on and shared by reference between the maps that have it.  Any thread may get and put.
 */
#ifndef VIPMUX_SERVICE_H
#define VIPMUX_SERVICE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "machine/cpu.h"
#include "flow/flow.h"
#include "services/maglev.h"

struct quic_routes;

#define SERVICE_ID_MAX ((1u << FLOW_SERVICE_BITS) - 1)
#define SERVICE_MTU_MAX 9216u
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
	bool named;            /* packets may name their backend: `quic` is there */
	uint16_t idle;         /* ticks, of trusted flows (TCP) or all flows (UDP) */
	uint16_t mtu;          /* of the underlay to its backends */
	uint8_t vip[16];       /* wire order, host bits zero; IPv4 in the first 4 bytes */
	struct maglev *maglev;
	uint32_t backend_count;
	struct backend *backends;
	uint32_t references;   /* atomic: maps that have it */
	struct quic_routes *quic; /* of UDP; NULL: connection ids mean nothing to it */
};
_Static_assert(offsetof(struct service, references) <= CACHE_LINE, "what a packet reads is in one cache line");

/* Of one IPv4 address and one port. */
static inline bool service_is_exact4(const struct service *service)
{
	return service->family == 4 && service->prefix_length == 32 && service->first_port == service->last_port;
}

/* Of one IPv6 address and one port. */
static inline bool service_is_exact6(const struct service *service)
{
	return service->family == 6 && service->prefix_length == 128 && service->first_port == service->last_port;
}

/*
 * -EINVAL: id, protocol, family, prefix, ports, MTU or number of backends out of range, host bits set, no table, connection ids of
 * TCP.
 */
int service_validate(const struct service *service);

/*
 * A copy of a valid service and of backend_count backends, with its own references of table and connection ids, and
 * whose flow keys are narrow where they can be.  NULL: no memory.
 */
struct service *service_create(const struct service *service, const struct backend *backends);
struct service *service_get(struct service *service);
void service_put(struct service *service);

#endif
