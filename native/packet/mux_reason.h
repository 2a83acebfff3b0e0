/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What can become of a packet, and why: one list that yields the enum, the counters, the metric labels and the
 * text of `lb reasons`.  Names are stable: dashboards use them.  Every packet ends in exactly one row.
 */
#ifndef VIPMUX_MUX_REASON_H
#define VIPMUX_MUX_REASON_H

enum verdict {
	VERDICT_FORWARD = 0, /* sent on to a backend */
	VERDICT_PASS = 1,    /* not ours: the kernel has it */
	VERDICT_DROP = 2,
	VERDICT_REPLY = 3,   /* answered by the MUX itself */
	VERDICT_COUNT = 4,
};

/* X(NAME, name, verdict, sentence).  FORWARDED has no name in reports: it is the plain case. */
#define REASONS(X)                                                                                                     \
	X(FORWARDED, "forwarded", VERDICT_FORWARD, "Sent to a backend in an outer header.")                            \
	X(SEGMENTED, "segmented", VERDICT_FORWARD,                                                                     \
	  "A super-packet of the sender's NIC offload, sent to a backend as the packets that it stands for.")          \
	X(NOT_IP, "not_ip", VERDICT_PASS, "Neither IPv4 nor IPv6 (ARP, VLAN-tagged, ...): left to the kernel.")        \
	X(NOT_VIP, "not_vip", VERDICT_PASS, "The destination is no VIP of this MUX: left to the kernel.")              \
	X(TRUNCATED, "truncated", VERDICT_DROP, "The frame ends before the packet does.")                              \
	X(BAD_HEADER, "bad_header", VERDICT_DROP,                                                                      \
	  "An IP or transport header contradicts itself: version, header length or total length.")                     \
	X(BAD_CHECKSUM, "bad_checksum", VERDICT_DROP, "The IPv4 header checksum is wrong (RFC 1812, 5.2.2).")          \
	X(BAD_SOURCE, "bad_source", VERDICT_DROP,                                                                      \
	  "The source cannot be a client: unspecified, loopback, multicast, broadcast, or the destination itself.")    \
	X(TTL_EXPIRED, "ttl_expired", VERDICT_DROP, "TTL or hop limit would reach zero here.")                         \
	X(FRAGMENT, "fragment", VERDICT_DROP, "An IP fragment to a VIP; fragments are not balanced yet.")              \
	X(ICMP, "icmp", VERDICT_DROP, "ICMP to a VIP; it is neither answered nor steered to a backend yet.")           \
	X(BAD_PROTOCOL, "unsupported_protocol", VERDICT_DROP, "To a VIP, but neither TCP, UDP nor ICMP.")              \
	X(NO_SERVICE, "no_service", VERDICT_DROP, "To a VIP, but no service has this protocol and port.")              \
	X(NO_BACKEND, "no_backend", VERDICT_DROP, "The service has no backend that takes new flows.")                  \
	X(NO_NEXT_HOP, "no_next_hop", VERDICT_DROP,                                                                    \
	  "The backend's machine cannot be reached: no route, or its next hop's MAC address is not known.")            \
	X(TOO_BIG, "too_big", VERDICT_DROP, "With the outer header the packet is larger than the MTU to the backend.") \
	X(SEND_FAILED, "send_failed", VERDICT_DROP, "The kernel refused to send the encapsulated packet.")             \
	X(SHED, "shed", VERDICT_DROP,                                                                                  \
	  "The MUX gets more packets than it can take, most of them for this service: dropped so that others are served.")

enum reason {
#define X(NAME, name, verdict, sentence) REASON_##NAME,
	REASONS(X)
#undef X
	REASON_COUNT,
};

#endif
