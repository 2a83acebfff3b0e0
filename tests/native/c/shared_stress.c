/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Two workers under load, which ask each other for flows, while other threads publish snapshots to them, ask them, and read what
 * they write.  Built with ThreadSanitizer by tests/native/test_shared.py, which looks at what that says.  Prints how many packets
 * were forwarded, and how many flows taken over.
 *
 * The sanitizer finds accesses that nothing orders, be they close together or not: a few turns of each kind are enough, and the
 * workers rest between bursts, so that they do not take the others' time.
 */
#include <pthread.h>
#include <stdio.h>
#include <unistd.h>

#include "../../fuzz/world.h"
#include "api/api_glue.h"
#include "control/flow_table_scan.h"
#include "control/worker_ask.h"

#define TURNS 6
#define WORKERS 2
#define REST_US 500
#define ROOM 256 /* of a frame, headroom included */
#define HEADROOM 128

struct source {
	struct io io;
	uint64_t chance;
	unsigned turns;
	uint8_t buffers[BURST_MAX][ROOM];
};

static int source_receive(struct io *io, struct frame *frames, unsigned max)
{
	static const uint8_t plain[40] = { 0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 0, 203, 0, 113, 10,
					   0,	 0, 0, 80, [32] = 0x50, [33] = 0x10 };
	struct source *source = (struct source *)io;

	if (++source->turns % 2)
		return 0;
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
	usleep(REST_US);
}

static void source_stats(const struct io *io, struct io_stats *out)
{
	(void)io;
	memset(out, 0, sizeof(*out));
}

static const struct io_ops source_ops = { "stress", source_receive, source_send, source_nothing,
					  source_wait, source_stats, source_nothing };

struct stage {
	struct mux *muxes[WORKERS];
	struct worker *workers[WORKERS];
	struct snapshot *snapshots[2];
	uint64_t forwarded;
	uint64_t taken_over;
};

/* As the metrics' thread does it: what the workers write, at any time. */
static void *read_along(void *argument)
{
	struct stage *stage = argument;
	struct flow_scan_row rows[SERVICES * BACKENDS];
	uint64_t received, reasons[REASON_COUNT], records[64];
	struct flow_counters flows;
	struct worker_counters counters;
	uint32_t owners[64];

	for (unsigned i = 0; i < WORKERS; i++) {
		memset(rows, 0, sizeof(rows));
		mux_counters_read(stage->muxes[i], &received, reasons, &flows);
		worker_counters(stage->workers[i], &counters);
		mux_forgotten(stage->muxes[i]);
		flow_scan_count(stage->muxes[i], stage->snapshots[0], rows, SERVICES * BACKENDS);
		flow_scan_unsynchronised(stage->muxes[i], stage->snapshots[0], records, owners, 64);
	}
	return NULL;
}

/* As the event loop does it. */
static void publish_and_ask(struct stage *stage, struct worker *worker, const struct mux *mux, bool changed)
{
	uint64_t received, reasons[REASON_COUNT];
	struct flow_counters flows;
	struct flow_tuple tuple = { .protocol = 6, .family = 4, .destination_port = 0x5000 };
	struct mux_answer answer;
	struct snapshot *snapshot = make_snapshot(changed);

	memcpy(tuple.destination, vip4, 4);
	expect(worker_publish(worker, snapshot) == 0);
	snapshot_put(snapshot);
	worker_reclaim(worker);
	worker_ask_lookup(worker, mux, stage->snapshots[0], &tuple, &answer, 5000);
	if (worker_ask_counters(worker, mux, &received, reasons, &flows, 5000) == 0)
		stage->forwarded += reasons[REASON_FORWARDED];
}

/* As the engine does it when flows may come to another worker: they ask each other, and what one took over the other forgets. */
static void regroup(struct stage *stage, bool strangers)
{
	uint64_t keys[RELEASE_MAX];
	uint32_t count = 0, released;

	for (unsigned i = 0; i < WORKERS; i++)
		worker_ask_meet(stage->workers[i], stage->muxes[i], &stage->muxes[1 - i]->table, 1, strangers, 5000);
	for (unsigned i = 0; i < WORKERS; i++) {
		worker_ask_claims(stage->workers[i], stage->muxes[i], keys, RELEASE_MAX, &count, 5000);
		worker_ask_release(stage->workers[1 - i], stage->muxes[1 - i], keys, count, &released, 5000);
		stage->taken_over += count;
	}
}

static void *change(void *argument)
{
	struct stage *stage = argument;

	for (unsigned turn = 0; turn < TURNS; turn++) {
		regroup(stage, turn % 3 != 2);
		for (unsigned i = 0; i < WORKERS; i++)
			publish_and_ask(stage, stage->workers[i], stage->muxes[i], turn & 1);
	}
	return NULL;
}

int main(void)
{
	static struct source sources[WORKERS];
	const struct mux_config config = { .flows = 1 };
	struct stage stage = { .snapshots = { make_snapshot(false), make_snapshot(true) } };
	pthread_t threads[2];

	for (unsigned i = 0; i < WORKERS; i++) {
		sources[i] = (struct source){ .io = { .ops = &source_ops, .link = LINK_RAW_IP, .references = 1 }, .chance = 1 };
		expect(mux_create(&config, &stage.muxes[i]) == 0);
		expect(worker_create(&stage.muxes[i]->pipeline, &sources[i].io, stage.snapshots[0], -1, &stage.workers[i]) == 0);
	}
	for (unsigned i = 0; i < WORKERS; i++)
		expect(worker_start(stage.workers[i]) == 0);
	pthread_create(&threads[0], NULL, read_along, &stage);
	pthread_create(&threads[1], NULL, change, &stage);
	for (unsigned i = 0; i < 2; i++)
		pthread_join(threads[i], NULL);
	for (unsigned i = 0; i < WORKERS; i++)
		expect(worker_stop(stage.workers[i]) == 0);
	for (unsigned i = 0; i < WORKERS; i++) {
		worker_destroy(stage.workers[i]);
		mux_destroy(stage.muxes[i]);
	}
	snapshot_put(stage.snapshots[0]);
	snapshot_put(stage.snapshots[1]);
	printf("%llu %llu\n", (unsigned long long)stage.forwarded, (unsigned long long)stage.taken_over);
	return 0;
}
