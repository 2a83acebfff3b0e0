/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Packets from memory to memory: replay, tests and fuzzing run the real pipeline over this.  The caller loads up to
 * BURST_MAX packets, runs the burst, and reads what was sent until it loads the next.
 */
#ifndef VIPMUX_IO_MEMORY_H
#define VIPMUX_IO_MEMORY_H

#include <stdbool.h>
#include <stddef.h>

#include "machine/io.h"

struct memory_sent {
	const uint8_t *data;
	uint32_t len;
	uint32_t origin; /* which loaded packet it came from */
};

/* -ENOMEM */
int io_memory_open(enum link_type link, struct io **out);

/* Copies a packet in as the next of the burst; -ENOSPC when it has BURST_MAX, -ENOMEM. */
int io_memory_load(struct io *io, const uint8_t *data, uint32_t len, uint32_t wire_len);

/*
 * Of the packet loaded last, what a NIC's driver would tell; see struct frame.  Numbers may be any.  Without this the io knows
 * nothing of offloads, as a capture does not.  -EINVAL where none is loaded.
 */
int io_memory_offload(struct io *io, uint16_t gso_size, uint16_t csum_start, uint16_t csum_offset, bool verified);

/* Packets sent since the last receive(), in order. */
uint32_t io_memory_sent_count(const struct io *io);
void io_memory_sent(const struct io *io, uint32_t index, struct memory_sent *out);

#endif
