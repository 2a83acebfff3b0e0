/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A TPACKET_V3 receive ring: the kernel packs frames into blocks, and hands a block over when it is full or after a timer
 * of 1 ms.  That is the cheapest way for the CPU that receives, and the ring holds many frames; but a lone one waits.
 *
 * Frames are handed out where they lie, with IO_HEADROOM writable bytes before each (PACKET_RESERVE), so that an outer
 * header is built in the ring and never copied.  A block goes back to the kernel when the burst that held its last frame
 * was released.
 */
#ifndef VIPMUX_BLOCK_RING_H
#define VIPMUX_BLOCK_RING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "machine/io.h"

struct tpacket3_hdr;

struct block_ring {
	int fd; /* -1: there is no such ring */
	uint8_t *memory;
	size_t bytes;
	unsigned blocks;
	unsigned block;              /* the one being read, or to be read next */
	unsigned left;               /* frames of it not yet handed out */
	struct tpacket3_hdr *header; /* the next of these */
	bool held;                   /* it is ours, to be given back */
};

/* Nothing is open: may be closed. */
void block_ring_init(struct block_ring *ring);

/* Opens socket and ring, not bound.  0 or a negative errno; block_ring_close() in any case. */
int block_ring_open(struct block_ring *ring, size_t bytes);
void block_ring_close(struct block_ring *ring);

/* Returns how many frames it filled; their memory stays until block_ring_release(). */
unsigned block_ring_receive(struct block_ring *ring, struct frame *frames, unsigned max);

/* Whether a block went back to the kernel. */
bool block_ring_release(struct block_ring *ring);

#endif
