/* SPDX-License-Identifier: Apache-2.0 */
/* See mux.h. */
#include "mux.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "encap.h"
#include "exceptional.h"
#include "neighbours.h"
#include "segment.h"

#define SEGMENT_HEADROOM 64u
#define SEGMENT_ROOM (SEGMENT_HEADROOM + SERVICE_MTU_MAX) /* of one segment buffer */

/*
 * Headers are asked for so many packets before they are read, and flows in groups as soon as their keys are known, so
 * that memory works while packets are parsed.
 */
#define AHEAD 24u
#define GROUP 16u

/* ---- names of a flow ---- */

static void packet_tuple(const struct packet *packet, struct flow_tuple *tuple)
{
	size_t size = packet->family == 4 ? 4 : 16;

	memset(tuple, 0, sizeof(*tuple));
	memcpy(tuple->source, packet_source(packet), size);
	memcpy(tuple->destination, packet_destination(packet), size);
	tuple->source_port = packet->source_port;
	tuple->destination_port = packet->destination_port;
	tuple->protocol = packet->protocol;
	tuple->family = packet->family;
}

static uint64_t passage_hash(const struct mux *mux, const struct packet *packet, struct passage *passage)
{
	struct flow_tuple tuple;

	if (!passage->hashed) {
		packet_tuple(packet, &tuple);
		passage->hash = flow_tuple_hash(&mux->snapshot->map->seed, &tuple, false);
		passage->hashed = true;
	}
	return passage->hash;
}

static uint64_t flow_key(const struct mux *mux, const struct packet *packet, struct passage *passage)
{
	uint32_t source;

	if (UNLIKELY(!passage->service->narrow))
		return flow_key_wide(passage->service->id, passage_hash(mux, packet, passage));
	memcpy(&source, packet->ip + 12, 4);
	return flow_key_narrow(passage->service->id, source, packet->source_port);
}

/* ---- parse, find service ---- */

/* The line where the packet begins and the outer header will end, and the next with the rest of its headers. */
static inline void prefetch_headers(const struct frame *frame)
{
	__builtin_prefetch(frame->data, 1);
	__builtin_prefetch(frame->data + CACHE_LINE);
}

static uint8_t time_to_live(const struct packet *packet)
{
	return packet->ip[packet->family == 4 ? 8 : 7];
}

/* Any packet at all: packet.h's list, step by step. */
static enum reason find_service(const struct mux *mux, struct packet *packet, const struct frame *frame,
				struct passage *passage)
{
	const struct vip_map *map = mux->snapshot->map;
	bool is_vip;

	packet_parse_network(packet, frame, mux->io->link);
	if (packet->reason != REASON_FORWARDED)
		return packet->reason;

	const uint8_t *destination = packet_destination(packet);
	uint8_t protocol = packet->protocol;
	uint16_t port = packet->destination_port;
	const struct service *service = vip_map_find(map, packet->family, destination, protocol, port, &is_vip);

	if (!is_vip)
		return REASON_NOT_VIP;
	packet_parse_transport(packet, frame);
	if (packet->reason != REASON_FORWARDED)
		return packet->reason;
	/* Behind IPv6 extension headers the ports were not where the first look took them from. */
	if (UNLIKELY(packet->protocol != protocol || packet->destination_port != port))
		service = vip_map_find(map, packet->family, destination, packet->protocol, packet->destination_port,
				       &is_vip);
	passage->service = service;
	if (!service)
		return REASON_NO_SERVICE;
	return time_to_live(packet) <= 1 ? REASON_TTL_EXPIRED : REASON_FORWARDED;
}

/* The common packet: all of packet.h's list in one, and the first probe of the VIP map. */
static inline bool find_service_plain(const struct mux *mux, struct packet *packet, const struct frame *frame,
				      enum link_type link, struct passage *passage)
{
	const struct vip_map *map = mux->snapshot->map;
	const struct service *service;
	const uint8_t *destination;
	bool is_vip;

	if (UNLIKELY(!packet_parse_plain(packet, frame, link)))
		return false;
	destination = packet->ip + 16;
	service = vip_map_find_exact4(map, destination, packet->protocol, packet->destination_port);
	if (UNLIKELY(!service))
		service = vip_map_find_other4(map, destination, packet->protocol, packet->destination_port, &is_vip);
	if (UNLIKELY(!service))
		packet->reason = is_vip ? REASON_NO_SERVICE : REASON_NOT_VIP;
	else if (UNLIKELY(packet->ip[8] <= 1))
		packet->reason = REASON_TTL_EXPIRED;
	passage->service = service;
	return true;
}

