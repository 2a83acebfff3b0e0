/* SPDX-License-Identifier: Apache-2.0 */
/* First stage, see mux_stages.h: what each packet is, which service it asks for, and its flow's name. */
#include <string.h>

#include "mux/mux_stages.h"
#include "packet/fragment.h"
#include "services/quic/quic_routes.h"

/*
 * Headers are asked for so many packets before their group is read, at least one group, and flows in groups as soon as their keys
 * are known, so that memory works while packets are parsed.
 */
#define AHEAD 32u
#define GROUP 16u

#define UDP_HEADER 8u
#define ADDRESS_AT 30u /* somewhere about a destination, on any link */

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

bool mux_icmp_tuple(const struct packet *packet, struct flow_tuple *tuple)
{
	size_t size = packet->family == 4 ? 4 : 16;
	struct icmp_subject subject;

	if (icmp_read_error(packet, &subject) != REASON_ICMP_ERROR)
		return false;
	*tuple = (struct flow_tuple){ .source_port = subject.client_port,
				      .destination_port = subject.vip_port,
				      .protocol = subject.protocol,
				      .family = packet->family };
	memcpy(tuple->source, subject.client, size);
	memcpy(tuple->destination, subject.vip, size);
	return true;
}

/*
 * ICMP to a VIP.  What an error is about has the service and the hash of the flow that it is about; what is a ping ends here, so that
 * its TTL does not matter.
 */
static enum reason find_icmp(const struct mux *mux, const struct packet *packet, struct passage *passage)
{
	struct icmp_subject subject;
	struct flow_tuple tuple;
	enum reason reason;
	bool is_vip;

	if (icmp_is_echo(packet))
		return mux_answers_per_second(mux) ? REASON_ECHO : REASON_ICMP;
	reason = icmp_read_error(packet, &subject);
	if (reason != REASON_ICMP_ERROR)
		return reason;
	passage->service = vip_map_find(mux->snapshot->map, packet->family, subject.vip, subject.protocol, subject.vip_port,
					&is_vip);
	if (!passage->service)
		return REASON_NO_SERVICE;
	if (time_to_live(packet) <= 1)
		return REASON_TTL_EXPIRED;
	mux_icmp_tuple(packet, &tuple);
	passage->hash = flow_tuple_hash(&mux->snapshot->map->seed, &tuple, false);
	passage->hashed = true;
	return REASON_ICMP_ERROR;
}

/* The key of the flow that an error is about. */
static uint64_t icmp_flow_key(const struct packet *packet, const struct passage *passage)
{
	struct flow_tuple tuple;
	uint32_t source;

	mux_icmp_tuple(packet, &tuple);
	memcpy(&source, tuple.source, 4);
	return passage->service->narrow ? flow_key_narrow(passage->service->id, source, tuple.source_port) :
					  flow_key_wide(passage->service->id, passage->hash);
}

/* A fragment to a VIP.  The first of a datagram has a service; later ones follow it, see mux_choose.c. */
static enum reason find_fragment(const struct mux *mux, struct packet *packet, struct passage *passage)
{
	struct fragment fragment;
	enum reason reason = fragment_read(packet, &fragment);
	bool is_vip;

	packet->source_port = packet->destination_port = 0;
	if (reason == REASON_FRAGMENT && !fragment.offset)
		reason = fragment_open(packet);
	if (reason != REASON_FRAGMENT)
		return reason;
	if (time_to_live(packet) <= 1)
		return REASON_TTL_EXPIRED;
	if (fragment.offset)
		return REASON_FRAGMENT;
	passage->service = vip_map_find(mux->snapshot->map, packet->family, packet_destination(packet), packet->protocol,
					packet->destination_port, &is_vip);
	return passage->service ? REASON_FRAGMENT : REASON_NO_SERVICE;
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
	if (packet->reason == REASON_ICMP)
		return find_icmp(mux, packet, passage);
	if (packet->reason == REASON_FRAGMENT)
		return find_fragment(mux, packet, passage);
	if (packet->reason != REASON_FORWARDED)
		return packet->reason;
	if (time_to_live(packet) <= 1)
		return REASON_TTL_EXPIRED;
	/* Behind IPv6 extension headers the ports were not where the first look took them from. */
	if (UNLIKELY(packet->protocol != protocol || packet->destination_port != port))
		service = vip_map_find(map, packet->family, destination, packet->protocol, packet->destination_port,
				       &is_vip);
	passage->service = service;
	return service ? REASON_FORWARDED : REASON_NO_SERVICE;
}

