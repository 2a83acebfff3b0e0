/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The AF_PACKET backend.  A worker that has its interface for itself receives from two rings, one made for lone packets
 * and one made for many; ring_choice.h says which takes them, and how that changes without losing one.  Our own
 * transmissions are not looped back (PACKET_IGNORE_OUTGOING, PACKET_QDISC_BYPASS).
 *
 * Several workers share an interface with PACKET_FANOUT_HASH, which keeps a flow on one ring.  FANOUT_FLAG_ROLLOVER
 * would move packets of a full ring to a worker that does not know their flows; better to drop and count them.  So each
 * of these has slots only.
 *
 * A failing interface (removed, set down) makes one receive() return -ENETDOWN; afterwards the rings just stay empty.
 * When the link comes up again the kernel reconnects the sockets by itself; a new interface needs a new io.
 */
#define _GNU_SOURCE
#include "io/af_packet/io_packet.h"

#include <arpa/inet.h>
#include <assert.h>
#include <errno.h>
#include <linux/filter.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "io/af_packet/block_ring.h"
#include "io/gso_tap.h"
#include "io/virtio_frame.h"
#include "io/af_packet/ring_choice.h"
#include "io/af_packet/slot_ring.h"
#include "io/af_xdp/xsk_out.h"

#define SLOTS_PART 4u   /* of a ring's bytes, more for the slots */
#define BLOCKS_EVERY 8u /* bursts: even while slots are full, blocks are looked at */
#define SHORT_MS 1
#define SEND_BUFFER (16 << 20)
#define SEND_RETRIES 16u         /* per send(): a full transmit queue must not hold the worker */
#define WAYS_OUT 4u              /* interfaces that have a socket of their own to send by */
#define WAYS_LOOK 1024u          /* of so many send() that found none free, one looks whether one could be */
#define REBINDS 2u               /* per send(): to be rid of an old error, and to be bound */

/*
 * A bound socket is told no address and looks up no interface for each packet: some 7 % less CPU in all.  Opened with
 * the io, in its network namespace (the worker may be in another), and bound when a first frame leaves by an interface.
 * None is lost for good: it is bound again when its interface returns, and to another where that is gone.
 */
struct way_out {
	int ifindex; /* 0: free */
	int fd;
};

struct packet_io {
	struct io io;
	struct slot_ring slots;
	struct block_ring blocks; /* none where several workers share the interface */
	struct ring_choice choice;
	unsigned turns; /* at the slots */
	int send_fd; /* bound to no interface, each message names one */
	struct xsk_out *quick; /* sends by one interface for less than a socket; NULL: there is none */
	struct way_out ways[WAYS_OUT];
	unsigned wayless; /* times that an interface found none free */
	struct gso_tap tap; /* super-packets leave by it, in all directions */
	int ifindex;
	int group;

	int error;                   /* errno that the next receive() reports */

	struct mmsghdr messages[BURST_MAX];
	struct iovec vectors[BURST_MAX];
	struct sockaddr_ll addresses[BURST_MAX];

	/* Written by the worker (missed: by readers, the kernel forgets what it told), read by anyone. */
	_Atomic uint64_t received;
	_Atomic uint64_t sent;
	_Atomic uint64_t send_errors;
	_Atomic uint64_t missed;
	_Atomic uint64_t switches;
};

static_assert(sizeof(struct sock_filter) == sizeof(uint64_t), "filters cross the edge to Python as 64-bit words");

static struct packet_io *packet_io(struct io *io)
{
	return (struct packet_io *)io;
}

static void count(_Atomic uint64_t *counter, uint64_t more)
{
	atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + more, memory_order_relaxed);
}

/* -- receive ---------------------------------------------------------------------------------------------------- */

