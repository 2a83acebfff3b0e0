/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What becomes of a packet that goes no further and may be answered, see mux_stages.h.  Answers are rare, by their rate limit, so
 * each is sent alone.
 */
#include <arpa/inet.h>
#include <string.h>

#include "mux/mux_stages.h"
#include "packet/icmp.h"

/* An own address that is not there is all zero. */
static const uint8_t *own_address(const struct mux *mux, uint8_t family)
{
	static const uint8_t none[16];
	const uint8_t *address = family == 4 ? mux->config.address : mux->config.address6;

	return memcmp(address, none, family == 4 ? 4 : 16) ? address : NULL;
}

/* An answer goes back to the neighbour that the packet came from, which knows the way.  TUN: the kernel does. */
static enum reason send_back(struct mux *mux, unsigned i, const struct frame *frame, uint8_t *ip, uint32_t length,
			     enum reason answered)
{
	struct frame out = { .data = ip, .len = length, .origin = (uint8_t)i };

	if (mux->config.link != MUX_LINK_NONE) {
		uint8_t from[6], to[6];

		memcpy(from, frame->data, sizeof(from));
		memcpy(to, frame->data + 6, sizeof(to));
		out.data -= ETHERNET_HEADER;
		out.len += ETHERNET_HEADER;
		memcpy(out.data, to, sizeof(to));
		memcpy(out.data + 6, from, sizeof(from));
		store16(out.data + 12, htons(mux->packets[i].family == 4 ? ETHERTYPE_IPV4 : ETHERTYPE_IPV6));
	}
	mux->io->ops->send(mux->io, &out, 1);
	return out.error ? REASON_SEND_FAILED : answered;
}

static bool may_answer_now(struct mux *mux, enum answer_kind kind)
{
	return answer_rate_takes(&mux->answer_rate, kind, mux_answers_per_second(mux), mux->now);
}

/* Memory of our own to write an answer to, with room before it for the link header. */
static uint8_t *answer_buffer(struct mux *mux)
{
	return mux->segments + SEGMENT_HEADROOM;
}
_Static_assert(ICMP_ANSWER_MAX <= SERVICE_MTU_MAX, "an answer fits in the buffer of a segment");

enum reason mux_answer_error(struct mux *mux, unsigned i, const struct frame *frame, const struct icmp_message *message,
			     const uint8_t *source, enum answer_kind kind, enum reason answered)
{
	struct packet *packet = &mux->packets[i];
	uint8_t *ip = answer_buffer(mux);
	uint32_t length;

	if (!source || !icmp_may_answer(packet))
		return packet->reason;
	if (!may_answer_now(mux, kind))
		return REASON_ANSWER_LIMITED;
	length = icmp_write_error(packet, message, source, mux->answer_id++, ip);
	return send_back(mux, i, frame, ip, length, answered);
}

static enum reason answer_echo(struct mux *mux, unsigned i, const struct frame *frame)
{
	struct packet *packet = &mux->packets[i];

	if (!may_answer_now(mux, ANSWER_ECHO))
		return REASON_ANSWER_LIMITED;
	icmp_turn_echo(packet, mux->answer_id++);
	return send_back(mux, i, frame, packet->ip, packet->length, REASON_ECHO);
}

static enum reason answer_time_exceeded(struct mux *mux, unsigned i, const struct frame *frame)
{
	uint8_t family = mux->packets[i].family;
	struct icmp_message message = { .type = family == 4 ? ICMP4_TIME_EXCEEDED : ICMP6_TIME_EXCEEDED };

	return mux_answer_error(mux, i, frame, &message, own_address(mux, family), ANSWER_OTHER, REASON_TIME_EXCEEDED);
}

static enum reason answer_reset(struct mux *mux, unsigned i, const struct frame *frame)
{
	struct packet *packet = &mux->packets[i];
	uint8_t *ip = answer_buffer(mux);
	uint32_t length;

	if (packet->flags & TCP_RST || !icmp_may_answer(packet))
		return packet->reason;
	if (!may_answer_now(mux, ANSWER_OTHER))
		return REASON_ANSWER_LIMITED;
	length = tcp_write_reset(packet, mux->answer_id++, ip);
	return send_back(mux, i, frame, ip, length, REASON_RESET);
}

/* As the VIP's own host would say it. */
static struct icmp_message unreachable(const struct packet *packet)
{
	bool four = packet->family == 4;

	switch (packet->reason) {
	case REASON_NO_SERVICE:
		return (struct icmp_message){ .type = four ? ICMP4_UNREACHABLE : ICMP6_UNREACHABLE,
					      .code = four ? ICMP4_PORT : ICMP6_PORT };
	case REASON_NO_BACKEND:
		return (struct icmp_message){ .type = four ? ICMP4_UNREACHABLE : ICMP6_UNREACHABLE,
					      .code = four ? ICMP4_HOST : ICMP6_ADDRESS };
	default: /* a protocol that nobody serves */
		if (four)
			return (struct icmp_message){ .type = ICMP4_UNREACHABLE, .code = ICMP4_PROTOCOL };
		return (struct icmp_message){ .type = ICMP6_PARAMETER, .code = ICMP6_NEXT_HEADER, .rest = icmp_next_header_at(packet) };
	}
}

static enum reason answer_unserved(struct mux *mux, unsigned i, const struct frame *frame)
{
	struct packet *packet = &mux->packets[i];
	struct icmp_message message;

	if (mux->config.unserved == UNSERVED_DROP)
		return packet->reason;
	if (mux->config.unserved == UNSERVED_RESET && packet->protocol == PROTOCOL_TCP)
		return answer_reset(mux, i, frame);
	message = unreachable(packet);
	return mux_answer_error(mux, i, frame, &message, packet_destination(packet), ANSWER_OTHER, REASON_UNREACHABLE);
}

/*
 * What does not fit and may not be cut on its way is told the sender, with what would fit (RFC 1191, 4; RFC 2003, 5.1; RFC 4443,
 * 3.2).  Of IPv6 nobody believes less than 1,280 (RFC 8201, 4).
 */
static enum reason answer_too_big(struct mux *mux, unsigned i, const struct frame *frame)
{
	const struct packet *packet = &mux->packets[i];
	uint32_t fits = mux_longest(mux, i);
	struct icmp_message message;

	if (packet->family == 4 && !(packet->ip[6] & 0x40))
		return packet->reason;
	if (packet->family == 4)
		message = (struct icmp_message){ .type = ICMP4_UNREACHABLE, .code = ICMP4_FRAGMENT, .rest = fits };
	else
		message = (struct icmp_message){ .type = ICMP6_TOO_BIG, .rest = fits < IPV6_MTU_MIN ? IPV6_MTU_MIN : fits };
	return mux_answer_error(mux, i, frame, &message, packet_destination(packet), ANSWER_TOO_BIG, REASON_FRAG_NEEDED);
}

enum reason mux_answer(struct mux *mux, unsigned i, const struct frame *frame)
{
	switch (mux->packets[i].reason) {
	case REASON_ECHO:
		return answer_echo(mux, i, frame);
	case REASON_TTL_EXPIRED:
		return answer_time_exceeded(mux, i, frame);
	case REASON_TOO_BIG:
		return answer_too_big(mux, i, frame);
	case REASON_NO_SERVICE:
	case REASON_NO_BACKEND:
	case REASON_BAD_PROTOCOL:
		return answer_unserved(mux, i, frame);
	default:
		return mux->packets[i].reason;
	}
}
