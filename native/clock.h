/* SPDX-License-Identifier: Apache-2.0 */
/* The clock that bursts are given while workers run: nanoseconds, never back. */
#ifndef VIPMUX_CLOCK_H
#define VIPMUX_CLOCK_H

#include <stdint.h>
#include <time.h>

static inline uint64_t clock_now_ns(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

#endif
