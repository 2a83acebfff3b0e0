/* SPDX-License-Identifier: Apache-2.0 */
/* Second stage, see mux_stages.h: which backend each packet goes to, and what the flow table remembers of it. */
#include <string.h>

#include "flow/sibling_tables.h"
#include "mux/fragments.h"
#include "mux/mux_stages.h"

/* ---- find flow ---- */

static uint32_t maglev_slot_of(const struct mux *mux, const struct packet *packet, struct passage *passage)
{
	const struct service *service = passage->service;
	struct flow_tuple tuple;

	if (LIKELY(!service->hash_source))
		return maglev_slot(service->maglev, mux_passage_hash(mux, packet, passage));
	mux_packet_tuple(packet, &tuple);
	return maglev_slot(service->maglev, flow_tuple_hash(&mux->snapshot->map->seed, &tuple, true));
}

/* Whether Maglev's slot of a packet is that of its whole tuple, which is IPv4 and nobody has hashed yet. */
static inline bool is_unhashed(const struct passage *passage)
{
	return LIKELY(!passage->hashed && !passage->service->hash_source);
}

/* Hashes those of the packets listed together; hashes[] has them one after the other. */
static void hash_listed(struct mux *mux, unsigned count)
{
	uint64_t *addresses = mux->addresses, *ports = mux->ports;
	unsigned unhashed = 0;
	uint32_t pair[2];

	for (unsigned n = 0; n < count; n++) {
		const struct packet *packet = &mux->packets[mux->listed[n]];

		if (!is_unhashed(&mux->passages[mux->listed[n]]))
			continue;
		memcpy(pair, packet->ip + 12, 8);
		addresses[unhashed] = flow_word4_addresses(pair[0], pair[1]);
		ports[unhashed++] = flow_word4_ports(packet->source_port, packet->destination_port, packet->protocol);
	}
	mux->vector->hash4(&mux->snapshot->map->seed, addresses, ports, mux->hashes, unhashed);
}

/*
 * Maglev's choices for the packets listed, into choices[].  Three lines of each come from memory one after the other, of slot,
 * backend and way out: each is asked for of all packets before the first is read.
 */
static void ask_maglev(struct mux *mux, unsigned count)
{
	uint32_t slots[BURST_MAX];
	unsigned unhashed = 0;

	hash_listed(mux, count);
	for (unsigned n = 0; n < count; n++) {
		struct passage *passage = &mux->passages[mux->listed[n]];
		const struct maglev *maglev = passage->service->maglev;

		if (is_unhashed(passage))
			slots[n] = maglev_slot(maglev, mux->hashes[unhashed++]);
		else
			slots[n] = maglev_slot_of(mux, &mux->packets[mux->listed[n]], passage);
		prefetch(maglev_place(maglev, slots[n]));
	}
	for (unsigned n = 0; n < count; n++) {
		const struct service *service = mux->passages[mux->listed[n]].service;
		uint16_t number = maglev_at(service->maglev, slots[n]);

		mux->choices[mux->listed[n]] = number;
		if (LIKELY(number < service->backend_count))
			prefetch(&service->backends[number]);
	}
}

/*
 * A flow was found: asks for the backend that its entry names, and says FLOW_KNOWN already where this packet changes nothing of the
 * entry but its age: of a settled flow that has not expired and that this one does not end.
 */
static ALWAYS_INLINE void note_entry(struct mux *mux, unsigned i, struct flow_slot slot, uint16_t now)
{
	const struct packet *packet = &mux->packets[i];
	struct passage *passage = &mux->passages[i];
	uint64_t entry = slot.line->entry[slot.way];
	unsigned number = flow_entry_backend(entry);

	passage->backend = &passage->service->backends[number];
	prefetch(passage->backend);
	mux->entries[i] = entry;
	if (UNLIKELY(!flow_class_is_settled(flow_entry_class(entry))) ||
	    UNLIKELY((uint16_t)(now - slot.line->stamp[slot.way]) >= passage->service->idle))
		return;
	if (UNLIKELY(number >= passage->service->backend_count) || UNLIKELY(packet_ends(packet)))
		return;
	passage->backend_number = (uint16_t)number;
	passage->flow = FLOW_KNOWN;
}

