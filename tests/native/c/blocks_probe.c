/* SPDX-License-Identifier: Apache-2.0 */
/* native/io/af_packet/block_ring.c before a kernel that fills each block anew as soon as it has it.  For tests/native/test_rings.py. */
#define _GNU_SOURCE
#include <linux/if_packet.h>
#include <stdlib.h>

#undef TP_STATUS_KERNEL
#define TP_STATUS_KERNEL TP_STATUS_USER
#include "io/af_packet/block_ring.c"

int probe_blocks(unsigned blocks, unsigned calls);

/* How many of so many calls end, and with nothing, while frames of others never do. */
int probe_blocks(unsigned blocks, unsigned calls)
{
	struct block_ring ring = { .blocks = blocks, .memory = calloc(blocks, BLOCK_BYTES) };
	struct frame frames[BURST_MAX];
	int ended = 0;

	for (unsigned i = 0; i < blocks; i++) {
		struct tpacket_block_desc *block = (struct tpacket_block_desc *)(ring.memory + (size_t)i * BLOCK_BYTES);
		struct tpacket3_hdr *header = (struct tpacket3_hdr *)((uint8_t *)block + 48);
		struct sockaddr_ll *from = (struct sockaddr_ll *)((uint8_t *)header + TPACKET_ALIGN(sizeof(*header)));

		block->hdr.bh1.block_status = TP_STATUS_USER;
		block->hdr.bh1.num_pkts = 1;
		block->hdr.bh1.offset_to_first_pkt = 48;
		from->sll_pkttype = PACKET_MULTICAST;
	}
	for (unsigned i = 0; i < calls; i++)
		ended += block_ring_receive(&ring, frames, BURST_MAX) == 0;
	free(ring.memory);
	return ended;
}
