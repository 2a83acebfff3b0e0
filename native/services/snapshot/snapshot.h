/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A snapshot: everything a packet's decision reads, in one immutable value.  The VIP map changes when operators or
 * probes want something; the hops change when a MAC address does.  A new snapshot shares the part that stayed.
 */
#ifndef VIPMUX_SNAPSHOT_H
#define VIPMUX_SNAPSHOT_H

#include <stdbool.h>
#include <stdint.h>

#include "machine/cpu.h"
#include "services/vip/vip_map.h"

#define HOP_LINK_BYTES 14u  /* of the Ethernet header that a hop's template begins with */
#define HOP_BYTES_MAX (HOP_LINK_BYTES + 40u)

/*
 * The way to one backend machine: one cache line.  `start` is all that goes before the packet, as it is written there: the
 * Ethernet header and, at HOP_LINK_BYTES, the outer header of 20 or 40 bytes with length, ID, DF and DSCP/ECN still zero; `sum`
 * is, for IPv4, the checksum of all behind its first eight bytes, folded and not complemented.
 */
struct hop {
	uint8_t start[HOP_BYTES_MAX];
	bool resolved;       /* the MAC addresses are known (or the link needs none) */
	uint8_t family;      /* 4 or 6 */
	uint16_t sum;
	uint8_t ready;       /* the family where resolved, else 0: both questions in one */
	uint32_t ifindex;    /* interface to send on; 0: the one received on */
} CACHE_ALIGNED;
_Static_assert(sizeof(struct hop) == CACHE_LINE, "one hop, one cache line");

struct snapshot {
	uint32_t references; /* atomic */
	uint32_t hop_count;
	uint64_t generation;
	struct vip_map *map;
	struct hop *hops;
};

/* What a hop is made of.  Addresses and MACs in wire order; IPv4 addresses in the first 4 bytes. */
struct hop_spec {
	uint8_t source[16]; /* the MUX */
	uint8_t destination[16];
	uint8_t family;
	uint8_t resolved;
	uint8_t mac[6];
	uint8_t source_mac[6];
	uint32_t ifindex;
};

/*
 * Takes its own reference of the map, which must be sealed and whose backends must name hops < count of their service's
 * family.  -EINVAL, -ENOMEM.
 */
int snapshot_create(struct vip_map *map, const struct hop_spec *hops, uint32_t count, uint64_t generation,
		    struct snapshot **out);
struct snapshot *snapshot_get(struct snapshot *snapshot);
void snapshot_put(struct snapshot *snapshot);

#endif
