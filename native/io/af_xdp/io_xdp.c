/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The AF_XDP backend.  One memory of chunks for all its sockets: one for each queue, and one that only sends for each further
 * interface that frames leave by, which is bound when the first does.  Where that cannot be (no socket left, an interface
 * that was removed, zero-copy in and no driver for it out), frames leave by a packet socket, which copies them.
 *
 * A chunk is free, or it is the kernel's to receive into, or it is of a burst (HELD), or being sent (by a way out), or both of
 * these: `state` says which of the latter.  One that is of no burst and not being sent is free again.
 *
 * A failing interface (removed) makes one receive() return -ENETDOWN; afterwards the rings stay empty.
 */
#define _GNU_SOURCE
#include "io/af_xdp/io_xdp.h"

#include <errno.h>
#include <linux/if_packet.h>
#include <linux/if_xdp.h>
#include <net/if.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "io/gso_tap.h"
#include "io/af_xdp/xsk.h"

#define SEND_CHUNKS XSK_SEND_RING /* beyond those to receive into */
#define RESERVE (XSK_SEND_RING / 16) /* chunks that are never given to receive into: for what is made, segments and the like */
#define CHUNK_SMALL 2048u
#define CHUNK_LARGE 4096u
#define WAYS_OUT 4u        /* interfaces that have a socket of their own to send by */
#define WAYS (1u + WAYS_OUT)
#define BY_PACKET_MAX 8u   /* interfaces that are remembered to have none */
#define KICKS 64u          /* system calls for one burst */
#define BUSY_US 20u
#define BIND_TRIES 100u    /* 10 ms apart: of a process that was killed the kernel still has the queue for a moment */
#define LINK_HEADER 18u    /* with a VLAN tag, which the MTU does not count */

enum {
	HELD = 0x80, /* lower bits: 1 + number of the way that it is being sent by */
	SENDING = 0x7f,
};

/* An interface to leave by: way 0 is our own, by the socket of our first queue. */
struct way {
	int ifindex; /* 0: free, -1: its interface was removed */
	struct xsk *xsk;
	struct xsk own; /* of ways that only send */
	uint32_t frame_max; /* longest that its interface takes */
	uint32_t out; /* chunks of ours that it has: in its rings, or on their way */
	bool down;
	bool touched; /* in this send() */
};

struct xdp_io {
	struct io io;
	struct xsk_memory memory;
	uint8_t *state;
	uint32_t *free; /* offsets of free chunks */
	uint32_t free_count;
	uint32_t burst[BURST_MAX]; /* chunks of the frames of the last receive() */
	unsigned burst_count;

	struct xsk queues[XDP_QUEUES_MAX];
	unsigned queue_count;
	unsigned turn; /* the queue to look at first */

	struct way ways[WAYS];
	int by_packet[BY_PACKET_MAX]; /* interfaces that no socket of ours can be bound to */
	unsigned by_packet_next;
	int packet_fd;
	struct gso_tap tap; /* what was put together leaves by it */
	int ifindex;
	uint32_t first_queue;
	int error; /* errno that the next receive() reports */

	/* Written by the worker, read by anyone. */
	_Atomic uint64_t received;
	_Atomic uint64_t sent;
	_Atomic uint64_t send_errors;
};

static struct xdp_io *xdp_io(struct io *io)
{
	return (struct xdp_io *)io;
}

static void count(_Atomic uint64_t *counter, uint64_t more)
{
	atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + more, memory_order_relaxed);
}

/* -- chunks ------------------------------------------------------------------------------------------------------- */

static uint32_t chunk_of(const struct xdp_io *xdp, uint64_t offset)
{
	return (uint32_t)offset >> xdp->memory.shift; /* all of it is far below 4 GiB */
}

/* It is no longer held, or no longer being sent. */
static void let_go(struct xdp_io *xdp, uint32_t chunk, uint8_t of)
{
	xdp->state[chunk] &= (uint8_t)~of;
	if (!xdp->state[chunk])
		xdp->free[xdp->free_count++] = chunk << xdp->memory.shift;
}

