/* SPDX-License-Identifier: Apache-2.0 */
/* See xsk_out.h. */
#define _GNU_SOURCE
#include "io/af_xdp/xsk_out.h"

#include <errno.h>
#include <linux/ethtool.h>
#include <linux/if_ether.h>
#include <linux/if_xdp.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "io/af_xdp/xsk.h"

#define CHUNK 2048u
#define CHUNKS 1024u /* far more than a burst: what a neighbour keeps for a while is not waited for */
#define SEND_BUFFER (8 << 20) /* what all chunks on their way may take, as the kernel counts it: with less it says EAGAIN */
#define KICKS 16u
#define LOOK_EVERY 1024u /* bursts: at the MTU, and whether the queue is to be had */
#define PAUSE 16u        /* bursts after a refusal, twice as many after each in a row, up to the longest */
#define PAUSE_MAX 16384u

struct xsk_out {
	struct xsk xsk;
	struct xsk_memory memory;
	uint32_t free[CHUNKS]; /* offsets of chunks that nobody has */
	uint32_t free_count;
	int questions;    /* a socket to ask about interfaces by */
	int ifindex;      /* bound to; 0: nothing yet, -1: given up */
	uint32_t longest; /* frame that may leave */
	unsigned bursts;
	unsigned pause;     /* bursts that are left to others still */
	unsigned refusals;  /* bursts of the last pause; 0: the last burst was taken */
};

struct xsk_out *xsk_out_open(void)
{
	struct xsk_out *out = calloc(1, sizeof(*out));
	int error;

	if (!out)
		return NULL;
	xsk_init(&out->xsk);
	out->questions = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	error = out->questions < 0 ? -errno : xsk_memory_map(&out->memory, CHUNK, CHUNKS);
	if (!error)
		error = xsk_open(&out->xsk, &out->memory, 0);
	if (error) {
		xsk_out_close(out);
		return NULL;
	}
	for (uint32_t i = 0; i < CHUNKS; i++)
		out->free[out->free_count++] = i * CHUNK;
	return out;
}

void xsk_out_close(struct xsk_out *out)
{
	if (!out)
		return;
	xsk_close(&out->xsk);
	xsk_memory_unmap(&out->memory);
	if (out->questions >= 0)
		close(out->questions);
	free(out);
}

static void give_up(struct xsk_out *out)
{
	xsk_close(&out->xsk);
	xsk_memory_unmap(&out->memory);
	out->ifindex = -1;
}

static bool is_veth(const struct xsk_out *out, struct ifreq *request)
{
	struct ethtool_drvinfo driver = { .cmd = ETHTOOL_GDRVINFO };

	request->ifr_data = (void *)&driver;
	return !ioctl(out->questions, SIOCETHTOOL, request) && !strcmp(driver.driver, "veth");
}

static uint32_t longest_for(const struct xsk_out *out, int ifindex)
{
	struct ifreq request = { .ifr_ifindex = ifindex };

	if (ioctl(out->questions, SIOCGIFNAME, &request) || ioctl(out->questions, SIOCGIFMTU, &request))
		return 0;
	return (uint32_t)request.ifr_mtu + ETH_HLEN;
}

static bool bind_to(struct xsk_out *out, int ifindex)
{
	struct ifreq request = { .ifr_ifindex = ifindex };

	int error = ioctl(out->questions, SIOCGIFNAME, &request) || !is_veth(out, &request) ? -ENODEV : 0;

	if (!error)
		error = xsk_bind(&out->xsk, ifindex, 0, XSK_COPY);
	/* Somebody has the queue, or had it a moment ago; the interface is down. */
	if (error && error != -EBUSY && error != -ENETDOWN)
		give_up(out);
	if (error)
		return false;
	(void)xsk_raise_send_budget(&out->xsk);
	xsk_raise_send_buffer(&out->xsk, SEND_BUFFER);
	out->ifindex = ifindex;
	return true;
}

