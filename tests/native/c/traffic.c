/* SPDX-License-Identifier: Apache-2.0 */
/* See traffic.h. */
#include "traffic.h"

#include <arpa/inet.h>
#include <stdlib.h>
#include <string.h>

#include "packet/packet.h"

#define BACKENDS_OF_ALL 64u /* hops: half of each family */
#define CROWD4 2100u
#define CROWD6 300u
#define CROWDED_LINES 1024u /* of 65,536, see flood_client() */

uint64_t traffic_random(struct traffic *traffic)
{
	uint64_t x = traffic->chance += 0x9e3779b97f4a7c15;

	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
	x = (x ^ x >> 27) * 0x94d049bb133111eb;
	return x ^ x >> 31;
}

/* Of so many, one. */
static bool one_in(struct traffic *traffic, uint32_t many)
{
	return traffic_below(traffic, many) == 0;
}

static void put16(uint8_t *p, uint32_t value)
{
	p[0] = (uint8_t)(value >> 8);
	p[1] = (uint8_t)value;
}

static void put32(uint8_t *p, uint32_t value)
{
	put16(p, value >> 16);
	put16(p + 2, value);
}

/* ---- the world ---- */

/* family, prefix, protocol, first and last port, by source, idle in seconds, MTU, how the address ends */
static const struct {
	uint8_t family, prefix, protocol;
	uint16_t first, last;
	bool by_source;
	uint16_t idle, mtu;
	uint8_t ends[2];
} shapes[] = {
	{ 4, 32, 6, 80, 80, false, 300, 1500, { 113, 10 } },	 { 4, 32, 6, 443, 443, true, 60, 1500, { 113, 10 } },
	{ 4, 32, 17, 53, 53, false, 30, 1500, { 113, 10 } },	 { 4, 32, 17, 443, 443, true, 20, 9000, { 113, 10 } },
	{ 4, 32, 6, 8000, 8099, false, 90, 1400, { 113, 10 } },	 { 4, 32, 6, 0, 65535, false, 40, 600, { 113, 11 } },
	{ 4, 32, 6, 22, 22, false, 900, 1500, { 113, 11 } },	 { 4, 24, 6, 80, 80, false, 120, 1500, { 113, 0 } },
	{ 4, 24, 17, 0, 65535, true, 60, 1500, { 113, 0 } },	 { 4, 29, 6, 0, 65535, true, 60, 576, { 113, 8 } },
	{ 4, 16, 6, 1, 1023, false, 60, 1500, { 0, 0 } },	 { 4, 32, 17, 0, 65535, false, 45, 68, { 113, 12 } },
	{ 4, 32, 6, 0, 0, false, 45, 1500, { 113, 10 } },	 { 4, 32, 6, 65535, 65535, false, 45, 1500, { 113, 10 } },
	{ 6, 128, 6, 80, 80, false, 300, 1500, { 0, 0x10 } },	 { 6, 128, 6, 443, 443, true, 60, 1500, { 0, 0x10 } },
	{ 6, 128, 17, 53, 53, false, 30, 1500, { 0, 0x10 } },	 { 6, 128, 17, 1000, 1999, false, 30, 1400, { 0, 0x10 } },
	{ 6, 128, 6, 80, 80, false, 200, 1500, { 1, 0x10 } },	 { 6, 64, 6, 0, 65535, false, 100, 1280, { 0, 0 } },
	{ 6, 64, 17, 0, 65535, true, 100, 9000, { 0, 0 } },	 { 6, 120, 6, 80, 80, false, 100, 1500, { 0, 0 } },
	{ 6, 128, 6, 0, 0, false, 100, 40, { 0, 0x11 } },
};
#define SHAPES (sizeof(shapes) / sizeof(shapes[0]))

static const uint8_t seed_bytes[16] = "an open secret";

static void crowd_service(struct plain_service *service, uint32_t n)
{
	service->family = n < CROWD4 ? 4 : 6;
	service->prefix = n < CROWD4 ? 32 : 128;
	service->protocol = n % 3 ? 6 : 17;
	service->first = service->last = (uint16_t)(n % 5 ? 80 : 1 + n);
	service->idle = flow_ticks(60);
	service->mtu = 1500;
	if (service->family == 4) {
		service->vip[0] = 198;
		service->vip[1] = 18;
		put16(service->vip + 2, n / 2 * 5);
		service->first = service->last = (uint16_t)(service->first + n % 2);
	} else {
		memcpy(service->vip, (uint8_t[]){ 0x20, 1, 0xd, 0xb8, 0, 0xe }, 6);
		put16(service->vip + 14, n);
	}
}

