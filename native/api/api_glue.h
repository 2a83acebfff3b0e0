/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What api.h declares and no module's own header does: inline functions and struct members in the form of calls.
 * Includes every header that api.h speaks of; the generated binding includes only this.
 */
#ifndef VIPMUX_API_GLUE_H
#define VIPMUX_API_GLUE_H

#include <stdbool.h>
#include <stdint.h>

#include "bench/pipeline_bench.h"
#include "bench/packet_generator.h"
#include "bpf/decap.h"
#include "bpf/xdp_redirect.h"
#include "bpf/tun_steering.h"
#include "bpf/tunnel_gso.h"
#include "host/host_pipeline.h"
#include "io/io_memory.h"
#include "io/af_packet/io_packet.h"
#include "io/io_raw.h"
#include "io/io_tun.h"
#include "io/af_xdp/io_xdp.h"
#include "mux/fragments.h"
#include "mux/mux.h"
#include "control/adopt_flows.h"
#include "control/flow_news.h"
#include "control/flow_table_scan.h"
#include "control/regroup_flows.h"
#include "control/worker_ask.h"
#include "services/maglev.h"
#include "services/quic/quic_routes.h"
#include "flow/kept_table.h"
#include "services/snapshot/snapshot.h"
#include "services/vip/vip_map.h"
#include "worker/worker.h"

/* What became of a packet of the last burst. */
struct memory_result {
	uint32_t reason; /* enum reason */
	uint32_t flow;   /* enum flow_report */
	int32_t service; /* id, -1: none */
	int32_t backend; /* number within the service, -1: none */
};

uint32_t reason_count(void);
const char *reason_name(uint32_t reason);
const char *reason_sentence(uint32_t reason);
uint32_t reason_verdict(uint32_t reason);
void maglev_slots(const struct maglev *table, uint16_t *slots);
uint16_t flow_ticks_of(uint32_t seconds);
struct pipeline *mux_pipeline(struct mux *mux);
void mux_shed(struct mux *mux, const uint64_t *rules, uint32_t count);
void mux_answers(struct mux *mux, uint32_t per_second);
const char *mux_vector(const struct mux *mux);
struct flow_table *mux_table(struct mux *mux);
uint64_t flow_table_lines(const struct flow_table *table);
const struct service_counters *mux_service_counters(const struct mux *mux);
const uint64_t *mux_backend_counters(const struct mux *mux);
const char *mux_check(const struct mux *mux);
int mux_run_loaded(struct mux *mux, struct snapshot *snapshot, struct io *io, uint64_t now_ns,
		   struct memory_result *results);
void io_stats_read(const struct io *io, struct io_stats *out);
void io_close(struct io *io);

#endif
