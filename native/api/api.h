/* SPDX-License-Identifier: Apache-2.0 */
/*
 * All that Python may call, and nothing else.  cffi reads this file verbatim (so: no preprocessor lines, no guard) and
 * checks it against the real headers when it compiles.  Only lb/dataplane/ uses it.  What holds of all unless a comment says
 * otherwise (the header named in a section's title has the whole story):
 *
 * Errors.  What returns int returns 0 or a count, or a negative errno: -ENOMEM of whatever creates something, -EINVAL of
 * arguments out of range.  Where something is refused nothing has changed and *out is not written.
 * NULL.  Pointers must point to what they say.  What frees (.._put, .._destroy, .._close) takes NULL and does nothing.  Arrays of
 * no elements may be NULL.
 * Units.  Numbers are in host order, lengths in bytes, ages in the flow table's ticks of 2^28 ns, times in ns of
 * CLOCK_MONOTONIC (a time that goes back counts as the latest seen).  Addresses and MACs are bytes in wire order, IPv4 in the
 * first 4 of 16; only the host agent's have IPv4 as ::ffff:a.b.c.d.
 * Ownership.  What is created belongs to the caller until freed once.  What is made from something else (a map of tables, a
 * snapshot of a map, a worker of pipeline, io and snapshots) holds references of its own, so parts may be freed in any order.
 * Pointers that are returned stay the object's, and are good as long as it is.
 * Threads.  What is immutable (tables, sealed maps, snapshots) may be used and freed from any thread.  A mux, a host or an io
 * belongs to one thread at a time: its worker while that runs.  Freeing an object is the last that is done with it.
 */

/* ---- reasons (mux_reason.h): numbered from 0; NULL, and verdict 4, of numbers that are none ---- */
uint32_t reason_count(void);
const char *reason_name(uint32_t reason);
const char *reason_sentence(uint32_t reason);
uint32_t reason_verdict(uint32_t reason);

/* ---- Maglev tables (maglev.h) ---- */
struct maglev_member {
	uint32_t offset;
	uint32_t skip;
	uint32_t weight;
	uint16_t backend;
};
struct maglev;
/* size: a prime up to 2^24.  Of each member offset < size, 1 <= skip < size, backend < 0xffff.  -EINVAL, -ENOMEM. */
int maglev_build(uint32_t size, const struct maglev_member *members, uint32_t count, struct maglev **out);
void maglev_put(struct maglev *table);
/* `size` backend numbers; 0xffff where no member has a weight. */
void maglev_slots(const struct maglev *table, uint16_t *slots);


/* ---- QUIC connection ids (quic_routes.h) ---- */
struct quic_configuration {
	uint8_t number;
	uint8_t server_id_bytes;
	uint8_t nonce_bytes;
	uint8_t encrypted;
	uint8_t key[16];
};
struct quic_server {
	uint8_t configuration;
	uint8_t server_id[15];
	uint32_t backend;
};
struct quic_routes;
/* level 2: the best AES of this machine.  -EINVAL: lengths, numbers or server ids that are out of range or there twice; -ENOMEM. */
int quic_routes_create(const struct quic_configuration *configurations, uint32_t count, const struct quic_server *servers,
		       uint32_t server_count, uint32_t level, struct quic_routes **out);
void quic_routes_put(struct quic_routes *routes);

/* ---- the VIP map (service.h, vip_map.h) ---- */
struct backend {
	uint32_t place;
	uint32_t counter;
};
struct service {
	uint32_t id;
	uint16_t first_port;
	uint16_t last_port;
	uint8_t protocol;
	uint8_t family;
	uint8_t prefix_length;
	bool hash_source;
	uint16_t idle;
	uint16_t mtu;
	uint8_t vip[16];
	struct maglev *maglev;
	uint32_t backend_count;
	struct quic_routes *quic;
	...;
};
struct vip_map;
/*
 * create or change, then add, then seal; then it never changes.  seed: 16 bytes; idle: ticks.  -EINVAL of add: id, protocol,
 * family, prefix, ports or MTU out of range, host bits set, id used twice, map sealed.  -EINVAL of change: an id that is not
 * there, or a map that is not sealed.  -EEXIST of seal: two services claim the same packets; the map can only be put then.
 */
