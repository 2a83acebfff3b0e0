/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A source of UDP packets for `lb bench io`: sends one frame again and again, only its source port changes.  As many as
 * go, or at a steady rate, from the core that its caller runs on, all of which it takes, always for a bounded time.
 * One thread at a time, in the interface's network namespace.
 *
 * GENERATOR_SOCKET: an AF_PACKET socket that passes by the queueing discipline, 64 frames a system call.  The receiver's
 * share of the work runs inside our calls and holds it below a million a second.
 * GENERATOR_LIVE: the kernel makes the frames (bench/xdp_frame_source.h), several times as many.  There are pauses of some
 * milliseconds, which a rate does not make up for.
 */
#ifndef VIPMUX_PACKET_GENERATOR_H
#define VIPMUX_PACKET_GENERATOR_H

#include <stdint.h>

enum generator_kind {
	GENERATOR_SOCKET,
	GENERATOR_LIVE,
};

struct generator_result {
	uint64_t sent;       /* frames that left by the interface */
	uint64_t refused;    /* frames that the interface did not take */
	uint64_t elapsed_ns;
};

struct generator;

/* The frame: Ethernet, IPv4 without options, UDP without a checksum.  It is copied. */
int generator_open(const char *interface, const uint8_t *frame, uint32_t length, uint32_t flows,
		   uint32_t kind, struct generator **out);
/* Returns after so many seconds; rate in frames per second, 0: as many as go. */
int generator_run(struct generator *generator, double seconds, double rate, struct generator_result *out);
void generator_close(struct generator *generator);

#endif
