/* SPDX-License-Identifier: Apache-2.0 */
/*
 * When a worker goes back to its io.  A lone packet leaves at once: the worker sleeps until the kernel wakes it.  Under
 * load that would be a wake-up for every packet or two, which costs more than the packets; so from some rate on the
 * worker, when it has emptied its io, stays away for a moment, and takes what gathered meanwhile as one burst.
 *
 * Decisions and nothing else: they read no clock and touch no file.  now: ns of a clock that never goes back.
 */
#ifndef VIPMUX_WORKER_PACE_H
#define VIPMUX_WORKER_PACE_H

#include <stdbool.h>
#include <stdint.h>

/* Above or below a rate, with hysteresis.  Limits: packets per second; all else zero at the start. */
struct rate_gate {
	uint32_t up;      /* from this rate on it is high, */
	uint32_t down;    /* and below this one no longer; between the two it stays as it was */
	uint64_t since;   /* when the window began */
	uint64_t packets; /* in it so far */
	bool high;
};

#define RATE_WINDOW_NS 1000000u /* at least */

/* More packets came, or none; returns whether the rate is high. */
bool rate_gate_count(struct rate_gate *gate, unsigned packets, uint64_t now);

#define PACE_UP 80000u
#define PACE_DOWN 40000u
#define PACE_PAUSE_NS 100000u /* what gathering may add to a packet's way */

/* Begin: PACE_START. */
struct pace {
	struct rate_gate gate;
	bool fresh; /* packets came since the last pause */
};

#define PACE_START { .gate = { .up = PACE_UP, .down = PACE_DOWN } }

/* After each turn: packets that it took. */
void pace_count(struct pace *pace, unsigned packets, uint64_t now);

/* The io is empty: ns to stay away from it, 0: sleep until it has something.  Never two pauses without a packet between. */
uint32_t pace_pause(struct pace *pace);

#endif
