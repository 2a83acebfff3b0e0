/* SPDX-License-Identifier: Apache-2.0 */
/* See reference_mux.h. */
#include "reference_mux.h"

#include <stdlib.h>
#include <string.h>

#include "mux/fragments.h"
#include "packet/packet.h"
#include "packet/segment.h"

/* A packet while it is looked at: a copy, that may be changed. */
struct plain_packet {
	uint8_t *bytes; /* IP header first */
	uint32_t have;  /* bytes there */
	uint32_t length, transport;
	uint8_t family, protocol;
	uint16_t source_port, port; /* host order */
	uint8_t tag; /* bytes of a tag before it that says a priority alone */
};

static uint16_t be16(const uint8_t *p)
{
	return (uint16_t)(p[0] * 256u + p[1]);
}

static void put16(uint8_t *p, uint32_t value)
{
	p[0] = (uint8_t)(value >> 8);
	p[1] = (uint8_t)value;
}

/* RFC 1071 by the letter: 16-bit words in network order, carries added in at the end. */
static uint64_t sum16(const uint8_t *p, uint32_t length, uint64_t sum)
{
	for (uint32_t i = 0; i + 1 < length; i += 2)
		sum += be16(p + i);
	if (length & 1)
		sum += (uint64_t)p[length - 1] << 8;
	return sum;
}

static uint16_t fold(uint64_t sum)
{
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return (uint16_t)sum;
}

/* ---- read ---- */

static const uint8_t *source_of(const struct plain_packet *packet)
{
	return packet->bytes + (packet->family == 4 ? 12 : 8);
}

static const uint8_t *destination_of(const struct plain_packet *packet)
{
	return packet->bytes + (packet->family == 4 ? 16 : 24);
}

static uint32_t address_size(const struct plain_packet *packet)
{
	return packet->family == 4 ? 4 : 16;
}

static bool in_prefix(const uint8_t *address, const uint8_t *prefix, unsigned bits)
{
	return memcmp(address, prefix, bits / 8) == 0 &&
	       (bits % 8 == 0 || address[bits / 8] >> (8 - bits % 8) == prefix[bits / 8] >> (8 - bits % 8));
}

static bool covers(const struct plain_service *service, const struct plain_packet *packet)
{
	return service->present && service->family == packet->family &&
	       in_prefix(destination_of(packet), service->vip, service->prefix);
}

/* The crowd's addresses begin as these do; no other service's does. */
static bool in_crowd(const struct plain_packet *packet)
{
	const uint8_t *destination = destination_of(packet);

	return packet->family == 4 ? destination[0] == 198 : destination[5] == 0xe;
}

static unsigned rank(const struct plain_service *service)
{
	return service->first == service->last ? 2 : service->first == 0 && service->last == 65535 ? 0 : 1;
}

/* The most specific: longer prefix first, then one port, a range, any. */
static const struct plain_service *match(const struct reference_world *world, const struct plain_packet *packet, bool *is_vip)
{
	uint32_t first = in_crowd(packet) ? world->crowd : 0, end = in_crowd(packet) ? world->count : world->crowd;
	const struct plain_service *best = NULL;

	*is_vip = false;
	for (uint32_t i = first; i < end; i++) {
		const struct plain_service *service = &world->services[i];

		if (!covers(service, packet))
			continue;
		*is_vip = true;
		if (service->protocol != packet->protocol || packet->port < service->first || packet->port > service->last)
			continue;
		if (!best || service->prefix > best->prefix ||
		    (service->prefix == best->prefix && rank(service) > rank(best)))
			best = service;
	}
	return best;
}

/* Sources that no router forwards, beside the impossible ones. */
static enum reason unroutable_source(const struct plain_packet *packet)
{
	static const uint8_t linklocal4[4] = { 169, 254 }, reserved4[4] = { 240 };
	static const uint8_t linklocal6[16] = { 0xfe, 0x80 }, mapped6[16] = { [10] = 255, [11] = 255 };
	const uint8_t *source = source_of(packet);

	if (packet->family == 4) {
		if (in_prefix(source, linklocal4, 16))
			return REASON_LINK_LOCAL_SOURCE;
		return in_prefix(source, reserved4, 4) ? REASON_RESERVED_SOURCE : REASON_FORWARDED;
	}
	if (in_prefix(source, linklocal6, 10))
		return REASON_LINK_LOCAL_SOURCE;
	return in_prefix(source, mapped6, 96) ? REASON_MAPPED_SOURCE : REASON_FORWARDED;
}

/* A source route that names a station still. */
static bool has_source_route(const struct plain_packet *packet)
{
	const uint8_t *ip = packet->bytes;

	for (uint32_t at = 20; at < packet->transport && ip[at]; at += ip[at] == 1 ? 1 : ip[at + 1]) {
		uint32_t left = packet->transport - at;

		if (ip[at] == 1)
			continue;
		if (left < 2)
			return false;
		if ((ip[at] == 131 || ip[at] == 137) && left >= 3 && ip[at + 2] <= ip[at + 1])
			return true;
		if (ip[at + 1] < 2)
			return false;
	}
	return false;
}

static bool impossible_source(const struct plain_packet *packet)
{
	const uint8_t *source = source_of(packet);
	uint32_t size = address_size(packet), zeros = 0, ones = 0;

	for (uint32_t i = 0; i < size; i++) {
		zeros += source[i] == 0;
		ones += source[i] == 255;
	}
	if (memcmp(source, destination_of(packet), size) == 0)
		return true;
	if (packet->family == 4)
		return source[0] == 0 || source[0] == 127 || (source[0] >= 224 && source[0] <= 239) || ones == 4;
	return source[0] == 255 || zeros == 16 || (zeros == 15 && source[15] == 1);
}

/* Of super-packets beyond 64 KiB the headers cannot say the length. */
static uint32_t length_said(uint32_t field, uint32_t there, const struct frame *frame)
{
	return field == 0 && frame->gso_size && there > 65535 ? there : field;
}

/* What can be said before the destination is known. */
static enum reason read_network(struct plain_packet *packet, const struct frame *frame, enum link_type link)
{
	uint32_t before = link == LINK_ETHERNET ? 14 : 0;
	uint8_t *ip;

	if (frame->len < frame->wire_len)
		return REASON_TRUNCATED;
	if (frame->len < before)
		return REASON_BAD_HEADER;
	ip = packet->bytes;
	packet->have = frame->len - before;
	if (link == LINK_ETHERNET && (be16(ip - 2) == 0x8100 || be16(ip - 2) == 0x88a8) && packet->have >= 4 &&
	    (be16(ip) & 0x0fff) == 0) {
		packet->tag = 4;
		ip = packet->bytes += 4;
		packet->have -= 4;
	}
	if (link == LINK_ETHERNET)
		packet->family = be16(ip - 2) == 0x0800 ? 4 : be16(ip - 2) == 0x86dd ? 6 : 0;
	else
		packet->family = packet->have ? ip[0] >> 4 : 0;
	if (packet->family != 4 && packet->family != 6)
		return REASON_NOT_IP;
	if (packet->have < (packet->family == 4 ? 20u : 40u) || ip[0] >> 4 != packet->family)
		return REASON_BAD_HEADER;
	if (packet->family == 4) {
		packet->transport = (ip[0] & 15u) * 4;
		if (packet->transport < 20 || packet->transport > packet->have)
			return REASON_BAD_HEADER;
		packet->length = length_said(be16(ip + 2), packet->have, frame);
		packet->protocol = ip[9];
	} else {
		packet->transport = 40;
		packet->length = 40 + length_said(be16(ip + 4), packet->have - 40, frame);
		packet->protocol = ip[6];
	}
	return REASON_FORWARDED;
}

