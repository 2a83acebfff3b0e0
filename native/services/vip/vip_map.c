/* SPDX-License-Identifier: Apache-2.0 */
#include "services/vip/vip_map.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "machine/cpu.h"
#include "services/vip/vip_index.h"

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

struct vip_map *vip_map_get(struct vip_map *map)
{
	__atomic_fetch_add(&map->references, 1, __ATOMIC_RELAXED);
	return map;
}

void vip_map_put(struct vip_map *map)
{
	if (!map || __atomic_sub_fetch(&map->references, 1, __ATOMIC_ACQ_REL))
		return;
	vip_index_put(map->index);
	exact4_table_free(&map->addresses);
	exact4_table_free(&map->exact);
	for (uint32_t i = 0; i < map->service_count; i++)
		service_put(map->services[i]);
	free(map->services);
	free(map->by_id);
	free(map);
}

/* ---- add ---- */

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

	if (map->sealed || service_validate(service) || map->by_id[service->id])
		return -EINVAL;
	if ((map->service_count & (map->service_count - 1)) == 0) {
		grown = realloc(map->services, room_for(map->service_count + 1) * sizeof(*grown));
		if (!grown)
			return -ENOMEM;
		map->services = grown;
	}
	copy = service_create(service, backends);
	if (!copy)
		return -ENOMEM;
	map->services[map->service_count++] = copy;
	map->by_id[copy->id] = copy;
	note_idle(map, copy);
	map->named |= copy->named;
	return 0;
}

/* ---- seal ---- */

int vip_map_seal(struct vip_map *map)
{
	int error;

	if (map->sealed)
		return -EINVAL;
	map->sealed = true; /* where this fails there is no index, and the map is good for nothing but being put */
	error = exact_services_add(&map->exact, map->services, map->indexed, map->service_count);
	if (!error)
		error = exact_addresses_add(&map->addresses, map->services, map->indexed, map->service_count);
	for (uint32_t i = map->indexed; i < map->service_count && map->index; i++) {
		if (service_is_exact4(map->services[i]))
			continue;
		vip_index_put(map->index);
		map->index = NULL;
	}
	if (!error && !map->index)
		error = vip_index_build(map->services, map->service_count, &map->index);
	if (error) {
		vip_index_put(map->index);
		map->index = NULL;
	}
	return error;
}

/* ---- change ---- */

static int remove_service(struct vip_map *map, uint32_t id)
{
	struct service *service = id <= SERVICE_ID_MAX ? map->by_id[id] : NULL;

	if (!service)
		return -EINVAL;
	map->by_id[id] = NULL;
	if (service_is_exact4(service)) {
		exact_services_remove(&map->exact, service);
		exact_addresses_remove(&map->addresses, service);
	} else {
		vip_index_put(map->index);
		map->index = NULL;
	}
	return 0;
}

static int copy_tables(struct vip_map *map, const struct vip_map *before)
{
	int error = exact4_table_copy(&map->exact, &before->exact);

	if (!error)
		error = exact4_table_copy(&map->addresses, &before->addresses);
	if (!error) {
		map->index = vip_index_get(before->index);
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
		map->named |= service->named;
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

const struct service *vip_map_find_other4(const struct vip_map *map, const uint8_t *destination, uint8_t protocol,
					  uint16_t port, bool *is_vip)
{
	*is_vip = exact_addresses_contain(&map->addresses, destination);
	if (LIKELY(vip_index_is_empty(map->index, 4)))
		return NULL;
	return vip_index_find_other(map->index, 4, destination, protocol, port, is_vip);
}

const struct service *vip_map_find_other6(const struct vip_map *map, const uint8_t *destination, uint8_t protocol,
					  uint16_t port, bool *is_vip)
{
	*is_vip = false;
	return vip_index_find_other(map->index, 6, destination, protocol, port, is_vip);
}

const struct service *vip_map_find(const struct vip_map *map, uint8_t family, const uint8_t *destination,
				   uint8_t protocol, uint16_t port, bool *is_vip)
{
	const struct service *service;

	*is_vip = true;
	if (family == 4) {
		service = vip_map_find_exact4(map, destination, protocol, port);
		return service ? service : vip_map_find_other4(map, destination, protocol, port, is_vip);
	}
	service = vip_map_find_exact6(map, destination, protocol, port);
	return service ? service : vip_map_find_other6(map, destination, protocol, port, is_vip);
}

bool vip_map_contains(const struct vip_map *map, uint8_t family, const uint8_t *address)
{
	if (family == 4 && exact_addresses_contain(&map->addresses, address))
		return true;
	return vip_index_contains(map->index, family, address);
}
