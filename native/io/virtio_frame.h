/* SPDX-License-Identifier: Apache-2.0 */
/* What the kernel says of each frame, and is told: virtio headers, as packet sockets, TUN and TAP devices have them. */
#ifndef VIPMUX_VIRTIO_FRAME_H
#define VIPMUX_VIRTIO_FRAME_H

#include <linux/if_packet.h>
#include <linux/virtio_net.h>
#include <stdbool.h>
#include <string.h>

#include "machine/io.h"

#ifndef PACKET_IGNORE_OUTGOING
#define PACKET_IGNORE_OUTGOING 23
#endif

/*
 * To our own link address, and of no VLAN (a tag with VLAN 0 says a priority alone, and the kernel has taken it off).  Frames for others
 * (seen on a promiscuous link), multicast, broadcast and frames of a VLAN are not ours: they are stepped over and counted nowhere,
 * as if the NIC had never passed them on.  tag: as the kernel says it, in host order.
 */
static inline bool packet_frame_is_ours(const void *address, uint32_t status, uint32_t tag)
{
	return ((const struct sockaddr_ll *)address)->sll_pkttype == PACKET_HOST &&
	       (!(status & TP_STATUS_VLAN_VALID) || !(tag & 0x0fff));
}

/* data: has a virtio header before it. */
static inline void packet_frame_fill(uint8_t *data, uint32_t len, uint32_t wire_len, struct frame *frame)
{
	struct virtio_net_hdr offload;

	memcpy(&offload, data - sizeof(offload), sizeof(offload));
	*frame = (struct frame){
		.data = data,
		.len = len,
		.wire_len = wire_len,
		.headroom = IO_HEADROOM,
		.offload = FRAME_TOLD | (offload.flags & VIRTIO_NET_HDR_F_DATA_VALID ? FRAME_VERIFIED : 0),
	};
	/* UDP of the old kind is one datagram, to be cut into fragments: whole it is right. */
	if ((offload.gso_type & ~VIRTIO_NET_HDR_GSO_ECN) != VIRTIO_NET_HDR_GSO_UDP)
		frame->gso_size = offload.gso_size;
	if (offload.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM) {
		frame->csum_start = offload.csum_start;
		frame->csum_offset = offload.csum_offset;
	}
}

/*
 * The virtio header of a frame to send, where `extra` bytes are put in behind its link header; of an ordinary frame all zero.
 */
static inline void packet_frame_offload(const struct frame *frame, uint32_t extra, struct virtio_net_hdr *out)
{
	memset(out, 0, sizeof(*out));
	if (!frame->gso_size)
		return;
	out->flags = VIRTIO_NET_HDR_F_NEEDS_CSUM;
	out->gso_type = frame->offload & FRAME_INNER6 ? VIRTIO_NET_HDR_GSO_TCPV6 : VIRTIO_NET_HDR_GSO_TCPV4;
	if (frame->offload & FRAME_CWR)
		out->gso_type |= VIRTIO_NET_HDR_GSO_ECN;
	out->hdr_len = (uint16_t)(frame->csum_start + extra + (frame->data[frame->csum_start + 12] >> 4) * 4u);
	out->gso_size = frame->gso_size;
	out->csum_start = (uint16_t)(frame->csum_start + extra);
	out->csum_offset = frame->csum_offset;
}

#endif