static enum reason read_extensions(struct plain_packet *packet)
{
	for (unsigned seen = 0;; seen++) {
		const uint8_t *header = packet->bytes + packet->transport;
		bool whole = packet->transport + 8 <= packet->length;

		if (packet->transport > packet->length)
			return REASON_BAD_HEADER;
		switch (packet->protocol) {
		case 44:
			if (!whole || seen == 8)
				return REASON_BAD_HEADER;
			if (be16(header + 2) >> 3 || header[3] & 1)
				return REASON_FRAGMENT;
			break;
		case 0:
		case 43:
		case 60:
			if (!whole)
				return REASON_BAD_HEADER;
			break;
		default:
			return REASON_FORWARDED;
		}
		if (seen == 8)
			return REASON_BAD_HEADER;
		if (packet->protocol == 43 && header[3] != 0)
			return REASON_ROUTING_HEADER;
		packet->transport += packet->protocol == 44 ? 8 : 8 + header[1] * 8u;
		packet->protocol = header[0];
	}
}

/* What is looked at once the destination is known to be a VIP. */
static enum reason read_transport(struct plain_packet *packet)
{
	uint8_t *ip = packet->bytes, *header;
	enum reason reason = REASON_FORWARDED;
	uint32_t there;

	if (packet->length > packet->have)
		return REASON_TRUNCATED;
	if (packet->family == 4 && packet->length < packet->transport)
		return REASON_BAD_HEADER;
	if (packet->family == 4 && fold(sum16(ip, packet->transport, 0)) != 0xffff)
		return REASON_BAD_CHECKSUM;
	if (impossible_source(packet))
		return REASON_BAD_SOURCE;
	reason = unroutable_source(packet);
	if (reason != REASON_FORWARDED)
		return reason;
	if (packet->family == 4 && has_source_route(packet))
		return REASON_SOURCE_ROUTE;
	if (packet->family == 4 && (ip[6] & 0x20 || (be16(ip + 6) & 0x1fff)))
		return REASON_FRAGMENT;
	if (packet->family == 6)
		reason = read_extensions(packet);
	if (reason != REASON_FORWARDED)
		return reason;
	header = ip + packet->transport;
	there = packet->length - packet->transport;
	if (packet->protocol == 6) {
		if (there < 20 || header[12] >> 4 < 5 || (header[12] >> 4) * 4u > there)
			return REASON_BAD_HEADER;
	} else if (packet->protocol == 17) {
		if (there < 8 || be16(header + 4) < 8 || be16(header + 4) > there)
			return REASON_BAD_HEADER;
	} else {
		return packet->protocol == 1 || packet->protocol == 58 ? REASON_ICMP : REASON_BAD_PROTOCOL;
	}
	packet->source_port = be16(header);
	packet->port = be16(header + 2);
	return REASON_FORWARDED;
}

/* ---- choose ---- */

struct choice {
	const struct plain_service *service;
	const struct plain_backend *backend;
	unsigned number;
	uint64_t hash;
	enum flow_report flow;
};

static uint64_t hash_of(const struct reference_mux *mux, const struct plain_packet *packet, bool source_only)
{
	struct flow_tuple tuple = { .protocol = packet->protocol, .family = packet->family };

	memcpy(tuple.source, source_of(packet), address_size(packet));
	memcpy(tuple.destination, destination_of(packet), address_size(packet));
	memcpy(&tuple.source_port, packet->bytes + packet->transport, 2);
	memcpy(&tuple.destination_port, packet->bytes + packet->transport + 2, 2);
	return flow_tuple_hash(&mux->seed, &tuple, source_only);
}

static unsigned slot_of(const struct maglev *table, uint64_t hash)
{
	unsigned slot = (unsigned)((hash >> 32) * table->size >> 32);
	uint16_t backend;

	if (!table->wide)
		return table->slots[slot] == 0xff ? MAGLEV_NONE : table->slots[slot];
	memcpy(&backend, table->slots + 2 * (size_t)slot, 2);
	return backend;
}

static const struct plain_backend *backend_at(const struct plain_service *service, unsigned number)
{
	if (number >= service->count || service->backends[number].state == BACKEND_ABSENT)
		return NULL;
	return &service->backends[number];
}

/* Only flows of one address and port have keys that are the whole tuple. */
static bool is_narrow(const struct plain_service *service)
{
	return service->family == 4 && service->prefix == 32 && service->first == service->last;
}

static uint64_t key_of(const struct reference_mux *mux, const struct plain_packet *packet, const struct choice *choice)
{
	uint32_t source;
	uint16_t port;
	uint64_t key;

	memcpy(&source, packet->bytes + 12, 4);
	memcpy(&port, packet->bytes + packet->transport, 2);
	key = is_narrow(choice->service) ? (uint64_t)port << 32 | source : 1ull << 63 | choice->hash >> 16;
	return flow_scramble(&mux->seed, key | (uint64_t)choice->service->id << 48);
}

static bool take_new(const struct reference_mux *mux, const struct plain_packet *packet, struct choice *choice)
{
	const struct plain_service *service = choice->service;
	uint64_t hash = service->hash_source ? hash_of(mux, packet, true) : choice->hash;
	unsigned number = slot_of(service->table, hash);
	const struct plain_backend *backend = backend_at(service, number);

	if (!backend)
		return false;
	choice->number = number;
	choice->backend = backend;
	return true;
}

static uint8_t flags_of(const struct plain_packet *packet)
{
	return packet->protocol == 6 ? packet->bytes[packet->transport + 13] : 0;
}

static bool opens(const struct plain_packet *packet)
{
	uint8_t flags = flags_of(packet);

	return flags & TCP_SYN && !(flags & (TCP_ACK | TCP_RST | TCP_FIN));
}

static bool has_data(const struct plain_packet *packet)
{
	return packet->length > packet->transport + (packet->bytes[packet->transport + 12] >> 4) * 4u;
}

/* Whether what is remembered still decides. */
static bool take_known(const struct reference_mux *mux, const struct plain_packet *packet, struct choice *choice,
		       struct flow_slot slot)
{
	unsigned idle = flow_slot_class(slot) == FLOW_TCP_UNTRUSTED ? mux->world->idle_untrusted : choice->service->idle;
	unsigned number = flow_slot_backend(slot);
	const struct plain_backend *backend = backend_at(choice->service, number);

	if (flow_slot_age(mux->table, slot) >= idle || !backend || backend->state == BACKEND_DOWN)
		return false;
	if (backend->state == BACKEND_DRAIN && packet->protocol == 6 && opens(packet))
		return false;
	if (backend->state == BACKEND_DRAIN && packet->protocol == 17 && take_new(mux, packet, choice))
		return false;
	choice->number = number;
	choice->backend = backend;
	return true;
}

/* What the packet tells of its flow. */
static void learn(const struct reference_mux *mux, const struct plain_packet *packet, struct flow_slot slot)
{
	enum flow_class class = flow_slot_class(slot);
	bool settled = class == FLOW_TCP_TRUSTED || class == FLOW_UDP_TRUSTED;
	bool later = flow_slot_age(mux->table, slot) > 0;

	if (!settled && !opens(packet))
		class = flow_class_after(class, later);
	if (packet->protocol == 6 && !settled && (has_data(packet) || opens(packet)))
		class = flow_class_ending(class, false);
	if (flags_of(packet) & (TCP_FIN | TCP_RST))
		class = flow_class_ending(class, true);
	flow_slot_set_class(mux->table, slot, class);
	flow_slot_touch(mux->table, slot);
}

