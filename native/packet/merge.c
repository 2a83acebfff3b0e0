/* SPDX-License-Identifier: Apache-2.0 */
/* See merge.h. */
#include "packet/merge.h"

#include <arpa/inet.h>
#include <stdlib.h>
#include <string.h>

#include "packet/packet.h"

#define PAYLOAD_LEAST 512u /* of a first segment: of less little is gained */
#define MERGED_MAX 65000u  /* IP packet: an outer header and a tap's number fit before it */
#define ROOM (192u << 10)  /* of a burst of full Ethernet frames, with what lies between super-packets */
#define IPV4_HEADER 20u    /* without options; a packet with options stays by itself */
#define IPV6_HEADER 40u
#define TCP_HEADER 20u
#define TCP_FIELD 16u /* where the checksum is */
#define NEVER_MADE 0xffff /* as a checksum: it is right where 0 is, which is what whoever cuts would write */

struct merge {
	uint8_t *memory;
	uint32_t used;
};

/* A frame that may be a part: what is where in it. */
struct segment {
	uint8_t *ip;
	uint8_t *tcp;
	uint32_t header;  /* bytes of IP and TCP header */
	uint32_t payload;
	uint8_t family;
};

/* What is being put together, in `frame`. */
struct group {
	struct frame *frame; /* NULL: nothing */
	struct segment first;
	uint32_t parts; /* 1: as it came */
	uint32_t payload;
};

static uint32_t load32(const uint8_t *at)
{
	uint32_t word;

	memcpy(&word, at, sizeof(word));
	return word;
}

static void put16(uint8_t *at, uint32_t value)
{
	store16(at, htons((uint16_t)value));
}

/* Length of the IP header of a packet that fills its frame, is no fragment and of TCP; else 0. */
static uint32_t ip_header(const uint8_t *ip, uint32_t length)
{
	bool fits;

	if (ip[0] == 0x45) {
		fits = ip[9] == PROTOCOL_TCP && load_be16(ip + 2) == length && !(load_be16(ip + 6) & 0x3fff) &&
		       load16(ip + 10) != NEVER_MADE && checksum_header20_holds(ip);
		return fits ? IPV4_HEADER : 0;
	}
	fits = ip[0] >> 4 == 6 && ip[6] == PROTOCOL_TCP && load_be16(ip + 4) == length - IPV6_HEADER;
	return fits ? IPV6_HEADER : 0;
}

/* Whether it has data and ACK, and none of the flags but PSH besides; with `least` bytes of data. */
static bool read_segment(const struct frame *frame, enum link_type link, uint32_t least, struct segment *out)
{
	uint32_t before = link == LINK_ETHERNET ? ETHERNET_HEADER : 0, header, length = frame->len - before;
	uint8_t *ip = frame->data + before, *tcp;

	if (frame->len < before + IPV4_HEADER + TCP_HEADER + least || frame->gso_size || frame->wire_len != frame->len)
		return false;
	header = ip_header(ip, length);
	out->family = ip[0] >> 4;
	if (!header || length < header + TCP_HEADER)
		return false;
	if (before && load_be16(ip - 2) != (out->family == 4 ? 0x0800 : 0x86dd))
		return false;
	tcp = ip + header;
	if ((tcp[13] & ~TCP_PSH) != TCP_ACK || tcp[12] & 15 || tcp[12] >> 4 < TCP_HEADER / 4)
		return false;
	header += (tcp[12] >> 4) * 4u;
	if (header + least > length)
		return false;
	out->ip = ip;
	out->tcp = tcp;
	out->header = header;
	out->payload = length - header;
	return true;
}

static uint64_t pseudo(const struct segment *segment, uint32_t payload)
{
	bool four = segment->family == 4;
	uint32_t length = payload + segment->header - (uint32_t)(segment->tcp - segment->ip);

	return checksum_pseudo(segment->ip + (four ? 12 : 8), segment->ip + (four ? 16 : 24), four ? 4 : 16, PROTOCOL_TCP,
			       length);
}

/* Its checksum is right, or would be made so. */
static bool is_sound(const struct segment *segment, const struct frame *frame, bool guess)
{
	size_t length = (size_t)(segment->ip + segment->header + segment->payload - segment->tcp);
	uint64_t sum = pseudo(segment, segment->payload);
	bool left = load16(segment->tcp + TCP_FIELD) == checksum_fold(sum); /* as senders leave it to the NIC */

	if (frame->csum_start)
		return left && frame->data + frame->csum_start == segment->tcp && frame->csum_offset == TCP_FIELD;
	if (guess && left)
		return true;
	return load16(segment->tcp + TCP_FIELD) != NEVER_MADE &&
	       (frame->offload & FRAME_VERIFIED || checksum_fold(checksum_add(segment->tcp, length, sum)) == 0xffff);
}