/* The same for IPv6, whose services are all in the index. */
static inline bool find_service_plain6(const struct mux *mux, struct packet *packet, const struct frame *frame,
				       enum link_type link, struct passage *passage)
{
	const struct service *service;
	bool is_vip;

	if (!packet_parse_plain6(packet, frame, link))
		return false;
	service = vip_map_find(mux->snapshot->map, 6, packet->ip + 24, packet->protocol, packet->destination_port, &is_vip);
	if (UNLIKELY(!service))
		packet->reason = is_vip ? REASON_NO_SERVICE : REASON_NOT_VIP;
	else if (UNLIKELY(packet->ip[7] <= 1))
		packet->reason = REASON_TTL_EXPIRED;
	passage->service = service;
	return true;
}

/* IPv6 packets of a group: their keys are made of hashes, and those together. */
struct sixes {
	struct flow_tuple tuples[GROUP];
	uint8_t at[GROUP]; /* index of each in the group */
	unsigned count;
};

static void hash_sixes(struct mux *mux, unsigned first, const struct sixes *sixes, uint64_t *keys)
{
	uint64_t hashes[GROUP];

	mux->vector->hash6(&mux->snapshot->map->seed, sixes->tuples, hashes, sixes->count);
	for (unsigned n = 0; n < sixes->count; n++) {
		struct passage *passage = &mux->passages[first + sixes->at[n]];

		passage->hash = hashes[n];
		passage->hashed = true;
		keys[sixes->at[n]] = flow_key_wide(passage->service->id, hashes[n]);
	}
}

/* The flow's key; 0 where the packet goes no further, and where it is of those whose keys hash_sixes() makes. */
static inline uint64_t read_packet(struct mux *mux, unsigned first, unsigned n, const struct frame *frame,
				   enum link_type link, struct sixes *sixes)
{
	unsigned i = first + n;
	struct packet *packet = &mux->packets[i];
	struct passage *passage = &mux->passages[i];

	passage->service = NULL;
	passage->hashed = false;
	passage->flow = FLOW_NONE;
	if (!find_service_plain(mux, packet, frame, link, passage) &&
	    !find_service_plain6(mux, packet, frame, link, passage))
		packet->reason = find_service(mux, packet, frame, passage);
	if (UNLIKELY(packet->reason != REASON_FORWARDED))
		return 0;
	if (packet->family == 4)
		return flow_key(mux, packet, passage);
	packet_tuple(packet, &sixes->tuples[sixes->count]);
	sixes->at[sixes->count++] = (uint8_t)n;
	return 0;
}

/* Where the service of a packet would be looked for first, were it the plain one that most are; NULL: it is too short. */
static inline const struct exact_row *likely_row(const struct mux *mux, const struct frame *frame, enum link_type link)
{
	uint32_t before = link == LINK_ETHERNET ? ETHERNET_HEADER : 0;
	const uint8_t *ip = frame->data + before;

	if (UNLIKELY(frame->len < before + 24))
		return NULL;
	return vip_map_first_row4(mux->snapshot->map, ip + 16, ip[9], load16(ip + 22));
}

/*
 * Asks for the rows of a group's services while the group before it is read, and for the services once the rows are there:
 * all together instead of one after the other.
 */
static inline void prefetch_rows(const struct mux *mux, const struct frame *frames, unsigned count, enum link_type link,
				 const struct exact_row **rows)
{
	for (unsigned i = 0; i < count; i++) {
		rows[i] = likely_row(mux, &frames[i], link);
		__builtin_prefetch(rows[i]);
	}
}

static inline void prefetch_services(const struct exact_row *const *rows, unsigned count)
{
	for (unsigned i = 0; i < count; i++)
		if (LIKELY(rows[i] != NULL))
			__builtin_prefetch(rows[i]->service);
}

static inline unsigned group_from(unsigned first, unsigned count)
{
	return first >= count ? 0 : count - first < GROUP ? count - first : GROUP;
}

