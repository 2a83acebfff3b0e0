/* SPDX-License-Identifier: Apache-2.0 */
/* See tun_steering.h. */
#include "bpf/tun_steering.h"

#include "bpf/assembler.h"
#include "bpf/bpf_syscalls.h"

#define NAME_PROGRAM "vipmux_steer"

int steer_load(char *log, uint32_t log_size)
{
	struct bpf_asm a;
	int rc;

	bpf_asm_init(&a);
	bpf_asm_emit(&a, BPF_MOV64_IMM(BPF_REG_0, 0));
	bpf_asm_emit(&a, BPF_EXIT_INSN());
	rc = bpf_asm_finish(&a);
	return rc ? rc : bpf_sys_program_load(BPF_PROG_TYPE_SOCKET_FILTER, NAME_PROGRAM, a.insns, a.count, log, log_size);
}
