/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The pipeline beside the reference MUX (reference_mux.h), given the same packets (traffic.h): with every level of vector
 * instructions that the processor has, in bursts as they come, and one packet at a time.  After each burst everything that
 * each says of each packet and every byte that it sends must be the same, and now and then all counters and the whole
 * flow table.
 */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "mux/mux.h"
#include "reference_mux.h"
#include "traffic.h"

#define SLAB (TRAFFIC_FRAME_MAX + 2 * IO_HEADROOM)
#define GUARD 0xa5
#define TWINS 8u
#define BURSTS_BETWEEN_LOOKS 512u /* at everything */
#define BURSTS_OF_A_WORLD 150u

struct whole_setup {
	uint64_t seed;
	uint64_t packets;
	uint32_t link;        /* enum mux_link */
	uint32_t flows;       /* 0: no table */
	uint32_t partial, whole, fails, crowded, flood, supers, exact;
};

/* What was met: the caller sees to it that everything was. */
struct whole_seen {
	uint64_t reasons[REASON_COUNT];
	uint64_t flows[4]; /* by enum flow_report */
	uint64_t whole;    /* super-packets that left as they came */
	uint64_t evicted, refused, expired;
	uint32_t twins;
};

struct bench_io {
	struct io io;
	struct run *run;
	uint32_t sent;  /* of this burst */
	uint64_t sends;
	const char *name;
};

struct twin {
	const char *name;
	bool alone; /* one packet at a time */
	struct mux *mux;
	struct bench_io io;
};

struct run {
	const struct whole_setup *setup;
	struct traffic traffic;
	struct reference_world world;
	struct snapshot *snapshot;
	struct reference_mux plain;
	struct twin twins[TWINS];
	uint32_t twin_count;
	uint8_t *bytes, *slabs; /* frames as they came; as one of the twins is given them */
	struct frame frames[BURST_MAX];
	struct plain_result results[BURST_MAX];
	uint32_t count;
	unsigned first; /* of those that the twin at hand was given, where it gets them one at a time */
	uint64_t packets, now;
	char *report;
	size_t room;
};

static void say(struct run *run, const char *format, ...)
{
	size_t used = strlen(run->report);
	va_list list;

	va_start(list, format);
	vsnprintf(run->report + used, run->room - used, format, list);
	va_end(list);
}

/* The first difference is told with the packet. */
static void differs(struct run *run, const struct twin *twin, unsigned i, const char *what, uint64_t got, uint64_t wanted)
{
	const struct frame *frame = &run->frames[i];

	if (run->report[0])
		return;
	say(run, "%s: packet %llu (%u of %u in its burst): %s is %llu, not %llu\n", twin->name,
	    (unsigned long long)(run->packets + i), i, run->count, what, (unsigned long long)got, (unsigned long long)wanted);
	say(run, "len %u wire_len %u gso_size %u csum %u+%u offload %u; %s\n", frame->len, frame->wire_len, frame->gso_size,
	    frame->csum_start, frame->csum_offset, frame->offload, run->results[i].reason ? "not forwarded" : "forwarded");
	for (uint32_t n = 0; n < frame->len && n < 96; n++)
		say(run, "%02x", frame->data[n]);
}

/* ---- what is sent ---- */

static void bench_send(struct io *io, struct frame *frames, unsigned count)
{
	struct bench_io *bench = (struct bench_io *)io;
	struct run *run = bench->run;
	struct twin *twin = (struct twin *)((char *)bench - offsetof(struct twin, io));

	for (unsigned i = 0; i < count; i++) {
		struct frame *frame = &frames[i];
		const struct plain_sent *wanted = &run->plain.sent[bench->sent];
		unsigned origin = run->first + frame->origin;

		frame->error = run->setup->fails && ++bench->sends % run->setup->fails == 0 ? 105 : 0;
		if (bench->sent++ >= run->plain.sent_count) {
			differs(run, twin, origin % BURST_MAX, "frames sent", bench->sent, run->plain.sent_count);
			continue;
		}
		if (origin != wanted->origin)
			differs(run, twin, origin % BURST_MAX, "origin", origin, wanted->origin);
		else if (frame->len != wanted->len)
			differs(run, twin, origin, "length sent", frame->len, wanted->len);
		else if (memcmp(frame->data, run->plain.bytes + wanted->at, wanted->len))
			for (uint32_t n = 0; n < wanted->len; n++)
				if (frame->data[n] != run->plain.bytes[wanted->at + n]) {
					differs(run, twin, origin, "a byte sent", n << 16 | frame->data[n],
						n << 16 | run->plain.bytes[wanted->at + n]);
					break;
				}
		if (frame->ifindex != wanted->ifindex)
			differs(run, twin, origin % BURST_MAX, "interface", frame->ifindex, wanted->ifindex);
		if (frame->gso_size != wanted->gso_size)
			differs(run, twin, origin % BURST_MAX, "gso_size", frame->gso_size, wanted->gso_size);
		else if (frame->gso_size && (frame->csum_start != wanted->csum_start || frame->csum_offset != wanted->csum_offset ||
					     frame->offload != wanted->offload))
			differs(run, twin, origin % BURST_MAX, "marks", frame->csum_start, wanted->csum_start);
	}
}

