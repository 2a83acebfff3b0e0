/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A TPACKET_V2 receive ring: the kernel fills slot after slot and wakes whoever polls with each, so a lone packet waits
 * for nothing.  (Version 3 packs frames into blocks, and hands over a block that is not full only after a timer.)
 *
 * A slot holds a frame of the interface's MTU, with IO_HEADROOM writable bytes before it (PACKET_RESERVE), so that an
 * outer header is built where the frame lies.  Longer frames are super-packets of the sender's segmentation offload:
 * for these the kernel queues the packet itself on the socket (PACKET_COPY_THRESH), in the order of the slots, and
 * slot_ring_receive() reads it into a buffer of its own.
 */
#ifndef VIPMUX_SLOT_RING_H
#define VIPMUX_SLOT_RING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "machine/io.h"

/* A slot, and where it lies: blocks of per_block slots, the last bytes of each unused. */
struct slot_cursor {
	uint8_t *slot;
	unsigned block;
	unsigned number; /* in the block */
};

struct slot_ring {
	int fd; /* -1: none */
	uint8_t *memory;
	size_t bytes;
	unsigned slot_bytes;
	unsigned per_block;
	unsigned blocks;
	struct slot_cursor first; /* the oldest that is ours */
	struct slot_cursor next;  /* the one to be read next */
	unsigned slots;           /* in all */
	unsigned held;            /* from first to next, to be given back */
	bool keep;                /* not yet: the kernel is to find no free one */
	bool backlog;             /* the last burst was a full one: more waits */
	uint8_t *large;           /* super-packets of this burst */
	unsigned larges;
	_Atomic uint64_t lost; /* super-packets that were not to be had after all; taken by whoever reports them */
};

/* Nothing is open: may be closed. */
void slot_ring_init(struct slot_ring *ring);

/*
 * Opens the socket and its ring, of bytes at most; it is not bound and receives nothing.  longest: the largest frame that
 * the interface receives unmerged, link header included.  Returns 0 or a negative errno; slot_ring_close() in any case.
 */
int slot_ring_open(struct slot_ring *ring, size_t bytes, unsigned longest);
void slot_ring_close(struct slot_ring *ring);

/* Returns how many frames it filled, 0: none waits, and their memory stays until slot_ring_release(). */
unsigned slot_ring_receive(struct slot_ring *ring, struct frame *frames, unsigned max);
void slot_ring_release(struct slot_ring *ring);

#endif