/* Nothing goes into a tunnel that comes from one of its ends. */
static enum reason from_an_end(const struct reference_mux *mux, const struct plain_packet *packet, const struct choice *choice)
{
	const struct hop_spec *hop = &mux->world->hops[choice->backend->hop];

	if (hop->family != packet->family)
		return REASON_FORWARDED;
	if (memcmp(source_of(packet), hop->source, address_size(packet)) == 0)
		return REASON_OWN_SOURCE;
	return memcmp(source_of(packet), hop->destination, address_size(packet)) == 0 ? REASON_HAIRPIN : REASON_FORWARDED;
}

static enum reason choose(struct reference_mux *mux, const struct plain_packet *packet, struct choice *choice)
{
	enum flow_class class = packet->protocol == 17 ? FLOW_UDP_UNTRUSTED : FLOW_TCP_UNTRUSTED;
	struct flow_slot slot = { 0 };
	uint64_t key;

	choice->hash = hash_of(mux, packet, false);
	choice->flow = FLOW_UNTRACKED;
	if (!mux->table)
		return take_new(mux, packet, choice) ? from_an_end(mux, packet, choice) : REASON_NO_BACKEND;
	key = key_of(mux, packet, choice);
	slot = flow_table_find(mux->table, key);
	if (slot.line && take_known(mux, packet, choice, slot)) {
		learn(mux, packet, slot);
		choice->flow = FLOW_KNOWN;
		return REASON_FORWARDED;
	}
	if (!take_new(mux, packet, choice))
		return REASON_NO_BACKEND;
	if (from_an_end(mux, packet, choice) != REASON_FORWARDED)
		return from_an_end(mux, packet, choice);
	if (slot.line && !flow_table_expire(mux->table, slot)) {
		flow_slot_rewrite(mux->table, slot, choice->number, class);
		choice->flow = FLOW_NEW;
	} else if (flow_table_insert(mux->table, key, choice->number, class)) {
		choice->flow = FLOW_NEW;
	}
	return REASON_FORWARDED;
}

/* ---- send ---- */

struct way {
	const struct hop_spec *hop;
	uint32_t index;
	const uint8_t *link; /* the Ethernet header that it came with */
	uint32_t label;
	uint8_t origin;
};

/* UDP, and of GUE's variant 0 four bytes that name what follows. */
static uint32_t between(const struct hop_spec *hop)
{
	return hop->tunnel == TUNNEL_GUE ? 12 : hop->tunnel == TUNNEL_GUE_BARE ? 8 : 0;
}

static uint32_t overhead_of(const struct hop_spec *hop)
{
	return (hop->family == 4 ? 20 : 40) + between(hop);
}

static void *grown(void *memory, size_t size)
{
	memory = realloc(memory, size);
	if (!memory)
		abort();
	return memory;
}

/* Room for so many bytes more of what leaves, and for one frame. */
static uint8_t *more(struct reference_mux *mux, uint32_t length)
{
	if (mux->used + length > mux->room) {
		mux->room = (mux->used + length) * 2;
		mux->bytes = grown(mux->bytes, mux->room);
	}
	if (mux->sent_count == mux->sent_room) {
		mux->sent_room = mux->sent_room * 2 + BURST_MAX;
		mux->sent = grown(mux->sent, mux->sent_room * sizeof(*mux->sent));
	}
	memset(mux->bytes + mux->used, 0, length);
	mux->used += length;
	return mux->bytes + mux->used - length;
}

/* What all outer headers have of the packet inside. */
struct inside {
	uint8_t tos;    /* DSCP and ECN (RFC 2983, 6040) */
	bool whole;     /* no router may take it apart: DF, and IPv6 (RFC 4213, 3.2.2) */
	uint8_t protocol;
};

static struct inside look_inside(const uint8_t *ip)
{
	if (ip[0] >> 4 == 4)
		return (struct inside){ ip[1], ip[6] & 0x40, 4 };
	return (struct inside){ (uint8_t)((ip[0] & 15) << 4 | ip[1] >> 4), true, 41 };
}

static void outer_ipv4(uint8_t *outer, const struct hop_spec *hop, struct inside in, uint32_t length, uint16_t id)
{
	outer[0] = 0x45;
	outer[1] = in.tos;
	put16(outer + 2, length + 20);
	put16(outer + 4, in.whole ? 0 : id); /* RFC 6864 */
	outer[6] = in.whole ? 0x40 : 0;
	outer[8] = 64;
	outer[9] = hop->tunnel ? 17 : in.protocol;
	memcpy(outer + 12, hop->source, 4);
	memcpy(outer + 16, hop->destination, 4);
	put16(outer + 10, (uint16_t)~fold(sum16(outer, 20, 0)));
}

static void outer_ipv6(uint8_t *outer, const struct hop_spec *hop, struct inside in, uint32_t length, uint32_t label)
{
	outer[0] = (uint8_t)(0x60 | in.tos >> 4);
	outer[1] = (uint8_t)((in.tos & 15) << 4 | (label >> 16 & 15));
	put16(outer + 2, label);
	put16(outer + 4, length);
	outer[6] = hop->tunnel ? 17 : in.protocol;
	outer[7] = 64;
	memcpy(outer + 8, hop->source, 16);
	memcpy(outer + 24, hop->destination, 16);
}

/* Checksum and whatever else is zero stays so. */
static void udp_before(uint8_t *udp, const struct hop_spec *hop, struct inside in, uint32_t length, uint32_t label)
{
	if (!hop->tunnel)
		return;
	put16(udp, 49152 + label % 16384);
	put16(udp + 2, hop->port);
	put16(udp + 4, length + between(hop));
	if (hop->tunnel == TUNNEL_GUE)
		udp[9] = in.protocol;
}

static void link_header(const struct reference_mux *mux, uint8_t *at, const struct way *way)
{
	if (mux->config.link == MUX_LINK_SWAP) {
		memcpy(at, way->link + 6, 6);
		memcpy(at + 6, way->link, 6);
	} else {
		memcpy(at, way->hop->mac, 6);
		memcpy(at + 6, way->hop->source_mac, 6);
	}
	put16(at + 12, way->hop->family == 4 ? 0x0800 : 0x86dd);
}

/* Wraps one packet and lets it go; false where it could not be sent. */
static bool leave(struct reference_mux *mux, const struct way *way, const uint8_t *ip, uint32_t length,
		  const struct plain_sent *marks)
{
	uint32_t link = mux->config.link == MUX_LINK_NONE ? 0 : 14, overhead = overhead_of(way->hop);
	uint8_t *out = more(mux, link + overhead + length);
	struct inside in = look_inside(ip);
	struct plain_sent *sent = &mux->sent[mux->sent_count++];

	if (link)
		link_header(mux, out, way);
	if (way->hop->family == 4)
		outer_ipv4(out + link, way->hop, in, length + between(way->hop), in.whole ? 0 : mux->ids[way->index & 255]++);
	else
		outer_ipv6(out + link, way->hop, in, length + between(way->hop), way->label);
	udp_before(out + link + overhead - between(way->hop), way->hop, in, length, way->label);
	memcpy(out + link + overhead, ip, length);
	*sent = marks ? *marks : (struct plain_sent){ 0 };
	sent->at = (uint32_t)(out - mux->bytes);
	sent->len = link + overhead + length;
	sent->ifindex = way->hop->ifindex;
	sent->origin = way->origin;
	sent->csum_start += marks ? link + overhead : 0;
	return !mux->fails || ++mux->sends % mux->fails != 0;
}

