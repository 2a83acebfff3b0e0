/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the fuzz targets of a whole MUX share: a small snapshot with services of every kind, a second one in which some
 * drain and one is gone, and a MUX that each input finds empty.
 */
#ifndef VIPMUX_FUZZ_WORLD_H
#define VIPMUX_FUZZ_WORLD_H

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "expect.h"
#include "mux/fragments.h"
#include "mux/mux.h"

#define SERVICES 9u
#define BACKENDS 3u
#define HOPS 4u
#define MTU 600u

static const uint8_t vip4[4] = { 203, 0, 113, 10 };
static const uint8_t vip6[16] = { 0x20, 1, 0xd, 0xb8, 0, 0xf, [15] = 0x10 };

static void add_service(struct vip_map *map, uint32_t id, bool changed)
{
	/* family, prefix, protocol, first and last port */
	static const struct {
		uint8_t family, prefix, protocol;
		uint16_t first, last;
	} shapes[SERVICES] = {
		{ 4, 32, 6, 80, 80 },	 { 4, 32, 17, 53, 53 },	  { 4, 32, 6, 8000, 8099 },
		{ 4, 24, 6, 80, 80 },	 { 4, 24, 17, 0, 65535 }, { 6, 128, 6, 80, 80 },
		{ 6, 128, 17, 53, 60 },	 { 6, 64, 6, 0, 65535 },  { 4, 29, 6, 0, 65535 },
	};
	struct backend backends[BACKENDS];
	struct maglev_member members[BACKENDS];
	struct service service = { .id = id,
				   .family = shapes[id].family,
				   .prefix_length = shapes[id].prefix,
				   .protocol = shapes[id].protocol,
				   .first_port = shapes[id].first,
				   .last_port = shapes[id].last,
				   .hash_source = id % 4 == 1,
				   .idle = flow_ticks(60 + id),
				   .mtu = MTU,
				   .backend_count = BACKENDS };

	for (uint32_t b = 0; b < BACKENDS; b++) {
		unsigned state = changed ? (id + b) % 4 : BACKEND_UP;
		unsigned hop = service.family == 4 ? b & 1 : 2 + (b & 1);

		backends[b] = (struct backend){ hop << 2 | state, id * BACKENDS + b };
		members[b] = (struct maglev_member){ id + b, b + 1, state == BACKEND_UP, (uint16_t)b };
	}
	memcpy(service.vip, service.family == 4 ? vip4 : vip6, service.family == 4 ? 4 : 16);
	if (service.prefix_length == 24)
		service.vip[3] = 0;
	else if (service.prefix_length == 29)
		service.vip[3] = 8;
	else if (service.prefix_length == 64)
		service.vip[15] = 0;
	expect(maglev_build(61, members, BACKENDS, &service.maglev) == 0);
	expect(vip_map_add(map, &service, backends) == 0);
	maglev_put(service.maglev);
}

/* Unchanged, either family in itself; changed, a family in the other, over UDP of both variants, and one that is unresolved. */
static void make_hops(bool changed, struct hop_spec hops[HOPS])
{
	static const uint8_t families[2][HOPS] = { { 4, 4, 6, 6 }, { 4, 6, 6, 4 } };
	static const uint8_t tunnels[HOPS] = { TUNNEL_IP, TUNNEL_GUE, TUNNEL_GUE_BARE, TUNNEL_IP };

	memset(hops, 0, HOPS * sizeof(*hops));
	for (uint32_t i = 0; i < HOPS; i++) {
		hops[i].family = families[changed][i];
		hops[i].tunnel = changed ? tunnels[i] : TUNNEL_IP;
		hops[i].port = 6080;
		hops[i].resolved = !changed || i > 0;
		hops[i].ifindex = i;
		memset(hops[i].source, 10, 16);
		memset(hops[i].destination, (int)(20 + i), 16);
	}
}

static struct snapshot *make_snapshot(bool changed)
{
	static const uint8_t seed[16] = "an open secret";
	struct hop_spec hops[HOPS];
	struct snapshot *snapshot;
	struct vip_map *map;

	expect(vip_map_create(seed, flow_ticks(10), &map) == 0);
	for (uint32_t id = 0; id < SERVICES; id++)
		if (!changed || id != 3)
			add_service(map, id, changed);
	expect(vip_map_seal(map) == 0);
	make_hops(changed, hops);
	expect(snapshot_create(map, hops, HOPS, changed, &snapshot) == 0);
	vip_map_put(map);
	return snapshot;
}

/* 0: all is well; 1: backends of every state, a service less, and a hop unresolved. */
static const struct snapshot *snapshot_of(unsigned which)
{
	static struct snapshot *snapshots[2];

	if (!snapshots[0])
		for (unsigned i = 0; i < 2; i++)
			snapshots[i] = make_snapshot(i);
	return snapshots[which];
}

/* The same tables for all inputs, emptied: making one takes longer than most inputs. */
static struct flow_table *empty_table(unsigned which)
{
	static struct flow_table *tables[2], empty[2];
	struct flow_table *table;

	if (!tables[which]) {
		expect(flow_table_create(1, &tables[which]) == 0);
		empty[which] = *tables[which];
	}
	table = tables[which];
	memset(table->lines, 0, table->bytes);
	memset(table->no_room, 0, (table->line_count / 64 + 1) * sizeof(uint64_t));
	*table = empty[which];
	return table;
}

/* A MUX that has seen no packet; with config->flows it has a flow table, as small as there are. */
static void start_mux(struct mux *mux, const struct mux_config *config)
{
	static struct service_counters service_counters[SERVICES];
	static uint64_t backend_counters[SERVICES * BACKENDS];
	static struct mux *made;

	if (!made) {
		struct mux_config plain = { 0 };

		expect(mux_create(&plain, &made) == 0);
	}
	*mux = *made;
	mux->config = *config;
	fragments_expire(mux->fragments, UINT64_MAX); /* what earlier inputs left */
	mux->table = NULL;
	if (config->flows)
		mux_set_table(mux, empty_table(0));
	mux->service_counters = service_counters;
	mux->backend_counters = backend_counters;
}

#endif
