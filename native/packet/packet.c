/* SPDX-License-Identifier: Apache-2.0 */
/* See packet.h. */
#include "packet/packet.h"

/* ---- network header ---- */

/* Bytes of the frame from the IP header on. */
static inline uint32_t room(const struct packet *packet, const struct frame *frame)
{
	return frame->len - (uint32_t)(packet->ip - frame->data);
}

/*
 * The type behind a tag whose VLAN is none, of which the priority alone counts (IEEE 802.1Q, 6.9): *ip goes on by the tag.  Of a VLAN
 * the tag's own type.
 */
static NEVER_INLINE uint16_t behind_priority_tag(uint16_t ethertype, const struct frame *frame, uint8_t **ip)
{
	if (frame->len < ETHERNET_HEADER + ETHERNET_TAG || load_be16(*ip) & 0x0fff)
		return ethertype;
	*ip += ETHERNET_TAG;
	return load_be16(*ip - 2);
}

static enum reason parse_link(struct packet *packet, const struct frame *frame, enum link_type link)
{
	uint16_t ethertype;

	if (UNLIKELY(frame->len < frame->wire_len))
		return REASON_TRUNCATED;
	packet->ip = frame->data;
	if (link == LINK_ETHERNET) {
		if (UNLIKELY(frame->len < ETHERNET_HEADER))
			return REASON_BAD_HEADER;
		packet->ip += ETHERNET_HEADER;
		ethertype = load_be16(packet->ip - 2);
		if (UNLIKELY(ethertype == ETHERTYPE_VLAN || ethertype == ETHERTYPE_SERVICE_VLAN))
			ethertype = behind_priority_tag(ethertype, frame, &packet->ip);
		packet->family = ethertype == ETHERTYPE_IPV4 ? 4 : ethertype == ETHERTYPE_IPV6 ? 6 : 0;
	} else if (frame->len) {
		packet->family = packet->ip[0] >> 4;
	}
	if (packet->family != 4 && packet->family != 6)
		return REASON_NOT_IP;
	return REASON_FORWARDED;
}

/*
 * What the length field of a header says that the packet has, of the bytes that are there.  In super-packets of more than
 * 64 KiB Linux leaves it zero (BIG TCP), and the io alone knows.
 */
static uint32_t stated_length(uint16_t field, uint32_t have, const struct frame *frame)
{
	return LIKELY(field || !frame->gso_size || have <= UINT16_MAX) ? field : have;
}

void packet_parse_network(struct packet *packet, const struct frame *frame, enum link_type link)
{
	*packet = (struct packet){ .ip = frame->data };
	packet->reason = parse_link(packet, frame, link);
	if (UNLIKELY(packet->reason != REASON_FORWARDED))
		return;

	const uint8_t *ip = packet->ip;
	uint32_t have = room(packet, frame);

	if (packet->family == 4) {
		if (UNLIKELY(have < 20 || ip[0] >> 4 != 4 || (ip[0] & 15) < 5 || (ip[0] & 15u) * 4 > have)) {
			packet->reason = REASON_BAD_HEADER;
			return;
		}
		packet->length = stated_length(load_be16(ip + 2), have, frame);
		packet->transport = (uint16_t)((ip[0] & 15) * 4);
		packet->protocol = ip[9];
	} else {
		if (UNLIKELY(have < 40 || ip[0] >> 4 != 6)) {
			packet->reason = REASON_BAD_HEADER;
			return;
		}
		packet->length = 40u + stated_length(load_be16(ip + 4), have - 40, frame);
		packet->transport = 40;
		packet->protocol = ip[6];
	}
	/* Good enough to look for the service; packet_parse_transport() says whether they are really ports. */
	if (LIKELY(have >= packet->transport + 4u)) {
		packet->source_port = load16(ip + packet->transport);
		packet->destination_port = load16(ip + packet->transport + 2);
	}
}

/* ---- transport header ---- */

