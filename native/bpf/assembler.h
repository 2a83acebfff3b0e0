/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A small assembler: instructions are appended in order, jumps name labels, and finish() fills in the distances.
 * The struct lives on its caller's stack; nothing is allocated.  A mistake (too long, label never placed) is kept
 * and reported once, by finish(), so that programs read without error checks between their lines.
 */
#ifndef VIPMUX_ASSEMBLER_H
#define VIPMUX_ASSEMBLER_H

#include <stdbool.h>
#include <stdint.h>

#include "bpf/instructions.h"

#define BPF_ASM_INSNS 1024u
#define BPF_ASM_LABELS 96u

struct bpf_asm {
	struct bpf_insn insns[BPF_ASM_INSNS];
	int16_t target[BPF_ASM_INSNS]; /* label a jump goes to, -1: no jump */
	int placed[BPF_ASM_LABELS];    /* where a label is, -1: not placed yet */
	unsigned count;
	unsigned labels;
	int error;
};

void bpf_asm_init(struct bpf_asm *a);
void bpf_asm_emit(struct bpf_asm *a, struct bpf_insn insn);
/* dst = 64-bit constant */
void bpf_asm_load_constant(struct bpf_asm *a, unsigned dst, uint64_t value);
/* dst = the map behind fd */
void bpf_asm_load_map(struct bpf_asm *a, unsigned dst, int fd);
/* A label is made anywhere, jumped to from anywhere above it, and placed once. */
unsigned bpf_asm_label(struct bpf_asm *a);
void bpf_asm_jump(struct bpf_asm *a, struct bpf_insn insn, unsigned label);
void bpf_asm_place(struct bpf_asm *a, unsigned label);
/* Whether anything jumps there so far: code that nothing leads to is refused by the verifier. */
bool bpf_asm_is_wanted(const struct bpf_asm *a, unsigned label);
/* Resolves the jumps; 0 or -E2BIG (too long), -EINVAL (a label was never placed). */
int bpf_asm_finish(struct bpf_asm *a);

#endif
