/* SPDX-License-Identifier: Apache-2.0 */
/* See xsk.h. */
#define _GNU_SOURCE
#include "io/af_xdp/xsk.h"

#include <errno.h>
#include <linux/if_xdp.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#define FILL_LITTLE 64u /* of a socket that only sends: it must have one */
#define SEND_BUDGET 256
#define PAGE 4096u           /* at least */
#define HUGE_PAGE (2u << 20)
#define BUSY_BUDGET 64

/* Newer than the oldest headers this builds with. */
#ifndef XDP_MAX_TX_SKB_BUDGET
#define XDP_MAX_TX_SKB_BUDGET 9
#endif
#ifndef SO_PREFER_BUSY_POLL
#define SO_PREFER_BUSY_POLL 69
#endif
#ifndef SO_BUSY_POLL_BUDGET
#define SO_BUSY_POLL_BUDGET 70
#endif

int xsk_memory_map(struct xsk_memory *memory, uint32_t chunk, uint32_t chunks)
{
	size_t bytes = (size_t)chunk * chunks, map_bytes = bytes + HUGE_PAGE;
	uint8_t *map = mmap(NULL, map_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), *base;

	if (map == MAP_FAILED)
		return -errno;
	base = (uint8_t *)(((uintptr_t)map + HUGE_PAGE - 1) & ~(uintptr_t)(HUGE_PAGE - 1));
	/* Packets are spread over all of it: where there are huge pages, each is found without a walk through page tables. */
	madvise(base, bytes, MADV_HUGEPAGE);
	/* A child of ours that runs another program would else make us copy pages that the kernel writes to. */
	madvise(base, bytes, MADV_DONTFORK);
	for (size_t at = 0; at < bytes; at += PAGE)
		*(volatile uint8_t *)(base + at) = 0;
	*memory = (struct xsk_memory){
		.base = base,
		.chunk = chunk,
		.shift = (uint32_t)__builtin_ctz(chunk),
		.chunks = chunks,
		.map = map,
		.map_bytes = map_bytes,
	};
	return 0;
}

void xsk_memory_unmap(struct xsk_memory *memory)
{
	if (memory->map)
		munmap(memory->map, memory->map_bytes);
	memory->base = NULL;
	memory->map = NULL;
}

/* ---- a socket ---- */

void xsk_init(struct xsk *xsk)
{
	memset(xsk, 0, sizeof(*xsk));
	xsk->fd = -1;
}

static int set_option(int fd, int option, uint32_t value)
{
	return setsockopt(fd, SOL_XDP, option, &value, sizeof(value)) ? -errno : 0;
}

static int map_ring(int fd, const struct xdp_ring_offset *at, uint64_t page, size_t entry, uint32_t size,
		    struct xsk_ring *ring)
{
	size_t bytes = at->desc + entry * size;
	uint8_t *map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, (off_t)page);

	if (map == MAP_FAILED)
		return -errno;
	*ring = (struct xsk_ring){
		.producer = (uint32_t *)(void *)(map + at->producer),
		.consumer = (uint32_t *)(void *)(map + at->consumer),
		.flags = (uint32_t *)(void *)(map + at->flags),
		.entries = map + at->desc,
		.size = size,
		.map = map,
		.map_bytes = bytes,
	};
	return 0;
}

static int map_rings(struct xsk *xsk, uint32_t receive)
{
	struct xdp_mmap_offsets at;
	socklen_t length = sizeof(at);
	int error;

	if (getsockopt(xsk->fd, SOL_XDP, XDP_MMAP_OFFSETS, &at, &length))
		return -errno;
	if (length != sizeof(at)) /* kernels before 5.4 have no flags in them */
		return -EOPNOTSUPP;
	error = map_ring(xsk->fd, &at.fr, XDP_UMEM_PGOFF_FILL_RING, sizeof(uint64_t), receive ? receive : FILL_LITTLE,
			 &xsk->fill);
	if (!error)
		error = map_ring(xsk->fd, &at.cr, XDP_UMEM_PGOFF_COMPLETION_RING, sizeof(uint64_t), XSK_SEND_RING,
				 &xsk->complete);
	if (!error)
		error = map_ring(xsk->fd, &at.tx, (uint64_t)XDP_PGOFF_TX_RING, sizeof(struct xdp_desc), XSK_SEND_RING,
				 &xsk->send);
	if (!error && receive)
		error = map_ring(xsk->fd, &at.rx, XDP_PGOFF_RX_RING, sizeof(struct xdp_desc), receive, &xsk->receive);
	return error;
}