static void shaped_service(const struct traffic *traffic, struct plain_service *service, uint32_t n)
{
	service->family = shapes[n].family;
	service->prefix = shapes[n].prefix;
	service->protocol = shapes[n].protocol;
	service->first = shapes[n].first;
	service->last = shapes[n].last;
	service->hash_source = shapes[n].by_source;
	service->idle = flow_ticks(shapes[n].idle);
	service->mtu = shapes[n].mtu;
	if (traffic->exact && service->family == 4) {
		service->prefix = 32;
		service->last = service->first;
	}
	if (service->family == 4) {
		memcpy(service->vip, (uint8_t[]){ 203, 0, shapes[n].ends[0], shapes[n].ends[1] }, 4);
	} else {
		memcpy(service->vip, (uint8_t[]){ 0x20, 1, 0xd, 0xb8, 0, 0xf }, 6);
		memcpy(service->vip + 14, shapes[n].ends, 2);
	}
}

/* The same table as if a backend's number did not fit into a byte: so the pipeline meets both kinds. */
static struct maglev *widened(struct maglev *narrow)
{
	struct maglev *table = malloc(sizeof(*table) + 2 * (size_t)narrow->size);

	if (!table)
		abort();
	*table = (struct maglev){ .references = 1, .size = narrow->size, .wide = true };
	for (uint32_t slot = 0; slot < narrow->size; slot++) {
		uint16_t backend = narrow->slots[slot] == MAGLEV_NONE_NARROW ? MAGLEV_NONE : narrow->slots[slot];

		memcpy(table->slots + 2 * (size_t)slot, &backend, 2);
	}
	maglev_put(narrow);
	return table;
}

/* Other backends, or others' states; mostly all is well. */
static void give_backends(struct traffic *traffic, struct plain_service *service)
{
	struct maglev_member members[PLAIN_BACKENDS];
	bool flooded = traffic->flood && service->id == 0, troubled = !flooded && one_in(traffic, 2);
	bool none = !flooded && one_in(traffic, 20), leaving = !flooded && one_in(traffic, 12);

	service->count = !flooded && one_in(traffic, 24) ? 0 : 1 + traffic_below(traffic, PLAIN_BACKENDS);
	for (uint32_t b = 0; b < service->count; b++) {
		uint32_t state = troubled && one_in(traffic, 3) ? traffic_below(traffic, 4) : BACKEND_UP;
		uint32_t half = BACKENDS_OF_ALL / 2;
		uint32_t hop = (service->id * 7 + b) % half + (service->family == 4 ? 0 : half);

		if (leaving && state == BACKEND_UP)
			state = BACKEND_DRAIN;
		service->backends[b] = (struct plain_backend){ state, hop, service->id * PLAIN_BACKENDS + b };
		members[b] = (struct maglev_member){ (service->id * 13 + b * 5) % 251, 1 + (b * 31 + service->id) % 250,
						     state == BACKEND_UP && !none, (uint16_t)b };
	}
	maglev_put(service->table);
	if (maglev_build(251, members, service->count, &service->table))
		abort();
	if (service->id & 1)
		service->table = widened(service->table);
}

static void add_to_map(struct vip_map *map, const struct plain_service *service)
{
	struct backend backends[PLAIN_BACKENDS];
	struct service added = { .id = service->id,
				 .family = service->family,
				 .prefix_length = service->prefix,
				 .protocol = service->protocol,
				 .first_port = service->first,
				 .last_port = service->last,
				 .hash_source = service->hash_source,
				 .idle = service->idle,
				 .mtu = service->mtu,
				 .maglev = service->table,
				 .backend_count = service->count };

	memcpy(added.vip, service->vip, 16);
	for (uint32_t b = 0; b < service->count; b++)
		backends[b] = (struct backend){ service->backends[b].hop << 2 | service->backends[b].state,
						service->backends[b].counter };
	if (vip_map_add(map, &added, backends))
		abort();
}

static void give_hops(struct traffic *traffic, struct reference_world *world)
{
	for (uint32_t i = 0; i < world->hop_count; i++) {
		struct hop_spec *hop = &world->hops[i];

		hop->family = (i < BACKENDS_OF_ALL / 2) != one_in(traffic, 5) ? 4 : 6; /* mostly that of the packets */
		hop->tunnel = one_in(traffic, 3) ? (uint8_t)(TUNNEL_GUE + one_in(traffic, 2)) : TUNNEL_IP;
		hop->port = 6080;
		hop->mtu = one_in(traffic, 6) ? (uint16_t)(1000 + traffic_random(traffic) % 1000) : 0;
		hop->resolved = !one_in(traffic, 24);
		hop->ifindex = i % 5 ? 0 : i;
		for (unsigned n = 0; n < 16; n++) {
			hop->source[n] = (uint8_t)(10 + n);
			hop->destination[n] = (uint8_t)traffic_random(traffic);
		}
		for (unsigned n = 0; n < 6; n++) {
			hop->mac[n] = (uint8_t)traffic_random(traffic);
			hop->source_mac[n] = (uint8_t)(n + i);
		}
	}
}

static void publish(const struct reference_world *world, struct vip_map *map, struct snapshot **snapshot)
{
	static uint64_t generation;

	if (vip_map_seal(map) || snapshot_create(map, world->hops, world->hop_count, ++generation, snapshot))
		abort();
	vip_map_put(map);
}