/* A plain IPv4 packet whose service is not where the first probe looked, wherever it is; its flow's key, 0 if it goes no further. */
static NEVER_INLINE uint64_t find_service_plain4(const struct mux *mux, struct packet *packet, struct passage *passage)
{
	bool is_vip;

	passage->service = vip_map_find(mux->snapshot->map, 4, packet->ip + 16, packet->protocol, packet->destination_port,
					&is_vip);
	if (LIKELY(passage->service != NULL))
		return flow_key(mux, packet, passage);
	packet->reason = is_vip ? REASON_NO_SERVICE : REASON_NOT_VIP;
	return 0;
}

/* The service of a plain IPv6 packet, of which most have one address and one port; NULL and the reason where there is none. */
static inline const struct service *service_of_plain6(const struct mux *mux, struct packet *packet)
{
	const struct vip_map *map = mux->snapshot->map;
	const struct service *service =
		vip_map_find_exact6(map, packet->ip + 24, packet->protocol, packet->destination_port);
	bool is_vip;

	if (LIKELY(service != NULL))
		return service;
	service = vip_map_find_other6(map, packet->ip + 24, packet->protocol, packet->destination_port, &is_vip);
	if (!service)
		packet->reason = is_vip ? REASON_NO_SERVICE : REASON_NOT_VIP;
	return service;
}

/* All of packet.h's list in one, and the service. */
static inline bool find_service_plain6(const struct mux *mux, struct packet *packet, const struct frame *frame,
				       enum link_type link, struct passage *passage)
{
	if (!packet_parse_plain6(packet, frame, link))
		return false;
	passage->service = service_of_plain6(mux, packet);
	return true;
}

/* IPv6 packets of a group: their keys are made of hashes, and those together. */
struct sixes {
	struct flow_words6 words; /* of their tuples */
	uint8_t at[GROUP];        /* index of each in the group */
	unsigned count;
};
_Static_assert(GROUP <= FLOW_WORDS6, "there is a place for each packet of a group");

static inline void add_six(struct sixes *sixes, unsigned at, const struct packet *packet)
{
	flow_words6_set(&sixes->words, sixes->count, packet->ip + 8, packet->source_port, packet->destination_port, packet->protocol);
	sixes->at[sixes->count++] = (uint8_t)at;
}

static void hash_sixes(struct mux *mux, unsigned first, const struct sixes *sixes, uint64_t *keys)
{
	uint64_t hashes[GROUP];

	mux->vector->hash6(&mux->snapshot->map->seed, &sixes->words, hashes, sixes->count);
	for (unsigned n = 0; n < sixes->count; n++) {
		struct passage *passage = &mux->passages[first + sixes->at[n]];

		passage->hash = hashes[n];
		passage->hashed = true;
		keys[sixes->at[n]] = flow_key_wide(passage->service->id, hashes[n]);
	}
}

/* Of a packet that is not forwarded like most; 0: it goes no further. */
static uint64_t key_aside(const struct mux *mux, const struct packet *packet, struct passage *passage)
{
	if (packet->reason == REASON_ICMP_ERROR)
		return icmp_flow_key(packet, passage);
	if (packet->reason != REASON_FRAGMENT)
		return 0;
	if (!passage->service)
		return 1; /* of no flow, but it goes on */
	mux_passage_hash(mux, packet, passage);
	return flow_key(mux, packet, passage);
}

/* Any packet that is not plain IPv4.  Its flow's key; 0 also where it is of those whose keys hash_sixes() makes. */
static NEVER_INLINE uint64_t read_other(struct mux *mux, unsigned first, unsigned n, const struct frame *frame,
					enum link_type link, struct sixes *sixes)
{
	struct packet *packet = &mux->packets[first + n];
	struct passage *passage = &mux->passages[first + n];

