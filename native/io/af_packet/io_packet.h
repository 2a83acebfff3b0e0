/* SPDX-License-Identifier: Apache-2.0 */
/*
 * AF_PACKET: receive rings on one interface, and a socket that sends by any.  The kernel sees every frame too; something
 * else must keep it from answering (see the isolation of lb-mux).
 */
#ifndef VIPMUX_IO_PACKET_H
#define VIPMUX_IO_PACKET_H

#include <stdint.h>

#include "machine/io.h"

#define PACKET_RING_BYTES (16u << 20) /* some 100,000 small frames: rides out a worker that lost its CPU */

enum {
	PACKET_IO_ALONE = -1,     /* this ring takes every frame of the interface */
	PACKET_IO_NEW_GROUP = -2, /* first of several rings that share the frames by flow */
};

/*
 * group: PACKET_IO_ALONE, PACKET_IO_NEW_GROUP, or the packet_io_group() of the first ring.  filter: classic BPF in the
 * layout of struct sock_filter, deciding by its return value what enters the ring; count 0: everything does.
 */
int packet_io_open(const char *interface, uint32_t ring_bytes, int group, const uint64_t *filter, unsigned filter_count,
		   struct io **out);

/* Replaces the filter at once; any thread. */
int packet_io_filter(struct io *io, const uint64_t *filter, unsigned filter_count);

/*
 * From now on packets enter the rings of to[to_count], by this filter, and no more those of from[from_count]; any thread.  For some
 * microseconds between they may enter both: a packet may come twice then, and none is lost.  An error: all is as it was.
 */
int packet_io_swap(struct io *const *from, unsigned from_count, struct io *const *to, unsigned to_count, const uint64_t *filter,
		   unsigned filter_count);

int packet_io_group(const struct io *io);

/*
 * Before a worker runs on it: super-packets stay whole, and leave by a tap (see gso_tap.h; the TAP device has that name, shared
 * as in gso_tap_open()).  name NULL, or an error: they are cut.
 */
int packet_io_set_gso_tap(struct io *io, const char *name, int shared, int program);

/* How often the ring for much traffic took over, -1: there is none (several workers, or a kernel that cannot); any thread. */
int64_t packet_io_switches(const struct io *io);

#endif