/* Whether it may send all of these. */
static bool takes(struct xsk_out *out, const struct frame *frames, unsigned number, int ifindex)
{
	bool looks = out->bursts++ % LOOK_EVERY == 0;

	if (out->ifindex != ifindex && (out->ifindex || !looks || !bind_to(out, ifindex)))
		return false;
	if (looks)
		out->longest = longest_for(out, ifindex);
	for (unsigned i = 0; i < number; i++)
		if (frames[i].len > CHUNK || frames[i].len > out->longest || frames[i].gso_size)
			return false;
	return number <= out->free_count && xsk_room(&out->xsk.send, number) == number;
}

static unsigned reap(struct xsk_out *out)
{
	struct xsk_ring *ring = &out->xsk.complete;
	uint32_t waiting = xsk_waiting(ring, ring->size);
	const uint64_t *entries = ring->entries;

	for (uint32_t i = 0; i < waiting; i++)
		out->free[out->free_count++] = (uint32_t)entries[(ring->next + i) & (ring->size - 1)];
	if (waiting)
		xsk_read(ring, waiting);
	return waiting;
}

/*
 * The kernel took the frames up to `sent` and refuses the next: for now, if it has no room (EAGAIN) or the interface is down, and
 * for good if the interface is gone.  What is left in the ring is for others to send, so nobody must find it there later: the
 * kernel reads the ring within our calls alone, and steps over entries that say what none may.
 */
static void take_back(struct xsk_out *out, uint32_t sent, int error)
{
	struct xsk_ring *ring = &out->xsk.send;
	struct xdp_desc *entries = ring->entries;

	if (error == ENXIO) {
		give_up(out);
		return;
	}
	for (; sent != ring->next; sent++) {
		struct xdp_desc *entry = &entries[sent & (ring->size - 1)];

		out->free[out->free_count++] = (uint32_t)entry->addr;
		*entry = (struct xdp_desc){ .addr = (uint64_t)CHUNK * CHUNKS, .len = CHUNK, .options = 1u << 31 };
	}
	out->refusals = !out->refusals ? PAUSE : out->refusals < PAUSE_MAX ? out->refusals * 2 : PAUSE_MAX;
	out->pause = out->refusals;
}

unsigned xsk_out_send(struct xsk_out *out, struct frame *frames, unsigned number, int ifindex)
{
	struct xsk_ring *ring = &out->xsk.send;
	struct xdp_desc *entries = ring->entries;
	uint32_t first = ring->next, sent = first;
	int error = 0;

	if (out->ifindex < 0)
		return 0;
	if (out->pause) {
		out->pause--;
		return 0;
	}
	reap(out);
	if (!takes(out, frames, number, ifindex))
		return 0;
	for (unsigned i = 0; i < number; i++) {
		uint32_t chunk = out->free[--out->free_count];

		memcpy(out->memory.base + chunk, frames[i].data, frames[i].len);
		entries[ring->next++ & (ring->size - 1)] = (struct xdp_desc){ .addr = chunk, .len = frames[i].len };
		frames[i].error = 0;
	}
	xsk_written(ring);
	for (unsigned kicks = 0; kicks < KICKS && sent != ring->next; kicks++) {
		uint32_t now;

		error = sendto(out->xsk.fd, NULL, 0, MSG_DONTWAIT, NULL, 0) < 0 ? errno : 0;
		now = __atomic_load_n(ring->consumer, __ATOMIC_ACQUIRE);
		if ((int32_t)(now - first) < 0) /* entries that were taken back are still before ours */
			now = first;
		if (error == EBUSY && now != first) /* the last one that it took was dropped by the link */
			frames[now - first - 1].error = ENOBUFS;
		if (now == sent && !reap(out) && error != EINTR)
			break;
		sent = now;
	}
	number = sent - first;
	if (sent != ring->next)
		take_back(out, sent, error);
	else
		out->refusals = 0;
	return number;
}
