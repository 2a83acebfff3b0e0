/* SPDX-License-Identifier: Apache-2.0 */
/* Clocks in nanoseconds; clock_now_ns() is the one that bursts are given while workers run, and never goes back. */
#ifndef VIPMUX_CLOCK_H
#define VIPMUX_CLOCK_H

#include <stdint.h>
#include <time.h>

static inline uint64_t clock_read_ns(clockid_t clock)
{
	struct timespec time;

	clock_gettime(clock, &time);
	return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static inline uint64_t clock_now_ns(void)
{
	return clock_read_ns(CLOCK_MONOTONIC);
}

/* Of this thread's CPU time: what others take of the core does not count. */
static inline uint64_t clock_cpu_ns(void)
{
	return clock_read_ns(CLOCK_THREAD_CPUTIME_ID);
}

#endif