	if (!find_service_plain6(mux, packet, frame, link, passage)) {
		passage->service = NULL;
		packet->reason = find_service(mux, packet, frame, passage);
	}
	if (UNLIKELY(packet->reason != REASON_FORWARDED))
		return key_aside(mux, packet, passage);
	if (packet->family == 4)
		return flow_key(mux, packet, passage);
	add_six(sixes, n, packet);
	return 0;
}

/* ---- a burst ---- */

/* What the plain IPv4 packets of a burst ask for, and the name of the flow of each but for its service. */
struct plain {
	uint64_t services[BURST_MAX]; /* exact_key() */
	uint64_t flows[BURST_MAX];    /* flow_key_narrow() */
};

/* Reads packets first to first + n - 1, see read_ipv4.h. */
static inline void read_plain4(struct mux *mux, const struct frame *frames, enum link_type link, unsigned first, unsigned n,
			       struct plain *plain)
{
	mux->plain |= mux->vector->read4(frames + first, n, link, &mux->packets[first], &plain->services[first],
					 &plain->flows[first], &mux->outers[first])
		      << first;
}

/* Where there are many services, their rows are in no near cache, nor is what these name: all of a burst are asked for together. */
static NEVER_INLINE void prefetch_services(const struct exact4_table *exact, uint64_t is, const struct plain *plain)
{
	for (uint64_t left = is; left; left &= left - 1)
		prefetch(&exact->rows[exact_place(exact, plain->services[__builtin_ctzll(left)])]);
	for (uint64_t left = is; left; left &= left - 1)
		prefetch(exact->rows[exact_place(exact, plain->services[__builtin_ctzll(left)])].service);
}

/* One at a time, so that memory works while others are looked at. */
static inline void prefetch_ahead(const struct mux *mux, const struct frame *frames, unsigned i)
{
	if (i + AHEAD < mux->count)
		prefetch_headers(&frames[i + AHEAD]);
}

/*
 * Finds the services of packets first to first + n - 1, which are all plain IPv4, and the keys of their flows, where the first probe
 * of the VIP map tells each.  False: it does not.
 */
static ALWAYS_INLINE bool find_exact(struct mux *mux, const struct frame *frames, unsigned first, unsigned n,
				     const struct plain *plain, uint64_t *keys)
{
	/* A copy, so that it need not be read again after each store. */
	const struct exact4_table exact = mux->snapshot->map->exact;

	for (unsigned i = 0; i < n; i++) {
		uint64_t wanted = plain->services[first + i];
		const struct exact_row *row = &exact.rows[exact_place(&exact, wanted)];
		struct passage *passage = &mux->passages[first + i];

		prefetch_ahead(mux, frames, first + i);
		if (UNLIKELY(row->key != wanted))
			return false;
		passage->service = row->service;
		passage->hashed = false;
		passage->flow = FLOW_NONE;
		passage->backend_number = 0;
		keys[i] = plain->flows[first + i] | flow_key_narrow(row->service->id, 0, 0);
	}
	return true;
}

/*
 * The same of any packets; keys are 0 where there is none.  The first probe of the VIP map tells the service of most plain packets,
 * which has one address and one port and so narrow keys (service_create()), and tells those that are not ours.  False: none
 * of them goes on.
 */
static NEVER_INLINE bool find_any(struct mux *mux, const struct frame *frames, enum link_type link, unsigned first, unsigned n,
				  const struct plain *plain, uint64_t *key)
{
	const struct vip_map *map = mux->snapshot->map;
	const struct exact4_table exact = map->exact, addresses = map->addresses;
	bool exact_alone = vip_map_is_exact4(map);
	struct passage *passage = &mux->passages[first];
	struct packet *packet = &mux->packets[first];
	uint64_t *keys = key, is = mux->plain >> first, any = 0;
	struct sixes sixes;

	sixes.count = 0;
	for (unsigned i = 0; i < n; i++, is >>= 1, passage++, packet++, key++) {
		uint64_t wanted = plain->services[first + i];
		const struct exact_row *row = &exact.rows[exact_place(&exact, wanted)];

		prefetch_ahead(mux, frames, first + i);
		passage->hashed = false;
		passage->flow = FLOW_NONE;
		if (UNLIKELY(!(is & 1))) {
			*key = read_other(mux, first, i, &frames[first + i], link, &sixes);
		} else if (LIKELY(row->key == wanted)) {
			passage->service = row->service;
			*key = plain->flows[first + i] | flow_key_narrow(row->service->id, 0, 0);
		} else if (exact_alone && !row->key && exact_address_is_strange(&addresses, wanted)) {
			passage->service = NULL;
			packet->reason = REASON_NOT_VIP;
			*key = 0;
		} else {
			*key = find_service_plain4(mux, packet, passage);
		}
		any |= *key;
	}
	if (sixes.count)
		hash_sixes(mux, first, &sixes, keys);
	return any || sixes.count;
}

