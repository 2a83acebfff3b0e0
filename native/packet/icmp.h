/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ICMP and ICMPv6 as a MUX meets them: what an error says of a flow, and what the MUX answers.  Pure: reads a packet that
 * packet.h has parsed, and writes into memory of the caller's or into the packet itself.  No state, any thread.
 *
 * An answer is never given about an ICMP error (or a message of unknown type, which may be one), a fragment that is not the first,
 * or a source that is no single host (RFC 1812, 4.3.2.7; RFC 4443, 2.4(e)): icmp_may_answer() says so, and what writes answers asks it.
 *
 * Numbers in host order, addresses in wire order, IPv4 in the first 4 bytes.
 */
#ifndef VIPMUX_ICMP_H
#define VIPMUX_ICMP_H

#include <stdbool.h>
#include <stdint.h>

#include "packet/packet.h"

#define ICMP_HEADER 8u
#define ICMP4_ERROR_MAX 576u  /* RFC 1812, 4.3.2.3 */
#define ICMP6_ERROR_MAX 1280u /* RFC 4443, 2.4(c) */
#define ICMP_ANSWER_MAX ICMP6_ERROR_MAX
#define ICMP_TTL 64u
#define IPV6_MTU_MIN 1280u /* RFC 8200, 5 */

/* Types and codes that are used here; RFC 792, RFC 4443. */
enum {
	ICMP4_ECHO_REPLY = 0,
	ICMP4_UNREACHABLE = 3,
	ICMP4_ECHO = 8,
	ICMP4_TIME_EXCEEDED = 11,
	ICMP4_PARAMETER = 12,
	ICMP6_UNREACHABLE = 1,
	ICMP6_TOO_BIG = 2,
	ICMP6_TIME_EXCEEDED = 3,
	ICMP6_PARAMETER = 4,
	ICMP6_ECHO = 128,
	ICMP6_ECHO_REPLY = 129,

	ICMP4_HOST = 1, /* unreachable: host, protocol, port, fragmentation needed */
	ICMP4_PROTOCOL = 2,
	ICMP4_PORT = 3,
	ICMP4_FRAGMENT = 4,
	ICMP6_ADDRESS = 3, /* unreachable: address, port */
	ICMP6_PORT = 4,
	ICMP6_NEXT_HEADER = 1, /* parameter problem: next header not known */
};

/* What one error is: bytes 0, 1, and 4 to 7 of its header. */
struct icmp_message {
	uint8_t type, code;
	uint32_t rest; /* of frag-needed and too-big the MTU, of a parameter problem in ICMPv6 the pointer; else 0 */
};

/* A packet that a MUX may answer at all, see above. */
bool icmp_may_answer(const struct packet *packet);

/*
 * Writes the error about a packet to `out`, which has ICMP_ANSWER_MAX bytes: an IP header without options from `source` to the
 * packet's source, the message, and as much of the packet as fits, as it came.  id: of an IPv4 header, which has DF clear.
 * Returns the length; 0: nothing may be answered.
 */
uint32_t icmp_write_error(const struct packet *packet, const struct icmp_message *message, const uint8_t *source, uint16_t id,
			  uint8_t *out);

/* Where an IPv6 packet names the protocol of its transport, from its beginning: the pointer of a parameter problem about that. */
uint32_t icmp_next_header_at(const struct packet *packet);

/* An echo request in the packet's own protocol, complete and with a right checksum. */
bool icmp_is_echo(const struct packet *packet);

/*
 * Makes the request the reply to it, in place: addresses swapped, DSCP kept, ECN cleared, TTL new, data untouched.  IPv4
 * options stay; IPv6 extension headers go, so that the packet begins further behind.
 */
void icmp_turn_echo(struct packet *packet, uint16_t id);

/* Writes the reset that a TCP segment to a closed port gets (RFC 9293, 3.10.7.1), 60 bytes at most; 0: it gets none. */
uint32_t tcp_write_reset(const struct packet *packet, uint16_t id, uint8_t *out);

/* The flow that an error is about, as its client sees it: the addresses lie in the quoted header, ports in wire order. */
struct icmp_subject {
	const uint8_t *client, *vip;
	uint16_t client_port, vip_port;
	uint8_t protocol;
};

/*
 * Reads it: what is quoted went from the VIP to the client.  IPv4 options and IPv6 extension headers are stepped over; eight bytes
 * behind them are enough.  What lies behind (RFC 4884) is not looked at.
 *
 * REASON_ICMP_ERROR: *subject is it.  REASON_ICMP: it is of no kind that concerns a flow.  REASON_BAD_ICMP: not enough is quoted, or a
 * later fragment, or neither TCP nor UDP.  REASON_ICMP_STRANGER: not from the address that the error went to.
 */
enum reason icmp_read_error(const struct packet *packet, struct icmp_subject *subject);

#endif
