/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Any packets, in any bursts, at any time, to the whole inbound pipeline: one small snapshot with services of every
 * kind, a second one that drains and takes away, and an io of its own whose buffers have exactly the packet's size.
 * After each burst the counters must add up, and what was sent must be a right outer header around a packet.
 *
 * Input: how the MUX is set up (1 byte), then records: what to do (1), how (1), length (2), bytes.
 */
#include <arpa/inet.h>
#include <stdlib.h>
#include <string.h>

#include "adopt.h"
#include "census.h"
#include "checksum.h"
#include "encap.h"
#include "mux.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define SERVICES 9u
#define HOPS 4u
#define MTU 600u

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
};

static void expect(bool claim)
{
	if (!claim)
		abort();
}

/* ---- the world ---- */

static const uint8_t vip4[4] = { 203, 0, 113, 10 };
static const uint8_t vip6[16] = { 0x20, 1, 0xd, 0xb8, 0, 0xf, [15] = 0x10 };

static void add_service(struct vip_map *map, uint32_t id, bool changed)
{
	/* family, prefix, protocol, first and last port */
	static const struct {
		uint8_t family, prefix, protocol;
		uint16_t first, last;
	} shapes[SERVICES] = {
		{ 4, 32, 6, 80, 80 },	 { 4, 32, 17, 53, 53 },	  { 4, 32, 6, 8000, 8099 },
		{ 4, 24, 6, 80, 80 },	 { 4, 24, 17, 0, 65535 }, { 6, 128, 6, 80, 80 },
		{ 6, 128, 17, 53, 60 },	 { 6, 64, 6, 0, 65535 },  { 4, 29, 6, 0, 65535 },
	};
	struct backend backends[3];
	struct maglev_member members[3];
	struct service service = { .id = id,
				   .family = shapes[id].family,
				   .prefix_length = shapes[id].prefix,
				   .protocol = shapes[id].protocol,
				   .first_port = shapes[id].first,
				   .last_port = shapes[id].last,
				   .hash_source = id % 4 == 1,
				   .idle = flow_ticks(60 + id),
				   .mtu = MTU,
				   .backend_count = 3 };

	for (uint32_t b = 0; b < 3; b++) {
		unsigned state = changed ? (id + b) % 4 : BACKEND_UP;

		backends[b] = (struct backend){ (service.family == 4 ? b & 1 : 2 + (b & 1)) << 2 | state, id * 3 + b };
		members[b] = (struct maglev_member){ id + b, b + 1, state == BACKEND_UP, (uint16_t)b };
	}
	memcpy(service.vip, service.family == 4 ? vip4 : vip6, service.family == 4 ? 4 : 16);
	if (service.prefix_length == 24)
		service.vip[3] = 0;
	else if (service.prefix_length == 29)
		service.vip[3] = 8;
	else if (service.prefix_length == 64)
		service.vip[15] = 0;
	expect(maglev_build(61, members, 3, &service.maglev) == 0);
	expect(vip_map_add(map, &service, backends) == 0);
	maglev_put(service.maglev);
}

static struct snapshot *make_snapshot(bool changed)
{
	static const uint8_t seed[16] = "an open secret";
	struct hop_spec hops[HOPS] = { 0 };
	struct snapshot *snapshot;
	struct vip_map *map;

	expect(vip_map_create(seed, flow_ticks(10), &map) == 0);
	for (uint32_t id = 0; id < SERVICES; id++)
		if (!changed || id != 3)
			add_service(map, id, changed);
	expect(vip_map_seal(map) == 0);
	for (uint32_t i = 0; i < HOPS; i++) {
		hops[i].family = i < 2 ? 4 : 6;
		hops[i].resolved = !changed || i % 2 == 0;
		hops[i].ifindex = i;
		memset(hops[i].source, 10, 16);
		memset(hops[i].destination, (int)(20 + i), 16);
	}
	expect(snapshot_create(map, hops, HOPS, changed, &snapshot) == 0);
	vip_map_put(map);
	return snapshot;
}

/* ---- what is sent ---- */

static void check_sent(const struct mux *mux, const struct frame *frame)
{
	uint32_t link = mux->config.link == MUX_LINK_NONE ? 0 : ETHERNET_HEADER, inner;
	const uint8_t *ip = frame->data + link;

	expect(frame->origin < mux->count && frame->ifindex < HOPS && frame->len <= link + MTU);
	expect(memcmp(frame->data, frame->data + frame->len - 1, 1) <= 255); /* it is all there to be read */
	if (ip[0] == 0x45) {
		expect(frame->len >= link + 40 && load_be16(ip + 2) == frame->len - link);
		expect(ip[8] == ENCAP_TTL && ip[9] == 4 && checksum_fold(checksum_add(ip, 20, 0)) == 0xffff);
		expect(ip[1] == ip[21] && ip[6] == (ip[26] & 0x40) && ip[7] == 0 && ip[20] >> 4 == 4);
		expect(!ip[6] || load_be16(ip + 4) == 0);
		expect(checksum_fold(checksum_add(ip + 20, (ip[20] & 15) * 4u, 0)) == 0xffff);
		inner = load_be16(ip + 22) + 20u;
	} else {
		expect(frame->len >= link + 80 && ip[0] >> 4 == 6 && ip[40] >> 4 == 6);
		expect(ip[6] == 41 && ip[7] == ENCAP_TTL && load_be16(ip + 4) == frame->len - link - 40);
		expect((ip[0] & 15) == (ip[40] & 15) && (ip[1] & 0xf0) == (ip[41] & 0xf0));
		inner = load_be16(ip + 44) + 80u;
	}
	expect(inner == frame->len - link);
	expect(!link || load_be16(frame->data + 12) == (ip[0] == 0x45 ? 0x0800 : 0x86dd));
}

