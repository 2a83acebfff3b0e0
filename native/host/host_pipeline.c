/* SPDX-License-Identifier: Apache-2.0 */
/* See host_pipeline.h.  bpf/decap.c is the same as a BPF program: whoever changes a check changes both. */
#include "host/host_pipeline.h"

#include <errno.h>
#include <netinet/in.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "host/host_reason.h"
#include "machine/io.h"
#include "packet/checksum.h"

#define IPV4_HEADER 20u
#define IPV6_HEADER 40u
#define UDP_HEADER 8u
#define GUE_HEADER 4u

/* An inclusive range of addresses; a set is an array of them, sorted and disjoint. */
struct range {
	uint8_t first[16];
	uint8_t last[16];
};

struct host_rules {
	struct range *muxes;
	struct range *vips;
	uint32_t mux_count;
	uint32_t vip_count;
};

struct host {
	struct pipeline pipeline;
	struct host_rules *rules;             /* the worker's */
	_Atomic(struct host_rules *) pending; /* handed over, not yet taken */
	_Atomic uint64_t counts[HOST_REASON_COUNT]; /* written by the worker alone */
};

/* ---- the list of reasons ---- */

static const struct {
	const char *name;
	const char *sentence;
	uint32_t drops;
} REASON_TEXTS[HOST_REASON_COUNT] = {
#define X(NAME, name, drops, sentence) { name, sentence, drops },
	HOST_REASONS(X)
#undef X
};

uint32_t host_reason_count(void)
{
	return HOST_REASON_COUNT;
}

const char *host_reason_name(uint32_t reason)
{
	return reason < HOST_REASON_COUNT ? REASON_TEXTS[reason].name : NULL;
}

const char *host_reason_sentence(uint32_t reason)
{
	return reason < HOST_REASON_COUNT ? REASON_TEXTS[reason].sentence : NULL;
}

uint32_t host_reason_drops(uint32_t reason)
{
	return reason < HOST_REASON_COUNT && REASON_TEXTS[reason].drops;
}

/* ---- sets of addresses ---- */

static void range_from_prefix(const struct host_prefix *prefix, struct range *out)
{
	for (unsigned i = 0; i < 16; i++) {
		unsigned bits = prefix->length <= i * 8 ? 0 : prefix->length - i * 8;
		uint8_t mask = bits >= 8 ? 0xff : (uint8_t)(0xff00u >> bits);

		out->first[i] = prefix->address[i] & mask;
		out->last[i] = (uint8_t)(prefix->address[i] | (uint8_t)~mask);
	}
}

static int compare_ranges(const void *a, const void *b)
{
	return memcmp(((const struct range *)a)->first, ((const struct range *)b)->first, 16);
}

/* Prefixes either nest or are disjoint, so after sorting a range lies within the last one kept, or beyond it. */
static int set_create(const struct host_prefix *prefixes, uint32_t count, struct range **out, uint32_t *out_count)
{
	struct range *set = calloc(count ? count : 1, sizeof(*set));
	uint32_t kept = 0;

	if (!set)
		return -ENOMEM;
	for (uint32_t i = 0; i < count; i++)
		range_from_prefix(&prefixes[i], &set[i]);
	qsort(set, count, sizeof(*set), compare_ranges);
	for (uint32_t i = 0; i < count; i++) {
		if (kept && memcmp(set[i].first, set[kept - 1].first, 16) == 0) {
			if (memcmp(set[i].last, set[kept - 1].last, 16) > 0)
				set[kept - 1] = set[i];
			continue;
		}
		if (kept && memcmp(set[i].last, set[kept - 1].last, 16) <= 0)
			continue;
		set[kept++] = set[i];
	}
	*out = set;
	*out_count = kept;
	return 0;
}

static bool set_has(const struct range *set, uint32_t count, const uint8_t address[16])
{
	uint32_t low = 0, high = count;

	while (low < high) { /* the last range that begins at or before the address */
		uint32_t middle = low + (high - low) / 2;

		if (memcmp(set[middle].first, address, 16) <= 0)
			low = middle + 1;
		else
			high = middle;
	}
	return low > 0 && memcmp(address, set[low - 1].last, 16) <= 0;
}