int vip_map_create(const uint8_t *seed, uint16_t idle_untrusted, struct vip_map **out);
int vip_map_change(const struct vip_map *before, const uint32_t *gone, uint32_t gone_count, struct vip_map **out);
int vip_map_add(struct vip_map *map, const struct service *service, const struct backend *backends);
int vip_map_seal(struct vip_map *map);
uint64_t vip_map_serial(const struct vip_map *map);
void vip_map_put(struct vip_map *map);
/* Seconds (14,400 at most) as ticks such that nothing expires early; up to two late. */
uint16_t flow_ticks_of(uint32_t seconds);

/* ---- snapshots (snapshot.h) ---- */
struct hop_spec {
	uint8_t source[16];
	uint8_t destination[16];
	uint8_t family;
	uint8_t resolved;
	uint8_t mac[6];
	uint8_t source_mac[6];
	uint8_t tunnel;
	uint16_t port;
	uint16_t mtu;
	uint32_t ifindex;
};
struct snapshot;
/*
 * map: sealed; its backends name hops < count.  tunnel: enum tunnel; port: UDP's, where that has one; mtu: of the way, 0: not
 * known to be less than the service's.  generation is the caller's.  resolved 0: what would
 * leave by the hop is dropped as no_next_hop.  ifindex 0: the io's own interface.  -EINVAL, -ENOMEM.
 */
int snapshot_create(struct vip_map *map, const struct hop_spec *hops, uint32_t count, uint64_t generation,
		    struct snapshot **out);
void snapshot_put(struct snapshot *snapshot);

/* ---- fragments under way (fragments.h) ---- */
struct fragments;
int fragments_create(uint32_t keep, struct fragments **out);
void fragments_put(struct fragments *fragments);

/* ---- the inbound pipeline (mux.h) ---- */
struct mux_config {
	uint64_t flows;
	uint32_t link;
	uint32_t detect_partial;
	uint32_t first_id;
	uint32_t vector;
	uint32_t touch_late;
	uint32_t answers;
	uint32_t unserved;
	uint8_t address[16];
	uint8_t address6[16];
	struct fragments *fragments;
};
struct service_counters {
	uint64_t packets;
	uint64_t bytes;
	uint64_t flows;
	uint64_t dropped;
};
struct flow_counters {
	uint64_t live[8];
	uint64_t expired;
	uint64_t evicted;
	uint64_t evicted_tier[4];
	uint64_t forgotten;
	uint64_t refused;
	uint64_t moved;
};
struct flow_tuple {
	uint8_t source[16];
	uint8_t destination[16];
	uint16_t source_port;
	uint16_t destination_port;
	uint8_t protocol;
	uint8_t family;
	uint16_t zero;
};
struct mux_answer {
	const struct service *service;
	uint32_t slot;
	int32_t backend;
	int32_t flow_backend;
	uint32_t flow_class;
	uint32_t flow_age;
};
struct mux;
/*
 * flows 0: no table, every packet by Maglev.  link: enum mux_link.  unserved: enum mux_unserved; addresses: zero, none.  vector: enum vector_level, -ENOTSUP: not here.  destroy while a worker runs it lets go of it; that ends it.
 */
int mux_create(const struct mux_config *config, struct mux **out);
void mux_destroy(struct mux *mux);
/* Levels of vector instructions: their names by number (NULL: no more), and the one that a pipeline runs with. */
const char *vector_name(uint32_t level);
const char *mux_vector(const struct mux *mux);
/*
 * What a packet of the tuple would get; touches nothing.  mux NULL: a new flow.  answer->service is NULL where there is none, and
 * good as long as the snapshot is.  While a worker runs the mux: worker_ask_lookup().
 */
