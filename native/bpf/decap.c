/* SPDX-License-Identifier: Apache-2.0 */
/* See decap.h.  host_pipeline.c is the same in userspace: whoever changes a check changes both. */
#include "bpf/decap.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_ether.h>
#include <linux/pkt_cls.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bpf/assembler.h"
#include "bpf/bpf_syscalls.h"
#include "host/host_reason.h"

#define NAME_PROGRAM "vipmux_decap"
#define NAME_MUXES "vipmux_muxes"
#define NAME_VIPS "vipmux_vips"
#define NAME_COUNTS "vipmux_counts"
#define MAX_MUXES 1024
#define MAX_VIPS 65536 /* nothing is allocated ahead */

/* Newer than the oldest headers this builds with; kernels from 6.3 know them. */
#define ADJ_ROOM_DECAP_L3_IPV4 (1u << 7)
#define ADJ_ROOM_DECAP_L3_IPV6 (1u << 8)

struct decap {
	int program;
	int muxes;  /* hash, key: 16-byte address, value: 1 */
	int vips;   /* longest prefix match, key: struct lpm_key, value: 1 */
	int counts; /* per-CPU array by enum host_reason */
};

struct lpm_key {
	uint32_t length;
	uint8_t address[16];
};

/*
 * The program: a section for each family outside, and behind them one for each family inside.
 *
 *	not a tunnel packet to us                     -> continue with the next filter
 *	outer source is no MUX                        -> drop
 *	outer header with options, fragment, wrong    -> drop
 *	in UDP: no GUE of ours                        -> drop
 *	inner packet incomplete, expired, or to no VIP-> drop
 *	combine ECN, take all that is before it off, continue
 *
 * Packets are read with a helper that copies to the stack, relative to the network header: it works for paged and
 * for super-packets, and whatever the link header.
 *
 * Registers: r6 the packet; r7 the outer ECN bits, later the reason; r8 where the inner packet begins, later the verdict; r9 what
 * is in the tunnel, by its protocol number, later the inner byte with the ECN bits.
 */
enum {
	STACK_INNER = -40,   /* as in the packet; each has room for an IPv6 header */
	STACK_OUTER = -80,
	STACK_UDP = -96,     /* with the four bytes behind it */
	STACK_MUX = -112,    /* key of the map of MUXes */
	STACK_VIP = -136,    /* key of the map of VIPs; 20 bytes, 4 of padding */
	STACK_LENGTH = -140, /* of the packet from its outer header on, as that says */
	STACK_REASON = -144,
};

#define FP BPF_REG_10
#define UDP_HEADER 8
#define GUE_HEADER 4

struct labels {
	unsigned other;               /* not ours */
	unsigned drop;                /* r7 holds the reason */
	unsigned finish;              /* r7 and r8 are set: count and leave */
	unsigned inner4, inner6;
	unsigned reason[HOST_REASON_COUNT]; /* set r7, go to drop */
};

/* Where things lie in the header of a family. */
struct layout {
	int header;      /* its length, without options */
	int protocol;    /* offsets */
	int source;
	int destination;
	int hops;
	int ecn_byte;    /* of the byte with the ECN bits */
	int ecn_shift;
	unsigned room_flag;
};

static const struct layout layout4 = { 20, 9, 12, 16, 8, 1, 0, ADJ_ROOM_DECAP_L3_IPV4 };
static const struct layout layout6 = { 40, 6, 8, 24, 7, 1, 4, ADJ_ROOM_DECAP_L3_IPV6 };

/* From the offset in r8, or from 0. */
static void emit_load_bytes(struct bpf_asm *a, bool from_r8, int stack, int length, unsigned on_failure)
{
	bpf_asm_emit(a, BPF_MOV64_REG(BPF_REG_1, BPF_REG_6));
	if (from_r8)
		bpf_asm_emit(a, BPF_MOV64_REG(BPF_REG_2, BPF_REG_8));
	else
		bpf_asm_emit(a, BPF_MOV64_IMM(BPF_REG_2, 0));
	bpf_asm_emit(a, BPF_MOV64_REG(BPF_REG_3, FP));
	bpf_asm_emit(a, BPF_ALU64_IMM(BPF_ADD, BPF_REG_3, stack));
	bpf_asm_emit(a, BPF_MOV64_IMM(BPF_REG_4, length));
	bpf_asm_emit(a, BPF_MOV64_IMM(BPF_REG_5, BPF_HDR_START_NET));
	bpf_asm_emit(a, BPF_CALL_HELPER(BPF_FUNC_skb_load_bytes_relative));
	bpf_asm_jump(a, BPF_JMP_IMM(BPF_JNE, BPF_REG_0, 0), on_failure);
}

static void emit_byte(struct bpf_asm *a, unsigned dst, int at)
{
	bpf_asm_emit(a, BPF_LDX_MEM(BPF_B, dst, FP, at));
}

static void emit_half(struct bpf_asm *a, unsigned dst, int at)
{
	bpf_asm_emit(a, BPF_LDX_MEM(BPF_H, dst, FP, at));
	bpf_asm_emit(a, BPF_TO_HOST(dst, 16));
}

