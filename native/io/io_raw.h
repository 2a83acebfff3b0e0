/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A backend's host without BPF: tunnel packets from a raw socket, inner packets into a TUN device, from where the
 * kernel receives them as its own.  Address and rp_filter of the device are set by whoever opens it (agent/decap.py).
 */
#ifndef VIPMUX_IO_RAW_H
#define VIPMUX_IO_RAW_H

#include <stdint.h>

#include "machine/io.h"

/* address: the host's own, network order.  Creates the TUN device, which ends with the io. */
int raw_io_open(const uint8_t address[4], const char *tun_name, struct io **out);

#endif
