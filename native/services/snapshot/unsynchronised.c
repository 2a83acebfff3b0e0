/* SPDX-License-Identifier: Apache-2.0 */
/* See unsynchronised.h. */
#include "services/snapshot/unsynchronised.h"

#include <arpa/inet.h>
#include <string.h>

/* The hash that chooses the Maglev slot, as far as the slot depends on it. */
static uint64_t slot_hash(const struct vip_map *map, const struct service *service, uint64_t key)
{
	struct flow_tuple tuple = { .protocol = service->protocol, .family = service->family };
	uint32_t source = (uint32_t)key;

	if (!service->narrow)
		return flow_key_name(key) << 16;
	memcpy(tuple.source, &source, 4);
	memcpy(tuple.destination, service->vip, 4);
	tuple.source_port = (uint16_t)(key >> 32);
	tuple.destination_port = htons(service->first_port);
	return flow_tuple_hash(&map->seed, &tuple, service->hash_source);
}

bool flow_is_unsynchronised(const struct vip_map *map, const struct service *service, unsigned backend, uint64_t key,
			 enum flow_class class)
{
	if (backend_state(&service->backends[backend]) == BACKEND_DRAIN)
		return true;
	if (service->hash_source && !service->narrow)
		return class != FLOW_TCP_UNTRUSTED && class != FLOW_UDP_UNTRUSTED;
	return maglev_at(service->maglev, maglev_slot(service->maglev, slot_hash(map, service, key))) != backend;
}
