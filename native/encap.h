/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The outer header: IPv4 in IPv4 (RFC 2003) and IPv6 in IPv6 (RFC 2473), written into the headroom before the packet.
 *
 * What follows the inner header: DSCP and ECN are copied (uniform model of RFC 2983, normal mode of RFC 6040); DF
 * outside where DF is set inside; an ID is given where DF is not (RFC 6864), zero where it is; the IPv6 flow label is
 * made of the inner flow (RFC 6438).  TTL outside is ENCAP_TTL.
 */
#ifndef VIPMUX_ENCAP_H
#define VIPMUX_ENCAP_H

#include <arpa/inet.h>
#include <stdint.h>
#include <string.h>

#include "checksum.h"
#include "snapshot.h"

#define ENCAP_TTL 64

static inline unsigned encap_overhead(uint8_t family)
{
	return family == 4 ? 20 : 40;
}

/* Fills a hop's header with all that does not depend on the packet. */
void encap_prepare(struct hop *hop, const struct hop_spec *spec);

/* Writes the outer header before an IPv4 packet of `length` bytes at ip.  id in host order, used where DF is not set. */
static inline void encap_ipv4(const struct hop *hop, uint8_t *ip, uint32_t length, uint16_t id)
{
	uint8_t *outer = ip - 20;
	uint8_t tos = ip[1], df = ip[6] & 0x40;
	uint16_t words[4] = { htons(tos), htons((uint16_t)(length + 20)), df ? 0 : htons(id), htons((uint16_t)(df << 8)) };
	uint32_t sum = (uint32_t)hop->sum + words[0] + words[1] + words[2] + words[3];
	uint16_t check = (uint16_t)~checksum_fold32(sum);

	memcpy(outer, hop->header, 20);
	outer[1] = tos;
	memcpy(outer + 2, &words[1], 2);
	memcpy(outer + 4, &words[2], 2);
	outer[6] = df;
	memcpy(outer + 10, &check, 2);
}

/* The same for IPv6; the low 20 bits of flow become the flow label. */
void encap_ipv6(const struct hop *hop, uint8_t *ip, uint32_t length, uint32_t flow);

#endif