/* find_any() where all are plain IPv6 and have been read. */
static NEVER_INLINE bool find_six(struct mux *mux, const struct frame *frames, unsigned first, unsigned n,
				  const struct flow_words6 *words, uint64_t *keys)
{
	struct passage *passages = &mux->passages[first];
	struct packet *packets = &mux->packets[first];
	uint64_t hashes[GROUP];
	bool any = false;

	for (unsigned i = 0; i < n; i++) {
		prefetch_ahead(mux, frames, first + i);
		/* Of 40 bytes and the link's, the outer header begins in the line before. */
		__builtin_prefetch(packets[i].ip - HOP_BYTES_MAX, 1);
		passages[i].flow = FLOW_NONE;
		passages[i].service = service_of_plain6(mux, &packets[i]);
		any |= passages[i].service != NULL;
	}
	if (any)
		mux->vector->hash6(&mux->snapshot->map->seed, words, hashes, n);
	for (unsigned i = 0; i < n; i++) {
		passages[i].hashed = passages[i].service != NULL;
		if (UNLIKELY(!passages[i].hashed)) {
			keys[i] = 0;
			continue;
		}
		passages[i].hash = hashes[i];
		keys[i] = flow_key_wide(passages[i].service->id, hashes[i]);
	}
	return any;
}

/* Whether packets first to first + n - 1 are all plain IPv6, which are read then: where none is plain IPv4 that is worth a look. */
static inline bool read_plain6(struct mux *mux, const struct frame *frames, enum link_type link, unsigned first, unsigned n,
			       struct flow_words6 *words)
{
	return !(mux->plain >> first & ((1u << n) - 1)) && mux->vector->read6(frames + first, n, link, &mux->packets[first], words);
}

/* Scrambles keys together, so that one vector instruction does many, and asks for their lines. */
static inline void name_flows(struct mux *mux, const uint64_t *keys, uint64_t *scrambled, unsigned n)
{
	mux->vector->scramble(&mux->snapshot->map->seed, keys, scrambled, n);
	for (unsigned i = 0; i < n; i++)
		flow_table_prefetch(mux->table, scrambled[i]);
}

/*
 * Where there is no table every packet asks Maglev: tuples that find_exact() has found are hashed together, and their slots asked for.
 */
static inline void hash_exact(struct mux *mux, const struct plain *plain, unsigned first, unsigned n)
{
	uint64_t addresses[GROUP], ports[GROUP], hashes[GROUP];

	for (unsigned i = 0; i < n; i++) {
		uint64_t service = plain->services[first + i], flow = plain->flows[first + i];

		addresses[i] = flow_word4_addresses((uint32_t)flow, (uint32_t)(service >> 32));
		ports[i] = flow_word4_ports((uint16_t)(flow >> 32), (uint16_t)service, (uint8_t)(service >> 16));
	}
	mux->vector->hash4(&mux->snapshot->map->seed, addresses, ports, hashes, n);
	for (unsigned i = 0; i < n; i++) {
		struct passage *passage = &mux->passages[first + i];
		const struct maglev *maglev = passage->service->maglev;

		passage->hash = hashes[i];
		passage->hashed = true;
		prefetch(maglev_place(maglev, maglev_slot(maglev, hashes[i])));
	}
}

/* Whether this is IPv4 to an address of which the first probe says that no service has it; nothing before that in packet.h's list. */
static inline bool is_strange4(const struct exact4_table *addresses, const struct frame *frame, enum link_type link)
{
	uint32_t before = link == LINK_ETHERNET ? ETHERNET_HEADER : 0, address;
	const uint8_t *ip = frame->data + before;

	if (UNLIKELY(frame->len < before + 20) || UNLIKELY(frame->len < frame->wire_len) || UNLIKELY(ip[0] != 0x45))
		return false;
	if (link == LINK_ETHERNET && UNLIKELY(load16(ip - 2) != htons(ETHERTYPE_IPV4)))
		return false;
	memcpy(&address, ip + 16, 4);
	return LIKELY(!addresses->rows[exact_place(addresses, exact_key(address, 0, 0))].key);
}