/* Copies an address on the stack to a map key there, in 4-byte steps, IPv4 in its mapped form. */
static void emit_address_key(struct bpf_asm *a, const struct layout *l, int from, int key)
{
	int at = key;

	if (l == &layout4) {
		bpf_asm_emit(a, BPF_ST_MEM(BPF_W, FP, key, 0));
		bpf_asm_emit(a, BPF_ST_MEM(BPF_W, FP, key + 4, 0));
		bpf_asm_emit(a, BPF_ST_MEM(BPF_W, FP, key + 8, (int)htonl(0xffff)));
		at = key + 12;
	}
	for (; at < key + 16; at += 4, from += 4) {
		bpf_asm_emit(a, BPF_LDX_MEM(BPF_W, BPF_REG_1, FP, from));
		bpf_asm_emit(a, BPF_STX_MEM(BPF_W, FP, BPF_REG_1, at));
	}
}

static void emit_lookup(struct bpf_asm *a, int map, int key)
{
	bpf_asm_load_map(a, BPF_REG_1, map);
	bpf_asm_emit(a, BPF_MOV64_REG(BPF_REG_2, FP));
	bpf_asm_emit(a, BPF_ALU64_IMM(BPF_ADD, BPF_REG_2, key));
	bpf_asm_emit(a, BPF_CALL_HELPER(BPF_FUNC_map_lookup_elem));
}

/* dst = what there is from the network header on. */
static void emit_present(struct bpf_asm *a, unsigned dst, unsigned link_header)
{
	bpf_asm_emit(a, BPF_LDX_MEM(BPF_W, dst, BPF_REG_6, offsetof(struct __sk_buff, len)));
	bpf_asm_emit(a, BPF_ALU64_IMM(BPF_SUB, dst, (int)link_header));
}

/* Goes on only for UDP to the port of tunnels; a later fragment has none. */
static void emit_is_gue(struct bpf_asm *a, const struct layout *l, uint32_t port, const struct labels *to)
{
	if (l == &layout4) {
		emit_half(a, BPF_REG_1, STACK_OUTER + 6);
		bpf_asm_jump(a, BPF_JMP_IMM(BPF_JSET, BPF_REG_1, 0x1fff), to->other);
	}
	emit_load_bytes(a, true, STACK_UDP, UDP_HEADER + GUE_HEADER, to->other);
	emit_half(a, BPF_REG_1, STACK_UDP + 2);
	bpf_asm_jump(a, BPF_JMP_IMM(BPF_JNE, BPF_REG_1, (int)port), to->other);
}

/* Goes on only for a tunnel packet to the agent's address; anything else is none of our business. */
static void emit_is_ours(struct bpf_asm *a, const struct layout *l, const uint8_t address[16], uint32_t gue_port,
			 const struct labels *to)
{
	int skip = l == &layout4 ? 12 : 0; /* the mapped part is not in the header */
	unsigned tunnel = bpf_asm_label(a);
	uint32_t word;

	emit_load_bytes(a, false, STACK_OUTER, l->header, to->other);
	for (int i = skip; i < 16; i += 4) {
		memcpy(&word, address + i, sizeof(word));
		bpf_asm_emit(a, BPF_LDX_MEM(BPF_W, BPF_REG_1, FP, STACK_OUTER + l->destination + i - skip));
		bpf_asm_load_constant(a, BPF_REG_2, word); /* an immediate would be sign-extended */
		bpf_asm_jump(a, BPF_JMP_REG(BPF_JNE, BPF_REG_1, BPF_REG_2), to->other);
	}
	bpf_asm_emit(a, BPF_MOV64_IMM(BPF_REG_8, l->header));
	if (l == &layout4) {
		emit_byte(a, BPF_REG_8, STACK_OUTER);
		bpf_asm_emit(a, BPF_ALU64_IMM(BPF_AND, BPF_REG_8, 15));
		bpf_asm_emit(a, BPF_ALU64_IMM(BPF_LSH, BPF_REG_8, 2));
	}
	emit_byte(a, BPF_REG_9, STACK_OUTER + l->protocol);
	bpf_asm_jump(a, BPF_JMP_IMM(BPF_JEQ, BPF_REG_9, IPPROTO_IPIP), tunnel);
	bpf_asm_jump(a, BPF_JMP_IMM(BPF_JEQ, BPF_REG_9, IPPROTO_IPV6), tunnel);
	if (gue_port) {
		bpf_asm_jump(a, BPF_JMP_IMM(BPF_JNE, BPF_REG_9, IPPROTO_UDP), to->other);
		emit_is_gue(a, l, gue_port, to);
	} else {
		bpf_asm_jump(a, BPF_JMP_ALWAYS(), to->other);
	}
	bpf_asm_place(a, tunnel);
}

static void emit_is_trusted(struct bpf_asm *a, const struct layout *l, int muxes, const struct labels *to)
{
	emit_address_key(a, l, STACK_OUTER + l->source, STACK_MUX);
	emit_lookup(a, muxes, STACK_MUX);
	bpf_asm_jump(a, BPF_JMP_IMM(BPF_JEQ, BPF_REG_0, 0), to->reason[HOST_UNTRUSTED_SOURCE]);
}

/* r1 = the sum of r1's halves, carries and all. */
static void emit_fold(struct bpf_asm *a)
{
	bpf_asm_emit(a, BPF_MOV64_REG(BPF_REG_2, BPF_REG_1));
	bpf_asm_emit(a, BPF_ALU64_IMM(BPF_RSH, BPF_REG_2, 16));
	bpf_asm_emit(a, BPF_ALU64_IMM(BPF_AND, BPF_REG_1, 0xffff));
	bpf_asm_emit(a, BPF_ALU64_REG(BPF_ADD, BPF_REG_1, BPF_REG_2));
}

