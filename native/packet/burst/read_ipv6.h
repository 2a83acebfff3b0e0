/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Plain IPv6 packets, many at a time: no extension headers, TCP or UDP, nothing the matter with them.  As read_ipv4.h for IPv4, and
 * read_ipv6_scalar() says what is meant.
 */
#ifndef VIPMUX_READ_IPV6_H
#define VIPMUX_READ_IPV6_H

#include <stdbool.h>
#include <stdint.h>

#include "flow/flow.h"
#include "packet/packet.h"

/*
 * Reads frames[count], count <= FLOW_WORDS6, of which each has IO_HEADROOM before it.  True if packet_parse_plain6() takes all of them: packets[] is as that
 * leaves it, and words[] what is hashed of their tuples, see flow_words6.  False says nothing, and what there is may be anything.
 */
typedef bool read_ipv6_burst(const struct frame *frames, unsigned count, enum link_type link, struct packet *packets,
			 struct flow_words6 *words);
read_ipv6_burst read_ipv6_scalar, read_ipv6_avx2, read_ipv6_avx512;

#endif
