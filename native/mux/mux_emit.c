/* SPDX-License-Identifier: Apache-2.0 */
/* Third stage, see mux_stages.h: outer headers, segments of what is too large, and out. */
#include <string.h>

#include "mux/mux_stages.h"
#include "packet/fragment.h"
#include "packet/segment.h"
#include "services/snapshot/encap.h"

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

/* Ethernet addresses of a frame, the other way round; each with two bytes behind that are not of it. */
struct link_addresses {
	uint64_t destination, source;
};

static inline struct link_addresses link_addresses_swapped(const uint8_t *ethernet)
{
	return (struct link_addresses){ .destination = load64(ethernet + 6), .source = load64(ethernet) };
}

/* Writes two bytes more, where the Ethernet type belongs. */
static inline void link_addresses_write(uint8_t *ethernet, struct link_addresses addresses)
{
	store64(ethernet, addresses.destination);
	store64(ethernet + 6, addresses.source);
}

/*
 * Puts outer and link header before the packet at ip, which is that in `frame` or was made of it; *out is the result.  `link` is
 * that of the configuration, `family` the hop's: where they are constants, what depends on them is decided once and not for each
 * packet.
 */
static ALWAYS_INLINE void emit(struct mux *mux, enum mux_link link, uint8_t family, unsigned origin,
			       const struct frame *frame, const struct hop *hop, uint8_t *ip, uint32_t length,
			       struct frame *out)
{
	uint32_t before = encap_overhead(family) + (link == MUX_LINK_NONE ? 0 : HOP_LINK_BYTES);
	struct link_addresses swapped;

	/* Before the outer header overwrites them. */
	if (link == MUX_LINK_SWAP)
		swapped = link_addresses_swapped(frame->data);

	if (family == 4)
		encap_ipv4(hop, ip, length, &mux->ids[(hop - mux->snapshot->hops) & 255]);
	else
		encap_ipv6(hop, ip, length, (uint32_t)(mux->passages[origin].hash >> 32)); /* hashed: it is IPv6 */
	if (link == MUX_LINK_SWAP) {
		link_addresses_write(ip - before, swapped);
		memcpy(ip - before + 12, hop->start + 12, 2);
	}
	*out = (struct frame){ .data = ip - before, .len = before + length, .origin = (uint8_t)origin, .ifindex = hop->ifindex };
}

/* The same where the hop has no template for the packet as it is: another family in it, or UDP between. */
static void emit_tunnel(struct mux *mux, unsigned origin, const struct frame *frame, const struct hop *hop, uint8_t *ip,
			uint32_t length, struct frame *out)
{
	uint32_t link = mux->config.link == MUX_LINK_NONE ? 0 : HOP_LINK_BYTES, before = encap_bytes(hop) + link;
	uint64_t hash = mux_passage_hash(mux, &mux->packets[origin], &mux->passages[origin]);
	size_t number = (size_t)(hop - mux->snapshot->hops);
	uint8_t swapped[12];

	/* Before the outer header overwrites them. */
	memcpy(swapped, frame->data + 6, link ? 6 : 0);
	memcpy(swapped + 6, frame->data, link ? 6 : 0);
	encap_tunnel(hop, mux->snapshot->rests[number].port, ip, length, &mux->ids[number & 255], (uint32_t)(hash >> 32));
	memcpy(ip - before, hop->start, link);
	if (mux->config.link == MUX_LINK_SWAP)
		memcpy(ip - before, swapped, sizeof(swapped));
	*out = (struct frame){ .data = ip - before, .len = before + length, .origin = (uint8_t)origin, .ifindex = hop->ifindex };
}

/* Whatever it is, queued.  There is room: see emit_burst(); emit_segments() leaves none waiting. */
static void emit_any(struct mux *mux, unsigned origin, const struct frame *frame, const struct hop *hop, uint8_t *ip,
		     uint32_t length)
{
	struct frame *out = &mux->out[mux->out_count++];

	if (LIKELY(encap_is_plain(hop, mux->packets[origin].family)))
		emit(mux, mux->config.link, hop->family, origin, frame, hop, ip, length, out);
	else
		emit_tunnel(mux, origin, frame, hop, ip, length, out);
}

static uint32_t longest(const struct mux *mux, unsigned i, const struct hop *hop)
{
	uint32_t mtu = mux->passages[i].service->mtu, way = mux->snapshot->rests[hop - mux->snapshot->hops].mtu;
	uint32_t overhead = encap_bytes(hop);

	if (way && way < mtu)
		mtu = way;
	return mtu > overhead ? mtu - overhead : 0;
}

uint32_t mux_longest(const struct mux *mux, unsigned i)
{
	return longest(mux, i, &mux->snapshot->hops[backend_hop(mux->passages[i].backend)]);
}

/* A buffer for a packet that the mux makes; IP header first, and room before it. */
static uint8_t *made_packet(struct mux *mux, uint32_t number)
{
	return mux->segments + number * SEGMENT_ROOM + SEGMENT_HEADROOM;
}

