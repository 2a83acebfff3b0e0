/* SPDX-License-Identifier: Apache-2.0 */
/* See block_ring.h. */
#define _GNU_SOURCE
#include "io/af_packet/block_ring.h"

#include <errno.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "io/virtio_frame.h"

/*
 * A block must hold the largest super-packet that a kernel makes unasked (64 KiB), and those of BIG TCP up to twice that;
 * larger ones come cut short and are dropped as truncated.  No larger than that: the kernel hands over a block that is not
 * full after RETIRE_MS (rounded up to a jiffy), so it is the number of blocks that says how long the ring lasts.
 */
#define BLOCK_BYTES (128u << 10)
#define RETIRE_MS 1

static struct tpacket_block_desc *current_block(struct block_ring *ring)
{
	return (struct tpacket_block_desc *)(ring->memory + (size_t)ring->block * BLOCK_BYTES);
}

static bool take_block(struct block_ring *ring)
{
	struct tpacket_block_desc *block = current_block(ring);

	if (!(__atomic_load_n(&block->hdr.bh1.block_status, __ATOMIC_ACQUIRE) & TP_STATUS_USER))
		return false;
	ring->left = block->hdr.bh1.num_pkts;
	ring->header = (struct tpacket3_hdr *)((uint8_t *)block + block->hdr.bh1.offset_to_first_pkt);
	ring->held = true;
	return true;
}

bool block_ring_release(struct block_ring *ring)
{
	if (!ring->held || ring->left)
		return false;
	__atomic_store_n(&current_block(ring)->hdr.bh1.block_status, TP_STATUS_KERNEL, __ATOMIC_RELEASE);
	ring->held = false;
	if (++ring->block == ring->blocks)
		ring->block = 0;
	return true;
}

static unsigned take_frames(struct block_ring *ring, struct frame *frames, unsigned max)
{
	unsigned taken = 0;

	while (ring->left && taken < max) {
		struct tpacket3_hdr *header = ring->header;
		struct tpacket3_hdr *next = (struct tpacket3_hdr *)((uint8_t *)header + header->tp_next_offset);

		__builtin_prefetch(next);
		if (packet_frame_is_ours((uint8_t *)header + TPACKET_ALIGN(sizeof(*header)), header->tp_status,
					 header->hv1.tp_vlan_tci))
			packet_frame_fill((uint8_t *)header + header->tp_mac, header->tp_snaplen, header->tp_len,
					  &frames[taken++]);
		ring->header = next;
		ring->left--;
	}
	return taken;
}

unsigned block_ring_receive(struct block_ring *ring, struct frame *frames, unsigned max)
{
	unsigned taken = 0;

	/* Once round the ring at most: a flood of others' frames must not keep the worker from all else that it does. */
	for (unsigned looks = 0; !taken && looks <= ring->blocks && (ring->left || take_block(ring)); looks++) {
		taken = take_frames(ring, frames, max);
		if (!taken) /* a block without a frame of ours */
			block_ring_release(ring);
	}
	return taken;
}

static int set_option(int fd, int option, int value)
{
	return setsockopt(fd, SOL_PACKET, option, &value, sizeof(value)) ? -errno : 0;
}

void block_ring_init(struct block_ring *ring)
{
	*ring = (struct block_ring){ .fd = -1, .memory = MAP_FAILED };
}

/* The order matters: version, reserve and virtio header before the ring; the ring before bind(). */
int block_ring_open(struct block_ring *ring, size_t bytes)
{
	unsigned blocks = bytes < 2 * BLOCK_BYTES ? 2 : (unsigned)(bytes / BLOCK_BYTES);
	struct tpacket_req3 request = {
		.tp_block_size = BLOCK_BYTES,
		.tp_block_nr = blocks,
		.tp_frame_size = 2048, /* only checked, frames are packed */
		.tp_frame_nr = BLOCK_BYTES / 2048 * blocks,
		.tp_retire_blk_tov = RETIRE_MS,
	};
	int error;

	block_ring_init(ring);
	ring->blocks = blocks;
	ring->bytes = (size_t)blocks * BLOCK_BYTES;
	ring->fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);
	if (ring->fd < 0)
		return -errno;
	if ((error = set_option(ring->fd, PACKET_VERSION, TPACKET_V3)) ||
	    (error = set_option(ring->fd, PACKET_RESERVE, IO_HEADROOM)) ||
	    (error = set_option(ring->fd, PACKET_VNET_HDR, 1)) ||
	    (error = set_option(ring->fd, PACKET_IGNORE_OUTGOING, 1)))
		return error;
	if (setsockopt(ring->fd, SOL_PACKET, PACKET_RX_RING, &request, sizeof(request)))
		return -errno;
	ring->memory = mmap(NULL, ring->bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE,
			    ring->fd, 0);
	return ring->memory == MAP_FAILED ? -errno : 0;
}

void block_ring_close(struct block_ring *ring)
{
	if (ring->memory != MAP_FAILED)
		munmap(ring->memory, ring->bytes);
	if (ring->fd >= 0)
		close(ring->fd);
}
