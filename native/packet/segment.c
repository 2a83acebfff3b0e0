/* SPDX-License-Identifier: Apache-2.0 */
/* See segment.h. */
#include "packet/segment.h"

#include <arpa/inet.h>
#include <string.h>

#include "packet/checksum.h"

#define IPV6_HEADER 40u
#define JUMBO_HEADER 8u /* a hop-by-hop header with the jumbo payload option and nothing else */
#define UDP_HEADER 8u
#define TCP_HEADER 20u /* without options */
#define TCP_FIELD 16u /* where the checksum is in a transport header */
#define UDP_FIELD 6u

/* ---- plan ---- */

/* Length of the transport header at `at`, 0 where the packet has no whole one there. */
static uint32_t transport_header(const struct packet *packet, uint8_t protocol, uint32_t at)
{
	uint32_t have = packet->length - at, least = protocol == PROTOCOL_TCP ? TCP_HEADER : UDP_HEADER, length = least;

	if (have < least)
		return 0;
	if (protocol == PROTOCOL_TCP)
		length = (packet->ip[at + 12] >> 4) * 4u;
	return length >= least && length <= have ? length : 0;
}

/* Whether an IPv4 header of `header` bytes begins at `ip`, of a packet of that length and protocol. */
static bool is_ipv4(const uint8_t *ip, uint32_t header, uint32_t length, uint8_t protocol)
{
	return ip[0] == (0x40 | header / 4) && load_be16(ip + 2) == length && ip[9] == protocol &&
	       checksum_fold(checksum_add(ip, header, 0)) == 0xffff;
}

/* The IP header that ends where the transport of a tunnel's inner packet begins; 0: there is none. */
static uint32_t inner_header(const struct packet *packet, uint32_t transport, uint8_t protocol)
{
	uint32_t first = packet->transport + UDP_HEADER;

	for (uint32_t header = 20; header <= 60 && first + header <= transport; header += 4)
		if (is_ipv4(packet->ip + transport - header, header, packet->length - transport + header, protocol))
			return transport - header;
	if (first + IPV6_HEADER <= transport) {
		const uint8_t *ip = packet->ip + transport - IPV6_HEADER;

		if (ip[0] >> 4 == 6 && load_be16(ip + 4) == packet->length - transport && ip[6] == protocol)
			return transport - IPV6_HEADER;
	}
	return 0;
}

/* A packet in UDP whose own transport is left to be cut: the io tells of a checksum that begins behind the outer one. */
static bool plan_tunnel(const struct packet *packet, uint32_t start, uint16_t field, struct cut *out)
{
	uint32_t header;

	if (packet->protocol != PROTOCOL_UDP || start > UINT16_MAX || start >= packet->length)
		return false;
	if (load_be16(packet->ip + packet->transport + 4) != packet->length - packet->transport)
		return false;
	out->protocol = field == TCP_FIELD ? PROTOCOL_TCP : PROTOCOL_UDP;
	out->transport = (uint16_t)start;
	out->inner = (uint16_t)inner_header(packet, start, out->protocol);
	header = transport_header(packet, out->protocol, start);
	out->headers = start + header;
	return (field == TCP_FIELD || field == UDP_FIELD) && out->inner && header;
}

static void plan_plain(const struct packet *packet, struct cut *out)
{
	out->protocol = packet->protocol;
	out->transport = packet->transport;
	out->inner = 0;
	out->headers = packet->transport + transport_header(packet, packet->protocol, packet->transport);
}

/* No offload makes one of these from several packets, or several from one: each segment would open, or end, a connection. */
static bool stands_alone(const struct packet *packet, const struct cut *cut)
{
	return cut->protocol == PROTOCOL_TCP && packet->ip[cut->transport + 13] & (TCP_SYN | TCP_RST);
}

/* A UDP datagram that ends before its packet does is no train of them. */
static bool fills_packet(const struct packet *packet, const struct cut *cut)
{
	return cut->protocol == PROTOCOL_TCP ||
	       load_be16(packet->ip + cut->transport + 4) == packet->length - cut->transport;
}

