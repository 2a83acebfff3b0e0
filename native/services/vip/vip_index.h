/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The index of services by prefix, exact port, port range and any port: all but those in the exact table (exact4_table.h),
 * which are stepped over.  The most specific service is found: longer prefix first, then exact port, port range, any port.
 * IPv6 services of one address and port are in a table of their own (exact6_table.h), which is looked into first.
 *
 * Built once of a map's services, immutable from then on and shared by reference between the maps whose services here are
 * the same; it has no references of the services, its maps do.  Any thread may look, get and put.
 */
#ifndef VIPMUX_VIP_INDEX_H
#define VIPMUX_VIP_INDEX_H

#include <stdbool.h>
#include <stdint.h>

#include "services/address.h"
#include "services/vip/exact6_table.h"
#include "services/service.h"

/* A prefix length in use, longest first, and which rows it can have. */
struct vip_length {
	uint8_t bits;
	bool exact;
	bool ranges;
	uint64_t mask[2]; /* as it lies in memory */
};

struct vip_row; /* see vip_index.c */

struct vip_index {
	uint32_t references; /* atomic */
	struct vip_row *rows;
	uint64_t row_mask;
	struct exact6_table exact6;
	unsigned length_count[2]; /* of IPv4, of IPv6 */
	struct vip_length lengths[2][129];
};

static inline unsigned family_index(uint8_t family)
{
	return family == 6;
}

/* The index of those services that belong here, of `count`.  -EEXIST: two services tie; -ENOMEM. */
int vip_index_build(struct service *const *services, uint32_t count, struct vip_index **out);
struct vip_index *vip_index_get(struct vip_index *index);
void vip_index_put(struct vip_index *index);

/* Whether no service of this family is here. */
static inline bool vip_index_is_empty(const struct vip_index *index, uint8_t family)
{
	return !index->length_count[family_index(family)];
}

/* The IPv6 service of exactly this address and port; NULL says nothing about the others. */
static inline const struct service *vip_index_find_exact6(const struct vip_index *index, const uint8_t *destination,
							  uint8_t protocol, uint16_t port)
{
	return exact6_table_find(&index->exact6, destination, protocol, port);
}

/*
 * The service of a packet, NULL: none; for IPv6 where vip_index_find_exact6() found nothing.  Address and port as they lie in
 * memory.  *is_vip becomes true where the address belongs to a VIP that is here, whatever the port; where it is true already
 * it stays so.
 */
const struct service *vip_index_find_other(const struct vip_index *index, uint8_t family, const uint8_t *destination,
					   uint8_t protocol, uint16_t port, bool *is_vip);

/* Whether the address belongs to a VIP that is here. */
bool vip_index_contains(const struct vip_index *index, uint8_t family, const uint8_t *address);

#endif
