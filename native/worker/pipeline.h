/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a worker runs: the MUX's inbound pipeline (mux.c) and the host's decapsulation (host_pipeline.c) embed this as their
 * first member.  Called only by the one worker that owns the pipeline, or by a test that stands in for it.
 */
#ifndef VIPMUX_PIPELINE_H
#define VIPMUX_PIPELINE_H

#include <stdint.h>

struct frame;
struct io;
struct snapshot;

struct pipeline {
	/* Processes and sends one burst; count <= BURST_MAX.  Sends through io->ops->send.  The snapshot is borrowed
	 * for the call; it may be NULL for pipelines without one. */
	void (*burst)(struct pipeline *pipeline, const struct snapshot *snapshot, struct io *io, struct frame *frames,
		      unsigned count, uint64_t now_ns);
	/* Housekeeping, after each burst and when idle: expiry sweeps.  Bounded work. */
	void (*tick)(struct pipeline *pipeline, const struct snapshot *snapshot, uint64_t now_ns);
	/* Once, by the worker's thread before its first burst: touches memory, so that it is of its NUMA node.  May be NULL. */
	void (*warm)(struct pipeline *pipeline);
	/* Frees it. */
	void (*destroy)(struct pipeline *pipeline);
	uint32_t references; /* atomic: whoever made it, and the worker that runs it; create sets 1 */
};

static inline struct pipeline *pipeline_get(struct pipeline *pipeline)
{
	__atomic_fetch_add(&pipeline->references, 1, __ATOMIC_RELAXED);
	return pipeline;
}

/* Lets go of it, from any thread; the last to do so frees it. */
static inline void pipeline_put(struct pipeline *pipeline)
{
	if (pipeline && __atomic_sub_fetch(&pipeline->references, 1, __ATOMIC_ACQ_REL) == 0)
		pipeline->destroy(pipeline);
}

#endif
