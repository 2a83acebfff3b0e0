/* SPDX-License-Identifier: Apache-2.0 */
/* See fragments.h. */
#include "mux/fragments.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define BUCKETS (2 * DATAGRAMS)
#define NOBODY UINT16_MAX
#define LIFE (FRAGMENT_SECONDS * 1000000000ull)
_Static_assert(DATAGRAMS < NOBODY, "a datagram's number fits");

/* Bytes of a datagram, the end not included. */
struct span {
	uint32_t from, to;
};

enum state {
	STATE_FREE = 0,
	STATE_WAITING, /* for the first fragment */
	STATE_DECIDED,
	STATE_SPOILT,
};

struct datagram {
	struct flow_tuple key; /* see key_of() */
	uint64_t began;
	struct fragment_way way;
	struct kept_fragment *kept, **kept_end;
	uint32_t length; /* of the payload; 0: its last fragment has not come */
	uint16_t bucket, next; /* in its bucket */
	uint8_t state, spans, kept_count;
	struct span span[FRAGMENT_SPANS];
};

/* Datagrams live equally long, so the next place to be used is that of the oldest. */
struct fragments {
	pthread_mutex_t lock;
	uint32_t references; /* atomic */
	uint32_t keep, kept; /* bytes */
	uint64_t alone;      /* kept in vain, not told yet */
	uint32_t next;       /* place for the next datagram */
	uint32_t oldest;     /* none between this and next is older */
	uint16_t buckets[BUCKETS];
	struct datagram datagrams[DATAGRAMS];
};

/* ---- life ---- */

int fragments_create(uint32_t keep, struct fragments **out)
{
	struct fragments *fragments = calloc(1, sizeof(*fragments));

	if (!fragments)
		return -ENOMEM;
	pthread_mutex_init(&fragments->lock, NULL);
	fragments->references = 1;
	fragments->keep = keep;
	memset(fragments->buckets, 0xff, sizeof(fragments->buckets));
	*out = fragments;
	return 0;
}

struct fragments *fragments_get(struct fragments *fragments)
{
	__atomic_fetch_add(&fragments->references, 1, __ATOMIC_RELAXED);
	return fragments;
}

static void release_kept(struct fragments *fragments, struct datagram *datagram)
{
	while (datagram->kept) {
		struct kept_fragment *kept = datagram->kept;

		datagram->kept = kept->next;
		fragments->kept -= kept->len;
		fragments->alone++;
		free(kept);
	}
	datagram->kept_end = &datagram->kept;
	datagram->kept_count = 0;
}

void fragments_put(struct fragments *fragments)
{
	if (!fragments || __atomic_sub_fetch(&fragments->references, 1, __ATOMIC_ACQ_REL))
		return;
	for (uint32_t i = 0; i < DATAGRAMS; i++)
		release_kept(fragments, &fragments->datagrams[i]);
	pthread_mutex_destroy(&fragments->lock);
	free(fragments);
}

/* ---- datagrams ---- */

/* What all fragments of a datagram have: the ID stands where ports are; of IPv6 the protocol is the first one's alone. */
static struct flow_tuple key_of(const struct packet *packet, const struct fragment *fragment)
{
	size_t size = packet->family == 4 ? 4 : 16;
	struct flow_tuple key = { .source_port = (uint16_t)(fragment->id >> 16),
				  .destination_port = (uint16_t)fragment->id,
				  .protocol = packet->family == 4 ? fragment->protocol : 0,
				  .family = packet->family };

	memcpy(key.source, packet_source(packet), size);
	memcpy(key.destination, packet_destination(packet), size);
	return key;
}

static void forget(struct fragments *fragments, struct datagram *datagram)
{
	uint16_t number = (uint16_t)(datagram - fragments->datagrams), *link = &fragments->buckets[datagram->bucket];

	if (datagram->state == STATE_FREE)
		return;
	while (*link != number)
		link = &fragments->datagrams[*link].next;
	*link = datagram->next;
	release_kept(fragments, datagram);
	datagram->state = STATE_FREE;
}