/* No options, no fragment, checksum right.  (An IPv6 outer header with extensions does not name the tunnel as next protocol.) */
static void emit_outer_is_plain(struct bpf_asm *a, const struct labels *to)
{
	emit_byte(a, BPF_REG_1, STACK_OUTER);
	bpf_asm_jump(a, BPF_JMP_IMM(BPF_JNE, BPF_REG_1, 0x45), to->reason[HOST_OUTER_OPTIONS]);
	emit_half(a, BPF_REG_1, STACK_OUTER + 6);
	bpf_asm_jump(a, BPF_JMP_IMM(BPF_JSET, BPF_REG_1, 0x3fff), to->reason[HOST_OUTER_FRAGMENT]);
	bpf_asm_emit(a, BPF_MOV64_IMM(BPF_REG_1, 0));
	bpf_asm_emit(a, BPF_MOV64_IMM(BPF_REG_2, 0));
	bpf_asm_emit(a, BPF_MOV64_REG(BPF_REG_3, FP));
	bpf_asm_emit(a, BPF_ALU64_IMM(BPF_ADD, BPF_REG_3, STACK_OUTER));
	bpf_asm_emit(a, BPF_MOV64_IMM(BPF_REG_4, 20));
	bpf_asm_emit(a, BPF_MOV64_IMM(BPF_REG_5, 0));
	bpf_asm_emit(a, BPF_CALL_HELPER(BPF_FUNC_csum_diff));
	bpf_asm_emit(a, BPF_MOV64_REG(BPF_REG_1, BPF_REG_0));
	bpf_asm_emit(a, BPF_ALU64_IMM(BPF_LSH, BPF_REG_1, 32)); /* 32 bits of it count */
	bpf_asm_emit(a, BPF_ALU64_IMM(BPF_RSH, BPF_REG_1, 32));
	emit_fold(a);
	emit_fold(a);
	bpf_asm_jump(a, BPF_JMP_IMM(BPF_JNE, BPF_REG_1, 0xffff), to->reason[HOST_OUTER_CHECKSUM]);
}

/* How long the packet is from its outer header on; a header says 0 where the kernel merged more than that can hold. */
static void emit_outer_length(struct bpf_asm *a, const struct layout *l, unsigned link_header, const struct labels *to)
{
	unsigned merged = bpf_asm_label(a), known = bpf_asm_label(a);

	emit_present(a, BPF_REG_2, link_header);
	emit_half(a, BPF_REG_1, STACK_OUTER + (l == &layout4 ? 2 : 4));
	bpf_asm_jump(a, BPF_JMP_IMM(BPF_JEQ, BPF_REG_1, 0), merged);
	if (l == &layout6)
		bpf_asm_emit(a, BPF_ALU64_IMM(BPF_ADD, BPF_REG_1, 40));
	bpf_asm_jump(a, BPF_JMP_REG(BPF_JGT, BPF_REG_1, BPF_REG_2), to->reason[HOST_OUTER_LENGTH]);
	bpf_asm_jump(a, BPF_JMP_ALWAYS(), known);
	bpf_asm_place(a, merged);
	bpf_asm_emit(a, BPF_MOV64_REG(BPF_REG_1, BPF_REG_2));
	bpf_asm_place(a, known);
	bpf_asm_emit(a, BPF_STX_MEM(BPF_W, FP, BPF_REG_1, STACK_LENGTH));
}

/* r9 = what is in UDP, r8 where it begins: behind four bytes that name it, or it names itself by its version. */
static void emit_gue(struct bpf_asm *a, const struct labels *to)
{
	unsigned bad = to->reason[HOST_GUE_MALFORMED], bare = bpf_asm_label(a), done = bpf_asm_label(a);

	bpf_asm_jump(a, BPF_JMP_IMM(BPF_JNE, BPF_REG_9, IPPROTO_UDP), done);
	emit_half(a, BPF_REG_1, STACK_UDP + 4);
	bpf_asm_emit(a, BPF_ALU64_REG(BPF_ADD, BPF_REG_1, BPF_REG_8));
	bpf_asm_emit(a, BPF_LDX_MEM(BPF_W, BPF_REG_2, FP, STACK_LENGTH));
	bpf_asm_jump(a, BPF_JMP_REG(BPF_JNE, BPF_REG_1, BPF_REG_2), to->reason[HOST_OUTER_LENGTH]);
	emit_half(a, BPF_REG_1, STACK_UDP + 6);
	bpf_asm_jump(a, BPF_JMP_IMM(BPF_JNE, BPF_REG_1, 0), bad);
	bpf_asm_emit(a, BPF_ALU64_IMM(BPF_ADD, BPF_REG_8, UDP_HEADER));
	emit_byte(a, BPF_REG_1, STACK_UDP + UDP_HEADER);
	bpf_asm_jump(a, BPF_JMP_IMM(BPF_JNE, BPF_REG_1, 0), bare);
	bpf_asm_emit(a, BPF_ALU64_IMM(BPF_ADD, BPF_REG_8, GUE_HEADER));
	emit_half(a, BPF_REG_1, STACK_UDP + UDP_HEADER + 2);
	bpf_asm_jump(a, BPF_JMP_IMM(BPF_JNE, BPF_REG_1, 0), bad);
	emit_byte(a, BPF_REG_9, STACK_UDP + UDP_HEADER + 1);
	bpf_asm_jump(a, BPF_JMP_IMM(BPF_JEQ, BPF_REG_9, IPPROTO_IPIP), done);
	bpf_asm_jump(a, BPF_JMP_IMM(BPF_JEQ, BPF_REG_9, IPPROTO_IPV6), done);
	bpf_asm_jump(a, BPF_JMP_ALWAYS(), bad);
	bpf_asm_place(a, bare);
	bpf_asm_emit(a, BPF_ALU64_IMM(BPF_RSH, BPF_REG_1, 4));
	bpf_asm_emit(a, BPF_MOV64_IMM(BPF_REG_9, IPPROTO_IPIP));
	bpf_asm_jump(a, BPF_JMP_IMM(BPF_JEQ, BPF_REG_1, 4), done);
	bpf_asm_emit(a, BPF_MOV64_IMM(BPF_REG_9, IPPROTO_IPV6));
	bpf_asm_jump(a, BPF_JMP_IMM(BPF_JNE, BPF_REG_1, 6), bad);
	bpf_asm_place(a, done);
}