void traffic_make_world(struct traffic *traffic, struct reference_world *world, struct snapshot **out)
{
	struct vip_map *map;

	world->crowd = SHAPES;
	world->count = SHAPES + (traffic->crowded ? CROWD4 + CROWD6 : 0);
	world->idle_untrusted = flow_ticks(10);
	world->services = calloc(world->count, sizeof(*world->services));
	world->hop_count = BACKENDS_OF_ALL;
	world->hops = calloc(world->hop_count, sizeof(*world->hops));
	if (!world->services || !world->hops || vip_map_create(seed_bytes, world->idle_untrusted, &map))
		abort();
	give_hops(traffic, world);
	for (uint32_t id = 0; id < world->count; id++) {
		struct plain_service *service = &world->services[id];

		service->id = id;
		if (id < SHAPES)
			shaped_service(traffic, service, id);
		else
			crowd_service(service, id - SHAPES);
		service->present = id >= SHAPES || id == 0 || !one_in(traffic, 12);
		give_backends(traffic, service);
		if (service->present)
			add_to_map(map, service);
	}
	publish(world, map, out);
	world->serial = vip_map_serial((*out)->map);
	traffic->seed = (*out)->map->seed;
}

void traffic_change_world(struct traffic *traffic, struct reference_world *world, struct snapshot **snapshot)
{
	uint32_t *gone = malloc(world->count * sizeof(*gone)), *changed = malloc(world->count * sizeof(*changed));
	uint32_t gone_count = 0, changed_count = 0;
	struct snapshot *before = *snapshot;
	struct vip_map *map;

	if (!gone || !changed)
		abort();
	for (uint32_t id = 0; id < world->count; id++) {
		if (!one_in(traffic, id < world->crowd ? 4 : 200))
			continue;
		if (world->services[id].present)
			gone[gone_count++] = id;
		changed[changed_count++] = id;
	}
	if (one_in(traffic, 3))
		give_hops(traffic, world);
	if (vip_map_change(before->map, gone, gone_count, &map))
		abort();
	for (uint32_t i = 0; i < changed_count; i++) {
		struct plain_service *service = &world->services[changed[i]];

		service->present = (traffic->flood && service->id == 0) || !one_in(traffic, 6);
		give_backends(traffic, service);
		if (service->present)
			add_to_map(map, service);
	}
	publish(world, map, snapshot);
	world->serial = vip_map_serial((*snapshot)->map);
	snapshot_put(before);
	free(gone);
	free(changed);
}

void traffic_free_world(struct reference_world *world, struct snapshot *snapshot)
{
	for (uint32_t id = 0; id < world->count; id++)
		maglev_put(world->services[id].table);
	free(world->services);
	free(world->hops);
	snapshot_put(snapshot);
}

/* ---- whom to ask, and who asks ---- */

/* What a packet is to be. */
struct wish {
	struct traffic_flow flow;
	uint8_t flags;
	uint32_t payload;
};

/* Of those at home in the first lines of the table, so that what happens there happens often; known ones and new ones. */
static uint16_t flood_client(struct traffic *traffic, uint32_t *number)
{
	uint32_t limit = one_in(traffic, 2) ? TRAFFIC_CROWD : 1 << 24;
	uint8_t source[4] = { 10 };
	uint32_t address;

	for (;;) {
		*number = traffic_below(traffic, limit);
		source[1] = (uint8_t)(*number >> 16);
		put16(source + 2, *number);
		memcpy(&address, source, 4);
		if (flow_scramble(&traffic->seed, flow_key_narrow(0, address, htons((uint16_t)*number))) >> 48 < CROWDED_LINES)
			return (uint16_t)*number;
	}
}

static void any_client(struct traffic *traffic, const struct reference_world *world, struct traffic_flow *flow)
{
	uint32_t number = traffic_below(traffic, 40);

	memset(flow->source, 0, 16);
	flow->source_port = (uint16_t)(1024 + traffic_below(traffic, 24));
	if (traffic->flood)
		flow->source_port = flood_client(traffic, &number);
	if (flow->family == 4) {
		flow->source[0] = 10;
		put16(flow->source + 2, number);
		flow->source[1] = (uint8_t)(number >> 16);
	} else {
		memcpy(flow->source, (uint8_t[]){ 0x20, 1, 0xd, 0xb8, 0xc }, 5);
		put32(flow->source + 12, number);
	}
	if (one_in(traffic, 200)) { /* from an end of a tunnel */
		const struct hop_spec *hop = &world->hops[traffic_below(traffic, world->hop_count)];

		memcpy(flow->source, one_in(traffic, 2) ? hop->source : hop->destination, flow->family == 4 ? 4 : 16);
	}
	if (!one_in(traffic, 60))
		return;
	if (flow->family == 4) {
		static const uint8_t firsts[] = { 0, 1, 126, 127, 128, 169, 169, 223, 224, 239, 240, 254, 255, 0 };

		flow->source[0] = firsts[traffic_below(traffic, sizeof(firsts))];
		if (one_in(traffic, 3))
			memset(flow->source + 1, one_in(traffic, 2) ? 255 : 0, 3);
		if (flow->source[0] == 169)
			flow->source[1] = (uint8_t)(253 + traffic_below(traffic, 3));
	} else if (one_in(traffic, 2)) {
		static const uint8_t firsts[] = { 0xfe, 0xfe, 0xfe, 0xfd, 0xfc, 1, 0 };

		flow->source[0] = firsts[traffic_below(traffic, sizeof(firsts))];
		flow->source[1] = (uint8_t)(0x40 * traffic_below(traffic, 4) + traffic_below(traffic, 64));
		if (!flow->source[0]) {
			memset(flow->source, 0, 10);
			flow->source[10] = flow->source[11] = one_in(traffic, 4) ? 0xfe : 0xff;
		}
	} else {
		memset(flow->source, 0, 16);
		flow->source[0] = one_in(traffic, 2) ? 0xff : 0;
		flow->source[15] = (uint8_t)traffic_below(traffic, 3);
		flow->source[5] = one_in(traffic, 4);
	}
	if (one_in(traffic, 4))
		memcpy(flow->source, flow->destination, 16);
}

