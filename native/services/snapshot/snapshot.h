/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A snapshot: everything a packet's decision reads, in one immutable value.  The VIP map changes when operators or
 * probes want something; the hops change when a MAC address does.  A new snapshot shares the part that stayed.
 */
#ifndef VIPMUX_SNAPSHOT_H
#define VIPMUX_SNAPSHOT_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

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

#define SNAPSHOT_ENDS 4096u /* bits */

struct snapshot {
	uint32_t references; /* atomic */
	uint32_t hop_count;
	uint64_t generation;
	struct vip_map *map;
	struct hop *hops;
	uint64_t ends[SNAPSHOT_ENDS / 64]; /* a bit for each address of a tunnel's end, see snapshot_may_have_end() */
};

/* An address in one word: of IPv6 not exactly. */
static inline uint32_t snapshot_address_word(uint8_t family, const uint8_t *address)
{
	uint64_t words[2];
	uint32_t word;

	if (family == 4) {
		memcpy(&word, address, 4);
		return word;
	}
	memcpy(words, address, 16);
	return (uint32_t)(words[0] ^ words[0] >> 32 ^ words[1] ^ words[1] >> 32);
}

static inline uint32_t snapshot_end_bit(uint8_t family, const uint8_t *address)
{
	return snapshot_address_word(family, address) * 0x9e3779b1u >> 20;
}
_Static_assert(SNAPSHOT_ENDS == 1u << 12, "as many as a number of 12 bits can say");

/* False: no tunnel begins or ends at this address.  Cheaper than a look at the hop of each new flow, which is in no near cache. */
static inline bool snapshot_may_have_end(const struct snapshot *snapshot, uint8_t family, const uint8_t *address)
{
	uint32_t bit = snapshot_end_bit(family, address);

	return snapshot->ends[bit / 64] >> bit % 64 & 1;
}

/* The addresses of a hop's tunnel: ours, and the backend's. */
static inline const uint8_t *hop_source(const struct hop *hop)
{
	return hop->start + HOP_LINK_BYTES + (hop->family == 4 ? 12 : 8);
}

static inline const uint8_t *hop_destination(const struct hop *hop)
{
	return hop->start + HOP_LINK_BYTES + (hop->family == 4 ? 16 : 24);
}

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