static void emit_ecn_bits(struct bpf_asm *a, const struct layout *l, unsigned dst, int header)
{
	emit_byte(a, dst, header + l->ecn_byte);
	bpf_asm_emit(a, BPF_ALU64_IMM(BPF_RSH, dst, l->ecn_shift));
	bpf_asm_emit(a, BPF_ALU64_IMM(BPF_AND, dst, 3));
}

static void emit_outer(struct bpf_asm *a, const struct layout *l, const struct decap_settings *settings, unsigned room_flags,
		       const struct decap *maps, const struct labels *to)
{
	unsigned same = l == &layout4 ? to->inner4 : to->inner6, other = l == &layout4 ? to->inner6 : to->inner4;

	emit_is_ours(a, l, l == &layout4 ? settings->address : settings->address6, settings->gue_port, to);
	emit_is_trusted(a, l, maps->muxes, to);
	if (l == &layout4)
		emit_outer_is_plain(a, to);
	emit_outer_length(a, l, settings->link_header, to);
	if (settings->gue_port)
		emit_gue(a, to);
	emit_ecn_bits(a, l, BPF_REG_7, STACK_OUTER);
	bpf_asm_jump(a, BPF_JMP_IMM(BPF_JEQ, BPF_REG_9, l == &layout4 ? IPPROTO_IPIP : IPPROTO_IPV6), same);
	bpf_asm_jump(a, BPF_JMP_ALWAYS(), room_flags ? other : to->reason[HOST_OTHER_FAMILY]);
}

/* ---- what is inside ---- */

/* r1 = length of the inner packet as its header says, 0 where the kernel merged more than the field can hold. */
static void emit_inner_length(struct bpf_asm *a, const struct layout *l, const struct labels *to, unsigned known)
{
	unsigned bad = to->reason[HOST_INNER_MALFORMED];

	if (l == &layout4) {
		emit_byte(a, BPF_REG_2, STACK_INNER);
		bpf_asm_emit(a, BPF_ALU64_IMM(BPF_AND, BPF_REG_2, 15));
		bpf_asm_jump(a, BPF_JMP_IMM(BPF_JLT, BPF_REG_2, 5), bad);
		bpf_asm_emit(a, BPF_ALU64_IMM(BPF_LSH, BPF_REG_2, 2));
		emit_half(a, BPF_REG_1, STACK_INNER + 2);
		bpf_asm_jump(a, BPF_JMP_IMM(BPF_JEQ, BPF_REG_1, 0), known);
		bpf_asm_jump(a, BPF_JMP_REG(BPF_JLT, BPF_REG_1, BPF_REG_2), bad);
		return;
	}
	emit_half(a, BPF_REG_1, STACK_INNER + 4);
	bpf_asm_jump(a, BPF_JMP_IMM(BPF_JEQ, BPF_REG_1, 0), known);
	bpf_asm_emit(a, BPF_ALU64_IMM(BPF_ADD, BPF_REG_1, 40));
}

/* The inner header is there, and the packet is as long as it says; the kernel checks the rest (its checksum among others) when
 * it receives the inner packet as its own, but does not mind that there are no hops left. */
static void emit_inner_is_whole(struct bpf_asm *a, const struct layout *l, const struct labels *to)
{
	unsigned bad = to->reason[HOST_INNER_MALFORMED];
	unsigned whole = bpf_asm_label(a);

	emit_load_bytes(a, true, STACK_INNER, l->header, bad);
	emit_byte(a, BPF_REG_1, STACK_INNER);
	bpf_asm_emit(a, BPF_ALU64_IMM(BPF_RSH, BPF_REG_1, 4));
	bpf_asm_jump(a, BPF_JMP_IMM(BPF_JNE, BPF_REG_1, l == &layout4 ? 4 : 6), bad);
	emit_inner_length(a, l, to, whole);
	bpf_asm_emit(a, BPF_ALU64_REG(BPF_ADD, BPF_REG_1, BPF_REG_8));
	bpf_asm_emit(a, BPF_LDX_MEM(BPF_W, BPF_REG_2, FP, STACK_LENGTH));
	bpf_asm_jump(a, BPF_JMP_REG(BPF_JGT, BPF_REG_1, BPF_REG_2), bad);
	bpf_asm_place(a, whole);
	emit_byte(a, BPF_REG_1, STACK_INNER + l->hops);
	bpf_asm_jump(a, BPF_JMP_IMM(BPF_JEQ, BPF_REG_1, 0), to->reason[HOST_INNER_EXPIRED]);
}

