/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A socket for each kind of tunnel in (recvmmsg), TUN out (a write per packet).  While the sockets are open the kernel sends no
 * "protocol unreachable" and no "port unreachable".  What GRO merged arrives in one piece, which the TUN device takes whatever
 * its MTU: hence slots for the longest IP packet.
 */
#define _GNU_SOURCE
#include "io/io_raw.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <linux/sock_diag.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "packet/checksum.h"

#ifndef UDP_NO_CHECK6_RX
#define UDP_NO_CHECK6_RX 102
#endif

#define PACKET_MAX 65535u
#define SLOT_BYTES (IO_HEADROOM + 65536u)
#define RECEIVE_BUFFER (16 << 20) /* rides out a worker that is not scheduled for some milliseconds */
#define SEND_RETRIES 16u          /* per send() */
#define WAYS_MAX 6u
#define IPV4_HEADER 20u
#define IPV6_HEADER 40u
#define UDP_HEADER 8u
#define TTL_UNKNOWN 64 /* of headers made again: nobody looks at it */

/* One kind of tunnel. */
struct way {
	int socket;
	uint8_t family;
	uint8_t protocol;
};

/* What the kernel tells beside a packet. */
union control {
	struct cmsghdr first; /* aligns it */
	uint8_t bytes[CMSG_SPACE(sizeof(int))];
};

struct raw_io {
	struct io io;
	struct way ways[WAYS_MAX];
	unsigned way_count;
	unsigned next; /* the way that is asked first */
	uint8_t address[16], address6[16];
	uint16_t gue_port;
	int tun;
	uint8_t *slots;
	struct mmsghdr messages[BURST_MAX];
	struct iovec vectors[BURST_MAX];
	union {
		struct sockaddr_in four;
		struct sockaddr_in6 six;
	} sources[BURST_MAX];
	union control controls[BURST_MAX];

	/* Written by the worker, read by anyone. */
	_Atomic uint64_t received;
	_Atomic uint64_t sent;
	_Atomic uint64_t send_errors;
};

static void count(_Atomic uint64_t *counter, uint64_t more)
{
	atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + more, memory_order_relaxed);
}

static void put16(uint8_t *at, uint32_t value)
{
	uint16_t word = htons((uint16_t)value);

	memcpy(at, &word, sizeof(word));
}

/* DSCP and ECN of the outer header. */
static uint8_t told_tos(struct msghdr *message)
{
	int tos = 0;

	for (struct cmsghdr *item = CMSG_FIRSTHDR(message); item; item = CMSG_NXTHDR(message, item)) {
		if (item->cmsg_level == IPPROTO_IPV6 && item->cmsg_type == IPV6_TCLASS)
			memcpy(&tos, CMSG_DATA(item), sizeof(tos));
		else if (item->cmsg_level == IPPROTO_IP && item->cmsg_type == IP_TOS)
			tos = *CMSG_DATA(item);
	}
	return (uint8_t)tos;
}

/* Before a payload of `length` bytes; returns where it begins. */
static uint8_t *make_udp(const struct raw_io *raw, unsigned i, const struct way *way, uint8_t *payload, uint32_t length)
{
	uint8_t *udp = payload - UDP_HEADER;

	memcpy(udp, way->family == 4 ? &raw->sources[i].four.sin_port : &raw->sources[i].six.sin6_port, 2);
	put16(udp + 2, raw->gue_port);
	put16(udp + 4, length + UDP_HEADER);
	put16(udp + 6, 0); /* the kernel has looked at it */
	return udp;
}

static uint8_t *make_ipv4(const struct raw_io *raw, unsigned i, const struct way *way, uint8_t tos, uint8_t *payload, uint32_t length)
{
	uint8_t *ip = payload - IPV4_HEADER;
	uint16_t check;

	memset(ip, 0, IPV4_HEADER);
	ip[0] = 0x45;
	ip[1] = tos;
	put16(ip + 2, length + IPV4_HEADER);
	ip[8] = TTL_UNKNOWN;
	ip[9] = way->protocol;
	memcpy(ip + 12, &raw->sources[i].four.sin_addr, 4);
	memcpy(ip + 16, raw->address, 4);
	check = (uint16_t)~checksum_fold(checksum_add(ip, IPV4_HEADER, 0));
	memcpy(ip + 10, &check, sizeof(check));
	return ip;
}

