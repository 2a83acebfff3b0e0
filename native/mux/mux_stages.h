/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What mux.c is put together from: the three stages that a burst passes, each a file of its own and called once per burst.
 * For these files alone; the rest of the program sees mux.h.
 *
 *	mux_read_burst()   parse -> find service -> name the flow    mux_read.c
 *	mux_choose_burst() find flow -> choose backend               mux_choose.c
 *	mux_emit_burst()   encapsulate -> segment -> send            mux_emit.c
 *	mux_answer()       answer, one packet that goes no further   mux_answer.c
 *
 * They hand over in struct mux, packet by packet at the packet's index in the burst.  Before the first, mux.c has set
 * snapshot, io, count (<= BURST_MAX), out_count = 0 and the table's time; after the last it counts.  A stage does nothing
 * with a packet whose reason is not REASON_FORWARDED when the stage begins; what earlier stages would have left of such a
 * packet beside its reason is undefined where nothing else is said.
 */
#ifndef VIPMUX_MUX_STAGES_H
#define VIPMUX_MUX_STAGES_H

#include <stdint.h>

#include "mux/mux.h"
#include "packet/icmp.h"

/* Not decided yet, and not counted: a copy waits for its datagram's first fragment, and comes again (fragments.h). */
#define REASON_WAITS REASON_COUNT

/* One of the buffers that segments are written to: room before each for the outer and the link header. */
#define SEGMENT_HEADROOM 96u
#define SEGMENT_ROOM (SEGMENT_HEADROOM + SERVICE_MTU_MAX)

/*
 * Reads the frames and the VIP map; writes nothing into frames.  Leaves:
 *
 *	packets[]    reason; of a packet that goes on, everything (packet.h).  REASON_ICMP_ERROR goes on as well, to the backend of
 *	             the flow that it is about, which passages[].service, its hash and scrambled[] are of; and REASON_FRAGMENT:
 *	             the first of a datagram is like any packet of its flow, a later one has neither service nor ports
 *	passages[]   of every packet: service, NULL if it has none; flow, FLOW_NONE; hashed.  hash where hashed is true,
 *	             which it is of every IPv6 packet that goes on, of IPv4 where the flow's key is made of it, and may be
 *	             without a table
 *	scrambled[]  only with a table: the flow's name there, whose home line has been asked for; of a packet that does
 *	             not go on, any, which may be looked up but says nothing
 *	named        a bit for each packet that goes on and whose connection id names a backend that is there and not down; names[]
 *	             has the numbers of those
 *	plain        a bit for each packet that read_ipv4.h has read, and outers[] of those, for mux_emit_burst()
 *	onward       whether any packet goes on; where none does, the other stages are left out
 */
void mux_read_burst(struct mux *mux, const struct frame *frames);

/*
 * The same for a burst of IPv4 that goes to nobody we know, which is told at a glance: REASON_NOT_VIP, each.  False: something else
 * may be among it, and nothing was left.
 */
bool mux_read_strangers(struct mux *mux, const struct frame *frames);

/*
 * Reads packets[], passages[] and scrambled[] as left above, and the flow table, which it changes as if packets came one
 * at a time.  Leaves:
 *
 *	passages[]   backend (of the snapshot at hand), backend_number, flow
 *	packets[]    reason, REASON_NO_BACKEND where none takes the flow; of fragments perhaps REASON_FRAGMENT_OVERLAP,
 *	             REASON_FRAGMENT_ALONE or REASON_WAITS
 *	released     fragments that waited for one that has gone on now
 *
 * slots[], entries[], listed[], addresses[], ports[], hashes[] and choices[] are its own scratch.
 */
void mux_choose_burst(struct mux *mux, const struct frame *frames);

/*
 * Reads packets[], passages[] and the frames that the packets lie in, whose bytes it changes and whose headroom it writes
 * the outer headers to.  Sends all that can go, in order, and takes outer IDs from ids[].  Leaves:
 *
 *	packets[]    reason, which may have become REASON_SEGMENTED, REASON_NO_NEXT_HOP, REASON_TOO_BIG or
 *	             REASON_SEND_FAILED; length as it came
 *	out_count    0
 *
 * out[] and segments are its own scratch; an io sees them only within send().
 */
void mux_emit_burst(struct mux *mux, const struct frame *frames);

/*
 * After the stages, of a packet that goes no further: answers it where its reason, the configuration and the rate allow that.  Its
 * frame is as it came but for what mux_emit_burst() took before it dropped the packet.  Returns the packet's reason, which is
 * another where it was answered, or could have been.
 */
enum reason mux_answer(struct mux *mux, unsigned i, const struct frame *frame);

/*
 * The same for one error, of which `source` is the address that it comes from (NULL: there is none, and no answer): `answered`
 * where it was sent, REASON_ANSWER_LIMITED where there were too many of its kind.
 */
enum reason mux_answer_error(struct mux *mux, unsigned i, const struct frame *frame, const struct icmp_message *message,
			     const uint8_t *source, enum answer_kind kind, enum reason answered);

/* The longest packet that fits, in its tunnel, on the way to the backend that has been chosen for a packet. */
uint32_t mux_longest(const struct mux *mux, unsigned i);

/* The flow that a packet belongs to. */
void mux_packet_tuple(const struct packet *packet, struct flow_tuple *tuple);

/* The flow that an ICMP error is about; false: it is none that says so. */
bool mux_icmp_tuple(const struct packet *packet, struct flow_tuple *tuple);

/* Its hash, computed where nobody has yet. */
uint64_t mux_passage_hash(const struct mux *mux, const struct packet *packet, struct passage *passage);

/* A service's backend of this number; NULL: it has none (any more). */
static inline const struct backend *mux_backend_at(const struct service *service, uint32_t number)
{
	const struct backend *backend = number < service->backend_count ? &service->backends[number] : NULL;

	return backend && backend_state(backend) != BACKEND_ABSENT ? backend : NULL;
}

#endif