static void fill(struct xdp_io *xdp, struct xsk *queue)
{
	uint32_t spare = xdp->free_count > RESERVE ? xdp->free_count - RESERVE : 0;
	uint32_t room = xsk_room(&queue->fill, spare < BURST_MAX ? spare : queue->fill.size);
	uint64_t *entries = queue->fill.entries;

	if (room > spare)
		room = spare;
	if (!room)
		return;
	for (uint32_t i = 0; i < room; i++)
		entries[queue->fill.next++ & (queue->fill.size - 1)] = xdp->free[--xdp->free_count];
	xsk_written(&queue->fill);
	if (xsk_wants_wakeup(&queue->fill)) /* of drivers that would look by themselves only after an interrupt */
		(void)recvfrom(queue->fd, NULL, 0, MSG_DONTWAIT, NULL, NULL);
}

/* -- receive ------------------------------------------------------------------------------------------------------ */

static unsigned take(struct xdp_io *xdp, struct xsk *queue, struct frame *frames, unsigned max)
{
	uint32_t waiting = xsk_waiting(&queue->receive, max);
	const struct xdp_desc *entries = queue->receive.entries;

	for (uint32_t i = 0; i < waiting; i++) {
		const struct xdp_desc *entry = &entries[(queue->receive.next + i) & (queue->receive.size - 1)];
		uint32_t chunk = chunk_of(xdp, entry->addr);

		/* An outer header will be written before what another core has just written. */
		__builtin_prefetch(xdp->memory.base + entry->addr - 1, 1);
		xdp->state[chunk] = HELD;
		xdp->burst[xdp->burst_count++] = chunk;
		frames[i] = (struct frame){
			.data = xdp->memory.base + entry->addr,
			.len = entry->len,
			.wire_len = entry->len,
			.headroom = (uint16_t)(entry->addr & (xdp->memory.chunk - 1)),
		};
	}
	if (waiting)
		xsk_read(&queue->receive, waiting);
	return waiting;
}

static int xdp_receive(struct io *io, struct frame *frames, unsigned max)
{
	struct xdp_io *xdp = xdp_io(io);
	unsigned taken = 0;
	int error = xdp->error;

	xdp->burst_count = 0;
	for (unsigned n = 0; n < xdp->queue_count && taken < max; n++) {
		struct xsk *queue = &xdp->queues[(xdp->turn + n) % xdp->queue_count];

		taken += take(xdp, queue, frames + taken, max - taken);
	}
	xdp->turn++;
	if (taken) {
		count(&xdp->received, taken);
		return (int)(io->sends_whole ? merge_burst(xdp->tap.merge, io->link, true, frames, taken) : taken);
	}
	xdp->error = 0;
	return -error;
}

static void xdp_release(struct io *io)
{
	struct xdp_io *xdp = xdp_io(io);

	for (unsigned i = 0; i < xdp->burst_count; i++)
		let_go(xdp, xdp->burst[i], HELD);
	xdp->burst_count = 0;
	for (unsigned n = 0; n < xdp->queue_count; n++)
		fill(xdp, &xdp->queues[n]);
}

static int error_of(int fd)
{
	int error = 0;
	socklen_t length = sizeof(error);

	return getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length) ? errno : error;
}

static bool any_waits(struct xdp_io *xdp)
{
	for (unsigned n = 0; n < xdp->queue_count; n++)
		if (xsk_waiting(&xdp->queues[n].receive, 1))
			return true;
	return false;
}

static uint64_t now_ms(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (uint64_t)time.tv_sec * 1000 + (uint64_t)time.tv_nsec / 1000000;
}

/* We look for packets ourselves, and never sleep. */
static void wait_busily(struct xdp_io *xdp, int wake_fd, int timeout_ms)
{
	struct pollfd wake = { .fd = wake_fd, .events = POLLIN };
	uint64_t end = now_ms() + (uint64_t)timeout_ms;

	do {
		for (unsigned n = 0; n < xdp->queue_count; n++)
			(void)recvfrom(xdp->queues[n].fd, NULL, 0, MSG_DONTWAIT, NULL, NULL);
	} while (!any_waits(xdp) && poll(&wake, 1, 0) <= 0 && now_ms() < end);
}

static void look_after_ways(struct xdp_io *xdp);