/*
 * An IPv4 packet that does not fit and may be cut on its way leaves as fragments, each in a tunnel of its own (RFC 2003, 5.1): outer
 * fragments would cost the host a reassembly, and many a network drops them.  ip: in `frame`, or the first made packet.
 */
static void emit_pieces(struct mux *mux, unsigned i, const struct frame *frame, const struct hop *hop, const uint8_t *ip,
			uint32_t length, uint32_t fits)
{
	uint32_t step = fragment_step(ip, fits), piece;

	if (!step) {
		mux->packets[i].reason = REASON_TOO_BIG;
		return;
	}
	flush(mux); /* made packets are reused from here on */
	for (uint32_t n = 0;; n++) {
		uint8_t *out = made_packet(mux, 1 + n % (BURST_MAX - 1));

		if (mux->out_count == BURST_MAX - 1)
			flush(mux);
		piece = fragment_write(ip, length, step, n, out);
		if (!piece)
			break;
		emit_any(mux, i, frame, hop, out, piece);
	}
	flush(mux);
}

/* IDs of the outer headers are as many as there are segments. */
static void emit_whole(struct mux *mux, unsigned i, const struct frame *frame, const struct hop *hop, const struct cut *cut)
{
	struct packet *packet = &mux->packets[i];

	emit_any(mux, i, frame, hop, packet->ip, packet->length);
	segment_mark_whole(packet, cut, &mux->out[mux->out_count - 1]);
	if (packet->family == 4 && !(packet->ip[6] & 0x40))
		mux->ids[(hop - mux->snapshot->hops) & 255] += (uint16_t)(segment_count(packet, cut) - 1);
}

