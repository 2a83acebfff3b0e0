/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The way out of super-packets over packet sockets and AF_XDP.  These cannot send one that is encapsulated (bpf/tunnel_gso.h says
 * why), so it is written into a TAP device of ours; the program there makes it right and passes it on to the interface that it
 * leaves by.  Nobody reads from the device, and no packet gets to the kernel through it.  It is the process's own: nothing of it
 * is on an operator's interface, and all of it is gone when the process is.
 *
 * Where there is a tap, an io puts the segments that it receives together before it hands them on (merge.h).
 *
 * Belongs to the io that opened it, which is used by one thread.
 */
#ifndef VIPMUX_GSO_TAP_H
#define VIPMUX_GSO_TAP_H

#include <net/if.h>
#include <stdbool.h>
#include <stdint.h>

#include "machine/io.h"
#include "packet/merge.h"

struct gso_tap {
	int fd;   /* a queue of the device; -1: there is no tap */
	int link; /* holds the program there; -1: another queue's does */
	struct merge *merge;
};

void gso_tap_init(struct gso_tap *tap);

/*
 * Makes the device, or with shared adds a queue where it is there; the program is that of TUNNEL_GSO_TAP.  It is down: whoever
 * asked for it sets it up.  0 or a negative errno.
 */
int gso_tap_open(struct gso_tap *tap, const char *name, bool shared, int program);

/* A super-packet that begins with an Ethernet header, to leave by that interface.  0 or an errno. */
int gso_tap_send(const struct gso_tap *tap, const struct frame *frame, uint32_t ifindex);

void gso_tap_close(struct gso_tap *tap);

#endif
