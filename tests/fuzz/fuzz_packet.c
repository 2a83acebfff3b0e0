/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Any bytes to the parser, in buffers of exactly their size, so that one byte read too much is caught.  The short way
 * and the long way must agree, and what is rewritten must keep its checksums right.
 *
 * Input: link type, cut, and whether to make an IPv4 checksum right (1 byte), size of segments (1), then the frame.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "checksum.h"
#include "packet.h"
#include "segment.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void expect(bool claim)
{
	if (!claim)
		abort();
}

static uint8_t *copy_of(const uint8_t *data, size_t size)
{
	uint8_t *copy = malloc(size ? size : 1);

	expect(copy != NULL);
	memcpy(copy, data, size);
	return copy;
}

/* No fuzzer gets past a checksum by itself. */
static void make_right(uint8_t *ip, uint32_t length)
{
	uint32_t header = length ? (ip[0] & 15) * 4u : 0;
	uint16_t sum;

	if (header < 20 || header > length)
		return;
	memset(ip + 10, 0, 2);
	sum = (uint16_t)~checksum_fold(checksum_add(ip, header, 0));
	memcpy(ip + 10, &sum, 2);
}

static uint16_t transport_sum(const struct packet *packet, const uint8_t *ip, uint32_t length)
{
	size_t size = packet->family == 4 ? 4 : 16;
	const uint8_t *source = ip + (packet->family == 4 ? 12 : 8);
	uint64_t sum = checksum_pseudo(source, source + size, size, packet->protocol, length);

	return checksum_fold(checksum_add(ip + packet->transport, length, sum));
}

static uint32_t transport_length(const struct packet *packet)
{
	return packet->protocol == 6 ? packet->length - packet->transport :
				       load_be16(packet->ip + packet->transport + 4);
}

/* What the long way finds; what it leaves for a packet that goes on lies within the frame. */
static void parse(struct packet *packet, const struct frame *frame, enum link_type link)
{
	packet_parse_network(packet, frame, link);
	if (packet->reason == REASON_FORWARDED)
		packet_parse_transport(packet, frame);
	expect(packet->reason < REASON_COUNT);
	if (packet->reason != REASON_FORWARDED)
		return;
	expect(packet->ip >= frame->data && packet->ip + packet->length <= frame->data + frame->len);
	expect(packet->transport >= (packet->family == 4 ? 20 : 40));
	expect(packet->protocol == 6 || packet->protocol == 17);
	expect(packet->transport + (packet->protocol == 6 ? 20u : 8u) <= packet->length);
}

/* Segments have right checksums and hold, one after the other, every byte of the payload. */
static void cut(const struct packet *packet, uint32_t size)
{
	uint32_t headers = segment_headers(packet), count = segment_count(packet, size), at = headers;

	for (uint32_t n = 0; n < count; n++) {
		uint32_t payload = packet->length - at < size ? packet->length - at : size;
		uint8_t *out = malloc(headers + payload);

		expect(out && segment_write(packet, size, n, out) == headers + payload);
		expect(memcmp(out + headers, packet->ip + at, payload) == 0);
		expect(transport_sum(packet, out, headers + payload - packet->transport) == 0xffff);
		expect(packet->family == 6 || checksum_fold(checksum_add(out, packet->transport, 0)) == 0xffff);
		free(out);
		at += payload;
	}
	expect(at == packet->length);
}

static void rewrite(struct packet *packet, struct frame *frame)
{
	expect(packet_decrement_ttl(packet) || packet->ip[packet->family == 4 ? 8 : 7] <= 1);
	expect(packet->family == 6 || checksum_fold(checksum_add(packet->ip, packet->transport, 0)) == 0xffff);

	/* Whatever lies in the field, a sender that says so gets a right checksum. */
	frame->csum_start = (uint16_t)(packet->ip + packet->transport - frame->data);
	packet_complete_checksum(packet, frame, false);
	expect(transport_sum(packet, packet->ip, transport_length(packet)) == 0xffff);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (size < 2)
		return 0;

	enum link_type link = data[0] & 1 ? LINK_ETHERNET : LINK_RAW_IP;
	uint8_t *buffer = copy_of(data + 2, size - 2);
	struct frame frame = { .data = buffer, .len = (uint32_t)size - 2, .wire_len = (uint32_t)size - 2 };
	struct packet packet, plain;

	frame.wire_len += data[0] & 2;
	if (data[0] & 4 && frame.len > ETHERNET_HEADER)
		make_right(buffer + (data[0] & 1) * ETHERNET_HEADER, frame.len - (data[0] & 1) * ETHERNET_HEADER);
	parse(&packet, &frame, link);
	if (packet_parse_plain(&plain, &frame, link)) {
		expect(packet.reason == REASON_FORWARDED && plain.reason == REASON_FORWARDED);
		expect(plain.ip == packet.ip && plain.length == packet.length && plain.transport == packet.transport);
		expect(plain.family == packet.family && plain.protocol == packet.protocol);
		expect(plain.source_port == packet.source_port && plain.destination_port == packet.destination_port);
	}
	if (packet.reason == REASON_FORWARDED) {
		cut(&packet, data[1] + 1u);
		rewrite(&packet, &frame);
	}
	free(buffer);
	return 0;
}
