/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a MUX answers by itself, and how often: pings, and errors and resets about packets that go no further.  So many of each
 * kind for each second and worker, and ANSWERS_AT_ONCE more after a pause; so a flood of one kind takes nothing from the others.
 *
 * A virtual schedule (GCRA): each answer moves the time at which the next is due by 1/rate, and one that is due too far ahead is not
 * given.  Belongs to the worker; now: of answers_clock().
 */
#ifndef VIPMUX_ANSWERS_H
#define VIPMUX_ANSWERS_H

#include <stdbool.h>
#include <stdint.h>

#define ANSWERS_AT_ONCE 50u
#define ANSWERS_CLOCK_SHIFT 20 /* its clock goes in steps of 2^20 ns, so that what comes together need not be told apart */
#define ANSWERS_MAX 1000000u /* for each second */

enum answer_kind {
	ANSWER_ECHO = 0,
	ANSWER_TOO_BIG = 1, /* path MTU discovery waits for it */
	ANSWER_OTHER = 2,
	ANSWER_KINDS = 3,
};

/* What whoever asks for a service that is not there, or has no backend, gets. */
enum mux_unserved {
	UNSERVED_DROP = 0,
	UNSERVED_UNREACHABLE = 1, /* ICMP */
	UNSERVED_RESET = 2,	  /* of TCP a reset, of all else as UNREACHABLE */
};

struct answer_rate {
	uint64_t due[ANSWER_KINDS];
};

/* The time for answer_rate_takes(), where it was `before`. */
static inline uint64_t answers_clock(uint64_t before, uint64_t now_ns)
{
	uint64_t now = now_ns >> ANSWERS_CLOCK_SHIFT << ANSWERS_CLOCK_SHIFT;

	return now > before ? now : before;
}

/* Whether one more of a kind may be given now, which then counts.  per_second: 1 to ANSWERS_MAX. */
static inline bool answer_rate_takes(struct answer_rate *rate, enum answer_kind kind, uint32_t per_second, uint64_t now)
{
	uint64_t step = 1000000000u / per_second, due = rate->due[kind] > now ? rate->due[kind] : now;

	if (due - now > (ANSWERS_AT_ONCE - 1) * step)
		return false;
	rate->due[kind] = due + step;
	return true;
}

#endif
