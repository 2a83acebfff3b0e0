/* SPDX-License-Identifier: Apache-2.0 */
/* See xdp_frame_source.h. */
#define _GNU_SOURCE
#include "bench/xdp_frame_source.h"

#include <stddef.h>
#include <string.h>
#include <unistd.h>

#include "bpf/assembler.h"
#include "bpf/bpf_syscalls.h"

#define HEADERS 42       /* Ethernet, IPv4, UDP */
#define SOURCE_PORT 34   /* of the frame */
#define BATCH 64u
#define BEHIND_NS 1000000 /* what is later than that is not made up for */
#define FP BPF_REG_10

/* What program and process tell each other. */
struct numbers {
	uint64_t made;
	uint64_t due;      /* when the next frame is, CLOCK_MONOTONIC */
	uint64_t interval; /* ns between two; 0: as many as go */
};

/* r8: the numbers.  Goes to `early` while the next frame is not due. */
static void emit_pace(struct bpf_asm *a, unsigned early)
{
	unsigned paced = bpf_asm_label(a), in_time = bpf_asm_label(a);

	bpf_asm_emit(a, BPF_LDX_MEM(BPF_DW, BPF_REG_6, BPF_REG_8, offsetof(struct numbers, interval)));
	bpf_asm_jump(a, BPF_JMP_IMM(BPF_JEQ, BPF_REG_6, 0), paced);
	bpf_asm_emit(a, BPF_CALL_HELPER(BPF_FUNC_ktime_get_ns));
	bpf_asm_emit(a, BPF_LDX_MEM(BPF_DW, BPF_REG_1, BPF_REG_8, offsetof(struct numbers, due)));
	bpf_asm_jump(a, BPF_JMP_REG(BPF_JGT, BPF_REG_1, BPF_REG_0), early);
	bpf_asm_emit(a, BPF_MOV64_REG(BPF_REG_2, BPF_REG_1));
	bpf_asm_emit(a, BPF_ALU64_IMM(BPF_ADD, BPF_REG_2, BEHIND_NS));
	bpf_asm_jump(a, BPF_JMP_REG(BPF_JGT, BPF_REG_2, BPF_REG_0), in_time);
	bpf_asm_emit(a, BPF_MOV64_REG(BPF_REG_1, BPF_REG_0));
	bpf_asm_place(a, in_time);
	bpf_asm_emit(a, BPF_ALU64_REG(BPF_ADD, BPF_REG_1, BPF_REG_6));
	bpf_asm_emit(a, BPF_STX_MEM(BPF_DW, BPF_REG_8, BPF_REG_1, offsetof(struct numbers, due)));
	bpf_asm_place(a, paced);
}

/* r9: the frame; r8: the numbers; r1: that of this frame. */
static void emit_number(struct bpf_asm *a, int numbers, unsigned early, unsigned abort)
{
	bpf_asm_emit(a, BPF_ST_MEM(BPF_W, FP, -4, 0));
	bpf_asm_load_map(a, BPF_REG_1, numbers);
	bpf_asm_emit(a, BPF_MOV64_REG(BPF_REG_2, FP));
	bpf_asm_emit(a, BPF_ALU64_IMM(BPF_ADD, BPF_REG_2, -4));
	bpf_asm_emit(a, BPF_CALL_HELPER(BPF_FUNC_map_lookup_elem));
	bpf_asm_jump(a, BPF_JMP_IMM(BPF_JEQ, BPF_REG_0, 0), abort);
	bpf_asm_emit(a, BPF_MOV64_REG(BPF_REG_8, BPF_REG_0));
	emit_pace(a, early);
	bpf_asm_emit(a, BPF_LDX_MEM(BPF_DW, BPF_REG_1, BPF_REG_8, offsetof(struct numbers, made)));
	bpf_asm_emit(a, BPF_MOV64_REG(BPF_REG_2, BPF_REG_1));
	bpf_asm_emit(a, BPF_ALU64_IMM(BPF_ADD, BPF_REG_2, 1));
	bpf_asm_emit(a, BPF_STX_MEM(BPF_DW, BPF_REG_8, BPF_REG_2, offsetof(struct numbers, made))); /* one thread runs it: no need to be atomic */
}

/* The pages come back as the receiver left them (TTL counted down, say), so all headers are written each time. */
static void emit_headers(struct bpf_asm *a, const uint8_t *frame)
{
	for (int at = 0; at < HEADERS; at += 2) {
		uint16_t value;

		memcpy(&value, frame + at, sizeof(value));
		if (at != SOURCE_PORT)
			bpf_asm_emit(a, BPF_ST_MEM(BPF_H, BPF_REG_9, at, value));
	}
}

