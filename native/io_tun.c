/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The TUN backend: one read() and one write() per packet, into buffers that are touched once at the start.  Routes,
 * addresses and sysctls of the device are set by whoever opens it (lb/mux/tun.py).
 *
 * With several workers each has a queue of the device.  The kernel spreads packets by a hash that looks into tunnels,
 * and moves a flow to the queue that last wrote a packet of it: so a flow stays with its worker.
 */
#define _GNU_SOURCE
#include "io_tun.h"

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
#include <unistd.h>

#define SLOT_BYTES (IO_HEADROOM + TUN_FRAME_MAX + 64u)
#define SEND_RETRIES 16u /* per send() */

struct tun_io {
	struct io io;
	int fd;
	char name[IFNAMSIZ];
	bool first; /* of the device's queues: it alone reports what the kernel dropped */
	uint8_t *slots;

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

static int tun_receive(struct io *io, struct frame *frames, unsigned max)
{
	struct tun_io *tun = tun_io(io);
	unsigned taken = 0;
	int error = 0;

	while (taken < max) {
		uint8_t *data = tun->slots + (size_t)taken * SLOT_BYTES + IO_HEADROOM;
		ssize_t length = read(tun->fd, data, TUN_FRAME_MAX);

		if (length < 0 && errno == EINTR)
			continue;
		if (length < 0 && errno != EAGAIN)
			error = errno;
		if (length <= 0)
			break;
		frames[taken++] = (struct frame){
			.data = data,
			.len = (uint32_t)length,
			.wire_len = (uint32_t)length,
			.headroom = IO_HEADROOM,
			.offload = FRAME_TOLD, /* without a virtio header the kernel finishes and cuts before we read */
		};
	}
	count(&tun->received, taken);
	return taken ? (int)taken : -error;
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

static void tun_send(struct io *io, struct frame *frames, unsigned number)
{
	struct tun_io *tun = tun_io(io);
	unsigned retries = 0, failed = 0;

	for (unsigned i = 0; i < number;) {
		frames[i].error = 0;
		if (write(tun->fd, frames[i].data, frames[i].len) >= 0) {
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

	if (tun->slots != MAP_FAILED)
		munmap(tun->slots, (size_t)BURST_MAX * SLOT_BYTES);
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

static int open_queue(struct tun_io *tun, int shared)
{
	struct ifreq request = {.ifr_flags = IFF_TUN | IFF_NO_PI};

	tun->first = if_nametoindex(tun->name) == 0;
	if (shared)
		request.ifr_flags |= IFF_MULTI_QUEUE;
	memcpy(request.ifr_name, tun->name, sizeof(request.ifr_name));
	tun->fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
	if (tun->fd < 0)
		return -errno;
	if (ioctl(tun->fd, TUNSETIFF, &request))
		return -errno;
	return 0;
}

int tun_io_open(const char *name, int shared, struct io **out)
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
	tun->fd = -1;
	strcpy(tun->name, name);
	tun->slots = mmap(NULL, (size_t)BURST_MAX * SLOT_BYTES, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	error = tun->slots == MAP_FAILED ? -errno : open_queue(tun, shared);
	if (error) {
		tun_close(&tun->io);
		return error;
	}
	*out = &tun->io;
	return 0;
}