/* Reads the packets, scrambles keys together so that one vector instruction does many, and asks for their lines. */
static void read_burst(struct mux *mux, const struct frame *frames)
{
	unsigned count = mux->count;
	enum link_type link = mux->io->link;
	bool far = vip_map_is_far(mux->snapshot->map);
	const struct exact_row *rows[GROUP];
	uint64_t keys[GROUP];
	struct sixes sixes;

	for (unsigned i = 0; i < count && i < AHEAD; i++)
		prefetch_headers(&frames[i]);
	if (far)
		prefetch_rows(mux, frames, group_from(0, count), link, rows);
	for (unsigned first = 0; first < count; first += GROUP) {
		unsigned n = group_from(first, count);

		if (far) {
			prefetch_services(rows, n);
			prefetch_rows(mux, frames + first + n, group_from(first + n, count), link, rows);
		}
		sixes.count = 0;
		for (unsigned i = 0; i < n; i++) {
			if (first + i + AHEAD < count)
				prefetch_headers(&frames[first + i + AHEAD]);
			keys[i] = read_packet(mux, first, i, &frames[first + i], link, &sixes);
		}
		if (sixes.count)
			hash_sixes(mux, first, &sixes, keys);
		if (!mux->table)
			continue;
		mux->vector->scramble(&mux->snapshot->map->seed, keys, &mux->scrambled[first], n);
		for (unsigned i = 0; i < n; i++)
			flow_table_prefetch(mux->table, mux->scrambled[first + i]);
	}
}

/* ---- find flow ---- */

static uint32_t maglev_slot_of(const struct mux *mux, const struct packet *packet, struct passage *passage)
{
	const struct service *service = passage->service;
	struct flow_tuple tuple;

	if (LIKELY(!service->hash_source))
		return maglev_slot(service->maglev, passage_hash(mux, packet, passage));
	packet_tuple(packet, &tuple);
	return maglev_slot(service->maglev, flow_tuple_hash(&mux->snapshot->map->seed, &tuple, true));
}

/*
 * Maglev slots of the packets listed, asked for.  The common ones are hashed together; IPv6 and services that hash
 * the source alone one by one.
 */
static void prefetch_slots(struct mux *mux, const uint8_t *list, unsigned count)
{
	uint64_t *addresses = mux->addresses, *ports = mux->ports, *hashes = mux->hashes;
	uint32_t pair[2];

	for (unsigned n = 0; n < count; n++) {
		const struct packet *packet = &mux->packets[list[n]];

		memcpy(pair, packet->ip + 12, 8);
		addresses[n] = flow_word4_addresses(pair[0], pair[1]);
		ports[n] = flow_word4_ports(packet->source_port, packet->destination_port, packet->protocol);
	}
	mux->vector->hash4(&mux->snapshot->map->seed, addresses, ports, hashes, count);
	for (unsigned n = 0; n < count; n++) {
		const struct packet *packet = &mux->packets[list[n]];
		struct passage *passage = &mux->passages[list[n]];

		if (LIKELY(packet->family == 4)) {
			passage->hash = hashes[n];
			passage->hashed = true;
		}
		passage->maglev_slot = maglev_slot_of(mux, packet, passage);
		__builtin_prefetch(&passage->service->maglev->slots[passage->maglev_slot]);
	}
}

/* What prefetch_slots() asked for is there by now, or waited for by all at once: the backends that it names. */
static void prefetch_backends(struct mux *mux, const uint8_t *list, unsigned count)
{
	for (unsigned n = 0; n < count; n++) {
		const struct passage *passage = &mux->passages[list[n]];
		uint16_t number = passage->service->maglev->slots[passage->maglev_slot];

		if (LIKELY(number < passage->service->backend_count))
			__builtin_prefetch(&passage->service->backends[number]);
	}
}

/* First look, without deciding anything: what is not at home will need its other line or its Maglev slot soon. */
static void look_for_flows(struct mux *mux)
{
	uint8_t missing[BURST_MAX];
	unsigned count = 0;

	flow_table_find_home_burst(mux->table, mux->scrambled, mux->slots, mux->count);
	for (unsigned i = 0; i < mux->count; i++) {
		struct flow_slot slot = mux->slots[i];

		if (UNLIKELY(mux->packets[i].reason != REASON_FORWARDED))
			continue;
		if (LIKELY(slot.line != NULL)) {
			__builtin_prefetch(&mux->passages[i].service->backends[flow_slot_backend(slot)]);
		} else {
			flow_table_prefetch_alternate(mux->table, mux->scrambled[i]);
			missing[count++] = (uint8_t)i;
			if (UNLIKELY(mux->neighbours != NULL))
				neighbours_prefetch(mux->neighbours, mux->scrambled[i]);
		}
	}
	prefetch_slots(mux, missing, count);
	prefetch_backends(mux, missing, count);
}

