/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What can become of a tunnel packet on a backend's host, and why: one list for the BPF program, for the userspace
 * fallback and for the metrics.  Names are stable: dashboards use them.
 */
#ifndef VIPMUX_HOST_REASON_H
#define VIPMUX_HOST_REASON_H

/* X(NAME, name, drops, sentence) */
#define HOST_REASONS(X)                                                                                                \
	X(DECAPSULATED, "decapsulated", 0, "The outer header was taken off and the packet given to the host.")        \
	X(UNTRUSTED_SOURCE, "untrusted_source", 1, "A tunnel packet whose outer source is no MUX of this host.")       \
	X(OUTER_FRAGMENT, "outer_fragment", 1, "The tunnel packet is a fragment: the MTU to this host is too small.")  \
	X(OUTER_OPTIONS, "outer_options", 1, "The outer header has options or a wrong length; no MUX sends such.")     \
	X(OUTER_CHECKSUM, "outer_checksum", 1, "The checksum of the outer IPv4 header is wrong (RFC 1122, 3.2.1.2).")   \
	X(OUTER_LENGTH, "outer_length", 1, "An outer header says another length than the packet has.")                 \
	X(GUE_MALFORMED, "gue_malformed", 1,                                                                           \
	  "UDP to the tunnels' port with a checksum, or with a GUE header that no MUX sends.")                         \
	X(OTHER_FAMILY, "other_family", 1,                                                                             \
	  "IPv4 in a tunnel of IPv6, or the other way round, which this kernel (before 6.3) cannot take out.")         \
	X(INNER_MALFORMED, "inner_malformed", 1, "What is in the tunnel is no complete IP packet.")                    \
	X(INNER_NOT_VIP, "inner_not_vip", 1, "The packet in the tunnel is to no VIP that this host serves.")           \
	X(INNER_EXPIRED, "inner_expired", 1,                                                                           \
	  "The packet in the tunnel has no hops left: discarded, as RFC 2003, 3.1 asks.")                              \
	X(ECN_MISMATCH, "ecn_mismatch", 1,                                                                             \
	  "Marked for congestion on its way, but its sender knows no ECN: dropped, as RFC 6040 asks.")                 \
	X(DECAP_FAILED, "decap_failed", 1, "The kernel refused to take the outer header off, or to take the packet.")

enum host_reason {
#define X(NAME, name, drops, sentence) HOST_##NAME,
	HOST_REASONS(X)
#undef X
	HOST_REASON_COUNT,
};

#endif
