/* SPDX-License-Identifier: Apache-2.0 */
/* See slot_ring.h. */
#define _GNU_SOURCE
#include "io/af_packet/slot_ring.h"

#include <errno.h>
#include <linux/if_ether.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "io/virtio_frame.h"

#define LINE 64u
#define BLOCK_BYTES (128u << 10) /* the kernel allocates so much in one piece */
#define AHEAD 6u                 /* slots, that memory is fetched */
#define SLOTS_MIN 256u           /* an MTU that leaves fewer has its frames queued beside the ring */
#define LARGE_MAX 8u             /* super-packets in a burst: each is cut into many, and their memory stays in the cache */
#define LARGE_BYTES (128u << 10) /* as a block of block_ring.c: larger ones come cut short and are dropped as truncated */
#define QUEUE_BYTES (16 << 20)   /* of super-packets that wait on the socket */

/* Where tpacket_rcv() puts the frame. */
#define FRAME_OFFSET                                                                                                   \
	(TPACKET_ALIGN(TPACKET2_HDRLEN + 16) + IO_HEADROOM + sizeof(struct virtio_net_hdr) - ETH_HLEN)

static struct slot_cursor begin(const struct slot_ring *ring, unsigned block)
{
	return (struct slot_cursor){ .slot = ring->memory + (size_t)block * BLOCK_BYTES, .block = block };
}

static void advance(const struct slot_ring *ring, struct slot_cursor *cursor)
{
	if (++cursor->number < ring->per_block)
		cursor->slot += ring->slot_bytes;
	else
		*cursor = begin(ring, cursor->block + 1 < ring->blocks ? cursor->block + 1 : 0);
}

/* The slots that come are in the cache of the CPU that filled them.  One that is still empty is better left there. */
static void prefetch(const struct slot_ring *ring)
{
	const uint8_t *ahead = ring->next.slot + (size_t)AHEAD * ring->slot_bytes;

	if (ring->backlog && ring->next.number + AHEAD < ring->per_block) {
		__builtin_prefetch(ahead, 1);
		__builtin_prefetch(ahead + FRAME_OFFSET, 1);
	}
}

/* The packet that the kernel queued when it filled this slot; false: it is not to be had. */
static bool take_large(struct slot_ring *ring, uint32_t wire_len, struct frame *frame)
{
	uint8_t *offload = ring->large + (size_t)ring->larges * LARGE_BYTES + IO_HEADROOM;
	ssize_t length;

	do
		length = recv(ring->fd, offload, LARGE_BYTES - IO_HEADROOM, MSG_DONTWAIT);
	while (length < 0 && errno == EINTR);
	if (length < (ssize_t)sizeof(struct virtio_net_hdr))
		return false;
	packet_frame_fill(offload + sizeof(struct virtio_net_hdr), (uint32_t)length - sizeof(struct virtio_net_hdr), wire_len, frame);
	ring->larges++;
	return true;
}

unsigned slot_ring_receive(struct slot_ring *ring, struct frame *frames, unsigned max)
{
	unsigned taken = 0;

	/* Once round the ring at most: a flood of others' frames must not keep the worker from all else that it does. */
	for (unsigned looks = 0; looks < ring->slots && taken < max; looks++) {
		struct tpacket2_hdr *header = (struct tpacket2_hdr *)ring->next.slot;
		uint32_t status = __atomic_load_n(&header->tp_status, __ATOMIC_ACQUIRE);
		bool ours;

		if (ring->held == ring->slots || ring->larges == LARGE_MAX || !(status & TP_STATUS_USER))
			break;
		ours = packet_frame_is_ours((uint8_t *)header + TPACKET_ALIGN(sizeof(*header)), status, header->tp_vlan_tci);
		prefetch(ring);
		advance(ring, &ring->next);
		ring->held++;
		if (status & TP_STATUS_COPY) {
			if (!take_large(ring, header->tp_len, &frames[taken]))
				atomic_fetch_add_explicit(&ring->lost, ours, memory_order_relaxed);
			else
				taken += ours;
		} else if (ours) {
			packet_frame_fill((uint8_t *)header + header->tp_mac, header->tp_snaplen, header->tp_len, &frames[taken++]);
		}
		if (!taken) /* a whole ring of what is not ours may pass by */
			slot_ring_release(ring);
	}
	ring->backlog = taken == max;
	return taken;
}

