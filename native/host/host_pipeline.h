/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Decapsulation in userspace: what bpf/decap.c does in the kernel, for hosts whose kernel refuses the program.  A
 * worker runs it over io_raw.c, tests run it over io_memory.c.  Either family in either, and GUE of both variants.
 *
 * Whom to trust and what to serve are rules, immutable once made.  host_publish() hands them over, from any thread;
 * the worker takes them at its next burst and frees the old ones.  All else belongs to the worker.
 */
#ifndef VIPMUX_HOST_PIPELINE_H
#define VIPMUX_HOST_PIPELINE_H

#include <stdint.h>

#include "worker/pipeline.h"

struct host;
struct host_rules;
struct io;

/* The list of host_reason.h, for those who cannot include it; NULL and 0 of numbers that are not in it. */
uint32_t host_reason_count(void);
const char *host_reason_name(uint32_t reason);
const char *host_reason_sentence(uint32_t reason);
uint32_t host_reason_drops(uint32_t reason); /* 1: the packet ends there */

/* Addresses are 16 bytes, IPv4 as ::ffff:a.b.c.d with 96 added to the length. */
struct host_prefix {
	uint8_t address[16];
	uint32_t length;
};

int host_rules_create(const struct host_prefix *muxes, uint32_t mux_count, const struct host_prefix *vips,
		      uint32_t vip_count, struct host_rules **out);
void host_rules_destroy(struct host_rules *rules); /* of rules that were never published */

/* Takes the rules over, also when it fails. */
int host_create(struct host_rules *rules, struct host **out);
struct pipeline *host_pipeline(struct host *host);
/* Runs what the io has ready as one burst, where no worker does; returns how many packets that were. */
int host_run_once(struct host *host, struct io *io);
void host_publish(struct host *host, struct host_rules *rules); /* takes the rules over */
void host_counters(const struct host *host, uint64_t *counts);  /* counts[HOST_REASON_COUNT]; from any thread */
void host_destroy(struct host *host);                           /* once its worker has ended */

#endif
