/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Raw socket in (recvmmsg), TUN out (a write per packet).  While the socket is open the kernel sends no "protocol
 * unreachable".  Fragments of the outer packet arrive already put together, and what GRO merged arrives in one piece,
 * which the TUN device takes whatever its MTU: hence slots for the longest IP packet.
 */
#define _GNU_SOURCE
#include "io/io_raw.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <linux/sock_diag.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#define PACKET_MAX 65535u
#define SLOT_BYTES (IO_HEADROOM + 65536u)
#define RECEIVE_BUFFER (16 << 20) /* rides out a worker that is not scheduled for some milliseconds */
#define SEND_RETRIES 16u          /* per send() */

struct raw_io {
	struct io io;
	int socket;
	int tun;
	uint8_t *slots;
	struct mmsghdr messages[BURST_MAX];
	struct iovec vectors[BURST_MAX];

	/* Written by the worker, read by anyone. */
	_Atomic uint64_t received;
	_Atomic uint64_t sent;
	_Atomic uint64_t send_errors;
};

static void count(_Atomic uint64_t *counter, uint64_t more)
{
	atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + more, memory_order_relaxed);
}

static int raw_receive(struct io *io, struct frame *frames, unsigned max)
{
	struct raw_io *raw = (struct raw_io *)io;
	int taken = recvmmsg(raw->socket, raw->messages, max, MSG_DONTWAIT, NULL);

	if (taken < 0)
		return errno == EAGAIN || errno == EINTR ? 0 : -errno;
	for (int i = 0; i < taken; i++) {
		frames[i] = (struct frame){
			.data = raw->vectors[i].iov_base,
			.len = raw->messages[i].msg_len,
			.wire_len = raw->messages[i].msg_len,
			.headroom = IO_HEADROOM,
		};
	}
	count(&raw->received, (uint64_t)taken);
	return taken;
}

static void raw_send(struct io *io, struct frame *frames, unsigned number)
{
	struct raw_io *raw = (struct raw_io *)io;
	unsigned retries = 0, failed = 0;

	for (unsigned i = 0; i < number;) {
		frames[i].error = 0;
		if (write(raw->tun, frames[i].data, frames[i].len) >= 0) {
			i++;
			continue;
		}
		if ((errno == EAGAIN || errno == EINTR || errno == ENOBUFS) && retries++ < SEND_RETRIES)
			continue;
		frames[i++].error = (uint16_t)errno;
		failed++;
	}
	count(&raw->sent, number - failed);
	count(&raw->send_errors, failed);
}

static void raw_release(struct io *io)
{
	(void)io; /* the next receive() overwrites the slots */
}

static void raw_wait(struct io *io, int wake_fd, int timeout_ms)
{
	struct pollfd fds[2] = {
		{ .fd = ((struct raw_io *)io)->socket, .events = POLLIN },
		{ .fd = wake_fd, .events = POLLIN },
	};

	poll(fds, 2, timeout_ms);
}

static void raw_stats(const struct io *io, struct io_stats *out)
{
	const struct raw_io *raw = (const struct raw_io *)io;
	uint32_t memory[SK_MEMINFO_VARS] = { 0 };
	socklen_t size = sizeof(memory);

	out->received = atomic_load_explicit(&raw->received, memory_order_relaxed);
	out->sent = atomic_load_explicit(&raw->sent, memory_order_relaxed);
	out->send_errors = atomic_load_explicit(&raw->send_errors, memory_order_relaxed);
	(void)getsockopt(raw->socket, SOL_SOCKET, SO_MEMINFO, memory, &size);
	out->missed = memory[SK_MEMINFO_DROPS];
}

static void raw_close(struct io *io)
{
	struct raw_io *raw = (struct raw_io *)io;

	if (raw->socket >= 0)
		close(raw->socket);
	if (raw->tun >= 0)
		close(raw->tun);
	if (raw->slots != MAP_FAILED)
		munmap(raw->slots, (size_t)BURST_MAX * SLOT_BYTES);
	free(raw);
}

static const struct io_ops raw_ops = {
	.name = "raw",
	.receive = raw_receive,
	.send = raw_send,
	.release = raw_release,
	.wait = raw_wait,
	.stats = raw_stats,
	.close = raw_close,
};

static int open_socket(struct raw_io *raw, const uint8_t address[4])
{
	struct sockaddr_in local = { .sin_family = AF_INET };
	int size = RECEIVE_BUFFER;

	memcpy(&local.sin_addr, address, 4);
	raw->socket = socket(AF_INET, SOCK_RAW | SOCK_CLOEXEC, IPPROTO_IPIP);
	if (raw->socket < 0)
		return -errno;
	if (setsockopt(raw->socket, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof(size)))
		(void)setsockopt(raw->socket, SOL_SOCKET, SO_RCVBUF, &size, sizeof(size));
	return bind(raw->socket, (struct sockaddr *)&local, sizeof(local)) ? -errno : 0;
}

static int open_tun(struct raw_io *raw, const char *name)
{
	struct ifreq request = { .ifr_flags = IFF_TUN | IFF_NO_PI };

	if (strlen(name) >= IFNAMSIZ)
		return -ENAMETOOLONG;
	strcpy(request.ifr_name, name);
	raw->tun = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
	if (raw->tun < 0)
		return -errno;
	return ioctl(raw->tun, TUNSETIFF, &request) ? -errno : 0;
}

static void prepare_slots(struct raw_io *raw)
{
	for (unsigned i = 0; i < BURST_MAX; i++) {
		raw->vectors[i].iov_base = raw->slots + (size_t)i * SLOT_BYTES + IO_HEADROOM;
		raw->vectors[i].iov_len = PACKET_MAX;
		raw->messages[i].msg_hdr.msg_iov = &raw->vectors[i];
		raw->messages[i].msg_hdr.msg_iovlen = 1;
	}
}

int raw_io_open(const uint8_t address[4], const char *tun_name, struct io **out)
{
	struct raw_io *raw = calloc(1, sizeof(*raw));
	int error;

	if (!raw)
		return -ENOMEM;
	raw->io.ops = &raw_ops;
	raw->io.link = LINK_RAW_IP;
	raw->io.references = 1;
	raw->socket = -1;
	raw->tun = -1;
	raw->slots = mmap(NULL, (size_t)BURST_MAX * SLOT_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			  -1, 0);
	error = raw->slots == MAP_FAILED ? -errno : 0;
	if (!error)
		error = open_tun(raw, tun_name);
	if (!error)
		error = open_socket(raw, address);
	if (error) {
		raw_close(&raw->io);
		return error;
	}
	prepare_slots(raw);
	*out = &raw->io;
	return 0;
}
