/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A VIP map of any services, beside a plain list of them: every address and port finds the most specific one, before and after
 * some were taken away and others came, whichever table or index each of them is in.
 *
 * Input: six bytes a service.  The highest bit of the first tells whether it is there from the beginning or comes later, the
 * next whether it goes when the map changes.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "expect.h"
#include "services/vip/vip_map.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define MOST 24u
#define PORTS 10u
#define ADDRESSES 3u /* asked for each service */

struct listed {
	struct service service;
	bool later, goes, there;
};

static struct listed list[MOST];
static unsigned count;

static const uint16_t ports[PORTS] = { 0, 1, 79, 80, 81, 443, 8000, 8080, 65534, 65535 };

static bool in_prefix(const uint8_t *address, const uint8_t *prefix, unsigned bits)
{
	return memcmp(address, prefix, bits / 8) == 0 &&
	       (bits % 8 == 0 || address[bits / 8] >> (8 - bits % 8) == prefix[bits / 8] >> (8 - bits % 8));
}

/* 2: one port, 1: some, 0: any */
static unsigned rank(const struct service *service)
{
	return service->first_port == service->last_port ? 2 : service->first_port || service->last_port != 65535;
}

/* Neither is more specific, and some packet matches both. */
static bool ties(const struct service *a, const struct service *b)
{
	return a->family == b->family && a->prefix_length == b->prefix_length && a->protocol == b->protocol &&
	       rank(a) == rank(b) && !memcmp(a->vip, b->vip, 16) && a->first_port <= b->last_port &&
	       b->first_port <= a->last_port;
}

static void read_service(struct listed *out, const uint8_t *data, unsigned id, struct maglev *maglev)
{
	static const uint8_t lengths[2][8] = { { 32, 32, 32, 31, 28, 24, 8, 0 }, { 128, 128, 128, 127, 120, 64, 32, 0 } };
	bool six = data[0] & 1;
	uint8_t length = lengths[six][data[0] >> 1 & 7], vip[16] = { 203, 0 };
	unsigned first = data[4] % PORTS, last = data[5] & 0x80 ? first : data[5] % PORTS, size = six ? 16 : 4;

	if (six)
		memcpy(vip, (uint8_t[]){ 0x20, 1, 0xd, 0xb8 }, 4);
	vip[six ? 6 : 2] = data[1] >> 6;
	vip[size - 2] |= data[1] & 3;
	vip[size - 1] = data[2] & 31;
	for (unsigned bit = length; bit < size * 8; bit++)
		vip[bit / 8] &= (uint8_t)~(0x80 >> bit % 8);
	*out = (struct listed){ .service = { .id = id,
					     .family = six ? 6 : 4,
					     .prefix_length = length,
					     .protocol = data[3] & 1 ? 6 : 17,
					     .first_port = ports[first < last ? first : last],
					     .last_port = ports[first < last ? last : first],
					     .mtu = 1500,
					     .maglev = maglev },
				.later = data[0] >> 7,
				.goes = data[0] >> 6 & 1 };
	memcpy(out->service.vip, vip, 16);
}

static const struct service *most_specific(uint8_t family, const uint8_t *address, uint8_t protocol, uint16_t port, bool *is_vip)
{
	const struct service *best = NULL;

	*is_vip = false;
	for (unsigned i = 0; i < count; i++) {
		const struct service *service = &list[i].service;

		if (!list[i].there || service->family != family || !in_prefix(address, service->vip, service->prefix_length))
			continue;
		*is_vip = true;
		if (service->protocol != protocol || port < service->first_port || port > service->last_port)
			continue;
		if (!best || service->prefix_length > best->prefix_length ||
		    (service->prefix_length == best->prefix_length && rank(service) > rank(best)))
			best = service;
	}
	return best;
}

static void ask(const struct vip_map *map, uint8_t family, const uint8_t *address, uint8_t protocol, uint16_t port)
{
	bool is_vip, wanted_vip, unsaid = true;
	const struct service *wanted = most_specific(family, address, protocol, port, &wanted_vip);
	const struct service *found = vip_map_find(map, family, address, protocol, htons(port), &is_vip);

	expect(!found == !wanted && (!found || found->id == wanted->id) && is_vip == wanted_vip);
	expect(vip_map_contains(map, family, address) == wanted_vip);
	if (family == 6)
		return;
	found = vip_map_find_exact4(map, address, protocol, htons(port));
	if (!found)
		found = vip_map_find_other4(map, address, protocol, htons(port), &unsaid);
	expect(!found == !wanted && (!found || found->id == wanted->id) && (found || unsaid == wanted_vip));
}

/* Of every service, there or not: its address, the next, and the last but one of its prefix or so. */
static void ask_all(const struct vip_map *map)
{
	for (unsigned i = 0; i < count; i++) {
		const struct service *service = &list[i].service;
		unsigned last = service->family == 6 ? 15 : 3;

		for (unsigned n = 0; n < ADDRESSES * PORTS * 2; n++) {
			uint8_t address[16];

			memcpy(address, service->vip, 16);
			address[last] ^= (uint8_t)((const uint8_t[ADDRESSES]){ 0, 1, 30 }[n % ADDRESSES]);
			ask(map, service->family, address, n & 1 ? 6 : 17, ports[n / ADDRESSES % PORTS]);
		}
	}
}

/* Whether some that are there tie. */
static bool some_tie(void)
{
	for (unsigned i = 0; i < count; i++)
		for (unsigned j = 0; j < i; j++)
			if (list[i].there && list[j].there && ties(&list[i].service, &list[j].service))
				return true;
	return false;
}

/* Those that come now, and the index.  False: the map can only be put. */
static bool complete(struct vip_map *map, bool later)
{
	int error;

	for (unsigned i = 0; i < count; i++) {
		if (list[i].later != later)
			continue;
		list[i].there = true;
		expect(vip_map_add(map, &list[i].service, NULL) == 0);
	}
	error = vip_map_seal(map);
	expect(error == (some_tie() ? -EEXIST : 0));
	return !error;
}

static void change(const struct vip_map *before)
{
	uint32_t gone[MOST], gone_count = 0;
	struct vip_map *map;

	for (unsigned i = 0; i < count; i++) {
		if (!list[i].there || !list[i].goes)
			continue;
		list[i].there = false;
		gone[gone_count++] = list[i].service.id;
	}
	expect(vip_map_change(before, gone, gone_count, &map) == 0);
	if (complete(map, true))
		ask_all(map);
	vip_map_put(map);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const uint8_t seed[16] = "an open secret";
	static struct maglev *maglev;
	struct vip_map *map;

	if (!maglev)
		expect(maglev_build(61, NULL, 0, &maglev) == 0);
	for (count = 0; count < MOST && size >= 6; data += 6, size -= 6, count++)
		read_service(&list[count], data, count, maglev);
	expect(vip_map_create(seed, 1, &map) == 0);
	if (complete(map, false)) {
		ask_all(map);
		change(map);
		/* The first map goes on as it was. */
		for (unsigned i = 0; i < count; i++)
			list[i].there = !list[i].later;
		ask_all(map);
	}
	vip_map_put(map);
	return 0;
}