static void one_hop_less(struct plain_packet *packet)
{
	uint8_t *ip = packet->bytes;

	if (packet->family == 6) {
		ip[7]--;
		return;
	}
	ip[8]--;
	/*
	 * RFC 1624, (3), which is what routers do: of the two words for zero it keeps the one that was there, and a sum
	 * made anew has the other.
	 */
	put16(ip + 10, (uint16_t)~fold((uint64_t)(uint16_t)~be16(ip + 10) + (uint16_t)~((ip[8] + 1) * 256u + ip[9]) +
				       ip[8] * 256u + ip[9]));
}

static uint64_t pseudo_sum(const uint8_t *ip, uint8_t protocol, uint32_t length)
{
	bool four = ip[0] >> 4 == 4;

	return sum16(ip + (four ? 12 : 8), four ? 8 : 32, (uint64_t)protocol + (length & 0xffff) + (length >> 16));
}

static uint32_t covered(const struct plain_packet *packet)
{
	return packet->protocol == 6 ? packet->length - packet->transport : be16(packet->bytes + packet->transport + 4);
}

static bool left_undone(const struct plain_packet *packet)
{
	const uint8_t *field = packet->bytes + packet->transport + (packet->protocol == 6 ? 16 : 6);

	return be16(field) == fold(pseudo_sum(packet->bytes, packet->protocol, covered(packet)));
}

static void finish(struct plain_packet *packet, uint32_t start, uint32_t end, uint32_t offset)
{
	uint16_t check;

	if (start < packet->transport || start > end || start + offset + 2 > end)
		return;
	check = (uint16_t)~fold(sum16(packet->bytes + start, end - start, 0));
	put16(packet->bytes + start + offset, !check && offset != 16 ? 0xffff : check);
}

/* Checksums that the sender left to its NIC. */
static void complete(const struct reference_mux *mux, struct plain_packet *packet, const struct frame *frame, int32_t start)
{
	uint32_t transport = packet->transport, end = transport + covered(packet);

	if (frame->csum_start && start > 0)
		finish(packet, (uint32_t)start, (uint32_t)start == transport ? end : packet->length, frame->csum_offset);
	else if (!frame->csum_start && mux->config.detect_partial && left_undone(packet))
		finish(packet, transport, end, packet->protocol == 6 ? 16 : 6);
}

/* ---- super-packets ---- */

static void make_checksum(const uint8_t *ip, uint8_t *transport, uint8_t protocol, uint32_t length)
{
	uint8_t *field = transport + (protocol == 6 ? 16 : 6);
	uint16_t check;

	put16(field, 0);
	check = (uint16_t)~fold(sum16(transport, length, pseudo_sum(ip, protocol, length)));
	put16(field, protocol == 17 && !check ? 0xffff : check);
}

static void number_ip(uint8_t *ip, uint32_t length, uint32_t n)
{
	uint32_t header = (ip[0] & 15) * 4u;

	if (ip[0] >> 4 == 6) {
		put16(ip + 4, length - 40);
		return;
	}
	put16(ip + 2, length);
	put16(ip + 4, be16(ip + 4) + n);
	put16(ip + 10, 0);
	put16(ip + 10, (uint16_t)~fold(sum16(ip, header, 0)));
}

static void number_tcp(uint8_t *tcp, uint32_t moved, bool last)
{
	uint32_t sequence = ((uint32_t)be16(tcp + 4) << 16 | be16(tcp + 6)) + moved, urgent = be16(tcp + 18);

	put16(tcp + 4, sequence >> 16);
	put16(tcp + 6, sequence);
	if (!last)
		tcp[13] &= (uint8_t)~(TCP_FIN | TCP_PSH);
	if (!moved)
		return;
	tcp[13] &= (uint8_t)~TCP_CWR;
	if (!(tcp[13] & TCP_URG))
		return;
	if (urgent <= moved)
		tcp[13] &= (uint8_t)~TCP_URG;
	put16(tcp + 18, urgent <= moved ? 0 : urgent - moved);
}

/* The n-th of the packets that a super-packet stands for. */
static uint32_t cut_out(const struct plain_packet *packet, const struct cut *cut, uint32_t n, uint8_t *out)
{
	uint32_t from = cut->headers + n * cut->size, left = packet->length - from;
	uint32_t payload = left < cut->size ? left : cut->size, length = cut->headers + payload;

	memcpy(out, packet->bytes, cut->headers);
	memcpy(out + cut->headers, packet->bytes + from, payload);
	number_ip(out, length, n);
	if (cut->inner) {
		number_ip(out + cut->inner, length - cut->inner, n);
		put16(out + packet->transport + 4, length - packet->transport);
	}
	if (cut->protocol == 6)
		number_tcp(out + cut->transport, n * cut->size, left <= cut->size);
	else
		put16(out + cut->transport + 4, length - cut->transport);
	if (cut->checksum)
		make_checksum(out + cut->inner, out + cut->transport, cut->protocol, length - cut->transport);
	if (cut->inner && be16(out + packet->transport + 6))
		make_checksum(out, out + packet->transport, 17, length - packet->transport);
	return length;
}

static bool goes_whole(const struct reference_mux *mux, const struct plain_packet *packet, const struct frame *frame,
		       const struct cut *cut, const struct hop_spec *hop)
{
	return mux->sends_whole && !hop->tunnel && hop->family == packet->family && cut->protocol == 6 && !cut->inner &&
	       frame->csum_start &&
	       !(packet->bytes[cut->transport + 13] & TCP_URG) && packet->length + overhead_of(hop) <= 65535;
}

static bool leave_pieces(struct reference_mux *mux, const struct way *way, const uint8_t *ip, uint32_t length, uint32_t fits);

static bool send_cut(struct reference_mux *mux, const struct plain_packet *packet, const struct cut *cut, const struct way *way,
		     uint32_t fits)
{
	static uint8_t segment[SERVICE_MTU_MAX];
	uint32_t payload = packet->length - cut->headers;
	bool fine = true;

	for (uint32_t n = 0; n * cut->size < payload; n++) {
		uint32_t length = cut_out(packet, cut, n, segment);

		fine &= length > fits ? leave_pieces(mux, way, segment, length, fits) : leave(mux, way, segment, length, NULL);
	}
	return fine;
}

static bool send_whole(struct reference_mux *mux, const struct plain_packet *packet, const struct cut *cut, const struct way *way)
{
	uint32_t payload = packet->length - cut->headers;
	struct plain_sent marks = { .gso_size = (uint16_t)cut->size,
				    .csum_start = (uint16_t)packet->transport,
				    .csum_offset = 16,
				    .offload = packet->family == 6 ? FRAME_INNER6 : 0 };

	if (flags_of(packet) & TCP_CWR)
		marks.offload |= FRAME_CWR;
	/* As many IDs as packets come of it. */
	if (packet->family == 4 && !(packet->bytes[6] & 0x40)) {
		bool fine = leave(mux, way, packet->bytes, packet->length, &marks);

		mux->ids[way->index & 255] += (uint16_t)((payload + cut->size - 1) / cut->size - 1);
		return fine;
	}
	return leave(mux, way, packet->bytes, packet->length, &marks);
}

/* Whether an IP header of `header` bytes ends at `end` whose packet is all the rest and has such a transport. */
static bool inner_ends_at(const struct plain_packet *packet, uint32_t header, uint32_t end, uint8_t protocol)
{
	const uint8_t *ip = packet->bytes + end - header;

	if (header == 40 && ip[0] >> 4 == 6)
		return be16(ip + 4) == packet->length - end && ip[6] == protocol;
	return ip[0] == 0x40 + header / 4 && be16(ip + 2) == packet->length - end + header && ip[9] == protocol &&
	       fold(sum16(ip, header, 0)) == 0xffff;
}