static uint64_t now_ns(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static bool has_blocks(const struct packet_io *packet)
{
	return packet->blocks.fd >= 0;
}

static void choose_ring(struct packet_io *packet, unsigned taken)
{
	enum ring_state before = packet->choice.state;

	if (!has_blocks(packet))
		return;
	ring_choice_step(&packet->choice, taken, packet->slots.held == packet->slots.slots, now_ns());
	if (packet->choice.state == RING_BLOCKS && before != RING_BLOCKS)
		count(&packet->switches, 1);
	packet->slots.keep = ring_choice_keeps_slots(&packet->choice);
	if (!taken) /* else they go back when the burst is done */
		slot_ring_release(&packet->slots);
}

/* Slots first: what is in blocks rolled over from them.  But some may lie there since a pause of ours, whatever comes. */
static unsigned take_frames(struct packet_io *packet, struct frame *frames, unsigned max)
{
	bool reads_slots = ring_choice_reads_slots(&packet->choice);
	unsigned taken = 0;

	if (reads_slots && ++packet->turns % BLOCKS_EVERY)
		taken = slot_ring_receive(&packet->slots, frames, max);
	if (!taken && has_blocks(packet))
		taken = block_ring_receive(&packet->blocks, frames, max);
	if (!taken && reads_slots)
		taken = slot_ring_receive(&packet->slots, frames, max);
	return taken;
}

static int packet_receive(struct io *io, struct frame *frames, unsigned max)
{
	struct packet_io *packet = packet_io(io);
	unsigned taken = take_frames(packet, frames, max);
	int error = packet->error;

	choose_ring(packet, taken);
	if (taken) {
		count(&packet->received, taken);
		return (int)(io->sends_whole ? merge_burst(packet->tap.merge, io->link, false, frames, taken) : taken);
	}
	packet->error = 0;
	return -error;
}

static void packet_release(struct io *io)
{
	struct packet_io *packet = packet_io(io);

	slot_ring_release(&packet->slots);
	if (has_blocks(packet) && block_ring_release(&packet->blocks)) {
		struct pollfd look = {.fd = packet->blocks.fd, .events = POLLIN};

		poll(&look, 1, 0); /* the kernel rolls over to a ring that was full only after somebody looked */
	}
}

static int error_of(int fd)
{
	int error = 0;
	socklen_t length = sizeof(error);

	/* Reading the error takes it off the socket, so the next poll() sleeps again. */
	return getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length) ? errno : error;
}

/* Between the rings the kernel may have no reason to wake us: then a short sleep. */
static void packet_wait(struct io *io, int wake_fd, int timeout_ms)
{
	struct packet_io *packet = packet_io(io);
	bool slots = packet->choice.state == RING_SLOTS;
	struct pollfd fds[3] = {
		{.fd = packet->slots.fd, .events = slots ? POLLIN : 0},
		{.fd = packet->blocks.fd, .events = POLLIN},
		{.fd = wake_fd, .events = POLLIN},
	};

	if (poll(fds, 3, slots || timeout_ms < SHORT_MS ? timeout_ms : SHORT_MS) > 0) {
		for (unsigned i = 0; i < 2; i++)
			if (fds[i].revents & POLLERR)
				packet->error = error_of(fds[i].fd);
	}
	choose_ring(packet, 0);
}

/* -- send ------------------------------------------------------------------------------------------------------- */

/* Binds it; where that fails (no such interface) it is free for another. */
static bool bind_way(struct way_out *way, int ifindex)
{
	struct sockaddr_ll address = { .sll_family = AF_PACKET, .sll_ifindex = ifindex };

	way->ifindex = bind(way->fd, (struct sockaddr *)&address, sizeof(address)) ? 0 : ifindex;
	return way->ifindex != 0;
}

/* Frees the ways to interfaces that are no more: the kernel has unbound their sockets. */
static void forget_ways(struct packet_io *packet)
{
	for (struct way_out *way = packet->ways; way < packet->ways + WAYS_OUT; way++) {
		struct sockaddr_ll address = { .sll_ifindex = 0 };
		socklen_t length = sizeof(address);

		if (getsockname(way->fd, (struct sockaddr *)&address, &length) || address.sll_ifindex != way->ifindex)
			way->ifindex = 0;
	}
}