/* What the io says that the packet stands for. */
static enum segments plan_told(const struct packet *packet, const struct frame *frame, uint32_t fits, struct cut *out)
{
	ptrdiff_t start = frame->data + frame->csum_start - packet->ip;

	if (!frame->csum_start || start == packet->transport)
		plan_plain(packet, out);
	else if (start < packet->transport || !plan_tunnel(packet, (uint32_t)start, frame->csum_offset, out))
		return SEGMENTS_TOO_BIG;
	out->size = frame->gso_size;
	if (packet->length <= out->headers + out->size)
		return SEGMENTS_ONE;
	if (out->headers + out->size > fits || !fills_packet(packet, out))
		return SEGMENTS_TOO_BIG;
	return frame->csum_start || frame->offload & FRAME_VERIFIED || packet_checksum_holds(packet) ?
		       SEGMENTS_SEVERAL :
		       SEGMENTS_TOO_BIG;
}

static enum segments plan_capture(const struct packet *packet, const struct frame *frame, uint32_t fits, uint32_t link,
				  struct cut *out)
{
	if (frame->offload & FRAME_TOLD || packet->protocol != PROTOCOL_TCP || packet->length <= link)
		return SEGMENTS_ONE;
	plan_plain(packet, out);
	if (out->headers >= fits || packet->length == out->headers || !packet_checksum_holds(packet))
		return SEGMENTS_TOO_BIG;
	out->size = fits - out->headers;
	return SEGMENTS_SEVERAL;
}

/*
 * Linux tells of a super-packet of IPv6 above 64 KiB in the packet as well: takes that header out.  False: there is another
 * one in its place, that does not say what it is.
 */
static bool drop_jumbo(struct packet *packet)
{
	uint8_t *ip = packet->ip, *header = ip + IPV6_HEADER;

	if (packet->family != 6 || load16(ip + 4) || packet->transport == IPV6_HEADER)
		return true;
	if (ip[6] != 0 || header[1] != 0 || header[2] != 0xc2 || header[3] != 4)
		return false;
	ip[6] = header[0];
	memmove(ip + JUMBO_HEADER, ip, IPV6_HEADER);
	packet->ip += JUMBO_HEADER;
	packet->length -= JUMBO_HEADER;
	packet->transport -= JUMBO_HEADER;
	return true;
}

enum segments segment_plan(struct packet *packet, const struct frame *frame, uint32_t fits, uint32_t link,
			   struct cut *out)
{
	enum segments plan;

	if (!drop_jumbo(packet))
		return SEGMENTS_TOO_BIG;
	plan = frame->gso_size ? plan_told(packet, frame, fits, out) : plan_capture(packet, frame, fits, link, out);
	if (plan != SEGMENTS_SEVERAL)
		return plan;
	out->checksum = out->protocol == PROTOCOL_TCP || load16(packet->ip + out->transport + UDP_FIELD);
	return stands_alone(packet, out) ? SEGMENTS_TOO_BIG : SEGMENTS_SEVERAL;
}

/* ---- whole ---- */

bool segment_stays_whole(const struct packet *packet, const struct frame *frame, const struct cut *cut, uint32_t overhead)
{
	if (cut->protocol != PROTOCOL_TCP || cut->inner) /* Linux 6.18 drops trains of UDP in a tunnel that it must cut */
		return false;
	if (packet->ip[cut->transport + 13] & TCP_URG) /* kernels give each segment the pointer as it is */
		return false;
	return frame->csum_start && packet->length + overhead <= UINT16_MAX;
}

void segment_mark_whole(const struct packet *packet, const struct cut *cut, struct frame *frame)
{
	frame->gso_size = (uint16_t)cut->size;
	frame->csum_start = (uint16_t)(packet->ip - frame->data + packet->transport);
	frame->csum_offset = TCP_FIELD;
	frame->offload = packet->family == 6 ? FRAME_INNER6 : 0;
	if (packet->ip[packet->transport + 13] & TCP_CWR)
		frame->offload |= FRAME_CWR;
}

