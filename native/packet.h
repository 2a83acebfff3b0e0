/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading a packet.  packet_parse() walks the headers with a cursor that cannot run past the end and leaves what the
 * pipeline needs, or the reason why the packet goes no further.
 *
 * What is decided here, in this order:
 *	frame cut short by a capture		drop, truncated
 *	neither IPv4 nor IPv6 (or VLAN)		pass, not_ip
 *	header shorter than it says, or wrong	drop, bad_header
 *	destination is no VIP			pass, not_vip: whatever else is wrong with it is for the kernel to say
 *	packet longer than the frame		drop, truncated
 *	IPv4 header checksum wrong		drop, bad_checksum
 *	source no client can have		drop, bad_source
 *	fragment, first or later		drop, fragment
 *	ICMP, ICMPv6				drop, icmp
 *	neither TCP nor UDP			drop, unsupported_protocol
 *	transport header incomplete		drop, bad_header
 * IPv4 options are stepped over by the header length; IPv6 hop-by-hop, routing and destination options likewise, up
 * to IPV6_EXTENSIONS_MAX of them.  Padding behind the packet is cut off.
 */
#ifndef VIPMUX_PACKET_H
#define VIPMUX_PACKET_H

#include <stdbool.h>
#include <stdint.h>

#include "io.h"
#include "reason.h"

#define ETHERNET_HEADER 14u
#define IPV6_EXTENSIONS_MAX 8u

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_PSH 0x08
#define TCP_ACK 0x10
#define TCP_CWR 0x80

struct vip_map;

struct packet {
	uint8_t *ip;           /* first byte of the IP header */
	uint32_t length;       /* of the IP packet, all headers included */
	uint16_t transport;    /* offset of the TCP or UDP header from ip */
	uint16_t source_port;  /* wire order */
	uint16_t destination_port;
	uint8_t family;        /* 4 or 6 */
	uint8_t protocol;      /* 6 or 17 once parsed */
	uint8_t reason;        /* enum reason; REASON_FORWARDED while the packet is on its way */
};

/* First half: link and network header, up to the destination address.  Reads nothing beyond the first 54 bytes. */
void packet_parse_network(struct packet *packet, const struct frame *frame, enum link_type link);

/* Second half, once the destination is known to be a VIP: all that the table above lists after not_vip. */
void packet_parse_transport(struct packet *packet, const struct frame *frame);

static inline const uint8_t *packet_source(const struct packet *packet)
{
	return packet->ip + (packet->family == 4 ? 12 : 8);
}

static inline const uint8_t *packet_destination(const struct packet *packet)
{
	return packet->ip + (packet->family == 4 ? 16 : 24);
}

static inline uint8_t packet_tcp_flags(const struct packet *packet)
{
	return packet->ip[packet->transport + 13];
}

/* A packet that opens a conversation: SYN without ACK, FIN or RST. */
static inline bool packet_opens(const struct packet *packet)
{
	return packet->protocol == 6 &&
	       (packet_tcp_flags(packet) & (TCP_SYN | TCP_ACK | TCP_RST | TCP_FIN)) == TCP_SYN;
}

/*
 * Senders leave the transport checksum to the NIC: then the field holds the folded pseudo-header sum only.  Computes
 * the real one.  Where the io tells (frame->csum_start), by what it tells; else, with `detect`, where the field
 * equals that sum, which for a packet with a right checksum changes nothing (the completed value is the same).
 */
void packet_complete_checksum(const struct packet *packet, const struct frame *frame, bool detect);

/* Decrements TTL or hop limit in place, header checksum included; false (and untouched) where it would reach zero. */
bool packet_decrement_ttl(struct packet *packet);

#endif
