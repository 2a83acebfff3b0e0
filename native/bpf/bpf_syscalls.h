/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bpf(2) by hand: the few commands the programs here need.  File descriptors belong to the caller; all are opened
 * close-on-exec.  Nothing is pinned: a program lives as long as a filter, a map as long as a program, refers to it.
 */
#ifndef VIPMUX_BPF_SYSCALLS_H
#define VIPMUX_BPF_SYSCALLS_H

#include <linux/bpf.h>
#include <stdint.h>

/* Return a new file descriptor or a negative errno.  name: at most 15 characters. */
int bpf_sys_map_create(enum bpf_map_type type, const char *name, uint32_t key_size, uint32_t value_size,
		       uint32_t entries, uint32_t flags);
/* On refusal log holds the verifier's words (empty where the kernel said nothing). */
int bpf_sys_program_load(enum bpf_prog_type type, const char *name, const struct bpf_insn *insns, uint32_t count,
			 char *log, uint32_t log_size);
int bpf_sys_program_by_id(uint32_t id);
int bpf_sys_map_by_id(uint32_t id);

/* Attaches a classifier as long as the descriptor that it returns is open; kernels from 6.6, before them -EINVAL. */
int bpf_sys_attach_ingress(int program, unsigned ifindex);

/* Return 0 or a negative errno. */
int bpf_sys_map_update(int fd, const void *key, const void *value);
/* -ENOENT: it was not there. */
int bpf_sys_map_delete(int fd, const void *key);
int bpf_sys_map_lookup(int fd, const void *key, void *value);
int bpf_sys_map_next_key(int fd, const void *key, void *next);
int bpf_sys_program_info(int fd, struct bpf_prog_info *info);
int bpf_sys_map_info(int fd, struct bpf_map_info *info);
/* An XDP program on an interface of the caller's network namespace, as long as the link that is returned is open. */
int bpf_sys_link_xdp(int program, int ifindex, uint32_t flags);
/* Of the interface that a link is on, 0: it is no more; or a negative errno. */
int bpf_sys_link_ifindex(int link);
/* Runs a program once over a frame that nobody receives. */
int bpf_sys_program_test(int fd, const uint8_t *in, uint32_t in_len, uint8_t *out, uint32_t *out_len,
			 uint32_t *verdict);
/* Runs an XDP program over so many frames that go where it sends them; kernels from 5.18. */
int bpf_sys_program_run_live(int fd, const uint8_t *frame, uint32_t length, uint32_t count, uint32_t batch);

/* Values that a lookup in a per-CPU map fills: CPUs that may ever appear, not only those present. */
unsigned bpf_sys_possible_cpus(void);

#endif
