/* SPDX-License-Identifier: Apache-2.0 */
/*
 * native/io/af_xdp/io_xdp.c over a kernel of our own, in place of xsk.c: small rings, so that all of them run full.  The kernel holds
 * what it took to send for as long as it is told, and then looks whether the frame is still what it was: a chunk that was
 * given away too early shows.  For tests/native/test_io_xdp.py.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/if_xdp.h>
#include <net/if.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "io/af_xdp/xsk.h"

#undef XSK_RECEIVE_RING
#undef XSK_RECEIVE_LEAST
#undef XSK_SEND_RING
#define XSK_RECEIVE_RING 128u
#define XSK_RECEIVE_LEAST 128u
#define XSK_SEND_RING 64u

#define INTERFACES 16
#define SOCKETS 80
#define FIRST_FD 1000
#define BUDGET 24 /* frames that one call sends */
#define TAKEN_MAX 4096
#define OUTER 20
#define CHUNKS_MAX (2 * 128 + 64)

struct taken {
	uint64_t offset;
	uint32_t length, sum;
};

/* A socket, with the kernel's ends of its rings. */
struct fake {
	struct xsk *xsk;
	int ifindex; /* bound to; 0: not */
	bool refuse;   /* the driver refuses the next frame */
	uint32_t numbers[12]; /* producer, consumer and flags of each ring */
	struct taken taken[TAKEN_MAX];
	unsigned taken_count;
	uint64_t missed;
};

static struct fake fakes[SOCKETS];
static unsigned fake_count;
static struct {
	bool there, up;
	int mtu;
} interfaces[INTERFACES];
static uint64_t wired, spoiled, by_packet, refused, beyond_mtu, kernel_lost;
static uint8_t *memory_base;
static uint32_t memory_chunk, memory_chunks;

/* What a bind is answered, for so many times: of the first socket, zero-copy or copying; of others on its interface; elsewhere. */
enum { ANSWER_ZERO_COPY, ANSWER_COPY, ANSWER_QUEUE, ANSWER_WAY, ANSWERS };
static struct {
	int error;
	unsigned times, asked;
} answers[ANSWERS];
static unsigned open_sockets, pauses, bound_empty;
static bool busy_refused;

static struct fake *fake_of(int fd)
{
	return &fakes[fd - FIRST_FD];
}

static uint32_t sum_of(uint64_t offset, uint32_t length)
{
	uint32_t sum = length;

	for (uint32_t i = 0; i < length; i++)
		sum = sum * 31 + memory_base[offset + i];
	return sum;
}

/* ---- in place of xsk.c ---- */

int xsk_memory_map(struct xsk_memory *memory, uint32_t chunk, uint32_t chunks)
{
	memory_base = calloc(chunks, chunk);
	memory_chunk = chunk;
	memory_chunks = chunks;
	*memory = (struct xsk_memory){ .base = memory_base, .chunk = chunk, .shift = (uint32_t)__builtin_ctz(chunk), .chunks = chunks };
	return 0;
}

void xsk_memory_unmap(struct xsk_memory *memory)
{
	free(memory->base);
}

void xsk_init(struct xsk *xsk)
{
	memset(xsk, 0, sizeof(*xsk));
	xsk->fd = -1;
}

static void make_ring(struct xsk_ring *ring, uint32_t *numbers, size_t entry, uint32_t size)
{
	*ring = (struct xsk_ring){ numbers, numbers + 1, numbers + 2, calloc(size, entry), size, 0, 0, NULL, 0 };
}

int xsk_open(struct xsk *xsk, const struct xsk_memory *memory, uint32_t receive)
{
	struct fake *fake = &fakes[fake_count];

	(void)memory;
	memset(fake, 0, sizeof(*fake));
	fake->xsk = xsk;
	xsk->fd = FIRST_FD + (int)fake_count++;
	open_sockets++;
	make_ring(&xsk->fill, fake->numbers, sizeof(uint64_t), receive ? receive : 8);
	make_ring(&xsk->complete, fake->numbers + 3, sizeof(uint64_t), XSK_SEND_RING);
	make_ring(&xsk->send, fake->numbers + 6, sizeof(struct xdp_desc), XSK_SEND_RING);
	fake->numbers[8] = XDP_RING_NEED_WAKEUP;
	if (receive)
		make_ring(&xsk->receive, fake->numbers + 9, sizeof(struct xdp_desc), receive);
	return 0;
}

