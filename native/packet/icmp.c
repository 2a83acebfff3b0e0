/* SPDX-License-Identifier: Apache-2.0 */
/* See icmp.h. */
#include "packet/icmp.h"

#include <arpa/inet.h>
#include <string.h>

#include "packet/checksum.h"

#define IPV4_HEADER 20u
#define IPV6_HEADER 40u
#define TCP_HEADER 20u
#define QUOTED_MIN 8u /* behind the quoted IP header: RFC 792 */
#define PRECEDENCE 0xc0 /* of errors: RFC 1812, 4.3.2.5 */
#define ECN 0x03

static uint8_t protocol_of(const struct packet *packet)
{
	return packet->family == 4 ? PROTOCOL_ICMP : PROTOCOL_ICMPV6;
}

static const uint8_t *icmp_of(const struct packet *packet)
{
	return packet->ip + packet->transport;
}

static bool has_icmp(const struct packet *packet)
{
	return packet->protocol == protocol_of(packet) && packet->length >= packet->transport + ICMP_HEADER;
}

/* ---- who is answered ---- */

static bool is_query4(uint8_t type)
{
	/* echo, timestamp, information, address mask */
	return type == ICMP4_ECHO || type == 13 || type == 15 || type == 17;
}

bool icmp_may_answer(const struct packet *packet)
{
	static const uint8_t unspecified[16];
	const uint8_t *ip = packet->ip;

	if (packet->family == 4) {
		if (ip[12] == 0 || ip[12] == 127 || ip[12] >= 224 || load_be16(ip + 6) & 0x1fff)
			return false;
		return packet->protocol != PROTOCOL_ICMP || (has_icmp(packet) && is_query4(*icmp_of(packet)));
	}
	/* A later fragment, or it would be known what is in it. */
	if (packet->protocol == PROTOCOL_FRAGMENT || ip[8] == 0xff || memcmp(ip + 8, unspecified, sizeof(unspecified)) == 0)
		return false;
	return packet->protocol != PROTOCOL_ICMPV6 || (has_icmp(packet) && *icmp_of(packet) == ICMP6_ECHO);
}

/* ---- headers of answers ---- */

static void write_ipv4(uint8_t *ip, uint8_t tos, uint32_t length, uint16_t id, uint8_t protocol, const uint8_t *source,
		       const uint8_t *destination)
{
	memset(ip, 0, 12);
	ip[0] = 0x45;
	ip[1] = tos;
	store16(ip + 2, htons((uint16_t)length));
	store16(ip + 4, htons(id));
	ip[8] = ICMP_TTL;
	ip[9] = protocol;
	memcpy(ip + 12, source, 4);
	memcpy(ip + 16, destination, 4);
	store16(ip + 10, (uint16_t)~checksum_fold(checksum_add(ip, IPV4_HEADER, 0)));
}

static void write_ipv6(uint8_t *ip, uint8_t traffic_class, uint32_t payload, uint8_t protocol, const uint8_t *source,
		       const uint8_t *destination)
{
	uint32_t first = htonl(6u << 28 | (uint32_t)traffic_class << 20);

	memcpy(ip, &first, 4);
	store16(ip + 4, htons((uint16_t)payload));
	ip[6] = protocol;
	ip[7] = ICMP_TTL;
	memcpy(ip + 8, source, 16);
	memcpy(ip + 24, destination, 16);
}

/* Header of either family before `payload` bytes, from source to the packet's source; how long it is. */
static uint32_t write_ip(const struct packet *packet, uint8_t class4, uint8_t protocol, uint32_t payload, const uint8_t *source,
			 uint16_t id, uint8_t *out)
{
	if (packet->family == 4) {
		write_ipv4(out, class4, IPV4_HEADER + payload, id, protocol, source, packet_source(packet));
		return IPV4_HEADER;
	}
	write_ipv6(out, 0, payload, protocol, source, packet_source(packet));
	return IPV6_HEADER;
}

/* Of the transport behind a header that write_ip() wrote; the field is zero. */
static uint16_t transport_checksum(const uint8_t *ip, uint8_t family, uint8_t protocol, const uint8_t *transport, uint32_t length)
{
	uint64_t sum = 0;

	if (family == 6)
		sum = checksum_pseudo(ip + 8, ip + 24, 16, protocol, length);
	else if (protocol == PROTOCOL_TCP)
		sum = checksum_pseudo(ip + 12, ip + 16, 4, protocol, length);
	return (uint16_t)~checksum_fold(checksum_add(transport, length, sum));
}

