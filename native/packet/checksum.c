/* SPDX-License-Identifier: Apache-2.0 */
/* See checksum.h. */
#include "packet/checksum.h"

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

bool checksum_finish(uint8_t *packet, uint32_t length, uint32_t first, uint32_t start, uint32_t offset)
{
	uint16_t check;

	if (start < first || start > length || offset > length - start || length - start - offset < sizeof(check))
		return false;
	check = (uint16_t)~checksum_fold(checksum_add(packet + start, length - start, 0));
	/* Zero and all ones are the same sum, but of UDP zero says that there is none (RFC 768); only TCP (16) has no such word. */
	if (!check && offset != 16)
		check = 0xffff;
	memcpy(packet + start + offset, &check, sizeof(check));
	return true;
}

uint64_t checksum_pseudo(const void *source, const void *destination, size_t addr_len, uint8_t protocol,
			 uint32_t length)
{
	uint64_t sum = checksum_add(source, addr_len, 0);

	sum = checksum_add(destination, addr_len, sum);
	return sum + htonl(length) + htons(protocol);
}
