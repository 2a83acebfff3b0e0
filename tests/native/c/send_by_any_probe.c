/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The sending half of native/io/af_packet/io_packet.c over a kernel of our own: interfaces come and go, sockets are bound to them as
 * Linux does it.  For tests/native/test_send_by_any.py.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/if_packet.h>
#include <stddef.h>
#include <sys/socket.h>

#define INTERFACES 64
#define SOCKETS 8

static struct {
	int generation; /* 0: no such interface; another each time it comes back */
	int up;
} interfaces[INTERFACES];
static struct {
	int ifindex; /* bound to, -1: to one that went away */
	int generation;
	int error; /* told once by the next send */
} sockets[SOCKETS];
static int binds, sends, addressed, generations;

static int fake_bind(int fd, const struct sockaddr *address, socklen_t length)
{
	int ifindex = ((const struct sockaddr_ll *)address)->sll_ifindex;

	(void)length;
	binds++;
	if (!interfaces[ifindex].generation) {
		errno = ENODEV;
		return -1;
	}
	sockets[fd].ifindex = ifindex;
	sockets[fd].generation = interfaces[ifindex].generation;
	sockets[fd].error = interfaces[ifindex].up ? 0 : ENETDOWN;
	return 0;
}

__attribute__((unused)) static int fake_getsockname(int fd, struct sockaddr *address, socklen_t *length)
{
	(void)length;
	((struct sockaddr_ll *)address)->sll_ifindex = sockets[fd].ifindex;
	return 0;
}

static int fake_sendmmsg(int fd, struct mmsghdr *messages, unsigned count, int flags)
{
	const struct sockaddr_ll *address = messages[0].msg_hdr.msg_name;
	int ifindex = address ? address->sll_ifindex : sockets[fd].ifindex;

	(void)flags;
	sends++;
	addressed += address != NULL;
	errno = 0;
	if (!address && sockets[fd].error) {
		errno = sockets[fd].error;
		sockets[fd].error = 0;
	} else if (ifindex <= 0 || !interfaces[ifindex].generation) {
		errno = ENXIO;
	} else if (!interfaces[ifindex].up) {
		errno = ENETDOWN;
	}
	return errno ? -1 : (int)count;
}

/* There is no quick way here: sockets send all. */
#include "io/af_xdp/xsk_out.h"

struct xsk_out *xsk_out_open(void)
{
	return NULL;
}

unsigned xsk_out_send(struct xsk_out *out, struct frame *frames, unsigned number, int ifindex)
{
	(void)out, (void)frames, (void)number, (void)ifindex;
	return 0;
}

void xsk_out_close(struct xsk_out *out)
{
	(void)out;
}

#define bind fake_bind
#define getsockname fake_getsockname
#define sendmmsg fake_sendmmsg
#include "io/af_packet/io_packet.c"

void probe_start(void);
void probe_interface(int ifindex, int there, int up);
int probe_send(int ifindex, int count);
void probe_told(int *out);

static struct packet_io probed;

void probe_start(void)
{
	memset(interfaces, 0, sizeof(interfaces));
	memset(sockets, 0, sizeof(sockets));
	memset(&probed, 0, sizeof(probed));
	binds = sends = addressed = generations = 0;
	probed.send_fd = 7;
	for (unsigned i = 0; i < WAYS_OUT; i++)
		probed.ways[i].fd = (int)i;
}

void probe_interface(int ifindex, int there, int up)
{
	if (!there)
		for (int fd = 0; fd < SOCKETS; fd++)
			if (sockets[fd].ifindex == ifindex) {
				sockets[fd].ifindex = -1;
				sockets[fd].error = ENETDOWN;
			}
	if (there && !interfaces[ifindex].generation)
		interfaces[ifindex].generation = ++generations;
	else if (!there)
		interfaces[ifindex].generation = 0;
	interfaces[ifindex].up = up;
}

/* How many frames of so many could not be sent. */
int probe_send(int ifindex, int count)
{
	struct frame frames[BURST_MAX] = { 0 };
	int failed = 0;

	for (int i = 0; i < count; i++)
		frames[i].ifindex = (uint32_t)ifindex;
	packet_send(&probed.io, frames, (unsigned)count);
	for (int i = 0; i < count; i++)
		failed += frames[i].error != 0;
	return failed;
}

/* System calls since the last time: bind(), sendmmsg(), and how many of these named an interface. */
void probe_told(int *out)
{
	out[0] = binds;
	out[1] = sends;
	out[2] = addressed;
	binds = sends = addressed = 0;
}