static void expire(struct fragments *fragments, uint64_t now)
{
	while (fragments->oldest != fragments->next) {
		struct datagram *datagram = &fragments->datagrams[fragments->oldest % DATAGRAMS];

		/* Workers' clocks are read at different times: one may be a little behind. */
		if (datagram->state != STATE_FREE && (now < datagram->began || now - datagram->began < LIFE))
			return;
		forget(fragments, datagram);
		fragments->oldest++;
	}
}

static struct datagram *find(struct fragments *fragments, uint16_t bucket, const struct flow_tuple *key)
{
	for (uint16_t number = fragments->buckets[bucket]; number != NOBODY; number = fragments->datagrams[number].next)
		if (memcmp(&fragments->datagrams[number].key, key, sizeof(*key)) == 0)
			return &fragments->datagrams[number];
	return NULL;
}

static struct datagram *begin(struct fragments *fragments, uint16_t bucket, const struct flow_tuple *key, uint64_t now)
{
	struct datagram *datagram = &fragments->datagrams[fragments->next % DATAGRAMS];

	if (fragments->next - fragments->oldest == DATAGRAMS)
		fragments->oldest++;
	fragments->next++;
	forget(fragments, datagram);
	*datagram = (struct datagram){ .key = *key, .began = now, .bucket = bucket, .next = fragments->buckets[bucket],
				       .state = STATE_WAITING };
	datagram->kept_end = &datagram->kept;
	fragments->buckets[bucket] = (uint16_t)(datagram - fragments->datagrams);
	return datagram;
}

static struct datagram *find_or_begin(struct fragments *fragments, const struct flow_seed *seed, const struct packet *packet,
				      const struct fragment *fragment, uint64_t now)
{
	struct flow_tuple key = key_of(packet, fragment);
	uint16_t bucket = (uint16_t)(flow_tuple_hash(seed, &key, false) % BUCKETS);
	struct datagram *found = find(fragments, bucket, &key);

	return found ? found : begin(fragments, bucket, &key, now);
}

/* ---- what has come of one ---- */

enum added {
	ADDED,
	ADDED_TWICE, /* it was all there */
	ADDED_PARTLY,
	ADDED_NOWHERE, /* more gaps than are noted */
};

static void remove_span(struct datagram *datagram, unsigned at)
{
	datagram->span[at] = datagram->span[--datagram->spans];
}

static enum added add_span(struct datagram *datagram, struct span new)
{
	for (unsigned i = 0; i < datagram->spans; i++) {
		struct span span = datagram->span[i];

		if (new.from >= span.from && new.to <= span.to)
			return ADDED_TWICE;
		if (new.from < span.to && new.to > span.from)
			return ADDED_PARTLY;
	}
	for (unsigned i = 0; i < datagram->spans;) {
		struct span span = datagram->span[i];

		if (span.to != new.from && span.from != new.to) {
			i++;
			continue;
		}
		new = (struct span){ span.from < new.from ? span.from : new.from, span.to > new.to ? span.to : new.to };
		remove_span(datagram, i);
	}
	if (datagram->spans == FRAGMENT_SPANS)
		return ADDED_NOWHERE;
	datagram->span[datagram->spans++] = new;
	return ADDED;
}

/* Whether the end that a last fragment says, or that has been said, agrees with what has come. */
static bool ends_well(struct datagram *datagram, const struct fragment *fragment)
{
	uint32_t to = fragment->offset + fragment->size;

	if (!fragment->more) {
		if (datagram->length && datagram->length != to)
			return false;
		datagram->length = to;
		for (unsigned i = 0; i < datagram->spans; i++)
			if (datagram->span[i].to > to)
				return false;
	}
	return !datagram->length || to <= datagram->length;
}

/* Notes the fragment; false: it may not go on. */
static bool note(struct fragments *fragments, struct datagram *datagram, const struct fragment *fragment)
{
	enum added added = ADDED_PARTLY;

	if (datagram->state == STATE_SPOILT)
		return false;
	if (ends_well(datagram, fragment))
		added = add_span(datagram, (struct span){ fragment->offset, fragment->offset + fragment->size });
	if (added == ADDED_PARTLY) {
		release_kept(fragments, datagram);
		datagram->state = STATE_SPOILT;
	}
	return added == ADDED;
}

