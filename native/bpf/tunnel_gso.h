/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The tc program that lets an encapsulated super-packet stay whole.  A virtio header can say that a packet is to be cut, but
 * not that there is a tunnel around what is cut; a kernel drops such a packet.  Only bpf_skb_adjust_room() can tell it so:
 * the program, at the ingress of a device of ours (io_tun.c, gso_tap.c), takes the outer header off that was written with the
 * packet and puts the same one on again, as a tunnel's.  What then cuts is the last that can: a driver, the NIC, or nobody on a
 * virtual link.
 */
#ifndef VIPMUX_TUNNEL_GSO_H
#define VIPMUX_TUNNEL_GSO_H

#include <stdint.h>

/*
 * What lies before the outer header of a packet.  Of a TUN device nothing; the packet goes on its way there, as do packets that
 * are none of these.  Of a tap an Ethernet header and the number of an interface (4 bytes, host order): the packet leaves by
 * that one, and all else ends.
 */
enum tunnel_gso_place {
	TUNNEL_GSO_TUN = 0,
	TUNNEL_GSO_TAP = 1,
};

#define TUNNEL_GSO_TAP_EXTRA 4u

/*
 * Loads it and tries it on a packet.  The descriptor (close-on-exec), or a negative errno; log: the verifier's words, if it had
 * any.  Needs CAP_BPF and CAP_NET_ADMIN; to attach it afterwards the latter alone.
 */
int tunnel_gso_load(uint32_t place, char *log, uint32_t log_size);

/*
 * Attaches it to the ingress of an interface of the caller's network namespace, for as long as the descriptor that it returns
 * is open.  -EINVAL of kernels before 6.6.
 */
int tunnel_gso_attach(int program, unsigned ifindex);

#endif
