/* SPDX-License-Identifier: Apache-2.0 */
/* See pipeline_bench.h. */
#include "bench/pipeline_bench.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "machine/clock.h"
#include "packet/checksum.h"

/*
 * Frames start 20 bytes into a cache line: outer Ethernet, outer IP, inner IP and ports then lie in one.  The stride is
 * no power of two, or all headers would crowd into a few sets of the first-level cache.
 */
#define STRIDE 2112u
#define OFFSET 276u
#define IPV4_BYTES 20u
#define IPV6_BYTES 40u
#define TCP_BYTES 20u
#define DATA_BYTES 10u
#define WARM_FLOWS 65536u

struct bench {
	struct mux *mux;
	struct snapshot *snapshot;
	uint32_t mode;
	uint32_t flows;
	uint32_t frames; /* of the ring */
	uint32_t packet_bytes; /* of IP, its data included */
	uint32_t next; /* frame of the ring to go on with; at 0 the ring is filled anew */
	uint64_t random;
	uint64_t ahead; /* of the real time: what warming up took by the table's clock */
	uint8_t *ring;
	struct io io;
};

static void discard(struct io *io, struct frame *frames, unsigned count)
{
	(void)io;
	for (unsigned i = 0; i < count; i++)
		frames[i].error = 0;
}

static const struct io_ops discard_ops = { .name = "discard", .send = discard };

/* splitmix64 */
static uint64_t mix(uint64_t x)
{
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
	x = (x ^ x >> 27) * 0x94d049bb133111ebu;
	return x ^ x >> 31;
}

static uint64_t draw(struct bench *bench)
{
	return mix(bench->random += 0x9e3779b97f4a7c15u);
}

static void write_ipv4(uint8_t *ip, const uint8_t *vip, uint64_t flow, uint16_t payload)
{
	uint32_t source = htonl(0x0b000000u | (uint32_t)(flow & 0xffffff));
	uint16_t length = htons(IPV4_BYTES + payload), check;

	ip[0] = 0x45;
	memcpy(ip + 2, &length, 2);
	ip[6] = 0x40;
	ip[8] = 64;
	ip[9] = 6;
	memcpy(ip + 12, &source, 4);
	memcpy(ip + 16, vip, 4);
	check = (uint16_t)~checksum_fold(checksum_add(ip, IPV4_BYTES, 0));
	memcpy(ip + 10, &check, 2);
}

static void write_ipv6(uint8_t *ip, const uint8_t *vip, uint64_t flow, uint16_t payload)
{
	uint32_t source = htonl((uint32_t)(flow & 0xffffff));
	uint16_t length = htons(payload);

	ip[0] = 0x60;
	memcpy(ip + 4, &length, 2);
	ip[6] = 6;
	ip[7] = 64;
	ip[8] = 0x20;
	ip[9] = 0x01;
	memcpy(ip + 20, &source, 4);
	memcpy(ip + 24, vip, 16);
}

/* Packet of flow number `flow`; the number alone decides source and service. */
static void write_packet(struct bench *bench, uint32_t frame, uint64_t flow, uint8_t flags)
{
	const struct vip_map *map = bench->snapshot->map;
	uint64_t bits = mix(flow * 0x9e3779b97f4a7c15u + 1);
	const struct service *service = map->services[bits % map->service_count];
	uint8_t *data = bench->ring + (size_t)frame * STRIDE + OFFSET, *ip = data + ETHERNET_HEADER, *tcp;
	/* Of a script only what is pushed carries data: an acknowledgement alone must not seem to go on. */
	bool empty = bench->mode == BENCH_SCRIPT && !(flags & TCP_PSH);
	uint16_t port = (uint16_t)(bits >> 48), payload = empty ? TCP_BYTES : TCP_BYTES + DATA_BYTES;

	uint8_t vip[16];

	memcpy(vip, service->vip, sizeof(vip));
	if (bench->mode == BENCH_MISS)
		vip[0] ^= 0x80;
	memset(data, 0, ETHERNET_HEADER + bench->packet_bytes);
	if (service->family == 6) {
		memcpy(data + 12, "\x86\xdd", 2);
		write_ipv6(ip, vip, flow, payload);
		tcp = ip + IPV6_BYTES;
	} else {
		memcpy(data + 12, "\x08\x00", 2);
		write_ipv4(ip, vip, flow, payload);
		tcp = ip + IPV4_BYTES;
	}
	memcpy(tcp, &port, 2);
	port = htons(service->first_port);
	memcpy(tcp + 2, &port, 2);
	tcp[12] = 0x50;
	tcp[13] = flags;
}

