/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A worker under load while other threads publish snapshots to it, ask it, and read what it writes.  Built with
 * ThreadSanitizer by tests/native/test_shared.py, which looks at what that says.  Prints how many packets were forwarded.
 */
#include <pthread.h>
#include <stdio.h>

#include "../fuzz/world.h"
#include "api_glue.h"
#include "census.h"
#include "worker_ask.h"

#define TURNS 20
#define ROOM 256 /* of a frame, headroom included */
#define HEADROOM 128

struct source {
	struct io io;
	uint64_t chance;
	uint8_t buffers[BURST_MAX][ROOM];
};

static int source_receive(struct io *io, struct frame *frames, unsigned max)
{
	static const uint8_t plain[40] = { 0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 0, 203, 0, 113, 10,
					   0,	 0, 0, 80, [32] = 0x50, [33] = 0x10 };
	struct source *source = (struct source *)io;

	for (unsigned i = 0; i < max && i < BURST_MAX; i++) {
		uint8_t *ip = source->buffers[i] + HEADROOM;
		uint32_t sum = 0;

		source->chance = source->chance * 6364136223846793005u + 1442695040888963407u;
		memcpy(ip, plain, sizeof(plain));
		memcpy(ip + 13, &source->chance, 3);
		ip[20] = (uint8_t)(source->chance >> 40);
		ip[33] = source->chance >> 62 ? 0x10 : 0x02;
		for (unsigned at = 0; at < 20; at += 2)
			sum += (uint32_t)(ip[at] << 8 | ip[at + 1]);
		sum = (sum & 0xffff) + (sum >> 16);
		sum = ~((sum & 0xffff) + (sum >> 16));
		ip[10] = (uint8_t)(sum >> 8);
		ip[11] = (uint8_t)sum;
		frames[i] = (struct frame){ .data = ip, .len = 40, .wire_len = 40, .headroom = HEADROOM };
	}
	return (int)(max < BURST_MAX ? max : BURST_MAX);
}

static void source_send(struct io *io, struct frame *frames, unsigned count)
{
	(void)io;
	(void)frames;
	(void)count;
}

static void source_nothing(struct io *io)
{
	(void)io;
}

static void source_wait(struct io *io, int wake_fd, int timeout_ms)
{
	(void)io;
	(void)wake_fd;
	(void)timeout_ms;
}

static void source_stats(const struct io *io, struct io_stats *out)
{
	(void)io;
	memset(out, 0, sizeof(*out));
}

static const struct io_ops source_ops = { "stress", source_receive, source_send, source_nothing,
					  source_wait, source_stats, source_nothing };

struct stage {
	struct mux *mux;
	struct worker *worker;
	struct snapshot *snapshots[2];
	uint64_t forwarded;
};

/* As the metrics' thread does it: what the worker writes, at any time. */
static void *read_along(void *argument)
{
	struct stage *stage = argument;
	struct census_row rows[SERVICES * BACKENDS];
	uint64_t received, reasons[REASON_COUNT], records[64];
	struct flow_counters flows;
	struct worker_counters counters;
	uint32_t owners[64];

	for (unsigned turn = 0; turn < TURNS / 10; turn++) {
		memset(rows, 0, sizeof(rows));
		mux_counters_read(stage->mux, &received, reasons, &flows);
		worker_counters(stage->worker, &counters);
		mux_forgotten(stage->mux);
		census_count(stage->mux, stage->snapshots[0], rows, SERVICES * BACKENDS);
		census_exceptional(stage->mux, stage->snapshots[0], records, owners, 64);
	}
	return NULL;
}

/* As the event loop does it. */
static void *change(void *argument)
{
	struct stage *stage = argument;
	uint64_t received, reasons[REASON_COUNT];
	struct flow_counters flows;
	struct flow_tuple tuple = { .protocol = 6, .family = 4, .destination_port = 0x5000 };
	struct mux_answer answer;

	memcpy(tuple.destination, vip4, 4);
	for (unsigned turn = 0; turn < TURNS; turn++) {
		struct snapshot *snapshot = make_snapshot(turn & 1);

		expect(worker_publish(stage->worker, snapshot) == 0);
		snapshot_put(snapshot);
		worker_reclaim(stage->worker);
		worker_ask_lookup(stage->worker, stage->mux, stage->snapshots[0], &tuple, &answer, 5000);
		if (worker_ask_counters(stage->worker, stage->mux, &received, reasons, &flows, 5000) == 0)
			stage->forwarded = reasons[REASON_FORWARDED];
	}
	return NULL;
}

int main(void)
{
	static struct source source = { .io = { .ops = &source_ops, .link = LINK_RAW_IP, .references = 1 }, .chance = 1 };
	const struct mux_config config = { .flows = 1 };
	struct stage stage = { .snapshots = { make_snapshot(false), make_snapshot(true) } };
	pthread_t threads[2];

	expect(mux_create(&config, &stage.mux) == 0);
	expect(worker_create(&stage.mux->pipeline, &source.io, stage.snapshots[0], -1, &stage.worker) == 0);
	expect(worker_start(stage.worker) == 0);
	pthread_create(&threads[0], NULL, read_along, &stage);
	pthread_create(&threads[1], NULL, change, &stage);
	for (unsigned i = 0; i < 2; i++)
		pthread_join(threads[i], NULL);
	expect(worker_stop(stage.worker) == 0);
	worker_destroy(stage.worker);
	mux_destroy(stage.mux);
	snapshot_put(stage.snapshots[0]);
	snapshot_put(stage.snapshots[1]);
	printf("%llu\n", (unsigned long long)stage.forwarded);
	return 0;
}