/* Mostly of a service, within its prefix and its ports, at their edges now and then, and just beyond. */
static void any_destination(struct traffic *traffic, const struct reference_world *world, struct traffic_flow *flow)
{
	uint32_t n = traffic->crowded && one_in(traffic, 3) ? traffic_below(traffic, world->count) :
							     traffic_below(traffic, world->crowd);
	const struct plain_service *service = &world->services[traffic->flood && !one_in(traffic, 8) ? 0 : n];
	uint32_t width = 1u + service->last - service->first;
	unsigned bytes = service->family == 4 ? 4 : 16;

	flow->family = service->family;
	flow->protocol = one_in(traffic, 40) ? (uint8_t)(23 - service->protocol) : service->protocol;
	memcpy(flow->destination, service->vip, 16);
	for (unsigned bit = service->prefix; bit < bytes * 8; bit++)
		if (bit >= bytes * 8 - 4 || one_in(traffic, 8))
			flow->destination[bit / 8] |= (uint8_t)(traffic_below(traffic, 2) << (7 - bit % 8));
	flow->port = (uint16_t)(service->first + traffic_below(traffic, width));
	if (one_in(traffic, 12))
		flow->port = one_in(traffic, 2) ? (uint16_t)(service->first - 1) : (uint16_t)(service->last + 1);
	if (one_in(traffic, 30))
		flow->destination[traffic_below(traffic, bytes)] ^= (uint8_t)(1 << traffic_below(traffic, 8));
}

/* A flow that was seen lately, or another. */
static void any_flow(struct traffic *traffic, const struct reference_world *world, struct traffic_flow *flow)
{
	struct traffic_flow *recent = &traffic->recent[traffic_below(traffic, TRAFFIC_RECENT)];

	if (!traffic->flood && recent->family && !one_in(traffic, 3)) {
		*flow = *recent;
		return;
	}
	any_destination(traffic, world, flow);
	any_client(traffic, world, flow);
	*recent = *flow;
}

static uint8_t any_flags(struct traffic *traffic)
{
	static const uint8_t usual[] = { TCP_SYN, TCP_ACK, TCP_ACK, TCP_PSH | TCP_ACK, TCP_PSH | TCP_ACK, TCP_FIN | TCP_ACK,
					 TCP_RST, TCP_RST | TCP_ACK, TCP_SYN | TCP_ACK, TCP_SYN | TCP_FIN, 0 };

	if (traffic->flood && !one_in(traffic, 20))
		return TCP_SYN;
	return one_in(traffic, 8) ? (uint8_t)traffic_random(traffic) : usual[traffic_below(traffic, sizeof(usual))];
}

/* ---- bytes ---- */

static uint64_t sum16(const uint8_t *p, uint32_t length, uint64_t sum)
{
	for (uint32_t i = 0; i + 1 < length; i += 2)
		sum += p[i] * 256u + p[i + 1];
	return length & 1 ? sum + p[length - 1] * 256u : sum;
}

static uint16_t fold(uint64_t sum)
{
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return (uint16_t)sum;
}

static void random_bytes(struct traffic *traffic, uint8_t *p, uint32_t length)
{
	uint64_t word = traffic_random(traffic);

	for (uint32_t i = 0; i < length; i++)
		p[i] = (uint8_t)(word >> i % 8 * 8) ^ (uint8_t)(i >> 3);
}

enum check {
	CHECK_RIGHT,
	CHECK_LEFT, /* to the NIC: the pseudo-header's sum */
	CHECK_NONE,
	CHECK_WRONG,
};

static void put_check(struct traffic *traffic, const uint8_t *ip, uint8_t *transport, uint8_t protocol, uint32_t length,
		      enum check check)
{
	bool four = ip[0] >> 4 == 4;
	uint8_t *field = transport + (protocol == 6 ? 16 : 6);
	uint64_t pseudo = sum16(ip + (four ? 12 : 8), four ? 8 : 32, (uint64_t)protocol + (length & 0xffff) + (length >> 16));
	uint16_t sum;