static uint8_t *make_ipv6(const struct raw_io *raw, unsigned i, const struct way *way, uint8_t tos, uint8_t *payload, uint32_t length)
{
	uint8_t *ip = payload - IPV6_HEADER;

	memset(ip, 0, 4);
	ip[0] = (uint8_t)(0x60 | tos >> 4);
	ip[1] = (uint8_t)(tos << 4);
	put16(ip + 4, length);
	ip[6] = way->protocol;
	ip[7] = TTL_UNKNOWN;
	memcpy(ip + 8, &raw->sources[i].six.sin6_addr, 16);
	memcpy(ip + 24, raw->address6, 16);
	return ip;
}

/* Where the outer header of message i begins. */
static uint8_t *begin_of(const struct raw_io *raw, unsigned i, const struct way *way)
{
	struct msghdr *message = (struct msghdr *)(uintptr_t)&raw->messages[i].msg_hdr;
	uint8_t *data = raw->vectors[i].iov_base, *at = data, tos = told_tos(message);
	uint32_t length = raw->messages[i].msg_len;

	if (way->family == 4 && way->protocol != IPPROTO_UDP)
		return data;
	if (way->protocol == IPPROTO_UDP)
		at = make_udp(raw, i, way, at, length);
	length += (uint32_t)(data - at);
	return way->family == 4 ? make_ipv4(raw, i, way, tos, at, length) : make_ipv6(raw, i, way, tos, at, length);
}

/* Returns how many of them from the first on were taken, or a negative errno. */
static int receive_way(struct raw_io *raw, const struct way *way, unsigned first, struct frame *frames, unsigned max)
{
	int taken;

	for (unsigned i = first; i < max; i++) {
		raw->messages[i].msg_hdr.msg_namelen = sizeof(raw->sources[i]);
		raw->messages[i].msg_hdr.msg_controllen = sizeof(raw->controls[i]);
	}
	taken = recvmmsg(way->socket, raw->messages + first, max - first, MSG_DONTWAIT, NULL);
	if (taken < 0)
		return errno == EAGAIN || errno == EINTR ? 0 : -errno;
	for (unsigned i = first; i < first + (unsigned)taken; i++) {
		uint8_t *data = raw->vectors[i].iov_base, *begin = begin_of(raw, i, way);
		uint32_t length = raw->messages[i].msg_len + (uint32_t)(data - begin);

		frames[i] = (struct frame){
			.data = begin,
			.len = length,
			.wire_len = length,
			.headroom = (uint16_t)(IO_HEADROOM - (data - begin)),
		};
	}
	return taken;
}

static int raw_receive(struct io *io, struct frame *frames, unsigned max)
{
	struct raw_io *raw = (struct raw_io *)io;
	unsigned taken = 0;
	int error = 0;

	for (unsigned n = 0; n < raw->way_count && taken < max; n++) {
		int more = receive_way(raw, &raw->ways[(raw->next + n) % raw->way_count], taken, frames, max);

		if (more < 0)
			error = more;
		else
			taken += (unsigned)more;
	}
	raw->next++;
	count(&raw->received, taken);
	return taken ? (int)taken : error;
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
	struct raw_io *raw = (struct raw_io *)io;
	struct pollfd fds[WAYS_MAX + 1];

	for (unsigned i = 0; i < raw->way_count; i++)
		fds[i] = (struct pollfd){ .fd = raw->ways[i].socket, .events = POLLIN };
	fds[raw->way_count] = (struct pollfd){ .fd = wake_fd, .events = POLLIN };
	poll(fds, raw->way_count + 1, timeout_ms);
}

static void raw_stats(const struct io *io, struct io_stats *out)
{
	const struct raw_io *raw = (const struct raw_io *)io;

	out->received = atomic_load_explicit(&raw->received, memory_order_relaxed);
	out->sent = atomic_load_explicit(&raw->sent, memory_order_relaxed);
	out->send_errors = atomic_load_explicit(&raw->send_errors, memory_order_relaxed);
	out->missed = 0;
	for (unsigned i = 0; i < raw->way_count; i++) {
		uint32_t memory[SK_MEMINFO_VARS] = { 0 };
		socklen_t size = sizeof(memory);

		(void)getsockopt(raw->ways[i].socket, SOL_SOCKET, SO_MEMINFO, memory, &size);
		out->missed += memory[SK_MEMINFO_DROPS];
	}
}

