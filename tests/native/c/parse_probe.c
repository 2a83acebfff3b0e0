/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Random packets, nearly right ones most of them, to the short ways of the parser and to the long one, which is the oracle;
 * for tests/native/test_parsing.py.
 */
#include <stdlib.h>
#include <string.h>

#include "flow/flow.h"
#include "mux/vector_level.h"
#include "packet/checksum.h"
#include "packet/packet.h"
#include "services/vip/exact4_table.h"

struct parse_counts {
	uint64_t taken4, taken6; /* by a short way */
	uint64_t good4, good6;   /* in order, says the long one */
};

uint64_t probe_parse(uint64_t seed, uint64_t count, struct parse_counts *counts);
uint64_t probe_bursts(uint32_t level, uint64_t seed, uint64_t count, uint64_t *taken);
uint64_t probe_groups6(uint32_t level, uint64_t seed, uint64_t count, uint64_t *taken);
uint64_t probe_decrement(void);
uint64_t probe_header_sums(uint64_t seed, uint64_t count, uint64_t *right);

static uint64_t state;

static uint64_t draw(void)
{
	uint64_t x = state += 0x9e3779b97f4a7c15u;

	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
	x = (x ^ x >> 27) * 0x94d049bb133111ebu;
	return x ^ x >> 31;
}

static void write_be16(uint8_t *at, uint32_t value)
{
	at[0] = (uint8_t)(value >> 8);
	at[1] = (uint8_t)value;
}

/* IP packet of a length, right but for what is then changed; TCP or UDP. */
static void write_packet(uint8_t *ip, unsigned family, uint32_t length, bool tcp)
{
	uint32_t header = family == 4 ? 20 : 40;

	for (uint32_t i = 0; i < length; i++)
		ip[i] = (uint8_t)draw();
	if (family == 4) {
		ip[0] = 0x45;
		write_be16(ip + 2, length);
		write_be16(ip + 6, draw() & 1 ? 0x4000 : 0);
		ip[9] = tcp ? 6 : 17;
		ip[12] = 11;
	} else {
		ip[0] = (uint8_t)(0x60 | (ip[0] & 15));
		write_be16(ip + 4, length - 40);
		ip[6] = tcp ? 6 : 17;
		ip[8] = 0x20;
	}
	if (tcp)
		ip[header + 12] = 0x50;
	else
		write_be16(ip + header + 4, length - header);
}

/* One of a header's bytes to anything, or one of those that are looked at to what is likelier to matter. */
static void spoil(uint8_t *ip, uint32_t length)
{
	static const uint8_t odd[] = { 0, 1, 2, 5, 6, 7, 8, 17, 0x40, 0x44, 0x45, 0x46, 0x4f, 0x60, 127, 224, 255 };
	static const uint8_t at[] = { 0, 2, 3, 6, 7, 8, 9, 12, 24, 25, 32, 44, 45, 52 };
	uint64_t random = draw();
	uint32_t place = random & 1 ? at[(random >> 8) % sizeof(at)] : (random >> 8) % 56;

	if (place < length)
		ip[place] = random & 2 ? (uint8_t)(random >> 40) : odd[(random >> 40) % sizeof(odd)];
}

static void spoil_source(uint8_t *ip, unsigned family)
{
	uint32_t size = family == 4 ? 4 : 16;
	uint8_t *source = ip + (family == 4 ? 12 : 8);

	switch (draw() % 4) {
	case 0: /* its destination */
		memcpy(source, source + size, size);
		break;
	case 1: /* its destination, but for one byte */
		memcpy(source, source + size, size);
		source[draw() % size] ^= 1;
		break;
	case 2: /* ::, ::1 and their like */
		memset(source, 0, size);
		source[size - 1] = (uint8_t)(draw() % 3);
		break;
	default:
		source[0] = 0xff;
	}
}

static void make_right(uint8_t *ip)
{
	uint16_t sum;

	memset(ip + 10, 0, 2);
	sum = (uint16_t)~checksum_fold(checksum_add(ip, 20, 0));
	memcpy(ip + 10, &sum, 2);
}

static bool same(const struct packet *a, const struct packet *b)
{
	return a->ip == b->ip && a->length == b->length && a->transport == b->transport && a->family == b->family &&
	       a->protocol == b->protocol && a->source_port == b->source_port &&
	       a->destination_port == b->destination_port && a->reason == b->reason && a->flags == b->flags;
}

/* A nearly right packet in a buffer of exactly its size behind the headroom: a sanitizer sees a byte too much.  free_frame(). */
static struct frame make_frame(enum link_type link, unsigned family, unsigned spoils)
{
	uint32_t before = link == LINK_ETHERNET ? ETHERNET_HEADER : 0;
	bool tcp = draw() & 1;
	uint32_t header = family == 4 ? 20 : 40, least = header + (tcp ? 20 : 8);
	uint32_t length = least + (uint32_t)(draw() % 40), len = before + length + (draw() % 4 ? 0 : (uint32_t)(draw() % 8));
	uint8_t *buffer = calloc(1, IO_HEADROOM + len), *data = buffer + IO_HEADROOM;

