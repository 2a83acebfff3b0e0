/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Super-packets: what a sender's NIC offload (or its absence on a virtual link), or GRO on the way, left as one packet that
 * stands for several.  Who stands for what is said by the io; a capture does not say, but gives TCP away: no link carries
 * a packet larger than its MTU.
 *
 * Each segment has right checksums, so only what is known to be whole is cut: data whose checksum is still to be made, was
 * verified by a NIC or by GRO, or is right.  Whatever contradicts itself is no super-packet here, and too large like any.
 */
#ifndef VIPMUX_SEGMENT_H
#define VIPMUX_SEGMENT_H

#include <stdbool.h>
#include <stdint.h>

#include "packet/packet.h"

/* How a super-packet is cut.  Offsets are from its IP header. */
struct cut {
	uint32_t headers;   /* bytes that each segment has before its payload, all headers together */
	uint32_t size;      /* payload bytes of each segment; the last has what is left */
	uint16_t transport; /* of the TCP or UDP header whose payload is cut */
	uint16_t inner;     /* of the IP header before that, in a tunnel over UDP; 0: it is the packet's own */
	uint8_t protocol;   /* 6 or 17, of that transport */
	bool checksum;      /* it has one (UDP need not) */
};

enum segments {
	SEGMENTS_ONE,      /* the packet stands for itself alone */
	SEGMENTS_SEVERAL,
	SEGMENTS_TOO_BIG,  /* for several that do not fit, or it does not say rightly for which */
};

/*
 * What the packet stands for, by what its io says, and how it is cut then: as its sender wanted, never otherwise, so that
 * what becomes of packets does not depend on who merged them.  `fits`: the longest packet that may leave.  In a capture a
 * packet longer than `link` carries is cut to what fits.
 * May move the IP header of an IPv6 super-packet above 64 KiB: its jumbo payload option (RFC 2675) is not its segments'.
 */
enum segments segment_plan(struct packet *packet, const struct frame *frame, uint32_t fits, uint32_t link,
			   struct cut *out);

/*
 * Whether it may leave as it came, for whoever is last on its way to cut (see struct io's sends_whole): it is TCP, not in a
 * tunnel of its own, has its checksum left to be made and no urgent data, and is no longer than an IP header can say with
 * `overhead` bytes more.
 */
bool segment_stays_whole(const struct packet *packet, const struct frame *frame, const struct cut *cut, uint32_t overhead);

/* Of the frame in which it leaves: what its io is to know.  frame->data is set. */
void segment_mark_whole(const struct packet *packet, const struct cut *cut, struct frame *frame);

/* At least 2. */
uint32_t segment_count(const struct packet *packet, const struct cut *cut);

/*
 * Writes segment `n` (from 0) to out, IP header first, and returns its length: at most cut->headers + cut->size.  IDs
 * count up, lengths follow, checksums are right; one that a tunnel does without stays zero.  Of TCP, sequence number and
 * urgent pointer follow, CWR stays with the first, FIN and PSH with the last.
 */
uint32_t segment_write(const struct packet *packet, const struct cut *cut, uint32_t n, uint8_t *out);

#endif
