/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An address of either family as two words, for masking and comparing.  Bytes lie as in a packet, in wire order; of an IPv4
 * address they are the first four, the others are zero.
 */
#ifndef VIPMUX_ADDRESS_H
#define VIPMUX_ADDRESS_H

#include <stdint.h>
#include <string.h>

static inline void address_load(uint8_t family, const uint8_t *address, uint64_t out[2])
{
	uint32_t word;

	if (family == 6) {
		memcpy(out, address, 16);
		return;
	}
	memcpy(&word, address, 4);
	out[0] = word;
	out[1] = 0;
}

/* The first `bits` bits of such an address, 0 to 128. */
static inline void address_mask(uint8_t bits, uint64_t mask[2])
{
	uint8_t bytes[16] = { 0 };

	for (unsigned i = 0; i < bits; i++)
		bytes[i / 8] |= (uint8_t)(0x80 >> i % 8);
	memcpy(mask, bytes, 16);
}

#endif