int host_rules_create(const struct host_prefix *muxes, uint32_t mux_count, const struct host_prefix *vips,
		      uint32_t vip_count, struct host_rules **out)
{
	struct host_rules *rules = calloc(1, sizeof(*rules));
	int rc;

	if (!rules)
		return -ENOMEM;
	rc = set_create(muxes, mux_count, &rules->muxes, &rules->mux_count);
	if (!rc)
		rc = set_create(vips, vip_count, &rules->vips, &rules->vip_count);
	if (rc) {
		host_rules_destroy(rules);
		return rc;
	}
	*out = rules;
	return 0;
}

void host_rules_destroy(struct host_rules *rules)
{
	if (!rules)
		return;
	free(rules->muxes);
	free(rules->vips);
	free(rules);
}

/* ---- one packet ---- */

static uint16_t load16(const uint8_t *p)
{
	return (uint16_t)(p[0] << 8 | p[1]);
}

/* An address of a packet as those of sets are. */
static void load_address(uint8_t family, const uint8_t *at, uint8_t out[16])
{
	memset(out, 0, 10);
	out[10] = out[11] = 0xff;
	if (family == 4)
		memcpy(out + 12, at, 4);
	else
		memcpy(out, at, 16);
}

/* What is around the inner packet. */
struct outer {
	uint8_t family;
	uint8_t ecn;
	uint8_t inner;    /* 4 or 6: the family of the packet inside */
	uint32_t length;  /* from the outer header on, as that says */
	uint32_t headers; /* of that, what is before the inner packet */
};

/* In UDP: behind four bytes that name it, or it names itself by its version.  Leaves inner and headers. */
static enum host_reason check_gue(struct outer *outer, const uint8_t *udp)
{
	const uint8_t *gue = udp + UDP_HEADER;

	if (outer->length < outer->headers + UDP_HEADER + GUE_HEADER || outer->headers + load16(udp + 4) != outer->length)
		return HOST_OUTER_LENGTH;
	if (load16(udp + 6))
		return HOST_GUE_MALFORMED;
	outer->headers += UDP_HEADER;
	outer->inner = gue[0] >> 4;
	if (gue[0])
		return outer->inner == 4 || outer->inner == 6 ? HOST_DECAPSULATED : HOST_GUE_MALFORMED;
	outer->headers += GUE_HEADER;
	outer->inner = gue[1] == IPPROTO_IPIP ? 4 : 6;
	return !load16(gue + 2) && (gue[1] == IPPROTO_IPIP || gue[1] == IPPROTO_IPV6) ? HOST_DECAPSULATED : HOST_GUE_MALFORMED;
}

static enum host_reason check_ipv4(const struct frame *frame, struct outer *outer, uint8_t *protocol)
{
	const uint8_t *ip = frame->data;

	if (ip[0] != 0x45)
		return HOST_OUTER_OPTIONS;
	if (load16(ip + 6) & 0x3fff)
		return HOST_OUTER_FRAGMENT;
	if (checksum_fold(checksum_add(ip, IPV4_HEADER, 0)) != 0xffff)
		return HOST_OUTER_CHECKSUM;
	*protocol = ip[9];
	outer->ecn = ip[1] & 3;
	outer->headers = IPV4_HEADER;
	outer->length = load16(ip + 2);
	return outer->length > frame->len ? HOST_OUTER_LENGTH : HOST_DECAPSULATED;
}

static enum host_reason check_ipv6(const struct frame *frame, struct outer *outer, uint8_t *protocol)
{
	const uint8_t *ip = frame->data;

	*protocol = ip[6];
	outer->ecn = ip[1] >> 4 & 3;
	outer->headers = IPV6_HEADER;
	outer->length = IPV6_HEADER + load16(ip + 4);
	return outer->length > frame->len ? HOST_OUTER_LENGTH : HOST_DECAPSULATED;
}

static enum host_reason check_outer(const struct host_rules *rules, const struct frame *frame, struct outer *outer)
{
	const uint8_t *ip = frame->data;
	uint8_t source[16], protocol = 0;
	enum host_reason reason;

	outer->family = frame->len ? ip[0] >> 4 : 0;
	if ((outer->family != 4 && outer->family != 6) || frame->len < (outer->family == 4 ? IPV4_HEADER : IPV6_HEADER))
		return HOST_OUTER_OPTIONS;
	load_address(outer->family, ip + (outer->family == 4 ? 12 : 8), source);
	if (!set_has(rules->muxes, rules->mux_count, source))
		return HOST_UNTRUSTED_SOURCE;
	reason = outer->family == 4 ? check_ipv4(frame, outer, &protocol) : check_ipv6(frame, outer, &protocol);
	if (reason != HOST_DECAPSULATED)
		return reason;
	if (protocol == IPPROTO_UDP)
		return check_gue(outer, ip + outer->headers);
	outer->inner = protocol == IPPROTO_IPIP ? 4 : 6;
	return protocol == IPPROTO_IPIP || protocol == IPPROTO_IPV6 ? HOST_DECAPSULATED : HOST_OUTER_OPTIONS;
}

