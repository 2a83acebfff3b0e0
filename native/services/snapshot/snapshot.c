/* SPDX-License-Identifier: Apache-2.0 */
/* See snapshot.h. */
#include "services/snapshot/snapshot.h"

#include <errno.h>
#include <stdlib.h>

#include "services/snapshot/encap.h"

static bool hops_exist(const struct vip_map *map, const struct hop_spec *hops, uint32_t count)
{
	for (uint32_t i = 0; i < count; i++)
		if (hops[i].tunnel > TUNNEL_GUE_BARE || (hops[i].tunnel != TUNNEL_IP && !hops[i].port))
			return false;
	for (uint32_t i = 0; i < map->service_count; i++) {
		const struct service *service = map->services[i];

		for (uint32_t b = 0; b < service->backend_count; b++) {
			const struct backend *backend = &service->backends[b];

			if (backend_state(backend) == BACKEND_ABSENT)
				continue;
			if (backend_hop(backend) >= count || backend->counter >= COUNTER_MAX)
				return false;
		}
	}
	return true;
}

static void note_end(struct snapshot *snapshot, uint8_t family, const uint8_t *address)
{
	uint32_t bit = snapshot_end_bit(family, address);

	snapshot->ends[bit / 64] |= 1ull << bit % 64;
}

int snapshot_create(struct vip_map *map, const struct hop_spec *hops, uint32_t count, uint64_t generation,
		    struct snapshot **out)
{
	struct snapshot *snapshot;

	if (!map->sealed || !map->index || !hops_exist(map, hops, count))
		return -EINVAL;
	snapshot = calloc(1, sizeof(*snapshot));
	if (!snapshot)
		return -ENOMEM;
	snapshot->hops = aligned_alloc(CACHE_LINE, (count ? count : 1) * sizeof(struct hop));
	snapshot->rests = calloc(count ? count : 1, sizeof(struct hop_rest));
	if (!snapshot->hops || !snapshot->rests) {
		free(snapshot->hops);
		free(snapshot->rests);
		free(snapshot);
		return -ENOMEM;
	}
	snapshot->references = 1;
	snapshot->generation = generation;
	snapshot->hop_count = count;
	snapshot->map = vip_map_get(map);
	for (uint32_t i = 0; i < count; i++) {
		encap_prepare(&snapshot->hops[i], &hops[i]);
		note_end(snapshot, hops[i].family, hops[i].source);
		note_end(snapshot, hops[i].family, hops[i].destination);
		snapshot->rests[i] = (struct hop_rest){ .port = hops[i].port, .mtu = hops[i].mtu };
	}
	*out = snapshot;
	return 0;
}

struct snapshot *snapshot_get(struct snapshot *snapshot)
{
	__atomic_fetch_add(&snapshot->references, 1, __ATOMIC_RELAXED);
	return snapshot;
}

void snapshot_put(struct snapshot *snapshot)
{
	if (!snapshot || __atomic_sub_fetch(&snapshot->references, 1, __ATOMIC_ACQ_REL))
		return;
	vip_map_put(snapshot->map);
	free(snapshot->hops);
	free(snapshot->rests);
	free(snapshot);
}
