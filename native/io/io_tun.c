/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The TUN backend: one read() and one write() per packet, into buffers that are touched once at the start.  Routes,
 * addresses and sysctls of the device are set by whoever opens it (lb/mux/io/tun.py).
 *
 * With several workers each has a queue of the device.  The kernel spreads packets by a hash that looks into tunnels,
 * and moves a flow to the queue that last wrote a packet of it: so a flow stays with its worker.
 */
#define _GNU_SOURCE
#include "io/io_tun.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include "bpf/tunnel_gso.h"
#include "io/virtio_frame.h"
#include "packet/merge.h"

#ifndef TUN_F_USO4 /* newer than the oldest headers that this builds with */
#define TUN_F_USO4 0x20
#define TUN_F_USO6 0x40
#endif

#define READ_MAX (64u << 10)      /* a super-packet; larger ones (BIG TCP) come cut short and are dropped as truncated */
#define LARGE_MAX 8u              /* super-packets in a burst: their memory stays in the cache */
#define ROOM_BEFORE (IO_HEADROOM + sizeof(struct virtio_net_hdr))
#define LINE 64u
/* An odd number of cache lines, so that the slots' beginnings spread over all sets of a cache. */
#define SLOT_BYTES (((ROOM_BEFORE + READ_MAX + LINE - 1) / LINE | 1) * LINE)
#define SEND_RETRIES 16u /* per send() */

struct tun_io {
	struct io io;
	int fd;
	char name[IFNAMSIZ];
	bool first; /* of the device's queues: it alone reports what the kernel dropped */
	bool whole;   /* each packet has a virtio header */
	int link;     /* holds the program at the device; -1: another queue's does, or there is none */
	uint8_t *slots;
	struct merge *merge; /* where packets may leave whole */

	/* Written by the worker, read by anyone. */
	_Atomic uint64_t received;
	_Atomic uint64_t sent;
	_Atomic uint64_t send_errors;
};

static struct tun_io *tun_io(struct io *io)
{
	return (struct tun_io *)io;
}

static void count(_Atomic uint64_t *counter, uint64_t more)
{
	atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + more, memory_order_relaxed);
}

/* To data, and what the kernel says of it to frame; the length as of read(). */
static ssize_t read_packet(struct tun_io *tun, uint8_t *data, struct frame *frame)
{
	size_t before = tun->whole ? sizeof(struct virtio_net_hdr) : 0;
	ssize_t length = read(tun->fd, data - before, before + READ_MAX);
	uint32_t bytes;

	if (length <= (ssize_t)before)
		return length < 0 ? length : 0;
	bytes = (uint32_t)(length - (ssize_t)before); /* more than were read, if there was no room */
	if (tun->whole)
		packet_frame_fill(data, bytes < READ_MAX ? bytes : READ_MAX, bytes, frame);
	else
		*frame = (struct frame){
			.data = data,
			.len = bytes,
			.wire_len = bytes,
			.headroom = IO_HEADROOM,
			.offload = FRAME_TOLD, /* without a virtio header the kernel finishes and cuts before we read */
		};
	return length;
}

static int tun_receive(struct io *io, struct frame *frames, unsigned max)
{
	struct tun_io *tun = tun_io(io);
	unsigned taken = 0, larges = 0;
	int error = 0;

	while (taken < max && larges < LARGE_MAX) {
		uint8_t *data = tun->slots + (size_t)taken * SLOT_BYTES + ROOM_BEFORE;
		ssize_t length = read_packet(tun, data, &frames[taken]);

		if (length < 0 && errno == EINTR)
			continue;
		if (length < 0 && errno != EAGAIN)
			error = errno;
		if (length <= 0)
			break;
		larges += frames[taken++].len > TUN_FRAME_MAX;
	}
	count(&tun->received, taken);
	if (!taken)
		return -error;
	return (int)(tun->io.sends_whole ? merge_burst(tun->merge, LINK_RAW_IP, false, frames, taken) : taken);
}

static void tun_release(struct io *io)
{
	(void)io; /* the next receive() overwrites the slots */
}

static void tun_wait(struct io *io, int wake_fd, int timeout_ms)
{
	struct pollfd fds[2] = {
		{.fd = tun_io(io)->fd, .events = POLLIN},
		{.fd = wake_fd, .events = POLLIN},
	};

	poll(fds, 2, timeout_ms);
}

static bool write_packet(const struct tun_io *tun, const struct frame *frame)
{
	struct virtio_net_hdr offload;
	struct iovec parts[] = { { &offload, sizeof(offload) }, { frame->data, frame->len } };

	if (!tun->whole)
		return write(tun->fd, frame->data, frame->len) >= 0;
	packet_frame_offload(frame, 0, &offload);
	return writev(tun->fd, parts, 2) >= 0;
}