uint32_t segment_count(const struct packet *packet, const struct cut *cut)
{
	return (packet->length - cut->headers + cut->size - 1) / cut->size;
}

/* ---- write ---- */

static void put16(uint8_t *p, uint16_t value)
{
	store16(p, htons(value));
}

/* Length, ID and checksum of an IP header whose packet is so long now. */
static void fix_ip(uint8_t *ip, uint32_t length, uint32_t n)
{
	uint32_t header = (ip[0] & 15) * 4u;

	if (ip[0] >> 4 == 6) {
		put16(ip + 4, (uint16_t)(length - IPV6_HEADER));
		return;
	}
	put16(ip + 2, (uint16_t)length);
	put16(ip + 4, (uint16_t)(load_be16(ip + 4) + n));
	store16(ip + 10, 0);
	store16(ip + 10, (uint16_t)~checksum_fold(checksum_add(ip, header, 0)));
}

/* The checksum of a transport header and what follows, `length` bytes in all, in the packet at ip. */
static void write_checksum(const uint8_t *ip, uint8_t *header, uint8_t protocol, uint32_t length)
{
	bool four = ip[0] >> 4 == 4;
	uint8_t *field = header + (protocol == PROTOCOL_TCP ? TCP_FIELD : UDP_FIELD);
	uint64_t sum = checksum_pseudo(ip + (four ? 12 : 8), ip + (four ? 16 : 24), four ? 4 : 16, protocol, length);
	uint16_t check;

	store16(field, 0);
	check = (uint16_t)~checksum_fold(checksum_add(header, length, sum));
	/* of UDP zero says that there is none (RFC 768) */
	store16(field, protocol == PROTOCOL_UDP && check == 0 ? 0xffff : check);
}

static void fix_tcp(uint8_t *tcp, uint32_t moved, bool last)
{
	uint32_t sequence;
	uint16_t urgent = load_be16(tcp + 18);

	memcpy(&sequence, tcp + 4, 4);
	sequence = htonl(ntohl(sequence) + moved);
	memcpy(tcp + 4, &sequence, 4);
	if (!last)
		tcp[13] &= (uint8_t)~(TCP_FIN | TCP_PSH);
	if (!moved)
		return;
	tcp[13] &= (uint8_t)~TCP_CWR;
	if (!(tcp[13] & TCP_URG))
		return;
	/* It counts from the sequence number; what was urgent has been said where it points at or before that. */
	if (urgent <= moved)
		tcp[13] &= (uint8_t)~TCP_URG;
	put16(tcp + 18, urgent > moved ? (uint16_t)(urgent - moved) : 0);
}

/* Lengths from the inside out: each header is right before the checksum of the one around it is made. */
static void fix_tunnel(const struct packet *packet, const struct cut *cut, uint8_t *out, uint32_t length, uint32_t n)
{
	uint8_t *udp = out + packet->transport;

	fix_ip(out + cut->inner, length - cut->inner, n);
	put16(udp + 4, (uint16_t)(length - packet->transport));
}

uint32_t segment_write(const struct packet *packet, const struct cut *cut, uint32_t n, uint8_t *out)
{
	uint32_t moved = n * cut->size, payload = packet->length - cut->headers - moved, length;
	uint8_t *transport = out + cut->transport;
	bool last = payload <= cut->size;

	if (!last)
		payload = cut->size;
	length = cut->headers + payload;
	memcpy(out, packet->ip, cut->headers);
	memcpy(out + cut->headers, packet->ip + cut->headers + moved, payload);
	if (cut->inner)
		fix_tunnel(packet, cut, out, length, n);
	fix_ip(out, length, n);
	if (cut->protocol == PROTOCOL_TCP)
		fix_tcp(transport, moved, last);
	else
		put16(transport + 4, (uint16_t)(length - cut->transport));
	if (cut->checksum)
		write_checksum(out + cut->inner, transport, cut->protocol, length - cut->transport);
	/* What a tunnel does without, it does without. */
	if (cut->inner && load16(out + packet->transport + UDP_FIELD))
		write_checksum(out, out + packet->transport, PROTOCOL_UDP, length - packet->transport);
	return length;
}
