/* SPDX-License-Identifier: Apache-2.0 */
/*
 * native/io/af_xdp/xsk_out.c over a kernel of our own, in place of xsk.c: it takes some frames a call, drops one, refuses, or says late
 * what it is done with, as it is told.  For tests/native/test_xsk_out.py.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/ethtool.h>
#include <linux/if_xdp.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "machine/io.h"
#include "io/af_xdp/xsk.h"

#define RING 4096u

static uint32_t send_at[2], done_at[2], flag; /* producer and consumer of each ring */
static struct xdp_desc sends[RING];
static uint64_t dones[RING];
static uint8_t *memory_base;
static uint64_t memory_bytes;
static unsigned per_call, drop_at, refuse_after, kicks, bind_calls, opened, arrived;
static int refusal, bind_answer, mtu, taken_in_all;
static const char *driver;
static uint8_t last[2048];

int xsk_memory_map(struct xsk_memory *memory, uint32_t chunk, uint32_t chunks)
{
	memory_base = calloc(chunks, chunk);
	memory_bytes = (uint64_t)chunks * chunk;
	*memory = (struct xsk_memory){ .base = memory_base, .chunk = chunk, .chunks = chunks };
	return 0;
}

void xsk_memory_unmap(struct xsk_memory *memory)
{
	free(memory->base);
	memory->base = NULL;
}

void xsk_init(struct xsk *xsk)
{
	memset(xsk, 0, sizeof(*xsk));
	xsk->fd = -1;
}

int xsk_open(struct xsk *xsk, const struct xsk_memory *memory, uint32_t receive)
{
	(void)memory, (void)receive;
	xsk->fd = 9;
	xsk->send = (struct xsk_ring){ &send_at[0], &send_at[1], &flag, sends, RING, 0, 0, NULL, 0 };
	xsk->complete = (struct xsk_ring){ &done_at[0], &done_at[1], &flag, dones, RING, 0, 0, NULL, 0 };
	opened++;
	return 0;
}

void xsk_close(struct xsk *xsk)
{
	opened -= xsk->fd >= 0;
	xsk_init(xsk);
}

int xsk_bind(struct xsk *xsk, int ifindex, uint32_t queue, enum xsk_copy copy)
{
	(void)xsk, (void)ifindex;
	bind_calls++;
	return queue || copy != XSK_COPY ? -EINVAL : bind_answer;
}

bool xsk_raise_send_budget(struct xsk *xsk)
{
	(void)xsk;
	return true;
}

void xsk_raise_send_buffer(struct xsk *xsk, int bytes)
{
	(void)xsk, (void)bytes;
}

static int fake_ioctl(int fd, unsigned long request, struct ifreq *about)
{
	(void)fd;
	if (request == SIOCGIFNAME)
		return 0;
	if (request == SIOCGIFMTU)
		about->ifr_mtu = mtu;
	else
		strcpy(((struct ethtool_drvinfo *)(void *)about->ifr_data)->driver, driver);
	return 0;
}

static ssize_t fake_sendto(void)
{
	unsigned taken = 0;

	kicks++;
	while (taken < per_call && send_at[1] != send_at[0]) {
		const struct xdp_desc *frame = &sends[send_at[1] & (RING - 1)];

		if (frame->options || frame->addr >= memory_bytes) { /* as the kernel does with what says what it may not */
			send_at[1]++;
			continue;
		}
		if (refuse_after && taken_in_all == (int)refuse_after - 1) {
			errno = refusal;
			return -1;
		}
		send_at[1]++;
		taken++;
		taken_in_all++;
		dones[done_at[0]++ & (RING - 1)] = frame->addr;
		if (taken_in_all == (int)drop_at) {
			errno = EBUSY;
			return -1;
		}
		memcpy(last, memory_base + frame->addr, frame->len);
		arrived++;
	}
	if (send_at[1] != send_at[0]) {
		errno = EAGAIN;
		return -1;
	}
	return 0;
}

#define ioctl(fd, request, argument) fake_ioctl(fd, request, argument)
#define sendto(fd, data, length, flags, address, size) fake_sendto()
#define socket(domain, type, protocol) 8
#define close(fd) ((void)(fd))
#include "io/af_xdp/xsk_out.c"

static struct xsk_out *out;

void probe_start(unsigned taken_a_call, unsigned dropped, unsigned refused, int with, int bind_error, int veth);
int probe_send(unsigned count, unsigned length, int ifindex, unsigned size, unsigned mtu_now);
void probe_told(unsigned *told);
void probe_refuse(void);
void probe_recover(void);
void probe_end(void);

/* dropped: which of all frames is, from 1; refused: from which on all are, with an errno.  0: none. */
void probe_start(unsigned taken_a_call, unsigned dropped, unsigned refused, int with, int bind_error, int veth)
{
	memset(send_at, 0, sizeof(send_at));
	memset(done_at, 0, sizeof(done_at));
	kicks = bind_calls = arrived = 0;
	taken_in_all = 0;
	per_call = taken_a_call;
	drop_at = dropped;
	refuse_after = refused;
	refusal = with;
	bind_answer = bind_error;
	driver = veth ? "veth" : "virtio_net";
	out = xsk_out_open();
}

/* Sent * 1000 + those of them with an error; -1: the last that arrived is not what was sent. */
int probe_send(unsigned count, unsigned length, int ifindex, unsigned size, unsigned mtu_now)
{
	static uint8_t bytes[BURST_MAX][4096];
	struct frame frames[BURST_MAX] = { 0 };
	unsigned sent, wrong = 0, before = arrived;
	static uint8_t stamp;

	mtu = (int)mtu_now;
	for (unsigned i = 0; i < count; i++) {
		memset(bytes[i], ++stamp, sizeof(bytes[i]));
		frames[i] = (struct frame){ .data = bytes[i], .len = length, .gso_size = (uint16_t)size, .error = 77 };
	}
	sent = xsk_out_send(out, frames, count, ifindex);
	for (unsigned i = 0; i < sent; i++)
		wrong += frames[i].error == ENOBUFS;
	for (unsigned i = sent; i < count; i++)
		if (frames[i].error != 77 && frames[i].error)
			return -1;
	if (arrived != before && sent == count && frames[count - 1].error == 0 && memcmp(last, bytes[count - 1], length))
		return -1;
	return arrived - before == sent - wrong ? (int)(sent * 1000 + wrong) : -1;
}

/* Kicks, binds, sockets that are open, and chunks that nobody has. */
void probe_told(unsigned *told)
{
	told[0] = kicks;
	told[1] = bind_calls;
	told[2] = opened;
	reap(out);
	told[3] = out->free_count;
}

/* All from here on. */
void probe_refuse(void)
{
	refuse_after = (unsigned)taken_in_all + 1;
}

/* What was refused is taken again. */
void probe_recover(void)
{
	refuse_after = 0;
}

void probe_end(void)
{
	xsk_out_close(out);
	opened = 0;
}
