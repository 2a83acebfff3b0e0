/* SPDX-License-Identifier: Apache-2.0 */
/* native/io/af_packet/slot_ring.c before a kernel that fills each slot anew as soon as it has it.  For tests/native/test_rings.py. */
#define _GNU_SOURCE
#include <linux/if_packet.h>
#include <stdlib.h>

#undef TP_STATUS_KERNEL
#define TP_STATUS_KERNEL TP_STATUS_USER
#include "io/af_packet/slot_ring.c"

#define SLOT 2048u

int probe_slots(unsigned slots, unsigned calls);

/* How many of so many calls end, and with nothing, while frames of others never do. */
int probe_slots(unsigned slots, unsigned calls)
{
	struct slot_ring ring = {
		.fd = -1,
		.memory = calloc(slots, SLOT),
		.slots = slots,
		.per_block = slots,
		.blocks = 1,
		.slot_bytes = SLOT,
	};
	struct frame frames[BURST_MAX];
	int ended = 0;

	for (unsigned i = 0; i < slots; i++) {
		struct tpacket2_hdr *header = (struct tpacket2_hdr *)(ring.memory + (size_t)i * SLOT);
		struct sockaddr_ll *from = (struct sockaddr_ll *)((uint8_t *)header + TPACKET_ALIGN(sizeof(*header)));

		header->tp_status = TP_STATUS_USER;
		from->sll_pkttype = PACKET_MULTICAST;
	}
	ring.first = ring.next = begin(&ring, 0);
	for (unsigned i = 0; i < calls; i++)
		ended += slot_ring_receive(&ring, frames, BURST_MAX) == 0;
	free(ring.memory);
	return ended;
}
