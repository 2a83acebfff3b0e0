/* SPDX-License-Identifier: Apache-2.0 */
/*
 * AF_XDP sockets: the memory that frames lie in (UMEM), a socket with its four rings, and what moves entries through them.
 * For io_xdp.c, which owns all of it.  A ring has one user here and the kernel at its other end; not thread-safe.
 *
 * Memory is cut into chunks.  A frame that is received lies XDP_PACKET_HEADROOM (256) bytes behind the beginning of its
 * chunk, and what is sent may begin anywhere in one: so an outer header goes before a frame without a copy.
 */
#ifndef VIPMUX_XSK_H
#define VIPMUX_XSK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * Of all queues of an io together, and of each at least: a worker that lost its CPU finds what came meanwhile.  8,192 are 6 ms of
 * 1.3 million packets a second.
 */
#define XSK_RECEIVE_RING 32768u
#define XSK_RECEIVE_LEAST 8192u
#define XSK_SEND_RING 4096u
#define XSK_HEADROOM 256u      /* of the kernel's, before each frame that is received */

struct xsk_memory {
	uint8_t *base;
	uint32_t chunk;  /* bytes of each: 2,048 or 4,096 */
	uint32_t shift;  /* the same as a power of two */
	uint32_t chunks;
	void *map; /* it lies in */
	size_t map_bytes;
};

struct xsk_ring {
	uint32_t *producer; /* shared with the kernel; so are the next two */
	uint32_t *consumer;
	uint32_t *flags;
	void *entries; /* NULL: not there */
	uint32_t size; /* a power of two */
	uint32_t next; /* of ours: where we write, or read, next */
	uint32_t seen; /* how far the kernel was when we looked last */
	void *map;
	size_t map_bytes;
};

struct xsk {
	int fd; /* -1: none */
	struct xsk_ring receive;  /* of struct xdp_desc: frames for us */
	struct xsk_ring send;     /* of struct xdp_desc */
	struct xsk_ring fill;     /* of offsets: chunks for the kernel to receive into */
	struct xsk_ring complete; /* of offsets: what the kernel is done with sending */
};

enum xsk_copy {
	XSK_ZERO_COPY, /* the driver receives into, and sends from, our memory */
	XSK_COPY,
};

int xsk_memory_map(struct xsk_memory *memory, uint32_t chunk, uint32_t chunks);
void xsk_memory_unmap(struct xsk_memory *memory);

/* Before xsk_open(); xsk_close() may follow then. */
void xsk_init(struct xsk *xsk);
/* A socket with rings, bound to nothing.  memory: registered with it; NULL: it will share that of another.  receive: entries of
 * its rings to receive by, a power of two; 0: it only sends. */
int xsk_open(struct xsk *xsk, const struct xsk_memory *memory, uint32_t receive);
/* The first socket of a memory.  -EBUSY: another has the queue, or had it a moment ago; -EOPNOTSUPP: no zero-copy. */
int xsk_bind(struct xsk *xsk, int ifindex, uint32_t queue, enum xsk_copy copy);
/* The others, in the way of the first, to another queue or interface. */
int xsk_bind_shared(struct xsk *xsk, int ifindex, uint32_t queue, const struct xsk *first);
/* Frames waiting in its rings are lost. */
void xsk_close(struct xsk *xsk);

/* Beyond the 32 frames that one call sends by default; older kernels know no such option. */
bool xsk_raise_send_budget(struct xsk *xsk);
/* Bytes that what it sends may take in the kernel until somebody has read it; as far as we may. */
void xsk_raise_send_buffer(struct xsk *xsk, int bytes);
int xsk_poll_busily(struct xsk *xsk, unsigned microseconds);
/* Frames that a kernel could not give us, and those it refused to send. */
void xsk_counts(const struct xsk *xsk, uint64_t *missed, uint64_t *refused);

/* ---- rings ---- */

/* Of a ring that we read: how many entries wait, from `next` on; at most max. */
static inline uint32_t xsk_waiting(struct xsk_ring *ring, uint32_t max)
{
	uint32_t waiting = ring->seen - ring->next;

	if (waiting < max) {
		ring->seen = __atomic_load_n(ring->producer, __ATOMIC_ACQUIRE);
		waiting = ring->seen - ring->next;
	}
	return waiting < max ? waiting : max;
}

/* Of those, so many have been read. */
static inline void xsk_read(struct xsk_ring *ring, uint32_t count)
{
	ring->next += count;
	__atomic_store_n(ring->consumer, ring->next, __ATOMIC_RELEASE);
}

/* Of a ring that we write: how many entries have room; at most max, where more would have. */
static inline uint32_t xsk_room(struct xsk_ring *ring, uint32_t max)
{
	uint32_t room = ring->size - (ring->next - ring->seen);

	if (room < max) {
		ring->seen = __atomic_load_n(ring->consumer, __ATOMIC_ACQUIRE);
		room = ring->size - (ring->next - ring->seen);
	}
	return room < max ? room : max;
}

/* Tells the kernel of what was written up to `next`. */
static inline void xsk_written(struct xsk_ring *ring)
{
	__atomic_store_n(ring->producer, ring->next, __ATOMIC_RELEASE);
}

/* Whether the kernel asks to be told, by a system call, that there is something in a ring that we write. */
bool xsk_wants_wakeup(const struct xsk_ring *ring);

#endif