	put16(field, 0);
	sum = (uint16_t)~fold(sum16(transport, length, pseudo));
	switch (check) {
	case CHECK_RIGHT:
		put16(field, !sum && protocol == 17 ? 0xffff : sum);
		break;
	case CHECK_LEFT:
		put16(field, fold(pseudo));
		break;
	case CHECK_NONE:
		break;
	case CHECK_WRONG:
		put16(field, (uint32_t)traffic_random(traffic));
		break;
	}
}

/* Transport header and payload; returns the length of both. */
static uint32_t put_transport(struct traffic *traffic, const struct wish *wish, uint8_t *p)
{
	uint32_t words = one_in(traffic, 6) ? 5 + traffic_below(traffic, 11) : 5, header = wish->flow.protocol == 6 ? words * 4 : 8;

	random_bytes(traffic, p, header + wish->payload);
	put16(p, wish->flow.source_port);
	put16(p + 2, wish->flow.port);
	if (wish->flow.protocol == 6) {
		p[12] = (uint8_t)(words << 4);
		p[13] = wish->flags;
	} else {
		put16(p + 4, header + wish->payload);
	}
	/* Lies: a header longer than the packet or shorter than any, a datagram shorter or longer than its packet. */
	if (one_in(traffic, 80))
		p[12] = (uint8_t)traffic_random(traffic);
	if (one_in(traffic, 80) && wish->flow.protocol == 17)
		put16(p + 4, one_in(traffic, 2) ? traffic_below(traffic, 12) : header + wish->payload - 2 + traffic_below(traffic, 5));
	return header + wish->payload;
}

/* Extension headers behind an IPv6 header; returns their length. */
static uint32_t put_extensions(struct traffic *traffic, uint8_t *ip, uint8_t protocol)
{
	static const uint8_t kinds[] = { 0, 43, 44, 60, 60, 51 };
	uint32_t count = one_in(traffic, 4) ? traffic_below(traffic, 11) : 1 + traffic_below(traffic, 3), at = 40;
	uint8_t *next = ip + 6;

	for (uint32_t i = 0; i < count; i++) {
		uint8_t kind = kinds[traffic_below(traffic, sizeof(kinds) - !one_in(traffic, 20))];
		uint32_t units = one_in(traffic, 4) ? traffic_below(traffic, 3) : 0;

		*next = kind;
		next = ip + at;
		memset(ip + at, 0, 8 + units * 8);
		ip[at + 1] = (uint8_t)units;
		if (kind == 44) {
			ip[at + 1] = (uint8_t)traffic_below(traffic, 2);
			put16(ip + at + 2, one_in(traffic, 4) ? (uint32_t[]){ 1, 8, 9, 6, 0xfff8 }[traffic_below(traffic, 5)] : 0);
			units = 0;
		}
		at += 8 + units * 8;
	}
	*next = protocol;
	return at - 40;
}

/* An IP header of its own kind and what follows it; returns the packet's length. */
static uint32_t put_packet(struct traffic *traffic, const struct wish *wish, uint8_t *ip, enum check check, uint32_t *transport)
{
	static const uint8_t lives[] = { 128, 255, 2, 1, 0 };
	uint32_t header = wish->flow.family == 4 ? 20 : 40, length;

	memset(ip, 0, 40);
	if (wish->flow.family == 4) {
		if (one_in(traffic, 12)) {
			header += 4 * traffic_below(traffic, 11);
			random_bytes(traffic, ip + 20, header - 20);
		}
		ip[0] = (uint8_t)(0x40 | header / 4);
		ip[1] = (uint8_t)traffic_random(traffic);
		put16(ip + 4, (uint32_t)traffic_random(traffic));
		put16(ip + 6, one_in(traffic, 2) ? 0x4000 : 0);
		if (one_in(traffic, 60)) /* the first of several, one in the middle, the last; and the bit that must be zero */
			put16(ip + 6, (uint32_t[]){ 0x2000, 0x2000 | 185, 185, 1, 0x6000, 0x8000 }[traffic_below(traffic, 6)]);
		ip[8] = one_in(traffic, 6) ? lives[traffic_below(traffic, sizeof(lives))] : 64;
		ip[9] = wish->flow.protocol;
		memcpy(ip + 12, wish->flow.source, 4);
		memcpy(ip + 16, wish->flow.destination, 4);
	} else {
		put32(ip, 0x60000000 | ((uint32_t)traffic_random(traffic) & 0x0fffffff));
		ip[6] = wish->flow.protocol;
		ip[7] = one_in(traffic, 6) ? lives[traffic_below(traffic, sizeof(lives))] : 64;
		memcpy(ip + 8, wish->flow.source, 16);
		memcpy(ip + 24, wish->flow.destination, 16);
		if (one_in(traffic, 10))
			header += put_extensions(traffic, ip, wish->flow.protocol);
	}
	*transport = header;
	length = put_transport(traffic, wish, ip + header);
	put_check(traffic, ip, ip + header, wish->flow.protocol, length, check);
	length += header;
	put16(ip + (wish->flow.family == 4 ? 2 : 4), wish->flow.family == 4 ? length : length - 40);
	return length;
}