static void emit_is_vip(struct bpf_asm *a, const struct layout *l, int vips, const struct labels *to)
{
	bpf_asm_emit(a, BPF_ST_MEM(BPF_W, FP, STACK_VIP, 128));
	emit_address_key(a, l, STACK_INNER + l->destination, STACK_VIP + 4);
	emit_lookup(a, vips, STACK_VIP);
	bpf_asm_jump(a, BPF_JMP_IMM(BPF_JEQ, BPF_REG_0, 0), to->reason[HOST_INNER_NOT_VIP]);
}

/* r1 = the packet, r2 = so far behind the inner packet's beginning, counted from the link header. */
static void emit_packet_and_place(struct bpf_asm *a, unsigned link_header, int behind)
{
	bpf_asm_emit(a, BPF_MOV64_REG(BPF_REG_1, BPF_REG_6));
	bpf_asm_emit(a, BPF_MOV64_REG(BPF_REG_2, BPF_REG_8));
	bpf_asm_emit(a, BPF_ALU64_IMM(BPF_ADD, BPF_REG_2, (int)link_header + behind));
}

/* Writes the inner byte that holds the ECN bits back into the packet; r9 = the new byte. */
static void emit_store_ecn(struct bpf_asm *a, const struct layout *l, unsigned link_header,
			   const struct labels *to)
{
	unsigned failed = to->reason[HOST_DECAP_FAILED];
	int at = STACK_INNER + l->ecn_byte;

	if (l == &layout4) { /* the 16-bit word before and after, as it lies in memory */
		bpf_asm_emit(a, BPF_LDX_MEM(BPF_H, BPF_REG_3, FP, at - 1));
		bpf_asm_emit(a, BPF_STX_MEM(BPF_B, FP, BPF_REG_9, at));
		bpf_asm_emit(a, BPF_LDX_MEM(BPF_H, BPF_REG_4, FP, at - 1));
		emit_packet_and_place(a, link_header, 10);
		bpf_asm_emit(a, BPF_MOV64_IMM(BPF_REG_5, 2));
		bpf_asm_emit(a, BPF_CALL_HELPER(BPF_FUNC_l3_csum_replace));
		bpf_asm_jump(a, BPF_JMP_IMM(BPF_JNE, BPF_REG_0, 0), failed);
	} else {
		bpf_asm_emit(a, BPF_STX_MEM(BPF_B, FP, BPF_REG_9, at));
	}
	emit_packet_and_place(a, link_header, l->ecn_byte);
	bpf_asm_emit(a, BPF_MOV64_REG(BPF_REG_3, FP));
	bpf_asm_emit(a, BPF_ALU64_IMM(BPF_ADD, BPF_REG_3, at));
	bpf_asm_emit(a, BPF_MOV64_IMM(BPF_REG_4, 1));
	/* IPv4: the two changes cancel out in a checksum over the packet; IPv6 has none of its own that would. */
	bpf_asm_emit(a, BPF_MOV64_IMM(BPF_REG_5, l == &layout4 ? 0 : BPF_F_RECOMPUTE_CSUM));
	bpf_asm_emit(a, BPF_CALL_HELPER(BPF_FUNC_skb_store_bytes));
	bpf_asm_jump(a, BPF_JMP_IMM(BPF_JNE, BPF_REG_0, 0), failed);
}

/*
 * RFC 6040, 4.2.  Outer CE: inner becomes CE, but a packet whose sender knows no ECN is dropped.  Outer ECT(1) on
 * inner ECT(0): becomes ECT(1).  Anything else stays as it is inside.
 */
static void emit_combine_ecn(struct bpf_asm *a, const struct layout *l, unsigned link_header,
			     const struct labels *to)
{
	unsigned done = bpf_asm_label(a), marked = bpf_asm_label(a), store = bpf_asm_label(a);

	emit_ecn_bits(a, l, BPF_REG_2, STACK_INNER);
	emit_byte(a, BPF_REG_9, STACK_INNER + l->ecn_byte);
	bpf_asm_jump(a, BPF_JMP_IMM(BPF_JEQ, BPF_REG_7, 3), marked);
	bpf_asm_jump(a, BPF_JMP_IMM(BPF_JNE, BPF_REG_7, 1), done);
	bpf_asm_jump(a, BPF_JMP_IMM(BPF_JNE, BPF_REG_2, 2), done);
	bpf_asm_emit(a, BPF_ALU64_IMM(BPF_XOR, BPF_REG_9, 3 << l->ecn_shift)); /* 10 -> 01 */
	bpf_asm_jump(a, BPF_JMP_ALWAYS(), store);
	bpf_asm_place(a, marked);
	bpf_asm_jump(a, BPF_JMP_IMM(BPF_JEQ, BPF_REG_2, 0), to->reason[HOST_ECN_MISMATCH]);
	bpf_asm_jump(a, BPF_JMP_IMM(BPF_JEQ, BPF_REG_2, 3), done);
	bpf_asm_emit(a, BPF_ALU64_IMM(BPF_OR, BPF_REG_9, 3 << l->ecn_shift));
	bpf_asm_place(a, store);
	emit_store_ecn(a, l, link_header, to);
	bpf_asm_place(a, done);
}