/* What the inner header says that the packet has, 0 where it contradicts itself. */
static uint32_t inner_length(const uint8_t *ip, uint8_t family, uint32_t present)
{
	uint32_t length;

	if (present < (family == 4 ? IPV4_HEADER : IPV6_HEADER) || ip[0] >> 4 != family)
		return 0;
	if (family == 6)
		return IPV6_HEADER + load16(ip + 4);
	length = load16(ip + 2);
	return (ip[0] & 15) < 5 || length < (ip[0] & 15) * 4u ? 0 : length;
}

/* On success the frame begins at the inner header and ends where the inner packet does. */
static enum host_reason strip_outer(struct frame *frame, const struct outer *outer)
{
	uint8_t *inner = frame->data + outer->headers;
	uint32_t present = outer->length > outer->headers ? outer->length - outer->headers : 0;
	uint32_t length = inner_length(inner, outer->inner, present);

	if (!length || length > present)
		return HOST_INNER_MALFORMED;
	if (!inner[outer->inner == 4 ? 8 : 7])
		return HOST_INNER_EXPIRED;
	/* What was left to a NIC is inside, or not ours to finish: see complete_checksum(). */
	frame->csum_start = frame->csum_start > outer->headers ? (uint16_t)(frame->csum_start - outer->headers) : 0;
	frame->data = inner;
	frame->headroom += (uint16_t)outer->headers;
	frame->len = length;
	frame->wire_len = length;
	return HOST_DECAPSULATED;
}

static void set_ecn(uint8_t *ip, uint8_t ecn)
{
	uint16_t before, after, check;

	memcpy(&before, ip, 2);
	if (ip[0] >> 4 == 6) {
		ip[1] = (uint8_t)((ip[1] & 0xcf) | ecn << 4);
		return;
	}
	ip[1] = (ip[1] & 0xfc) | ecn;
	memcpy(&after, ip, 2);
	memcpy(&check, ip + 10, 2);
	check = checksum_replace(check, before, after);
	memcpy(ip + 10, &check, 2);
}

/* RFC 6040, 4.2; see emit_combine_ecn() in bpf/decap.c. */
static enum host_reason combine_ecn(uint8_t outside, uint8_t *inner)
{
	uint8_t inside = inner[0] >> 4 == 6 ? inner[1] >> 4 & 3 : inner[1] & 3;

	if (outside == 3 && inside == 0)
		return HOST_ECN_MISMATCH;
	if (outside == 3 && inside != 3)
		set_ecn(inner, 3);
	else if (outside == 1 && inside == 2)
		set_ecn(inner, 1);
	return HOST_DECAPSULATED;
}

/*
 * A sender on the same machine, or a virtual NIC, may leave a checksum to hardware that the packet never met.  An io that
 * knows says which (of a tunnel inside, perhaps).  The raw socket does not, but where it is the transport's the value does:
 * the field holds the sum of the pseudo-header; a finished checksum that happens to have it is only computed again to the
 * same result.
 */
static void complete_checksum(struct frame *frame)
{
	uint8_t *ip = frame->data;
	bool four = ip[0] >> 4 == 4;
	uint32_t header = four ? (ip[0] & 15) * 4u : IPV6_HEADER, segment = frame->len - header;
	uint8_t protocol = ip[four ? 9 : 6];
	uint32_t at = protocol == IPPROTO_TCP ? 16 : 6;
	uint16_t check, pseudo;

	if (frame->csum_start) {
		checksum_finish(ip, frame->len, header, frame->csum_start, frame->csum_offset);
		return;
	}

	if (four && load16(ip + 6) & 0x3fff)
		return; /* a fragment: the sender had to finish it */
	if (protocol == IPPROTO_TCP ? segment < 20 : (protocol != IPPROTO_UDP || segment < 8))
		return;
	memcpy(&check, ip + header + at, 2);
	pseudo = checksum_fold(checksum_pseudo(ip + (four ? 12 : 8), ip + (four ? 16 : 24), four ? 4 : 16, protocol, segment));
	if (check != pseudo || (protocol == IPPROTO_UDP && check == 0))
		return;
	checksum_finish(ip, frame->len, header, header, at);
}

