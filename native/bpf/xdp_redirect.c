/* SPDX-License-Identifier: Apache-2.0 */
/* See xdp_redirect.h. */
#include "bpf/xdp_redirect.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_ether.h>
#include <linux/if_link.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bpf/assembler.h"
#include "bpf/bpf_syscalls.h"

#define MAX_VIPS 65536 /* of each family; nothing is allocated ahead */
#define MAC_BYTES 6
#define MAPPED_BITS 96u /* of ::ffff:0.0.0.0/96 */

/*
 * Two tries, because one of 20-byte keys would compare, and walk, four times as much for IPv4.  The address is in an array of
 * one, because links are given other addresses while programs are attached.
 */
struct redirect {
	int program;
	int vips4; /* longest prefix match, key: struct key4 */
	int vips6;
	int address; /* of the interface, 8 bytes of which the first 6 count; all zero: not told yet */
	int sockets; /* by queue */
	int link;
};

struct key4 {
	uint32_t length;
	uint8_t address[4];
};

struct key6 {
	uint32_t length;
	uint8_t address[16];
};

/* ---- the program ---- */

enum {
	STACK_KEY = -24,   /* struct key4 or key6 */
	STACK_INDEX = -28, /* of the address */
	ETHERTYPE = 12,
	NETWORK = ETH_HLEN,
	TAG_BYTES = 4,
};

#define FP BPF_REG_10

/* Where a family's destination is, from its header's beginning, and how long: read only if all of its header is there. */
struct layout {
	int header;
	int destination;
	int address;
};

static const struct layout layout4 = { 20, 16, 4 };
static const struct layout layout6 = { 40, 24, 16 };

/* r0 = value, NULL: none.  Registers: r6 the context, r7 the frame, r8 its end. */
static void emit_lookup(struct bpf_asm *a, int map, int key)
{
	bpf_asm_load_map(a, BPF_REG_1, map);
	bpf_asm_emit(a, BPF_MOV64_REG(BPF_REG_2, FP));
	bpf_asm_emit(a, BPF_ALU64_IMM(BPF_ADD, BPF_REG_2, key));
	bpf_asm_emit(a, BPF_CALL_HELPER(BPF_FUNC_map_lookup_elem));
}

static void emit_has(struct bpf_asm *a, int bytes, unsigned otherwise)
{
	bpf_asm_emit(a, BPF_MOV64_REG(BPF_REG_1, BPF_REG_7));
	bpf_asm_emit(a, BPF_ALU64_IMM(BPF_ADD, BPF_REG_1, bytes));
	bpf_asm_jump(a, BPF_JMP_REG(BPF_JGT, BPF_REG_1, BPF_REG_8), otherwise);
}

/* To our own link address: what others get on a promiscuous link, or broadcast, is no packet for us (PACKET_HOST). */
static void emit_is_to_us(struct bpf_asm *a, int address, unsigned otherwise)
{
	bpf_asm_emit(a, BPF_ST_MEM(BPF_W, FP, STACK_INDEX, 0));
	emit_lookup(a, address, STACK_INDEX);
	bpf_asm_jump(a, BPF_JMP_IMM(BPF_JEQ, BPF_REG_0, 0), otherwise);
	for (int at = 0; at < MAC_BYTES; at += 2) {
		bpf_asm_emit(a, BPF_LDX_MEM(BPF_H, BPF_REG_1, BPF_REG_7, at));
		bpf_asm_emit(a, BPF_LDX_MEM(BPF_H, BPF_REG_2, BPF_REG_0, at));
		bpf_asm_jump(a, BPF_JMP_REG(BPF_JNE, BPF_REG_1, BPF_REG_2), otherwise);
	}
}

static void emit_is_to_vip(struct bpf_asm *a, const struct layout *l, int network, int vips, unsigned otherwise)
{
	emit_has(a, network + l->header, otherwise);
	bpf_asm_emit(a, BPF_ST_MEM(BPF_W, FP, STACK_KEY, l->address * 8));
	for (int at = 0; at < l->address; at += 4) {
		bpf_asm_emit(a, BPF_LDX_MEM(BPF_W, BPF_REG_1, BPF_REG_7, network + l->destination + at));
		bpf_asm_emit(a, BPF_STX_MEM(BPF_W, FP, BPF_REG_1, STACK_KEY + 4 + at));
	}
	emit_lookup(a, vips, STACK_KEY);
	bpf_asm_jump(a, BPF_JMP_IMM(BPF_JEQ, BPF_REG_0, 0), otherwise);
}

