/* SPDX-License-Identifier: Apache-2.0 */
/* See encap.h. */
#include "encap.h"

#include <arpa/inet.h>
#include <string.h>

#include "checksum.h"

#define PROTOCOL_IPV4 4
#define PROTOCOL_IPV6 41

void encap_prepare(struct hop *hop, const struct hop_spec *spec)
{
	memset(hop, 0, sizeof(*hop));
	hop->family = spec->family;
	hop->ifindex = spec->ifindex;
	hop->resolved = spec->resolved != 0;
	memcpy(hop->mac, spec->mac, 6);
	memcpy(hop->source_mac, spec->source_mac, 6);
	hop->ethertype[0] = spec->family == 4 ? 0x08 : 0x86;
	hop->ethertype[1] = spec->family == 4 ? 0x00 : 0xdd;
	if (spec->family == 4) {
		hop->header[0] = 0x45;
		hop->header[8] = ENCAP_TTL;
		hop->header[9] = PROTOCOL_IPV4;
		memcpy(hop->header + 12, spec->source, 4);
		memcpy(hop->header + 16, spec->destination, 4);
		hop->sum = checksum_fold(checksum_add(hop->header, 20, 0));
	} else {
		hop->header[0] = 0x60;
		hop->header[6] = PROTOCOL_IPV6;
		hop->header[7] = ENCAP_TTL;
		memcpy(hop->header + 8, spec->source, 16);
		memcpy(hop->header + 24, spec->destination, 16);
	}
}

void encap_ipv6(const struct hop *hop, uint8_t *ip, uint32_t length, uint32_t flow)
{
	uint8_t *outer = ip - 40;
	uint32_t class = (uint32_t)(ip[0] & 0x0f) << 24 | (uint32_t)(ip[1] & 0xf0) << 16;
	uint32_t first = htonl(0x60000000u | class | (flow & 0xfffff));
	uint16_t payload = htons((uint16_t)length);

	memcpy(outer, hop->header, 40);
	memcpy(outer, &first, 4);
	memcpy(outer + 4, &payload, 2);
}
