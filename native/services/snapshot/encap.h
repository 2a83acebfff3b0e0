/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The outer header: either family in either (RFC 2003, 2473, 4213), with UDP between where the hop says so (GUE), written into
 * the headroom before the packet: ENCAP_BYTES_MAX before the IP header at most, of which the Ethernet header is written where
 * the link has none, too, but by encap_tunnel().
 *
 * What follows the inner header: DSCP and ECN are copied (RFC 2983, RFC 6040 normal mode); DF outside where DF is set
 * inside, and around IPv6, which no router may take apart (RFC 4213, 3.2.2); an ID is given where DF is not (RFC 6864), zero
 * where it is; the IPv6 flow label and the UDP source port are made of the inner flow (RFC 6438).  TTL outside is ENCAP_TTL.
 * The UDP checksum is zero, of IPv6 too (RFC 6935 and 6936, 4: the packet inside has its own, and hosts take none but from
 * MUXes they know, to VIPs that they serve).
 */
#ifndef VIPMUX_ENCAP_H
#define VIPMUX_ENCAP_H

#include <arpa/inet.h>
#include <stdint.h>
#include <string.h>

#include "packet/checksum.h"
#include "packet/packet.h"
#include "packet/burst/read_ipv4.h"
#include "services/snapshot/snapshot.h"

#define ENCAP_TTL 64

#define ENCAP_UDP_BYTES 8u
#define ENCAP_GUE_BYTES 4u
#define ENCAP_BYTES_MAX (HOP_BYTES_MAX + ENCAP_UDP_BYTES + ENCAP_GUE_BYTES)

/* Of the outer IP header alone. */
static inline unsigned encap_overhead(uint8_t family)
{
	return family == 4 ? 20 : 40;
}

/* Of all between link header and packet. */
static inline unsigned encap_bytes(const struct hop *hop)
{
	unsigned udp = hop->tunnel == TUNNEL_IP ? 0 : ENCAP_UDP_BYTES;

	return encap_overhead(hop->family) + udp + (hop->tunnel == TUNNEL_GUE ? ENCAP_GUE_BYTES : 0);
}

/* Whether a packet of the family goes into the hop's template as it is: encap_ipv4(), encap_ipv6(). */
static inline bool encap_is_plain(const struct hop *hop, uint8_t family)
{
	return hop->tunnel == TUNNEL_IP && hop->family == family;
}

/*
 * Any tunnel of the hop before a packet of any family; only what lies behind the link header.  *id as of encap_ipv4();
 * flow: of the inner flow, 20 bits of it count.
 */
void encap_tunnel(const struct hop *hop, uint16_t port, uint8_t *ip, uint32_t length, uint16_t *id, uint32_t flow);

/* Fills a hop's header with all that does not depend on the packet. */
void encap_prepare(struct hop *hop, const struct hop_spec *spec);

/* Ethernet and IPv4 header but for two of the eight bytes that are to be written over: two pieces are enough. */
static inline void encap_copy34(uint8_t *to, const uint8_t *from)
{
	memcpy(to, from, 16);
	memcpy(to + 18, from + 18, 16);
}

/* Writes the outer header before an IPv4 packet of `length` bytes at ip.  *id in host order, taken where DF is not set. */
static inline void encap_ipv4(const struct hop *hop, uint8_t *ip, uint32_t length, uint16_t *id)
{
	uint8_t *outer = ip - 20;
	uint64_t inner = load64(ip), first = (inner & (OUTER4_TOS | OUTER4_DF)) | OUTER4_VERSION;
	uint16_t check;

	first |= htobe64((uint64_t)(uint16_t)(length + 20) << 32);
	if (!(inner & OUTER4_DF))
		first |= htobe64((uint64_t)(*id)++ << 16);
	/* No carry is lost: the word with DF (or the version, on the other byte order) is far from full. */
	check = (uint16_t)~checksum_fold64(first + hop->sum);
	encap_copy34(outer - HOP_LINK_BYTES, hop->start);
	store64(outer, first);
	store16(outer + 10, check);
}

/*
 * The same of a packet that read_ipv4.h has read, and the inner header's next life.  The Ethernet header is written as well where
 * `link` says so; its addresses may be written first, else.
 */
static ALWAYS_INLINE void encap_plain4(const struct hop *hop, const struct outer4 *prepared, uint8_t *ip, uint16_t *id, bool link)
{
	uint8_t *outer = ip - 20;
	uint64_t first = prepared->first;
	uint32_t sum = prepared->sum + hop->sum;

	if (UNLIKELY(!(first & OUTER4_DF))) {
		uint16_t number = htons((*id)++);

		first |= htobe64((uint64_t)ntohs(number) << 16);
		sum += number;
	}
	/* Each half is added to the other, and the carry comes back by itself. */
	sum += sum << 16 | sum >> 16;
	memcpy(ip + 8, &prepared->life, 4);
	if (link)
		memcpy(outer - HOP_LINK_BYTES, hop->start, 16);
	else
		memcpy(outer - 2, hop->start + HOP_LINK_BYTES - 2, 2);
	memcpy(outer + 4, hop->start + HOP_LINK_BYTES + 4, 16);
	store64(outer, first);
	store16(outer + 10, (uint16_t)~(sum >> 16));
}

/* The same for IPv6; the low 20 bits of flow become the flow label. */
static inline void encap_ipv6(const struct hop *hop, uint8_t *ip, uint32_t length, uint32_t flow)
{
	uint8_t *outer = ip - 40;
	uint32_t first, label = htonl(flow & 0xfffff);

	/* Version and traffic class are in the first twelve bits of both. */
	memcpy(&first, ip, 4);
	first = (first & htonl(0xfff00000)) | label;
	memcpy(outer - HOP_LINK_BYTES, hop->start, HOP_LINK_BYTES + 40);
	memcpy(outer, &first, 4);
	store16(outer + 4, htons((uint16_t)length));
}

#endif