static void write_program(struct bpf_asm *a, int numbers, int ifindex, const uint8_t *frame, uint16_t first_port,
			  uint32_t flows)
{
	unsigned abort, early;

	bpf_asm_init(a);
	abort = bpf_asm_label(a);
	early = bpf_asm_label(a);
	bpf_asm_emit(a, BPF_LDX_MEM(BPF_W, BPF_REG_9, BPF_REG_1, offsetof(struct xdp_md, data)));
	bpf_asm_emit(a, BPF_LDX_MEM(BPF_W, BPF_REG_2, BPF_REG_1, offsetof(struct xdp_md, data_end)));
	bpf_asm_emit(a, BPF_MOV64_REG(BPF_REG_3, BPF_REG_9));
	bpf_asm_emit(a, BPF_ALU64_IMM(BPF_ADD, BPF_REG_3, HEADERS));
	bpf_asm_jump(a, BPF_JMP_REG(BPF_JGT, BPF_REG_3, BPF_REG_2), abort);
	emit_number(a, numbers, early, abort);
	emit_headers(a, frame);
	bpf_asm_emit(a, BPF_ALU64_IMM(BPF_MOD, BPF_REG_1, (int)flows));
	bpf_asm_emit(a, BPF_ALU64_IMM(BPF_ADD, BPF_REG_1, first_port));
	bpf_asm_emit(a, BPF_TO_HOST(BPF_REG_1, 16));
	bpf_asm_emit(a, BPF_STX_MEM(BPF_H, BPF_REG_9, BPF_REG_1, SOURCE_PORT));
	bpf_asm_emit(a, BPF_MOV64_IMM(BPF_REG_1, ifindex));
	bpf_asm_emit(a, BPF_MOV64_IMM(BPF_REG_2, 0));
	bpf_asm_emit(a, BPF_CALL_HELPER(BPF_FUNC_redirect));
	bpf_asm_emit(a, BPF_EXIT_INSN());
	bpf_asm_place(a, early);
	bpf_asm_emit(a, BPF_MOV64_IMM(BPF_REG_0, XDP_DROP)); /* the page is used again at once */
	bpf_asm_emit(a, BPF_EXIT_INSN());
	bpf_asm_place(a, abort);
	bpf_asm_emit(a, BPF_MOV64_IMM(BPF_REG_0, XDP_ABORTED));
	bpf_asm_emit(a, BPF_EXIT_INSN());
}

int live_frames_open(struct live_frames *live, int ifindex, const uint8_t *frame, uint32_t length, uint16_t first_port,
		     uint32_t flows)
{
	struct bpf_asm a;
	int error;

	*live = (struct live_frames){ .program = -1, .numbers = -1, .frame = frame, .length = length };
	live->numbers = bpf_sys_map_create(BPF_MAP_TYPE_ARRAY, "vipmux_numbers", 4, sizeof(struct numbers), 1, 0);
	if (live->numbers < 0)
		return live->numbers;
	write_program(&a, live->numbers, ifindex, frame, first_port, flows);
	error = bpf_asm_finish(&a);
	if (!error) {
		live->program = bpf_sys_program_load(BPF_PROG_TYPE_XDP, "vipmux_frames", a.insns, a.count, NULL, 0);
		error = live->program < 0 ? live->program : 0;
	}
	if (error)
		live_frames_close(live);
	return error;
}

int live_frames_run(struct live_frames *live, uint32_t count)
{
	return bpf_sys_program_run_live(live->program, live->frame, live->length, count, BATCH);
}

int live_frames_pace(struct live_frames *live, double rate)
{
	struct numbers numbers = { 0 };
	uint32_t key = 0;

	bpf_sys_map_lookup(live->numbers, &key, &numbers);
	numbers.due = 0;
	numbers.interval = rate > 0 ? (uint64_t)(1e9 / rate + 0.5) : 0;
	return bpf_sys_map_update(live->numbers, &key, &numbers);
}

uint64_t live_frames_made(const struct live_frames *live)
{
	struct numbers numbers = { 0 };
	uint32_t key = 0;

	bpf_sys_map_lookup(live->numbers, &key, &numbers);
	return numbers.made;
}

void live_frames_close(struct live_frames *live)
{
	if (live->program >= 0)
		close(live->program);
	if (live->numbers >= 0)
		close(live->numbers);
	live->program = live->numbers = -1;
}
