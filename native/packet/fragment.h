/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fragments: what one says of its datagram, and how a packet is cut into some.  Pure; any thread.  Numbers in host order, bytes.
 */
#ifndef VIPMUX_FRAGMENT_H
#define VIPMUX_FRAGMENT_H

#include <stdbool.h>
#include <stdint.h>

#include "packet/packet.h"

struct fragment {
	uint32_t id;     /* of the datagram; 16 bits of IPv4 */
	uint32_t offset; /* of its first byte in the datagram's payload; 0: it is the first, which has the ports */
	uint32_t size;   /* bytes of that payload */
	bool more;       /* it is not the last */
	uint8_t protocol; /* what its header says that the payload is; of IPv6 perhaps an extension header */
};

/*
 * Of a packet for which packet_parse_transport() said REASON_FRAGMENT.  REASON_FRAGMENT: *out is it.  REASON_BAD_FRAGMENT: no sender
 * makes such a one: it is empty, is not the last and no multiple of eight bytes, goes beyond 64 KiB (RFC 791, 3.1; RFC 8200, 4.5),
 * or begins within a TCP header (RFC 3128).  REASON_ICMP, REASON_BAD_PROTOCOL: of neither TCP nor UDP.
 */
enum reason fragment_read(const struct packet *packet, struct fragment *out);

/*
 * Of the first fragment: leaves transport, protocol, ports and flags in the packet.  REASON_BAD_FRAGMENT: the transport's header is not
 * all in it (RFC 1858, 3; RFC 7112, 5).  REASON_BAD_HEADER, REASON_ICMP, REASON_BAD_PROTOCOL as of any packet.
 */
enum reason fragment_open(struct packet *packet);

/* An IPv4 packet, or fragment, that may be cut on its way. */
static inline bool fragment_may_cut(const struct packet *packet)
{
	return packet->family == 4 && !(packet->ip[6] & 0x40);
}

/*
 * Bytes of payload that each piece of the IPv4 packet has, but for the last, where none may be longer than `fits`; 0: not even eight
 * bytes fit.
 */
uint32_t fragment_step(const uint8_t *ip, uint32_t fits);

/*
 * Writes piece n (from 0) of an IPv4 packet of `length` bytes to `out`, which has room for a header and `step` bytes, and returns its
 * length; 0: there are no more.  The packet may be a fragment itself.  Later pieces have the options that are to be copied alone
 * (RFC 791, 3.1).  Header checksums are right.
 */
uint32_t fragment_write(const uint8_t *ip, uint32_t length, uint32_t step, uint32_t n, uint8_t *out);

#endif
