/* SPDX-License-Identifier: Apache-2.0 */
/* See bench.h. */
#include "bench.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "checksum.h"
#include "clock.h"

#define RING 65536u
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

struct bench {
	struct mux *mux;
	struct snapshot *snapshot;
	uint32_t mode;
	uint32_t flows;
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
	for (uint32_t i = 0; i < RING; i++) {
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

/* Every known flow twice, a tick apart, so that the table has and trusts it. */
static void warm_up(struct bench *bench)
{
	if (bench->mode == BENCH_MISS || bench->mode == BENCH_SCRIPT)
		return;
	for (uint64_t first = 0; first < bench->flows; first += RING) {
		uint32_t count = bench->flows - first < RING ? (uint32_t)(bench->flows - first) : RING;

		for (unsigned pass = 0; pass < 2; pass++) {
			for (uint32_t i = 0; i < count; i++)
				write_packet(bench, i, first + i, TCP_ACK);
			run_frames(bench, 0, count);
			bench->ahead += 1u << FLOW_TICK_SHIFT;
		}
	}
}

int bench_create(struct mux *mux, struct snapshot *snapshot, uint32_t mode, uint32_t flows, struct bench **out)
{
	struct bench *bench;

	if (!snapshot->map->service_count || !flows || mode > BENCH_SCRIPT)
		return -EINVAL;
	bench = calloc(1, sizeof(*bench));
	if (!bench)
		return -ENOMEM;
	bench->ring = mmap(NULL, (size_t)RING * STRIDE, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (bench->ring == MAP_FAILED) {
		free(bench);
		return -ENOMEM;
	}
	madvise(bench->ring, (size_t)RING * STRIDE, MADV_HUGEPAGE);
	memset(bench->ring, 0, (size_t)RING * STRIDE);
	bench->mux = mux;
	bench->snapshot = snapshot_get(snapshot);
	bench->mode = mode;
	bench->flows = flows;
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

uint32_t bench_run(struct bench *bench, double seconds, struct bench_sample *samples, uint32_t max)
{
	uint64_t end = clock_now_ns() + (uint64_t)(seconds * 1e9);
	uint32_t count = 0;

	while (count < max && clock_now_ns() < end) {
		if (bench->next == 0)
			fill_ring(bench);

		double before = probe(), after;
		uint64_t start = clock_now_ns();

		run_frames(bench, bench->next, BENCH_SEGMENT);

		double elapsed = (double)(clock_now_ns() - start);

		after = probe();
		samples[count].ns = elapsed / BENCH_SEGMENT;
		samples[count++].probe = before > after ? before : after;
		bench->next = (bench->next + BENCH_SEGMENT) % RING;
	}
	return count;
}

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

		if (bench->next + n > RING)
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
	munmap(bench->ring, (size_t)RING * STRIDE);
	snapshot_put(bench->snapshot);
	free(bench);
}