static void fuzz_send(struct io *io, struct frame *frames, unsigned count)
{
	struct fuzz_io *fuzz = (struct fuzz_io *)io;

	expect(count <= BURST_MAX);
	for (unsigned i = 0; i < count; i++) {
		check_sent(fuzz->mux, &frames[i]);
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
							.csum_start = what & OFFLOAD ? 34 : 0,
							.csum_offset = what & OFFLOAD ? 16 : 0 };
}

static void run(struct mux *mux, struct fuzz_io *io, const struct snapshot *snapshot, struct burst *burst, uint64_t now)
{
	uint64_t reasons = 0, received = mux->counters.received;

	mux->pipeline.burst(&mux->pipeline, snapshot, &io->io, burst->frames, burst->count, now);
	expect(mux->counters.received == received + burst->count);
	for (unsigned i = 0; i < REASON_COUNT; i++)
		reasons += mux->counters.reasons[i];
	expect(reasons == mux->counters.received);
	mux->pipeline.tick(&mux->pipeline, snapshot, now);
	while (burst->count)
		free(burst->memory[--burst->count]);
}

/* ---- flows of others ---- */

/*
 * The input's bytes once more, as what another MUX tells of its flows: whatever it says, the table stays sound, what is
 * counted is there, and what is exceptional can be told and forgotten to the last flow.
 */
static void hand_over(struct mux *mux, const struct snapshot *snapshot, const uint8_t *data, size_t size)
{
	static uint64_t records[4096];
	static uint32_t owners[4096];
	struct census_row rows[SERVICES * 3] = { 0 };
	struct adoption adoption = { 0 };
	uint32_t count = (uint32_t)(size / 8 < ADOPT_MAX ? size / 8 : ADOPT_MAX), told, counted = 0, exceptional = 0;

	memcpy(records, data, count * 8);
	for (uint32_t service = 0; service <= SERVICES; service++)
		mux_adopt(mux, snapshot, service, data[0] % 5u, records, count, &adoption);
	expect(adoption.taken + adoption.known + adoption.useless + adoption.refused == count * (SERVICES + 1));
	expect(flow_table_check(mux->table) == NULL);

	census_count(mux, snapshot, rows, SERVICES * 3);
	for (unsigned i = 0; i < SERVICES * 3; i++) {
		expect(rows[i].exceptional <= rows[i].tcp + rows[i].udp);
		counted += rows[i].tcp + rows[i].udp;
		exceptional += rows[i].exceptional;
	}
	expect(counted <= flow_table_live(mux->table));
	told = census_exceptional(mux, snapshot, records, owners, 4096);
	expect(told == exceptional && told <= 4096);
	for (uint32_t i = 0; i < told; i++)
		expect(mux_forget(mux, snapshot, owners[i] >> 12, owners[i] & 0xfff, &records[i], 1) == 1);
	expect(flow_table_check(mux->table) == NULL);
	expect(census_exceptional(mux, snapshot, records, owners, 4096) == 0);
}

/* ---- one input ---- */

/* The same table for all inputs, emptied: making one takes longer than most inputs. */
static struct flow_table *empty_table(void)
{
	static struct flow_table *table, empty;

	if (!table) {
		expect(flow_table_create(1, &table) == 0);
		empty = *table;
	}
	memset(table->lines, 0, table->bytes);
	*table = empty;
	return table;
}

static void start(struct mux *mux, struct fuzz_io *io, uint8_t setup)
{
	static struct service_counters service_counters[SERVICES];
	static uint64_t backend_counters[SERVICES * 3];
	static struct mux *made;

	if (!made) {
		struct mux_config config = { 0 };

		expect(mux_create(&config, &made) == 0);
	}
	*mux = *made;
	mux->config = (struct mux_config){ .flows = setup & 4 ? 0 : 1,
					   .link = setup % 3,
					   .detect_partial = setup >> 3 & 1 };
	mux->table = setup & 4 ? NULL : empty_table();
	mux->service_counters = service_counters;
	mux->backend_counters = backend_counters;
	*io = (struct fuzz_io){ .io = { &fuzz_ops, setup % 3 ? LINK_ETHERNET : LINK_RAW_IP },
				.mux = mux,
				.fails = setup & 16 };
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct snapshot *snapshots[2];
	static struct mux mux;
	static struct burst burst;
	static uint64_t inputs;
	unsigned which = 0;
	uint64_t now = 0;
	struct fuzz_io io;

	if (!snapshots[0])
		for (unsigned i = 0; i < 2; i++)
			snapshots[i] = make_snapshot(i);
	if (!size)
		return 0;
	start(&mux, &io, data[0]);
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
			run(&mux, &io, snapshots[which], &burst, now);
		if (what & OTHER_SNAPSHOT && !burst.count)
			which = !which;
	}
	run(&mux, &io, snapshots[which], &burst, now);
	if (mux.table && data[0] >> 5 == 7) /* not often: it reads the whole table, several times */
		hand_over(&mux, snapshots[which], data, size);
	if (mux.table && inputs++ % 256 == 0)
		expect(flow_table_check(mux.table) == NULL);
	return 0;
}
