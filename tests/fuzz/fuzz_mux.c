/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Any packets, in any bursts, at any time, to the whole inbound pipeline: the small MUX of world.h, with
 * an io of its own whose buffers have exactly the packet's size.
 * After each burst the counters must add up, and what was sent must be a right outer header around a packet.  What becomes of
 * each packet, and every byte that leaves, is that of the reference MUX of tests/native/c/reference_mux.h.
 *
 * Input: how the MUX is set up (1 byte), then records: what to do (1), how (1), length (2), bytes.
 */
#include <arpa/inet.h>

#include "../native/c/reference_mux.c"
#include "packet/checksum.h"
#include "services/snapshot/encap.h"
#include "world.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* What to do with a record. */
#define FIX_CHECKSUM 0x01 /* make the IPv4 header checksum right: no fuzzer gets past it by itself */
#define AIM 0x02          /* make the destination a VIP */
#define GROW 0x04         /* a super-packet: `how` times 256 bytes more payload */
#define OFFLOAD 0x08      /* tell of a checksum left to the NIC, and of a segment size of `how` */
#define CUT 0x10          /* the capture cut it short */
#define BURST_ENDS 0x20
#define TIME_PASSES 0x40  /* by a power of two given by `how` */
#define OTHER_SNAPSHOT 0x80

struct fuzz_io {
	struct io io;
	const struct mux *mux;
	uint64_t sent;
	bool fails; /* every third frame is refused */
	const struct reference_mux *plain;
	uint32_t sent_now; /* of this burst */
};

/* ---- what is sent ---- */

/* Who cuts it finds what he is told of: headers, more payload than a segment takes, and segments that fit. */
static void check_whole(const struct mux *mux, const struct frame *frame, const uint8_t *transport, uint32_t room)
{
	uint32_t link = mux->config.link == MUX_LINK_NONE ? 0 : ETHERNET_HEADER;
	uint32_t length = mux->io->sends_whole && room >= 20 ? (transport[12] >> 4) * 4u : 0;

	expect(length >= 20 && length + frame->gso_size < room && frame->csum_offset == 16);
	expect(frame->csum_start - link + length + frame->gso_size <= MTU);
	expect(frame->len <= UINT16_MAX + ETHERNET_HEADER && !(transport[13] & (TCP_SYN | TCP_RST | TCP_URG)));
	expect(!(frame->offload & FRAME_CWR) == !(transport[13] & TCP_CWR));
}

/* What lies between the outer header of the protocol and the packet of that first octet: nothing, UDP, or UDP and GUE (variant 0). */
static uint32_t check_tunnel(const uint8_t *udp, uint32_t room, uint8_t protocol)
{
	if (protocol != 17) {
		expect(room >= 20 && protocol == (udp[0] >> 4 == 4 ? 4 : 41));
		return 0;
	}
	expect(room >= 32 && load_be16(udp + 2) == 6080 && load_be16(udp + 4) == room && load_be16(udp + 6) == 0);
	if (udp[8] >> 6 == 1)
		return 8;
	expect(udp[8] == 0 && udp[9] == (udp[12] >> 4 == 4 ? 4 : 41) && load_be16(udp + 10) == 0);
	return 12;
}

/* The outer header says what the inner one does (encap.h).  Returns where the inner packet begins. */
static const uint8_t *check_outer(const uint8_t *ip, uint32_t length)
{
	bool outer4 = ip[0] >> 4 == 4;
	uint32_t outer = outer4 ? 20 : 40;
	const uint8_t *inner;
	uint8_t class, inner_class;

	expect(length >= outer + 20 && ip[outer4 ? 8 : 7] == ENCAP_TTL);
	inner = ip + outer + check_tunnel(ip + outer, length - outer, ip[outer4 ? 9 : 6]);
	class = outer4 ? ip[1] : (uint8_t)(ip[0] << 4 | ip[1] >> 4);
	inner_class = inner[0] >> 4 == 4 ? inner[1] : (uint8_t)(inner[0] << 4 | inner[1] >> 4);
	expect(class == inner_class);
	if (outer4) {
		bool keep_whole = inner[0] >> 4 == 6 || inner[6] & 0x40;

		expect(ip[0] == 0x45 && load_be16(ip + 2) == length && checksum_fold(checksum_add(ip, 20, 0)) == 0xffff);
		expect(ip[6] == (keep_whole ? 0x40 : 0) && ip[7] == 0 && (!keep_whole || load_be16(ip + 4) == 0));
	} else {
		expect(load_be16(ip + 4) == length - 40);
	}
	return inner;
}

