/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which of the two receive rings of io_packet.c takes the packets: slots, which wake the worker with each packet, or
 * blocks, which cost the CPU that receives less but make a lone packet wait for a timer.
 *
 * Nobody tells the kernel to switch.  Both rings are in one fanout group that always chooses the slots, and rolls over
 * to the blocks while no slot is free; the kernel decides that for each packet, so none is lost and none comes twice.
 * The worker chooses blocks by keeping the slots that it has read, and slots by giving them back:
 *
 *     SLOTS --fast--> FILLING --no slot left--> BLOCKS --slow--> SETTLING --time passed--> SLOTS
 *                        `-------------------slow------------------^
 *
 * While it settles, the slots wait for the last block, whose packets are older.  Decisions and nothing else.
 */
#ifndef VIPMUX_RING_CHOICE_H
#define VIPMUX_RING_CHOICE_H

#include <stdbool.h>
#include <stdint.h>

#include "worker/worker_pace.h"

enum ring_state {
	RING_SLOTS,    /* slots are read and given back */
	RING_FILLING,  /* slots are read and kept */
	RING_BLOCKS,   /* all slots are kept */
	RING_SETTLING, /* slots are free, and not read yet */
};

#define RING_FAST 500000u       /* packets per second: blocks fill before their timer, or nearly */
#define RING_SLOW 300000u
#define RING_SETTLE_NS 2000000u /* the timer of a block is 1 ms */

/* Begin: RING_CHOICE_START. */
struct ring_choice {
	struct rate_gate gate;
	enum ring_state state;
	uint64_t settled; /* when SETTLING ends */
};

#define RING_CHOICE_START { .gate = { .up = RING_FAST, .down = RING_SLOW } }

/* After each look at the rings: packets that they gave, and whether all slots are kept. */
void ring_choice_step(struct ring_choice *choice, unsigned packets, bool all_kept, uint64_t now);

static inline bool ring_choice_keeps_slots(const struct ring_choice *choice)
{
	return choice->state == RING_FILLING || choice->state == RING_BLOCKS;
}

static inline bool ring_choice_reads_slots(const struct ring_choice *choice)
{
	return choice->state == RING_SLOTS || choice->state == RING_FILLING;
}

#endif