static void emit_take(struct bpf_asm *a, int sockets)
{
	bpf_asm_load_map(a, BPF_REG_1, sockets);
	bpf_asm_emit(a, BPF_LDX_MEM(BPF_W, BPF_REG_2, BPF_REG_6, offsetof(struct xdp_md, rx_queue_index)));
	bpf_asm_emit(a, BPF_MOV64_IMM(BPF_REG_3, XDP_PASS)); /* of a queue that has none */
	bpf_asm_emit(a, BPF_CALL_HELPER(BPF_FUNC_redirect_map));
	bpf_asm_emit(a, BPF_EXIT_INSN());
}

/* By the type in r1 of what begins at `network`: goes on to `take` or `pass`, or for another type to `other`. */
static void emit_family(struct bpf_asm *a, const struct redirect *maps, int network, unsigned other, unsigned take, unsigned pass)
{
	unsigned ipv6 = bpf_asm_label(a);

	bpf_asm_jump(a, BPF_JMP_IMM(BPF_JEQ, BPF_REG_1, htons(ETH_P_IPV6)), ipv6);
	bpf_asm_jump(a, BPF_JMP_IMM(BPF_JNE, BPF_REG_1, htons(ETH_P_IP)), other);
	emit_is_to_vip(a, &layout4, network, maps->vips4, pass);
	bpf_asm_jump(a, BPF_JMP_ALWAYS(), take);
	bpf_asm_place(a, ipv6);
	emit_is_to_vip(a, &layout6, network, maps->vips6, pass);
	bpf_asm_jump(a, BPF_JMP_ALWAYS(), take);
}

/* The type in r1 is a tag's: goes on, with the type behind it, where its VLAN is none and the priority alone counts. */
static void emit_is_priority_tag(struct bpf_asm *a, unsigned otherwise)
{
	unsigned tag = bpf_asm_label(a);

	bpf_asm_jump(a, BPF_JMP_IMM(BPF_JEQ, BPF_REG_1, htons(ETH_P_8021Q)), tag);
	bpf_asm_jump(a, BPF_JMP_IMM(BPF_JNE, BPF_REG_1, htons(ETH_P_8021AD)), otherwise);
	bpf_asm_place(a, tag);
	emit_has(a, NETWORK + TAG_BYTES, otherwise);
	bpf_asm_emit(a, BPF_LDX_MEM(BPF_H, BPF_REG_1, BPF_REG_7, NETWORK));
	bpf_asm_jump(a, BPF_JMP_IMM(BPF_JSET, BPF_REG_1, htons(0x0fff)), otherwise);
	bpf_asm_emit(a, BPF_LDX_MEM(BPF_H, BPF_REG_1, BPF_REG_7, NETWORK + 2));
}

static void emit_program(struct bpf_asm *a, const struct redirect *maps)
{
	unsigned pass = bpf_asm_label(a), tagged = bpf_asm_label(a), take = bpf_asm_label(a);

	bpf_asm_emit(a, BPF_MOV64_REG(BPF_REG_6, BPF_REG_1));
	bpf_asm_emit(a, BPF_LDX_MEM(BPF_W, BPF_REG_7, BPF_REG_6, offsetof(struct xdp_md, data)));
	bpf_asm_emit(a, BPF_LDX_MEM(BPF_W, BPF_REG_8, BPF_REG_6, offsetof(struct xdp_md, data_end)));
	emit_has(a, NETWORK, pass);
	emit_is_to_us(a, maps->address, pass);
	bpf_asm_emit(a, BPF_LDX_MEM(BPF_H, BPF_REG_1, BPF_REG_7, ETHERTYPE));
	emit_family(a, maps, NETWORK, tagged, take, pass);
	bpf_asm_place(a, tagged);
	emit_is_priority_tag(a, pass);
	emit_family(a, maps, NETWORK + TAG_BYTES, pass, take, pass);
	bpf_asm_place(a, take);
	emit_take(a, maps->sockets);
	bpf_asm_place(a, pass);
	bpf_asm_emit(a, BPF_MOV64_IMM(BPF_REG_0, XDP_PASS));
	bpf_asm_emit(a, BPF_EXIT_INSN());
}

/* ---- life ---- */

static int create_maps(struct redirect *redirect, uint32_t queues)
{
	redirect->vips4 = bpf_sys_map_create(BPF_MAP_TYPE_LPM_TRIE, "vipmux_vips4", sizeof(struct key4), 1, MAX_VIPS,
					     BPF_F_NO_PREALLOC);
	if (redirect->vips4 < 0)
		return redirect->vips4;
	redirect->vips6 = bpf_sys_map_create(BPF_MAP_TYPE_LPM_TRIE, "vipmux_vips6", sizeof(struct key6), 1, MAX_VIPS,
					     BPF_F_NO_PREALLOC);
	if (redirect->vips6 < 0)
		return redirect->vips6;
	redirect->address = bpf_sys_map_create(BPF_MAP_TYPE_ARRAY, "vipmux_address", 4, 8, 1, 0);
	if (redirect->address < 0)
		return redirect->address;
	redirect->sockets = bpf_sys_map_create(BPF_MAP_TYPE_XSKMAP, "vipmux_sockets", 4, 4, queues, 0);
	return redirect->sockets < 0 ? redirect->sockets : 0;
}