static void check_sent(const struct mux *mux, const struct frame *frame)
{
	uint32_t link = mux->config.link == MUX_LINK_NONE ? 0 : ETHERNET_HEADER, room;
	const uint8_t *ip = frame->data + link, *inner;

	expect(frame->origin < mux->count && frame->ifindex < HOPS && (frame->gso_size || frame->len <= link + MTU));
	expect(memcmp(frame->data, frame->data + frame->len - 1, 1) <= 255); /* it is all there to be read */
	inner = check_outer(ip, frame->len - link);
	room = (uint32_t)(ip + frame->len - link - inner);
	if (inner[0] >> 4 == 4) {
		expect(room >= 20 && load_be16(inner + 2) == room);
		expect(checksum_fold(checksum_add(inner, (inner[0] & 15) * 4u, 0)) == 0xffff);
	} else {
		expect(room >= 40 && load_be16(inner + 4) + 40u == room && inner[0] >> 4 == 6);
	}
	if (frame->gso_size) {
		expect(frame->csum_start < frame->len && !(frame->offload & FRAME_INNER6) == (inner[0] >> 4 == 4));
		check_whole(mux, frame, frame->data + frame->csum_start, frame->len - frame->csum_start);
	}
	expect(!link || load_be16(frame->data + 12) == (ip[0] == 0x45 ? 0x0800 : 0x86dd));
}

static void check_same(const struct reference_mux *plain, uint32_t number, const struct frame *frame)
{
	const struct plain_sent *wanted = &plain->sent[number];

	expect(number < plain->sent_count && frame->len == wanted->len && frame->origin == wanted->origin);
	expect(memcmp(frame->data, plain->bytes + wanted->at, wanted->len) == 0);
	expect(frame->ifindex == wanted->ifindex && frame->gso_size == wanted->gso_size);
	expect(!frame->gso_size || (frame->csum_start == wanted->csum_start && frame->offload == wanted->offload));
}

static void fuzz_send(struct io *io, struct frame *frames, unsigned count)
{
	struct fuzz_io *fuzz = (struct fuzz_io *)io;

	expect(count <= BURST_MAX);
	for (unsigned i = 0; i < count; i++) {
		check_sent(fuzz->mux, &frames[i]);
		check_same(fuzz->plain, fuzz->sent_now++, &frames[i]);
		frames[i].error = fuzz->fails && fuzz->sent % 3 == 2 ? 1 : 0;
		fuzz->sent++;
	}
}

static const struct io_ops fuzz_ops = { .name = "fuzz", .send = fuzz_send };

/* ---- packets ---- */

struct burst {
	uint8_t *memory[BURST_MAX];
	struct frame frames[BURST_MAX];
	unsigned count;
};

/* Makes an IPv4 or IPv6 packet likelier to get far; never writes beyond it. */
static void help(uint8_t *ip, uint32_t length, uint8_t what, uint32_t grown)
{
	uint32_t header = (ip[0] & 15) * 4u;
	uint16_t value;

	if (length >= 40 && ip[0] >> 4 == 6) {
		if (what & AIM)
			memcpy(ip + 24, vip6, 15);
		value = htons((uint16_t)(length - 40));
		if (grown)
			memcpy(ip + 4, &value, 2);
		return;
	}
	if (length < 20 || ip[0] >> 4 != 4 || header < 20 || header > length)
		return;
	if (what & AIM)
		memcpy(ip + 16, vip4, 3);
	value = htons((uint16_t)length);
	if (grown)
		memcpy(ip + 2, &value, 2);
	if (what & FIX_CHECKSUM) {
		memset(ip + 10, 0, 2);
		value = (uint16_t)~checksum_fold(checksum_add(ip, header, 0));
		memcpy(ip + 10, &value, 2);
	}
}

