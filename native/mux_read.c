/* SPDX-License-Identifier: Apache-2.0 */
/* First stage, see mux_stages.h: what each packet is, which service it asks for, and its flow's name. */
#include <string.h>

#include "mux_stages.h"

/*
 * Headers are asked for so many packets before they are read, and flows in groups as soon as their keys are known, so
 * that memory works while packets are parsed.
 */
#define AHEAD 24u
#define GROUP 16u

/* ---- names of a flow ---- */

void mux_packet_tuple(const struct packet *packet, struct flow_tuple *tuple)
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

uint64_t mux_passage_hash(const struct mux *mux, const struct packet *packet, struct passage *passage)
{
	struct flow_tuple tuple;

	if (!passage->hashed) {
		mux_packet_tuple(packet, &tuple);
		passage->hash = flow_tuple_hash(&mux->snapshot->map->seed, &tuple, false);
		passage->hashed = true;
	}
	return passage->hash;
}

static uint64_t flow_key(const struct mux *mux, const struct packet *packet, struct passage *passage)
{
	uint32_t source;

	if (UNLIKELY(!passage->service->narrow))
		return flow_key_wide(passage->service->id, mux_passage_hash(mux, packet, passage));
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

/*
 * The service of a plain IPv4 packet, wherever it is, and the flow's key; 0 where the packet goes no further.  `row` is where the first
 * probe looked: an empty one ends the search there.
 */
static NEVER_INLINE uint64_t find_service_plain4(const struct mux *mux, struct packet *packet, struct passage *passage,
						 const struct exact_row *row)
{
	const struct vip_map *map = mux->snapshot->map;
	const uint8_t *destination = packet->ip + 16;
	const struct service *service = NULL;
	bool is_vip;

	if (row->key)
		service = vip_map_find_exact4(map, destination, packet->protocol, packet->destination_port);
	if (!service)
		service = vip_map_find_other4(map, destination, packet->protocol, packet->destination_port, &is_vip);
	passage->service = service;
	if (!service)
		packet->reason = is_vip ? REASON_NO_SERVICE : REASON_NOT_VIP;
	else if (packet->ip[8] <= 1)
		packet->reason = REASON_TTL_EXPIRED;
	return packet->reason == REASON_FORWARDED ? flow_key(mux, packet, passage) : 0;
}

/* All of packet.h's list in one, and the service: IPv6, whose services are all in the index. */
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

/* Any packet that is not plain IPv4.  Its flow's key; 0 also where it is of those whose keys hash_sixes() makes. */
static NEVER_INLINE uint64_t read_other(struct mux *mux, unsigned first, unsigned n, const struct frame *frame,
					enum link_type link, struct sixes *sixes)
{
	struct packet *packet = &mux->packets[first + n];
	struct passage *passage = &mux->passages[first + n];

	passage->service = NULL;
	if (!find_service_plain6(mux, packet, frame, link, passage))
		packet->reason = find_service(mux, packet, frame, passage);
	if (UNLIKELY(packet->reason != REASON_FORWARDED))
		return 0;
	if (packet->family == 4)
		return flow_key(mux, packet, passage);
	mux_packet_tuple(packet, &sixes->tuples[sixes->count]);
	sixes->at[sixes->count++] = (uint8_t)n;
	return 0;
}

/*
 * A plain IPv4 packet: parsed in one, and the first probe of the VIP map tells the service of most, which has one address and one
 * port and so narrow keys (service_create()).  False: it is not plain, and nothing is left of it.  *key as above.
 */
static ALWAYS_INLINE bool read_plain4(const struct mux *mux, const struct exact_table *exact, const struct frame *frame,
				      enum link_type link, struct packet *packet, struct passage *passage, uint64_t *key)
{
	const struct exact_row *row;
	struct packet plain;
	uint32_t address;
	uint64_t wanted;

	if (UNLIKELY(!packet_parse_plain(&plain, frame, link)))
		return false;
	*packet = plain;
	memcpy(&address, plain.ip + 16, 4);
	wanted = exact_key(address, plain.protocol, plain.destination_port);
	row = &exact->rows[exact_place(exact, wanted)];
	if (UNLIKELY(row->key != wanted) || UNLIKELY(plain.ip[8] <= 1)) {
		*key = find_service_plain4(mux, packet, passage, row);
		return true;
	}
	passage->service = row->service;
	memcpy(&address, plain.ip + 12, 4);
	*key = flow_key_narrow(row->service->id, address, plain.source_port);
	return true;
}

/* Packets first to first + n - 1 of the burst: leaves the keys of their flows, 0 where there is none. */
static ALWAYS_INLINE void read_group(struct mux *mux, const struct frame *frames, unsigned first, unsigned n,
				     enum link_type link, uint64_t *keys, struct sixes *sixes)
{
	/* A copy, so that it need not be read again after each store. */
	const struct exact_table exact = mux->snapshot->map->exact;
	const struct frame *frame = frames + first;
	struct packet *packet = &mux->packets[first];
	struct passage *passage = &mux->passages[first];
	unsigned left = mux->count - first;

	for (unsigned i = 0; i < n; i++, frame++, packet++, passage++) {
		if (i + AHEAD < left)
			prefetch_headers(frame + AHEAD);
		passage->hashed = false;
		passage->flow = FLOW_NONE;
		if (UNLIKELY(!read_plain4(mux, &exact, frame, link, packet, passage, &keys[i])))
			keys[i] = read_other(mux, first, i, frame, link, sixes);
	}
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
 * Asks for the rows of a group's services once the group before it has been read, by when their headers are there, and for
 * the services that the rows name before the group is read itself: all together instead of one after the other.
 */
static inline void prefetch_rows(const struct mux *mux, const struct frame *frames, unsigned count, enum link_type link,
				 const struct exact_row **rows)
{
	for (unsigned i = 0; i < count; i++) {
		rows[i] = likely_row(mux, &frames[i], link);
		prefetch(rows[i]);
	}
}

static inline void prefetch_services(const struct exact_row *const *rows, unsigned count)
{
	for (unsigned i = 0; i < count; i++)
		if (LIKELY(rows[i] != NULL))
			prefetch(rows[i]->service);
}

static inline unsigned group_from(unsigned first, unsigned count)
{
	return first >= count ? 0 : count - first < GROUP ? count - first : GROUP;
}

/* Reads the packets, scrambles keys together so that one vector instruction does many, and asks for their lines. */
void mux_read_burst(struct mux *mux, const struct frame *frames)
{
	unsigned count = mux->count;
	enum link_type link = mux->io->link;
	bool far = vip_map_is_far(mux->snapshot->map);
	const struct exact_row *rows[GROUP];
	uint64_t keys[GROUP];
	struct sixes sixes;

	mux->onward = false;
	for (unsigned i = 0; i < count && i < AHEAD; i++)
		prefetch_headers(&frames[i]);
	if (far)
		prefetch_rows(mux, frames, group_from(0, count), link, rows);
	for (unsigned first = 0; first < count; first += GROUP) {
		unsigned n = group_from(first, count);
		uint64_t any = 0;

		if (UNLIKELY(far))
			prefetch_services(rows, n);
		sixes.count = 0;
		if (link == LINK_ETHERNET)
			read_group(mux, frames, first, n, LINK_ETHERNET, keys, &sixes);
		else
			read_group(mux, frames, first, n, LINK_RAW_IP, keys, &sixes);
		if (UNLIKELY(far))
			prefetch_rows(mux, frames + first + n, group_from(first + n, count), link, rows);
		if (sixes.count)
			hash_sixes(mux, first, &sixes, keys);
		for (unsigned i = 0; i < n; i++)
			any |= keys[i];
		mux->onward |= any != 0;
		if (!mux->table)
			continue;
		if (UNLIKELY(!any)) {
			memset(&mux->scrambled[first], 0, n * sizeof(mux->scrambled[0]));
			continue;
		}
		mux->vector->scramble(&mux->snapshot->map->seed, keys, &mux->scrambled[first], n);
		for (unsigned i = 0; i < n; i++)
			flow_table_prefetch(mux->table, mux->scrambled[first + i]);
	}
}