/* The socket that is bound to an interface, NULL: there is none, and each frame must name it. */
static struct way_out *way_out(struct packet_io *packet, int ifindex)
{
	struct way_out *free_way = NULL;

	for (struct way_out *way = packet->ways; way < packet->ways + WAYS_OUT; way++) {
		if (way->ifindex == ifindex)
			return way;
		if (!way->ifindex)
			free_way = way;
	}
	if (!free_way && packet->wayless++ % WAYS_LOOK == 0)
		forget_ways(packet);
	return free_way && bind_way(free_way, ifindex) ? free_way : NULL;
}

/* Who is not sent by a bound socket names its interface. */
static void address_messages(struct packet_io *packet, unsigned number, bool named)
{
	for (unsigned i = 0; i < number; i++) {
		packet->messages[i].msg_hdr.msg_name = named ? &packet->addresses[i] : NULL;
		packet->messages[i].msg_hdr.msg_namelen = named ? sizeof(packet->addresses[i]) : 0;
	}
}

/* Returns the way to send by, if all frames leave by the same interface and it has one. */
static struct way_out *prepare_messages(struct packet_io *packet, struct frame *frames, unsigned number)
{
	struct way_out *way;
	bool together = true;

	for (unsigned i = 0; i < number; i++) {
		packet->vectors[i].iov_base = frames[i].data;
		packet->vectors[i].iov_len = frames[i].len;
		packet->addresses[i].sll_ifindex = frames[i].ifindex ? (int)frames[i].ifindex : packet->ifindex;
		together = together && packet->addresses[i].sll_ifindex == packet->addresses[0].sll_ifindex;
		frames[i].error = 0;
	}
	way = together ? way_out(packet, packet->addresses[0].sll_ifindex) : NULL;
	address_messages(packet, number, !way);
	return way;
}

static bool passes_soon(int error)
{
	return error == ENOBUFS || error == EAGAIN || error == EINTR;
}

/*
 * The interface went away or down since the socket was bound.  One that returns, be it with the same number, is another: the
 * socket must be bound again, and what the kernel noted on it of the old one is told once more.
 */
static bool came_loose(int error)
{
	return error == ENXIO || error == ENODEV || error == ENETDOWN;
}

/* Returns how many were sent, or refused for good. */
static unsigned send_quickly(struct packet_io *packet, struct frame *frames, unsigned number)
{
	uint32_t ifindex = frames[0].ifindex;
	unsigned sent, failed = 0;

	if (!packet->quick)
		return 0;
	for (unsigned i = 1; i < number; i++)
		if (frames[i].ifindex != ifindex)
			return 0;
	sent = xsk_out_send(packet->quick, frames, number, ifindex ? (int)ifindex : packet->ifindex);
	for (unsigned i = 0; i < sent; i++)
		failed += frames[i].error != 0;
	count(&packet->sent, sent - failed);
	count(&packet->send_errors, failed);
	return sent;
}

static void send_by_socket(struct packet_io *packet, struct frame *frames, unsigned number)
{
	unsigned next = 0, retries = 0, rebinds = 0, failed = 0;
	struct way_out *way = prepare_messages(packet, frames, number);

	while (next < number) {
		int sent = sendmmsg(way ? way->fd : packet->send_fd, packet->messages + next, number - next, MSG_DONTWAIT);

		if (sent > 0) {
			next += (unsigned)sent;
			continue;
		}
		if (passes_soon(errno) && retries++ < SEND_RETRIES)
			continue;
		if (way && came_loose(errno) && rebinds++ < REBINDS) {
			if (!bind_way(way, packet->addresses[0].sll_ifindex)) {
				way = NULL;
				address_messages(packet, number, true);
			}
			continue;
		}
		frames[next++].error = (uint16_t)errno;
		failed++;
	}
	count(&packet->sent, number - failed);
	count(&packet->send_errors, failed);
}

