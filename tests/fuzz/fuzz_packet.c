/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Any bytes to the parser, in buffers of exactly their size, so that one byte read too much is caught.  The short way
 * and the long way must agree, and what is rewritten must keep its checksums right.
 *
 * Input: link type, cut, whether to make an IPv4 checksum right, and where an inner checksum begins (1 byte), size of segments
 * (1), then the frame.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "expect.h"
#include "packet/checksum.h"
#include "packet/packet.h"
#include "packet/segment.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

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

/* Segments fit, have right checksums and hold, one after the other, every byte of the payload. */
static void cut(struct packet packet, const struct frame *frame, uint32_t fits)
{
	struct cut plan;

	if (segment_plan(&packet, frame, fits, fits + 20, &plan) != SEGMENTS_SEVERAL)
		return;

	uint32_t count = segment_count(&packet, &plan), at = plan.headers;

	expect(count >= 2 && plan.headers + plan.size <= fits && plan.transport >= packet.transport);
	expect(!frame->gso_size || plan.size == frame->gso_size);
	for (uint32_t n = 0; n < count; n++) {
		uint32_t payload = packet.length - at < plan.size ? packet.length - at : plan.size;
		uint8_t *out = malloc(plan.headers + payload);
		bool none = packet.protocol == 17 && !load16(packet.ip + packet.transport + 6);

		expect(out && segment_write(&packet, &plan, n, out) == plan.headers + payload);
		expect(memcmp(out + plan.headers, packet.ip + at, payload) == 0);
		expect(none || transport_sum(&packet, out, plan.headers + payload - packet.transport) == 0xffff);
		expect(packet.family == 6 || checksum_fold(checksum_add(out, packet.transport, 0)) == 0xffff);
		free(out);
		at += payload;
	}
	expect(at == packet.length);
}

static void leave_to_nic(const struct packet *packet, struct frame *frame)
{
	size_t size = packet->family == 4 ? 4 : 16;
	const uint8_t *source = packet->ip + (packet->family == 4 ? 12 : 8);

	frame->csum_start = (uint16_t)(packet->ip + packet->transport - frame->data);
	frame->csum_offset = packet->protocol == 6 ? 16 : 6;
	store16(packet->ip + packet->transport + frame->csum_offset,
		checksum_fold(checksum_pseudo(source, source + size, size, packet->protocol, transport_length(packet))));
}

static void rewrite(struct packet *packet, struct frame *frame)
{
	expect(packet_decrement_ttl(packet) || packet->ip[packet->family == 4 ? 8 : 7] <= 1);
	expect(packet->family == 6 || checksum_fold(checksum_add(packet->ip, packet->transport, 0)) == 0xffff);

	/* A sender that left it to its NIC, and says so, gets a right checksum. */
	leave_to_nic(packet, frame);
	packet_complete_checksum(packet, frame, false);
	expect(transport_sum(packet, packet->ip, transport_length(packet)) == 0xffff);
}

/* Numbers that a neighbour's driver makes up change two bytes at most, behind the IP header. */
static void lie(const struct packet *packet, struct frame *frame, uint16_t start, uint16_t offset)
{
	uint8_t *before = copy_of(packet->ip, packet->length);
	uint32_t changed = 0, at = 0;

	frame->csum_start = start;
	frame->csum_offset = offset;
	packet_complete_checksum(packet, frame, false);
	for (uint32_t i = 0; i < packet->length; i++) {
		if (packet->ip[i] == before[i])
			continue;
		expect(i >= packet->transport && (!changed++ || i == at + 1));
		at = i;
	}
	expect(changed <= 2);
	free(before);
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
	if (packet_parse_plain(&plain, &frame, link) || packet_parse_plain6(&plain, &frame, link)) {
		expect(packet.reason == REASON_FORWARDED && plain.reason == REASON_FORWARDED);
		expect(plain.ip == packet.ip && plain.length == packet.length && plain.transport == packet.transport);
		expect(plain.family == packet.family && plain.protocol == packet.protocol);
		expect(plain.source_port == packet.source_port && plain.destination_port == packet.destination_port);
	}
	if (packet.reason == REASON_FORWARDED) {
		cut(packet, &frame, 20u + 4u * data[1]);
		frame.gso_size = data[1];
		frame.csum_start = data[0] & 8 ? (uint16_t)(packet.ip - frame.data + 4u * (data[0] >> 4) + packet.transport) : 0;
		frame.csum_offset = data[0] & 16 ? 16 : 6;
		frame.offload = FRAME_TOLD | FRAME_VERIFIED;
		cut(packet, &frame, 80u + 4u * data[1]);
		rewrite(&packet, &frame);
		lie(&packet, &frame, load_be16(packet.ip + packet.length - 2), load_be16(packet.ip + packet.length - 4));
	}
	free(buffer);
	return 0;
}
