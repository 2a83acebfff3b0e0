/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The packets that most are, many at a time: IPv4 without options, no fragments, TCP or UDP, nothing the matter with them.
 * What packet.h checks of one and what names its service and its flow is taken from the headers of eight together where the
 * processor can; plain4_read_plain() says what is meant.
 */
#ifndef VIPMUX_PLAIN4_H
#define VIPMUX_PLAIN4_H

#include <stdint.h>

#include "packet.h"

/*
 * Reads frames[count], count <= BURST_MAX, of which each has IO_HEADROOM before it.  A bit for each that packet_parse_plain()
 * takes: of those packets[] is as that leaves it, services[] is exact_key() of what it asks for and flows[] its
 * flow_key_narrow() but for the service's number, which is still zero.  What there is of others may be anything.
 */
typedef uint64_t plain4_read(const struct frame *frames, unsigned count, enum link_type link, struct packet *packets,
			     uint64_t *services, uint64_t *flows);
plain4_read plain4_read_plain, plain4_read_avx2, plain4_read_avx512;

#endif