/* All that must be the same of both. */
static bool is_alike(const struct segment *a, const struct segment *b, enum link_type link)
{
	const uint8_t *x = a->ip, *y = b->ip;
	bool same;

	if (a->family != b->family || a->header != b->header)
		return false;
	if (link == LINK_ETHERNET && memcmp(x - ETHERNET_HEADER, y - ETHERNET_HEADER, ETHERNET_HEADER))
		return false;
	if (a->family == 4) /* version and TOS; DF, TTL and protocol; addresses */
		same = load16(x) == load16(y) && load32(x + 6) == load32(y + 6) && !memcmp(x + 12, y + 12, 8);
	else /* version, class and flow label; next header and hop limit; addresses */
		same = load32(x) == load32(y) && load16(x + 6) == load16(y + 6) && !memcmp(x + 8, y + 8, 32);
	x = a->tcp;
	y = b->tcp;
	/* Ports; acknowledgement; length; window; urgent pointer and options. */
	return same && load32(x) == load32(y) && load32(x + 8) == load32(y + 8) && x[12] == y[12] &&
	       load16(x + 14) == load16(y + 14) && !memcmp(x + 18, y + 18, a->header - (uint32_t)(a->tcp - a->ip) - 18);
}

static bool follows(const struct group *group, const struct segment *segment, enum link_type link)
{
	const struct segment *first = &group->first;
	uint32_t length = first->header + group->payload + segment->payload;

	return segment->payload <= first->payload && length <= MERGED_MAX &&
	       ntohl(load32(segment->tcp + 4)) == ntohl(load32(first->tcp + 4)) + group->payload &&
	       (first->family == 6 ||
		load_be16(segment->ip + 4) == (uint16_t)(load_be16(first->ip + 4) + group->parts)) &&
	       is_alike(first, segment, link);
}

/* Memory for a super-packet that begins with so many bytes; false: there is no more. */
static bool make_room(struct merge *merge, struct group *group, uint32_t link_bytes)
{
	uint32_t bytes = link_bytes + group->first.header + group->payload, at = (merge->used + 63) & ~63u;
	uint8_t *data = merge->memory + at + IO_HEADROOM;

	if (at + IO_HEADROOM + bytes > ROOM)
		return false;
	memcpy(data, group->frame->data, bytes);
	group->frame->data = data;
	group->frame->headroom = IO_HEADROOM;
	group->first.tcp = data + link_bytes + (group->first.tcp - group->first.ip);
	group->first.ip = data + link_bytes;
	merge->used = at + IO_HEADROOM + bytes;
	return true;
}

/* False: there is no room for it. */
static bool add(struct merge *merge, struct group *group, const struct segment *segment, uint32_t link_bytes)
{
	if (group->parts == 1 && !make_room(merge, group, link_bytes))
		return false;
	if (merge->used + segment->payload > ROOM)
		return false;
	memcpy(merge->memory + merge->used, segment->ip + segment->header, segment->payload);
	merge->used += segment->payload;
	group->first.tcp[13] |= segment->tcp[13] & TCP_PSH;
	group->payload += segment->payload;
	group->parts++;
	return true;
}

/* What is in the group becomes right, if it is of several. */
static void finish(struct group *group, uint32_t link_bytes)
{
	struct segment *first = &group->first;
	struct frame *frame = group->frame;
	uint32_t length = first->header + group->payload;

	group->frame = NULL;
	if (!frame || group->parts == 1)
		return;
	if (first->family == 4) {
		put16(first->ip + 2, length);
		store16(first->ip + 10, 0);
		store16(first->ip + 10, (uint16_t)~checksum_fold(checksum_add(first->ip, IPV4_HEADER, 0)));
	} else {
		put16(first->ip + 4, length - IPV6_HEADER);
	}
	store16(first->tcp + TCP_FIELD, checksum_fold(pseudo(first, group->payload)));
	frame->len = frame->wire_len = link_bytes + length;
	frame->gso_size = (uint16_t)first->payload;
	frame->csum_start = (uint16_t)(first->tcp - frame->data);
	frame->csum_offset = TCP_FIELD;
	frame->offload = FRAME_TOLD | FRAME_MERGED;
}

static void begin(struct group *group, struct frame *frame, const struct segment *segment)
{
	*group = (struct group){ .frame = frame, .first = *segment, .parts = 1, .payload = segment->payload };
}

unsigned merge_burst(struct merge *merge, enum link_type link, bool guess, struct frame *frames, unsigned count)
{
	uint32_t link_bytes = link == LINK_ETHERNET ? ETHERNET_HEADER : 0;
	struct group group = { .frame = NULL };
	struct segment segment;
	unsigned left = 0;

	merge->used = 0;
	for (unsigned i = 0; i < count; i++) {
		bool may = read_segment(&frames[i], link, group.frame ? 1 : PAYLOAD_LEAST, &segment) &&
			   is_sound(&segment, &frames[i], guess);
		bool ends = may && segment.tcp[13] & TCP_PSH;

		if (may && group.frame && follows(&group, &segment, link) && add(merge, &group, &segment, link_bytes)) {
			if (ends || segment.payload < group.first.payload)
				finish(&group, link_bytes);
			continue;
		}
		finish(&group, link_bytes);
		frames[left] = frames[i];
		if (may && !ends && segment.payload >= PAYLOAD_LEAST)
			begin(&group, &frames[left], &segment);
		left++;
	}
	finish(&group, link_bytes);
	return left;
}

struct merge *merge_create(void)
{
	struct merge *merge = malloc(sizeof(*merge));

	if (!merge)
		return NULL;
	*merge = (struct merge){ .memory = malloc(ROOM) };
	if (merge->memory)
		return merge;
	free(merge);
	return NULL;
}

void merge_destroy(struct merge *merge)
{
	if (merge)
		free(merge->memory);
	free(merge);
}