void slot_ring_release(struct slot_ring *ring)
{
	ring->larges = 0;
	while (ring->held && !ring->keep) {
		struct tpacket2_hdr *header = (struct tpacket2_hdr *)ring->first.slot;

		__atomic_store_n(&header->tp_status, TP_STATUS_KERNEL, __ATOMIC_RELEASE);
		advance(ring, &ring->first);
		ring->held--;
	}
}

static int set_option(int fd, int option, int value)
{
	return setsockopt(fd, SOL_PACKET, option, &value, sizeof(value)) ? -errno : 0;
}

/* An odd number of cache lines, so that the slots' headers spread over all sets of a cache. */
static unsigned slot_bytes_for(size_t bytes, unsigned longest)
{
	size_t most = bytes / SLOTS_MIN < BLOCK_BYTES ? bytes / SLOTS_MIN : BLOCK_BYTES;
	size_t wanted = FRAME_OFFSET + longest < most ? FRAME_OFFSET + longest : most;
	size_t lines = (wanted + LINE - 1) / LINE | 1;

	return (unsigned)(lines * LINE);
}

static void *map(size_t bytes, int flags, int fd)
{
	return mmap(NULL, bytes, PROT_READ | PROT_WRITE, flags, fd, 0);
}

void slot_ring_init(struct slot_ring *ring)
{
	*ring = (struct slot_ring){ .fd = -1, .memory = MAP_FAILED, .large = MAP_FAILED };
}

/* The order matters: version, reserve and virtio header before the ring; the ring before bind(). */
int slot_ring_open(struct slot_ring *ring, size_t bytes, unsigned longest)
{
	struct tpacket_req request;
	int error, queue = QUEUE_BYTES;

	slot_ring_init(ring);
	ring->slot_bytes = slot_bytes_for(bytes, longest);
	ring->per_block = BLOCK_BYTES / ring->slot_bytes;
	request = (struct tpacket_req){
		.tp_block_size = BLOCK_BYTES,
		.tp_block_nr = bytes < 2 * BLOCK_BYTES ? 2 : (unsigned)(bytes / BLOCK_BYTES),
		.tp_frame_size = ring->slot_bytes,
	};
	request.tp_frame_nr = request.tp_block_nr * ring->per_block;
	ring->slots = request.tp_frame_nr;
	ring->blocks = request.tp_block_nr;
	ring->bytes = (size_t)ring->blocks * BLOCK_BYTES;
	ring->large = map((size_t)LARGE_MAX * LARGE_BYTES, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	if (ring->large == MAP_FAILED)
		return -errno;
	ring->fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);
	if (ring->fd < 0)
		return -errno;
	/* Without the right to exceed the limit the default size serves, for fewer super-packets. */
	if (setsockopt(ring->fd, SOL_SOCKET, SO_RCVBUFFORCE, &queue, sizeof(queue)))
		(void)setsockopt(ring->fd, SOL_SOCKET, SO_RCVBUF, &queue, sizeof(queue));
	if ((error = set_option(ring->fd, PACKET_VERSION, TPACKET_V2)) ||
	    (error = set_option(ring->fd, PACKET_RESERVE, IO_HEADROOM)) ||
	    (error = set_option(ring->fd, PACKET_VNET_HDR, 1)) ||
	    (error = set_option(ring->fd, PACKET_COPY_THRESH, 1)) ||
	    (error = set_option(ring->fd, PACKET_IGNORE_OUTGOING, 1)))
		return error;
	if (setsockopt(ring->fd, SOL_PACKET, PACKET_RX_RING, &request, sizeof(request)))
		return -errno;
	ring->memory = map(ring->bytes, MAP_SHARED | MAP_POPULATE, ring->fd);
	if (ring->memory == MAP_FAILED)
		return -errno;
	ring->first = ring->next = begin(ring, 0);
	return 0;
}

void slot_ring_close(struct slot_ring *ring)
{
	if (ring->memory != MAP_FAILED)
		munmap(ring->memory, ring->bytes);
	if (ring->large != MAP_FAILED)
		munmap(ring->large, (size_t)LARGE_MAX * LARGE_BYTES);
	if (ring->fd >= 0)
		close(ring->fd);
}
