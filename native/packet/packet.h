/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading a packet.  packet_parse() walks the headers with a cursor that cannot run past the end and leaves what the
 * pipeline needs, or the reason why the packet goes no further.
 *
 * What is decided here, in this order:
 *	frame cut short by a capture		drop, truncated
 *	neither IPv4 nor IPv6 (or of a VLAN)	pass, not_ip; a tag with VLAN 0 is stepped over
 *	header shorter than it says, or wrong	drop, bad_header
 *	destination is no VIP			pass, not_vip: whatever else is wrong with it is for the kernel to say
 *	packet longer than the frame		drop, truncated
 *	IPv4 header checksum wrong		drop, bad_checksum
 *	source no client can have		drop, bad_source, link_local_source, mapped_source, reserved_source
 *	source route, or routing header, not	drop, source_route, routing_header
 *	used up
 *	fragment, first or later		fragment: fragment.h says what becomes of it
 *	ICMP, ICMPv6				icmp: icmp.h says what becomes of it
 *	neither TCP nor UDP			drop, unsupported_protocol
 *	transport header incomplete		drop, bad_header
 * IPv4 options are stepped over by the header length; IPv6 hop-by-hop, routing, destination options and fragment headers
 * of whole packets (RFC 6946) likewise, up to IPV6_EXTENSIONS_MAX of them.  Padding behind the packet is cut off.  A
 * length of zero is none, but in a super-packet of more than 64 KiB, whose io says its segments (BIG TCP): all that is there.
 */
#ifndef VIPMUX_PACKET_H
#define VIPMUX_PACKET_H

#include <arpa/inet.h>
#include <endian.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "machine/cpu.h"
#include "machine/io.h"
#include "packet/checksum.h"
#include "packet/mux_reason.h"

#define ETHERNET_HEADER 14u
#define ETHERNET_TAG 4u
#define IPV6_EXTENSIONS_MAX 8u

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_PSH 0x08
#define TCP_ACK 0x10
#define TCP_URG 0x20
#define TCP_CWR 0x80

struct vip_map;

struct packet {
	uint8_t *ip;           /* first byte of the IP header */
	uint32_t length;       /* of the IP packet, all headers included */
	uint16_t source_port;  /* wire order */
	uint16_t destination_port;
	uint16_t transport;    /* offset of the TCP or UDP header from ip */
	uint8_t family;        /* 4 or 6 */
	uint8_t reason;        /* enum reason; REASON_FORWARDED while the packet is on its way */
	uint8_t protocol;      /* 6 or 17 once parsed */
	uint8_t flags;         /* of TCP, once parsed; UDP has none */
};

/*
 * First half: link and network header, and where the transport header of IPv4 may be, its ports.  Reads what the frame has of
 * the first 78 bytes (Ethernet, sixty bytes of IPv4 header, ports) and nothing beyond.
 */
void packet_parse_network(struct packet *packet, const struct frame *frame, enum link_type link);

/* Second half, once the destination is known to be a VIP: all that the table above lists after not_vip. */
void packet_parse_transport(struct packet *packet, const struct frame *frame);

/*
 * Both halves at once for the packet that nothing is the matter with: IPv4 without options, not a fragment, TCP or UDP, and not
 * at the end of its hops.
 * All of the table above is one verdict here; a packet that gets false goes the long way, which alone says what is wrong
 * (and finds many in order that are only unusual).
 */
static inline bool packet_parse_plain(struct packet *packet, const struct frame *frame, enum link_type link);

/* The same for IPv6 without extension headers. */
static inline bool packet_parse_plain6(struct packet *packet, const struct frame *frame, enum link_type link);

static inline const uint8_t *packet_source(const struct packet *packet)
{
	return packet->ip + (packet->family == 4 ? 12 : 8);
}

static inline const uint8_t *packet_destination(const struct packet *packet)
{
	return packet->ip + (packet->family == 4 ? 16 : 24);
}

/* A packet that opens a conversation: SYN without ACK, FIN or RST. */
static inline bool packet_opens(const struct packet *packet)
{
	return (packet->flags & (TCP_SYN | TCP_ACK | TCP_RST | TCP_FIN)) == TCP_SYN;
}