/* Where a checksum left to the NIC begins: at the transport, or anywhere. */
static uint16_t tell_start(const uint8_t *start, uint32_t link, uint32_t length)
{
	if (length < link + 2)
		return 34;
	return start[length - 1] & 1 ? (uint16_t)(link + (start[link] >> 4 == 4 ? 20 : 40)) : load_be16(start + length - 2);
}

static void add_packet(struct burst *burst, const struct mux *mux, const uint8_t *data, uint32_t length, uint8_t what,
		       uint8_t how)
{
	uint32_t link = mux->config.link == MUX_LINK_NONE ? 0 : ETHERNET_HEADER;
	uint32_t grown = what & GROW ? how * 256u : 0;
	uint8_t *memory = malloc(IO_HEADROOM + length + grown), *start = memory + IO_HEADROOM;

	expect(memory != NULL);
	memcpy(start, data, length);
	memset(start + length, how, grown);
	length += grown;
	if (length > link)
		help(start + link, length - link < 65535 ? length - link : 65535, what, grown);
	burst->memory[burst->count] = memory;
	burst->frames[burst->count++] = (struct frame){ .data = start,
							.len = length,
							.wire_len = length + !!(what & CUT),
							.headroom = IO_HEADROOM,
							.gso_size = what & OFFLOAD ? how : 0,
							.csum_start = what & OFFLOAD ? tell_start(start, link, length) : 0,
							.csum_offset = what & OFFLOAD ? (how & 1 ? 16 : 6) : 0,
							.offload = what & OFFLOAD ? FRAME_TOLD | (how & FRAME_VERIFIED) : 0 };
}

/* The world of a snapshot, as the reference MUX has it. */
static const struct reference_world *plain_world_of(unsigned which)
{
	static struct plain_service services[2][SERVICES];
	static struct hop_spec hops[2][HOPS];
	static struct reference_world worlds[2];
	struct reference_world *world = &worlds[which];
	const struct vip_map *map = snapshot_of(which)->map;

	if (world->count)
		return world;
	make_hops(which, hops[which]);
	*world = (struct reference_world){ .services = services[which], .count = SERVICES, .crowd = SERVICES,
				       .idle_untrusted = map->idle_untrusted, .hops = hops[which], .hop_count = HOPS };
	for (uint32_t i = 0; i < map->service_count; i++) {
		const struct service *from = map->services[i];
		struct plain_service *to = &world->services[from->id];

		*to = (struct plain_service){ true, from->id, from->family, from->prefix_length, from->protocol,
					      from->first_port, from->last_port, from->hash_source, from->idle, from->mtu,
					      { 0 }, from->backend_count, { { 0 } }, from->maglev };
		memcpy(to->vip, from->vip, 16);
		for (uint32_t b = 0; b < from->backend_count; b++)
			to->backends[b] = (struct plain_backend){ backend_state(&from->backends[b]), backend_hop(&from->backends[b]),
								  from->backends[b].counter };
	}
	return world;
}

static void run_plain(struct reference_mux *plain, const struct reference_world *world, const struct burst *burst, uint64_t now,
		      struct plain_result *results)
{
	reference_mux_burst(plain, world, now);
	for (unsigned i = 0; i < burst->count; i++)
		reference_mux_packet(plain, &burst->frames[i], (uint8_t)i, &results[i]);
	reference_mux_tick(plain);
}