static void right_header(uint8_t *ip, uint32_t there)
{
	uint32_t header = (ip[0] & 15) * 4u;

	if (ip[0] >> 4 != 4 || header < 20 || header > there)
		return;
	put16(ip + 10, 0);
	put16(ip + 10, (uint16_t)~fold(sum16(ip, header, 0)));
}

/* ---- super-packets ---- */

static uint32_t any_size(struct traffic *traffic)
{
	/* The first six are about what just fits an MTU of 1,500, IPv4 and IPv6. */
	static const uint16_t sizes[] = { 1439, 1440, 1441, 1399, 1400, 1401, 1460, 1000, 536, 500, 100, 20, 9000, 8900 };

	if (one_in(traffic, 20))
		return 1 + traffic_below(traffic, one_in(traffic, 2) ? 20 : 65535);
	return sizes[traffic_below(traffic, sizeof(sizes) / 2)];
}

/* Another packet within a UDP datagram, behind eight bytes of a tunnel's and a link header; returns where its transport is. */
static uint32_t put_inner(struct traffic *traffic, struct wish *outer, uint8_t *ip, uint32_t transport, uint32_t *length,
			  uint8_t *protocol)
{
	struct wish inner = { .flow = { .family = one_in(traffic, 2) ? 4 : 6, .protocol = one_in(traffic, 3) ? 17 : 6 },
			      .payload = outer->payload, .flags = TCP_ACK };
	uint32_t at = transport + 8 + 8 + 14, begins;

	random_bytes(traffic, inner.flow.source, 16);
	*length = at + put_packet(traffic, &inner, ip + at, CHECK_LEFT, &begins);
	if (one_in(traffic, 8)) /* a header of any length, or one that says something else of what follows */
		ip[at + (one_in(traffic, 3) ? begins + 12 : 2 + traffic_below(traffic, 8))] ^= (uint8_t)(1 << traffic_below(traffic, 8));
	right_header(ip + at, *length - at);
	put16(ip + transport + 4, *length - transport - one_in(traffic, 12));
	put16(ip + (outer->flow.family == 4 ? 2 : 4), outer->flow.family == 4 ? *length : *length - 40);
	if (one_in(traffic, 3))
		put16(ip + transport + 6, 0);
	*protocol = inner.flow.protocol;
	return at + begins;
}

/* What a driver tells of the frame; now and then it makes up numbers, or such as are just not those of a super-packet. */
static void tell(struct traffic *traffic, struct frame *frame, uint32_t start, uint8_t protocol, bool large)
{
	uint32_t payload = frame->len - start - (protocol == 6 ? 20 : 8);

	frame->offload = FRAME_TOLD | (one_in(traffic, 3) ? FRAME_VERIFIED : 0);
	frame->gso_size = (uint16_t)(large || one_in(traffic, 10) ? any_size(traffic) : 0);
	if (one_in(traffic, 10) && payload < UINT16_MAX)
		frame->gso_size = (uint16_t)(payload - 1 + traffic_below(traffic, 3));
	frame->csum_start = (uint16_t)start;
	frame->csum_offset = protocol == 6 ? 16 : 6;
	if (one_in(traffic, 8))
		frame->csum_start = (uint16_t)(one_in(traffic, 2) ? 0 : traffic_below(traffic, frame->len + 20));
	if (one_in(traffic, 20))
		frame->csum_offset = (uint16_t)traffic_below(traffic, frame->len + 20);
}

static uint32_t any_payload(struct traffic *traffic, bool large)
{
	if (!large)
		return one_in(traffic, 3) ? traffic_below(traffic, 1500) : traffic_below(traffic, 100);
	if (one_in(traffic, 20)) /* about the most that a length can say, with and without an outer header */
		return 65430 + traffic_below(traffic, 70);
	if (one_in(traffic, 20))
		return 63000 + traffic_below(traffic, 9000); /* some beyond what a header can say */
	return one_in(traffic, 6) ? traffic_below(traffic, 60000) : 1400 + traffic_below(traffic, 6000);
}

/* Linux marks what is larger than 64 KiB: lengths of zero, and of IPv6 a jumbo option. */
static void make_big(struct traffic *traffic, uint8_t *ip, uint32_t *length, uint32_t *transport)
{
	put16(ip + (ip[0] >> 4 == 4 ? 2 : 4), 0);
	if (ip[0] >> 4 == 4 || *transport != 40 || one_in(traffic, 4))
		return;
	memmove(ip + 48, ip + 40, *length - 40);
	memcpy(ip + 40, (uint8_t[]){ ip[6], 0, 0xc2, 4, 0, 0, 0, 0 }, 8);
	put32(ip + 44, *length - 40 + 8);
	ip[6] = 0;
	if (one_in(traffic, 6)) /* something else */
		ip[41 + traffic_below(traffic, 3)] ^= 1;
	*length += 8;
	*transport += 8;
}