/* A packet in UDP (VXLAN and its like) whose own transport begins at `start`. */
static bool plan_tunnel(const struct plain_packet *packet, uint32_t start, uint32_t field, struct cut *cut)
{
	uint32_t there = packet->length - start, header = 8, begins = packet->transport + 8;

	if (packet->protocol != 17 || start > 65535 || start >= packet->length || (field != 16 && field != 6))
		return false;
	if (be16(packet->bytes + packet->transport + 4) != packet->length - packet->transport)
		return false;
	cut->protocol = field == 16 ? 6 : 17;
	cut->transport = (uint16_t)start;
	cut->inner = 0;
	for (uint32_t ip = 20; ip <= 60 && begins + ip <= start && !cut->inner; ip += 4)
		if (inner_ends_at(packet, ip, start, cut->protocol))
			cut->inner = (uint16_t)(start - ip);
	if (there < (cut->protocol == 6 ? 20u : 8u))
		return false;
	if (cut->protocol == 6)
		header = (packet->bytes[start + 12] >> 4) * 4u;
	cut->headers = start + header;
	return cut->inner && header >= (cut->protocol == 6 ? 20u : 8u) && header <= there;
}

static void plan_own(const struct plain_packet *packet, struct cut *cut)
{
	cut->protocol = packet->protocol;
	cut->transport = (uint16_t)packet->transport;
	cut->inner = 0;
	cut->headers = packet->transport + (packet->protocol == 6 ? (packet->bytes[packet->transport + 12] >> 4) * 4u : 8);
}

static bool is_whole(const struct plain_packet *packet)
{
	const uint8_t *transport = packet->bytes + packet->transport;

	if (packet->protocol == 17 && !be16(transport + 6))
		return true;
	return left_undone(packet) ||
	       fold(sum16(transport, covered(packet), pseudo_sum(packet->bytes, packet->protocol, covered(packet)))) == 0xffff;
}

static enum segments plan_told(const struct plain_packet *packet, const struct frame *frame, int32_t start, uint32_t fits,
			       struct cut *cut)
{
	if (!frame->csum_start || start == (int32_t)packet->transport)
		plan_own(packet, cut);
	else if (start < (int32_t)packet->transport || !plan_tunnel(packet, (uint32_t)start, frame->csum_offset, cut))
		return SEGMENTS_TOO_BIG;
	cut->size = frame->gso_size;
	if (packet->length <= cut->headers + cut->size)
		return SEGMENTS_ONE;
	if (cut->headers + cut->size > fits)
		return SEGMENTS_TOO_BIG;
	if (cut->protocol == 17 && be16(packet->bytes + cut->transport + 4) != packet->length - cut->transport)
		return SEGMENTS_TOO_BIG;
	return frame->csum_start || frame->offload & FRAME_VERIFIED || is_whole(packet) ? SEGMENTS_SEVERAL : SEGMENTS_TOO_BIG;
}

/* A capture tells nothing; no link carries what is longer than it. */
static enum segments plan_guessed(const struct plain_packet *packet, const struct frame *frame, uint32_t fits, uint32_t mtu,
				  struct cut *cut)
{
	if (frame->offload & FRAME_TOLD || packet->protocol != 6 || packet->length <= mtu)
		return SEGMENTS_ONE;
	plan_own(packet, cut);
	if (cut->headers >= fits || packet->length == cut->headers || !is_whole(packet))
		return SEGMENTS_TOO_BIG;
	cut->size = fits - cut->headers;
	return SEGMENTS_SEVERAL;
}

/* RFC 2675: the option that says a length of more than 64 KiB goes; what is in its place and says something else is wrong. */
static bool without_jumbo(struct plain_packet *packet, int32_t *start)
{
	uint8_t *ip = packet->bytes;

	if (packet->family == 4 || be16(ip + 4) || packet->transport == 40)
		return true;
	if (ip[6] != 0 || ip[41] != 0 || ip[42] != 0xc2 || ip[43] != 4)
		return false;
	ip[6] = ip[40];
	memmove(ip + 8, ip, 40);
	packet->bytes += 8;
	packet->length -= 8;
	packet->transport -= 8;
	*start -= 8;
	return true;
}

static enum segments plan(struct plain_packet *packet, const struct frame *frame, int32_t start, uint32_t fits, uint32_t mtu,
			  struct cut *cut)
{
	enum segments segments = SEGMENTS_TOO_BIG;

	if (without_jumbo(packet, &start))
		segments = frame->gso_size ? plan_told(packet, frame, start, fits, cut) :
					     plan_guessed(packet, frame, fits, mtu, cut);
	if (segments != SEGMENTS_SEVERAL)
		return segments;
	cut->checksum = cut->protocol == 6 || be16(packet->bytes + cut->transport + 6);
	/* Each would open a connection, or end one. */
	return cut->protocol == 6 && packet->bytes[cut->transport + 13] & (TCP_SYN | TCP_RST) ? SEGMENTS_TOO_BIG : segments;
}

/* ---- fragments on the way out ---- */

static bool may_cut(const struct plain_packet *packet)
{
	return packet->family == 4 && !(packet->bytes[6] & 0x40);
}

/* Options that the header of a later fragment has: those whose highest bit says so, while they hold together. */
static uint32_t later_options(const uint8_t *options, uint32_t length, uint8_t *out)
{
	uint32_t count = 0;

	for (uint32_t at = 0, size; at < length && options[at]; at += size) {
		size = options[at] == 1 || at + 1 == length ? 1 : options[at + 1];
		if ((options[at] != 1 && size < 2) || at + size > length)
			break;
		for (uint32_t i = 0; options[at] >= 128 && i < size; i++)
			out[count++] = options[at + i];
	}
	while (count % 4)
		out[count++] = 0;
	return count;
}

/* An IPv4 packet as fragments of at most `fits` bytes; false: one could not be sent. */
static bool leave_pieces(struct reference_mux *mux, const struct way *way, const uint8_t *ip, uint32_t length, uint32_t fits)
{
	uint32_t header = (ip[0] & 15) * 4u, step = (fits - header) / 8 * 8;
	static uint8_t piece[SERVICE_MTU_MAX];
	bool fine = true;

	for (uint32_t at = header; at < length; at += step) {
		uint32_t size = length - at < step ? length - at : step, head = header;
		uint32_t where = be16(ip + 6);

		if (at + size < length)
			where |= 0x2000;
		memcpy(piece, ip, header);
		if (at > header)
			head = 20 + later_options(ip + 20, header - 20, piece + 20);
		memcpy(piece + head, ip + at, size);
		piece[0] = (uint8_t)(0x40 + head / 4);
		put16(piece + 2, head + size);
		put16(piece + 6, where + (at - header) / 8);
		put16(piece + 10, 0);
		put16(piece + 10, (uint16_t)~fold(sum16(piece, head, 0)));
		fine &= leave(mux, way, piece, head + size, NULL);
	}
	return fine;
}

static bool fits_in_pieces(const uint8_t *ip, uint32_t fits)
{
	return fits >= (ip[0] & 15) * 4u + 8;
}

