/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The packets that most are, many at a time: IPv4 without options, no fragments, TCP or UDP, nothing the matter with them.
 * What packet.h checks of one and what names its service and its flow is taken from the headers of eight together where the
 * processor can; read_ipv4_scalar() says what is meant.
 */
#ifndef VIPMUX_READ_IPV4_H
#define VIPMUX_READ_IPV4_H

#include <endian.h>
#include <stdint.h>

#include "packet/packet.h"

/*
 * What the headers before and in a packet will be is known when it has been read, but for who it goes to: of the outer header the first
 * eight bytes (RFC 2003; see encap.h), of the inner one those that a hop changes.  As they go to memory.
 */
struct outer4 {
	uint64_t first; /* version, DSCP and ECN, length with the outer header, DF; the ID is zero */
	uint32_t life;  /* bytes 8 to 11 of the inner header: TTL one less, protocol, checksum */
	uint32_t sum;   /* of the four words of `first`, not folded */
};

/* What of an IPv4 header's first eight bytes the outer one has too, as they lie in memory. */
#define OUTER4_TOS htobe64(0x00ff000000000000u)
#define OUTER4_DF htobe64(0x4000u)
#define OUTER4_VERSION htobe64(0x4500000000000000u)

/*
 * Reads frames[count], count <= BURST_MAX, of which each has IO_HEADROOM before it.  A bit for each that packet_parse_plain()
 * takes: of those packets[] is as that leaves it, services[] is exact_key() of what it asks for, flows[] its
 * flow_key_narrow() but for the service's number, which is still zero, and outer[] what is to be written.  What there is of others
 * may be anything.
 */
typedef uint64_t read_ipv4_burst(const struct frame *frames, unsigned count, enum link_type link, struct packet *packets,
			     uint64_t *services, uint64_t *flows, struct outer4 *outer);
read_ipv4_burst read_ipv4_scalar, read_ipv4_avx2, read_ipv4_avx512;

#endif