/* Those listed are not at home: some of them live in their other line, the others are listed again.  Returns how many. */
static unsigned look_elsewhere(struct mux *mux, unsigned count)
{
	uint16_t now = (uint16_t)mux->table->clock;
	unsigned unknown = 0;

	for (unsigned n = 0; n < count; n++) {
		uint8_t i = mux->listed[n];
		struct flow_slot slot = flow_table_find_away(mux->table, mux->scrambled[i]);

		mux->slots[i] = slot;
		if (LIKELY(slot.line != NULL))
			note_entry(mux, i, slot, now);
		else
			mux->listed[unknown++] = i;
	}
	return unknown;
}

/* First look, without deciding anything: what is in neither line will need its Maglev slot soon. */
static void look_for_flows(struct mux *mux)
{
	uint16_t now = (uint16_t)mux->table->clock;
	unsigned count = 0;

	flow_table_find_home_burst(mux->table, mux->scrambled, mux->slots, mux->count);
	for (unsigned i = 0; i < mux->count; i++) {
		struct flow_slot slot = mux->slots[i];

		if (UNLIKELY(mux->packets[i].reason != REASON_FORWARDED))
			continue;
		if (LIKELY(slot.line != NULL)) {
			note_entry(mux, i, slot, now);
		} else {
			flow_table_prefetch_alternate(mux->table, mux->scrambled[i]);
			mux->listed[count++] = (uint8_t)i;
		}
	}
	count = look_elsewhere(mux, count);
	if (UNLIKELY(mux->siblings != NULL))
		for (unsigned n = 0; n < count; n++)
			sibling_tables_prefetch(mux->siblings, mux->scrambled[mux->listed[n]]);
	ask_maglev(mux, count);
}

/* ---- choose backend ---- */

/* Takes Maglev's choice: sets backend and number, false if no backend takes new flows. */
static inline bool take_choice(struct passage *passage, uint16_t number)
{
	if (UNLIKELY(number == MAGLEV_NONE))
		return false;
	passage->backend_number = number;
	passage->backend = mux_backend_at(passage->service, number);
	return passage->backend != NULL;
}