static void tun_send(struct io *io, struct frame *frames, unsigned number)
{
	struct tun_io *tun = tun_io(io);
	unsigned retries = 0, failed = 0;

	for (unsigned i = 0; i < number;) {
		frames[i].error = 0;
		if (write_packet(tun, &frames[i])) {
			i++;
			continue;
		}
		if ((errno == EAGAIN || errno == EINTR || errno == ENOBUFS) && retries++ < SEND_RETRIES)
			continue;
		frames[i++].error = (uint16_t)errno;
		failed++;
	}
	count(&tun->sent, number - failed);
	count(&tun->send_errors, failed);
}

/* Packets that the kernel could not queue for us: "tx_dropped" of the device. */
static uint64_t dropped_by_kernel(const char *name)
{
	FILE *file = fopen("/proc/thread-self/net/dev", "re");
	unsigned long long dropped = 0;
	char line[512];

	if (!file)
		return 0;
	while (fgets(line, sizeof(line), file)) {
		char *colon = strchr(line, ':');
		char *start = line + strspn(line, " ");

		if (!colon || strlen(name) != (size_t)(colon - start) || memcmp(start, name, strlen(name)))
			continue;
		/* eight columns of receiving; then bytes, packets, errors, dropped of sending */
		if (sscanf(colon + 1, "%*u %*u %*u %*u %*u %*u %*u %*u %*u %*u %*u %llu", &dropped) != 1)
			dropped = 0;
		break;
	}
	fclose(file);
	return dropped;
}

static void tun_stats(const struct io *io, struct io_stats *out)
{
	const struct tun_io *tun = (const struct tun_io *)io;

	out->received = atomic_load_explicit(&tun->received, memory_order_relaxed);
	out->sent = atomic_load_explicit(&tun->sent, memory_order_relaxed);
	out->send_errors = atomic_load_explicit(&tun->send_errors, memory_order_relaxed);
	out->missed = tun->first ? dropped_by_kernel(tun->name) : 0;
}

static void tun_close(struct io *io)
{
	struct tun_io *tun = tun_io(io);

	merge_destroy(tun->merge);
	if (tun->slots != MAP_FAILED)
		munmap(tun->slots, (size_t)BURST_MAX * SLOT_BYTES);
	if (tun->link >= 0)
		close(tun->link);
	if (tun->fd >= 0)
		close(tun->fd);
	free(tun);
}

static const struct io_ops tun_ops = {
	.name = "tun",
	.receive = tun_receive,
	.send = tun_send,
	.release = tun_release,
	.wait = tun_wait,
	.stats = tun_stats,
	.close = tun_close,
};

/* Trains of UDP come whole as well where the kernel can (from 6.2 on). */
static int take_whole(struct tun_io *tun, int program)
{
	unsigned tcp = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN;

	if (tun->first) {
		tun->link = tunnel_gso_attach(program, if_nametoindex(tun->name));
		if (tun->link < 0)
			return tun->link;
	}
	if (ioctl(tun->fd, TUNSETOFFLOAD, tcp | TUN_F_USO4 | TUN_F_USO6) && ioctl(tun->fd, TUNSETOFFLOAD, tcp))
		return -errno;
	tun->merge = merge_create();
	if (!tun->merge)
		return -ENOMEM;
	tun->io.sends_whole = true;
	return 0;
}

static int open_queue(struct tun_io *tun, int shared, int program)
{
	struct ifreq request = {.ifr_flags = IFF_TUN | IFF_NO_PI};

	tun->first = if_nametoindex(tun->name) == 0;
	if (shared)
		request.ifr_flags |= IFF_MULTI_QUEUE;
	tun->whole = program >= 0;
	if (tun->whole)
		request.ifr_flags |= IFF_VNET_HDR;
	memcpy(request.ifr_name, tun->name, sizeof(request.ifr_name));
	tun->fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
	if (tun->fd < 0)
		return -errno;
	if (ioctl(tun->fd, TUNSETIFF, &request))
		return -errno;
	return tun->whole ? take_whole(tun, program) : 0;
}

int tun_io_steer(struct io *io, int program)
{
	return ioctl(tun_io(io)->fd, TUNSETSTEERINGEBPF, &program) ? -errno : 0;
}

int tun_io_open(const char *name, int shared, int program, struct io **out)
{
	struct tun_io *tun;
	int error;

	if (strlen(name) >= IFNAMSIZ)
		return -ENAMETOOLONG;
	tun = calloc(1, sizeof(*tun));
	if (!tun)
		return -ENOMEM;
	tun->io.ops = &tun_ops;
	tun->io.link = LINK_RAW_IP;
	tun->io.references = 1;
	tun->fd = tun->link = -1;
	strcpy(tun->name, name);
	tun->slots = mmap(NULL, (size_t)BURST_MAX * SLOT_BYTES, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	error = tun->slots == MAP_FAILED ? -errno : open_queue(tun, shared, program);
	if (error) {
		tun_close(&tun->io);
		return error;
	}
	*out = &tun->io;
	return 0;
}
