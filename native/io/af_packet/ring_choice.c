/* SPDX-License-Identifier: Apache-2.0 */
/* See ring_choice.h. */
#include "io/af_packet/ring_choice.h"

void ring_choice_step(struct ring_choice *choice, unsigned packets, bool all_kept, uint64_t now)
{
	bool fast = rate_gate_count(&choice->gate, packets, now);

	switch (choice->state) {
	case RING_SLOTS:
		if (fast)
			choice->state = RING_FILLING;
		break;
	case RING_FILLING:
	case RING_BLOCKS:
		if (!fast) {
			choice->state = RING_SETTLING;
			choice->settled = now + RING_SETTLE_NS;
		} else if (all_kept) {
			choice->state = RING_BLOCKS;
		}
		break;
	case RING_SETTLING:
		if (now >= choice->settled)
			choice->state = RING_SLOTS;
		break;
	}
}