static void xdp_wait(struct io *io, int wake_fd, int timeout_ms)
{
	struct xdp_io *xdp = xdp_io(io);
	struct pollfd fds[XDP_QUEUES_MAX + 1];
	unsigned n;

	look_after_ways(xdp);
	for (n = 0; n < xdp->queue_count; n++) {
		fill(xdp, &xdp->queues[n]);
		fds[n] = (struct pollfd){ .fd = xdp->queues[n].fd, .events = POLLIN };
	}
	fds[n] = (struct pollfd){ .fd = wake_fd, .events = POLLIN };
	if (poll(fds, n + 1, io->never_rests ? 0 : timeout_ms) > 0) {
		while (n--)
			if (fds[n].revents & POLLERR)
				xdp->error = error_of(fds[n].fd);
	} else if (io->never_rests) {
		wait_busily(xdp, wake_fd, timeout_ms);
	}
}

/* -- send --------------------------------------------------------------------------------------------------------- */

/* What the kernel is done with; returns how many. */
static uint32_t reap(struct xdp_io *xdp, struct way *way)
{
	struct xsk_ring *ring = &way->xsk->complete;
	uint32_t waiting = xsk_waiting(ring, ring->size);
	const uint64_t *entries = ring->entries;

	for (uint32_t i = 0; i < waiting; i++) {
		uint64_t offset = entries[(ring->next + i) & (ring->size - 1)];

		let_go(xdp, chunk_of(xdp, offset), SENDING);
	}
	if (waiting)
		xsk_read(ring, waiting);
	way->out -= waiting;
	return waiting;
}

/* Frames in its ring that the kernel has not taken. */
static uint32_t unsent(const struct way *way)
{
	return way->xsk->send.next - __atomic_load_n(way->xsk->send.consumer, __ATOMIC_ACQUIRE);
}

/* Its interface was removed: what was on its way is lost, and its socket is of no use any more. */
static void give_up(struct xdp_io *xdp, struct way *way)
{
	uint8_t number = (uint8_t)(way - xdp->ways + 1);

	xdp->by_packet[xdp->by_packet_next++ % BY_PACKET_MAX] = way->ifindex;
	way->ifindex = -1;
	count(&xdp->send_errors, unsent(way));
	reap(xdp, way);
	for (uint32_t chunk = 0; chunk < xdp->memory.chunks; chunk++)
		if ((xdp->state[chunk] & SENDING) == number)
			let_go(xdp, chunk, SENDING);
	way->out = 0;
}

/*
 * Has the kernel send what is in the ring.  Without a driver of its own it does so in this call, some frames at a time: so
 * as long as that goes on, it is called again.
 */
static void kick(struct xdp_io *xdp, struct way *way)
{
	struct xsk_ring *ring = &way->xsk->send;

	xsk_written(ring);
	for (unsigned kicks = 0; kicks < KICKS && xsk_wants_wakeup(ring); kicks++) {
		uint32_t before = __atomic_load_n(ring->consumer, __ATOMIC_ACQUIRE);
		int error = sendto(way->xsk->fd, NULL, 0, MSG_DONTWAIT, NULL, 0) < 0 ? errno : 0;
		uint32_t after = __atomic_load_n(ring->consumer, __ATOMIC_ACQUIRE);
		uint32_t reaped;

		way->down = error == ENETDOWN;
		if (error == EBUSY) /* the last one it took was refused by the driver */
			count(&xdp->send_errors, 1);
		reaped = reap(xdp, way);
		if (error == ENXIO || error == ENODEV) {
			give_up(xdp, way);
			return;
		}
		/* Without progress it may have lacked room to say that it is done, which there is again. */
		if (after == ring->next || (after == before && !reaped && error != EINTR))
			return;
	}
}

/* What the last send() left in a ring goes on its way, or is given up with its interface, though nothing more is sent there. */
static void look_after_ways(struct xdp_io *xdp)
{
	for (struct way *way = xdp->ways; way < xdp->ways + WAYS; way++) {
		if (way->ifindex <= 0)
			continue;
		reap(xdp, way);
		if (way->out)
			kick(xdp, way);
	}
}

