/* SPDX-License-Identifier: Apache-2.0 */
/*
 * TUN: the kernel routes VIP packets into a device of ours and routes what we write back to the backends.  Works on
 * any link, and needs no neighbour addresses.  With a program (bpf/tunnel_gso.h) super-packets come and go whole; without one
 * the kernel finishes checksums and cuts before we read.
 */
#ifndef VIPMUX_IO_TUN_H
#define VIPMUX_IO_TUN_H

#include "machine/io.h"

#define TUN_FRAME_MAX 16256u /* the device's MTU must not exceed it */

/*
 * Creates the device or, when shared, adds a queue to it; it lives as long as its queues.  program: of TUNNEL_GSO_TUN, the same for
 * all queues, or -1.
 */
int tun_io_open(const char *name, int shared, int program, struct io **out);

/* All packets go to the device's first queue, while it has this program (bpf/tun_steering.h); -1: to all queues again.  Any thread. */
int tun_io_steer(struct io *io, int program);

#endif