/* ---- choose backend ---- */

static const struct backend *backend_at(const struct service *service, uint32_t number)
{
	const struct backend *backend = number < service->backend_count ? &service->backends[number] : NULL;

	return backend && backend_state(backend) != BACKEND_ABSENT ? backend : NULL;
}

/* Maglev's choice: sets backend and number, false if no backend takes new flows. */
static bool choose_new(const struct mux *mux, const struct packet *packet, struct passage *passage)
{
	uint16_t number = passage->service->maglev->slots[maglev_slot_of(mux, packet, passage)];

	if (UNLIKELY(number == MAGLEV_NONE))
		return false;
	passage->backend_number = number;
	passage->backend = backend_at(passage->service, number);
	return passage->backend != NULL;
}

static bool flow_expired(const struct mux *mux, const struct passage *passage, struct flow_slot slot,
			 enum flow_class class)
{
	uint16_t idle = class == FLOW_TCP_UNTRUSTED ? mux->snapshot->map->idle_untrusted : passage->service->idle;

	return flow_slot_age(mux->table, slot) >= idle;
}

/*
 * Whether the remembered backend still serves this packet.  Draining backends keep their TCP conversations but not
 * a new one on the same ports; their UDP flows move at once, if there is anywhere to move.  Sets the backend if so.
 */
static bool keep_remembered(const struct mux *mux, const struct packet *packet, struct passage *passage, uint32_t number)
{
	const struct backend *backend = backend_at(passage->service, number);

	if (UNLIKELY(!backend || backend_state(backend) == BACKEND_DOWN))
		return false;
	if (UNLIKELY(backend_state(backend) == BACKEND_DRAIN)) {
		bool moves = packet->protocol == 17 || packet_opens(packet);

		if (moves && (packet->protocol == 6 || choose_new(mux, packet, passage)))
			return false;
	}
	passage->backend = backend;
	passage->backend_number = (uint16_t)number;
	return true;
}

/*
 * What a packet tells about a flow that is not settled: that there was a later one, which no SYN is, and whether the
 * client still wants the conversation.  Its last ACK, after a FIN, changes nothing.
 */
static void note_progress(struct mux *mux, const struct packet *packet, struct flow_slot slot, enum flow_class class)
{
	if (!packet_opens(packet))
		class = flow_class_after(class, flow_slot_age(mux->table, slot) != 0);
	if (packet->protocol == 6 && packet_goes_on(packet))
		class = flow_class_ending(class, false);
	flow_slot_set_class(mux->table, slot, class);
}

/* A known flow whose backend serves on: refresh it, and note how far it has come. */
static inline bool use_entry(struct mux *mux, const struct packet *packet, struct passage *passage,
			     struct flow_slot slot)
{
	enum flow_class class = flow_slot_class(slot);

	if (UNLIKELY(flow_expired(mux, passage, slot, class)) ||
	    UNLIKELY(!keep_remembered(mux, packet, passage, flow_slot_backend(slot))))
		return false;
	if (UNLIKELY(!flow_class_is_settled(class)))
		note_progress(mux, packet, slot, class);
	flow_slot_touch(mux->table, slot);
	if (UNLIKELY(packet_ends(packet)))
		flow_slot_set_class(mux->table, slot, flow_class_ending(flow_slot_class(slot), true));
	passage->flow = FLOW_KNOWN;
	return true;
}

/* No usable entry: Maglev decides, and the table remembers, in the old entry's place if there is one. */
static enum reason start_flow(struct mux *mux, unsigned i, struct flow_slot slot)
{
	struct packet *packet = &mux->packets[i];
	struct passage *passage = &mux->passages[i];
	enum flow_class class = packet->protocol == 17 ? FLOW_UDP_UNTRUSTED : FLOW_TCP_UNTRUSTED;