static uint32_t longest_for(const struct xdp_io *xdp, int ifindex)
{
	struct ifreq request = { .ifr_ifindex = ifindex };

	if (ioctl(xdp->packet_fd, SIOCGIFNAME, &request) || ioctl(xdp->packet_fd, SIOCGIFMTU, &request))
		return 0;
	return (uint32_t)request.ifr_mtu + LINK_HEADER;
}

/* The way to an interface; NULL: there is none, a packet socket must do. */
static struct way *way_to(struct xdp_io *xdp, int ifindex)
{
	struct way *free_way = NULL;

	for (struct way *way = xdp->ways; way < xdp->ways + WAYS; way++) {
		if (way->ifindex == ifindex)
			return way;
		if (!way->ifindex && !free_way)
			free_way = way;
	}
	for (unsigned i = 0; i < BY_PACKET_MAX; i++)
		if (xdp->by_packet[i] == ifindex)
			return NULL;
	/* Only one socket can have a queue, so each worker takes that of its own first one, if the interface has so many. */
	if (free_way && !xsk_bind_shared(&free_way->own, ifindex, xdp->first_queue, &xdp->queues[0])) {
		(void)xsk_raise_send_budget(&free_way->own);
		free_way->ifindex = ifindex;
		free_way->frame_max = longest_for(xdp, ifindex);
		return free_way;
	}
	xdp->by_packet[xdp->by_packet_next++ % BY_PACKET_MAX] = ifindex;
	return NULL;
}

/* Where the frame lies in our memory and may be sent from there; else a copy of it in a chunk, or -1: there is none free. */
static int64_t place_of(struct xdp_io *xdp, const struct frame *frame)
{
	uint64_t offset = (uint64_t)(frame->data - xdp->memory.base), size = (uint64_t)xdp->memory.chunk * xdp->memory.chunks;

	if (frame->data >= xdp->memory.base && offset < size) {
		uint32_t chunk = chunk_of(xdp, offset);

		if (!(xdp->state[chunk] & SENDING) && chunk_of(xdp, offset + frame->len - 1) == chunk)
			return (int64_t)offset;
	}
	if (!xdp->free_count)
		return -1;
	offset = xdp->free[--xdp->free_count];
	memcpy(xdp->memory.base + offset, frame->data, frame->len);
	return (int64_t)offset;
}

static int queue_frame(struct xdp_io *xdp, struct way *way, const struct frame *frame)
{
	struct xsk_ring *ring = &way->xsk->send;
	struct xdp_desc *entries = ring->entries;
	int64_t place;

	if (frame->len > way->frame_max) {
		way->frame_max = longest_for(xdp, way->ifindex); /* it may have changed */
		if (frame->len > way->frame_max)
			return EMSGSIZE;
	}
	if (!xsk_room(ring, 1) || way->down)
		kick(xdp, way);
	if (way->ifindex < 0)
		return ENXIO;
	if (way->down)
		return ENETDOWN;
	if (!xsk_room(ring, 1))
		return ENOBUFS;
	place = place_of(xdp, frame);
	if (place < 0)
		return ENOBUFS;
	xdp->state[chunk_of(xdp, (uint64_t)place)] |= (uint8_t)(way - xdp->ways + 1);
	entries[ring->next++ & (ring->size - 1)] = (struct xdp_desc){ .addr = (uint64_t)place, .len = frame->len };
	way->touched = true;
	way->out++;
	return 0;
}

static int send_by_packet(const struct xdp_io *xdp, const struct frame *frame, int ifindex)
{
	struct sockaddr_ll address = { .sll_family = AF_PACKET, .sll_ifindex = ifindex };

	if (sendto(xdp->packet_fd, frame->data, frame->len, MSG_DONTWAIT, (struct sockaddr *)&address, sizeof(address)) < 0)
		return errno;
	return 0;
}

/* What was queued goes on its way. */
static void kick_touched(struct xdp_io *xdp)
{
	for (struct way *way = xdp->ways; way < xdp->ways + WAYS; way++) {
		if (!way->touched)
			continue;
		way->touched = false;
		if (way->ifindex > 0)
			kick(xdp, way);
	}
}

