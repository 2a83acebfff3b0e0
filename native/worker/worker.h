/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A worker: one thread that runs a pipeline over an io, burst after burst.  Control threads create it, publish
 * snapshots to it, ask it to run short functions, and watch its heartbeat; none of that ever makes it wait.
 *
 * The worker holds references of its own on its pipeline, its io and every snapshot it was given, so whoever made these may
 * let go of them while it runs.  All functions may be called from any thread except worker_destroy(), which is the last.
 * In a process that was forked after worker_start() there is no such thread: it counts as stopped there.
 */
#ifndef VIPMUX_WORKER_H
#define VIPMUX_WORKER_H

#include <stdint.h>

#include "machine/io.h"
#include "worker/pipeline.h"

struct worker;

struct worker_counters {
	uint64_t bursts;  /* heartbeat: turns of the loop, at least ten a second even when no packet comes */
	uint64_t errors;  /* receive() failed */
	int32_t error;    /* the last such errno, 0 while all is well */
	uint32_t running; /* 1 between start and stop */
	uint32_t retired; /* snapshots not yet let go */
};

/* cpu: the one to stay on, -1 for any.  snapshot may be NULL. */
int worker_create(struct pipeline *pipeline, struct io *io, struct snapshot *snapshot, int cpu, struct worker **out);
int worker_start(struct worker *worker);

/* One pointer store; the old snapshot is put once the worker has begun a later burst. */
int worker_publish(struct worker *worker, struct snapshot *snapshot);

/* Puts the retired snapshots that nobody can hold any more; returns how many remain. */
unsigned worker_reclaim(struct worker *worker);

/*
 * Runs function(argument) on the worker between two bursts, so that it sees flows and counters at rest.  It must be
 * short.  0 when it ran, -ETIMEDOUT when the worker did not come by in time (then it will not run any more).
 * While the worker is stopped the function runs at once, in the caller.
 */
int worker_call(struct worker *worker, void (*function)(void *argument), void *argument, int timeout_ms);

void worker_counters(struct worker *worker, struct worker_counters *out);

int worker_stop(struct worker *worker);
void worker_destroy(struct worker *worker);

#endif