	if (!choose_new(mux, packet, passage))
		return REASON_NO_BACKEND;
	passage->flow = FLOW_NEW;
	/* What has expired is gone, whether the sweep has come by or not: else places would depend on how bursts fell. */
	if (slot.line && !flow_table_expire(mux->table, slot))
		flow_slot_rewrite(mux->table, slot, passage->backend_number, class);
	else if (!flow_table_insert(mux->table, mux->scrambled[i], passage->backend_number, class))
		passage->flow = FLOW_UNTRACKED;
	return REASON_FORWARDED;
}

/* Nothing that is of use is known of the flow here. */
static bool is_strange(const struct mux *mux, const struct passage *passage, struct flow_slot slot)
{
	return !slot.line || flow_expired(mux, passage, slot, flow_slot_class(slot));
}

static inline void prefetch_way_out(const struct mux *mux, const struct backend *backend)
{
	__builtin_prefetch(&mux->snapshot->hops[backend_hop(backend)]);
	__builtin_prefetch(&mux->backend_counters[backend->counter], 1);
}

static void choose_backends(struct mux *mux)
{
	struct flow_table *table = mux->table;
	uint32_t unchanged = table->changes;

	for (unsigned i = 0; i < mux->count; i++) {
		struct packet *packet = &mux->packets[i];
		struct passage *passage = &mux->passages[i];
		struct flow_slot slot = mux->slots[i];

		if (UNLIKELY(packet->reason != REASON_FORWARDED))
			continue;
		/* An earlier packet of the burst may have made, moved or evicted the entry since the first look. */
		if (UNLIKELY(!slot.line || table->changes != unchanged))
			slot = flow_table_find(table, mux->scrambled[i]);
		if (UNLIKELY(mux->neighbours != NULL) && is_strange(mux, passage, slot))
			slot = neighbours_take(mux->neighbours, table, mux->scrambled[i], slot);
		if (UNLIKELY(!slot.line || !use_entry(mux, packet, passage, slot)))
			packet->reason = start_flow(mux, i, slot);
		if (LIKELY(packet->reason == REASON_FORWARDED))
			prefetch_way_out(mux, passage->backend);
	}
}

/* Without a flow table every packet asks Maglev. */
static void choose_stateless(struct mux *mux)
{
	uint8_t all[BURST_MAX];
	unsigned count = 0;

	for (unsigned i = 0; i < mux->count; i++)
		if (LIKELY(mux->packets[i].reason == REASON_FORWARDED))
			all[count++] = (uint8_t)i;
	prefetch_slots(mux, all, count);
	prefetch_backends(mux, all, count);
	for (unsigned n = 0; n < count; n++) {
		struct packet *packet = &mux->packets[all[n]];
		struct passage *passage = &mux->passages[all[n]];

		if (LIKELY(choose_new(mux, packet, passage))) {
			passage->flow = FLOW_UNTRACKED;
			prefetch_way_out(mux, passage->backend);
		} else {
			packet->reason = REASON_NO_BACKEND;
		}
	}
}

/* ---- encapsulate and send ---- */

static void flush(struct mux *mux)
{
	if (!mux->out_count)
		return;
	mux->io->ops->send(mux->io, mux->out, mux->out_count);
	for (unsigned i = 0; i < mux->out_count; i++)
		if (UNLIKELY(mux->out[i].error))
			mux->packets[mux->out[i].origin].reason = REASON_SEND_FAILED;
	mux->out_count = 0;
}

/* The link addresses that a packet came with: the outer header overwrites them, so they are kept aside. */
struct link_addresses {
	uint8_t destination[6];
	uint8_t source[6];
};

/* Puts outer and link header before the packet at ip and queues the result. */
static inline void emit(struct mux *mux, unsigned origin, const struct hop *hop, uint8_t *ip, uint32_t length,
			const struct link_addresses *from)
{
	uint8_t *start = ip - encap_overhead(hop->family);

	if (LIKELY(hop->family == 4))
		encap_ipv4(hop, ip, length, ip[6] & 0x40 ? 0 : mux->ids[(hop - mux->snapshot->hops) & 255]++);
	else
		encap_ipv6(hop, ip, length, (uint32_t)(mux->passages[origin].hash >> 32));
	if (mux->config.link != MUX_LINK_NONE) {
		start -= ETHERNET_HEADER;
		memcpy(start, hop->mac, ETHERNET_HEADER); /* all of it, see struct hop */
	}
	if (mux->config.link == MUX_LINK_SWAP) {
		memcpy(start, from->source, 6);
		memcpy(start + 6, from->destination, 6);
	}
	if (UNLIKELY(mux->out_count == BURST_MAX))
		flush(mux);
	mux->out[mux->out_count++] = (struct frame){ .data = start,
						     .len = (uint32_t)(ip - start) + length,
						     .origin = (uint8_t)origin,
						     .ifindex = hop->ifindex };
}

