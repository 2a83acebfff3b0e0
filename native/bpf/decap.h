/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The host agent's decapsulation in the kernel: a tc classifier (direct action) with its maps.  agent/decap.py loads
 * it, fills the maps and attaches it; the filter then keeps program and maps alive when the agent is gone, and the
 * next agent finds them again by the filter's program id.
 *
 * A struct decap owns the file descriptors in it.  Addresses are always 16 bytes, IPv4 as ::ffff:a.b.c.d, so that one
 * map holds both families.  Not thread-safe; the program itself of course runs on every CPU.
 */
#ifndef VIPMUX_DECAP_H
#define VIPMUX_DECAP_H

#include <stdbool.h>
#include <stdint.h>

#include "host/host_pipeline.h"

#define DECAP_TAG_SIZE 8u
/* What tunnel packets are addressed to, and how long the link header before them is (14 on Ethernet, else 0). */
struct decap_settings {
	uint8_t address[16];  /* IPv4-mapped; all zero: no IPv4 tunnels */
	uint8_t address6[16]; /* all zero: no IPv6 tunnels */
	uint32_t link_header;
	uint32_t gue_port;    /* of tunnels over UDP, host order; 0: none */
};

struct decap;

/*
 * Takes IP in IP of either family in either, and GUE of both variants, all at once.  Kernels before 6.3 cannot change a packet's
 * family: there a packet in a tunnel of the other one ends as HOST_OTHER_FAMILY; see decap_crosses().
 *
 * Loads the program with empty maps, or with the counters of an earlier one (inherit; NULL: from zero).  On refusal
 * log holds what the verifier said.  -ENOTSUP: it loads, but this kernel cannot take an outer header off.
 */
int decap_load(const struct decap_settings *settings, const struct decap *inherit, char *log, uint32_t log_size,
	       struct decap **out);
/* The program behind an attached filter.  -ENOENT: gone; -ESTALE: it is not one of ours. */
int decap_open(uint32_t program_id, struct decap **out);

int decap_add_mux(struct decap *decap, const uint8_t address[16]);
int decap_add_vip(struct decap *decap, const struct host_prefix *vip);

/* Whether this kernel can take packets out of tunnels of the other family. */
bool decap_crosses(void);

/* For attaching; stays the decap's. */
int decap_program_fd(const struct decap *decap);
/* Same tag: same instructions, hence also same address. */
void decap_tag(const struct decap *decap, uint8_t tag[DECAP_TAG_SIZE]);
/* Fill at most max and return how many there are, or a negative errno. */
int decap_muxes(const struct decap *decap, struct host_prefix *out, uint32_t max);
int decap_vips(const struct decap *decap, struct host_prefix *out, uint32_t max);
/* counts[HOST_REASON_COUNT], summed over the CPUs. */
int decap_counters(const struct decap *decap, uint64_t *counts);
/* One Ethernet frame through the program (BPF_PROG_TEST_RUN); it counts.  *verdict: 0 continue, 1 drop. */
int decap_test(const struct decap *decap, const uint8_t *in, uint32_t in_len, uint8_t *out, uint32_t *out_len,
	       uint32_t *verdict);

void decap_destroy(struct decap *decap);

#endif
