/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Frames out of a veth by AF_XDP, without a program on it: for io_packet.c, whose packet sockets cost a third more for each.  Only
 * where the kernel copies within our call, so that what is sent here and what leaves by a packet socket stay in order.  It is
 * there or it is not: while the kernel refuses (the interface is down, or too much is under way) sockets send as without it, and it is
 * tried again after some bursts, more of them each time; once the interface is gone it is given up.
 *
 * Not thread-safe.  Opened in the network namespace of the interfaces.
 */
#ifndef VIPMUX_XSK_OUT_H
#define VIPMUX_XSK_OUT_H

#include <stdint.h>

#include "machine/io.h"

struct xsk_out;

/* Bound to nothing; NULL: there is none to be had here. */
struct xsk_out *xsk_out_open(void);

/*
 * Sends frames that all leave by one interface, in their order, and returns how many; it is for the caller to send the rest.
 * One that the link dropped has its error.  It is bound to the first interface that it is asked for, if that is a veth
 * whose first queue nobody has, and sends nothing by others, nothing longer than the MTU, and nothing that is a super-packet.
 */
unsigned xsk_out_send(struct xsk_out *out, struct frame *frames, unsigned number, int ifindex);

void xsk_out_close(struct xsk_out *out);

#endif