/*
 * An ICMP error about a packet of the other direction, instead of the packet at ip: with as much quoted as fits, or enough, or hardly
 * that.  The packet has its headers in order; what has become of its payload does not matter.
 */
static void put_error(struct traffic *traffic, uint8_t *ip, uint32_t *length, uint32_t transport)
{
	static const uint8_t types4[] = { 3, 3, 3, 11, 12, 4, 5, 0, 13 }, types6[] = { 1, 2, 2, 2, 3, 4, 5, 129, 137 };
	bool four = ip[0] >> 4 == 4;
	uint32_t size = four ? 4 : 16, first = four ? 12 : 8, header = four ? 20 : 40, quoted;
	uint32_t most = *length < 500 ? *length : 500, enough = transport + 8;
	uint8_t quote[512], ports[2], *icmp = ip + header;

	memcpy(quote, ip, most);
	memcpy(quote + first, ip + first + size, size);
	memcpy(quote + first + size, ip + first, size);
	memcpy(ports, quote + transport, 2);
	memcpy(quote + transport, quote + transport + 2, 2);
	memcpy(quote + transport + 2, ports, 2);
	quoted = one_in(traffic, 2) ? enough : one_in(traffic, 2) ? most : enough - 2 + traffic_below(traffic, 4);
	quoted = quoted < most ? quoted : most;
	if (one_in(traffic, 10)) /* another's packet, or one that does not hold together */
		quote[traffic_below(traffic, quoted)] ^= (uint8_t)(1 << traffic_below(traffic, 8));
	memcpy(icmp + 8, quote, quoted);
	random_bytes(traffic, icmp, 8);
	icmp[0] = (four ? types4 : types6)[traffic_below(traffic, sizeof(types4))];
	ip[0] = four ? 0x45 : 0x60;
	ip[four ? 9 : 6] = four ? 1 : 58;
	if (four)
		put16(ip + 6, 0);
	if (one_in(traffic, 2))
		ip[first + 2] ^= 0x55; /* from a router */
	*length = header + 8 + quoted;
	put16(ip + (four ? 2 : 4), four ? *length : *length - 40);
}

/* ---- fragments ---- */

/* Says of the packet at ip that it is that part of that datagram; IPv6 gets a header for it. */
static void put_fragment(uint8_t *ip, uint32_t *length, uint32_t id, uint32_t units, bool more)
{
	if (ip[0] >> 4 == 4) {
		put16(ip + 2, *length);
		put16(ip + 4, id);
		put16(ip + 6, (more ? 0x2000 : 0) | units);
		return;
	}
	memmove(ip + 48, ip + 40, *length - 40);
	*length += 8;
	put16(ip + 4, *length - 40);
	ip[40] = ip[6];
	ip[41] = 0;
	put16(ip + 42, units * 8 + more);
	put32(ip + 44, id);
	ip[6] = 44;
}

/*
 * Makes the packet, whose payload begins at `transport`, the first fragment of a datagram, or a later one of a datagram that began:
 * mostly the next one, now and then one that does not come in its turn, came before, or is no right one.
 */
static void make_fragment(struct traffic *traffic, struct traffic_flow *flow, uint8_t *ip, uint32_t *length, uint32_t transport)
{
	struct traffic_datagram *datagram = &traffic->datagrams[traffic_below(traffic, TRAFFIC_DATAGRAMS)];
	uint32_t size = flow->family == 4 ? 4 : 16, first = flow->family == 4 ? 12 : 8, payload = *length - transport, at;
	bool more = !one_in(traffic, 4);

	if (datagram->flow.family != flow->family || one_in(traffic, 4)) {
		*datagram = (struct traffic_datagram){ .flow = *flow, .id = (uint32_t)traffic_random(traffic) };
		more = true;
	} else {
		*flow = datagram->flow;
		memcpy(ip + first, flow->source, size);
		memcpy(ip + first + size, flow->destination, size);
		ip[flow->family == 4 ? 9 : 6] = flow->protocol;
	}
	at = one_in(traffic, 6) ? traffic_below(traffic, 60) : datagram->at;
	if (more && !one_in(traffic, 30))
		*length -= payload % 8;
	put_fragment(ip, length, flow->family == 4 ? datagram->id & 0xffff : datagram->id, at, more);
	datagram->at = at + (payload + 7) / 8;
}

/* ---- frames ---- */

