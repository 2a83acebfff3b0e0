/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Segments of one TCP stream that came in one burst, one behind the other, become the super-packet that they are cut from again
 * where they leave: what GRO does on interfaces that have it.  For ios that send such whole (io.h): there a system call, a way
 * through the kernel and, where links carry them, one through all machines behind serve forty segments instead of one.
 *
 * Nobody can tell: what is put together differs in sequence number, ID (each one more than the one before), length and PSH (of
 * the last) alone, and all that follows from them.  A segment whose checksum is wrong stays by itself, for its receiver to drop.
 * No packet overtakes another, and none waits: what has not come yet is for the next burst.
 *
 * Not thread-safe; a struct merge belongs to one worker.
 */
#ifndef VIPMUX_MERGE_H
#define VIPMUX_MERGE_H

#include <stdbool.h>

#include "machine/io.h"

struct merge;

/* NULL: no memory. */
struct merge *merge_create(void);
void merge_destroy(struct merge *merge);

/*
 * Frames of a burst in their order; returns how many are left.  One made of several is in memory of the merge, with IO_HEADROOM
 * before it, until the next call; it has FRAME_MERGED, gso_size and csum_start.  `guess`: a checksum that is the sum of the
 * pseudo-header was left to the NIC, which the io cannot tell (struct mux_config's detect_partial).
 */
unsigned merge_burst(struct merge *merge, enum link_type link, bool guess, struct frame *frames, unsigned count);

#endif
