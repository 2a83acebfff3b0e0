/* SPDX-License-Identifier: Apache-2.0 */
/* See tunnel_gso.h. */
#include "bpf/tunnel_gso.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_ether.h>
#include <linux/pkt_cls.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>
#include <unistd.h>

#include "bpf/assembler.h"
#include "bpf/bpf_syscalls.h"

#define NAME_PROGRAM "vipmux_whole"
#define FP BPF_REG_10
#define STACK_EXTRA (-48)                          /* what lies between link header and outer header, */
#define STACK_OUTER (STACK_EXTRA + (int)TUNNEL_GSO_TAP_EXTRA) /* and the outer header, up to 40 bytes */

/* A family's outer header. */
struct layout {
	int header;     /* its length */
	int protocol;   /* offset of the next protocol */
	int tunnel;     /* its value for a tunnel of the same family */
	int encap_flag;
};

static const struct layout layout4 = { 20, 9, IPPROTO_IPIP, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 };
static const struct layout layout6 = { 40, 6, IPPROTO_IPV6, BPF_F_ADJ_ROOM_ENCAP_L3_IPV6 };

struct place {
	int link;  /* bytes of the link header */
	int extra; /* bytes between it and the outer header */
};

static const struct place places[] = {
	[TUNNEL_GSO_TUN] = { 0, 0 },
	[TUNNEL_GSO_TAP] = { ETH_HLEN, TUNNEL_GSO_TAP_EXTRA },
};

/* r6: the packet */
static void emit_packet_and_stack(struct bpf_asm *a, int offset, int stack, int length)
{
	bpf_asm_emit(a, BPF_MOV64_REG(BPF_REG_1, BPF_REG_6));
	bpf_asm_emit(a, BPF_MOV64_IMM(BPF_REG_2, offset));
	bpf_asm_emit(a, BPF_MOV64_REG(BPF_REG_3, FP));
	bpf_asm_emit(a, BPF_ALU64_IMM(BPF_ADD, BPF_REG_3, stack));
	bpf_asm_emit(a, BPF_MOV64_IMM(BPF_REG_4, length));
}

static void emit_adjust_room(struct bpf_asm *a, int by, int flags, unsigned on_failure)
{
	bpf_asm_emit(a, BPF_MOV64_REG(BPF_REG_1, BPF_REG_6));
	bpf_asm_emit(a, BPF_MOV64_IMM(BPF_REG_2, by));
	bpf_asm_emit(a, BPF_MOV64_IMM(BPF_REG_3, BPF_ADJ_ROOM_MAC));
	/* Segments are as large as their sender made them: that they fit was decided before. */
	bpf_asm_emit(a, BPF_MOV64_IMM(BPF_REG_4, (int)BPF_F_ADJ_ROOM_FIXED_GSO | flags));
	bpf_asm_emit(a, BPF_CALL_HELPER(BPF_FUNC_skb_adjust_room));
	bpf_asm_jump(a, BPF_JMP_IMM(BPF_JNE, BPF_REG_0, 0), on_failure);
}

/* Leaves with r0 where the packet is one of ours; goes to `other` where it is none. */
static void emit_family(struct bpf_asm *a, const struct layout *l, const struct place *p, unsigned other, unsigned drop)
{
	emit_packet_and_stack(a, p->link, STACK_OUTER - p->extra, p->extra + l->header);
	bpf_asm_emit(a, BPF_CALL_HELPER(BPF_FUNC_skb_load_bytes));
	bpf_asm_jump(a, BPF_JMP_IMM(BPF_JNE, BPF_REG_0, 0), other);
	bpf_asm_emit(a, BPF_LDX_MEM(BPF_B, BPF_REG_1, FP, STACK_OUTER + l->protocol));
	bpf_asm_jump(a, BPF_JMP_IMM(BPF_JNE, BPF_REG_1, l->tunnel), other);
	emit_adjust_room(a, -(p->extra + l->header), 0, drop);
	emit_adjust_room(a, l->header, l->encap_flag, drop);
	emit_packet_and_stack(a, p->link, STACK_OUTER, l->header);
	bpf_asm_emit(a, BPF_MOV64_IMM(BPF_REG_5, 0));
	bpf_asm_emit(a, BPF_CALL_HELPER(BPF_FUNC_skb_store_bytes));
	bpf_asm_jump(a, BPF_JMP_IMM(BPF_JNE, BPF_REG_0, 0), drop);
	if (p->extra) {
		bpf_asm_emit(a, BPF_LDX_MEM(BPF_W, BPF_REG_1, FP, STACK_EXTRA));
		bpf_asm_emit(a, BPF_MOV64_IMM(BPF_REG_2, 0));
		bpf_asm_emit(a, BPF_CALL_HELPER(BPF_FUNC_redirect));
	} else {
		bpf_asm_emit(a, BPF_MOV64_IMM(BPF_REG_0, TC_ACT_UNSPEC));
	}
	bpf_asm_emit(a, BPF_EXIT_INSN());
}

