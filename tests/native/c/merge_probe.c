/* SPDX-License-Identifier: Apache-2.0 */
/* Bursts through native/packet/merge.c, for tests/native/test_merge.py. */
#include <stdlib.h>
#include <string.h>

#include "packet/merge.h"

#define SLOT (65536u + 2 * IO_HEADROOM)

struct told {
	uint32_t length, wire_length, gso_size, csum_start, csum_offset, offload, headroom;
};

int probe_merge(int ethernet, int guess, const uint8_t *bytes, struct told *told, unsigned count, uint8_t *out);

/*
 * bytes: the frames, one behind the other; told: of each, and then of what is left, whose bytes go to out.  Returns how many;
 * -1: something was written that is not the merge's.  Twice, for a burst leaves nothing to the next.
 */
int probe_merge(int ethernet, int guess, const uint8_t *bytes, struct told *told, unsigned count, uint8_t *out)
{
	enum link_type link = ethernet ? LINK_ETHERNET : LINK_RAW_IP;
	struct merge *merge = merge_create();
	struct frame frames[BURST_MAX];
	uint8_t *slots = calloc(BURST_MAX, SLOT), *before = calloc(BURST_MAX, SLOT);
	unsigned left = 0;
	int result;

	for (unsigned turn = 0; turn < 2; turn++) {
		const uint8_t *from = bytes;

		for (unsigned i = 0; i < count; i++) {
			uint8_t *data = slots + (size_t)i * SLOT + IO_HEADROOM;

			memcpy(data, from, told[i].length);
			from += told[i].length;
			frames[i] = (struct frame){ .data = data,
						    .len = told[i].length,
						    .wire_len = told[i].wire_length,
						    .headroom = IO_HEADROOM,
						    .gso_size = (uint16_t)told[i].gso_size,
						    .csum_start = (uint16_t)told[i].csum_start,
						    .csum_offset = (uint16_t)told[i].csum_offset,
						    .offload = (uint8_t)told[i].offload };
		}
		memcpy(before, slots, (size_t)BURST_MAX * SLOT);
		left = merge_burst(merge, link, guess, frames, count);
	}
	result = memcmp(before, slots, (size_t)BURST_MAX * SLOT) ? -1 : (int)left;
	for (unsigned i = 0; i < left; i++) {
		memset(frames[i].data - frames[i].headroom, 0x5a, frames[i].headroom); /* it may be written to */
		told[i] = (struct told){ frames[i].len,	       frames[i].wire_len, frames[i].gso_size, frames[i].csum_start,
					 frames[i].csum_offset, frames[i].offload,  frames[i].headroom };
	}
	for (unsigned i = 0; i < left; i++) {
		memcpy(out, frames[i].data, frames[i].len);
		out += frames[i].len;
	}
	merge_destroy(merge);
	free(slots);
	free(before);
	return result;
}