static void check_results(const struct mux *mux, const struct plain_result *results, unsigned count)
{
	for (unsigned i = 0; i < count; i++) {
		const struct passage *passage = &mux->passages[i];

		expect(mux->packets[i].reason == results[i].reason && passage->flow == results[i].flow);
		expect((passage->service ? (int32_t)passage->service->id : -1) == results[i].service);
		expect(!passage->flow || passage->backend_number == results[i].backend);
	}
}

static void run(struct mux *mux, struct fuzz_io *io, struct reference_mux *plain, unsigned which, struct burst *burst, uint64_t now)
{
	const struct snapshot *snapshot = snapshot_of(which);
	uint64_t reasons = 0, received = mux->counters.received;
	struct plain_result results[BURST_MAX];

	run_plain(plain, plain_world_of(which), burst, now, results);
	io->sent_now = 0;
	mux->pipeline.burst(&mux->pipeline, snapshot, &io->io, burst->frames, burst->count, now);
	expect(mux->counters.received == received + burst->count);
	for (unsigned i = 0; i < REASON_COUNT; i++)
		reasons += mux->counters.reasons[i];
	expect(reasons == mux->counters.received);
	expect(io->sent_now == plain->sent_count);
	check_results(mux, results, burst->count);
	mux->pipeline.tick(&mux->pipeline, snapshot, now);
	while (burst->count)
		free(burst->memory[--burst->count]);
}

/* ---- one input ---- */

static void start_plain(struct reference_mux *plain, const struct mux_config *config, const struct fuzz_io *io)
{
	static uint64_t backends[SERVICES * BACKENDS];
	static struct service_counters services[SERVICES];

	for (uint32_t i = 0; i < DATAGRAMS && i < plain->datagrams_begun; i++)
		plain->datagrams[i].there = false;
	*plain = (struct reference_mux){ .config = *config, .link = io->io.link, .sends_whole = io->io.sends_whole,
				     .fails = io->fails ? 3 : 0, .seed = snapshot_of(0)->map->seed, .services = services,
				     .backends = backends, .bytes = plain->bytes, .room = plain->room, .sent = plain->sent,
				     .sent_room = plain->sent_room, .datagrams = plain->datagrams };
	if (!config->flows)
		return;
	plain->table = empty_table(1);
	flow_table_set_judge(plain->table, judge, plain);
}

static void start(struct mux *mux, struct fuzz_io *io, struct reference_mux *plain, uint8_t setup)
{
	struct mux_config config = { .flows = setup & 4 ? 0 : 1,
				     .link = setup % 3,
				     .detect_partial = setup >> 3 & 1 };

	start_mux(mux, &config);
	*io = (struct fuzz_io){ .io = { .ops = &fuzz_ops,
					.link = setup % 3 ? LINK_ETHERNET : LINK_RAW_IP,
					.sends_whole = setup >> 5 & 1 },
				.mux = mux,
				.fails = setup & 16,
				.plain = plain };
	start_plain(plain, &config, io);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct mux mux;
	static struct burst burst;
	static struct reference_mux plain;
	static uint64_t inputs;
	unsigned which = 0;
	uint64_t now = 0;
	struct fuzz_io io;

	if (!size)
		return 0;
	start(&mux, &io, &plain, data[0]);
	for (size_t at = 1; at + 4 <= size;) {
		uint8_t what = data[at], how = data[at + 1];
		uint32_t length = load_be16(data + at + 2);

		at += 4;
		if (length > size - at)
			length = (uint32_t)(size - at);
		if (what & TIME_PASSES)
			now += 1ull << how % 50;
		add_packet(&burst, &mux, data + at, length, what, how);
		at += length;
		if (what & BURST_ENDS || burst.count == BURST_MAX)
			run(&mux, &io, &plain, which, &burst, now);
		if (what & OTHER_SNAPSHOT && !burst.count)
			which = !which;
	}
	run(&mux, &io, &plain, which, &burst, now);
	if (mux.table && inputs++ % 256 == 0) /* not often: it reads the whole table */
		expect(flow_table_check(mux.table) == NULL);
	return 0;
}