/* IDs of the outer headers are as many as there are segments. */
static void emit_whole(struct mux *mux, unsigned i, const struct hop *hop, const struct cut *cut,
		       const struct link_addresses *from)
{
	struct packet *packet = &mux->packets[i];

	emit(mux, i, hop, packet->ip, packet->length, from);
	segment_mark_whole(packet, cut, &mux->out[mux->out_count - 1]);
	if (packet->family == 4 && !(packet->ip[6] & 0x40))
		mux->ids[(hop - mux->snapshot->hops) & 255] += (uint16_t)(segment_count(packet, cut) - 1);
}

static void emit_segments(struct mux *mux, unsigned i, const struct hop *hop, const struct cut *cut,
			  const struct link_addresses *from)
{
	struct packet *packet = &mux->packets[i];
	uint32_t count = segment_count(packet, cut);

	/* Their buffers are reused from here on, so what is queued goes out first. */
	flush(mux);
	for (uint32_t n = 0; n < count; n++) {
		uint8_t *ip = mux->segments + (n % BURST_MAX) * SEGMENT_ROOM + SEGMENT_HEADROOM;

		if (mux->out_count == BURST_MAX)
			flush(mux);
		emit(mux, i, hop, ip, segment_write(packet, cut, n, ip), from);
	}
	flush(mux);
	if (packet->reason == REASON_FORWARDED)
		packet->reason = REASON_SEGMENTED;
}

/*
 * The io tells that a UDP packet stands for several datagrams, or for a tunnel's packets.  Whole, it would be another
 * message, if a small one; a TCP packet may leave as it came where it fits.
 */
static bool is_train(const struct packet *packet, const struct frame *frame)
{
	return frame->gso_size && packet->protocol == PROTOCOL_UDP && packet->length > packet->transport + 8u + frame->gso_size;
}

/* A packet that is too large, or stands for several.  True: it has been seen to; else it leaves as it is. */
static bool encap_super(struct mux *mux, unsigned i, const struct frame *frame, const struct hop *hop,
			const struct link_addresses *from)
{
	struct packet *packet = &mux->packets[i];
	uint32_t mtu = mux->passages[i].service->mtu, overhead = encap_overhead(hop->family);
	uint32_t fits = mtu > overhead ? mtu - overhead : 0;
	struct cut cut;

	switch (segment_plan(packet, frame, fits, mtu, &cut)) {
	case SEGMENTS_SEVERAL:
		packet_decrement_ttl(packet);
		if (mux->io->sends_whole && segment_stays_whole(packet, frame, &cut, overhead))
			emit_whole(mux, i, hop, &cut, from);
		else
			emit_segments(mux, i, hop, &cut, from);
		return true;
	case SEGMENTS_ONE:
		if (packet->length <= fits)
			return false;
		break;
	case SEGMENTS_TOO_BIG:
		break;
	}
	packet->reason = REASON_TOO_BIG;
	return true;
}

static void encap_packet(struct mux *mux, unsigned i, const struct frame *frame)
{
	struct packet *packet = &mux->packets[i];
	struct passage *passage = &mux->passages[i];
	const struct hop *hop = &mux->snapshot->hops[backend_hop(passage->backend)];
	struct link_addresses from;

	if (UNLIKELY(!hop->resolved)) {
		packet->reason = REASON_NO_NEXT_HOP;
		return;
	}
	if (UNLIKELY(hop->family == 6 && !passage->hashed))
		passage_hash(mux, packet, passage); /* for the flow label */
	if (mux->config.link == MUX_LINK_SWAP)
		memcpy(&from, frame->data, sizeof(from));
	if (UNLIKELY(packet->length + encap_overhead(hop->family) > passage->service->mtu || is_train(packet, frame)) &&
	    encap_super(mux, i, frame, hop, &from))
		return;
	if (UNLIKELY(frame->csum_start || mux->config.detect_partial))
		packet_complete_checksum(packet, frame, mux->config.detect_partial);
	packet_decrement_ttl(packet);
	emit(mux, i, hop, packet->ip, packet->length, &from);
}