static enum reason check_source4(const uint8_t *source, const uint8_t *destination)
{
	if (source[0] == 0 || source[0] == 127 || (source[0] & 0xf0) == 0xe0 ||
	    (source[0] & source[1] & source[2] & source[3]) == 255 || memcmp(source, destination, 4) == 0)
		return REASON_BAD_SOURCE;
	if (source[0] == 169 && source[1] == 254)
		return REASON_LINK_LOCAL_SOURCE;
	return source[0] >= 240 ? REASON_RESERVED_SOURCE : REASON_FORWARDED;
}

static enum reason check_source6(const uint8_t *source, const uint8_t *destination)
{
	static const uint8_t zero[15], mapped[12] = { [10] = 0xff, [11] = 0xff };

	/* :: and ::1, multicast, and the destination itself */
	if ((memcmp(source, zero, 15) == 0 && source[15] <= 1) || source[0] == 0xff || memcmp(source, destination, 16) == 0)
		return REASON_BAD_SOURCE;
	if (source[0] == 0xfe && (source[1] & 0xc0) == 0x80)
		return REASON_LINK_LOCAL_SOURCE;
	return memcmp(source, mapped, sizeof(mapped)) == 0 ? REASON_MAPPED_SOURCE : REASON_FORWARDED;
}

#define OPTION_END 0
#define OPTION_NOP 1
#define OPTION_LSRR 131
#define OPTION_SSRR 137

/* Whether a source route says where to go on from here (RFC 791, 3.1).  Options that do not hold together are the host's to judge. */
static bool is_source_routed(const uint8_t *option, const uint8_t *end)
{
	while (option < end && *option != OPTION_END) {
		uint8_t length;

		if (*option == OPTION_NOP) {
			option++;
			continue;
		}
		if (end - option < 2)
			return false;
		length = option[1];
		if ((*option == OPTION_LSRR || *option == OPTION_SSRR) && end - option >= 3 && option[2] <= length)
			return true;
		if (length < 2)
			return false;
		option += length;
	}
	return false;
}

static enum reason check_ipv4(const struct packet *packet)
{
	const uint8_t *ip = packet->ip;

	if (UNLIKELY(packet->length < packet->transport))
		return REASON_BAD_HEADER;
	if (UNLIKELY(checksum_fold(checksum_add(ip, packet->transport, 0)) != 0xffff))
		return REASON_BAD_CHECKSUM;
	enum reason source = check_source4(ip + 12, ip + 16);

	if (UNLIKELY(source != REASON_FORWARDED))
		return source;
	if (UNLIKELY(is_source_routed(ip + 20, ip + packet->transport)))
		return REASON_SOURCE_ROUTE;
	/* more fragments, or an offset */
	if (UNLIKELY(load_be16(ip + 6) & 0x3fff))
		return REASON_FRAGMENT;
	return REASON_FORWARDED;
}

/* Steps over extension headers; leaves transport and protocol at what follows them. */
static enum reason check_ipv6(struct packet *packet)
{
	const uint8_t *ip = packet->ip;
	uint32_t offset = 40;
	uint8_t next = ip[6];

	enum reason source = check_source6(ip + 8, ip + 24);

	if (UNLIKELY(source != REASON_FORWARDED))
		return source;
	for (unsigned i = 0; packet_is_extension6(next); i++) {
		bool fragment = next == PROTOCOL_FRAGMENT, complete = offset + 8 <= packet->length;

		if (i == IPV6_EXTENSIONS_MAX || !complete)
			return REASON_BAD_HEADER;
		/* An offset, or more to come; neither: the fragment is all of its packet (RFC 6946). */
		if (fragment && load_be16(ip + offset + 2) & 0xfff9) {
			packet->protocol = PROTOCOL_FRAGMENT;
			return REASON_FRAGMENT;
		}
		if (next == PROTOCOL_ROUTING && ip[offset + 3])
			return REASON_ROUTING_HEADER;
		next = ip[offset];
		offset += 8u + (fragment ? 0u : ip[offset + 1] * 8u);
	}
	if (offset > packet->length)
		return REASON_BAD_HEADER;
	packet->transport = (uint16_t)offset;
	packet->protocol = next;
	return REASON_FORWARDED;
}

