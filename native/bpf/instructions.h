/* SPDX-License-Identifier: Apache-2.0 */
/*
 * BPF instructions as C values, under the names the kernel's own documentation uses.  Written by hand into programs
 * through assembler.h, so that neither a BPF compiler nor libbpf is needed where the programs run.
 */
#ifndef VIPMUX_INSTRUCTIONS_H
#define VIPMUX_INSTRUCTIONS_H

#include <linux/bpf.h>

#define INSN(op, dst, src, offset, immediate) \
	((struct bpf_insn){ .code = (op), .dst_reg = (dst), .src_reg = (src), .off = (offset), .imm = (immediate) })

/* Registers and constants. */
#define BPF_MOV64_REG(dst, src) INSN(BPF_ALU64 | BPF_MOV | BPF_X, dst, src, 0, 0)
#define BPF_MOV64_IMM(dst, value) INSN(BPF_ALU64 | BPF_MOV | BPF_K, dst, 0, 0, value)
#define BPF_ALU64_IMM(op, dst, value) INSN(BPF_ALU64 | (op) | BPF_K, dst, 0, 0, value)
#define BPF_ALU64_REG(op, dst, src) INSN(BPF_ALU64 | (op) | BPF_X, dst, src, 0, 0)
/* Byte order of the low bits: network order to host order. */
#define BPF_TO_HOST(dst, bits) INSN(BPF_ALU | BPF_END | BPF_TO_BE, dst, 0, 0, bits)

/* Memory: size is BPF_B, BPF_H, BPF_W or BPF_DW. */
#define BPF_LDX_MEM(size, dst, src, offset) INSN(BPF_LDX | BPF_MEM | (size), dst, src, offset, 0)
#define BPF_STX_MEM(size, dst, src, offset) INSN(BPF_STX | BPF_MEM | (size), dst, src, offset, 0)
#define BPF_ST_MEM(size, dst, offset, value) INSN(BPF_ST | BPF_MEM | (size), dst, 0, offset, value)

/* Jumps; the target is filled in by bpf_asm_jump(). */
#define BPF_JMP_IMM(op, dst, value) INSN(BPF_JMP | (op) | BPF_K, dst, 0, 0, value)
#define BPF_JMP_REG(op, dst, src) INSN(BPF_JMP | (op) | BPF_X, dst, src, 0, 0)
#define BPF_JMP_ALWAYS() INSN(BPF_JMP | BPF_JA, 0, 0, 0, 0)

#define BPF_CALL_HELPER(number) INSN(BPF_JMP | BPF_CALL, 0, 0, 0, number)
#define BPF_EXIT_INSN() INSN(BPF_JMP | BPF_EXIT, 0, 0, 0, 0)

#endif