/* The same for a packet that nobody listed. */
static bool choose_new(const struct mux *mux, const struct packet *packet, struct passage *passage)
{
	return take_choice(passage, maglev_at(passage->service->maglev, maglev_slot_of(mux, packet, passage)));
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
	const struct backend *backend = mux_backend_at(passage->service, number);

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

/* The same of an entry of the backend that the packet names: it stays though its backend drains, as the server wants it. */
static bool use_named(struct mux *mux, const struct packet *packet, struct passage *passage, struct flow_slot slot)
{
	enum flow_class class = flow_slot_class(slot);

	if (flow_expired(mux, passage, slot, class))
		return false;
	if (!flow_class_is_settled(class))
		note_progress(mux, packet, slot, class);
	flow_slot_touch(mux->table, slot);
	passage->backend_number = (uint16_t)flow_slot_backend(slot);
	passage->backend = mux_backend_at(passage->service, passage->backend_number);
	passage->flow = FLOW_KNOWN;
	return true;
}

/*
 * RFC 2003, 3.2: what comes from either end of the tunnel must not go into it.  Asked of new flows alone: no other has an entry.
 */
static NEVER_INLINE enum reason judge_end(const struct mux *mux, const struct packet *packet, const struct backend *backend)
{
	const struct hop *hop = &mux->snapshot->hops[backend_hop(backend)];
	size_t size = packet->family == 4 ? 4 : 16;

	if (hop->family != packet->family)
		return REASON_FORWARDED;
	if (memcmp(packet_source(packet), hop_source(hop), size) == 0)
		return REASON_OWN_SOURCE;
	return memcmp(packet_source(packet), hop_destination(hop), size) == 0 ? REASON_HAIRPIN : REASON_FORWARDED;
}

static inline enum reason check_end(const struct mux *mux, const struct packet *packet, const struct backend *backend)
{
	if (LIKELY(!snapshot_may_have_end(mux->snapshot, packet->family, packet_source(packet))))
		return REASON_FORWARDED;
	return judge_end(mux, packet, backend);
}

/* The flow begins with the backend that was chosen: in the old entry's place if there is one. */
static inline void remember(struct mux *mux, unsigned i, struct flow_slot slot, enum flow_class class)
{
	struct passage *passage = &mux->passages[i];

	passage->flow = FLOW_NEW;
	/* What has expired is gone, whether the sweep has come by or not: else places would depend on how bursts fell. */
	if (slot.line && !flow_table_expire(mux->table, slot))
		flow_slot_rewrite(mux->table, slot, passage->backend_number, class);
	else if (!flow_table_insert(mux->table, mux->scrambled[i], passage->backend_number, class))
		passage->flow = FLOW_UNTRACKED;
}

/* No usable entry: Maglev decides, and the table remembers, in the old entry's place if there is one. */
static enum reason start_flow(struct mux *mux, unsigned i, struct flow_slot slot)
{
	struct packet *packet = &mux->packets[i];
	struct passage *passage = &mux->passages[i];
	enum flow_class class = packet->protocol == 17 ? FLOW_UDP_UNTRUSTED : FLOW_TCP_UNTRUSTED;
	bool listed = !mux->slots[i].line;
	enum reason reason;

	if (!(LIKELY(listed) ? take_choice(passage, mux->choices[i]) : choose_new(mux, packet, passage)))
		return REASON_NO_BACKEND;
	reason = check_end(mux, packet, passage->backend);
	if (UNLIKELY(reason != REASON_FORWARDED))
		return reason;
	remember(mux, i, slot, class);
	return REASON_FORWARDED;
}

/* Nothing that is of use is known of the flow here. */
static bool is_strange(const struct mux *mux, const struct passage *passage, struct flow_slot slot)
{
	return !slot.line || flow_expired(mux, passage, slot, flow_slot_class(slot));
}

/* Where it is that packets go out: copies, so that they need not be read again after each store. */
struct ways_out {
	const struct hop *hops;
	const uint64_t *counters;
};

static inline struct ways_out ways_out(const struct mux *mux)
{
	return (struct ways_out){ mux->snapshot->hops, mux->backend_counters };
}

static inline void prefetch_way_out(struct ways_out ways, const struct backend *backend)
{
	prefetch(&ways.hops[backend_hop(backend)]);
	prefetch(&ways.counters[backend->counter]);
}

/*
 * The common packet: the first look said that nothing but the age changes about its flow, no packet since has changed the entry
 * (where the same bits are, the same flow is), and its backend is up.  Nothing that choose_flow() asks would say otherwise.
 */
static inline bool goes_on(const struct mux *mux, unsigned i, bool touched)
{
	struct flow_slot slot = mux->slots[i];

	return LIKELY(mux->passages[i].flow == FLOW_KNOWN) &&
	       (LIKELY(!touched) || slot.line->entry[slot.way] == mux->entries[i]) &&
	       LIKELY(backend_state(mux->passages[i].backend) == BACKEND_UP);
}

/*
 * Flows that this burst began, as bits by their scrambled keys: a flow that the first look did not find is in the table only if its
 * bit is set.
 */
struct begun {
	uint64_t bits[4];
};

static inline uint64_t begun_bit(uint64_t scrambled)
{
	return 1ULL << (scrambled & 63);
}

static inline uint64_t *begun_word(struct begun *begun, uint64_t scrambled)
{
	return &begun->bits[scrambled >> 6 & 3];
}

/* Where the flow is now: an earlier packet may have made, moved or evicted its entry since the first look. */
static inline struct flow_slot look_again(struct mux *mux, unsigned i, struct begun *begun)
{
	struct flow_slot slot = mux->slots[i];
	uint64_t scrambled = mux->scrambled[i];

	if (slot.line ? slot.line->entry[slot.way] == mux->entries[i] :
			!(*begun_word(begun, scrambled) & begun_bit(scrambled)))
		return slot;
	return flow_table_find(mux->table, scrambled);
}

/* Any packet at all. */
static NEVER_INLINE enum reason choose_flow(struct mux *mux, unsigned i, struct begun *begun)
{
	struct flow_slot slot = look_again(mux, i, begun);
	struct passage *passage = &mux->passages[i];
	uint64_t scrambled = mux->scrambled[i];

	if (UNLIKELY(mux->siblings != NULL) && is_strange(mux, passage, slot))
		slot = sibling_tables_take(mux->siblings, mux->table, scrambled, slot);
	*begun_word(begun, scrambled) |= begun_bit(scrambled);
	if (LIKELY(slot.line != NULL) && use_entry(mux, &mux->packets[i], passage, slot))
		return REASON_FORWARDED;
	return start_flow(mux, i, slot);
}

/* What a table says of the flow that an error is about, and how old that is; false: nothing that counts still. */
static bool owner_of(const struct mux *mux, const struct passage *passage, uint64_t entry, uint16_t age, uint16_t *youngest,
		     uint32_t *number)
{
	enum flow_class class = flow_entry_class(entry);
	uint16_t idle = class == FLOW_TCP_UNTRUSTED ? mux->snapshot->map->idle_untrusted : passage->service->idle;

	if (!entry || age >= idle || age >= *youngest)
		return false;
	*youngest = age;
	*number = flow_entry_backend(entry);
	return true;
}

/* Our table and those of the other workers, who may have the flow where the error came to us. */
static bool find_owner(struct mux *mux, unsigned i, const struct passage *passage, uint32_t *number)
{
	struct flow_slot slot = flow_table_find(mux->table, mux->scrambled[i]);
	const struct sibling_tables *witnesses = mux->witnesses;
	uint16_t youngest = UINT16_MAX, stamp;
	bool found = slot.line && owner_of(mux, passage, slot.line->entry[slot.way], flow_slot_age(mux->table, slot), &youngest,
					   number);

	for (uint32_t n = 0; witnesses && n < witnesses->count; n++) {
		uint64_t entry = flow_table_peek(witnesses->tables[n], mux->scrambled[i], &stamp);

		if (entry)
			found |= owner_of(mux, passage, entry, sibling_tables_age(mux->table, stamp), &youngest, number);
	}
	return found;
}

/*
 * An ICMP error goes to whoever has the flow that it is about, which it does not touch: nobody shall make, keep or move an entry by
 * quoting something.  Of a flow that no table knows it goes where a new one would.
 */
static NEVER_INLINE enum reason choose_for_error(struct mux *mux, unsigned i)
{
	struct passage *passage = &mux->passages[i];
	const struct service *service = passage->service;
	uint64_t hash = passage->hash;
	struct flow_tuple tuple;
	uint32_t number;

	if (mux->table && find_owner(mux, i, passage, &number)) {
		passage->backend = mux_backend_at(service, number);
		if (passage->backend && backend_state(passage->backend) != BACKEND_DOWN) {
			passage->backend_number = (uint16_t)number;
			passage->flow = FLOW_KNOWN;
			return REASON_ICMP_ERROR;
		}
	}
	if (service->hash_source && mux_icmp_tuple(&mux->packets[i], &tuple))
		hash = flow_tuple_hash(&mux->snapshot->map->seed, &tuple, true);
	if (!take_choice(passage, maglev_at(service->maglev, maglev_slot(service->maglev, hash))))
		return REASON_NO_BACKEND;
	passage->flow = FLOW_UNTRACKED;
	return REASON_ICMP_ERROR;
}

/*
 * A packet whose connection id names its backend goes there, and its flow begins or goes on with that: what comes next may say
 * less, or be an error about it.  An entry of another backend that serves on is not touched: the flow may be that of others as
 * well, who are not to lose it to who knows an id and makes up an address.
 */
static NEVER_INLINE enum reason choose_named(struct mux *mux, unsigned i, struct begun *begun)
{
	struct flow_slot slot = look_again(mux, i, begun);
	struct packet *packet = &mux->packets[i];
	struct passage *passage = &mux->passages[i];
	uint64_t scrambled = mux->scrambled[i];
	const struct backend *other;
	enum reason reason;

	if (UNLIKELY(mux->siblings != NULL) && is_strange(mux, passage, slot))
		slot = sibling_tables_take(mux->siblings, mux->table, scrambled, slot);
	*begun_word(begun, scrambled) |= begun_bit(scrambled);
	if (slot.line && flow_slot_backend(slot) == mux->names[i] && use_named(mux, packet, passage, slot))
		return REASON_FORWARDED;
	passage->backend_number = mux->names[i];
	passage->backend = mux_backend_at(passage->service, mux->names[i]);
	reason = check_end(mux, packet, passage->backend);
	if (UNLIKELY(reason != REASON_FORWARDED))
		return reason;
	other = slot.line ? mux_backend_at(passage->service, flow_slot_backend(slot)) : NULL;
	passage->flow = FLOW_UNTRACKED;
	if (other && backend_state(other) != BACKEND_DOWN && !flow_expired(mux, passage, slot, flow_slot_class(slot)))
		return REASON_FORWARDED;
	remember(mux, i, slot, FLOW_UDP_UNTRUSTED);
	return REASON_FORWARDED;
}

/* ---- fragments ---- */

/* The first of a datagram, like any packet of its flow; but the flow's other packets may come to other workers, so these are asked first. */
static enum reason choose_for_first(struct mux *mux, unsigned i, struct begun *begun)
{
	struct packet *packet = &mux->packets[i];
	struct passage *passage = &mux->passages[i];
	struct flow_slot slot = { 0 };
	enum reason reason;
	uint32_t number;

	mux->choices[i] = maglev_at(passage->service->maglev, maglev_slot_of(mux, packet, passage));
	if (mux->table)
		slot = flow_table_find(mux->table, mux->scrambled[i]);
	if (mux->table && !slot.line && find_owner(mux, i, passage, &number) && keep_remembered(mux, packet, passage, number)) {
		passage->flow = FLOW_KNOWN;
		return REASON_FRAGMENT;
	}
	if (mux->table) {
		mux->slots[i] = slot;
		mux->entries[i] = slot.line ? slot.line->entry[slot.way] : 0;
		reason = choose_flow(mux, i, begun);
	} else {
		passage->flow = FLOW_UNTRACKED;
		reason = take_choice(passage, mux->choices[i]) ? check_end(mux, packet, passage->backend) : REASON_NO_BACKEND;
	}
	return reason == REASON_FORWARDED ? REASON_FRAGMENT : reason;
}

static enum reason reason_of(enum fragment_verdict verdict)
{
	static const enum reason reasons[] = { [FRAGMENT_GOES] = REASON_FRAGMENT,
					       [FRAGMENT_WAITS] = REASON_WAITS,
					       [FRAGMENT_OVERLAPS] = REASON_FRAGMENT_OVERLAP,
					       [FRAGMENT_IS_ALONE] = REASON_FRAGMENT_ALONE };

	return reasons[verdict];
}

static void append_released(struct mux *mux, struct kept_fragment *released)
{
	struct kept_fragment **end = &mux->released;

	while (*end)
		end = &(*end)->next;
	*end = released;
}

static NEVER_INLINE enum reason choose_for_fragment(struct mux *mux, unsigned i, const struct frame *frame, struct begun *begun)
{
	const struct vip_map *map = mux->snapshot->map;
	struct packet *packet = &mux->packets[i];
	struct passage *passage = &mux->passages[i];
	struct kept_fragment *released;
	struct fragment fragment;
	struct fragment_way way;
	enum reason reason;

	fragment_read(packet, &fragment);
	if (!fragment.offset) {
		reason = choose_for_first(mux, i, begun);
		if (reason != REASON_FRAGMENT)
			return reason;
		way = (struct fragment_way){ mux_passage_hash(mux, packet, passage), passage->service->id, passage->backend_number };
		reason = reason_of(fragments_first(mux->fragments, &map->seed, packet, &fragment, &way, mux->now, &released));
		append_released(mux, released);
		return reason;
	}
	reason = reason_of(fragments_later(mux->fragments, &map->seed, packet, &fragment, frame, mux->now, &way));
	if (reason != REASON_FRAGMENT)
		return reason;
	passage->service = map->by_id[way.service];
	passage->backend = passage->service ? mux_backend_at(passage->service, way.backend) : NULL;
	if (!passage->backend || backend_state(passage->backend) == BACKEND_DOWN)
		return REASON_NO_BACKEND;
	passage->backend_number = way.backend;
	passage->hash = way.hash;
	passage->hashed = true;
	passage->flow = FLOW_KNOWN;
	return REASON_FRAGMENT;
}

static void choose_backends(struct mux *mux, const struct frame *frames)
{
	struct flow_table *table = mux->table;
	unsigned count = mux->count;
	struct ways_out ways = ways_out(mux);
	struct begun begun = { { 0 } };
	bool touched = false; /* the table, by an earlier packet that was not of the common kind */

	for (unsigned i = 0; i < count; i++) {
		bool named = UNLIKELY(mux->named != 0) && mux->named >> i & 1;

		if (!named && LIKELY(goes_on(mux, i, touched))) {
			flow_slot_touch(table, mux->slots[i]);
		} else {
			struct packet *packet = &mux->packets[i];

			if (UNLIKELY(packet->reason != REASON_FORWARDED)) {
				if (packet->reason == REASON_ICMP_ERROR) {
					packet->reason = choose_for_error(mux, i);
				} else if (packet->reason == REASON_FRAGMENT) {
					touched = true;
					packet->reason = choose_for_fragment(mux, i, &frames[i], &begun);
				}
				continue;
			}
			touched = true;
			packet->reason = UNLIKELY(named) ? choose_named(mux, i, &begun) : choose_flow(mux, i, &begun);
			if (UNLIKELY(packet->reason != REASON_FORWARDED))
				continue;
		}
		prefetch_way_out(ways, mux->passages[i].backend);
	}
}

/* Without a flow table every packet asks Maglev. */
static void choose_stateless(struct mux *mux, const struct frame *frames)
{
	struct ways_out ways = ways_out(mux);
	unsigned count = 0;

	for (unsigned i = 0; i < mux->count; i++) {
		if (LIKELY(mux->packets[i].reason == REASON_FORWARDED))
			mux->listed[count++] = (uint8_t)i;
		else if (mux->packets[i].reason == REASON_ICMP_ERROR)
			mux->packets[i].reason = choose_for_error(mux, i);
		else if (mux->packets[i].reason == REASON_FRAGMENT)
			mux->packets[i].reason = choose_for_fragment(mux, i, &frames[i], NULL);
	}
	ask_maglev(mux, count);
	for (unsigned n = 0; n < count; n++) {
		struct packet *packet = &mux->packets[mux->listed[n]];
		struct passage *passage = &mux->passages[mux->listed[n]];

		if (UNLIKELY(mux->named >> mux->listed[n] & 1))
			mux->choices[mux->listed[n]] = mux->names[mux->listed[n]];
		if (LIKELY(take_choice(passage, mux->choices[mux->listed[n]]))) {
			passage->flow = FLOW_UNTRACKED;
			packet->reason = check_end(mux, packet, passage->backend);
			prefetch_way_out(ways, passage->backend);
		} else {
			packet->reason = REASON_NO_BACKEND;
		}
	}
}

void mux_choose_burst(struct mux *mux, const struct frame *frames)
{
	if (!mux->table) {
		choose_stateless(mux, frames);
		return;
	}
	look_for_flows(mux);
	choose_backends(mux, frames);
	flow_table_settle(mux->table);
}