static const struct io_ops bench_ops = { .name = "bench", .send = bench_send };

/* ---- a burst ---- */

static uint8_t *slab(uint8_t *slabs, unsigned i)
{
	return slabs + (size_t)i * SLAB + IO_HEADROOM;
}

/* Frames lie as an io's do: writable before, and nothing of theirs behind. */
static void lay_out(struct run *run, struct frame *frames)
{
	for (unsigned i = 0; i < run->count; i++) {
		uint8_t *at = slab(run->slabs, i) + i % 8;

		frames[i] = run->frames[i];
		memset(at - IO_HEADROOM, GUARD, IO_HEADROOM);
		memcpy(at, run->frames[i].data, frames[i].len);
		memset(at + frames[i].len, GUARD, 16);
		frames[i].data = at;
		frames[i].headroom = IO_HEADROOM;
	}
}

static void check_guards(struct run *run, const struct twin *twin, const struct frame *frames)
{
	for (unsigned i = 0; i < run->count; i++) {
		const uint8_t *at = slab(run->slabs, i) + i % 8;

		for (unsigned n = 0; n < 16; n++)
			if (at[frames[i].len + n] != GUARD)
				differs(run, twin, i, "a byte behind the frame", at[frames[i].len + n], GUARD);
		/* An outer header and a link header at most, and the room where a link header was. */
		for (unsigned n = 40 + 14; n < IO_HEADROOM; n++)
			if (at[-1 - (int)n] != GUARD)
				differs(run, twin, i, "a byte before the headroom", at[-1 - (int)n], GUARD);
	}
}

static void compare_result(struct run *run, const struct twin *twin, unsigned i, unsigned place)
{
	const struct passage *passage = &twin->mux->passages[place];
	const struct plain_result *wanted = &run->results[i];
	int32_t service = passage->service ? (int32_t)passage->service->id : -1;

	if (twin->mux->packets[place].reason != wanted->reason)
		differs(run, twin, i, "reason", twin->mux->packets[place].reason, wanted->reason);
	if (service != wanted->service)
		differs(run, twin, i, "service", (uint64_t)service, (uint64_t)wanted->service);
	if (passage->flow != wanted->flow)
		differs(run, twin, i, "flow", passage->flow, wanted->flow);
	if (passage->flow && passage->backend_number != wanted->backend)
		differs(run, twin, i, "backend", passage->backend_number, (uint64_t)wanted->backend);
}

static void run_twin(struct run *run, struct twin *twin)
{
	struct pipeline *pipeline = &twin->mux->pipeline;
	unsigned step = twin->alone ? 1 : run->count;
	struct frame frames[BURST_MAX];

	lay_out(run, frames);
	twin->io.sent = 0;
	for (run->first = 0; run->first < run->count; run->first += step) {
		pipeline->burst(pipeline, run->snapshot, &twin->io.io, frames + run->first, step, run->now);
		for (unsigned n = 0; n < step; n++)
			compare_result(run, twin, run->first + n, n);
	}
	pipeline->tick(pipeline, run->snapshot, run->now);
	if (twin->io.sent != run->plain.sent_count)
		differs(run, twin, run->count - 1, "frames sent", twin->io.sent, run->plain.sent_count);
	check_guards(run, twin, frames);
}