	write_be16(data + (before ? 12 : 0), family == 4 ? 0x0800 : 0x86dd);
	write_packet(data + before, family, length, tcp);
	for (unsigned n = spoils; n; n--)
		spoil(data + before, length);
	if (spoils && draw() % 6 == 0)
		spoil_source(data + before, family);
	if (spoils && before && draw() % 24 == 0)
		data[12 + draw() % 2] ^= (uint8_t)draw();
	if (family == 4 && draw() % 16)
		make_right(data + before);
	if (draw() % (spoils ? 12 : 200) == 0) { /* the frame ends before the packet does, in a buffer that does too */
		len = (uint32_t)(draw() % (len + 1));
		buffer = realloc(buffer, IO_HEADROOM + len);
	}
	return (struct frame){ .data = buffer + IO_HEADROOM, .len = len, .wire_len = len + (draw() % 32 == 0),
			       .headroom = IO_HEADROOM };
}

static void free_frame(const struct frame *frame)
{
	free(frame->data - IO_HEADROOM);
}

/* Packets of which a short way says other than the long one; 0 if there is none. */
uint64_t probe_parse(uint64_t seed, uint64_t count, struct parse_counts *counts)
{
	uint64_t wrong = 0;

	state = seed;
	memset(counts, 0, sizeof(*counts));
	for (uint64_t n = 0; n < count; n++) {
		enum link_type link = draw() & 1 ? LINK_ETHERNET : LINK_RAW_IP;
		struct frame frame = make_frame(link, draw() & 1 ? 4 : 6, (unsigned)(draw() % 3));
		struct packet plain = { 0 }, plain6 = { 0 }, packet;
		bool taken4, taken6;

		packet_parse_network(&packet, &frame, link);
		if (packet.reason == REASON_FORWARDED)
			packet_parse_transport(&packet, &frame);
		taken4 = packet_parse_plain(&plain, &frame, link);
		taken6 = packet_parse_plain6(&plain6, &frame, link);
		wrong += (taken4 && !same(&plain, &packet)) || (taken6 && !same(&plain6, &packet)) || (taken4 && taken6);
		/* At the end of its hops a packet is in order for the parser, and nothing for a short way. */
		wrong += (taken4 && plain.ip[8] <= 1) || (taken6 && plain6.ip[7] <= 1);
		counts->taken4 += taken4;
		counts->taken6 += taken6;
		counts->good4 += packet.reason == REASON_FORWARDED && packet.family == 4;
		counts->good6 += packet.reason == REASON_FORWARDED && packet.family == 6;
		free_frame(&frame);
	}
	return wrong;
}

/* What one packet is to say and its names do. */
static bool named(const struct packet *packet, uint64_t service, uint64_t flow)
{
	uint32_t source, destination;

	memcpy(&source, packet->ip + 12, 4);
	memcpy(&destination, packet->ip + 16, 4);
	return service == exact_key(destination, packet->protocol, packet->destination_port) &&
	       flow == flow_key_narrow(0, source, packet->source_port);
}

/* Made of the packet field by field; how its life goes on is another probe's to say. */
static bool prepared(const struct packet *packet, const struct outer4 *outer)
{
	uint8_t first[8] = { 0x45, packet->ip[1] };
	uint32_t life;

	write_be16(first + 2, packet->length + 20);
	first[6] = packet->ip[6] & 0x40;
	memcpy(&life, packet->ip + 8, 4);
	return memcmp(&outer->first, first, 8) == 0 && outer->life == ipv4_life_after(life) &&
	       checksum_fold(outer->sum) == checksum_fold(checksum_add(first, 8, 0));
}

/*
 * Packets in bursts of 0 to 64, mostly right, of which a level says other than the parser of one; 0 if there is none.  What lies
 * behind the last of a burst is to stay as it is.
 */
uint64_t probe_bursts(uint32_t level, uint64_t seed, uint64_t count, uint64_t *taken)
{
	read_ipv4_burst *read = vector_get(level)->read4;
	struct packet packets[BURST_MAX + 1], packet = { 0 };
	uint64_t services[BURST_MAX + 1], flows[BURST_MAX + 1], wrong = 0;
	struct outer4 outers[BURST_MAX + 1];
	struct frame frames[BURST_MAX];

	state = seed;
	*taken = 0;
	for (uint64_t n = 0; n < count;) {
		enum link_type link = draw() & 1 ? LINK_ETHERNET : LINK_RAW_IP;
		unsigned size = (unsigned)(draw() % (BURST_MAX + 1)), strange = 1 + (unsigned)(draw() % 16);
		uint64_t is;

		for (unsigned i = 0; i < size; i++)
			frames[i] = make_frame(link, draw() % strange ? 4 : 6, draw() % strange ? 0 : (unsigned)(draw() % 3));
		memset(&packets[size], 0xa5, sizeof(packets[size]));
		services[size] = flows[size] = 7;
		outers[size].first = 7;
		is = read(frames, size, link, packets, services, flows, outers);
		wrong += services[size] != 7 || flows[size] != 7 || outers[size].first != 7 || (size < 64 && is >> size);
		for (unsigned i = 0; i < sizeof(packets[size]); i++)
			wrong += ((uint8_t *)&packets[size])[i] != 0xa5;
		for (unsigned i = 0; i < size; i++) {
			bool plain = packet_parse_plain(&packet, &frames[i], link);

			wrong += plain != (is >> i & 1);
			wrong += plain && (is >> i & 1) && (!same(&packet, &packets[i]) || !named(&packet, services[i], flows[i]) ||
							  !prepared(&packet, &outers[i]));
			*taken += plain;
			free_frame(&frames[i]);
		}
		n += size;
	}
	return wrong;
}