static int bind_as(struct xsk *xsk, int ifindex, unsigned kind)
{
	answers[kind].asked++;
	if (kind != ANSWER_WAY && *xsk->fill.producer == *xsk->fill.consumer)
		bound_empty++;
	if (!interfaces[ifindex].there)
		return -ENODEV;
	if (answers[kind].times) {
		answers[kind].times--;
		return answers[kind].error;
	}
	fake_of(xsk->fd)->ifindex = ifindex;
	return 0;
}

int xsk_bind(struct xsk *xsk, int ifindex, uint32_t queue, enum xsk_copy copy)
{
	(void)queue;
	return bind_as(xsk, ifindex, copy == XSK_COPY ? ANSWER_COPY : ANSWER_ZERO_COPY);
}

int xsk_bind_shared(struct xsk *xsk, int ifindex, uint32_t queue, const struct xsk *first)
{
	(void)queue;
	return bind_as(xsk, ifindex, ifindex == fake_of(first->fd)->ifindex ? ANSWER_QUEUE : ANSWER_WAY);
}

void xsk_close(struct xsk *xsk)
{
	free(xsk->fill.entries);
	free(xsk->complete.entries);
	free(xsk->send.entries);
	free(xsk->receive.entries);
	open_sockets -= xsk->fd >= 0;
	xsk->fd = -1;
}

bool xsk_raise_send_budget(struct xsk *xsk)
{
	return xsk->fd >= 0;
}

int xsk_poll_busily(struct xsk *xsk, unsigned microseconds)
{
	(void)xsk;
	return microseconds && !busy_refused ? 0 : -EINVAL;
}

void xsk_counts(const struct xsk *xsk, uint64_t *missed, uint64_t *invalid)
{
	(void)invalid;
	if (xsk->fd >= 0)
		*missed += fake_of(xsk->fd)->missed;
}

bool xsk_wants_wakeup(const struct xsk_ring *ring)
{
	return *ring->flags & XDP_RING_NEED_WAKEUP;
}

/* ---- in place of the kernel's calls ---- */

static int fail(int error)
{
	errno = error;
	return -1;
}

/* xsk_generic_xmit(): frames are taken while there is room to report them as done; some at a time. */
static ssize_t fake_sendto(int fd, const void *data, size_t length, int flags, const void *address, socklen_t size)
{
	struct fake *fake;
	struct xsk_ring *ring;
	uint32_t *consumer, *done;

	(void)length;
	(void)flags;
	(void)address;
	(void)size;
	if (data) { /* the packet socket */
		by_packet++;
		return (ssize_t)length;
	}
	fake = fake_of(fd);
	ring = &fake->xsk->send;
	consumer = ring->consumer;
	done = fake->xsk->complete.producer;
	if (fake->ifindex <= 0 || !interfaces[fake->ifindex].there)
		return fail(ENXIO);
	if (!interfaces[fake->ifindex].up)
		return fail(ENETDOWN);
	for (unsigned n = 0; *consumer != *ring->producer; n++) {
		const struct xdp_desc *entry = &((struct xdp_desc *)ring->entries)[*consumer & (ring->size - 1)];

		if (n == BUDGET)
			return fail(EAGAIN);
		if (*done + fake->taken_count - *fake->xsk->complete.consumer >= XSK_SEND_RING)
			return fail(ENOBUFS);
		if ((int)entry->len > interfaces[fake->ifindex].mtu + 18)
			beyond_mtu++;
		++*consumer;
		fake->taken[fake->taken_count++] =
			(struct taken){ entry->addr, entry->len, sum_of(entry->addr, entry->len) };
		if (fake->refuse) {
			fake->refuse = false;
			refused++;
			return fail(EBUSY);
		}
		wired++;
	}
	return 0;
}