static int send_frame(struct xdp_io *xdp, const struct frame *frame)
{
	int ifindex = frame->ifindex ? (int)frame->ifindex : xdp->ifindex;
	struct way *way;

	if (frame->gso_size) {
		kick_touched(xdp); /* first what came before it */
		return gso_tap_send(&xdp->tap, frame, (uint32_t)ifindex);
	}
	way = frame->len <= xdp->memory.chunk ? way_to(xdp, ifindex) : NULL;
	return way ? queue_frame(xdp, way, frame) : send_by_packet(xdp, frame, ifindex);
}

static void xdp_send(struct io *io, struct frame *frames, unsigned number)
{
	struct xdp_io *xdp = xdp_io(io);
	unsigned failed = 0;

	for (unsigned i = 0; i < number; i++) {
		int error = send_frame(xdp, &frames[i]);

		frames[i].error = (uint16_t)error;
		failed += error != 0;
	}
	kick_touched(xdp);
	count(&xdp->sent, number - failed);
	count(&xdp->send_errors, failed);
}

/* -- life --------------------------------------------------------------------------------------------------------- */

static void xdp_stats(const struct io *io, struct io_stats *out)
{
	struct xdp_io *xdp = xdp_io((struct io *)(uintptr_t)io);
	uint64_t missed = 0, refused = 0;

	for (unsigned n = 0; n < xdp->queue_count; n++)
		xsk_counts(&xdp->queues[n], &missed, &refused);
	for (unsigned n = 1; n < WAYS; n++)
		xsk_counts(&xdp->ways[n].own, &missed, &refused);
	out->received = atomic_load_explicit(&xdp->received, memory_order_relaxed);
	out->sent = atomic_load_explicit(&xdp->sent, memory_order_relaxed);
	out->send_errors = atomic_load_explicit(&xdp->send_errors, memory_order_relaxed) + refused;
	out->missed = missed;
}

static void xdp_close(struct io *io)
{
	struct xdp_io *xdp = xdp_io(io);

	for (unsigned n = 1; n < WAYS; n++)
		xsk_close(&xdp->ways[n].own);
	for (unsigned n = 0; n < XDP_QUEUES_MAX; n++)
		xsk_close(&xdp->queues[n]);
	gso_tap_close(&xdp->tap);
	if (xdp->packet_fd >= 0)
		close(xdp->packet_fd);
	xsk_memory_unmap(&xdp->memory);
	free(xdp->state);
	free(xdp->free);
	free(xdp);
}

static const struct io_ops xdp_ops = {
	.name = "xdp",
	.receive = xdp_receive,
	.send = xdp_send,
	.release = xdp_release,
	.wait = xdp_wait,
	.stats = xdp_stats,
	.close = xdp_close,
};

/* Of each queue. */
static uint32_t receive_ring(const struct xdp_io *xdp)
{
	uint32_t entries = XSK_RECEIVE_RING;

	while (entries > XSK_RECEIVE_LEAST && (uint64_t)entries * xdp->queue_count > XSK_RECEIVE_RING)
		entries /= 2;
	return entries;
}

static int open_memory(struct xdp_io *xdp, uint32_t frame_max)
{
	uint32_t chunk = frame_max > CHUNK_SMALL - XSK_HEADROOM ? CHUNK_LARGE : CHUNK_SMALL;
	uint32_t chunks = xdp->queue_count * receive_ring(xdp) + SEND_CHUNKS;
	int error;

	if (frame_max > XDP_FRAME_MAX)
		return -EMSGSIZE;
	error = xsk_memory_map(&xdp->memory, chunk, chunks);
	if (error)
		return error;
	xdp->state = calloc(chunks, sizeof(*xdp->state));
	xdp->free = malloc(chunks * sizeof(*xdp->free));
	if (!xdp->state || !xdp->free)
		return -ENOMEM;
	for (uint32_t i = chunks; i--;)
		xdp->free[xdp->free_count++] = i * chunk;
	return 0;
}

/* Of no protocol: it receives nothing. */
static int open_packet(struct xdp_io *xdp)
{
	int yes = 1;

	xdp->packet_fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);
	if (xdp->packet_fd < 0)
		return -errno;
	return setsockopt(xdp->packet_fd, SOL_PACKET, PACKET_QDISC_BYPASS, &yes, sizeof(yes)) ? -errno : 0;
}