/* ---- errors ---- */

uint32_t icmp_write_error(const struct packet *packet, const struct icmp_message *message, const uint8_t *source, uint16_t id,
			  uint8_t *out)
{
	uint32_t most = packet->family == 4 ? ICMP4_ERROR_MAX - IPV4_HEADER : ICMP6_ERROR_MAX - IPV6_HEADER;
	uint32_t payload = ICMP_HEADER + packet->length, header, rest = htonl(message->rest);
	uint8_t *icmp;

	if (!icmp_may_answer(packet))
		return 0;
	if (payload > most)
		payload = most;
	header = write_ip(packet, (packet->ip[1] & 0x1c) | PRECEDENCE, protocol_of(packet), payload, source, id, out);
	icmp = out + header;
	icmp[0] = message->type;
	icmp[1] = message->code;
	store16(icmp + 2, 0);
	memcpy(icmp + 4, &rest, 4);
	memcpy(icmp + ICMP_HEADER, packet->ip, payload - ICMP_HEADER);
	store16(icmp + 2, transport_checksum(out, packet->family, protocol_of(packet), icmp, payload));
	return header + payload;
}

uint32_t icmp_next_header_at(const struct packet *packet)
{
	uint32_t at = 6, next = IPV6_HEADER;

	while (next < packet->transport) {
		bool fragment = packet->ip[at] == PROTOCOL_FRAGMENT;

		at = next;
		next += 8u + (fragment ? 0u : packet->ip[next + 1] * 8u);
	}
	return at;
}

/* ---- echo ---- */

bool icmp_is_echo(const struct packet *packet)
{
	uint32_t length = packet->length - packet->transport;
	const uint8_t *icmp = icmp_of(packet);
	uint64_t sum = 0;

	if (!has_icmp(packet) || icmp[0] != (packet->family == 4 ? ICMP4_ECHO : ICMP6_ECHO) || icmp[1] != 0)
		return false;
	if (packet->family == 6)
		sum = checksum_pseudo(packet->ip + 8, packet->ip + 24, 16, PROTOCOL_ICMPV6, length);
	return checksum_fold(checksum_add(icmp, length, sum)) == 0xffff;
}

static void turn_ipv4(uint8_t *ip, uint32_t header, uint16_t id)
{
	uint8_t source[4];

	memcpy(source, ip + 12, 4);
	memcpy(ip + 12, ip + 16, 4);
	memcpy(ip + 16, source, 4);
	ip[1] &= (uint8_t)~ECN;
	store16(ip + 4, htons(id));
	store16(ip + 6, 0);
	ip[8] = ICMP_TTL;
	store16(ip + 10, 0);
	store16(ip + 10, (uint16_t)~checksum_fold(checksum_add(ip, header, 0)));
}

static void turn_ipv6(struct packet *packet)
{
	uint8_t source[16], destination[16], *ip = packet->ip;
	uint8_t class = (uint8_t)(load_be16(ip) >> 4) & (uint8_t)~ECN;
	uint32_t payload = packet->length - packet->transport;

	memcpy(source, ip + 8, 16);
	memcpy(destination, ip + 24, 16);
	packet->ip += packet->transport - IPV6_HEADER;
	packet->length = IPV6_HEADER + payload;
	packet->transport = IPV6_HEADER;
	write_ipv6(packet->ip, class, payload, PROTOCOL_ICMPV6, destination, source);
}

void icmp_turn_echo(struct packet *packet, uint16_t id)
{
	bool four = packet->family == 4;
	uint8_t *icmp = packet->ip + packet->transport;
	uint16_t before = load16(icmp);

	/* The sum of a pseudo-header is the same with its addresses swapped. */
	icmp[0] = four ? ICMP4_ECHO_REPLY : ICMP6_ECHO_REPLY;
	store16(icmp + 2, checksum_replace(load16(icmp + 2), before, load16(icmp)));
	if (four)
		turn_ipv4(packet->ip, packet->transport, id);
	else
		turn_ipv6(packet);
}

/* ---- resets ---- */

