/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The AF_PACKET backend.  A worker receives from a ring of blocks that the kernel fills; frames are handed out where
 * they lie, with IO_HEADROOM writable bytes before each (PACKET_RESERVE), so that an outer header is built in the ring
 * and never copied.  A block goes back to the kernel only when the burst that held its last frame was released.
 *
 * What enters: frames to our own link address, untagged.  Frames for others (seen on a promiscuous link), multicast,
 * broadcast and frames of a VLAN are not ours: they are stepped over and counted nowhere, as if the NIC had never
 * passed them on.  Our own transmissions are not looped back (PACKET_IGNORE_OUTGOING, PACKET_QDISC_BYPASS).
 *
 * Several workers share an interface with PACKET_FANOUT_HASH, which keeps a flow on one ring.  FANOUT_FLAG_ROLLOVER
 * would move packets of a full ring to a worker that does not know their flows; better to drop and count them.
 *
 * A failing interface (removed, set down) makes one receive() return -ENETDOWN; afterwards the ring just stays empty.
 * When the link comes up again the kernel reconnects the socket by itself; a new interface needs a new io.
 */
#define _GNU_SOURCE
#include "io_packet.h"

#include <arpa/inet.h>
#include <assert.h>
#include <errno.h>
#include <linux/filter.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/virtio_net.h>
#include <net/if.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#ifndef PACKET_IGNORE_OUTGOING
#define PACKET_IGNORE_OUTGOING 23
#endif

/*
 * A block must hold the largest super-packet that a kernel makes unasked (64 KiB), and those of BIG TCP up to twice that;
 * larger ones come cut short and are dropped as truncated.  No larger than that: the kernel hands over a block that is not
 * full after RETIRE_MS (rounded up to a jiffy), so it is the number of blocks that says how long the ring lasts.
 */
#define BLOCK_BYTES (128u << 10)
#define RETIRE_MS 1
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
	int receive_fd;
	int send_fd; /* bound to no interface, each message names one */
	struct way_out ways[WAYS_OUT];
	unsigned wayless; /* times that an interface found none free */
	int ifindex;
	int group;

	uint8_t *ring;
	size_t ring_bytes;
	unsigned blocks;
	unsigned block;              /* the one being read, or to be read next */
	unsigned left;               /* frames of it not yet handed out */
	struct tpacket3_hdr *header; /* the next of these */
	bool held;                   /* it is ours, to be given back */
	int error;                   /* errno that the next receive() reports */

	struct mmsghdr messages[BURST_MAX];
	struct iovec vectors[BURST_MAX];
	struct sockaddr_ll addresses[BURST_MAX];

	/* Written by the worker (missed: by readers, the kernel forgets what it told), read by anyone. */
	_Atomic uint64_t received;
	_Atomic uint64_t sent;
	_Atomic uint64_t send_errors;
	_Atomic uint64_t missed;
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

static struct tpacket_block_desc *current_block(struct packet_io *packet)
{
	return (struct tpacket_block_desc *)(packet->ring + (size_t)packet->block * BLOCK_BYTES);
}

static bool take_block(struct packet_io *packet)
{
	struct tpacket_block_desc *block = current_block(packet);

	if (!(__atomic_load_n(&block->hdr.bh1.block_status, __ATOMIC_ACQUIRE) & TP_STATUS_USER))
		return false;
	packet->left = block->hdr.bh1.num_pkts;
	packet->header = (struct tpacket3_hdr *)((uint8_t *)block + block->hdr.bh1.offset_to_first_pkt);
	packet->held = true;
	return true;
}

static void packet_release(struct io *io)
{
	struct packet_io *packet = packet_io(io);

	if (!packet->held || packet->left)
		return;
	__atomic_store_n(&current_block(packet)->hdr.bh1.block_status, TP_STATUS_KERNEL, __ATOMIC_RELEASE);
	packet->held = false;
	if (++packet->block == packet->blocks)
		packet->block = 0;
}

static bool is_ours(const struct tpacket3_hdr *header)
{
	const struct sockaddr_ll *from =
		(const struct sockaddr_ll *)((const uint8_t *)header + TPACKET_ALIGN(sizeof(*header)));

	return from->sll_pkttype == PACKET_HOST && !(header->tp_status & TP_STATUS_VLAN_VALID);
}

