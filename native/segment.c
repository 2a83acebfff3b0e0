/* SPDX-License-Identifier: Apache-2.0 */
/* See segment.h. */
#include "segment.h"

#include <arpa/inet.h>
#include <string.h>

#include "checksum.h"

uint32_t segment_headers(const struct packet *packet)
{
	bool tcp = packet->protocol == PROTOCOL_TCP;

	return packet->transport + (tcp ? (packet->ip[packet->transport + 12] >> 4) * 4u : 8u);
}

uint32_t segment_count(const struct packet *packet, uint32_t size)
{
	uint32_t payload = packet->length - segment_headers(packet);

	return payload ? (payload + size - 1) / size : 1;
}

static void put16(uint8_t *p, uint16_t value)
{
	value = htons(value);
	memcpy(p, &value, 2);
}

static void fix_ipv4(uint8_t *ip, uint32_t header, uint32_t length, uint32_t n)
{
	uint16_t id, check;

	memcpy(&id, ip + 4, 2);
	put16(ip + 2, (uint16_t)length);
	put16(ip + 4, (uint16_t)(ntohs(id) + n));
	memset(ip + 10, 0, 2);
	check = (uint16_t)~checksum_fold(checksum_add(ip, header, 0));
	memcpy(ip + 10, &check, 2);
}

static uint16_t transport_checksum(const struct packet *packet, const uint8_t *header, uint32_t length)
{
	uint64_t sum = checksum_pseudo(packet_source(packet), packet_destination(packet), packet->family == 4 ? 4 : 16,
				       packet->protocol, length);

	return (uint16_t)~checksum_fold(checksum_add(header, length, sum));
}

static void fix_tcp(const struct packet *packet, uint8_t *tcp, uint32_t length, uint32_t moved, bool last)
{
	uint32_t sequence;
	uint16_t check;

	memcpy(&sequence, tcp + 4, 4);
	sequence = htonl(ntohl(sequence) + moved);
	memcpy(tcp + 4, &sequence, 4);
	if (!last)
		tcp[13] &= (uint8_t)~(TCP_FIN | TCP_PSH);
	if (moved)
		tcp[13] &= (uint8_t)~TCP_CWR;
	memset(tcp + 16, 0, 2);
	check = transport_checksum(packet, tcp, length);
	memcpy(tcp + 16, &check, 2);
}

static void fix_udp(const struct packet *packet, uint8_t *udp, uint32_t length)
{
	uint16_t check;

	put16(udp + 4, (uint16_t)length);
	memset(udp + 6, 0, 2);
	check = transport_checksum(packet, udp, length);
	if (!check)
		check = 0xffff; /* zero says that there is none (RFC 768) */
	memcpy(udp + 6, &check, 2);
}

uint32_t segment_write(const struct packet *packet, uint32_t size, uint32_t n, uint8_t *out)
{
	uint32_t headers = segment_headers(packet), start = n * size;
	uint32_t payload = packet->length - headers - start;
	bool last = payload <= size;

	if (!last)
		payload = size;
	memcpy(out, packet->ip, headers);
	memcpy(out + headers, packet->ip + headers + start, payload);
	if (packet->family == 4)
		fix_ipv4(out, packet->transport, headers + payload, n);
	else
		put16(out + 4, (uint16_t)(headers + payload - 40));
	if (packet->protocol == PROTOCOL_TCP)
		fix_tcp(packet, out + packet->transport, headers - packet->transport + payload, start, last);
	else
		fix_udp(packet, out + packet->transport, headers - packet->transport + payload);
	return headers + payload;
}