static int register_memory(int fd, const struct xsk_memory *memory)
{
	struct rlimit all = { RLIM_INFINITY, RLIM_INFINITY };
	struct xdp_umem_reg umem;

	(void)setrlimit(RLIMIT_MEMLOCK, &all); /* or it is accounted for: see the unit's LimitMEMLOCK */
	memset(&umem, 0, sizeof(umem));
	umem.addr = (uint64_t)(uintptr_t)memory->base;
	umem.len = (uint64_t)memory->chunk * memory->chunks;
	umem.chunk_size = memory->chunk;
	return setsockopt(fd, SOL_XDP, XDP_UMEM_REG, &umem, sizeof(umem)) ? -errno : 0;
}

int xsk_open(struct xsk *xsk, const struct xsk_memory *memory, uint32_t receive)
{
	int error;

	xsk->fd = socket(AF_XDP, SOCK_RAW | SOCK_CLOEXEC, 0);
	if (xsk->fd < 0)
		return -errno;
	error = memory ? register_memory(xsk->fd, memory) : 0;
	if (!error)
		error = set_option(xsk->fd, XDP_UMEM_FILL_RING, receive ? receive : FILL_LITTLE);
	if (!error)
		error = set_option(xsk->fd, XDP_UMEM_COMPLETION_RING, XSK_SEND_RING);
	if (!error)
		error = set_option(xsk->fd, XDP_TX_RING, XSK_SEND_RING);
	if (!error && receive)
		error = set_option(xsk->fd, XDP_RX_RING, receive);
	return error ? error : map_rings(xsk, receive);
}

static int bind_to(struct xsk *xsk, int ifindex, uint32_t queue, uint16_t flags, int first)
{
	struct sockaddr_xdp address = {
		.sxdp_family = AF_XDP,
		.sxdp_flags = flags,
		.sxdp_ifindex = (uint32_t)ifindex,
		.sxdp_queue_id = queue,
		.sxdp_shared_umem_fd = (uint32_t)first,
	};

	return bind(xsk->fd, (struct sockaddr *)&address, sizeof(address)) ? -errno : 0;
}

int xsk_bind(struct xsk *xsk, int ifindex, uint32_t queue, enum xsk_copy copy)
{
	uint16_t flags = XDP_USE_NEED_WAKEUP | (copy == XSK_COPY ? XDP_COPY : XDP_ZEROCOPY);

	return bind_to(xsk, ifindex, queue, flags, 0);
}

int xsk_bind_shared(struct xsk *xsk, int ifindex, uint32_t queue, const struct xsk *first)
{
	return bind_to(xsk, ifindex, queue, XDP_SHARED_UMEM, first->fd);
}

static void unmap_ring(struct xsk_ring *ring)
{
	if (ring->map)
		munmap(ring->map, ring->map_bytes);
	memset(ring, 0, sizeof(*ring));
}

void xsk_close(struct xsk *xsk)
{
	unmap_ring(&xsk->receive);
	unmap_ring(&xsk->send);
	unmap_ring(&xsk->fill);
	unmap_ring(&xsk->complete);
	if (xsk->fd >= 0)
		close(xsk->fd);
	xsk->fd = -1;
}

bool xsk_raise_send_budget(struct xsk *xsk)
{
	return !set_option(xsk->fd, XDP_MAX_TX_SKB_BUDGET, SEND_BUDGET);
}

void xsk_raise_send_buffer(struct xsk *xsk, int bytes)
{
	/* Without the right to exceed the limit the default serves, only more tightly. */
	if (setsockopt(xsk->fd, SOL_SOCKET, SO_SNDBUFFORCE, &bytes, sizeof(bytes)))
		(void)setsockopt(xsk->fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof(bytes));
}

int xsk_poll_busily(struct xsk *xsk, unsigned microseconds)
{
	int yes = 1, budget = BUSY_BUDGET;

	if (setsockopt(xsk->fd, SOL_SOCKET, SO_PREFER_BUSY_POLL, &yes, sizeof(yes)) ||
	    setsockopt(xsk->fd, SOL_SOCKET, SO_BUSY_POLL, &microseconds, sizeof(microseconds)) ||
	    setsockopt(xsk->fd, SOL_SOCKET, SO_BUSY_POLL_BUDGET, &budget, sizeof(budget)))
		return -errno;
	return 0;
}

/* A frame for which there was no chunk, or that is longer than one, counts as dropped. */
void xsk_counts(const struct xsk *xsk, uint64_t *missed, uint64_t *refused)
{
	struct xdp_statistics kernel;
	socklen_t length = sizeof(kernel);

	memset(&kernel, 0, sizeof(kernel));
	if (xsk->fd < 0 || getsockopt(xsk->fd, SOL_XDP, XDP_STATISTICS, &kernel, &length))
		return;
	*missed += kernel.rx_dropped + kernel.rx_ring_full;
	*refused += kernel.tx_invalid_descs;
}

bool xsk_wants_wakeup(const struct xsk_ring *ring)
{
	return __atomic_load_n(ring->flags, __ATOMIC_RELAXED) & XDP_RING_NEED_WAKEUP;
}
