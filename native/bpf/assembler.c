/* SPDX-License-Identifier: Apache-2.0 */
/* See assembler.h. */
#include "bpf/assembler.h"

#include <errno.h>
#include <string.h>

void bpf_asm_init(struct bpf_asm *a)
{
	memset(a, 0, sizeof(*a));
	for (unsigned i = 0; i < BPF_ASM_LABELS; i++)
		a->placed[i] = -1;
}

void bpf_asm_emit(struct bpf_asm *a, struct bpf_insn insn)
{
	if (a->count == BPF_ASM_INSNS) {
		a->error = -E2BIG;
		return;
	}
	a->target[a->count] = -1;
	a->insns[a->count++] = insn;
}

/* Wide constants take two instructions; the second carries the upper half. */
static void emit_wide(struct bpf_asm *a, unsigned dst, unsigned src, uint64_t value)
{
	bpf_asm_emit(a, INSN(BPF_LD | BPF_DW | BPF_IMM, dst, src, 0, (int32_t)(uint32_t)value));
	bpf_asm_emit(a, INSN(0, 0, 0, 0, (int32_t)(uint32_t)(value >> 32)));
}

void bpf_asm_load_constant(struct bpf_asm *a, unsigned dst, uint64_t value)
{
	emit_wide(a, dst, 0, value);
}

void bpf_asm_load_map(struct bpf_asm *a, unsigned dst, int fd)
{
	emit_wide(a, dst, BPF_PSEUDO_MAP_FD, (uint32_t)fd);
}

unsigned bpf_asm_label(struct bpf_asm *a)
{
	if (a->labels == BPF_ASM_LABELS) {
		a->error = -E2BIG;
		return BPF_ASM_LABELS - 1;
	}
	return a->labels++;
}

void bpf_asm_jump(struct bpf_asm *a, struct bpf_insn insn, unsigned label)
{
	bpf_asm_emit(a, insn);
	if (!a->error)
		a->target[a->count - 1] = (int16_t)label;
}

void bpf_asm_place(struct bpf_asm *a, unsigned label)
{
	a->placed[label] = (int)a->count;
}

bool bpf_asm_is_wanted(const struct bpf_asm *a, unsigned label)
{
	for (unsigned i = 0; i < a->count; i++)
		if (a->target[i] == (int16_t)label)
			return true;
	return false;
}

int bpf_asm_finish(struct bpf_asm *a)
{
	for (unsigned i = 0; i < a->count && !a->error; i++) {
		if (a->target[i] < 0)
			continue;
		if (a->placed[a->target[i]] < 0)
			a->error = -EINVAL;
		else /* counted from the instruction after the jump */
			a->insns[i].off = (int16_t)(a->placed[a->target[i]] - (int)i - 1);
	}
	return a->error;
}