/* The transport header is complete and does not contradict the packet's length. */
static enum reason check_transport(struct packet *packet)
{
	const uint8_t *header = packet->ip + packet->transport;
	uint32_t have = packet->length - packet->transport;

	switch (packet->protocol) {
	case PROTOCOL_TCP:
		if (have < 20 || header[12] >> 4 < 5 || (header[12] >> 4) * 4u > have)
			return REASON_BAD_HEADER;
		break;
	case PROTOCOL_UDP:
		if (have < 8 || load_be16(header + 4) < 8 || load_be16(header + 4) > have)
			return REASON_BAD_HEADER;
		break;
	case PROTOCOL_ICMP:
	case PROTOCOL_ICMPV6:
		return REASON_ICMP;
	default:
		return REASON_BAD_PROTOCOL;
	}
	packet->source_port = load16(header);
	packet->destination_port = load16(header + 2);
	packet->flags = packet->protocol == PROTOCOL_TCP ? header[13] : 0;
	return REASON_FORWARDED;
}

void packet_parse_transport(struct packet *packet, const struct frame *frame)
{
	if (UNLIKELY(packet->length > room(packet, frame))) {
		packet->reason = REASON_TRUNCATED;
		return;
	}
	packet->reason = packet->family == 4 ? check_ipv4(packet) : check_ipv6(packet);
	if (LIKELY(packet->reason == REASON_FORWARDED))
		packet->reason = check_transport(packet);
}

/* ---- rewriting ---- */

static inline size_t address_length(const struct packet *packet)
{
	return packet->family == 4 ? 4 : 16;
}

/* Bytes that the transport's checksum covers. */
static uint32_t covered(const struct packet *packet)
{
	return packet->protocol == PROTOCOL_TCP ? packet->length - packet->transport :
						  load_be16(packet->ip + packet->transport + 4);
}

static inline uint32_t checksum_field(const struct packet *packet)
{
	return packet->protocol == PROTOCOL_TCP ? 16 : 6;
}

static uint64_t pseudo_sum(const struct packet *packet)
{
	return checksum_pseudo(packet_source(packet), packet_destination(packet), address_length(packet),
			       packet->protocol, covered(packet));
}

/* Of UDP a zero says that there is no checksum (RFC 768); no sum of a pseudo-header folds to it. */
static bool left_to_nic(const struct packet *packet, uint64_t pseudo)
{
	return load16(packet->ip + packet->transport + checksum_field(packet)) == checksum_fold(pseudo);
}

bool packet_checksum_holds(const struct packet *packet)
{
	const uint8_t *header = packet->ip + packet->transport;
	uint64_t pseudo = pseudo_sum(packet);

	if (packet->protocol == PROTOCOL_UDP && load16(header + 6) == 0)
		return true;
	return left_to_nic(packet, pseudo) ||
	       checksum_fold(checksum_add(header, covered(packet), pseudo)) == 0xffff;
}

void packet_complete_checksum(const struct packet *packet, const struct frame *frame, bool detect)
{
	ptrdiff_t start = frame->data + frame->csum_start - packet->ip;
	uint32_t length = packet->length;

	if (frame->csum_start) {
		/* What lies behind a UDP datagram is not of it. */
		if (start == packet->transport)
			length = packet->transport + covered(packet);
		if (start > 0)
			checksum_finish(packet->ip, length, packet->transport, (uint32_t)start, frame->csum_offset);
	} else if (detect && left_to_nic(packet, pseudo_sum(packet))) {
		checksum_finish(packet->ip, packet->transport + covered(packet), packet->transport, packet->transport,
				checksum_field(packet));
	}
}