static ssize_t fake_recvfrom(int fd, void *data, size_t length, int flags, void *address, void *size)
{
	(void)fd, (void)data, (void)length, (void)flags, (void)address, (void)size;
	return fail(EAGAIN);
}

static int fake_poll(struct pollfd *fds, nfds_t count, int timeout_ms)
{
	(void)fds, (void)count, (void)timeout_ms;
	return 0;
}

static int fake_ioctl(int fd, unsigned long request, struct ifreq *asked)
{
	int ifindex;

	(void)fd;
	if (request == SIOCGIFNAME) {
		ifindex = asked->ifr_ifindex;
		if (!interfaces[ifindex].there)
			return fail(ENODEV);
		memset(asked->ifr_name, 0, sizeof(asked->ifr_name));
		asked->ifr_name[0] = (char)('a' + ifindex);
		return 0;
	}
	ifindex = asked->ifr_name[0] - 'a';
	asked->ifr_mtu = interfaces[ifindex].mtu;
	return 0;
}

static int fake_socket(int family, int kind, int protocol)
{
	(void)family, (void)kind, (void)protocol;
	return dup(0);
}

static int fake_setsockopt(int fd, int level, int option, const void *value, socklen_t size)
{
	(void)fd, (void)level, (void)option, (void)value, (void)size;
	return 0;
}

static unsigned fake_if_nametoindex(const char *name)
{
	return (unsigned)(name[0] - 'a');
}

static int fake_nanosleep(const struct timespec *time, struct timespec *left)
{
	(void)left;
	pauses += time->tv_nsec > 0;
	return 0;
}

struct redirect;
int redirect_set_socket(struct redirect *redirect, uint32_t queue, int socket);
int redirect_set_socket(struct redirect *redirect, uint32_t queue, int socket)
{
	(void)redirect, (void)queue, (void)socket;
	return 0;
}

#define sendto fake_sendto
#define recvfrom fake_recvfrom
#define poll fake_poll
#define ioctl(fd, request, argument) fake_ioctl(fd, request, argument)
#define socket fake_socket
#define setsockopt fake_setsockopt
#define if_nametoindex fake_if_nametoindex
#define nanosleep fake_nanosleep
#include "io/af_xdp/io_xdp.c"

/* ---- what Python asks for ---- */

static struct io *io;

int probe_open(unsigned queues, unsigned frame_max);
void probe_answer(unsigned kind, int error, unsigned times);
int probe_open_as(unsigned queues, int zero_copy, int busy_poll, int no_busy_poll, uint64_t *out);
void probe_close(void);
void probe_interface(int ifindex, int there, int up, int mtu);
unsigned probe_deliver(unsigned queue, unsigned count, unsigned length);
void probe_complete(unsigned count, unsigned from_end);
void probe_refuse(int ifindex);
int probe_turn(unsigned choice, int ifindex, unsigned grow);
void probe_wait(void);
int probe_census(void);
void probe_counts(uint64_t *out);

int probe_open(unsigned queues, unsigned frame_max)
{
	struct xdp_settings settings = { 0, 1, queues, frame_max, false, false };

	memset(fakes, 0, sizeof(fakes));
	memset(interfaces, 0, sizeof(interfaces));
	fake_count = 0;
	memset(answers, 0, sizeof(answers));
	wired = spoiled = by_packet = refused = beyond_mtu = kernel_lost = 0;
	for (int i = 1; i < INTERFACES; i++)
		probe_interface(i, 1, 1, 1500);
	return xdp_io_open("b", NULL, &settings, &io);
}

/* From the next open on. */
void probe_answer(unsigned kind, int error, unsigned times)
{
	answers[kind].error = error;
	answers[kind].times = times;
}

