/* SPDX-License-Identifier: Apache-2.0 */
/* See bench.h. */
#include "bench.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "checksum.h"

#define RING 65536u
/*
 * Frames start 20 bytes into a cache line: outer Ethernet, outer IP, inner IP and ports then lie in one.  The stride is
 * no power of two, or all headers would crowd into a few sets of the first-level cache.
 */
#define STRIDE 2112u
#define OFFSET 276u
#define PACKET_BYTES 50u /* IP packet: TCP header and 10 bytes */

struct bench {
	struct mux *mux;
	struct snapshot *snapshot;
	uint32_t mode;
	uint32_t flows;
	uint32_t next; /* frame of the ring to go on with; at 0 the ring is filled anew */
	uint64_t random;
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

static uint64_t now_ns(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

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

/* Packet of flow number `flow`; the number alone decides source and service. */
static void write_packet(struct bench *bench, uint32_t frame, uint64_t flow, uint8_t flags)
{
	const struct vip_map *map = bench->snapshot->map;
	uint64_t bits = mix(flow * 0x9e3779b97f4a7c15u + 1);
	const struct service *service = map->services[bits % map->service_count];
	uint8_t *data = bench->ring + (size_t)frame * STRIDE + OFFSET, *ip = data + ETHERNET_HEADER;
	uint32_t source = htonl(0x0b000000u | (uint32_t)(flow & 0xffffff));
	uint16_t port = (uint16_t)(bits >> 48), length = htons(PACKET_BYTES), check;

	memset(data, 0, ETHERNET_HEADER + PACKET_BYTES);
	data[12] = 0x08;
	ip[0] = 0x45;
	memcpy(ip + 2, &length, 2);
	ip[6] = 0x40;
	ip[8] = 64;
	ip[9] = 6;
	memcpy(ip + 12, &source, 4);
	memcpy(ip + 16, service->vip, 4);
	if (bench->mode == BENCH_MISS)
		ip[16] ^= 0x80;
	check = (uint16_t)~checksum_fold(checksum_add(ip, 20, 0));
	memcpy(ip + 10, &check, 2);
	memcpy(ip + 20, &port, 2);
	port = htons(service->first_port);
	memcpy(ip + 22, &port, 2);
	ip[32] = 0x50;
	ip[33] = flags;
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

static void run_frames(struct bench *bench, uint32_t first, uint32_t count)
{
	struct frame frames[BURST_MAX];

	for (uint32_t done = 0; done < count; done += BURST_MAX) {
		uint32_t n = count - done < BURST_MAX ? count - done : BURST_MAX;
		uint64_t now = now_ns();

		for (uint32_t i = 0; i < n; i++)
			frames[i] = (struct frame){ .data = bench->ring + (size_t)(first + done + i) * STRIDE + OFFSET,
						    .len = ETHERNET_HEADER + PACKET_BYTES,
						    .wire_len = ETHERNET_HEADER + PACKET_BYTES,
						    .headroom = OFFSET };
		bench->mux->pipeline.burst(&bench->mux->pipeline, bench->snapshot, &bench->io, frames, n, now);
		bench->mux->pipeline.tick(&bench->mux->pipeline, bench->snapshot, now);
	}
}

/* Every known flow twice, so that the table has and trusts it. */
static void warm_up(struct bench *bench)
{
	if (bench->mode == BENCH_MISS)
		return;
	for (uint64_t first = 0; first < bench->flows; first += RING) {
		uint32_t count = bench->flows - first < RING ? (uint32_t)(bench->flows - first) : RING;

		for (unsigned pass = 0; pass < 2; pass++) {
			for (uint32_t i = 0; i < count; i++)
				write_packet(bench, i, first + i, TCP_ACK);
			run_frames(bench, 0, count);
		}
	}
}

int bench_create(struct mux *mux, struct snapshot *snapshot, uint32_t mode, uint32_t flows, struct bench **out)
{
	struct bench *bench;

	if (!snapshot->map->service_count || !flows || mode > BENCH_MISS)
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
	bench->io = (struct io){ .ops = &discard_ops, .link = LINK_ETHERNET };
	warm_up(bench);
	*out = bench;
	return 0;
}

/* A fixed piece of arithmetic: when it is slow, something else had the core. */
static double probe(void)
{
	uint64_t start = now_ns();

	for (uint32_t i = 0; i < 4000; i++)
		__asm__ volatile("" : "+r"(i));
	return (double)(now_ns() - start);
}

uint32_t bench_run(struct bench *bench, double seconds, struct bench_sample *samples, uint32_t max)
{
	uint64_t end = now_ns() + (uint64_t)(seconds * 1e9);
	uint32_t count = 0;

	while (count < max && now_ns() < end) {
		if (bench->next == 0)
			fill_ring(bench);

		double before = probe(), after;
		uint64_t start = now_ns();

		run_frames(bench, bench->next, BENCH_SEGMENT);

		double elapsed = (double)(now_ns() - start);

		after = probe();
		samples[count].ns = elapsed / BENCH_SEGMENT;
		samples[count++].probe = before > after ? before : after;
		bench->next = (bench->next + BENCH_SEGMENT) % RING;
	}
	return count;
}

void bench_destroy(struct bench *bench)
{
	if (!bench)
		return;
	munmap(bench->ring, (size_t)RING * STRIDE);
	snapshot_put(bench->snapshot);
	free(bench);
}
