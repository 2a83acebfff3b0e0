/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where the datagrams go of which fragments are under way.  Only the first fragment has ports, by which the flow is found; what becomes
 * of it is noted here by what all fragments have (RFC 791, 3.2; RFC 8200, 4.5), and the others follow it.  One that comes before
 * the first is kept until that comes, and then goes through the pipeline as if it came now.
 *
 * One table is of all workers of a MUX, because fragments may come to another one than whole packets of their flow do; it has a lock,
 * which nothing but fragments takes.  All is bounded: DATAGRAMS under way, of which the oldest makes room, FRAGMENT_SECONDS of life, and
 * the bytes that are kept.  What the bounds take is counted by whoever calls fragments_expire() next.
 *
 * Each byte of a datagram comes once: what is there already is a duplicate and goes nowhere, and what is there in part ends the
 * datagram (RFC 5722; RFC 8200, 4.5), so that nobody reassembles what was never looked at.
 */
#ifndef VIPMUX_FRAGMENTS_H
#define VIPMUX_FRAGMENTS_H

#include <stdbool.h>
#include <stdint.h>

#include "flow/flow.h"
#include "machine/io.h"
#include "packet/fragment.h"

#define DATAGRAMS 2048u
#define FRAGMENT_SECONDS 2u    /* from a datagram's first fragment to its last: they leave the sender together */
#define FRAGMENT_SPANS 16u     /* gaps of one datagram, and one more */
#define FRAGMENTS_KEPT_MAX 64u /* of one datagram, before its first came */

struct fragments;

/* Where a datagram's fragments go. */
struct fragment_way {
	uint64_t hash; /* of its flow */
	uint32_t service;
	uint16_t backend;
};

enum fragment_verdict {
	FRAGMENT_GOES,     /* the way is known */
	FRAGMENT_WAITS,    /* a copy is kept until the first comes */
	FRAGMENT_OVERLAPS, /* in part what is there already, or of a datagram of which one was; or beyond its end; or all there already */
	FRAGMENT_IS_ALONE, /* the way is not known, and nothing is kept (any more) */
};

/* A frame that waited, with headroom before it; free() ends it. */
struct kept_fragment {
	struct kept_fragment *next;
	uint32_t len;
	uint8_t bytes[]; /* IO_HEADROOM, then the frame from its link header on */
};

/* keep: bytes of frames that may wait for their first, 0: none does.  With a reference.  -ENOMEM. */
int fragments_create(uint32_t keep, struct fragments **out);
struct fragments *fragments_get(struct fragments *fragments);
void fragments_put(struct fragments *fragments);

/*
 * The first fragment of a datagram, whose way has been found.  *released: those that waited for it, in the order in which they came, NULL:
 * none; they are the caller's then.  now: ns of a clock that all callers share.
 */
enum fragment_verdict fragments_first(struct fragments *fragments, const struct flow_seed *seed, const struct packet *packet,
				      const struct fragment *fragment, const struct fragment_way *way, uint64_t now,
				      struct kept_fragment **released);

/* A later one.  FRAGMENT_GOES: *way is it.  frame: what is copied where it waits. */
enum fragment_verdict fragments_later(struct fragments *fragments, const struct flow_seed *seed, const struct packet *packet,
				      const struct fragment *fragment, const struct frame *frame, uint64_t now,
				      struct fragment_way *way);

/* Forgets what is too old; returns how many frames waited in vain since the last call. */
uint64_t fragments_expire(struct fragments *fragments, uint64_t now);

/* Bytes that wait now. */
uint64_t fragments_kept(struct fragments *fragments);

#endif
