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

/* What lies between the outer IP header and the packet. */
enum tunnel {
	TUNNEL_IP = 0,       /* nothing: IP in IP (RFC 2003, 2473, 4213) */
	TUNNEL_GUE = 1,      /* UDP and four bytes of Generic UDP Encapsulation (draft-ietf-intarea-gue), variant 0 */
	TUNNEL_GUE_BARE = 2, /* UDP alone: variant 1, whose first four bits are the packet's own version */
};

/*
 * The way to one backend machine: one cache line.  `start` is what goes before the packet, as it is written there: the
 * Ethernet header and, at HOP_LINK_BYTES, the outer header of 20 or 40 bytes with length, ID, DF and DSCP/ECN still zero, for
 * a packet of its own family in IP; `sum` is, for IPv4, the checksum of all behind its first eight bytes, folded and not
 * complemented.
 */
struct hop {
	uint8_t start[HOP_BYTES_MAX];
	uint8_t ready;       /* the family where a packet of the same may leave by the template as it is, else 0: any question more */
	uint8_t family;      /* of the outer header, 4 or 6 */
	uint16_t sum;
	uint8_t tunnel;      /* enum tunnel */
	bool resolved;       /* the MAC addresses are known (or the link needs none) */
	uint32_t ifindex;    /* interface to send on; 0: the one received on */
} CACHE_ALIGNED;
_Static_assert(sizeof(struct hop) == CACHE_LINE, "one hop, one cache line");

#define SNAPSHOT_ENDS 65536u /* bits: of a thousand backends, one address in sixty is looked at closer in vain */
/* What few packets ask for, by the same index. */
struct hop_rest {
	uint16_t port; /* UDP's, where there is one; host order */
	uint16_t mtu;  /* of the way there, less than a service says; 0: no less */
};

struct snapshot {
	uint32_t references; /* atomic */
	uint32_t hop_count;
	uint64_t generation;
	struct vip_map *map;
	struct hop *hops;
	uint64_t ends[SNAPSHOT_ENDS / 64]; /* a bit for each address of a tunnel's end, see snapshot_may_have_end() */
	struct hop_rest *rests;
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
	return snapshot_address_word(family, address) * 0x9e3779b1u >> 16;
}
_Static_assert(SNAPSHOT_ENDS == 1u << 16, "as many as a number of 16 bits can say");

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
	uint8_t tunnel;
	uint16_t port;
	uint16_t mtu;
	uint32_t ifindex;
};

/*
 * Takes its own reference of the map, which must be sealed and whose backends must name hops < count, of any family: the outer
 * header's need not be the packet's.  -EINVAL, -ENOMEM.
 */
int snapshot_create(struct vip_map *map, const struct hop_spec *hops, uint32_t count, uint64_t generation,
		    struct snapshot **out);
struct snapshot *snapshot_get(struct snapshot *snapshot);
void snapshot_put(struct snapshot *snapshot);

#endif