static int bind_queue(struct xdp_io *xdp, unsigned n, uint32_t queue, enum xsk_copy copy)
{
	struct timespec pause = { .tv_nsec = 10000000 };
	int error = -EBUSY;

	for (unsigned tries = 0; tries < BIND_TRIES && error == -EBUSY; tries++) {
		if (tries)
			nanosleep(&pause, NULL);
		error = n ? xsk_bind_shared(&xdp->queues[n], xdp->ifindex, queue, &xdp->queues[0]) :
			    xsk_bind(&xdp->queues[0], xdp->ifindex, queue, copy);
	}
	return error;
}

static int open_queues(struct xdp_io *xdp, struct redirect *redirect, struct xdp_settings *settings)
{
	bool busy = settings->busy_poll;
	int error = 0;

	for (unsigned n = 0; n < xdp->queue_count && !error; n++) {
		uint32_t queue = settings->first_queue + n * settings->every;

		error = xsk_open(&xdp->queues[n], n ? NULL : &xdp->memory, receive_ring(xdp));
		if (error)
			break;
		fill(xdp, &xdp->queues[n]); /* some drivers look for chunks as soon as they are bound */
		error = bind_queue(xdp, n, queue, settings->zero_copy ? XSK_ZERO_COPY : XSK_COPY);
		if (error)
			break;
		(void)xsk_raise_send_budget(&xdp->queues[n]);
		if (busy && xsk_poll_busily(&xdp->queues[n], BUSY_US))
			settings->busy_poll = false;
		error = redirect_set_socket(redirect, queue, xdp->queues[n].fd);
	}
	xdp->io.never_rests = settings->busy_poll;
	return error;
}

static int open_ways(struct xdp_io *xdp)
{
	int error = 0;

	xdp->ways[0].xsk = &xdp->queues[0];
	xdp->ways[0].ifindex = xdp->ifindex;
	xdp->ways[0].frame_max = longest_for(xdp, xdp->ifindex);
	for (unsigned n = 1; n < WAYS && !error; n++) {
		xdp->ways[n].xsk = &xdp->ways[n].own;
		error = xsk_open(&xdp->ways[n].own, NULL, 0);
	}
	return error;
}

int xdp_io_open(const char *interface, struct redirect *redirect, struct xdp_settings *settings, struct io **out)
{
	struct xdp_io *xdp = calloc(1, sizeof(*xdp));
	int error = 0;

	if (!xdp)
		return -ENOMEM;
	xdp->io.ops = &xdp_ops;
	xdp->io.link = LINK_ETHERNET;
	xdp->io.references = 1;
	xdp->packet_fd = -1;
	gso_tap_init(&xdp->tap);
	xdp->first_queue = settings->first_queue;
	for (unsigned n = 0; n < XDP_QUEUES_MAX; n++)
		xsk_init(&xdp->queues[n]);
	for (unsigned n = 0; n < WAYS; n++)
		xsk_init(&xdp->ways[n].own);
	xdp->ifindex = (int)if_nametoindex(interface);
	if (!xdp->ifindex)
		error = -ENODEV;
	else if (!settings->every || settings->first_queue >= settings->queues)
		error = -EINVAL;
	else
		xdp->queue_count = (settings->queues - settings->first_queue - 1) / settings->every + 1;
	if (!error && xdp->queue_count > XDP_QUEUES_MAX)
		error = -E2BIG;
	if (!error)
		error = open_memory(xdp, settings->frame_max);
	if (!error)
		error = open_packet(xdp);
	if (!error)
		error = open_queues(xdp, redirect, settings);
	if (!error)
		error = open_ways(xdp);
	if (error) {
		xdp_close(&xdp->io);
		return error;
	}
	*out = &xdp->io;
	return 0;
}

int xdp_io_set_gso_tap(struct io *io, const char *name, int shared, int program)
{
	struct xdp_io *xdp = xdp_io(io);
	int error = 0;

	gso_tap_close(&xdp->tap);
	if (name)
		error = gso_tap_open(&xdp->tap, name, shared, program);
	io->sends_whole = xdp->tap.fd >= 0;
	return error;
}
