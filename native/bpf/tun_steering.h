/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The program that lets queues of a TUN device run dry: while a device has it, every packet goes to the first queue.  Else the
 * kernel spreads packets over all queues that there are, and throws away what waits in one that goes.
 */
#ifndef VIPMUX_TUN_STEERING_H
#define VIPMUX_TUN_STEERING_H

#include <stdint.h>

/* Needs CAP_BPF.  The descriptor (close-on-exec), or a negative errno; log: the verifier's words, if it had any. */
int steer_load(char *log, uint32_t log_size);

#endif
