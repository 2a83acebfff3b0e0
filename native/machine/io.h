/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where packets come from and go to: one interface, one file per backend (io/io_memory.c, io_packet.c, io_tun.c, io_xdp.c,
 * io_raw.c).  A worker calls it once per burst, so the function pointers cost nothing.  Not thread-safe: an io belongs to
 * the one worker that uses it; stats() alone, io_get() and io_put() may be called from any thread.
 *
 * Whose memory: a received frame is the caller's until release(), the headroom before it included.  Once it, or what was made
 * of it in place, has been given to send(), the caller neither writes there nor sends from there again: an io may keep it
 * until its kernel is done with it, long after release().  Memory of the caller's own (a segment, a reply) may be used again
 * as soon as send() returns: an io that keeps what it sends takes a copy of such frames.
 */
#ifndef VIPMUX_IO_H
#define VIPMUX_IO_H

#include <stdbool.h>
#include <stdint.h>

#define BURST_MAX 64u   /* packets handled together */
#define IO_HEADROOM 64u /* bytes that receive() leaves writable before each frame; room for an outer header */

enum link_type {
	LINK_RAW_IP = 0,   /* frames start with the IP header */
	LINK_ETHERNET = 1, /* frames start with a 14-byte Ethernet header */
};

/*
 * What an io says of offloads with a frame.  None of these, and no number: it cannot know (a capture).  The numbers come from
 * a neighbour's driver, and may be any.
 */
#define FRAME_TOLD 0x01u     /* it knows: a zero means that there is nothing of the kind */
#define FRAME_VERIFIED 0x02u /* the NIC, or GRO, found the transport's checksum right */
#define FRAME_MERGED 0x10u   /* it was made of several on their way here (merge.h), and is to leave as several whatever its size */
/* Of a super-packet to send, which is TCP. */
#define FRAME_INNER6 0x04u /* in IPv6, not in IPv4 */
#define FRAME_CWR 0x08u    /* CWR is set: it is the first segment's alone */

/* One packet in a buffer of the io that received it (or of the mux, where it made the packet). */
struct frame {
	uint8_t *data;        /* first byte of the link header, or of the IP header where the link has none */
	uint32_t len;         /* bytes present */
	uint32_t wire_len;    /* bytes it had on the wire; more than len where a capture cut it short */
	uint16_t headroom;    /* writable bytes before data */
	uint16_t gso_size;    /* super-packet: payload bytes per segment; 0: an ordinary packet, or not known.  To send: only where
			       * the io sends_whole, with csum_start and FRAME_INNER6 and its like */
	uint16_t csum_start;  /* offset from data where a checksum left to the NIC begins; 0: none is left, or not known */
	uint16_t csum_offset; /* where it goes, from csum_start; that field holds the sum of what is covered beside the data */
	uint8_t offload;      /* FRAME_TOLD and its like: what the io knows of the three above */
	uint8_t origin;       /* of a frame to send: index in the burst of the packet it was made from */
	uint16_t error;       /* of a frame to send: 0, or the errno for which send() could not send it */
	uint32_t ifindex;     /* of a frame to send: the interface to leave by; 0: the io's own */
};

struct io_stats {
	uint64_t received; /* frames handed to the worker */
	uint64_t sent;   /* given to the kernel */
	uint64_t missed; /* frames the kernel dropped before we saw them: receive ring full */
	uint64_t send_errors;
};

struct io;

struct io_ops {
	const char *name;
	/* Fills at most max (<= BURST_MAX) frames; returns how many, 0 if none waits, negative errno if broken. */
	int (*receive)(struct io *io, struct frame *frames, unsigned max);
	/* Sends in order; a frame that cannot be sent gets its errno and the rest go on.  What goes wrong later is only counted,
	 * in send_errors. */
	void (*send)(struct io *io, struct frame *frames, unsigned count);
	/* The frames of the last receive() are done with; their memory may be reused, where send() has not kept it. */
	void (*release)(struct io *io);
	/* Sleeps until a frame waits, wake_fd becomes readable (-1: none), or timeout_ms passed. */
	void (*wait)(struct io *io, int wake_fd, int timeout_ms);
	void (*stats)(const struct io *io, struct io_stats *out);
	void (*close)(struct io *io);
};

/* First member of every backend's own struct. */
struct io {
	const struct io_ops *ops;
	enum link_type link;
	bool never_rests; /* its wait() looks for frames all the time: nobody shall sleep before it */
	bool sends_whole; /* takes super-packets of TCP, up to 64 KiB with their outer header; else they are cut before */
	uint32_t references; /* atomic: whoever opened it, and the workers that run on it; open sets 1 */
};

static inline struct io *io_get(struct io *io)
{
	__atomic_fetch_add(&io->references, 1, __ATOMIC_RELAXED);
	return io;
}

/* Lets go of it; the last to do so closes it. */
static inline void io_put(struct io *io)
{
	if (io && __atomic_sub_fetch(&io->references, 1, __ATOMIC_ACQ_REL) == 0)
		io->ops->close(io);
}

#endif