static void run_plain(struct run *run, struct whole_seen *seen)
{
	reference_mux_burst(&run->plain, &run->world, run->now);
	for (unsigned i = 0; i < run->count; i++) {
		reference_mux_packet(&run->plain, &run->frames[i], (uint8_t)i, &run->results[i]);
		seen->reasons[run->results[i].reason]++;
		seen->flows[run->results[i].flow]++;
	}
	reference_mux_tick(&run->plain);
	for (unsigned i = 0; i < run->plain.sent_count; i++)
		seen->whole += run->plain.sent[i].gso_size != 0;
}

/* ---- everything ---- */

static void expect(struct run *run, const struct twin *twin, const char *what, uint64_t number, uint64_t got, uint64_t wanted)
{
	if (got != wanted && !run->report[0])
		say(run, "%s: after %llu packets: %s %llu is %llu, not %llu\n", twin->name, (unsigned long long)run->packets,
		    what, (unsigned long long)number, (unsigned long long)got, (unsigned long long)wanted);
}

static void look_at_table(struct run *run, const struct twin *twin)
{
	const struct flow_table *mine = twin->mux->table, *wanted = run->plain.table;
	const uint64_t *numbers = (const uint64_t *)&mine->counters, *right = (const uint64_t *)&wanted->counters;

	for (unsigned i = 0; i < sizeof(mine->counters) / sizeof(uint64_t); i++)
		expect(run, twin, "the table's counter", i, numbers[i], right[i]);
	for (uint64_t i = 0; i < mine->line_count; i++)
		expect(run, twin, "a difference in the table's line", i,
		       (uint64_t)memcmp(&mine->lines[i], &wanted->lines[i], sizeof(mine->lines[i])) != 0, 0);
}

static void look(struct run *run, const struct twin *twin)
{
	const struct mux *mux = twin->mux;

	expect(run, twin, "received", 0, mux->counters.received, run->plain.received);
	for (unsigned i = 0; i < REASON_COUNT; i++)
		expect(run, twin, "reason", i, mux->counters.reasons[i], run->plain.reasons[i]);
	for (uint32_t i = 0; i < run->world.count; i++) {
		expect(run, twin, "packets of service", i, mux->service_counters[i].packets, run->plain.services[i].packets);
		expect(run, twin, "bytes of service", i, mux->service_counters[i].bytes, run->plain.services[i].bytes);
		expect(run, twin, "flows of service", i, mux->service_counters[i].flows, run->plain.services[i].flows);
		expect(run, twin, "dropped of service", i, mux->service_counters[i].dropped, run->plain.services[i].dropped);
	}
	for (uint32_t i = 0; i < run->world.count * PLAIN_BACKENDS; i++)
		expect(run, twin, "packets of backend", i, mux->backend_counters[i], run->plain.backends[i]);
	if (mux->table)
		look_at_table(run, twin);
}

/* ---- a run ---- */

static uint32_t load32(const uint8_t *p)
{
	uint32_t value;

	memcpy(&value, p, 4);
	return value;
}

static void add_twin(struct run *run, uint32_t level, bool alone)
{
	struct twin *twin = &run->twins[run->twin_count];
	struct mux_config config = run->plain.config;

	if (!vector_get(level))
		return;
	config.vector = level;
	*twin = (struct twin){ .name = alone ? "one at a time" : vector_name(level), .alone = alone };
	if (mux_create(&config, &twin->mux))
		abort();
	twin->io = (struct bench_io){ .io = { .ops = &bench_ops, .link = run->plain.link, .sends_whole = run->setup->whole },
				      .run = run };
	run->twin_count++;
}

/* The table of somebody who was there before: full of flows of the flooded service, of every class. */
static void fill_table(const struct run *run, struct flow_table *table)
{
	static const enum flow_class classes[] = { FLOW_TCP_TRUSTED, FLOW_TCP_TRUSTED, FLOW_TCP_TRUSTED, FLOW_TCP_TRUSTED_ENDED,
						   FLOW_TCP_YOUNG, FLOW_TCP_UNTRUSTED, FLOW_TCP_YOUNG_ENDED };

	for (uint32_t n = 0; n < TRAFFIC_CROWD; n++) {
		uint8_t source[4] = { 10, (uint8_t)(n >> 16), (uint8_t)(n >> 8), (uint8_t)n };
		uint64_t key = flow_scramble(&run->plain.seed, flow_key_narrow(0, load32(source), htons((uint16_t)n)));
		/* Most lines have trusted ones alone. */
		enum flow_class class = n % 16 ? FLOW_TCP_TRUSTED : classes[n / 16 % 7];

		if (!flow_table_find(table, key).line)
			flow_table_insert(table, key, n % 5, class);
	}
	flow_table_settle(table);
}