static void encap_burst(struct mux *mux, const struct frame *frames)
{
	for (unsigned i = 0; i < mux->count; i++)
		if (LIKELY(mux->packets[i].reason == REASON_FORWARDED))
			encap_packet(mux, i, &frames[i]);
	flush(mux);
}

/* ---- count ---- */

/* Others read counters meanwhile. */
static inline void add(uint64_t *counter, uint64_t step)
{
	FLOW_STORE(*counter, *counter + step);
}

static void count_dropped(struct mux *mux, const struct packet *packet, struct passage *passage)
{
	add(&mux->counters.reasons[packet->reason], 1);
	passage->flow = FLOW_NONE;
	if (passage->service)
		add(&mux->service_counters[passage->service->id].dropped, 1);
}

static void count_burst(struct mux *mux)
{
	unsigned sent = 0, segmented = 0;

	for (unsigned i = 0; i < mux->count; i++) {
		const struct packet *packet = &mux->packets[i];
		struct passage *passage = &mux->passages[i];
		struct service_counters *service;

		if (UNLIKELY(packet->reason > REASON_SEGMENTED)) {
			count_dropped(mux, packet, passage);
			continue;
		}
		segmented += packet->reason == REASON_SEGMENTED;
		sent++;
		service = &mux->service_counters[passage->service->id];
		add(&service->packets, 1);
		add(&service->bytes, packet->length);
		add(&service->flows, passage->flow == FLOW_NEW);
		add(&mux->backend_counters[passage->backend->counter], 1);
	}
	add(&mux->counters.received, mux->count);
	add(&mux->counters.reasons[REASON_FORWARDED], sent - segmented);
	add(&mux->counters.reasons[REASON_SEGMENTED], segmented);
}

/* ---- the pipeline ---- */

/* What an entry is worth by the snapshot at hand; see struct flow_table. */
static enum flow_worth judge(const void *owner, uint64_t scrambled, unsigned number, enum flow_class class)
{
	const struct vip_map *map = ((const struct mux *)owner)->snapshot->map;
	uint64_t key = flow_unscramble(&map->seed, scrambled);
	const struct service *service = map->by_id[flow_key_service(key)];

	if (!service || !backend_at(service, number))
		return FLOW_WORTHLESS;
	return flow_is_exceptional(map, service, number, key, class) ? FLOW_EXCEPTIONAL : FLOW_CHEAP;
}

void mux_set_table(struct mux *mux, struct flow_table *table)
{
	mux->table = table;
	flow_table_set_judge(table, judge, mux);
	flow_table_set_find(table, mux->vector->find);
}

void mux_set_time(struct mux *mux, const struct snapshot *snapshot, uint64_t now_ns)
{
	mux->snapshot = snapshot;
	flow_table_set_idle(mux->table, snapshot->map->class_idle);
	flow_table_advance(mux->table, now_ns);
}

/*
 * A pass of the sweep that begins after a change forgets what that change took away, so that its numbers can be lent
 * again.  While nothing changes, passes look at ages alone.
 */
static void sweep(struct mux *mux)
{
	uint64_t passes = mux->table->passes;
	bool judged = mux->pass_serial > mux->forgotten;

	flow_table_sweep(mux->table, judged);
	if (mux->table->passes == passes)
		return;
	if (judged)
		FLOW_STORE(mux->forgotten, mux->pass_serial);
	mux->pass_serial = mux->snapshot->map->serial;
}

uint64_t mux_forgotten(const struct mux *mux)
{
	return __atomic_load_n(&mux->forgotten, __ATOMIC_RELAXED);
}

static void mux_burst(struct pipeline *pipeline, const struct snapshot *snapshot, struct io *io, struct frame *frames,
		      unsigned count, uint64_t now_ns)
{
	struct mux *mux = (struct mux *)pipeline;

	mux->snapshot = snapshot;
	mux->io = io;
	mux->count = count;
	mux->out_count = 0;

	if (mux->table)
		mux_set_time(mux, snapshot, now_ns);
	read_burst(mux, frames);
	if (mux->table) {
		look_for_flows(mux);
		choose_backends(mux);
		flow_table_settle(mux->table);
	} else {
		choose_stateless(mux);
	}
	encap_burst(mux, frames);
	count_burst(mux);
}