static void send_burst(struct packet_io *packet, struct frame *frames, unsigned number)
{
	unsigned sent = send_quickly(packet, frames, number);

	if (sent < number)
		send_by_socket(packet, frames + sent, number - sent);
}

static void send_whole(struct packet_io *packet, struct frame *frame)
{
	uint32_t ifindex = frame->ifindex ? frame->ifindex : (uint32_t)packet->ifindex;
	int error = gso_tap_send(&packet->tap, frame, ifindex);

	frame->error = (uint16_t)error;
	count(&packet->sent, !error);
	count(&packet->send_errors, error != 0);
}

/* How many ordinary frames come first. */
static unsigned ordinary(const struct frame *frames, unsigned number)
{
	unsigned part = 0;

	while (part < number && part < BURST_MAX && !frames[part].gso_size)
		part++;
	return part;
}

static void packet_send(struct io *io, struct frame *frames, unsigned number)
{
	while (number) {
		unsigned part = ordinary(frames, number);

		if (part) {
			send_burst(packet_io(io), frames, part);
		} else {
			send_whole(packet_io(io), frames);
			part = 1;
		}
		frames += part;
		number -= part;
	}
}

/* -- life ------------------------------------------------------------------------------------------------------- */

/* Packets that the kernel could not give this socket since it was asked last. */
static uint64_t dropped_for(int fd)
{
	struct tpacket_stats_v3 kernel = {0}; /* of version 2: its beginning */
	socklen_t length = sizeof(kernel);

	return fd < 0 || getsockopt(fd, SOL_PACKET, PACKET_STATISTICS, &kernel, &length) ? 0 : kernel.tp_drops;
}

static void packet_stats(const struct io *io, struct io_stats *out)
{
	struct packet_io *packet = packet_io((struct io *)(uintptr_t)io);
	uint64_t missed = dropped_for(packet->slots.fd) + dropped_for(packet->blocks.fd);

	missed += atomic_exchange_explicit(&packet->slots.lost, 0, memory_order_relaxed);
	atomic_fetch_add_explicit(&packet->missed, missed, memory_order_relaxed);
	out->received = atomic_load_explicit(&packet->received, memory_order_relaxed);
	out->sent = atomic_load_explicit(&packet->sent, memory_order_relaxed);
	out->send_errors = atomic_load_explicit(&packet->send_errors, memory_order_relaxed);
	out->missed = atomic_load_explicit(&packet->missed, memory_order_relaxed);
}

static void packet_close(struct io *io)
{
	struct packet_io *packet = packet_io(io);

	slot_ring_close(&packet->slots);
	block_ring_close(&packet->blocks);
	gso_tap_close(&packet->tap);
	xsk_out_close(packet->quick);
	if (packet->send_fd >= 0)
		close(packet->send_fd);
	for (unsigned i = 0; i < WAYS_OUT; i++)
		if (packet->ways[i].fd >= 0)
			close(packet->ways[i].fd);
	free(packet);
}

static const struct io_ops packet_ops = {
	.name = "packet",
	.receive = packet_receive,
	.send = packet_send,
	.release = packet_release,
	.wait = packet_wait,
	.stats = packet_stats,
	.close = packet_close,
};

static int set_option(int fd, int option, int value)
{
	return setsockopt(fd, SOL_PACKET, option, &value, sizeof(value)) ? -errno : 0;
}

/* The largest frame that the interface receives unmerged. */
static unsigned longest_frame(const struct packet_io *packet, const char *interface)
{
	struct ifreq request = { 0 };

	strncpy(request.ifr_name, interface, IFNAMSIZ - 1);
	if (ioctl(packet->send_fd, SIOCGIFMTU, &request) || request.ifr_mtu < ETH_DATA_LEN)
		request.ifr_mtu = ETH_DATA_LEN;
	return (unsigned)request.ifr_mtu + ETH_HLEN;
}

