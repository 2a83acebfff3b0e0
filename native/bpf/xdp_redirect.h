/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The XDP program of the AF_XDP backend (io_xdp.c): frames to a VIP go to the socket of the queue that received them, all else
 * goes on to the kernel.  lb/mux/io/xdp_port.py loads it, fills its maps and attaches it to one interface.
 *
 * Taken is what the socket filter of packet mode lets in: untagged, to the interface's own link address, of IPv4 or IPv6, and
 * to an address of a VIP; so ICMP errors about a VIP are, and fragments.  A queue that has no socket passes all.
 *
 * A struct redirect owns program, maps and link.  When the last file descriptor of the link is closed, be it by SIGKILL, the
 * program leaves the interface: something else must keep the kernel away from the VIPs (lb/mux/io/isolation.py).  After
 * loading no function needs CAP_BPF on kernels from 5.19.  Not thread-safe; the program itself runs on every CPU.
 */
#ifndef VIPMUX_XDP_REDIRECT_H
#define VIPMUX_XDP_REDIRECT_H

#include <stdbool.h>
#include <stdint.h>

#include "host/host_pipeline.h"

struct redirect;

/* queues: room for so many sockets.  On refusal log holds what the verifier said. */
int redirect_load(uint32_t queues, char *log, uint32_t log_size, struct redirect **out);

/* Prefixes as in host_pipeline.h: 16 bytes, IPv4 as ::ffff:a.b.c.d and its length + 96.  remove: -ENOENT: it was not there. */
int redirect_add_vip(struct redirect *redirect, const struct host_prefix *vip);
int redirect_remove_vip(struct redirect *redirect, const struct host_prefix *vip);
/* The interface's own link address; until it is told nothing is taken. */
int redirect_set_address(struct redirect *redirect, const uint8_t mac[6]);
/* An AF_XDP socket; the kernel forgets it when it is closed. */
int redirect_set_socket(struct redirect *redirect, uint32_t queue, int socket);

/*
 * By the driver, or (generic) by the kernel's own code, in the caller's network namespace.  -EBUSY or -EEXIST: another XDP
 * program is there, which stays; -EOPNOTSUPP: the driver cannot; -ERANGE: its MTU is too large.  Attached to one at a time.
 */
int redirect_attach(struct redirect *redirect, int ifindex, bool generic);
/* Whether it still is: an interface that is removed takes its programs along. */
bool redirect_attached(const struct redirect *redirect);
void redirect_detach(struct redirect *redirect);

/*
 * One frame through the program (BPF_PROG_TEST_RUN), as if received by queue 0.  1: taken, 0: left to the kernel; -EPROTO:
 * neither, which would be lost.
 */
int redirect_test(const struct redirect *redirect, const uint8_t *frame, uint32_t length);

/* Detaches first. */
void redirect_destroy(struct redirect *redirect);

#endif