static enum reason forward(struct reference_mux *mux, struct plain_packet *packet, const struct choice *choice,
			const struct frame *frame, const uint8_t *link, uint8_t origin)
{
	int32_t start = (int32_t)frame->csum_start - (mux->link == LINK_ETHERNET ? 14 : 0) - packet->tag;
	uint32_t index = choice->backend->hop, mtu = choice->service->mtu;
	struct way way = { &mux->world->hops[index], index, link, (uint32_t)(choice->hash >> 32) & 0xfffff, origin };
	uint32_t overhead = overhead_of(way.hop), link_mtu = mtu;
	bool train = frame->gso_size && packet->protocol == 17 && packet->length > packet->transport + 8 + frame->gso_size;
	enum segments stands_for;
	struct cut cut;
	uint32_t fits;
	bool cuts;

	if (!way.hop->resolved)
		return REASON_NO_NEXT_HOP;
	if (way.hop->mtu && way.hop->mtu < mtu)
		mtu = way.hop->mtu;
	fits = mtu > overhead ? mtu - overhead : 0;
	cuts = may_cut(packet) && fits_in_pieces(packet->bytes, fits);
	if (packet->length > fits || train) {
		stands_for = plan(packet, frame, start, fits, link_mtu, &cut);
		if (stands_for == SEGMENTS_TOO_BIG && may_cut(packet))
			stands_for = plan(packet, frame, start, SERVICE_MTU_MAX, link_mtu, &cut);
		switch (stands_for) {
		case SEGMENTS_SEVERAL:
			one_hop_less(packet);
			if (cut.headers + cut.size <= fits && goes_whole(mux, packet, frame, &cut, way.hop))
				return send_whole(mux, packet, &cut, &way) ? REASON_FORWARDED : REASON_SEND_FAILED;
			if (cut.headers + cut.size > fits && !cuts)
				return REASON_TOO_BIG;
			return send_cut(mux, packet, &cut, &way, fits) ? REASON_SEGMENTED : REASON_SEND_FAILED;
		case SEGMENTS_ONE:
			if (packet->length > fits && !cuts)
				return REASON_TOO_BIG;
			if (packet->length > fits) {
				complete(mux, packet, frame, start);
				one_hop_less(packet);
				return leave_pieces(mux, &way, packet->bytes, packet->length, fits) ? REASON_FORWARDED :
												      REASON_SEND_FAILED;
			}
			break;
		default:
			return REASON_TOO_BIG;
		}
	}
	complete(mux, packet, frame, start);
	one_hop_less(packet);
	return leave(mux, &way, packet->bytes, packet->length, NULL) ? REASON_FORWARDED : REASON_SEND_FAILED;
}

/* An error or a fragment: it is nobody's super-packet, and no checksum of it is left to do. */
static enum reason forward_aside(struct reference_mux *mux, struct plain_packet *packet, const struct choice *choice,
				 const uint8_t *link, uint8_t origin, enum reason reason)
{
	uint32_t index = choice->backend->hop, mtu = choice->service->mtu, fits;
	struct way way = { &mux->world->hops[index], index, link, (uint32_t)(choice->hash >> 32) & 0xfffff, origin };
	bool fine;

	if (!way.hop->resolved)
		return REASON_NO_NEXT_HOP;
	if (way.hop->mtu && way.hop->mtu < mtu)
		mtu = way.hop->mtu;
	fits = mtu > overhead_of(way.hop) ? mtu - overhead_of(way.hop) : 0;
	if (packet->length > fits && !(may_cut(packet) && fits_in_pieces(packet->bytes, fits)))
		return REASON_TOO_BIG;
	one_hop_less(packet);
	fine = packet->length > fits ? leave_pieces(mux, &way, packet->bytes, packet->length, fits) :
				       leave(mux, &way, packet->bytes, packet->length, NULL);
	return fine ? reason : REASON_SEND_FAILED;
}

/* ---- ICMP ---- */

/* The packet that an error quotes, turned round: as if its client had sent it.  False: it does not say enough. */
static bool turn_quote(const struct plain_packet *packet, struct plain_packet *flow, uint8_t *bytes)
{
	const uint8_t *quote = packet->bytes + packet->transport + 8;
	uint32_t have = packet->length - packet->transport - 8, at = packet->family == 4 ? 20 : 40;
	uint32_t size = packet->family == 4 ? 4 : 16, first = packet->family == 4 ? 12 : 8;
	uint8_t protocol;

	if (have < at || quote[0] >> 4 != packet->family)
		return false;
	protocol = quote[packet->family == 4 ? 9 : 6];
	if (packet->family == 4) {
		at = (quote[0] & 15) * 4u;
		if (at < 20 || be16(quote + 6) & 0x1fff)
			return false;
	}
	for (unsigned seen = 0; packet->family == 6 && (protocol == 0 || protocol == 43 || protocol == 44 || protocol == 60);
	     seen++) {
		const uint8_t *header = quote + at;

		if (seen == 8 || at + 8 > have || (protocol == 44 && be16(header + 2) >> 3))
			return false;
		at += protocol == 44 ? 8 : 8 + header[1] * 8u;
		protocol = header[0];
	}
	if (at + 8 > have || (protocol != 6 && protocol != 17))
		return false;
	*flow = (struct plain_packet){ .bytes = bytes, .family = packet->family, .protocol = protocol };
	flow->transport = packet->family == 4 ? 20 : 40;
	memcpy(bytes + first, quote + first + size, size);
	memcpy(bytes + first + size, quote + first, size);
	memcpy(bytes + flow->transport, quote + at + 2, 2);
	memcpy(bytes + flow->transport + 2, quote + at, 2);
	flow->source_port = be16(quote + at + 2);
	flow->port = be16(quote + at);
	return true;
}

/* Whoever has the flow that an error is about; it changes nothing. */
static enum reason choose_owner(const struct reference_mux *mux, const struct plain_packet *flow, struct choice *choice)
{
	struct flow_slot slot = { 0 };

	choice->hash = hash_of(mux, flow, false);
	if (mux->table)
		slot = flow_table_find(mux->table, key_of(mux, flow, choice));
	if (slot.line) {
		unsigned untrusted = mux->world->idle_untrusted, number = flow_slot_backend(slot);
		unsigned idle = flow_slot_class(slot) == FLOW_TCP_UNTRUSTED ? untrusted : choice->service->idle;
		const struct plain_backend *backend = backend_at(choice->service, number);

		if (flow_slot_age(mux->table, slot) < idle && backend && backend->state != BACKEND_DOWN) {
			choice->backend = backend;
			choice->number = number;
			choice->flow = FLOW_KNOWN;
			return REASON_ICMP_ERROR;
		}
	}
	choice->flow = FLOW_UNTRACKED;
	return take_new(mux, flow, choice) ? REASON_ICMP_ERROR : REASON_NO_BACKEND;
}

/* No answers here: pings end as any other ICMP does. */
static enum reason decide_icmp(const struct reference_mux *mux, const struct plain_packet *packet, struct choice *choice)
{
	uint8_t type = packet->bytes[packet->transport], bytes[48] = { 0 };
	bool four = packet->family == 4, is_vip;
	struct plain_packet flow;

	if (packet->protocol != (four ? 1 : 58) || packet->length < packet->transport + 8)
		return REASON_BAD_ICMP;
	if (four ? type != 3 && type != 11 && type != 12 : type < 1 || type > 4)
		return REASON_ICMP;
	if (!turn_quote(packet, &flow, bytes))
		return REASON_BAD_ICMP;
	if (memcmp(destination_of(&flow), destination_of(packet), address_size(packet)) != 0)
		return REASON_ICMP_STRANGER;
	choice->service = match(mux->world, &flow, &is_vip);
	if (!choice->service)
		return REASON_NO_SERVICE;
	if (packet->bytes[four ? 8 : 7] <= 1)
		return REASON_TTL_EXPIRED;
	return choose_owner(mux, &flow, choice);
}

/* ---- fragments on the way in ---- */

struct plain_fragment {
	uint32_t id, offset, size, end; /* end: of the headers that each fragment has */
	uint8_t protocol;
	bool more;
};