static void emit_inner(struct bpf_asm *a, const struct layout *l, unsigned link_header, unsigned room_flags,
		       const struct decap *maps, const struct labels *to)
{
	emit_inner_is_whole(a, l, to);
	emit_is_vip(a, l, maps->vips, to);
	emit_combine_ecn(a, l, link_header, to);
	bpf_asm_emit(a, BPF_MOV64_REG(BPF_REG_1, BPF_REG_6));
	bpf_asm_emit(a, BPF_MOV64_IMM(BPF_REG_2, 0));
	bpf_asm_emit(a, BPF_ALU64_REG(BPF_SUB, BPF_REG_2, BPF_REG_8));
	bpf_asm_emit(a, BPF_MOV64_IMM(BPF_REG_3, BPF_ADJ_ROOM_MAC));
	bpf_asm_emit(a, BPF_MOV64_IMM(BPF_REG_4, (int)(BPF_F_ADJ_ROOM_FIXED_GSO | (room_flags & l->room_flag))));
	bpf_asm_emit(a, BPF_CALL_HELPER(BPF_FUNC_skb_adjust_room));
	bpf_asm_jump(a, BPF_JMP_IMM(BPF_JNE, BPF_REG_0, 0), to->reason[HOST_DECAP_FAILED]);
	bpf_asm_emit(a, BPF_MOV64_IMM(BPF_REG_7, HOST_DECAPSULATED));
	bpf_asm_emit(a, BPF_MOV64_IMM(BPF_REG_8, TC_ACT_UNSPEC)); /* other filters may look at the inner packet */
	bpf_asm_jump(a, BPF_JMP_ALWAYS(), to->finish);
}

static void emit_endings(struct bpf_asm *a, int counts, const struct labels *to)
{
	unsigned leave = bpf_asm_label(a);

	for (unsigned i = 0; i < HOST_REASON_COUNT; i++) {
		if (!bpf_asm_is_wanted(a, to->reason[i]))
			continue;
		bpf_asm_place(a, to->reason[i]);
		bpf_asm_emit(a, BPF_MOV64_IMM(BPF_REG_7, (int)i));
		bpf_asm_jump(a, BPF_JMP_ALWAYS(), to->drop);
	}
	bpf_asm_place(a, to->drop);
	bpf_asm_emit(a, BPF_MOV64_IMM(BPF_REG_8, TC_ACT_SHOT));
	bpf_asm_place(a, to->finish);
	bpf_asm_emit(a, BPF_STX_MEM(BPF_W, FP, BPF_REG_7, STACK_REASON));
	emit_lookup(a, counts, STACK_REASON);
	bpf_asm_jump(a, BPF_JMP_IMM(BPF_JEQ, BPF_REG_0, 0), leave);
	bpf_asm_emit(a, BPF_LDX_MEM(BPF_DW, BPF_REG_1, BPF_REG_0, 0)); /* this CPU's own: a plain add is enough */
	bpf_asm_emit(a, BPF_ALU64_IMM(BPF_ADD, BPF_REG_1, 1));
	bpf_asm_emit(a, BPF_STX_MEM(BPF_DW, BPF_REG_0, BPF_REG_1, 0));
	bpf_asm_place(a, leave);
	bpf_asm_emit(a, BPF_MOV64_REG(BPF_REG_0, BPF_REG_8));
	bpf_asm_emit(a, BPF_EXIT_INSN());
	bpf_asm_place(a, to->other);
	bpf_asm_emit(a, BPF_MOV64_IMM(BPF_REG_0, TC_ACT_UNSPEC));
	bpf_asm_emit(a, BPF_EXIT_INSN());
}

static bool is_set(const uint8_t address[16])
{
	static const uint8_t none[16];

	return memcmp(address, none, sizeof(none)) != 0;
}

/* The tests come in the order given here, the sections behind them. */
static void emit_program(struct bpf_asm *a, const struct decap_settings *settings, unsigned room_flags,
			 const struct decap *maps)
{
	struct labels to = { .other = bpf_asm_label(a), .drop = bpf_asm_label(a), .finish = bpf_asm_label(a),
			     .inner4 = bpf_asm_label(a), .inner6 = bpf_asm_label(a) };
	unsigned ipv4 = bpf_asm_label(a), ipv6 = bpf_asm_label(a);
	bool four = is_set(settings->address), six = is_set(settings->address6);

	for (unsigned i = 0; i < HOST_REASON_COUNT; i++)
		to.reason[i] = bpf_asm_label(a);
	bpf_asm_emit(a, BPF_MOV64_REG(BPF_REG_6, BPF_REG_1));
	bpf_asm_emit(a, BPF_LDX_MEM(BPF_W, BPF_REG_2, BPF_REG_6, offsetof(struct __sk_buff, protocol)));
	if (four)
		bpf_asm_jump(a, BPF_JMP_IMM(BPF_JEQ, BPF_REG_2, htons(ETH_P_IP)), ipv4);
	if (six)
		bpf_asm_jump(a, BPF_JMP_IMM(BPF_JEQ, BPF_REG_2, htons(ETH_P_IPV6)), ipv6);
	bpf_asm_jump(a, BPF_JMP_ALWAYS(), to.other);
	if (four) {
		bpf_asm_place(a, ipv4);
		emit_outer(a, &layout4, settings, room_flags, maps, &to);
	}
	if (six) {
		bpf_asm_place(a, ipv6);
		emit_outer(a, &layout6, settings, room_flags, maps, &to);
	}
	if (bpf_asm_is_wanted(a, to.inner4)) {
		bpf_asm_place(a, to.inner4);
		emit_inner(a, &layout4, settings->link_header, room_flags, maps, &to);
	}
	if (bpf_asm_is_wanted(a, to.inner6)) {
		bpf_asm_place(a, to.inner6);
		emit_inner(a, &layout6, settings->link_header, room_flags, maps, &to);
	}
	emit_endings(a, maps->counts, &to);
}

