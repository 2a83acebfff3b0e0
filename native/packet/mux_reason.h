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
	X(ICMP_ERROR, "icmp_error", VERDICT_FORWARD,                                                                   \
	  "An ICMP error about a VIP's flow, sent to the backend that owns the flow.")                                  \
	X(FRAGMENT, "fragment", VERDICT_FORWARD,                                                                       \
	  "A fragment, sent to the backend of its datagram's flow, which the first fragment tells.")                   \
	X(ECHO, "echo", VERDICT_REPLY, "A ping to a VIP, answered by the MUX.")                                        \
	X(TIME_EXCEEDED, "time_exceeded", VERDICT_REPLY,                                                               \
	  "TTL or hop limit ended here: answered with ICMP time exceeded from the MUX's own address.")                  \
	X(FRAG_NEEDED, "frag_needed", VERDICT_REPLY,                                                                   \
	  "Too large for the tunnel: answered with ICMP fragmentation needed or packet too big, from the VIP.")         \
	X(UNREACHABLE, "unreachable", VERDICT_REPLY,                                                                   \
	  "No service, or none that has a backend: answered with ICMP unreachable, as mux.unserved says.")              \
	X(RESET, "reset", VERDICT_REPLY,                                                                               \
	  "No service, or none that has a backend: answered with a TCP reset, as mux.unserved says.")                   \
	X(NOT_IP, "not_ip", VERDICT_PASS, "Neither IPv4 nor IPv6 (ARP, VLAN-tagged, ...): left to the kernel.")        \
	X(NOT_VIP, "not_vip", VERDICT_PASS, "The destination is no VIP of this MUX: left to the kernel.")              \
	X(TRUNCATED, "truncated", VERDICT_DROP, "The frame ends before the packet does.")                              \
	X(BAD_HEADER, "bad_header", VERDICT_DROP,                                                                      \
	  "An IP or transport header contradicts itself: version, header length or total length.")                     \
	X(BAD_CHECKSUM, "bad_checksum", VERDICT_DROP, "The IPv4 header checksum is wrong (RFC 1812, 5.2.2).")          \
	X(BAD_SOURCE, "bad_source", VERDICT_DROP,                                                                      \
	  "The source cannot be a client: unspecified, loopback, multicast, broadcast, or the destination itself.")    \
	X(LINK_LOCAL_SOURCE, "link_local_source", VERDICT_DROP,                                                        \
	  "The source is link-local (169.254/16, fe80::/10): no router may forward it (RFC 3927, 2.7; RFC 4291, 2.5.6).") \
	X(MAPPED_SOURCE, "mapped_source", VERDICT_DROP,                                                                \
	  "The source is an IPv4-mapped address (::ffff:0:0/96), which is of no wire (RFC 6890).")                      \
	X(RESERVED_SOURCE, "reserved_source", VERDICT_DROP, "The source is of 240/4, which is reserved (RFC 1812, 5.3.7).") \
	X(OWN_SOURCE, "own_source", VERDICT_DROP,                                                                      \
	  "The source is the MUX's own address, which no packet for others has (RFC 2003, 3.2).")                       \
	X(HAIRPIN, "hairpin", VERDICT_DROP,                                                                            \
	  "The source is the very backend that the packet would go to: the tunnel's far end (RFC 2003, 3.2).")          \
	X(SOURCE_ROUTE, "source_route", VERDICT_DROP,                                                                  \
	  "A source route that is not used up: a VIP is no station on a way (RFC 7126, 4.3, 4.4).")                     \
	X(ROUTING_HEADER, "routing_header", VERDICT_DROP,                                                              \
	  "An IPv6 routing header with segments left: a VIP is no station on a way (RFC 5095; RFC 8200, 4.4).")         \
	X(TTL_EXPIRED, "ttl_expired", VERDICT_DROP, "TTL or hop limit would reach zero here.")                         \
	X(BAD_FRAGMENT, "bad_fragment", VERDICT_DROP,                                                                  \
	  "A fragment that no sender makes: too short for its transport header, or out of 64 KiB (RFC 1858, 3128, 7112).") \
	X(FRAGMENT_OVERLAP, "fragment_overlap", VERDICT_DROP,                                                          \
	  "Bytes of a datagram that came already, or a fragment of a datagram of which some did (RFC 5722; RFC 8200, 4.5).") \
	X(FRAGMENT_ALONE, "fragment_alone", VERDICT_DROP,                                                              \
	  "A fragment whose datagram's first, which has the ports, did not come in time, or that found no room to wait.") \
	X(ICMP, "icmp", VERDICT_DROP,                                                                                  \
	  "ICMP to a VIP that is neither a ping nor an error about a flow (redirect, source quench, reply, broken ping), or in fragments.") \
	X(BAD_ICMP, "bad_icmp", VERDICT_DROP,                                                                          \
	  "An ICMP error that quotes too little to tell the flow, or a later fragment, or neither TCP nor UDP.")        \
	X(ICMP_STRANGER, "icmp_stranger", VERDICT_DROP,                                                                \
	  "An ICMP error about a packet that did not come from the VIP to which the error went.")                       \
	X(ANSWER_LIMITED, "answer_limited", VERDICT_DROP,                                                              \
	  "An answer was due (ping, ICMP error, reset), but more were than mux.answers allows for each second.")        \
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