int redirect_load(uint32_t queues, char *log, uint32_t log_size, struct redirect **out)
{
	struct redirect *redirect = malloc(sizeof(*redirect));
	struct bpf_asm a;
	int error;

	if (!redirect)
		return -ENOMEM;
	*redirect = (struct redirect){ -1, -1, -1, -1, -1, -1 };
	error = create_maps(redirect, queues);
	if (!error) {
		bpf_asm_init(&a);
		emit_program(&a, redirect);
		error = bpf_asm_finish(&a);
	}
	if (!error) {
		redirect->program = bpf_sys_program_load(BPF_PROG_TYPE_XDP, "vipmux_redirect", a.insns, a.count, log,
							 log_size);
		error = redirect->program < 0 ? redirect->program : 0;
	}
	if (error) {
		redirect_destroy(redirect);
		return error;
	}
	*out = redirect;
	return 0;
}

static void close_if_open(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

void redirect_destroy(struct redirect *redirect)
{
	if (!redirect)
		return;
	redirect_detach(redirect);
	close_if_open(&redirect->program);
	close_if_open(&redirect->vips4);
	close_if_open(&redirect->vips6);
	close_if_open(&redirect->address);
	close_if_open(&redirect->sockets);
	free(redirect);
}

/* ---- maps ---- */

static bool is_mapped(const struct host_prefix *vip)
{
	static const uint8_t mapped[12] = { [10] = 0xff, [11] = 0xff };

	return vip->length >= MAPPED_BITS && !memcmp(vip->address, mapped, sizeof(mapped));
}

/* The map that a prefix belongs into; its key is written to `key`. */
static int map_of(const struct redirect *redirect, const struct host_prefix *vip, struct key6 *key)
{
	struct key4 four = { .length = vip->length - MAPPED_BITS };

	if (is_mapped(vip)) {
		memcpy(four.address, vip->address + 12, sizeof(four.address));
		memcpy(key, &four, sizeof(four));
		return redirect->vips4;
	}
	key->length = vip->length;
	memcpy(key->address, vip->address, sizeof(key->address));
	return redirect->vips6;
}

int redirect_add_vip(struct redirect *redirect, const struct host_prefix *vip)
{
	struct key6 key;
	int map = map_of(redirect, vip, &key);

	return bpf_sys_map_update(map, &key, &(uint8_t){ 1 });
}

int redirect_remove_vip(struct redirect *redirect, const struct host_prefix *vip)
{
	struct key6 key;
	int map = map_of(redirect, vip, &key);

	return bpf_sys_map_delete(map, &key);
}

int redirect_set_address(struct redirect *redirect, const uint8_t mac[6])
{
	uint8_t value[8] = { 0 };

	memcpy(value, mac, MAC_BYTES);
	return bpf_sys_map_update(redirect->address, &(uint32_t){ 0 }, value);
}

int redirect_set_socket(struct redirect *redirect, uint32_t queue, int socket)
{
	return bpf_sys_map_update(redirect->sockets, &queue, &socket);
}

/* ---- attached ---- */

int redirect_attach(struct redirect *redirect, int ifindex, bool generic)
{
	int link = bpf_sys_link_xdp(redirect->program, ifindex, generic ? XDP_FLAGS_SKB_MODE : XDP_FLAGS_DRV_MODE);

	if (link < 0)
		return link;
	redirect_detach(redirect);
	redirect->link = link;
	return 0;
}

bool redirect_attached(const struct redirect *redirect)
{
	return redirect->link >= 0 && bpf_sys_link_ifindex(redirect->link) > 0;
}

void redirect_detach(struct redirect *redirect)
{
	close_if_open(&redirect->link);
}

int redirect_test(const struct redirect *redirect, const uint8_t *frame, uint32_t length)
{
	uint32_t room = length, verdict = 0;
	uint8_t *out = malloc(room + 1);
	int error;

	if (!out)
		return -ENOMEM;
	error = bpf_sys_program_test(redirect->program, frame, length, out, &room, &verdict);
	free(out);
	if (error)
		return error;
	return verdict == XDP_REDIRECT ? 1 : verdict == XDP_PASS ? 0 : -EPROTO;
}
