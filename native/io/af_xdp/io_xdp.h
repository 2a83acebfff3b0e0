/* SPDX-License-Identifier: Apache-2.0 */
/*
 * AF_XDP: receives what an XDP program (bpf/xdp_redirect.h) gives the sockets of some queues of an interface, and sends by any.
 * An outer header goes into the room before a received frame, which then leaves without a copy of ours.
 */
#ifndef VIPMUX_IO_XDP_H
#define VIPMUX_IO_XDP_H

#include <stdbool.h>
#include <stdint.h>

#include "bpf/xdp_redirect.h"
#include "machine/io.h"

#define XDP_QUEUES_MAX 64u /* of one io */

/* How to open, and as an answer what was obtained. */
struct xdp_settings {
	uint32_t first_queue; /* this io has this one, */
	uint32_t every;       /* and every so many more, */
	uint32_t queues;      /* of so many that the interface has */
	uint32_t frame_max;   /* longest frame with its link header */
	bool zero_copy;       /* asked for; answer: obtained */
	bool busy_poll;       /* asked for; answer: obtained */
};

/* The longest frame that this backend can receive. */
#define XDP_FRAME_MAX 3840u

/*
 * In the caller's network namespace.  -EMSGSIZE: frame_max is above XDP_FRAME_MAX; -EBUSY: somebody has a queue; -EOPNOTSUPP:
 * no zero-copy.  The redirect must stay until this returns.
 */
int xdp_io_open(const char *interface, struct redirect *redirect, struct xdp_settings *settings, struct io **out);

/*
 * Before a worker runs on it: segments that come together leave as a super-packet, by a tap (as packet_io_set_gso_tap()).  Not with
 * zero-copy, where frames are on their way for a while after send() and would be overtaken.
 */
int xdp_io_set_gso_tap(struct io *io, const char *name, int shared, int program);

#endif