static void emit_verdict(struct bpf_asm *a, int verdict)
{
	bpf_asm_emit(a, BPF_MOV64_IMM(BPF_REG_0, verdict));
	bpf_asm_emit(a, BPF_EXIT_INSN());
}

/* only_super: what is no super-packet is right as it is. */
static void emit_program(struct bpf_asm *a, const struct place *p, bool only_super)
{
	unsigned ipv4 = bpf_asm_label(a), ipv6 = bpf_asm_label(a), other = bpf_asm_label(a), drop = bpf_asm_label(a);

	bpf_asm_emit(a, BPF_MOV64_REG(BPF_REG_6, BPF_REG_1));
	if (only_super) {
		bpf_asm_emit(a, BPF_LDX_MEM(BPF_W, BPF_REG_2, BPF_REG_6, offsetof(struct __sk_buff, gso_size)));
		bpf_asm_jump(a, BPF_JMP_IMM(BPF_JEQ, BPF_REG_2, 0), other);
	}
	bpf_asm_emit(a, BPF_LDX_MEM(BPF_W, BPF_REG_2, BPF_REG_6, offsetof(struct __sk_buff, protocol)));
	bpf_asm_jump(a, BPF_JMP_IMM(BPF_JEQ, BPF_REG_2, htons(ETH_P_IP)), ipv4);
	bpf_asm_jump(a, BPF_JMP_IMM(BPF_JEQ, BPF_REG_2, htons(ETH_P_IPV6)), ipv6);
	bpf_asm_jump(a, BPF_JMP_ALWAYS(), other);
	bpf_asm_place(a, ipv4);
	emit_family(a, &layout4, p, other, drop);
	bpf_asm_place(a, ipv6);
	emit_family(a, &layout6, p, other, drop);
	bpf_asm_place(a, other);
	emit_verdict(a, p->extra ? TC_ACT_SHOT : TC_ACT_UNSPEC);
	bpf_asm_place(a, drop);
	emit_verdict(a, TC_ACT_SHOT);
}

static int load(const struct place *p, bool only_super, char *log, uint32_t log_size)
{
	struct bpf_asm a;
	int rc;

	bpf_asm_init(&a);
	emit_program(&a, p, only_super);
	rc = bpf_asm_finish(&a);
	return rc ? rc : bpf_sys_program_load(BPF_PROG_TYPE_SCHED_CLS, NAME_PROGRAM, a.insns, a.count, log, log_size);
}

/*
 * Whether the kernel knows the flags: it looks at them only when a packet comes, and no packet that bpf(2) makes is a
 * super-packet.  So a twin of the program that takes any tunnel packet is tried on one.
 */
static int try_flags(char *log, uint32_t log_size)
{
	static const struct place ethernet = { ETH_HLEN, 0 };
	static const uint8_t frame[14 + 20 + 20 + 20] = {
		2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0,
		0x45, 0, 0, 60, 0, 0, 0x40, 0, 64, 4, 0, 0, 192, 0, 2, 2, 192, 0, 2, 1,
		0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0, 192, 0, 2, 4, 192, 0, 2, 3,
	};
	uint8_t out[sizeof(frame)];
	uint32_t out_len = sizeof(out), verdict = 0;
	int program = load(&ethernet, false, log, log_size), rc;

	if (program < 0)
		return program;
	rc = bpf_sys_program_test(program, frame, sizeof(frame), out, &out_len, &verdict);
	close(program);
	if (rc)
		return rc;
	return verdict == TC_ACT_SHOT || out_len != sizeof(frame) || memcmp(out, frame, sizeof(frame)) ? -EOPNOTSUPP : 0;
}

int tunnel_gso_load(uint32_t place, char *log, uint32_t log_size)
{
	int rc;

	if (place > TUNNEL_GSO_TAP)
		return -EINVAL;
	rc = try_flags(log, log_size);
	return rc ? rc : load(&places[place], true, log, log_size);
}

int tunnel_gso_attach(int program, unsigned ifindex)
{
	return bpf_sys_attach_ingress(program, ifindex);
}