/* A packet by which the client ends a conversation. */
static inline bool packet_ends(const struct packet *packet)
{
	return packet->flags & (TCP_FIN | TCP_RST);
}

/* A TCP packet that carries data, or asks for a new conversation: whatever was said before, this one goes on. */
static inline bool packet_goes_on(const struct packet *packet)
{
	return packet->transport + (packet->ip[packet->transport + 12] >> 4) * 4u < packet->length || packet_opens(packet);
}

/*
 * Senders leave a checksum to the NIC.  Finishes it: where the io tells (frame->csum_start) that which it tells of, be it of the
 * transport or of a packet within (a tunnel over UDP), and no other; numbers that point out of the packet or into its IP
 * header change nothing.  Else, with `detect`, that of the transport where its field equals the folded sum of the
 * pseudo-header, which for a packet with a right checksum changes nothing (the finished value is the same).
 */
void packet_complete_checksum(const struct packet *packet, const struct frame *frame, bool detect);

/* Whether the transport's checksum is right, was left to the NIC (see above), or is none. */
bool packet_checksum_holds(const struct packet *packet);

/* Decrements TTL or hop limit in place, header checksum included; false (and untouched) where it would reach zero. */
static inline bool packet_decrement_ttl(struct packet *packet);

/* ---- what every packet goes through is inline ---- */

#define ETHERTYPE_IPV4 0x0800
#define ETHERTYPE_IPV6 0x86dd
#define ETHERTYPE_VLAN 0x8100
#define ETHERTYPE_SERVICE_VLAN 0x88a8

#define PROTOCOL_HOP_BY_HOP 0
#define PROTOCOL_ICMP 1
#define PROTOCOL_TCP 6
#define PROTOCOL_UDP 17
#define PROTOCOL_ROUTING 43
#define PROTOCOL_FRAGMENT 44
#define PROTOCOL_ICMPV6 58
#define PROTOCOL_DESTINATION 60

/* IPv6 headers that are stepped over. */
static inline bool packet_is_extension6(uint8_t next)
{
	return next == PROTOCOL_HOP_BY_HOP || next == PROTOCOL_ROUTING || next == PROTOCOL_FRAGMENT ||
	       next == PROTOCOL_DESTINATION;
}

static inline uint16_t load_be16(const uint8_t *p)
{
	return (uint16_t)(p[0] << 8 | p[1]);
}

static inline uint16_t load16(const uint8_t *p)
{
	uint16_t v;

	memcpy(&v, p, 2);
	return v;
}

static inline uint64_t load64(const uint8_t *p)
{
	uint64_t v;

	memcpy(&v, p, 8);
	return v;
}

static inline void store64(uint8_t *p, uint64_t v)
{
	memcpy(p, &v, 8);
}

static inline void store16(uint8_t *p, uint16_t v)
{
	memcpy(p, &v, 2);
}

/* First octets of sources that no client has, or only some: the long way is to look at them. */
static const bool packet_odd_source[256] = { [0] = true, [127] = true, [169] = true, [224 ... 255] = true };

/* The same for IPv6: multicast and link-local; and mapped, unspecified, loopback. */
static inline bool packet_odd_source6(uint8_t octet)
{
	return (octet & 0xfe) == 0 || (octet & 0xfe) == 0xfe;
}