/*
 * Packets in groups of 0 to 16, of most groups all right, of which a level says other than the parser of one; 0 if there is none.
 * What lies behind the last of a group is to stay as it is.
 */
uint64_t probe_groups6(uint32_t level, uint64_t seed, uint64_t count, uint64_t *taken)
{
	read_ipv6_burst *read = vector_get(level)->read6;
	struct packet packets[FLOW_WORDS6 + 1], packet = { 0 };
	struct frame frames[FLOW_WORDS6];
	uint64_t wrong = 0;

	state = seed;
	*taken = 0;
	for (uint64_t n = 0; n < count;) {
		enum link_type link = draw() & 1 ? LINK_ETHERNET : LINK_RAW_IP;
		unsigned size = (unsigned)(draw() % (FLOW_WORDS6 + 1)), strange = draw() & 1 ? 0 : 1 + (unsigned)(draw() % 16);
		struct flow_words6 words, expected;
		bool all = true;

		for (unsigned i = 0; i < size; i++) {
			bool odd = strange && draw() % 16 < strange;

			frames[i] = make_frame(link, odd && draw() % 8 == 0 ? 4 : 6, odd ? (unsigned)(draw() % 3) : 0);
			while (!odd && !packet_parse_plain6(&packet, &frames[i], link)) { /* cut short, as some are */
				free_frame(&frames[i]);
				frames[i] = make_frame(link, 6, 0);
			}
		}
		memset(&packets[size], 0xa5, sizeof(packets[size]));
		memset(&expected, 0, sizeof(expected));
		for (unsigned i = 0; i < size; i++)
			all &= packet_parse_plain6(&packet, &frames[i], link);
		wrong += read(frames, size, link, packets, &words) != all;
		for (unsigned i = 0; i < sizeof(packets[size]); i++)
			wrong += ((uint8_t *)&packets[size])[i] != 0xa5;
		for (unsigned i = 0; i < size && all; i++) {
			packet_parse_plain6(&packet, &frames[i], link);
			flow_words6_set(&expected, i, packet.ip + 8, packet.source_port, packet.destination_port, packet.protocol);
			wrong += !same(&packet, &packets[i]);
			for (unsigned w = 0; w < FLOW_TUPLE_WORDS; w++)
				wrong += expected.word[w][i] != words.word[w][i];
			*taken += 1;
		}
		for (unsigned i = 0; i < size; i++)
			free_frame(&frames[i]);
		n += size;
	}
	return wrong;
}

/* Checksums for which a TTL that becomes one less changes them otherwise than RFC 1624 says; of all there are. */
uint64_t probe_decrement(void)
{
	uint64_t wrong = 0;
	uint8_t ip[20] = { 0x45 };
	uint16_t check, expected;

	for (uint32_t n = 0; n < 0x20000; n++) {
		uint16_t before, after;

		ip[8] = n >> 16 ? 2 : 255;
		ip[9] = 6;
		check = (uint16_t)n;
		memcpy(ip + 10, &check, 2);
		memcpy(&before, ip + 8, 2);
		ipv4_decrement_ttl(ip);
		memcpy(&after, ip + 8, 2);
		expected = checksum_replace(check, before, after);
		memcpy(&check, ip + 10, 2);
		wrong += check != expected || ip[8] != (n >> 16 ? 1 : 254) || ip[9] != 6;
	}
	return wrong;
}

/* Headers of which checksum_header20_holds() says other than their sum, many with words that carry; how many are right. */
uint64_t probe_header_sums(uint64_t seed, uint64_t count, uint64_t *right)
{
	uint64_t wrong = 0;
	uint8_t ip[20];

	state = seed;
	*right = 0;
	for (uint64_t n = 0; n < count; n++) {
		bool holds;

		for (unsigned i = 0; i < 20; i += 2) {
			uint64_t random = draw();

			write_be16(ip + i, random & 3 ? (random & 4 ? 0xffff : 0xfffe) : (uint16_t)(random >> 8));
		}
		ip[0] = 0x45;
		if (draw() & 1)
			make_right(ip);
		holds = checksum_fold(checksum_add(ip, 20, 0)) == 0xffff;
		*right += holds;
		wrong += checksum_header20_holds(ip) != holds;
	}
	return wrong;
}