/* All of it has gone on: its ID may come again. */
static void forget_complete(struct fragments *fragments, struct datagram *datagram)
{
	if (datagram->state == STATE_DECIDED && datagram->length && datagram->spans == 1 &&
	    datagram->span[0].from == 0 && datagram->span[0].to == datagram->length)
		forget(fragments, datagram);
}

/* ---- the two kinds ---- */

enum fragment_verdict fragments_first(struct fragments *fragments, const struct flow_seed *seed, const struct packet *packet,
				      const struct fragment *fragment, const struct fragment_way *way, uint64_t now,
				      struct kept_fragment **released)
{
	struct datagram *datagram;
	bool goes;

	*released = NULL;
	pthread_mutex_lock(&fragments->lock);
	expire(fragments, now);
	datagram = find_or_begin(fragments, seed, packet, fragment, now);
	goes = note(fragments, datagram, fragment);
	if (goes) {
		datagram->state = STATE_DECIDED;
		datagram->way = *way;
		*released = datagram->kept;
		for (struct kept_fragment *kept = datagram->kept; kept; kept = kept->next)
			fragments->kept -= kept->len;
		/* They come again, and are noted then. */
		if (datagram->kept) {
			datagram->kept = NULL;
			datagram->kept_end = &datagram->kept;
			datagram->spans = 0;
			add_span(datagram, (struct span){ 0, fragment->size });
		}
		forget_complete(fragments, datagram);
	}
	pthread_mutex_unlock(&fragments->lock);
	return goes ? FRAGMENT_GOES : FRAGMENT_OVERLAPS;
}

/* Keeps a copy; false: there is no room. */
static bool keep(struct fragments *fragments, struct datagram *datagram, const struct frame *frame)
{
	struct kept_fragment *kept;

	if (frame->len > fragments->keep - fragments->kept || datagram->kept_count == FRAGMENTS_KEPT_MAX)
		return false;
	kept = malloc(sizeof(*kept) + IO_HEADROOM + frame->len);
	if (!kept)
		return false;
	*kept = (struct kept_fragment){ .len = frame->len };
	memcpy(kept->bytes + IO_HEADROOM, frame->data, frame->len);
	*datagram->kept_end = kept;
	datagram->kept_end = &kept->next;
	datagram->kept_count++;
	fragments->kept += frame->len;
	return true;
}

enum fragment_verdict fragments_later(struct fragments *fragments, const struct flow_seed *seed, const struct packet *packet,
				      const struct fragment *fragment, const struct frame *frame, uint64_t now,
				      struct fragment_way *way)
{
	enum fragment_verdict verdict = FRAGMENT_OVERLAPS;
	struct datagram *datagram;

	pthread_mutex_lock(&fragments->lock);
	expire(fragments, now);
	datagram = find_or_begin(fragments, seed, packet, fragment, now);
	if (note(fragments, datagram, fragment)) {
		if (datagram->state == STATE_DECIDED) {
			*way = datagram->way;
			verdict = FRAGMENT_GOES;
			forget_complete(fragments, datagram);
		} else {
			verdict = keep(fragments, datagram, frame) ? FRAGMENT_WAITS : FRAGMENT_IS_ALONE;
		}
	}
	pthread_mutex_unlock(&fragments->lock);
	return verdict;
}

uint64_t fragments_expire(struct fragments *fragments, uint64_t now)
{
	uint64_t alone;

	pthread_mutex_lock(&fragments->lock);
	expire(fragments, now);
	alone = fragments->alone;
	fragments->alone = 0;
	pthread_mutex_unlock(&fragments->lock);
	return alone;
}

uint64_t fragments_kept(struct fragments *fragments)
{
	uint64_t kept;

	pthread_mutex_lock(&fragments->lock);
	kept = fragments->kept;
	pthread_mutex_unlock(&fragments->lock);
	return kept;
}