/* Those longer than `longest`, which may be cut on their way, in pieces. */
static void emit_segments(struct mux *mux, unsigned i, const struct frame *frame, const struct hop *hop,
			  const struct cut *cut, uint32_t longest)
{
	struct packet *packet = &mux->packets[i];
	uint32_t count = segment_count(packet, cut);
	bool fits = cut->headers + cut->size <= longest;

	/* Their buffers are reused from here on, so what is queued goes out first. */
	flush(mux);
	for (uint32_t n = 0; n < count; n++) {
		uint8_t *ip = made_packet(mux, fits ? n % BURST_MAX : 0);
		uint32_t length;

		if (mux->out_count == BURST_MAX)
			flush(mux);
		length = segment_write(packet, cut, n, ip);
		if (LIKELY(length <= longest))
			emit_any(mux, i, frame, hop, ip, length);
		else
			emit_pieces(mux, i, frame, hop, ip, length, longest);
		if (!fits)
			flush(mux);
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
static bool encap_super(struct mux *mux, unsigned i, const struct frame *frame, const struct hop *hop)
{
	struct packet *packet = &mux->packets[i];
	uint32_t fits = longest(mux, i, hop), came = packet->length;
	enum segments stands_for;
	struct cut cut;

	stands_for = segment_plan(packet, frame, fits, mux->passages[i].service->mtu, &cut);
	/* Its segments do not fit, or it says nothing of any; they, or it, may be cut once more. */
	if (stands_for == SEGMENTS_TOO_BIG && fragment_may_cut(packet))
		stands_for = segment_plan(packet, frame, SERVICE_MTU_MAX, mux->passages[i].service->mtu, &cut);
	switch (stands_for) {
	case SEGMENTS_SEVERAL:
		packet_decrement_ttl(packet);
		if (mux->io->sends_whole && cut.headers + cut.size <= fits && encap_is_plain(hop, packet->family) &&
		    segment_stays_whole(packet, frame, &cut, encap_bytes(hop)))
			emit_whole(mux, i, frame, hop, &cut);
		else
			emit_segments(mux, i, frame, hop, &cut, fits);
		packet->length = came; /* with what a jumbo option took: so it is counted */
		return true;
	case SEGMENTS_ONE:
		if (packet->length <= fits)
			return false;
		if (!fragment_may_cut(packet))
			break;
		if (frame->csum_start || mux->config.detect_partial)
			packet_complete_checksum(packet, frame, mux->config.detect_partial);
		packet_decrement_ttl(packet);
		emit_pieces(mux, i, frame, hop, packet->ip, packet->length, fits);
		return true;
	case SEGMENTS_TOO_BIG:
		break;
	}
	packet->reason = REASON_TOO_BIG;
	return true;
}

/* Any packet at all. */
static NEVER_INLINE void encap_packet(struct mux *mux, unsigned i, const struct frame *frame, const struct hop *hop)
{
	struct packet *packet = &mux->packets[i];

	if (UNLIKELY(!hop->resolved)) {
		packet->reason = REASON_NO_NEXT_HOP;
		return;
	}
	if (UNLIKELY(packet->length > longest(mux, i, hop) || is_train(packet, frame) || frame->offload & FRAME_MERGED) &&
	    encap_super(mux, i, frame, hop))
		return;
	if (UNLIKELY(frame->csum_start || mux->config.detect_partial))
		packet_complete_checksum(packet, frame, mux->config.detect_partial);
	packet_decrement_ttl(packet);
	emit_any(mux, i, frame, hop, packet->ip, packet->length);
}

/* An ICMP error about a flow, or a fragment: it has no checksum that could be left to do, and is no super-packet. */
static NEVER_INLINE void encap_aside(struct mux *mux, unsigned i, const struct frame *frame, const struct hop *hop)
{
	struct packet *packet = &mux->packets[i];
	uint32_t fits = longest(mux, i, hop);

	if (!hop->resolved) {
		packet->reason = REASON_NO_NEXT_HOP;
	} else if (packet->length <= fits) {
		packet_decrement_ttl(packet);
		emit_any(mux, i, frame, hop, packet->ip, packet->length);
	} else if (fragment_may_cut(packet)) {
		packet_decrement_ttl(packet);
		emit_pieces(mux, i, frame, hop, packet->ip, packet->length, fits);
	} else {
		packet->reason = REASON_TOO_BIG;
	}
}

/*
 * The common packets, of which encap_packet() would find that none of its questions has to be asked: they are put as few.  False: one
 * of them has to be, and nothing was done.
 */
static ALWAYS_INLINE bool is_plain(const struct mux *mux, uint8_t family, unsigned i, const struct frame *frame)
{
	return LIKELY(mux->packets[i].length + encap_overhead(family) <= mux->passages[i].service->mtu) &&
	       LIKELY(!(frame->gso_size | frame->csum_start));
}

static ALWAYS_INLINE bool emit_plain6(struct mux *mux, enum mux_link link, unsigned i, const struct frame *frame,
				      const struct hop *hop, struct frame *out)
{
	const struct packet *packet = &mux->packets[i];

	if (!is_plain(mux, 6, i, frame))
		return false;
	packet->ip[7]--;
	emit(mux, link, 6, i, frame, hop, packet->ip, packet->length, out);
	return true;
}

/* As emit() after the packet's TTL has become one less: of a packet of which mux_read_burst() prepared that. */
static ALWAYS_INLINE bool emit_plain4(struct mux *mux, enum mux_link link, unsigned i, const struct frame *frame,
				      const struct hop *hop, struct frame *out)
{
	uint32_t before = 20 + (link == MUX_LINK_NONE ? 0 : HOP_LINK_BYTES);
	uint8_t *ip = mux->packets[i].ip;

	if (!is_plain(mux, 4, i, frame))
		return false;
	if (link == MUX_LINK_SWAP)
		link_addresses_write(ip - before, link_addresses_swapped(frame->data));
	encap_plain4(hop, &mux->outers[i], ip, &mux->ids[(hop - mux->snapshot->hops) & 255], link == MUX_LINK_NEXT_HOP);
	*out = (struct frame){ .data = ip - before, .len = before + mux->packets[i].length, .origin = (uint8_t)i,
			       .ifindex = hop->ifindex };
	return true;
}

/* No more frames wait than packets came before, so there is room for one more. */
static ALWAYS_INLINE void emit_burst(struct mux *mux, const struct frame *frames, enum mux_link link)
{
	const struct hop *hops = mux->snapshot->hops;
	/* What a hop says that is ready; where checksums have to be looked for, no packet is plain, and no hop says this. */
	uint8_t four = mux->config.detect_partial ? UINT8_MAX : 4, six = mux->config.detect_partial ? UINT8_MAX : 6;
	unsigned count = mux->count;
	uint64_t plain = mux->plain;
	struct frame *out = mux->out; /* the next to be queued */

	for (unsigned i = 0; i < count; i++) {
		const struct hop *hop;

		if (UNLIKELY(mux->packets[i].reason != REASON_FORWARDED)) {
			if (mux->packets[i].reason == REASON_ICMP_ERROR || mux->packets[i].reason == REASON_FRAGMENT) {
				mux->out_count = (unsigned)(out - mux->out);
				encap_aside(mux, i, &frames[i], &hops[backend_hop(mux->passages[i].backend)]);
				out = &mux->out[mux->out_count];
			}
			continue;
		}
		hop = &hops[backend_hop(mux->passages[i].backend)];
		if (LIKELY(hop->ready == four) && LIKELY(plain >> i & 1) && LIKELY(emit_plain4(mux, link, i, &frames[i], hop, out))) {
			out++;
			continue;
		}
		if (hop->ready == six && mux->packets[i].family == 6 && emit_plain6(mux, link, i, &frames[i], hop, out)) {
			out++;
			continue;
		}
		mux->out_count = (unsigned)(out - mux->out);
		encap_packet(mux, i, &frames[i], hop);
		out = &mux->out[mux->out_count];
	}
	mux->out_count = (unsigned)(out - mux->out);
}

void mux_emit_burst(struct mux *mux, const struct frame *frames)
{
	/* A loop for each link, so that what is the same of all packets is not asked again for each. */
	switch ((enum mux_link)mux->config.link) {
	case MUX_LINK_NONE:
		emit_burst(mux, frames, MUX_LINK_NONE);
		break;
	case MUX_LINK_NEXT_HOP:
		emit_burst(mux, frames, MUX_LINK_NEXT_HOP);
		break;
	case MUX_LINK_SWAP:
		emit_burst(mux, frames, MUX_LINK_SWAP);
		break;
	}
	flush(mux);
}
