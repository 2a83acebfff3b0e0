/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whether only this MUX knows where a flow goes.  A flow is *unsynchronised* if Maglev would choose another backend for it
 * now: another MUX would send it elsewhere, and so would this one if it forgot it.
 */
#ifndef VIPMUX_UNSYNCHRONISED_H
#define VIPMUX_UNSYNCHRONISED_H

#include <stdbool.h>
#include <stdint.h>

#include "services/vip/vip_map.h"

/*
 * A flow of a backend of a service that are there, by its unscrambled key.  Of a service that hashes the source alone and
 * whose keys are wide, keys do not tell the choice: all its flows that are more than untrusted count as unsynchronised.
 */
bool flow_is_unsynchronised(const struct vip_map *map, const struct service *service, unsigned backend, uint64_t key,
			 enum flow_class class);

#endif