void mux_lookup(const struct mux *mux, const struct snapshot *snapshot, const struct flow_tuple *tuple,
		struct mux_answer *answer);
struct pipeline;
/* For worker_create(); the mux's own. */
struct pipeline *mux_pipeline(struct mux *mux);
/*
 * reasons: reason_count() numbers.  Any of the three may be NULL: it is not asked for.  While a worker runs, what is read may be
 * of the middle of a burst; worker_ask_counters() has what adds up.
 */
void mux_counters_read(const struct mux *mux, uint64_t *received, uint64_t *reasons, struct flow_counters *flows);
/* By service id, 32,768 rows; by the backends' counter, 2^20 numbers.  Written by the worker, read by anyone. */
const struct service_counters *mux_service_counters(const struct mux *mux);
const uint64_t *mux_backend_counters(const struct mux *mux);
/*
 * Services whose packets are dropped while the MUX cannot take all: rules[count], count <= 4, each (service id + 1) << 32 |
 * share of packets of new flows << 16 | share of those of known ones, shares of 65,536.  From any thread, one at a time.
 */
void mux_shed(struct mux *mux, const uint64_t *rules, uint32_t count);
/* What it answers by itself: so many of each kind (enum answer_kind) for each second, 0: nothing.  From any thread. */
void mux_answers(struct mux *mux, uint32_t per_second);
/* Flows that others remember better, so far; bytes that a table for so many flows takes; what is broken in it, or NULL. */
uint64_t mux_forgotten(const struct mux *mux);
uint64_t flow_table_bytes(uint64_t flows);
const char *mux_check(const struct mux *mux);

/* ---- flows of a MUX, and of others (flow_table_scan.h, adopt_flows.h) ---- */
struct flow_scan_row {
	uint32_t tcp;
	uint32_t udp;
	uint32_t unsynchronised;
};
/*
 * Adds to rows[count] by the backends' counter; those beyond are left out.  flow_scan_unsynchronised() writes at most max records and
 * owners, and returns how many there are.  Both from any thread beside the worker: what comes or goes meanwhile may be missed.
 */
void flow_scan_count(const struct mux *mux, const struct snapshot *snapshot, struct flow_scan_row *rows, uint32_t count);
uint32_t flow_scan_unsynchronised(const struct mux *mux, const struct snapshot *snapshot, uint64_t *records,
			    uint32_t *owners, uint32_t max);
/* ---- what others are told of them, and when again (flow_news.h) ---- */
struct flow_fact {
	uint64_t record;
	uint32_t owner;
	uint32_t mark;
};
struct flow_news {
	uint32_t come;
	uint32_t gone;
};
uint32_t flow_scan_facts(const struct mux *mux, const struct snapshot *snapshot, struct flow_fact *facts, uint32_t max);
uint32_t flow_news_settle(struct flow_fact *facts, uint32_t count, uint32_t young_max);
struct flow_news flow_news_compare(const struct flow_fact *known, uint32_t known_count, struct flow_fact *now,
				   uint32_t now_count, uint32_t since, uint32_t elapsed, bool anew, struct flow_fact *come,
				   struct flow_fact *gone);
struct flow_heard {
	uint32_t owner;
	uint32_t count;
};
uint32_t flow_news_heard(const struct flow_fact *facts, uint32_t count, struct flow_heard *out, uint32_t max);
void flow_news_judge(const struct mux *mux, const struct snapshot *snapshot, struct flow_fact *gone, uint32_t count);
struct adoption {
	uint32_t taken;
	uint32_t known;
	uint32_t useless;
	uint32_t refused;
};
/* records[count] of one backend of one service; adds to *out.  While a worker runs: worker_ask_adopt(), _forget(). */
void mux_adopt(struct mux *mux, const struct snapshot *snapshot, uint32_t service_id, uint32_t backend,
	       const uint64_t *records, uint32_t count, uint64_t now_ns, struct adoption *out);