/* Each eight bytes of a datagram that have come. */
struct plain_datagram {
	bool there, decided, spoilt;
	uint8_t source[16], destination[16], family, protocol;
	uint32_t id, length, service, number;
	uint32_t ends_unit; /* the byte after which its last unit ends, where the last fragment has come */
	uint64_t began, hash;
	bool units[8192];
};

static enum reason kind_of(const struct plain_packet *packet, uint8_t protocol)
{
	if (protocol == 6 || protocol == 17)
		return REASON_FRAGMENT;
	if (packet->family == 6 && (protocol == 0 || protocol == 43 || protocol == 44 || protocol == 60))
		return REASON_FRAGMENT;
	return protocol == 1 || protocol == 58 ? REASON_ICMP : REASON_BAD_PROTOCOL;
}

static enum reason read_fragment(const struct plain_packet *packet, struct plain_fragment *out)
{
	const uint8_t *ip = packet->bytes, *header = ip + packet->transport; /* IPv6: of the fragment */

	if (packet->family == 4)
		*out = (struct plain_fragment){ be16(ip + 4), (be16(ip + 6) & 0x1fff) * 8, 0, packet->transport, ip[9],
						ip[6] & 0x20 };
	else
		*out = (struct plain_fragment){ (uint32_t)be16(header + 4) << 16 | be16(header + 6), be16(header + 2) / 8 * 8, 0,
						packet->transport + 8, header[0], header[3] & 1 };
	out->size = packet->length - out->end;
	if (out->size == 0 || out->offset + out->size > 65535 || (out->more && out->size % 8 != 0))
		return REASON_BAD_FRAGMENT;
	if (out->protocol == 6 && (out->offset == 8 || out->offset == 16))
		return REASON_BAD_FRAGMENT;
	return kind_of(packet, out->protocol);
}

/* The first: all of its headers have to be in it. */
static enum reason open_fragment(struct plain_packet *packet, const struct plain_fragment *fragment)
{
	const uint8_t *header;
	uint32_t there;

	packet->transport = fragment->end;
	packet->protocol = fragment->protocol;
	for (unsigned seen = 0; packet->family == 6; seen++) {
		uint8_t protocol = packet->protocol;

		if (protocol != 0 && protocol != 43 && protocol != 44 && protocol != 60)
			break;
		if (seen == 8 || protocol == 44 || packet->transport + 8 > packet->length)
			return REASON_BAD_FRAGMENT;
		header = packet->bytes + packet->transport;
		packet->protocol = header[0];
		packet->transport += 8 + header[1] * 8u;
	}
	if (packet->transport > packet->length)
		return REASON_BAD_FRAGMENT;
	header = packet->bytes + packet->transport;
	there = packet->length - packet->transport;
	if (packet->protocol == 6) {
		if (there < 20 || there < (header[12] >> 4) * 4u)
			return REASON_BAD_FRAGMENT;
		if (header[12] >> 4 < 5)
			return REASON_BAD_HEADER;
	} else if (packet->protocol == 17) {
		if (there < 8)
			return REASON_BAD_FRAGMENT;
		if (be16(header + 4) < 8)
			return REASON_BAD_HEADER;
	} else {
		return kind_of(packet, packet->protocol);
	}
	packet->source_port = be16(header);
	packet->port = be16(header + 2);
	return REASON_FRAGMENT;
}

static struct plain_datagram *datagram_of(struct reference_mux *mux, const struct plain_packet *packet,
					  const struct plain_fragment *fragment)
{
	uint8_t protocol = packet->family == 4 ? fragment->protocol : 0;
	struct plain_datagram *found;

	if (!mux->datagrams)
		mux->datagrams = calloc(DATAGRAMS, sizeof(*mux->datagrams));
	if (!mux->datagrams)
		abort();
	for (uint32_t i = 0; i < DATAGRAMS && i < mux->datagrams_begun; i++) {
		found = &mux->datagrams[i];
		if (found->there && mux->now - found->began < FRAGMENT_SECONDS * 1000000000ull && found->id == fragment->id &&
		    found->family == packet->family && found->protocol == protocol &&
		    memcmp(found->source, source_of(packet), address_size(packet)) == 0 &&
		    memcmp(found->destination, destination_of(packet), address_size(packet)) == 0)
			return found;
	}
	found = &mux->datagrams[mux->datagrams_begun++ % DATAGRAMS];
	memset(found, 0, sizeof(*found));
	found->there = true;
	found->family = packet->family;
	found->protocol = protocol;
	found->id = fragment->id;
	found->began = mux->now;
	memcpy(found->source, source_of(packet), address_size(packet));
	memcpy(found->destination, destination_of(packet), address_size(packet));
	return found;
}

static unsigned runs_of(const struct plain_datagram *datagram)
{
	unsigned runs = 0;

	for (unsigned i = 0; i < 8192; i++)
		runs += datagram->units[i] && (i == 0 || !datagram->units[i - 1]);
	return runs;
}

/* False: it may not go on. */
static bool note_fragment(struct plain_datagram *datagram, const struct plain_fragment *fragment)
{
	uint32_t first = fragment->offset / 8, end = (fragment->offset + fragment->size + 7) / 8, there = 0, bytes;
	uint32_t last = fragment->offset + fragment->size;

	if (datagram->spoilt)
		return false;
	if (!fragment->more) {
		if (datagram->length && datagram->length != last)
			datagram->spoilt = true;
		if (!datagram->length)
			datagram->length = last;
		for (uint32_t i = (last + 7) / 8; i < 8192; i++)
			datagram->spoilt |= datagram->units[i];
	}
	bytes = datagram->length ? datagram->length : 65536;
	if (last > bytes)
		datagram->spoilt = true;
	for (uint32_t i = first; i < end; i++)
		there += datagram->units[i];
	/* The unit that the end lies in came whole before it was known. */
	if (!fragment->more && last % 8 && datagram->units[end - 1] && datagram->ends_unit != last)
		datagram->spoilt = true;
	if (there && there < end - first)
		datagram->spoilt = true;
	if (datagram->spoilt || there)
		return false;
	for (uint32_t i = first; i < end; i++)
		datagram->units[i] = true;
	if (!fragment->more)
		datagram->ends_unit = last;
	if (runs_of(datagram) <= FRAGMENT_SPANS)
		return true;
	for (uint32_t i = first; i < end; i++)
		datagram->units[i] = false;
	return false;
}

/* When all of it has gone on, its ID may come again. */
static void end_datagram(struct plain_datagram *datagram)
{
	if (!datagram->decided || !datagram->length)
		return;
	for (uint32_t i = 0; i < (datagram->length + 7) / 8; i++)
		if (!datagram->units[i])
			return;
	datagram->there = false;
}

static enum reason decide_fragment(struct reference_mux *mux, struct plain_packet *packet, struct choice *choice)
{
	struct plain_fragment fragment;
	struct plain_datagram *datagram;
	enum reason reason = read_fragment(packet, &fragment);
	bool is_vip;

