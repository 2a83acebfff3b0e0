/* SPDX-License-Identifier: Apache-2.0 */
/* See checksum.h. */
#include "checksum.h"

#include <arpa/inet.h>
#include <string.h>

uint64_t checksum_add(const void *data, size_t len, uint64_t sum)
{
	const uint8_t *p = data;
	uint32_t word;
	uint16_t half;

	/* 32-bit words into a 64-bit sum: no carry to mind below 16 GiB, and the compiler can vectorise it. */
	for (; len >= 4; len -= 4, p += 4) {
		memcpy(&word, p, 4);
		sum += word;
	}
	if (len >= 2) {
		memcpy(&half, p, 2);
		sum += half;
		p += 2;
		len -= 2;
	}
	if (len) {
		half = 0;
		memcpy(&half, p, 1);
		sum += half;
	}
	return sum;
}

uint64_t checksum_pseudo(const void *source, const void *destination, size_t addr_len, uint8_t protocol,
			 uint32_t length)
{
	uint64_t sum = checksum_add(source, addr_len, 0);

	sum = checksum_add(destination, addr_len, sum);
	return sum + htonl(length) + htons(protocol);
}