/* As one that may be refused.  out: binds asked for by kind, pauses, sockets open, bound without chunks to receive into, busy. */
int probe_open_as(unsigned queues, int zero_copy, int busy_poll, int no_busy_poll, uint64_t *out)
{
	struct xdp_settings settings = { 0, 1, queues, 1514, zero_copy, busy_poll };
	int error;

	memset(fakes, 0, sizeof(fakes));
	fake_count = open_sockets = pauses = bound_empty = 0;
	busy_refused = no_busy_poll;
	for (unsigned kind = 0; kind < ANSWERS; kind++)
		answers[kind].asked = 0;
	for (int i = 1; i < INTERFACES; i++)
		probe_interface(i, 1, 1, 1500);
	error = xdp_io_open("b", NULL, &settings, &io);
	busy_refused = false;
	for (unsigned kind = 0; kind < ANSWERS; kind++)
		out[kind] = answers[kind].asked;
	out[4] = pauses;
	out[5] = open_sockets;
	out[6] = bound_empty;
	out[7] = !error && settings.busy_poll && io->never_rests;
	return error;
}

void probe_close(void)
{
	io->ops->close(io);
}

void probe_interface(int ifindex, int there, int up, int mtu)
{
	interfaces[ifindex].there = there;
	interfaces[ifindex].up = up;
	interfaces[ifindex].mtu = mtu;
	if (there)
		return;
	for (unsigned n = 0; n < fake_count; n++) /* its sockets are of no use any more; what waits in them is gone */
		if (fakes[n].ifindex == ifindex && ifindex > 1) {
			fakes[n].ifindex = -1;
			kernel_lost += fakes[n].taken_count;
			fakes[n].taken_count = 0;
		}
}

/* Frames come; returns how many found a chunk and a place in the ring. */
unsigned probe_deliver(unsigned queue, unsigned count, unsigned length)
{
	struct fake *fake = &fakes[queue];
	struct xsk_ring *from = &fake->xsk->fill, *to = &fake->xsk->receive;
	unsigned n;

	for (n = 0; n < count; n++) {
		uint64_t offset;

		if (*from->consumer == *from->producer || *to->producer - *to->consumer == to->size)
			break;
		offset = ((uint64_t *)from->entries)[(*from->consumer)++ & (from->size - 1)] + XSK_HEADROOM;
		memset(memory_base + offset, (int)(*to->producer * 7 + 1), length);
		((struct xdp_desc *)to->entries)[(*to->producer)++ & (to->size - 1)] =
			(struct xdp_desc){ .addr = offset, .len = length };
	}
	fake->missed += count - n;
	return n;
}

/* On every socket, so many of what was sent are done with: the oldest, or the newest. */
void probe_complete(unsigned count, unsigned from_end)
{
	for (unsigned n = 0; n < fake_count; n++) {
		struct fake *fake = &fakes[n];
		struct xsk_ring *ring = &fake->xsk->complete;

		for (unsigned i = 0; i < count && fake->taken_count; i++) {
			unsigned at = from_end ? fake->taken_count - 1 : 0;
			struct taken done = fake->taken[at];

			spoiled += sum_of(done.offset, done.length) != done.sum;
			memmove(&fake->taken[at], &fake->taken[at + 1],
				(--fake->taken_count - at) * sizeof(fake->taken[0]));
			((uint64_t *)ring->entries)[(*ring->producer)++ & (ring->size - 1)] = done.offset;
		}
	}
}

void probe_refuse(int ifindex)
{
	for (unsigned n = 0; n < fake_count; n++)
		if (fakes[n].ifindex == ifindex)
			fakes[n].refuse = true;
}

/*
 * A worker's turn.  choice: 0 all are dropped, 1 they leave in an outer header, 2 as well and memory of our own with each, 3
 * twice, 4 only what is our own; from 5 on these take turns.  Returns how many were received.
 */
int probe_turn(unsigned choice, int ifindex, unsigned grow)
{
	struct frame in[BURST_MAX], out[2 * BURST_MAX];
	static uint8_t own[2 * BURST_MAX][9300];
	unsigned count = 0, kind;
	int received = io->ops->receive(io, in, BURST_MAX);

	for (int i = 0; i < received; i++) {
		struct frame outer = in[i];
		struct frame ours = { .data = own[count], .len = 60 + grow };

		if (in[i].headroom < IO_HEADROOM)
			return -1;
		outer.data -= OUTER;
		outer.len += OUTER;
		outer.ifindex = ours.ifindex = (uint32_t)ifindex;
		memset(ours.data, i, ours.len);
		kind = choice < 5 ? choice : (choice + (unsigned)i % 3) % 5;
		switch (kind) {
		case 1:
		case 2:
		case 3:
			memset(outer.data, 0x45, OUTER);
			out[count++] = outer;
			if (kind == 2)
				out[count++] = ours;
			else if (kind == 3)
				out[count++] = outer;
			break;
		case 4:
			out[count++] = ours;
		}
	}
	for (unsigned first = 0; first < count; first += BURST_MAX)
		io->ops->send(io, out + first, count - first < BURST_MAX ? count - first : BURST_MAX);
	memset(own, 0xee, sizeof(own)); /* it may be used again at once */
	io->ops->release(io);
	return received;
}