static void fill_frame(const struct tpacket3_hdr *header, struct frame *frame)
{
	uint8_t *data = (uint8_t *)header + header->tp_mac;
	struct virtio_net_hdr offload;

	memcpy(&offload, data - sizeof(offload), sizeof(offload));
	*frame = (struct frame){
		.data = data,
		.len = header->tp_snaplen,
		.wire_len = header->tp_len,
		.headroom = IO_HEADROOM,
		.offload = FRAME_TOLD | (offload.flags & VIRTIO_NET_HDR_F_DATA_VALID ? FRAME_VERIFIED : 0),
	};
	/* UDP of the old kind is one datagram, to be cut into fragments: whole it is right. */
	if ((offload.gso_type & ~VIRTIO_NET_HDR_GSO_ECN) != VIRTIO_NET_HDR_GSO_UDP)
		frame->gso_size = offload.gso_size;
	if (offload.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM) {
		frame->csum_start = offload.csum_start;
		frame->csum_offset = offload.csum_offset;
	}
}

static unsigned take_frames(struct packet_io *packet, struct frame *frames, unsigned max)
{
	unsigned taken = 0;

	while (packet->left && taken < max) {
		struct tpacket3_hdr *header = packet->header;
		struct tpacket3_hdr *next = (struct tpacket3_hdr *)((uint8_t *)header + header->tp_next_offset);

		__builtin_prefetch(next);
		if (is_ours(header))
			fill_frame(header, &frames[taken++]);
		packet->header = next;
		packet->left--;
	}
	return taken;
}

static int packet_receive(struct io *io, struct frame *frames, unsigned max)
{
	struct packet_io *packet = packet_io(io);
	int error = packet->error;

	/* Once round the ring at most: a flood of others' frames must not keep the worker from all else that it does. */
	for (unsigned blocks = 0; blocks <= packet->blocks && (packet->left || take_block(packet)); blocks++) {
		unsigned taken = take_frames(packet, frames, max);

		if (taken) {
			count(&packet->received, taken);
			return (int)taken;
		}
		packet_release(io); /* a block without a frame of ours */
	}
	packet->error = 0;
	return -error;
}

