/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The Internet checksum (RFC 1071) and its incremental update (RFC 1624).  Sums are kept in memory order: a sum over
 * bytes as they lie in the packet, stored back without swapping, is right on either byte order (RFC 1071, 2.B).
 */
#ifndef VIPMUX_CHECKSUM_H
#define VIPMUX_CHECKSUM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* Adds len bytes to a running sum; only the last piece of a packet may have an odd length. */
uint64_t checksum_add(const void *data, size_t len, uint64_t sum);

/* Folds to 16 bits, not complemented. */
static inline uint16_t checksum_fold(uint64_t sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (uint16_t)sum;
}

/* The same for a sum of a few 16-bit words. */
static inline uint16_t checksum_fold32(uint32_t sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (uint16_t)sum;
}

/* The same for a sum that fits 64 bits, in fewer steps: each half is added to the other, and the carry comes back by itself. */
static inline uint16_t checksum_fold64(uint64_t sum)
{
	uint32_t half;

	sum += sum << 32 | sum >> 32;
	half = (uint32_t)(sum >> 32);
	half += half << 16 | half >> 16;
	return (uint16_t)(half >> 16);
}

/*
 * Whether the checksum of an IPv4 header without options is right: whether its words add up to a multiple of 0xffff.  Larger
 * words do so as well, for 2^16 is 1 in that arithmetic, and a carry out of 2^64 comes back as 1.  (They never add up to 0.)
 */
static inline bool checksum_header20_holds(const uint8_t *header)
{
	uint64_t words[2], sum;
	uint32_t last;

	memcpy(words, header, 16);
	memcpy(&last, header + 16, 4);
	sum = words[0] + words[1];
	sum += sum < words[0];
	sum += last;
	sum += sum < last;
	return sum % 0xffff == 0;
}

/* The checksum field after the 16-bit word `from` became `to`; all three as they lie in memory (RFC 1624, eqn. 3). */
static inline uint16_t checksum_replace(uint16_t check, uint16_t from, uint16_t to)
{
	return (uint16_t)~checksum_fold32((uint32_t)(uint16_t)~check + (uint16_t)~from + to);
}

/*
 * Finishes a checksum that a sender left to its NIC: over packet[start..length), whose field at start + offset holds the sum
 * of the pseudo-header and whatever else counts.  False, and nothing touched, where start lies before `first` or the field
 * behind the packet: it is not told where.  What the field held counts: data that was wrong before is not made right.
 */
bool checksum_finish(uint8_t *packet, uint32_t length, uint32_t first, uint32_t start, uint32_t offset);

/* Sum of the pseudo-header; addresses point into the IP header (addr_len 4 or 16 each), length in host order. */
uint64_t checksum_pseudo(const void *source, const void *destination, size_t addr_len, uint8_t protocol,
			 uint32_t length);

#endif
