/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Cutting a super-packet of TCP or UDP, which a sender's NIC offload (or its absence on a virtual link) left whole, into
 * the packets it stands for.
 */
#ifndef VIPMUX_SEGMENT_H
#define VIPMUX_SEGMENT_H

#include <stdint.h>

#include "packet.h"

/* Headers of a super-packet: IP with options, TCP with options or UDP. */
uint32_t segment_headers(const struct packet *packet);

/* How many segments of `size` payload bytes it makes; 1 for a packet without payload. */
uint32_t segment_count(const struct packet *packet, uint32_t size);

/*
 * Writes segment `n` (from 0) to out, IP header first, and returns its length: at most segment_headers() + size.  ID
 * counts up, lengths follow, both checksums are right.  Of TCP, the sequence number follows, CWR stays with the first,
 * FIN and PSH with the last.
 */
uint32_t segment_write(const struct packet *packet, uint32_t size, uint32_t n, uint8_t *out);

#endif