uint32_t mux_forget(struct mux *mux, const struct snapshot *snapshot, uint32_t service_id, uint32_t backend,
		    const uint64_t *records, uint32_t count, uint64_t now_ns);

/*
 * mux_adopt() for one of several workers: takes over what its table knows, and leaves the others in records; how many those are.
 */
uint32_t mux_adopt_known(struct mux *mux, const struct snapshot *snapshot, uint32_t service_id, uint32_t backend,
			 uint64_t *records, uint32_t count, uint64_t now_ns, struct adoption *out);

/* ---- flows between the workers of a MUX (regroup_flows.h) ---- */
struct flow_table;
/*
 * The table of a mux, with a reference that flow_table_destroy() gives back; NULL: it has none.  meet: whose flows an ICMP error may
 * be about and, if asked, who is asked for flows, count <= 128, 0: nobody; claims: what was found there, 4,096 at most;
 * release: what another has found.  While a worker runs the mux: worker_ask_..().  replace: only while none does; *before as of
 * mux_table(); fd: an empty file for it (kept_table.h), -1: none.
 */
struct flow_table *mux_table(struct mux *mux);
void flow_table_destroy(struct flow_table *table);
uint64_t flow_table_lines(const struct flow_table *table);
int mux_meet(struct mux *mux, struct flow_table *const *tables, uint32_t count, bool asked);
uint32_t mux_claims(struct mux *mux, uint64_t *keys, uint32_t max);
uint32_t mux_release(struct mux *mux, const uint64_t *keys, uint32_t count);
uint32_t mux_inherit(struct mux *mux, const struct snapshot *snapshot, const struct flow_table *elder, uint64_t first_line,
		     uint32_t lines, uint64_t now_ns);
int mux_replace_table(struct mux *mux, uint64_t flows, int fd, uint64_t mark, struct flow_table **before);
/* What a process before left in a file, to be met and inherited (kept_table.h); a mark of the 16 bytes of the pool's seed. */
int kept_table_open(int fd, uint64_t mark, struct flow_table **out);
uint64_t kept_table_mark(const uint8_t *seed);
void mux_inherit_counters(struct mux *mux, const struct flow_table *elder);

/* ---- packets from memory (io_memory.h) ---- */
struct io;
struct io_stats {
	uint64_t received;
	uint64_t sent;
	uint64_t missed;
	uint64_t send_errors;
};
struct memory_sent {
	const uint8_t *data;
	uint32_t len;
	uint32_t origin;
};
struct memory_result {
	uint32_t reason;
	uint32_t flow;
	int32_t service;
	int32_t backend;
};
/*
 * link: 0 raw IP, 1 Ethernet.  Load up to 64 packets (then -ENOSPC), each copied and, if its driver would tell of offloads, told
 * of after loading; run them; read what was sent, index < sent_count, until the next are run.
 */
int io_memory_open(uint32_t link, struct io **out);
int io_memory_load(struct io *io, const uint8_t *data, uint32_t len, uint32_t wire_len);
int io_memory_offload(struct io *io, uint16_t gso_size, uint16_t csum_start, uint16_t csum_offset, bool verified);
uint32_t io_memory_sent_count(const struct io *io);
void io_memory_sent(const struct io *io, uint32_t index, struct memory_sent *out);
/* Runs what is loaded as one burst; results[count of packets], which it returns. */
int mux_run_loaded(struct mux *mux, struct snapshot *snapshot, struct io *io, uint64_t now_ns,
		   struct memory_result *results);
/* From any thread.  Closing an io on which a worker runs lets go of it: it closes when the worker has been destroyed. */
void io_stats_read(const struct io *io, struct io_stats *out);
void io_close(struct io *io);