static enum host_reason decapsulate(const struct host_rules *rules, struct frame *frame)
{
	struct outer outer = { 0 };
	enum host_reason reason = check_outer(rules, frame, &outer);
	uint8_t destination[16];

	if (reason != HOST_DECAPSULATED)
		return reason;
	reason = strip_outer(frame, &outer);
	if (reason != HOST_DECAPSULATED)
		return reason;
	load_address(outer.inner, frame->data + (outer.inner == 4 ? 16 : 24), destination);
	if (!set_has(rules->vips, rules->vip_count, destination))
		return HOST_INNER_NOT_VIP;
	reason = combine_ecn(outer.ecn, frame->data);
	if (reason != HOST_DECAPSULATED)
		return reason;
	complete_checksum(frame);
	return HOST_DECAPSULATED;
}

/* ---- the pipeline ---- */

static void count(struct host *host, enum host_reason reason, uint64_t more)
{
	uint64_t now = atomic_load_explicit(&host->counts[reason], memory_order_relaxed);

	atomic_store_explicit(&host->counts[reason], now + more, memory_order_relaxed);
}

static void take_pending_rules(struct host *host)
{
	struct host_rules *fresh;

	if (!atomic_load_explicit(&host->pending, memory_order_relaxed))
		return;
	fresh = atomic_exchange_explicit(&host->pending, NULL, memory_order_acquire);
	if (!fresh)
		return;
	host_rules_destroy(host->rules); /* once per reload, not per packet */
	host->rules = fresh;
}

static void host_burst(struct pipeline *pipeline, const struct snapshot *snapshot, struct io *io,
		       struct frame *frames, unsigned number, uint64_t now_ns)
{
	struct host *host = (struct host *)pipeline;
	struct frame out[BURST_MAX];
	unsigned ready = 0, failed = 0;

	(void)snapshot;
	(void)now_ns;
	take_pending_rules(host);
	for (unsigned i = 0; i < number; i++) {
		enum host_reason reason = decapsulate(host->rules, &frames[i]);

		if (reason != HOST_DECAPSULATED) {
			count(host, reason, 1);
			continue;
		}
		out[ready] = frames[i];
		out[ready].origin = (uint8_t)i;
		out[ready++].error = 0;
	}
	if (!ready)
		return;
	io->ops->send(io, out, ready);
	for (unsigned i = 0; i < ready; i++)
		failed += out[i].error != 0;
	count(host, HOST_DECAPSULATED, ready - failed);
	count(host, HOST_DECAP_FAILED, failed);
}

static void host_tick(struct pipeline *pipeline, const struct snapshot *snapshot, uint64_t now_ns)
{
	(void)snapshot;
	(void)now_ns;
	take_pending_rules((struct host *)pipeline);
}

static void host_free(struct pipeline *pipeline)
{
	struct host *host = (struct host *)pipeline;

	host_rules_destroy(atomic_exchange_explicit(&host->pending, NULL, memory_order_acquire));
	host_rules_destroy(host->rules);
	free(host);
}

int host_create(struct host_rules *rules, struct host **out)
{
	struct host *host = calloc(1, sizeof(*host));

	if (!host) {
		host_rules_destroy(rules);
		return -ENOMEM;
	}
	host->pipeline.burst = host_burst;
	host->pipeline.tick = host_tick;
	host->pipeline.destroy = host_free;
	host->pipeline.references = 1;
	host->rules = rules;
	*out = host;
	return 0;
}

struct pipeline *host_pipeline(struct host *host)
{
	return &host->pipeline;
}

int host_run_once(struct host *host, struct io *io)
{
	struct frame frames[BURST_MAX];
	int number = io->ops->receive(io, frames, BURST_MAX);

	if (number <= 0)
		return number;
	host_burst(&host->pipeline, NULL, io, frames, (unsigned)number, 0);
	io->ops->release(io);
	return number;
}

void host_publish(struct host *host, struct host_rules *rules)
{
	host_rules_destroy(atomic_exchange_explicit(&host->pending, rules, memory_order_acq_rel));
}

void host_counters(const struct host *host, uint64_t *counts)
{
	for (unsigned i = 0; i < HOST_REASON_COUNT; i++)
		counts[i] = atomic_load_explicit(&host->counts[i], memory_order_relaxed);
}

void host_destroy(struct host *host)
{
	if (host)
		pipeline_put(&host->pipeline);
}