static inline bool packet_parse_plain(struct packet *packet, const struct frame *frame, enum link_type link)
{
	uint32_t before = link == LINK_ETHERNET ? ETHERNET_HEADER : 0, room = frame->len - before;
	uint8_t *ip = frame->data + before, *header = ip + 20;

	/* 40: whatever is read below is there. */
	if (UNLIKELY(frame->len < before + 40) || UNLIKELY(frame->len < frame->wire_len))
		return false;
	if (link == LINK_ETHERNET && UNLIKELY(load16(ip - 2) != htons(ETHERTYPE_IPV4)))
		return false;
	/* Version, no options, no fragment: bytes 0, 6 and 7. */
	if (UNLIKELY((load64(ip) & htobe64(0xff00000000003fff)) != htobe64(0x4500000000000000)))
		return false;

	uint32_t length = load_be16(ip + 2);
	uint8_t protocol = ip[9];
	bool tcp = protocol == PROTOCOL_TCP;
	/* What the transport header says that it (TCP) or it and its data (UDP) take.  No branch: both come mixed. */
	uint32_t takes = tcp ? (header[12] >> 4) * 4u : load_be16(header + 4);

	if (UNLIKELY(!tcp && protocol != PROTOCOL_UDP) || UNLIKELY(takes < (tcp ? 20 : 8)))
		return false;
	if (UNLIKELY(takes + 20 > length) || UNLIKELY(length > room))
		return false;
	if (UNLIKELY(packet_odd_source[ip[12]]) || UNLIKELY(memcmp(ip + 12, ip + 16, 4) == 0) || UNLIKELY(ip[8] <= 1))
		return false;
	if (UNLIKELY(!checksum_header20_holds(ip)))
		return false;

	packet->ip = ip;
	packet->length = length;
	packet->source_port = load16(header);
	packet->destination_port = load16(header + 2);
	packet->transport = 20;
	packet->family = 4;
	packet->reason = REASON_FORWARDED;
	packet->protocol = protocol;
	packet->flags = tcp ? header[13] : 0;
	return true;
}

static inline bool packet_parse_plain6(struct packet *packet, const struct frame *frame, enum link_type link)
{
	uint32_t before = link == LINK_ETHERNET ? ETHERNET_HEADER : 0, room = frame->len - before;
	uint8_t *ip = frame->data + before, *header = ip + 40;

	/* 53: whatever is read below is there. */
	if (UNLIKELY(frame->len < before + 53) || UNLIKELY(frame->len < frame->wire_len))
		return false;
	if (link == LINK_ETHERNET && UNLIKELY(load16(ip - 2) != htons(ETHERTYPE_IPV6)))
		return false;

	uint32_t length = 40u + load_be16(ip + 4);
	bool tcp = ip[6] == PROTOCOL_TCP;
	uint32_t takes = tcp ? (header[12] >> 4) * 4u : load_be16(header + 4);

	if (UNLIKELY(ip[0] >> 4 != 6) || UNLIKELY(!tcp && ip[6] != PROTOCOL_UDP) || UNLIKELY(takes < (tcp ? 20 : 8)))
		return false;
	if (UNLIKELY(takes + 40 > length) || UNLIKELY(length > room))
		return false;
	if (UNLIKELY(packet_odd_source6(ip[8])) || UNLIKELY(memcmp(ip + 8, ip + 24, 16) == 0) || UNLIKELY(ip[7] <= 1))
		return false;

	packet->ip = ip;
	packet->length = length;
	packet->source_port = load16(header);
	packet->destination_port = load16(header + 2);
	packet->transport = 40;
	packet->family = 6;
	packet->protocol = ip[6];
	packet->flags = tcp ? header[13] : 0;
	packet->reason = REASON_FORWARDED;
	return true;
}

/*
 * The word that TTL and protocol share becomes one step less, and the checksum behind it one more (RFC 1624), with the carry that
 * comes back.  Both at once: TTL, protocol and checksum are one number.
 */
static inline uint32_t ipv4_life_after(uint32_t word) /* as it lies in memory */
{
	word = le32toh(word);
	return htole32(word - 1 + 0x10000 + (word >= 0xfffe0000 ? 0x10000 : 0));
}

static inline void ipv4_decrement_ttl(uint8_t *ip)
{
	uint32_t word;

	memcpy(&word, ip + 8, 4);
	word = ipv4_life_after(word);
	memcpy(ip + 8, &word, 4);
}

static inline bool packet_decrement_ttl(struct packet *packet)
{
	if (UNLIKELY(packet->ip[packet->family == 4 ? 8 : 7] <= 1))
		return false;
	if (LIKELY(packet->family == 4))
		ipv4_decrement_ttl(packet->ip);
	else
		packet->ip[7]--;
	return true;
}

#endif
