/* SPDX-License-Identifier: Apache-2.0 */
/* How many rows in a row of the index of services are taken: what a lookup may have to go through. */
#include "services/vip/vip_index.c"

uint32_t probe_longest(uint8_t family, const uint8_t *first, unsigned bytes, uint32_t count, int exact);

static void next_address(uint8_t *address, unsigned bytes)
{
	while (bytes-- && !++address[bytes])
		continue;
}

/* Of services of any port, or of exactly one, with addresses that count up from `first` in its first so many bytes; 0: no memory. */
uint32_t probe_longest(uint8_t family, const uint8_t *first, unsigned bytes, uint32_t count, int exact)
{
	struct service *services = calloc(count, sizeof(*services));
	struct service **named = calloc(count, sizeof(*named));
	struct vip_index *index = NULL;
	uint32_t longest = 0, length = 0;
	uint8_t vip[16];

	memcpy(vip, first, 16);
	for (uint32_t i = 0; services && named && i < count; i++, next_address(vip, bytes)) {
		services[i] = (struct service){ .family = family, .prefix_length = family == 6 ? 128 : 32,
						.protocol = 6, .first_port = exact ? 80 : 0, .last_port = exact ? 80 : 65535 };
		memcpy(services[i].vip, vip, 16);
		named[i] = &services[i];
	}
	if (services && named && !vip_index_build(named, count, &index)) {
		for (uint64_t i = 0; i <= index->row_mask; i++) {
			length = index->rows[i].key.what ? length + 1 : 0;
			longest = length > longest ? length : longest;
		}
		for (uint64_t i = 0; i <= index->exact6.mask; i++) {
			length = index->exact6.rows[i].what ? length + 1 : 0;
			longest = length > longest ? length : longest;
		}
	}
	vip_index_put(index);
	free(named);
	free(services);
	return longest;
}