static void fill_tables(struct run *run)
{
	reference_mux_burst(&run->plain, &run->world, run->now);
	fill_table(run, run->plain.table);
	for (uint32_t i = 0; i < run->twin_count; i++) {
		mux_set_time(run->twins[i].mux, run->snapshot, run->now);
		fill_table(run, run->twins[i].mux->table);
	}
}

static void start(struct run *run)
{
	const struct whole_setup *setup = run->setup;

	run->traffic = (struct traffic){ .chance = setup->seed,
					 .link = setup->link == MUX_LINK_NONE ? LINK_RAW_IP : LINK_ETHERNET,
					 .crowded = setup->crowded,
					 .flood = setup->flood,
					 .supers = setup->supers,
					 .exact = setup->exact };
	traffic_make_world(&run->traffic, &run->world, &run->snapshot);
	run->plain.config = (struct mux_config){ .flows = setup->flows,
						 .link = setup->link,
						 .detect_partial = setup->partial,
						 .first_id = (uint32_t)setup->seed };
	run->plain.link = run->traffic.link;
	run->plain.sends_whole = setup->whole;
	run->plain.fails = setup->fails;
	run->plain.seed = run->snapshot->map->seed;
	reference_mux_start(&run->plain, run->world.count, run->world.count * PLAIN_BACKENDS);
	for (uint32_t level = VECTOR_SCALAR; level < VECTOR_LEVELS; level++)
		add_twin(run, level, false);
	add_twin(run, VECTOR_BEST, true);
	run->now = 1000000000000;
	if (setup->flood)
		fill_tables(run);
	run->bytes = malloc((size_t)BURST_MAX * SLAB);
	run->slabs = malloc((size_t)BURST_MAX * SLAB);
	if (!run->bytes || !run->slabs)
		abort();
}

static void end(struct run *run)
{
	for (uint32_t i = 0; i < run->twin_count; i++)
		mux_destroy(run->twins[i].mux);
	reference_mux_end(&run->plain);
	traffic_free_world(&run->world, run->snapshot);
	free(run->bytes);
	free(run->slabs);
}

static void fill_burst(struct run *run)
{
	run->count = traffic_below(&run->traffic, 4) ? 1 + traffic_below(&run->traffic, BURST_MAX) : BURST_MAX;
	if (run->setup->supers) /* large ones: what they all become must have room beside each other */
		run->count = 1 + run->count / 8;
	for (unsigned i = 0; i < run->count; i++) {
		traffic_frame(&run->traffic, &run->world, slab(run->bytes, i), &run->frames[i]);
		run->frames[i].data = slab(run->bytes, i);
	}
	run->now += traffic_pause(&run->traffic, &run->world);
}

/* An empty report: all were the same.  Else what was not, and the packet. */
void whole_run(const struct whole_setup *setup, struct whole_seen *seen, char *report, size_t room);
void whole_run(const struct whole_setup *setup, struct whole_seen *seen, char *report, size_t room)
{
	struct run *run = calloc(1, sizeof(*run));

	if (!run)
		abort();
	run->setup = setup;
	run->report = report;
	run->room = room;
	report[0] = 0;
	start(run);
	seen->twins = run->twin_count;
	for (uint64_t bursts = 1; run->packets < setup->packets && !report[0]; bursts++) {
		if (bursts % BURSTS_OF_A_WORLD == 0)
			traffic_change_world(&run->traffic, &run->world, &run->snapshot);
		fill_burst(run);
		run_plain(run, seen);
		for (uint32_t i = 0; i < run->twin_count; i++)
			run_twin(run, &run->twins[i]);
		run->packets += run->count;
		if (bursts % BURSTS_BETWEEN_LOOKS == 0 || run->packets >= setup->packets)
			for (uint32_t i = 0; i < run->twin_count; i++)
				look(run, &run->twins[i]);
	}
	if (run->plain.table) {
		seen->evicted += run->plain.table->counters.evicted;
		seen->refused += run->plain.table->counters.refused;
		seen->expired += run->plain.table->counters.expired;
	}
	end(run);
	free(run);
}