static struct decap *decap_new(void)
{
	struct decap *decap = malloc(sizeof(*decap));

	if (decap)
		*decap = (struct decap){ -1, -1, -1, -1 };
	return decap;
}

static int create_maps(struct decap *decap, const struct decap *inherit)
{
	decap->muxes = bpf_sys_map_create(BPF_MAP_TYPE_HASH, NAME_MUXES, 16, 1, MAX_MUXES, 0);
	if (decap->muxes < 0)
		return decap->muxes;
	decap->vips = bpf_sys_map_create(BPF_MAP_TYPE_LPM_TRIE, NAME_VIPS, sizeof(struct lpm_key), 1, MAX_VIPS,
					 BPF_F_NO_PREALLOC);
	if (decap->vips < 0)
		return decap->vips;
	if (inherit) {
		decap->counts = dup(inherit->counts);
		return decap->counts < 0 ? -errno : 0;
	}
	decap->counts = bpf_sys_map_create(BPF_MAP_TYPE_PERCPU_ARRAY, NAME_COUNTS, 4, 8, HOST_REASON_COUNT, 0);
	return decap->counts < 0 ? decap->counts : 0;
}

static int load_program(struct decap *decap, const struct decap_settings *settings, unsigned room_flags, char *log,
			uint32_t log_size)
{
	struct bpf_asm a;
	int rc;

	bpf_asm_init(&a);
	emit_program(&a, settings, room_flags, decap);
	rc = bpf_asm_finish(&a);
	if (rc)
		return rc;
	decap->program = bpf_sys_program_load(BPF_PROG_TYPE_SCHED_CLS, NAME_PROGRAM, a.insns, a.count, log, log_size);
	return decap->program < 0 ? decap->program : 0;
}

static int decap_create(const struct decap_settings *settings, unsigned room_flags, const struct decap *inherit,
			char *log, uint32_t log_size, struct decap **out)
{
	struct decap *decap = decap_new();
	int rc;

	if (!decap)
		return -ENOMEM;
	rc = create_maps(decap, inherit);
	if (!rc)
		rc = load_program(decap, settings, room_flags, log, log_size);
	if (rc) {
		decap_destroy(decap);
		return rc;
	}
	*out = decap;
	return 0;
}

/*
 * Does the helper that takes the header off do so with these flags?  Older kernels refuse flags they do not know, and
 * only when a packet comes: so one packet is sent through a copy of the program before the real one is loaded.
 */
static int try_room_flags(unsigned room_flags, char *log, uint32_t log_size)
{
	static const struct decap_settings settings = {
		.address = { [10] = 0xff, 0xff, 192, 0, 2, 1 }, .link_header = 14
	};
	static const struct host_prefix vip = { { [10] = 0xff, 0xff, 192, 0, 2, 3 }, 128 };
	static const uint8_t frame[14 + 20 + 20 + 20] = {
		2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0,
		0x45, 0, 0, 60, 0, 0, 0x40, 0, 64, 4, 0xb6, 0xba, 192, 0, 2, 2, 192, 0, 2, 1,
		0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0, 192, 0, 2, 4, 192, 0, 2, 3,
	};
	uint8_t out[sizeof(frame)];
	uint32_t out_len = sizeof(out), verdict;
	struct decap *decap;
	int rc = decap_create(&settings, room_flags, NULL, log, log_size, &decap);

	if (rc)
		return rc;
	rc = decap_add_mux(decap, (const uint8_t[16]){ [10] = 0xff, 0xff, 192, 0, 2, 2 });
	if (!rc)
		rc = decap_add_vip(decap, &vip);
	if (!rc)
		rc = decap_test(decap, frame, sizeof(frame), out, &out_len, &verdict);
	if (!rc && (verdict || out_len != sizeof(frame) - 20))
		rc = -ENOTSUP;
	decap_destroy(decap);
	return rc;
}

bool decap_crosses(void)
{
	char log[256];

	return !try_room_flags(ADJ_ROOM_DECAP_L3_IPV4 | ADJ_ROOM_DECAP_L3_IPV6, log, sizeof(log));
}

int decap_load(const struct decap_settings *settings, const struct decap *inherit, char *log, uint32_t log_size,
	       struct decap **out)
{
	unsigned room_flags = ADJ_ROOM_DECAP_L3_IPV4 | ADJ_ROOM_DECAP_L3_IPV6;
	int rc = try_room_flags(room_flags, log, log_size);

	if (rc == -ENOTSUP) { /* before 6.3: a tunnel of the same family needs no flag */
		room_flags = 0;
		rc = try_room_flags(room_flags, log, log_size);
	}
	if (rc)
		return rc;
	return decap_create(settings, room_flags, inherit, log, log_size, out);
}