static void fill_ring(struct bench *bench)
{
	for (uint32_t i = 0; i < bench->frames; i++) {
		uint64_t random = draw(bench);
		uint32_t known = (uint32_t)((random >> 32) * bench->flows >> 32);
		bool new = bench->mode == BENCH_FLOOD || (bench->mode == BENCH_MIX && random % 10 == 0);

		if (new)
			write_packet(bench, i, random | 1ull << 40, TCP_SYN);
		else
			write_packet(bench, i, known, TCP_ACK);
	}
}

/* Frames of the ring, no more than a burst. */
static inline void run_burst(struct bench *bench, const struct snapshot *snapshot, uint32_t first, uint32_t count,
			     uint64_t now)
{
	struct frame frames[BURST_MAX];

	for (uint32_t i = 0; i < count; i++)
		frames[i] = (struct frame){ .data = bench->ring + (size_t)(first + i) * STRIDE + OFFSET,
					    .len = ETHERNET_HEADER + bench->packet_bytes,
					    .wire_len = ETHERNET_HEADER + bench->packet_bytes,
					    .headroom = OFFSET };
	bench->mux->pipeline.burst(&bench->mux->pipeline, snapshot, &bench->io, frames, count, now);
	bench->mux->pipeline.tick(&bench->mux->pipeline, snapshot, now);
}

static void run_frames(struct bench *bench, uint32_t first, uint32_t count)
{
	for (uint32_t done = 0; done < count; done += BURST_MAX) {
		uint32_t n = count - done < BURST_MAX ? count - done : BURST_MAX;

		run_burst(bench, bench->snapshot, first + done, n, clock_now_ns() + bench->ahead);
	}
}

/* A packet of each of these flows. */
static void run_flows(struct bench *bench, uint64_t first, uint32_t count)
{
	for (uint32_t done = 0, n; done < count; done += n) {
		n = count - done < bench->frames ? count - done : bench->frames;
		for (uint32_t i = 0; i < n; i++)
			write_packet(bench, i, first + done + i, TCP_ACK);
		run_frames(bench, 0, n);
	}
}

/* Every known flow twice, a tick apart, so that the table has and trusts it; so many at a time that none expires between. */
static void warm_up(struct bench *bench)
{
	if (bench->mode == BENCH_MISS || bench->mode == BENCH_SCRIPT)
		return;
	for (uint64_t first = 0; first < bench->flows; first += WARM_FLOWS) {
		uint32_t count = bench->flows - first < WARM_FLOWS ? (uint32_t)(bench->flows - first) : WARM_FLOWS;

		for (unsigned pass = 0; pass < 2; pass++) {
			run_flows(bench, first, count);
			bench->ahead += 1u << FLOW_TICK_SHIFT;
		}
	}
}

int bench_create(struct mux *mux, struct snapshot *snapshot, uint32_t mode, uint32_t flows, uint32_t frames,
		 struct bench **out)
{
	size_t bytes = (size_t)frames * STRIDE;
	struct bench *bench;

	if (!snapshot->map->service_count || !flows || mode > BENCH_SCRIPT)
		return -EINVAL;
	if (!frames || frames % BENCH_SEGMENT || frames > BENCH_FRAMES_MAX)
		return -EINVAL;
	bench = calloc(1, sizeof(*bench));
	if (!bench)
		return -ENOMEM;
	bench->ring = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (bench->ring == MAP_FAILED) {
		free(bench);
		return -ENOMEM;
	}
	madvise(bench->ring, bytes, MADV_HUGEPAGE);
	memset(bench->ring, 0, bytes);
	bench->mux = mux;
	bench->snapshot = snapshot_get(snapshot);
	bench->mode = mode;
	bench->flows = flows;
	bench->frames = frames;
	bench->packet_bytes = snapshot->map->services[0]->family == 6 ? IPV6_BYTES : IPV4_BYTES;
	bench->packet_bytes += TCP_BYTES + DATA_BYTES;
	bench->io = (struct io){ .ops = &discard_ops, .link = LINK_ETHERNET };
	warm_up(bench);
	*out = bench;
	return 0;
}

/* A fixed piece of arithmetic: when it is slow, something else had the core. */
static double probe(void)
{
	uint64_t start = clock_now_ns();

	for (uint32_t i = 0; i < 4000; i++)
		__asm__ volatile("" : "+r"(i));
	return (double)(clock_now_ns() - start);
}

/* ---- what memory alone asks for ---- */

/* Asked for so many packets ahead, as the pipeline does. */
#define FLOOR_AHEAD 24u

static inline uint8_t *header_of(const struct bench *bench, uint32_t frame)
{
	return bench->ring + (size_t)frame * STRIDE + OFFSET;
}

/*
 * One line of each header read, the line of the flow table that its bytes name (where there is a table), and an outer header
 * written before those that are forwarded: nothing is parsed and nothing decided.
 */
