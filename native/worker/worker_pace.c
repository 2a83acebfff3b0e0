/* SPDX-License-Identifier: Apache-2.0 */
/* See worker_pace.h. */
#include "worker/worker_pace.h"

bool rate_gate_count(struct rate_gate *gate, unsigned packets, uint64_t now)
{
	uint64_t elapsed = now - gate->since;

	gate->packets += packets;
	if (elapsed >= RATE_WINDOW_NS) {
		uint64_t rate = gate->packets * 1000000000u / elapsed;

		gate->high = rate >= (gate->high ? gate->down : gate->up);
		gate->since = now;
		gate->packets = 0;
	}
	return gate->high;
}

void pace_count(struct pace *pace, unsigned packets, uint64_t now)
{
	rate_gate_count(&pace->gate, packets, now);
	pace->fresh = pace->fresh || packets;
}

uint32_t pace_pause(struct pace *pace)
{
	bool pause = pace->gate.high && pace->fresh;

	pace->fresh = false;
	return pause ? PACE_PAUSE_NS : 0;
}