static void packet_wait(struct io *io, int wake_fd, int timeout_ms)
{
	struct packet_io *packet = packet_io(io);
	struct pollfd fds[2] = {
		{.fd = packet->receive_fd, .events = POLLIN},
		{.fd = wake_fd, .events = POLLIN},
	};

	if (poll(fds, 2, timeout_ms) > 0 && fds[0].revents & POLLERR) {
		socklen_t length = sizeof(packet->error);

		/* Reading the error takes it off the socket, so the next poll() sleeps again. */
		if (getsockopt(packet->receive_fd, SOL_SOCKET, SO_ERROR, &packet->error, &length))
			packet->error = errno;
	}
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

static void send_burst(struct packet_io *packet, struct frame *frames, unsigned number)
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

static void packet_send(struct io *io, struct frame *frames, unsigned number)
{
	while (number) {
		unsigned part = number < BURST_MAX ? number : BURST_MAX;

		send_burst(packet_io(io), frames, part);
		frames += part;
		number -= part;
	}
}

/* -- life ------------------------------------------------------------------------------------------------------- */

static void packet_stats(const struct io *io, struct io_stats *out)
{
	struct packet_io *packet = packet_io((struct io *)(uintptr_t)io);
	struct tpacket_stats_v3 kernel;
	socklen_t length = sizeof(kernel);

	if (!getsockopt(packet->receive_fd, SOL_PACKET, PACKET_STATISTICS, &kernel, &length))
		atomic_fetch_add_explicit(&packet->missed, kernel.tp_drops, memory_order_relaxed);
	out->received = atomic_load_explicit(&packet->received, memory_order_relaxed);
	out->sent = atomic_load_explicit(&packet->sent, memory_order_relaxed);
	out->send_errors = atomic_load_explicit(&packet->send_errors, memory_order_relaxed);
	out->missed = atomic_load_explicit(&packet->missed, memory_order_relaxed);
}

static void packet_close(struct io *io)
{
	struct packet_io *packet = packet_io(io);

	if (packet->ring != MAP_FAILED)
		munmap(packet->ring, packet->ring_bytes);
	if (packet->receive_fd >= 0)
		close(packet->receive_fd);
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

/* The order matters: version, reserve and virtio header before the ring; the ring before bind(). */
static int open_ring(struct packet_io *packet)
{
	struct tpacket_req3 request = {
		.tp_block_size = BLOCK_BYTES,
		.tp_block_nr = packet->blocks,
		.tp_frame_size = 2048, /* only checked, frames are packed */
		.tp_frame_nr = BLOCK_BYTES / 2048 * packet->blocks,
		.tp_retire_blk_tov = RETIRE_MS,
	};
	int error;

	packet->receive_fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);
	if (packet->receive_fd < 0)
		return -errno;
	if ((error = set_option(packet->receive_fd, PACKET_VERSION, TPACKET_V3)) ||
	    (error = set_option(packet->receive_fd, PACKET_RESERVE, IO_HEADROOM)) ||
	    (error = set_option(packet->receive_fd, PACKET_VNET_HDR, 1)) ||
	    (error = set_option(packet->receive_fd, PACKET_IGNORE_OUTGOING, 1)))
		return error;
	if (setsockopt(packet->receive_fd, SOL_PACKET, PACKET_RX_RING, &request, sizeof(request)))
		return -errno;
	packet->ring = mmap(NULL, packet->ring_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE,
			    packet->receive_fd, 0);
	return packet->ring == MAP_FAILED ? -errno : 0;
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

static int join_group(struct packet_io *packet, int group)
{
	socklen_t length = sizeof(int);
	int value, error;

	packet->group = PACKET_IO_ALONE;
	if (group == PACKET_IO_ALONE)
		return 0;
	value = PACKET_FANOUT_HASH << 16;
	value |= group == PACKET_IO_NEW_GROUP ? PACKET_FANOUT_FLAG_UNIQUEID << 16 : group;
	error = set_option(packet->receive_fd, PACKET_FANOUT, value);
	if (error)
		return error;
	if (getsockopt(packet->receive_fd, SOL_PACKET, PACKET_FANOUT, &value, &length))
		return -errno;
	packet->group = value & 0xffff;
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
	struct sock_filter program[BPF_MAXINSNS];

	if (filter_count > BPF_MAXINSNS)
		return -E2BIG;
	if (filter_count)
		memcpy(program, filter, filter_count * sizeof(*filter));
	return attach(packet_io(io)->receive_fd, program, filter_count);
}

/* Nothing enters the ring between bind() and the place in the group: the other rings would get copies. */
static int bind_ring(struct packet_io *packet, int group)
{
	struct sock_filter nothing = BPF_STMT(BPF_RET | BPF_K, 0);
	struct sockaddr_ll address = {
		.sll_family = AF_PACKET,
		.sll_protocol = htons(ETH_P_ALL),
		.sll_ifindex = packet->ifindex,
	};
	int error = attach(packet->receive_fd, &nothing, 1);

	if (error)
		return error;
	if (bind(packet->receive_fd, (struct sockaddr *)&address, sizeof(address)))
		return -errno;
	return join_group(packet, group);
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
	packet->receive_fd = -1;
	packet->send_fd = -1;
	for (unsigned i = 0; i < WAYS_OUT; i++)
		packet->ways[i].fd = -1;
	packet->ring = MAP_FAILED;
	packet->blocks = ring_bytes < 2 * BLOCK_BYTES ? 2 : ring_bytes / BLOCK_BYTES;
	packet->ring_bytes = (size_t)packet->blocks * BLOCK_BYTES;
	packet->ifindex = (int)if_nametoindex(interface);
	error = packet->ifindex ? 0 : -ENODEV;
	if (!error)
		error = open_ring(packet);
	if (!error)
		error = open_senders(packet);
	if (!error)
		error = bind_ring(packet, group);
	if (!error)
		error = packet_io_filter(&packet->io, filter, filter_count);
	if (error) {
		packet_close(&packet->io);
		return error;
	}
	*out = &packet->io;
	return 0;
}

int packet_io_group(const struct io *io)
{
	return ((const struct packet_io *)io)->group;
}
