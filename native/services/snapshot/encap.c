/* SPDX-License-Identifier: Apache-2.0 */
/* See encap.h. */
#include "services/snapshot/encap.h"

#include <arpa/inet.h>
#include <string.h>

#include "packet/checksum.h"

#define PROTOCOL_IPV4 4
#define PROTOCOL_IPV6 41

void encap_prepare(struct hop *hop, const struct hop_spec *spec)
{
	uint8_t *outer = hop->start + HOP_LINK_BYTES;

	memset(hop, 0, sizeof(*hop));
	hop->family = spec->family;
	hop->ifindex = spec->ifindex;
	hop->resolved = spec->resolved != 0;
	hop->ready = hop->resolved ? hop->family : 0;
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