void probe_wait(void)
{
	io->ops->wait(io, -1, 0);
}

static int place(uint8_t *seen, uint64_t offset, uint8_t where)
{
	uint32_t chunk = (uint32_t)(offset / memory_chunk);

	if (chunk >= memory_chunks || (seen[chunk] && where != 3) || (seen[chunk] && seen[chunk] != 3))
		return -1;
	seen[chunk] = where;
	return 0;
}

static int place_ring(uint8_t *seen, const struct xsk_ring *ring, uint8_t where, size_t entry)
{
	int error = 0;

	for (uint32_t i = ring->entries ? *ring->consumer : 0; ring->entries && i != *ring->producer; i++) {
		const uint8_t *at = (const uint8_t *)ring->entries + (i & (ring->size - 1)) * entry;
		uint64_t offset;

		memcpy(&offset, at, sizeof(offset));
		error |= place(seen, offset, where);
	}
	return error;
}

/* Sent by an interface that is no more, which the io has not noticed yet. */
static bool lost_on_its_way(const struct xdp_io *xdp, uint32_t chunk)
{
	const struct way *way = &xdp->ways[(xdp->state[chunk] & SENDING) - 1];

	return xdp->state[chunk] & SENDING && way->ifindex > 0 && fake_of(way->xsk->fd)->ifindex < 0;
}

/* Between two turns: every chunk is in one place, and none is in no place.  0, or what is wrong: -1 in two, -2 in none. */
int probe_census(void)
{
	struct xdp_io *xdp = (struct xdp_io *)io;
	uint8_t seen[CHUNKS_MAX] = { 0 };
	int error = 0;

	for (uint32_t i = 0; i < xdp->free_count; i++)
		error |= place(seen, xdp->free[i], 1);
	for (unsigned n = 0; n < fake_count; n++) {
		struct fake *fake = &fakes[n];

		error |= place_ring(seen, &fake->xsk->fill, 2, sizeof(uint64_t));
		error |= place_ring(seen, &fake->xsk->receive, 2, sizeof(struct xdp_desc));
		if (fake->ifindex < 0)
			continue; /* nothing of it comes back */
		error |= place_ring(seen, &fake->xsk->send, 4, sizeof(struct xdp_desc));
		error |= place_ring(seen, &fake->xsk->complete, 4, sizeof(uint64_t));
		for (unsigned i = 0; i < fake->taken_count; i++)
			error |= place(seen, fake->taken[i].offset, 4);
	}
	for (uint32_t i = 0; i < memory_chunks && !error; i++)
		if (!seen[i] && !lost_on_its_way(xdp, i))
			return -2;
	return error;
}

/* received, sent, missed, send errors; on the wire, spoiled, by a packet socket, refused by the driver, too long, waiting in
 * send rings, chunks free. */
void probe_counts(uint64_t *out)
{
	struct io_stats stats;
	uint64_t waiting = 0;

	io->ops->stats(io, &stats);
	for (unsigned n = 0; n < fake_count; n++)
		if (fakes[n].ifindex >= 0)
			waiting += *fakes[n].xsk->send.producer - *fakes[n].xsk->send.consumer;
	memcpy(out, (uint64_t[]){ stats.received, stats.sent, stats.missed, stats.send_errors, wired, spoiled, by_packet,
				  refused, beyond_mtu, waiting, ((struct xdp_io *)io)->free_count },
	       11 * sizeof(*out));
}