/* ---- the benchmark (pipeline_bench.h) ---- */
struct bench_sample {
	double ns;
	double probe;
};
struct bench;
/*
 * mux must outlive it.  mode: enum bench_mode; flows > 0; frames: a multiple of BENCH_SEGMENT.  run and floor return how many of
 * `max` samples they took in so many seconds.
 */
int bench_create(struct mux *mux, struct snapshot *snapshot, uint32_t mode, uint32_t flows, uint32_t frames,
		 struct bench **out);
uint32_t bench_run(struct bench *bench, double seconds, struct bench_sample *samples, uint32_t max);
uint32_t bench_floor(struct bench *bench, double seconds, struct bench_sample *samples, uint32_t max);
struct bench_sent {
	uint64_t fresh;
	uint64_t known;
	uint64_t untracked;
	uint64_t dropped;
	uint64_t ns;
};
void bench_send(struct bench *bench, const struct snapshot *snapshot, uint64_t first, uint32_t count, uint32_t flags,
		uint64_t now_ns, uint16_t *backends, struct bench_sent *out);
void bench_destroy(struct bench *bench);

/* ---- packets to measure with (packet_generator.h) ---- */
struct generator_result {
	uint64_t sent;
	uint64_t refused;
	uint64_t elapsed_ns;
};
struct generator;
/*
 * frame: Ethernet, IPv4 without options and UDP, 42 to 2,048 bytes; flows: 1 to 64,512; kind: enum generator_kind.  -ENODEV: no
 * such interface here; else what the kernel said.  run: packets per second, 0 for as many as go; takes the caller's core.
 */
int generator_open(const char *interface, const uint8_t *frame, uint32_t length, uint32_t flows,
		   uint32_t kind, struct generator **out);
int generator_run(struct generator *generator, double seconds, double rate, struct generator_result *out);
void generator_close(struct generator *generator);

/* ---- packets from the network (io_packet.h, io_tun.h) ---- */
/*
 * In the caller's network namespace.  filter: classic BPF, one struct sock_filter in 64 bits, at most 4,096 (-E2BIG), none: all
 * enters.  group: -1 alone, -2 the first of several, or packet_io_group() of that.  -ENODEV, -EPERM, or what the kernel said.
 * packet_io_filter() and packet_io_switches() (-1: one ring only) from any thread.  tun: -ENAMETOOLONG of 16 characters or
 * more; shared: one of several queues; program: of tunnel_gso_load(), or -1.
 */
int packet_io_open(const char *interface, uint32_t ring_bytes, int group, const uint64_t *filter, unsigned filter_count,
		   struct io **out);
int packet_io_filter(struct io *io, const uint64_t *filter, unsigned filter_count);
int packet_io_group(const struct io *io);
int packet_io_swap(struct io *const *from, unsigned from_count, struct io *const *to, unsigned to_count, const uint64_t *filter,
		   unsigned filter_count);
int64_t packet_io_switches(const struct io *io);
int tun_io_open(const char *name, int shared, int program, struct io **out);
/* steer_load(): as tunnel_gso_load().  tun_io_steer(): program -1 takes it off. */
int steer_load(char *log, uint32_t log_size);
int tun_io_steer(struct io *io, int program);
/*
 * Super-packets that leave whole (bpf/tunnel_gso.h).  Load returns a descriptor, of a program for a TUN device (place 0) or for the
 * tap of a packet or AF_XDP io (1); log: as of decap_load(), -EOPNOTSUPP: this kernel cannot.  tap: before a worker runs; name NULL: none.
 */
int tunnel_gso_load(uint32_t place, char *log, uint32_t log_size);
int packet_io_set_gso_tap(struct io *io, const char *name, int shared, int program);