static void floor_burst(struct bench *bench, uint32_t first, uint32_t count)
{
	const struct flow_table *table = bench->mode == BENCH_MISS ? NULL : bench->mux->table;
	uint32_t outer = bench->packet_bytes - TCP_BYTES - DATA_BYTES, ahead = count < FLOOR_AHEAD ? count : FLOOR_AHEAD;
	const struct flow_line *lines[BURST_MAX] = { NULL };
	uint64_t word, sum = 0;

	for (uint32_t i = 0; i < ahead; i++)
		__builtin_prefetch(header_of(bench, first + i), 1);
	for (uint32_t i = 0; i < count; i++) {
		if (i + ahead < count)
			__builtin_prefetch(header_of(bench, first + i + ahead), 1);
		memcpy(&word, header_of(bench, first + i) + ETHERNET_HEADER + outer - 4, 8);
		sum += word;
		if (table)
			lines[i] = &table->lines[flow_table_line_of(table, mix(word))];
		if (table)
			__builtin_prefetch(lines[i]);
	}
	for (uint32_t i = 0; i < count; i++) {
		if (table)
			sum += lines[i]->entry[sum & 3];
		if (bench->mode != BENCH_MISS)
			memset(header_of(bench, first + i) - outer, (int)i, ETHERNET_HEADER + outer);
	}
	__asm__ volatile("" : : "r"(sum));
}

static void floor_frames(struct bench *bench, uint32_t first, uint32_t count)
{
	for (uint32_t done = 0; done < count; done += BURST_MAX)
		floor_burst(bench, first + done, count - done < BURST_MAX ? count - done : BURST_MAX);
}

/* ---- timing ---- */

static uint32_t run_timed(struct bench *bench, void (*run)(struct bench *bench, uint32_t first, uint32_t count),
			  double seconds, struct bench_sample *samples, uint32_t max)
{
	uint64_t end = clock_now_ns() + (uint64_t)(seconds * 1e9);
	uint32_t count = 0;

	while (count < max && clock_now_ns() < end) {
		if (bench->next == 0)
			fill_ring(bench);

		double before = probe(), after;
		uint64_t start = clock_now_ns();

		run(bench, bench->next, BENCH_SEGMENT);

		double elapsed = (double)(clock_now_ns() - start);

		after = probe();
		samples[count].ns = elapsed / BENCH_SEGMENT;
		samples[count++].probe = before > after ? before : after;
		bench->next = (bench->next + BENCH_SEGMENT) % bench->frames;
	}
	return count;
}

uint32_t bench_run(struct bench *bench, double seconds, struct bench_sample *samples, uint32_t max)
{
	return run_timed(bench, run_frames, seconds, samples, max);
}

uint32_t bench_floor(struct bench *bench, double seconds, struct bench_sample *samples, uint32_t max)
{
	return run_timed(bench, floor_frames, seconds, samples, max);
}

/* ---- scripts ---- */

/* Reads what the burst at hand left in the mux. */
static void note_sent(const struct mux *mux, uint16_t *backends, struct bench_sent *out)
{
	for (unsigned i = 0; i < mux->count; i++) {
		const struct passage *passage = &mux->passages[i];

		out->fresh += passage->flow == FLOW_NEW;
		out->known += passage->flow == FLOW_KNOWN;
		out->untracked += passage->flow == FLOW_UNTRACKED;
		out->dropped += passage->flow == FLOW_NONE;
		if (backends)
			backends[i] = passage->flow == FLOW_NONE ? BENCH_NO_BACKEND : passage->backend_number;
	}
}

void bench_send(struct bench *bench, const struct snapshot *snapshot, uint64_t first, uint32_t count, uint32_t flags,
		uint64_t now_ns, uint16_t *backends, struct bench_sent *out)
{
	for (uint32_t done = 0; done < count;) {
		uint32_t n = count - done < BENCH_SEGMENT ? count - done : BENCH_SEGMENT;

		if (bench->next + n > bench->frames)
			bench->next = 0;
		for (uint32_t i = 0; i < n; i++)
			write_packet(bench, bench->next + i, first + done + i, (uint8_t)flags);

		uint64_t start = clock_cpu_ns();

		for (uint32_t burst; n; n -= burst, done += burst, bench->next += burst) {
			burst = n < BURST_MAX ? n : BURST_MAX;
			run_burst(bench, snapshot, bench->next, burst, now_ns);
			note_sent(bench->mux, backends ? backends + done : NULL, out);
		}
		out->ns += clock_cpu_ns() - start;
	}
}

void bench_destroy(struct bench *bench)
{
	if (!bench)
		return;
	munmap(bench->ring, (size_t)bench->frames * STRIDE);
	snapshot_put(bench->snapshot);
	free(bench);
}
