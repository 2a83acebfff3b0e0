/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A backend's host without BPF: tunnel packets from sockets, inner packets into a TUN device, from where the kernel
 * receives them as its own.  Address and rp_filter of the device are set by whoever opens it (agent/decap.py).
 *
 * Frames begin with an outer header, as they came or, where the kernel keeps that to itself (IPv6, UDP), made again of what it
 * tells.  It has put fragments together and looked at checksums.
 */
#ifndef VIPMUX_IO_RAW_H
#define VIPMUX_IO_RAW_H

#include <stdint.h>

#include "machine/io.h"

/*
 * The host's own addresses in network order, NULL: none of this family; gue_port: of tunnels over UDP, 0: none.  Creates the TUN
 * device, which ends with the io.  -EADDRINUSE: somebody else has the port.
 */
int raw_io_open(const uint8_t *address, const uint8_t *address6, uint16_t gue_port, const char *tun_name, struct io **out);

#endif