static void mux_tick(struct pipeline *pipeline, const struct snapshot *snapshot, uint64_t now_ns)
{
	struct mux *mux = (struct mux *)pipeline;

	if (!snapshot)
		return;
	if (!mux->table) {
		FLOW_STORE(mux->forgotten, snapshot->map->serial);
		return;
	}
	mux_set_time(mux, snapshot, now_ns);
	sweep(mux);
}

void mux_lookup(const struct mux *mux, const struct snapshot *snapshot, const struct flow_tuple *tuple,
		struct mux_answer *answer)
{
	const struct vip_map *map = snapshot->map;
	const struct service *service;
	uint64_t hash = flow_tuple_hash(&map->seed, tuple, false), key;
	struct flow_slot slot;
	uint32_t source;
	bool is_vip;

	*answer = (struct mux_answer){ .backend = -1, .flow_backend = -1 };
	service = vip_map_find(map, tuple->family, tuple->destination, tuple->protocol, tuple->destination_port,
			       &is_vip);
	if (!service)
		return;
	answer->service = service;
	answer->slot = maglev_slot(service->maglev,
				   service->hash_source ? flow_tuple_hash(&map->seed, tuple, true) : hash);
	if (service->maglev->slots[answer->slot] != MAGLEV_NONE)
		answer->backend = service->maglev->slots[answer->slot];
	if (!mux || !mux->table)
		return;
	memcpy(&source, tuple->source, 4);
	key = service->narrow ? flow_key_narrow(service->id, source, tuple->source_port) :
				flow_key_wide(service->id, hash);
	slot = flow_table_find(mux->table, flow_scramble(&map->seed, key));
	if (!slot.line)
		return;
	answer->flow_backend = (int32_t)flow_slot_backend(slot);
	answer->flow_class = flow_slot_class(slot);
	answer->flow_age = flow_slot_age(mux->table, slot);
}

/* ---- life ---- */

static void mux_warm(struct pipeline *pipeline)
{
	struct mux *mux = (struct mux *)pipeline;

	if (mux->table)
		flow_table_touch(mux->table);
}

static void mux_free(struct pipeline *pipeline)
{
	struct mux *mux = (struct mux *)pipeline;

	neighbours_free(mux->neighbours);
	flow_table_destroy(mux->table);
	free(mux->segments);
	free(mux->service_counters);
	free(mux->backend_counters);
	free(mux);
}

int mux_create(const struct mux_config *config, struct mux **out)
{
	const struct vector *vector = vector_get(config->vector);
	struct mux *mux;
	int error = 0;

	if (!vector)
		return -ENOTSUP;
	mux = aligned_alloc(CACHE_LINE, (sizeof(*mux) + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE);
	if (!mux)
		return -ENOMEM;
	memset(mux, 0, sizeof(*mux));
	mux->pipeline.burst = mux_burst;
	mux->pipeline.tick = mux_tick;
	mux->pipeline.warm = mux_warm;
	mux->pipeline.destroy = mux_free;
	mux->pipeline.references = 1;
	mux->config = *config;
	mux->vector = vector;
	for (unsigned i = 0; i < 256; i++)
		mux->ids[i] = (uint16_t)config->first_id;
	mux->segments = malloc((size_t)BURST_MAX * SEGMENT_ROOM);
	/* Untouched pages of these cost nothing: only services and backends that exist are ever counted. */
	mux->service_counters = calloc(SERVICE_ID_MAX + 1, sizeof(*mux->service_counters));
	mux->backend_counters = calloc(COUNTER_MAX, sizeof(*mux->backend_counters));
	if (!mux->segments || !mux->service_counters || !mux->backend_counters)
		error = -ENOMEM;
	if (!error && config->flows)
		error = flow_table_create(config->flows, &mux->table);
	if (mux->table)
		mux_set_table(mux, mux->table);
	if (mux->table && !config->touch_late)
		flow_table_touch(mux->table);
	if (error) {
		mux_destroy(mux);
		return error;
	}
	*out = mux;
	return 0;
}

void mux_destroy(struct mux *mux)
{
	if (mux)
		pipeline_put(&mux->pipeline);
}