/* Of no protocol: it receives nothing.  Returns the socket or a negative errno. */
static int open_sender(void)
{
	int bytes = SEND_BUFFER, error;
	int fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return -errno;
	error = set_option(fd, PACKET_QDISC_BYPASS, 1);
	if (error) {
		close(fd);
		return error;
	}
	/* Without the right to exceed the limit the default size serves, only more tightly. */
	if (setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &bytes, sizeof(bytes)))
		setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof(bytes));
	return fd;
}

static int open_senders(struct packet_io *packet)
{
	packet->send_fd = open_sender();
	if (packet->send_fd < 0)
		return packet->send_fd;
	for (unsigned i = 0; i < WAYS_OUT; i++) {
		packet->ways[i].fd = open_sender();
		if (packet->ways[i].fd < 0)
			return packet->ways[i].fd;
	}
	for (unsigned i = 0; i < BURST_MAX; i++) {
		packet->addresses[i].sll_family = AF_PACKET;
		packet->messages[i].msg_hdr.msg_iov = &packet->vectors[i];
		packet->messages[i].msg_hdr.msg_iovlen = 1;
	}
	return 0;
}

/* Returns the group, which is made if none is given, or a negative errno. */
static int join(int fd, int type, int group)
{
	socklen_t length = sizeof(int);
	int value = type << 16, error;

	value |= group < 0 ? PACKET_FANOUT_FLAG_UNIQUEID << 16 : group;
	error = set_option(fd, PACKET_FANOUT, value);
	if (error)
		return error;
	return getsockopt(fd, SOL_PACKET, PACKET_FANOUT, &value, &length) ? -errno : value & 0xffff;
}

/*
 * Of the sockets in a group that chooses by a program and has none, the kernel always takes the first: that is the one that
 * was opened first, also after the link was down.
 */
static int pair_rings(struct packet_io *packet)
{
	int type = PACKET_FANOUT_CBPF | PACKET_FANOUT_FLAG_ROLLOVER;
	int group = join(packet->slots.fd, type, PACKET_IO_NEW_GROUP);

	if (group >= 0)
		group = join(packet->blocks.fd, type, group);
	return group < 0 ? group : 0;
}

static int join_group(struct packet_io *packet, int group)
{
	packet->group = PACKET_IO_ALONE;
	if (group == PACKET_IO_ALONE) {
		if (pair_rings(packet)) { /* then slots alone, as with several workers: packet_io_switches() says so */
			block_ring_close(&packet->blocks);
			block_ring_init(&packet->blocks);
		}
		return 0;
	}
	group = join(packet->slots.fd, PACKET_FANOUT_HASH, group);
	if (group < 0)
		return group;
	packet->group = group;
	return 0;
}

static int attach(int fd, struct sock_filter *filter, unsigned number)
{
	struct sock_fprog program = {.len = (unsigned short)number, .filter = filter};

	if (!number) {
		int ignored = 0;

		if (setsockopt(fd, SOL_SOCKET, SO_DETACH_FILTER, &ignored, sizeof(ignored)) && errno != ENOENT)
			return -errno;
		return 0;
	}
	return setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof(program)) ? -errno : 0;
}

int packet_io_filter(struct io *io, const uint64_t *filter, unsigned filter_count)
{
	struct packet_io *packet = packet_io(io);
	struct sock_filter program[BPF_MAXINSNS];
	int error;

	if (filter_count > BPF_MAXINSNS)
		return -E2BIG;
	if (filter_count)
		memcpy(program, filter, filter_count * sizeof(*filter));
	error = attach(packet->slots.fd, program, filter_count);
	return error || !has_blocks(packet) ? error : attach(packet->blocks.fd, program, filter_count);
}

static struct sock_filter nothing = BPF_STMT(BPF_RET | BPF_K, 0);

static int filter_all(struct io *const *ios, unsigned count, const uint64_t *filter, unsigned filter_count)
{
	int error = 0;

	for (unsigned i = 0; i < count && !error; i++)
		error = packet_io_filter(ios[i], filter, filter_count);
	return error;
}

