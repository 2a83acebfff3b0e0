/* SPDX-License-Identifier: Apache-2.0 */
/* Virtio headers as native/io/virtio_frame.h reads and writes them, for tests/native/test_frames.py. */
#include "io/virtio_frame.h"

struct told {
	uint32_t gso_size, csum_start, csum_offset, offload;
};

void probe_fill(const uint8_t header[10], struct told *out);
void probe_offload(uint8_t *data, const struct told *told, uint32_t extra, uint8_t header[10]);

void probe_fill(const uint8_t header[10], struct told *out)
{
	uint8_t bytes[64] = { 0 };
	struct frame frame;

	memcpy(bytes, header, 10);
	packet_frame_fill(bytes + 10, 54, 54, &frame);
	*out = (struct told){ frame.gso_size, frame.csum_start, frame.csum_offset, frame.offload };
}

void probe_offload(uint8_t *data, const struct told *told, uint32_t extra, uint8_t header[10])
{
	struct frame frame = { .data = data,
			       .gso_size = (uint16_t)told->gso_size,
			       .csum_start = (uint16_t)told->csum_start,
			       .csum_offset = (uint16_t)told->csum_offset,
			       .offload = (uint8_t)told->offload };
	struct virtio_net_hdr offload;

	packet_frame_offload(&frame, extra, &offload);
	memcpy(header, &offload, 10);
}