/* ---- workers (worker.h, worker_ask.h) ---- */
struct worker_counters {
	uint64_t bursts;
	uint64_t errors;
	int32_t error;
	uint32_t running;
	uint32_t retired;
};
struct worker;
/*
 * cpu: -1 for any; snapshot may be NULL.  From any thread; stop waits for the thread's end, publish and the like for no packet.
 * errors and error: of the last receive() that failed.  reclaim frees replaced snapshots and returns how many are still held.
 */
int worker_create(struct pipeline *pipeline, struct io *io, struct snapshot *snapshot, int cpu, struct worker **out);
int worker_start(struct worker *worker);
int worker_publish(struct worker *worker, struct snapshot *snapshot);
unsigned worker_reclaim(struct worker *worker);
void worker_counters(struct worker *worker, struct worker_counters *out);
int worker_stop(struct worker *worker);
void worker_destroy(struct worker *worker);
/*
 * As the functions of the mux that they are named after, run by its worker between two bursts.  count: at most 256, else
 * -EINVAL.  -ETIMEDOUT: the worker did not come by in so many ms, and nothing was done.
 */
int worker_ask_lookup(struct worker *worker, const struct mux *mux, const struct snapshot *snapshot,
		      const struct flow_tuple *tuple, struct mux_answer *answer, int timeout_ms);
int worker_ask_counters(struct worker *worker, const struct mux *mux, uint64_t *received, uint64_t *reasons,
			struct flow_counters *flows, int timeout_ms);
int worker_ask_adopt(struct worker *worker, struct mux *mux, const struct snapshot *snapshot, uint32_t service_id,
		     uint32_t backend, const uint64_t *records, uint32_t count, struct adoption *out, int timeout_ms);
int worker_ask_forget(struct worker *worker, struct mux *mux, const struct snapshot *snapshot, uint32_t service_id,
		      uint32_t backend, const uint64_t *records, uint32_t count, uint32_t *forgotten, int timeout_ms);

/* Of records those that the worker does not know are left, *left of them. */
int worker_ask_adopt_known(struct worker *worker, struct mux *mux, const struct snapshot *snapshot, uint32_t service_id,
			   uint32_t backend, uint64_t *records, uint32_t count, struct adoption *out, uint32_t *left,
			   int timeout_ms);
/* release: at most 256 keys; inherit: at most 128 lines; else -EINVAL. */
int worker_ask_meet(struct worker *worker, struct mux *mux, struct flow_table *const *tables, uint32_t count,
		    bool asked, int timeout_ms);
int worker_ask_claims(struct worker *worker, struct mux *mux, uint64_t *keys, uint32_t max, uint32_t *count,
		      int timeout_ms);
int worker_ask_release(struct worker *worker, struct mux *mux, const uint64_t *keys, uint32_t count, uint32_t *released,
		       int timeout_ms);
int worker_ask_inherit(struct worker *worker, struct mux *mux, const struct snapshot *snapshot,
		       const struct flow_table *elder, uint64_t first_line, uint32_t lines, uint32_t *taken, int timeout_ms);

/* ---- host agent (host_pipeline.h, io_raw.h, bpf/decap.h) ---- */
uint32_t host_reason_count(void);
const char *host_reason_name(uint32_t reason);
const char *host_reason_sentence(uint32_t reason);
uint32_t host_reason_drops(uint32_t reason);

/* Numbered from 0; NULL and 0 of numbers that are none.  Addresses: IPv4 as ::ffff:a.b.c.d with 96 added to a prefix's length. */
struct host_prefix {
	uint8_t address[16];
	uint32_t length;
};
struct host_rules;
struct host;
/*
 * Rules belong to the host from host_create() (also where it fails) or host_publish() on.  publish from any thread, counters
 * (host_reason_count() numbers) too.  host_run_once() stands in for a worker: one burst; how many packets.
 */
int host_rules_create(const struct host_prefix *muxes, uint32_t mux_count, const struct host_prefix *vips,
		      uint32_t vip_count, struct host_rules **out);