int packet_io_swap(struct io *const *from, unsigned from_count, struct io *const *to, unsigned to_count, const uint64_t *filter,
		   unsigned filter_count)
{
	uint64_t closed;
	int error;

	memcpy(&closed, &nothing, sizeof(closed));
	error = filter_all(to, to_count, filter, filter_count);
	if (!error)
		error = filter_all(from, from_count, &closed, 1);
	if (error) { /* a smaller program than the one it replaces, or one that was there before: hardly refused */
		filter_all(from, from_count, filter, filter_count);
		filter_all(to, to_count, &closed, 1);
	}
	return error;
}

static int bind_ring(const struct packet_io *packet, int fd)
{
	struct sockaddr_ll address = {
		.sll_family = AF_PACKET,
		.sll_protocol = htons(ETH_P_ALL),
		.sll_ifindex = packet->ifindex,
	};
	int error = attach(fd, &nothing, 1);

	if (error)
		return error;
	return bind(fd, (struct sockaddr *)&address, sizeof(address)) ? -errno : 0;
}

/* Nothing enters a ring between bind() and the place in the group: the other rings would get copies. */
static int bind_rings(struct packet_io *packet, int group)
{
	int error = bind_ring(packet, packet->slots.fd);

	if (!error && has_blocks(packet))
		error = bind_ring(packet, packet->blocks.fd);
	return error ? error : join_group(packet, group);
}

/* The slots' socket is the first: see pair_rings(). */
static int open_rings(struct packet_io *packet, const char *interface, uint32_t bytes, bool alone)
{
	int error = slot_ring_open(&packet->slots, alone ? bytes / SLOTS_PART : bytes, longest_frame(packet, interface));

	return error || !alone ? error : block_ring_open(&packet->blocks, bytes);
}

int packet_io_open(const char *interface, uint32_t ring_bytes, int group, const uint64_t *filter, unsigned filter_count,
		   struct io **out)
{
	struct packet_io *packet = calloc(1, sizeof(*packet));
	int error;

	if (!packet)
		return -ENOMEM;
	packet->io.ops = &packet_ops;
	packet->io.link = LINK_ETHERNET;
	packet->io.references = 1;
	packet->choice = (struct ring_choice)RING_CHOICE_START;
	slot_ring_init(&packet->slots);
	block_ring_init(&packet->blocks);
	gso_tap_init(&packet->tap);
	packet->send_fd = -1;
	for (unsigned i = 0; i < WAYS_OUT; i++)
		packet->ways[i].fd = -1;
	packet->ifindex = (int)if_nametoindex(interface);
	error = packet->ifindex ? 0 : -ENODEV;
	if (!error)
		error = open_senders(packet);
	if (!error)
		error = open_rings(packet, interface, ring_bytes, group == PACKET_IO_ALONE);
	if (!error && group == PACKET_IO_ALONE) /* a queue has one such socket, and there may be one queue */
		packet->quick = xsk_out_open();
	if (!error)
		error = bind_rings(packet, group);
	if (!error)
		error = packet_io_filter(&packet->io, filter, filter_count);
	if (error) {
		packet_close(&packet->io);
		return error;
	}
	*out = &packet->io;
	return 0;
}

int64_t packet_io_switches(const struct io *io)
{
	struct packet_io *packet = packet_io((struct io *)(uintptr_t)io);

	return has_blocks(packet) ? (int64_t)atomic_load_explicit(&packet->switches, memory_order_relaxed) : -1;
}

int packet_io_set_gso_tap(struct io *io, const char *name, int shared, int program)
{
	struct packet_io *packet = packet_io(io);
	int error = 0;

	gso_tap_close(&packet->tap);
	if (name)
		error = gso_tap_open(&packet->tap, name, shared, program);
	io->sends_whole = packet->tap.fd >= 0;
	return error;
}

int packet_io_group(const struct io *io)
{
	return ((const struct packet_io *)io)->group;
}
