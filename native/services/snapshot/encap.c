/* SPDX-License-Identifier: Apache-2.0 */
/* See encap.h. */
#include "services/snapshot/encap.h"

#include <arpa/inet.h>
#include <string.h>

#include "packet/checksum.h"

#define PROTOCOL_IPV4 4
#define PROTOCOL_IPV6 41
#define PORT_FIRST 0xc000u /* source ports are of the dynamic range (RFC 6335), 14 bits */

void encap_prepare(struct hop *hop, const struct hop_spec *spec)
{
	uint8_t *outer = hop->start + HOP_LINK_BYTES;

	memset(hop, 0, sizeof(*hop));
	hop->family = spec->family;
	hop->ifindex = spec->ifindex;
	hop->resolved = spec->resolved != 0;
	hop->tunnel = spec->tunnel;
	hop->ready = hop->resolved && hop->tunnel == TUNNEL_IP && !spec->mtu ? hop->family : 0;
	memcpy(hop->start, spec->mac, 6);
	memcpy(hop->start + 6, spec->source_mac, 6);
	memcpy(hop->start + 12, spec->family == 4 ? "\x08\x00" : "\x86\xdd", 2);
	if (spec->family == 4) {
		outer[0] = 0x45;
		outer[8] = ENCAP_TTL;
		outer[9] = PROTOCOL_IPV4;
		memcpy(outer + 12, spec->source, 4);
		memcpy(outer + 16, spec->destination, 4);
		hop->sum = checksum_fold(checksum_add(outer + 8, 12, 0));
	} else {
		outer[0] = 0x60;
		outer[6] = PROTOCOL_IPV6;
		outer[7] = ENCAP_TTL;
		memcpy(outer + 8, spec->source, 16);
		memcpy(outer + 24, spec->destination, 16);
	}
}

/* ---- what has no template of its own ---- */

/* What the outer header takes from the packet. */
struct inner {
	uint8_t protocol; /* that says which family it is */
	uint8_t tos;
	bool df;
};

static struct inner read_inner(const uint8_t *ip)
{
	if (ip[0] >> 4 == 4)
		return (struct inner){ PROTOCOL_IPV4, ip[1], ip[6] & 0x40 };
	return (struct inner){ PROTOCOL_IPV6, (uint8_t)(ip[0] << 4 | ip[1] >> 4), true };
}

/* Variant 0: no control message, no optional fields; what follows is of that protocol. */
static void write_gue(uint8_t *gue, uint8_t protocol)
{
	gue[0] = 0;
	gue[1] = protocol;
	store16(gue + 2, 0);
}

static void write_udp(uint8_t *udp, uint16_t port, uint32_t length, uint32_t flow)
{
	store16(udp, htons((uint16_t)(PORT_FIRST | (flow & 0x3fff))));
	store16(udp + 2, htons(port));
	store16(udp + 4, htons((uint16_t)length));
	store16(udp + 6, 0);
}

static void write_ipv4(const struct hop *hop, uint8_t *outer, const struct inner *inner, uint8_t protocol, uint32_t length,
		       uint16_t *id)
{
	memcpy(outer, hop->start + HOP_LINK_BYTES, 20);
	outer[1] = inner->tos;
	store16(outer + 2, htons((uint16_t)length));
	if (inner->df)
		outer[6] = 0x40;
	else
		store16(outer + 4, htons((*id)++));
	outer[9] = protocol;
	store16(outer + 10, (uint16_t)~checksum_fold(checksum_add(outer, 20, 0)));
}

static void write_ipv6(const struct hop *hop, uint8_t *outer, const struct inner *inner, uint8_t protocol, uint32_t length,
		       uint32_t flow)
{
	uint32_t first = htonl(6u << 28 | (uint32_t)inner->tos << 20 | (flow & 0xfffff));

	memcpy(outer, hop->start + HOP_LINK_BYTES, 40);
	memcpy(outer, &first, 4);
	store16(outer + 4, htons((uint16_t)length));
	outer[6] = protocol;
}

void encap_tunnel(const struct hop *hop, uint16_t port, uint8_t *ip, uint32_t length, uint16_t *id, uint32_t flow)
{
	struct inner inner = read_inner(ip);
	uint8_t protocol = inner.protocol, *outer = ip;

	if (hop->tunnel == TUNNEL_GUE) {
		outer -= ENCAP_GUE_BYTES;
		write_gue(outer, inner.protocol);
	}
	if (hop->tunnel != TUNNEL_IP) {
		protocol = PROTOCOL_UDP;
		outer -= ENCAP_UDP_BYTES;
		write_udp(outer, port, length + (uint32_t)(ip - outer), flow);
	}
	length += (uint32_t)(ip - outer);
	if (hop->family == 4)
		write_ipv4(hop, outer - 20, &inner, protocol, length + 20, id);
	else
		write_ipv6(hop, outer - 40, &inner, protocol, length, flow);
}