uint32_t tcp_write_reset(const struct packet *packet, uint16_t id, uint8_t *out)
{
	const uint8_t *tcp = packet->ip + packet->transport;
	uint32_t taken = packet->length - packet->transport - (tcp[12] >> 4) * 4u, header, sequence;
	uint8_t *reset;

	if (packet->protocol != PROTOCOL_TCP || packet->flags & TCP_RST || !icmp_may_answer(packet))
		return 0;
	header = write_ip(packet, packet->ip[1] & (uint8_t)~ECN, PROTOCOL_TCP, TCP_HEADER, packet_destination(packet), id, out);
	reset = out + header;
	memset(reset, 0, TCP_HEADER);
	memcpy(reset, tcp + 2, 2);
	memcpy(reset + 2, tcp, 2);
	reset[12] = TCP_HEADER / 4 << 4;
	if (packet->flags & TCP_ACK) {
		memcpy(reset + 4, tcp + 8, 4);
		reset[13] = TCP_RST;
	} else {
		memcpy(&sequence, tcp + 4, 4);
		taken += !!(packet->flags & TCP_SYN) + !!(packet->flags & TCP_FIN);
		sequence = htonl(ntohl(sequence) + taken);
		memcpy(reset + 8, &sequence, 4);
		reset[13] = TCP_RST | TCP_ACK;
	}
	store16(reset + 16, transport_checksum(out, packet->family, PROTOCOL_TCP, reset, TCP_HEADER));
	return header + TCP_HEADER;
}

/* ---- what an error is about ---- */

static bool concerns_a_flow(const struct packet *packet)
{
	uint8_t type = *icmp_of(packet);

	if (packet->family == 4)
		return type == ICMP4_UNREACHABLE || type == ICMP4_TIME_EXCEEDED || type == ICMP4_PARAMETER;
	return type >= ICMP6_UNREACHABLE && type <= ICMP6_PARAMETER;
}

/* What is quoted, and how much of it there is. */
struct quote {
	const uint8_t *ip;
	uint32_t have;
	uint32_t transport;
	uint8_t protocol;
};

static bool read_quote4(struct quote *quote)
{
	const uint8_t *ip = quote->ip;

	if (quote->have < IPV4_HEADER || ip[0] >> 4 != 4 || (ip[0] & 15) < 5 || load_be16(ip + 6) & 0x1fff)
		return false;
	quote->transport = (ip[0] & 15) * 4u;
	quote->protocol = ip[9];
	return true;
}

static bool read_quote6(struct quote *quote)
{
	const uint8_t *ip = quote->ip;

	if (quote->have < IPV6_HEADER || ip[0] >> 4 != 6)
		return false;
	quote->transport = IPV6_HEADER;
	quote->protocol = ip[6];
	for (unsigned i = 0; packet_is_extension6(quote->protocol); i++) {
		const uint8_t *header = ip + quote->transport;
		bool fragment = quote->protocol == PROTOCOL_FRAGMENT;

		if (i == IPV6_EXTENSIONS_MAX || quote->transport + 8 > quote->have)
			return false;
		if (fragment && load_be16(header + 2) & 0xfff8)
			return false;
		quote->protocol = header[0];
		quote->transport += 8u + (fragment ? 0u : header[1] * 8u);
	}
	return true;
}

enum reason icmp_read_error(const struct packet *packet, struct icmp_subject *subject)
{
	size_t size = packet->family == 4 ? 4 : 16, at = packet->family == 4 ? 12 : 8;
	struct quote quote;

	if (!has_icmp(packet))
		return REASON_BAD_ICMP;
	if (!concerns_a_flow(packet))
		return REASON_ICMP;
	quote.ip = icmp_of(packet) + ICMP_HEADER;
	quote.have = packet->length - packet->transport - ICMP_HEADER;
	if (!(packet->family == 4 ? read_quote4(&quote) : read_quote6(&quote)) ||
	    quote.transport + QUOTED_MIN > quote.have || (quote.protocol != PROTOCOL_TCP && quote.protocol != PROTOCOL_UDP))
		return REASON_BAD_ICMP;
	*subject = (struct icmp_subject){ .client = quote.ip + at + size,
					  .vip = quote.ip + at,
					  .client_port = load16(quote.ip + quote.transport + 2),
					  .vip_port = load16(quote.ip + quote.transport),
					  .protocol = quote.protocol };
	return memcmp(subject->vip, packet_destination(packet), size) ? REASON_ICMP_STRANGER : REASON_ICMP_ERROR;
}
