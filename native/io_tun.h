/* SPDX-License-Identifier: Apache-2.0 */
/*
 * TUN: the kernel routes VIP packets into a device of ours and routes what we write back to the backends.  Works on
 * any link, needs no neighbour addresses, and never sees a checksum or a segment left to the NIC.
 */
#ifndef VIPMUX_IO_TUN_H
#define VIPMUX_IO_TUN_H

#include "io.h"

#define TUN_FRAME_MAX 16256u /* the device's MTU must not exceed it */

/* Creates the device or, when shared, adds a queue to it; it lives as long as its queues. */
int tun_io_open(const char *name, int shared, struct io **out);

#endif