	packet->source_port = packet->port = 0;
	if (reason == REASON_FRAGMENT && fragment.offset == 0)
		reason = open_fragment(packet, &fragment);
	if (reason != REASON_FRAGMENT)
		return reason;
	if (packet->bytes[packet->family == 4 ? 8 : 7] <= 1)
		return REASON_TTL_EXPIRED;
	if (fragment.offset == 0) {
		choice->service = match(mux->world, packet, &is_vip);
		if (!choice->service)
			return REASON_NO_SERVICE;
		reason = choose(mux, packet, choice);
		if (reason != REASON_FORWARDED)
			return reason;
	}
	datagram = datagram_of(mux, packet, &fragment);
	if (!note_fragment(datagram, &fragment))
		return REASON_FRAGMENT_OVERLAP;
	if (fragment.offset == 0) {
		datagram->decided = true;
		datagram->service = choice->service->id;
		datagram->number = choice->number;
		datagram->hash = choice->hash;
		end_datagram(datagram);
		return REASON_FRAGMENT;
	}
	if (!datagram->decided)
		return REASON_FRAGMENT_ALONE;
	end_datagram(datagram);
	for (uint32_t i = 0; i < mux->world->count; i++)
		if (mux->world->services[i].present && mux->world->services[i].id == datagram->service)
			choice->service = &mux->world->services[i];
	choice->backend = choice->service ? backend_at(choice->service, datagram->number) : NULL;
	if (!choice->backend || choice->backend->state == BACKEND_DOWN)
		return REASON_NO_BACKEND;
	choice->number = datagram->number;
	choice->hash = datagram->hash;
	choice->flow = FLOW_KNOWN;
	return REASON_FRAGMENT;
}

/* ---- a packet ---- */

static enum reason decide(struct reference_mux *mux, struct plain_packet *packet, const struct frame *frame, struct choice *choice)
{
	enum reason reason = read_network(packet, frame, mux->link);
	bool is_vip;

	if (reason != REASON_FORWARDED)
		return reason;
	match(mux->world, packet, &is_vip);
	if (!is_vip)
		return REASON_NOT_VIP;
	reason = read_transport(packet);
	if (reason == REASON_ICMP)
		return decide_icmp(mux, packet, choice);
	if (reason == REASON_FRAGMENT)
		return decide_fragment(mux, packet, choice);
	if (reason != REASON_FORWARDED)
		return reason;
	if (packet->bytes[packet->family == 4 ? 8 : 7] <= 1)
		return REASON_TTL_EXPIRED;
	choice->service = match(mux->world, packet, &is_vip);
	return choice->service ? choose(mux, packet, choice) : REASON_NO_SERVICE;
}

static bool goes_on(enum reason reason)
{
	return reason == REASON_FORWARDED || reason == REASON_SEGMENTED || reason == REASON_ICMP_ERROR ||
	       reason == REASON_FRAGMENT;
}

static void count(struct reference_mux *mux, const struct choice *choice, enum reason reason, uint32_t length)
{
	mux->received++;
	mux->reasons[reason]++;
	if (!choice->service)
		return;
	if (!goes_on(reason)) {
		mux->services[choice->service->id].dropped++;
		return;
	}
	mux->services[choice->service->id].packets++;
	mux->services[choice->service->id].bytes += length;
	mux->services[choice->service->id].flows += choice->flow == FLOW_NEW;
	mux->backends[choice->backend->counter]++;
}

void reference_mux_packet(struct reference_mux *mux, const struct frame *frame, uint8_t origin, struct plain_result *result)
{
	static uint8_t copy[1 << 18];
	uint32_t before = mux->link == LINK_ETHERNET ? 14 : 0;
	struct plain_packet packet = { .bytes = copy + before };
	struct choice choice = { 0 };
	enum reason reason;
	uint32_t length;

	memcpy(copy, frame->data, frame->len);
	reason = decide(mux, &packet, frame, &choice);
	length = packet.length;
	if (reason == REASON_FORWARDED)
		reason = forward(mux, &packet, &choice, frame, frame->data, origin);
	else if (reason == REASON_ICMP_ERROR || reason == REASON_FRAGMENT)
		reason = forward_aside(mux, &packet, &choice, frame->data, origin, reason);
	count(mux, &choice, reason, length);
	if (!goes_on(reason))
		choice.flow = FLOW_NONE;
	result->reason = reason;
	result->flow = choice.flow;
	result->service = choice.service ? (int32_t)choice.service->id : -1;
	result->backend = choice.flow ? (int32_t)choice.number : -1;
}

/* ---- bursts ---- */

void reference_mux_burst(struct reference_mux *mux, const struct reference_world *world, uint64_t now_ns)
{
	uint16_t idle[FLOW_IDLES] = { [FLOW_TCP_UNTRUSTED] = world->idle_untrusted };

	mux->world = world;
	mux->used = mux->sent_count = 0;
	mux->now = answers_clock(mux->now, now_ns);
	if (!mux->table)
		return;
	for (uint32_t i = 0; i < world->count; i++) {
		const struct plain_service *service = &world->services[i];
		bool udp = service->protocol == 17;

		if (!service->present)
			continue;
		for (unsigned class = udp ? FLOW_UDP_UNTRUSTED : FLOW_TCP_TRUSTED; class < FLOW_IDLES; class++)
			if ((class == FLOW_TCP_TRUSTED) != udp && service->idle > idle[class])
				idle[class] = service->idle;
	}
	flow_table_set_idle(mux->table, idle);
	flow_table_advance(mux->table, now_ns);
}

void reference_mux_tick(struct reference_mux *mux)
{
	uint64_t passes;
	bool judged;

	if (!mux->table)
		return;
	flow_table_settle(mux->table);
	passes = mux->table->passes;
	judged = mux->pass_serial > mux->forgotten;
	flow_table_sweep(mux->table, judged);
	if (mux->table->passes == passes)
		return;
	if (judged)
		mux->forgotten = mux->pass_serial;
	mux->pass_serial = mux->world->serial;
}

/* What a flow is worth that would have to make room. */
static enum flow_worth judge(const void *owner, uint64_t scrambled, unsigned number, enum flow_class class)
{
	const struct reference_mux *mux = owner;
	uint64_t key = flow_unscramble(&mux->seed, scrambled), hash = key << 16;
	uint32_t id = (uint32_t)(key >> 48) & 0x7fff, source = (uint32_t)key;
	const struct plain_service *service = id < mux->world->count ? &mux->world->services[id] : NULL;
	struct flow_tuple tuple = { .family = 4 };

	if (!service || !service->present || !backend_at(service, number))
		return FLOW_WORTHLESS;
	if (service->backends[number].state == BACKEND_DRAIN)
		return FLOW_UNSYNCHRONISED;
	if (!is_narrow(service) && service->hash_source)
		return class == FLOW_TCP_UNTRUSTED || class == FLOW_UDP_UNTRUSTED ? FLOW_CHEAP : FLOW_UNSYNCHRONISED;
	if (is_narrow(service)) {
		tuple.protocol = service->protocol;
		memcpy(tuple.source, &source, 4);
		memcpy(tuple.destination, service->vip, 4);
		tuple.source_port = (uint16_t)(key >> 32);
		put16((uint8_t *)&tuple.destination_port, service->first);
		hash = flow_tuple_hash(&mux->seed, &tuple, service->hash_source);
	}
	return slot_of(service->table, hash) == number ? FLOW_CHEAP : FLOW_UNSYNCHRONISED;
}

void reference_mux_start(struct reference_mux *mux, uint32_t services, uint32_t counters)
{
	for (unsigned i = 0; i < 256; i++)
		mux->ids[i] = (uint16_t)mux->config.first_id;
	mux->services = calloc(services, sizeof(*mux->services));
	mux->backends = calloc(counters, sizeof(*mux->backends));
	if (!mux->services || !mux->backends)
		abort();
	if (!mux->config.flows)
		return;
	if (flow_table_create(mux->config.flows, &mux->table))
		abort();
	flow_table_set_judge(mux->table, judge, mux);
}

void reference_mux_end(struct reference_mux *mux)
{
	if (mux->table)
		flow_table_destroy(mux->table);
	free(mux->datagrams);
	free(mux->bytes);
	free(mux->sent);
	free(mux->services);
	free(mux->backends);
}