bool mux_read_strangers(struct mux *mux, const struct frame *frames)
{
	const struct vip_map *map = mux->snapshot->map;
	const struct exact4_table addresses = map->addresses;
	enum link_type link = mux->io->link;
	unsigned count = mux->count;

	if (!vip_map_is_exact4(map))
		return false;
	for (unsigned i = 0; i < count && i < AHEAD; i++)
		prefetch(frames[i].data + ADDRESS_AT);
	for (unsigned i = 0; i < count; i++) {
		struct passage *passage = &mux->passages[i];

		if (i + AHEAD < count)
			prefetch(frames[i + AHEAD].data + ADDRESS_AT);
		if (UNLIKELY(!is_strange4(&addresses, &frames[i], link)))
			return false;
		mux->packets[i].reason = REASON_NOT_VIP;
		passage->service = NULL;
		passage->flow = FLOW_NONE;
	}
	return true;
}

/*
 * What packets of services with connection ids say of their backend.  Of a frame that the kernel merged of several datagrams the
 * first one counts.  A backend that drains gets its own to the end; of one that is down, or not there, nothing was said.
 */
static NEVER_INLINE void read_names(struct mux *mux)
{
	for (unsigned i = 0; i < mux->count; i++) {
		const struct packet *packet = &mux->packets[i];
		const struct service *service = mux->passages[i].service;
		const struct backend *backend;
		uint32_t number, start, bytes;

		if (packet->reason != REASON_FORWARDED || !service->named)
			continue;
		start = packet->transport;
		bytes = load_be16(packet->ip + start + 4); /* header and data */
		if (bytes <= UDP_HEADER || start + bytes > packet->length)
			continue;
		number = quic_routes_find(service->quic, packet->ip + start + UDP_HEADER, bytes - UDP_HEADER);
		backend = mux_backend_at(service, number);
		if (!backend || backend_state(backend) == BACKEND_DOWN)
			continue;
		mux->names[i] = (uint16_t)number;
		mux->named |= 1ull << i;
	}
}

void mux_read_burst(struct mux *mux, const struct frame *frames)
{
	enum link_type link = mux->io->link;
	unsigned count = mux->count;
	bool far = vip_map_is_far(mux->snapshot->map);
	struct flow_words6 words;
	struct plain plain;

	mux->plain = mux->named = 0;
	for (unsigned i = 0; i < count && (i < AHEAD || far); i++)
		prefetch_headers(&frames[i]);
	if (UNLIKELY(far)) { /* all of them, so that their services can be asked for together */
		read_plain4(mux, frames, link, 0, count, &plain);
		prefetch_services(&mux->snapshot->map->exact, mux->plain, &plain);
	}
	mux->onward = false;
	for (unsigned first = 0; first < count; first += GROUP) {
		unsigned n = count - first < GROUP ? count - first : GROUP;
		uint64_t keys[GROUP], all = (1u << n) - 1;
		bool exact, onward;

		if (LIKELY(!far))
			read_plain4(mux, frames, link, first, n, &plain);
		exact = LIKELY((mux->plain >> first & all) == all) && find_exact(mux, frames, first, n, &plain, keys);
		if (LIKELY(exact))
			onward = true;
		else if (read_plain6(mux, frames, link, first, n, &words))
			onward = find_six(mux, frames, first, n, &words, keys);
		else
			onward = find_any(mux, frames, link, first, n, &plain, keys);
		mux->onward |= onward;
		if (!mux->table && exact)
			hash_exact(mux, &plain, first, n);
		else if (!mux->table)
			continue;
		else if (LIKELY(onward))
			name_flows(mux, keys, &mux->scrambled[first], n);
		else
			memset(&mux->scrambled[first], 0, n * sizeof(mux->scrambled[0]));
	}
	if (UNLIKELY(mux->snapshot->map->named) && mux->onward)
		read_names(mux);
}