int host_create(struct host_rules *rules, struct host **out);
struct pipeline *host_pipeline(struct host *host);
int host_run_once(struct host *host, struct io *io);
void host_publish(struct host *host, struct host_rules *rules);
void host_counters(const struct host *host, uint64_t *counts);
void host_destroy(struct host *host);
/*
 * address, address6: 4 and 16 bytes, the host's own, NULL: none; gue_port 0: no tunnels over UDP.  The TUN device ends with the
 * io.  -EADDRINUSE: of the port.
 */
int raw_io_open(const uint8_t *address, const uint8_t *address6, uint16_t gue_port, const char *tun_name, struct io **out);

struct decap_settings {
	uint8_t address[16];
	uint8_t address6[16];
	uint32_t link_header;
	uint32_t gue_port;
};
struct decap;
/*
 * The host's tc program.  log: what the verifier said of a refusal, cut to log_size; inherit: whose counters go on, or NULL.
 * -ENOTSUP: this kernel cannot take a header off.  open: -ENOENT gone, -ESTALE not one of ours.  muxes and vips write at most max
 * (out NULL: 0) and return how many there are.  tag: 8 bytes.  test: *out_len in: room, out: length; *verdict 1: dropped.
 */
int decap_load(const struct decap_settings *settings, const struct decap *inherit, char *log, uint32_t log_size,
	       struct decap **out);
int decap_open(uint32_t program_id, struct decap **out);
int decap_add_mux(struct decap *decap, const uint8_t *address);
int decap_add_vip(struct decap *decap, const struct host_prefix *vip);
bool decap_crosses(void);
int decap_program_fd(const struct decap *decap);
void decap_tag(const struct decap *decap, uint8_t *tag);
int decap_muxes(const struct decap *decap, struct host_prefix *out, uint32_t max);
int decap_vips(const struct decap *decap, struct host_prefix *out, uint32_t max);
int decap_counters(const struct decap *decap, uint64_t *counts);
int decap_test(const struct decap *decap, const uint8_t *in, uint32_t in_len, uint8_t *out, uint32_t *out_len,
	       uint32_t *verdict);
void decap_destroy(struct decap *decap);

/* ---- AF_XDP (bpf/xdp_redirect.h, io_xdp.h) ---- */
struct redirect;
/* log as with decap_load().  remove_vip: -ENOENT.  mac: 6 bytes.  attach: -EBUSY, -EEXIST, -EOPNOTSUPP, -ERANGE.  test: 1 taken. */
int redirect_load(uint32_t queues, char *log, uint32_t log_size, struct redirect **out);
int redirect_add_vip(struct redirect *redirect, const struct host_prefix *vip);
int redirect_remove_vip(struct redirect *redirect, const struct host_prefix *vip);
int redirect_set_address(struct redirect *redirect, const uint8_t *mac);
int redirect_set_socket(struct redirect *redirect, uint32_t queue, int socket);
int redirect_attach(struct redirect *redirect, int ifindex, bool generic);
bool redirect_attached(const struct redirect *redirect);
void redirect_detach(struct redirect *redirect);
int redirect_test(const struct redirect *redirect, const uint8_t *frame, uint32_t length);
void redirect_destroy(struct redirect *redirect);
#define XDP_QUEUES_MAX ...
#define XDP_FRAME_MAX ...
struct xdp_settings {
	uint32_t first_queue;
	uint32_t every;
	uint32_t queues;
	uint32_t frame_max;
	bool zero_copy;
	bool busy_poll;
};
/* -EMSGSIZE, -EBUSY, -EOPNOTSUPP (no zero-copy); settings: as asked for, then as obtained. */
int xdp_io_open(const char *interface, struct redirect *redirect, struct xdp_settings *settings, struct io **out);
/* As packet_io_set_gso_tap(); not with zero-copy. */
int xdp_io_set_gso_tap(struct io *io, const char *name, int shared, int program);