/* Things that go wrong on the way, or are meant to go wrong here. */
static void spoil(struct traffic *traffic, uint8_t *ip, uint32_t *length)
{
	static const uint8_t protocols[] = { 1, 58, 2, 4, 41, 47, 50, 132, 0, 255, 44, 59 };
	uint32_t near = *length < 80 ? *length : 80;

	switch (traffic_below(traffic, 12)) {
	case 0:
		for (uint32_t n = 1 + traffic_below(traffic, 3); n; n--)
			ip[traffic_below(traffic, near)] ^= (uint8_t)(1 << traffic_below(traffic, 8));
		break;
	case 1:
		ip[traffic_below(traffic, near)] = (uint8_t)traffic_random(traffic);
		break;
	case 2:
	case 3:
		*length = traffic_below(traffic, *length + 1);
		break;
	case 4:
		ip[ip[0] >> 4 == 4 ? 9 : 6] = protocols[traffic_below(traffic, sizeof(protocols))];
		break;
	case 5:
		random_bytes(traffic, ip, near);
		break;
	case 6:
		put16(ip + (ip[0] >> 4 == 4 ? 2 : 4), traffic_below(traffic, *length + 40));
		break;
	case 7:
		ip[0] = (uint8_t)(one_in(traffic, 2) ? 0x40 | traffic_below(traffic, 16) : traffic_random(traffic));
		break;
	default: /* behind the packet there is more, as on any short frame */
		random_bytes(traffic, ip + *length, 24);
		*length += 1 + traffic_below(traffic, 24);
		break;
	}
}

static void put_link(struct traffic *traffic, uint8_t *frame, uint8_t family)
{
	static const uint16_t others[] = { 0x8100, 0x0806, 0x88a8, 0x88cc, 0x0000, 0x0800, 0x86dd };

	random_bytes(traffic, frame, 12);
	put16(frame + 12, family == 4 ? 0x0800 : 0x86dd);
	if (one_in(traffic, 60))
		put16(frame + 12, others[traffic_below(traffic, 7)]);
}

void traffic_frame(struct traffic *traffic, const struct reference_world *world, uint8_t *bytes, struct frame *frame)
{
	static const enum check checks[] = { CHECK_RIGHT, CHECK_RIGHT, CHECK_RIGHT, CHECK_RIGHT, CHECK_LEFT, CHECK_NONE, CHECK_WRONG };
	bool large = traffic->supers ? one_in(traffic, 2) : one_in(traffic, 200), tunnel = large && one_in(traffic, 8);
	uint32_t before = traffic->link == LINK_ETHERNET ? 14 : 0, transport, start, length;
	enum check check = checks[traffic_below(traffic, 7)];
	struct wish wish = { 0 };
	uint8_t *ip = bytes + before, protocol;

	any_flow(traffic, world, &wish.flow);
	wish.flags = any_flags(traffic);
	if (large && !one_in(traffic, 8))
		wish.flags &= (uint8_t)~(TCP_SYN | TCP_RST);
	wish.payload = traffic->flood && !one_in(traffic, 4) ? 0 : any_payload(traffic, large);
	if (tunnel)
		wish.flow.protocol = 17;
	length = put_packet(traffic, &wish, ip, check, &transport);
	start = transport;
	protocol = wish.flow.protocol;
	if (tunnel && length < 60000)
		start = put_inner(traffic, &wish, ip, transport, &length, &protocol);
	if (length > 65535)
		make_big(traffic, ip, &length, &transport);
	if (!large && length < 500 && one_in(traffic, traffic->flood ? 100 : 12)) {
		put_error(traffic, ip, &length, transport);
		check = CHECK_RIGHT; /* of which nothing is told */
	} else if (!large && transport == (wish.flow.family == 4 ? (ip[0] & 15) * 4u : 40) && length > transport + 8 &&
		 one_in(traffic, traffic->flood ? 100 : 8)) {
		make_fragment(traffic, &wish.flow, ip, &length, transport);
		check = CHECK_RIGHT;
	}
	right_header(ip, length);
	if (before)
		put_link(traffic, bytes, wish.flow.family);
	if (one_in(traffic, traffic->flood ? 200 : 12))
		spoil(traffic, ip, &length);
	if (one_in(traffic, 20))
		right_header(ip, length);
	*frame = (struct frame){ .len = length + before, .wire_len = length + before };
	if (before && one_in(traffic, 500))
		frame->len = frame->wire_len = traffic_below(traffic, 20);
	if (one_in(traffic, 150))
		frame->wire_len += 1 + traffic_below(traffic, 100);
	if (large ? !one_in(traffic, 4) : check == CHECK_LEFT && one_in(traffic, 2))
		tell(traffic, frame, before + (start == transport ? transport : start), protocol, large);
	else if (one_in(traffic, 3))
		frame->offload = FRAME_TOLD;
}

uint64_t traffic_pause(struct traffic *traffic, const struct reference_world *world)
{
	uint16_t idle = one_in(traffic, 2) ? world->idle_untrusted : world->services[traffic_below(traffic, world->crowd)].idle;

	if (one_in(traffic, traffic->flood ? 4000 : 80)) /* to the very tick, or one of its neighbours */
		return (uint64_t)(idle - 1 + traffic_below(traffic, 3)) << FLOW_TICK_SHIFT;
	static const uint16_t seconds[] = { 1, 5, 11, 31, 61, 121, 301, 901, 5000, 20000 };

	if (one_in(traffic, traffic->flood ? 20000 : 400))
		return seconds[traffic_below(traffic, 10)] * 1000000000ull;
	return one_in(traffic, 200) ? traffic_below(traffic, 600000000) : traffic_below(traffic, 3000000);
}
