/* SPDX-License-Identifier: Apache-2.0 */
/* Third stage, see mux_stages.h: outer headers, segments of what is too large, and out. */
#include <string.h>

#include "encap.h"
#include "mux_stages.h"
#include "segment.h"

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
		encap_ipv6(hop, ip, length, (uint32_t)(mux->passages[origin].hash >> 32)); /* hashed: it is IPv6 */
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
	uint32_t fits = mtu > overhead ? mtu - overhead : 0, came = packet->length;
	struct cut cut;

	switch (segment_plan(packet, frame, fits, mtu, &cut)) {
	case SEGMENTS_SEVERAL:
		packet_decrement_ttl(packet);
		if (mux->io->sends_whole && segment_stays_whole(packet, frame, &cut, overhead))
			emit_whole(mux, i, hop, &cut, from);
		else
			emit_segments(mux, i, hop, &cut, from);
		packet->length = came; /* with what a jumbo option took: so it is counted */
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
	const struct passage *passage = &mux->passages[i];
	const struct hop *hop = &mux->snapshot->hops[backend_hop(passage->backend)];
	struct link_addresses from;

	if (UNLIKELY(!hop->resolved)) {
		packet->reason = REASON_NO_NEXT_HOP;
		return;
	}
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

void mux_emit_burst(struct mux *mux, const struct frame *frames)
{
	for (unsigned i = 0; i < mux->count; i++)
		if (LIKELY(mux->packets[i].reason == REASON_FORWARDED))
			encap_packet(mux, i, &frames[i]);
	flush(mux);
}
