/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Load shedding: which packets a MUX that gets more than it can take drops by choice, so that it has the time to read the
 * others.  A ring that is full drops whatever comes next, whosever it is; a packet that is shed has been read and looked up,
 * but is not encapsulated and sent, which is most of the work.  Whom it hits is said by service, and apart for packets of
 * flows that are new (or have no entry) and of flows that are known.
 *
 * Rules are set by a control thread and read by the worker, a word each: shed_set() any thread, one at a time; the rest the
 * worker alone.
 */
#ifndef VIPMUX_SHED_H
#define VIPMUX_SHED_H

#include <stdbool.h>
#include <stdint.h>

#define SHED_MAX 4u /* services at once */

struct shed {
	uint64_t rules[SHED_MAX]; /* see shed_rule(); the first that is 0 ends them */
	uint32_t random;          /* the worker's, not 0 once it was used */
};

/* service: its id; fresh, known: of 65,536 packets so many are dropped. */
static inline uint64_t shed_rule(uint32_t service, uint16_t fresh, uint16_t known)
{
	return (uint64_t)(service + 1) << 32 | (uint64_t)fresh << 16 | known;
}

static inline void shed_set(struct shed *shed, const uint64_t *rules, unsigned count)
{
	for (unsigned i = 0; i < SHED_MAX; i++)
		__atomic_store_n(&shed->rules[i], i < count ? rules[i] : 0, __ATOMIC_RELAXED);
}

static inline uint64_t shed_first(const struct shed *shed)
{
	return __atomic_load_n(&shed->rules[0], __ATOMIC_RELAXED);
}

/* xorshift: a flow must not be hit always or never because packets come in turn. */
static inline uint16_t shed_random(struct shed *shed)
{
	uint32_t x = shed->random ? shed->random : 0x9e3779b9u;

	x ^= x << 13;
	x ^= x >> 17;
	x ^= x << 5;
	shed->random = x;
	return (uint16_t)(x >> 8);
}

/* Whether a packet of a service is one of those that are dropped. */
static inline bool shed_takes(struct shed *shed, uint32_t service, bool known)
{
	for (unsigned i = 0; i < SHED_MAX; i++) {
		uint64_t rule = __atomic_load_n(&shed->rules[i], __ATOMIC_RELAXED);

		if (!rule)
			break;
		if (rule >> 32 == (uint64_t)service + 1)
			return shed_random(shed) < (uint16_t)(known ? rule : rule >> 16);
	}
	return false;
}

#endif