static void raw_close(struct io *io)
{
	struct raw_io *raw = (struct raw_io *)io;

	for (unsigned i = 0; i < raw->way_count; i++)
		close(raw->ways[i].socket);
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

static int bind_way(const struct raw_io *raw, const struct way *way)
{
	struct sockaddr_in four = { .sin_family = AF_INET };
	struct sockaddr_in6 six = { .sin6_family = AF_INET6 };
	bool udp = way->protocol == IPPROTO_UDP;

	memcpy(&four.sin_addr, raw->address, 4);
	memcpy(&six.sin6_addr, raw->address6, 16);
	four.sin_port = six.sin6_port = udp ? htons(raw->gue_port) : 0;
	if (way->family == 4)
		return bind(way->socket, (struct sockaddr *)&four, sizeof(four)) ? -errno : 0;
	return bind(way->socket, (struct sockaddr *)&six, sizeof(six)) ? -errno : 0;
}

static int open_way(struct raw_io *raw, uint8_t family, uint8_t protocol)
{
	struct way *way = &raw->ways[raw->way_count];
	int size = RECEIVE_BUFFER, on = 1, type = protocol == IPPROTO_UDP ? SOCK_DGRAM : SOCK_RAW;

	*way = (struct way){ .family = family, .protocol = protocol };
	way->socket = socket(family == 4 ? AF_INET : AF_INET6, type | SOCK_CLOEXEC, protocol);
	if (way->socket < 0)
		return -errno;
	raw->way_count++;
	if (setsockopt(way->socket, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof(size)))
		(void)setsockopt(way->socket, SOL_SOCKET, SO_RCVBUF, &size, sizeof(size));
	if (family == 4 && protocol == IPPROTO_UDP && setsockopt(way->socket, IPPROTO_IP, IP_RECVTOS, &on, sizeof(on)))
		return -errno;
	if (family == 6 && setsockopt(way->socket, IPPROTO_IPV6, IPV6_RECVTCLASS, &on, sizeof(on)))
		return -errno;
	/* Without a checksum, as MUXes send it (RFC 6935). */
	if (family == 6 && protocol == IPPROTO_UDP && setsockopt(way->socket, IPPROTO_UDP, UDP_NO_CHECK6_RX, &on, sizeof(on)))
		return -errno;
	return bind_way(raw, way);
}

static int open_family(struct raw_io *raw, uint8_t family)
{
	int error = open_way(raw, family, IPPROTO_IPIP);

	if (!error)
		error = open_way(raw, family, IPPROTO_IPV6);
	if (!error && raw->gue_port)
		error = open_way(raw, family, IPPROTO_UDP);
	return error;
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
		raw->messages[i].msg_hdr.msg_name = &raw->sources[i];
		raw->messages[i].msg_hdr.msg_control = &raw->controls[i];
	}
}

int raw_io_open(const uint8_t *address, const uint8_t *address6, uint16_t gue_port, const char *tun_name, struct io **out)
{
	struct raw_io *raw = calloc(1, sizeof(*raw));
	int error;

	if (!raw)
		return -ENOMEM;
	raw->io.ops = &raw_ops;
	raw->io.link = LINK_RAW_IP;
	raw->io.references = 1;
	raw->gue_port = gue_port;
	raw->tun = -1;
	if (address)
		memcpy(raw->address, address, 4);
	if (address6)
		memcpy(raw->address6, address6, 16);
	raw->slots = mmap(NULL, (size_t)BURST_MAX * SLOT_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			  -1, 0);
	error = raw->slots == MAP_FAILED ? -errno : 0;
	if (!error)
		error = open_tun(raw, tun_name);
	if (!error && address)
		error = open_family(raw, 4);
	if (!error && address6)
		error = open_family(raw, 6);
	if (error) {
		raw_close(&raw->io);
		return error;
	}
	prepare_slots(raw);
	*out = &raw->io;
	return 0;
}
