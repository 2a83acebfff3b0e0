/* SPDX-License-Identifier: Apache-2.0 */
/* See fragment.h. */
#include "packet/fragment.h"

#include <string.h>

#define MORE 0x2000u
#define OFFSET 0x1fffu
#define OPTION_COPIED 0x80u
#define DATAGRAM_MAX 65535u

static uint32_t header4(const uint8_t *ip)
{
	return (ip[0] & 15) * 4u;
}

/* Where the fragment header of an IPv6 packet is that has one: atomic ones before it (RFC 6946) are none. */
static uint32_t fragment_header6(const uint8_t *ip)
{
	uint8_t next = ip[6];
	uint32_t at = 40;

	while (next != PROTOCOL_FRAGMENT || !(load_be16(ip + at + 2) & 0xfff9)) {
		uint32_t size = 8u + (next == PROTOCOL_FRAGMENT ? 0u : ip[at + 1] * 8u);

		next = ip[at];
		at += size;
	}
	return at;
}

/* What is in a datagram of which this fragment may be. */
static enum reason check_protocol(const struct packet *packet, uint8_t protocol)
{
	if (protocol == PROTOCOL_TCP || protocol == PROTOCOL_UDP || (packet->family == 6 && packet_is_extension6(protocol)))
		return REASON_FRAGMENT;
	return protocol == PROTOCOL_ICMP || protocol == PROTOCOL_ICMPV6 ? REASON_ICMP : REASON_BAD_PROTOCOL;
}

enum reason fragment_read(const struct packet *packet, struct fragment *out)
{
	const uint8_t *ip = packet->ip;
	uint32_t header, where;

	if (packet->family == 4) {
		header = header4(ip);
		where = load_be16(ip + 6);
		*out = (struct fragment){ .id = load_be16(ip + 4), .offset = (where & OFFSET) * 8, .more = where & MORE,
					  .protocol = ip[9] };
	} else {
		header = fragment_header6(ip);
		where = load_be16(ip + header + 2);
		*out = (struct fragment){ .id = (uint32_t)load_be16(ip + header + 4) << 16 | load_be16(ip + header + 6),
					  .offset = where & 0xfff8, .more = where & 1, .protocol = ip[header] };
		header += 8;
	}
	out->size = packet->length - header;
	if (!out->size || (out->more && out->size % 8) || out->offset + out->size > DATAGRAM_MAX)
		return REASON_BAD_FRAGMENT;
	if (out->protocol == PROTOCOL_TCP && out->offset && out->offset < 20)
		return REASON_BAD_FRAGMENT;
	return check_protocol(packet, out->protocol);
}

/* Steps over the extension headers behind the fragment's; false: the chain goes on in the next fragment, or is too long. */
static bool find_transport6(struct packet *packet)
{
	uint32_t at = fragment_header6(packet->ip);
	uint8_t next = packet->ip[at];

	at += 8;
	for (unsigned i = 0; packet_is_extension6(next); i++) {
		if (i == IPV6_EXTENSIONS_MAX || next == PROTOCOL_FRAGMENT || at + 8 > packet->length)
			return false;
		next = packet->ip[at];
		at += 8u + packet->ip[at + 1] * 8u;
	}
	if (at > packet->length)
		return false;
	packet->transport = (uint16_t)at;
	packet->protocol = next;
	return true;
}

enum reason fragment_open(struct packet *packet)
{
	const uint8_t *header;
	uint32_t have;

	if (packet->family == 6 && !find_transport6(packet))
		return REASON_BAD_FRAGMENT;
	header = packet->ip + packet->transport;
	have = packet->length - packet->transport;
	switch (packet->protocol) {
	case PROTOCOL_TCP:
		if (have < 20 || (header[12] >> 4) * 4u > have)
			return REASON_BAD_FRAGMENT;
		if (header[12] >> 4 < 5)
			return REASON_BAD_HEADER;
		packet->flags = header[13];
		break;
	case PROTOCOL_UDP:
		if (have < 8)
			return REASON_BAD_FRAGMENT;
		if (load_be16(header + 4) < 8)
			return REASON_BAD_HEADER;
		packet->flags = 0;
		break;
	default:
		return check_protocol(packet, packet->protocol);
	}
	packet->source_port = load16(header);
	packet->destination_port = load16(header + 2);
	return REASON_FRAGMENT;
}

uint32_t fragment_step(const uint8_t *ip, uint32_t fits)
{
	uint32_t header = header4(ip);

	return fits > header ? (fits - header) & ~7u : 0;
}

/* Writes those options that every piece has, padded to whole words; returns their length. */
static uint32_t copy_options(const uint8_t *options, uint32_t length, uint8_t *out)
{
	uint32_t at = 0, written = 0;

	while (at < length && options[at]) {
		uint32_t size = options[at] == 1 || at + 1 == length ? 1 : options[at + 1];

		if (options[at] != 1 && (size < 2 || size > length - at))
			break; /* they do not hold together: what can be read is kept */
		if (options[at] & OPTION_COPIED) {
			memcpy(out + written, options + at, size);
			written += size;
		}
		at += size;
	}
	while (written % 4)
		out[written++] = 0;
	return written;
}

uint32_t fragment_write(const uint8_t *ip, uint32_t length, uint32_t step, uint32_t n, uint8_t *out)
{
	uint32_t before = header4(ip), from = n * step, size, header = before;
	uint16_t where = load_be16(ip + 6);
	bool last;

	if (from >= length - before)
		return 0;
	size = length - before - from;
	last = size <= step;
	if (!last)
		size = step;
	memcpy(out, ip, n ? 20 : before);
	if (n)
		header = 20 + copy_options(ip + 20, before - 20, out + 20);
	memcpy(out + header, ip + before + from, size);
	where = (uint16_t)((where & ~(MORE | OFFSET)) | (last ? where & MORE : MORE) | ((where & OFFSET) + from / 8));
	out[0] = (uint8_t)(0x40 | header / 4);
	store16(out + 2, htons((uint16_t)(header + size)));
	store16(out + 6, htons(where));
	store16(out + 10, 0);
	store16(out + 10, (uint16_t)~checksum_fold(checksum_add(out, header, 0)));
	return header + size;
}
