/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Frames out of nothing, some millions per second on one core: the kernel runs an XDP program over pages of its own and
 * the program redirects each to an interface.  Kernels from 5.18 can do it.  For packet_generator.c alone.
 */
#ifndef VIPMUX_XDP_FRAME_SOURCE_H
#define VIPMUX_XDP_FRAME_SOURCE_H

#include <stdint.h>

struct live_frames {
	int program;
	int numbers; /* map of one number: frames made so far */
	const uint8_t *frame;
	uint32_t length;
};

/*
 * 0 or a negative errno.  The frame is Ethernet, IPv4 and UDP, at least header long; it is not copied.  Frame number n
 * has source port first_port + n % flows.
 */
int live_frames_open(struct live_frames *live, int ifindex, const uint8_t *frame, uint32_t length, uint16_t first_port,
		     uint32_t flows);
/* Frames per second from now on, 0: as many as go.  None runs meanwhile. */
int live_frames_pace(struct live_frames *live, double rate);
/* Makes so many frames, or fewer where a rate holds it back, in the caller's network namespace, which must be the interface's. */
int live_frames_run(struct live_frames *live, uint32_t count);
/* How many were made; a receiver that was full dropped some of them. */
uint64_t live_frames_made(const struct live_frames *live);
void live_frames_close(struct live_frames *live);

#endif