/* Takes the map over if it is one of ours, else closes it. */
static int adopt_map(struct decap *decap, uint32_t id)
{
	struct bpf_map_info info;
	int fd = bpf_sys_map_by_id(id), rc;

	if (fd < 0)
		return fd;
	memset(&info, 0, sizeof(info));
	rc = bpf_sys_map_info(fd, &info);
	if (rc) {
		close(fd);
		return rc;
	}
	if (!strcmp(info.name, NAME_MUXES) && info.key_size == 16 && decap->muxes < 0)
		decap->muxes = fd;
	else if (!strcmp(info.name, NAME_VIPS) && info.key_size == sizeof(struct lpm_key) && decap->vips < 0)
		decap->vips = fd;
	else if (!strcmp(info.name, NAME_COUNTS) && info.max_entries == HOST_REASON_COUNT && decap->counts < 0)
		decap->counts = fd;
	else
		close(fd);
	return 0;
}

static int adopt_program(struct decap *decap, uint32_t program_id)
{
	struct bpf_prog_info info;
	uint32_t maps[8];
	int rc;

	decap->program = bpf_sys_program_by_id(program_id);
	if (decap->program < 0)
		return decap->program;
	memset(&info, 0, sizeof(info));
	info.nr_map_ids = 8;
	info.map_ids = (uint64_t)(uintptr_t)maps;
	rc = bpf_sys_program_info(decap->program, &info);
	if (rc)
		return rc;
	if (strcmp(info.name, NAME_PROGRAM) || info.nr_map_ids > 8)
		return -ESTALE;
	for (uint32_t i = 0; i < info.nr_map_ids && !rc; i++)
		rc = adopt_map(decap, maps[i]);
	if (!rc && (decap->muxes < 0 || decap->vips < 0 || decap->counts < 0))
		rc = -ESTALE;
	return rc;
}

int decap_open(uint32_t program_id, struct decap **out)
{
	struct decap *decap = decap_new();
	int rc;

	if (!decap)
		return -ENOMEM;
	rc = adopt_program(decap, program_id);
	if (rc) {
		decap_destroy(decap);
		return rc;
	}
	*out = decap;
	return 0;
}

int decap_add_mux(struct decap *decap, const uint8_t address[16])
{
	return bpf_sys_map_update(decap->muxes, address, &(uint8_t){ 1 });
}

int decap_add_vip(struct decap *decap, const struct host_prefix *vip)
{
	struct lpm_key key = { .length = vip->length };

	memcpy(key.address, vip->address, sizeof(key.address));
	return bpf_sys_map_update(decap->vips, &key, &(uint8_t){ 1 });
}

int decap_program_fd(const struct decap *decap)
{
	return decap->program;
}

void decap_tag(const struct decap *decap, uint8_t tag[DECAP_TAG_SIZE])
{
	struct bpf_prog_info info;

	memset(&info, 0, sizeof(info));
	memset(tag, 0, DECAP_TAG_SIZE);
	if (!bpf_sys_program_info(decap->program, &info))
		memcpy(tag, info.tag, DECAP_TAG_SIZE);
}

int decap_muxes(const struct decap *decap, struct host_prefix *out, uint32_t max)
{
	uint8_t key[16], *at = NULL;
	uint32_t found = 0;
	int rc;

	while (!(rc = bpf_sys_map_next_key(decap->muxes, at, key))) {
		if (found < max) {
			memcpy(out[found].address, key, sizeof(key));
			out[found].length = 128;
		}
		found++;
		at = key;
	}
	return rc == -ENOENT ? (int)found : rc;
}

int decap_vips(const struct decap *decap, struct host_prefix *out, uint32_t max)
{
	struct lpm_key key, *at = NULL;
	uint32_t found = 0;
	int rc;

	while (!(rc = bpf_sys_map_next_key(decap->vips, at, &key))) {
		if (found < max) {
			memcpy(out[found].address, key.address, sizeof(key.address));
			out[found].length = key.length;
		}
		found++;
		at = &key;
	}
	return rc == -ENOENT ? (int)found : rc;
}

int decap_counters(const struct decap *decap, uint64_t *counts)
{
	unsigned cpus = bpf_sys_possible_cpus();
	uint64_t *values = calloc(cpus, sizeof(*values));
	int rc = 0;

	if (!values)
		return -ENOMEM;
	for (uint32_t reason = 0; reason < HOST_REASON_COUNT && !rc; reason++) {
		rc = bpf_sys_map_lookup(decap->counts, &reason, values);
		counts[reason] = 0;
		for (unsigned cpu = 0; cpu < cpus && !rc; cpu++)
			counts[reason] += values[cpu];
	}
	free(values);
	return rc;
}

int decap_test(const struct decap *decap, const uint8_t *in, uint32_t in_len, uint8_t *out, uint32_t *out_len,
	       uint32_t *verdict)
{
	uint32_t action = 0;
	int rc = bpf_sys_program_test(decap->program, in, in_len, out, out_len, &action);

	if (!rc)
		*verdict = action == TC_ACT_SHOT ? 1 : 0;
	return rc;
}

static void close_if_open(int fd)
{
	if (fd >= 0)
		close(fd);
}

void decap_destroy(struct decap *decap)
{
	if (!decap)
		return;
	close_if_open(decap->program);
	close_if_open(decap->muxes);
	close_if_open(decap->vips);
	close_if_open(decap->counts);
	free(decap);
}
