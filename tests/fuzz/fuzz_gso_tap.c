/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Any frames, with any virtio header that a neighbour's driver may have put before them, through the pipeline of a MUX in packet
 * mode and out by the tap: what is written into the device there must be what its program (bpf/tunnel_gso.h) and the kernel that
 * cuts it expect, whatever came in.
 *
 * Input: the snapshot (1 byte), then records: what to do (1), length (2), a virtio header (10), bytes.
 */
#define _GNU_SOURCE
#include <netinet/in.h>
#include <sys/uio.h>

#include "packet/checksum.h"
#include "world.h"

static ssize_t fake_writev(int fd, const struct iovec *parts, int count);

#define writev fake_writev
#include "io/gso_tap.c"
#undef writev

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* What to do with a record. */
#define FIX 0x01        /* total length and checksum of the IPv4 header are made right */
#define AIM 0x02        /* the destination is made a VIP */
#define TELL 0x04       /* the driver tells of a TCP super-packet, its checksum left to others, as one does */
#define BURST_ENDS 0x20
#define OTHER_SNAPSHOT 0x80

#define RECORD 13u
#define TAP_FD 77
#define OUTER_FIELD 14u
#define TCP_BYTES 20u

static const struct frame *sent; /* what is being written */
static uint64_t written;

/* ---- what the kernel gets ---- */

struct told {
	struct virtio_net_hdr offload;
	uint8_t bytes[UINT16_MAX + 64];
	uint32_t length;
};

/* virtio_net_hdr_to_skb() and tun_get_user() refuse what breaks these, or would read and write elsewhere than at the TCP header. */
static void check_offload(const struct told *told, uint32_t inner, bool ipv6)
{
	const struct virtio_net_hdr *offload = &told->offload;
	uint32_t start = offload->csum_start, tcp;

	expect(offload->flags == VIRTIO_NET_HDR_F_NEEDS_CSUM && offload->gso_size > 0 && offload->csum_offset == 16);
	expect((offload->gso_type & ~VIRTIO_NET_HDR_GSO_ECN) ==
	       (ipv6 ? VIRTIO_NET_HDR_GSO_TCPV6 : VIRTIO_NET_HDR_GSO_TCPV4));
	expect(start + TCP_BYTES <= told->length && start >= inner + (ipv6 ? 40 : 20));
	tcp = (told->bytes[start + 12] >> 4) * 4u;
	expect(tcp >= TCP_BYTES && offload->hdr_len == start + tcp && offload->hdr_len + offload->gso_size < told->length);
	if (ipv6)
		return;
	expect(start == inner + (told->bytes[inner] & 15) * 4u && told->bytes[inner + 9] == IPPROTO_TCP);
}

/* Link header, number of an interface, outer header, inner packet: nothing before, between or behind. */
static void check_told(const struct told *told, uint32_t ifindex)
{
	const uint8_t *outer = told->bytes + OUTER_FIELD + TUNNEL_GSO_TAP_EXTRA;
	bool ipv6 = outer[0] >> 4 == 6;
	uint32_t length = told->length - OUTER_FIELD - TUNNEL_GSO_TAP_EXTRA, outer_length = ipv6 ? 40 : 20, number;
	const uint8_t *inner = outer + outer_length;

	memcpy(&number, told->bytes + OUTER_FIELD, sizeof(number));
	expect(number == ifindex && number < HOPS);
	expect(load_be16(told->bytes + 12) == (ipv6 ? ETH_P_IPV6 : ETH_P_IP));
	expect(outer[ipv6 ? 6 : 9] == (ipv6 ? IPPROTO_IPV6 : IPPROTO_IPIP) && (ipv6 || outer[0] == 0x45));
	expect((ipv6 ? load_be16(outer + 4) + 40u : load_be16(outer + 2)) == length);
	expect(inner[0] >> 4 == outer[0] >> 4);
	expect((ipv6 ? load_be16(inner + 4) + 40u : load_be16(inner + 2)) == length - outer_length);
	check_offload(told, OUTER_FIELD + TUNNEL_GSO_TAP_EXTRA + outer_length, ipv6);
}

static ssize_t fake_writev(int fd, const struct iovec *parts, int count)
{
	static struct told told;
	uint32_t ifindex = sent->ifindex;

	expect(fd == TAP_FD && count == 4 && parts[0].iov_len == sizeof(told.offload));
	memcpy(&told.offload, parts[0].iov_base, sizeof(told.offload));
	told.length = 0;
	for (int i = 1; i < count; i++) {
		expect(parts[i].iov_len <= sizeof(told.bytes) - told.length);
		memcpy(told.bytes + told.length, parts[i].iov_base, parts[i].iov_len);
		told.length += (uint32_t)parts[i].iov_len;
	}
	expect(told.length == sent->len + TUNNEL_GSO_TAP_EXTRA);
	expect(memcmp(told.bytes, sent->data, ETH_HLEN) == 0);
	expect(memcmp(told.bytes + ETH_HLEN + TUNNEL_GSO_TAP_EXTRA, sent->data + ETH_HLEN, sent->len - ETH_HLEN) == 0);
	check_told(&told, ifindex);
	written++;
	return (ssize_t)told.length;
}

static void fuzz_send(struct io *io, struct frame *frames, unsigned count)
{
	struct gso_tap tap = { .fd = TAP_FD, .link = -1 };
	struct virtio_net_hdr offload, none = { 0 };

	(void)io;
	for (unsigned i = 0; i < count; i++) {
		frames[i].error = 0;
		sent = &frames[i];
		if (frames[i].gso_size) { /* as io_packet.c does */
			expect(gso_tap_send(&tap, sent, sent->ifindex) == 0);
			continue;
		}
		packet_frame_offload(sent, 0, &offload);
		expect(memcmp(&offload, &none, sizeof(none)) == 0 && sent->len <= ETH_HLEN + MTU);
	}
}

/* ---- what came ---- */

static const struct io_ops fuzz_ops = { .name = "fuzz", .send = fuzz_send };

struct burst {
	uint8_t *memory[BURST_MAX];
	struct frame frames[BURST_MAX];
	unsigned count;
};

/* Never writes beyond the packet. */
static void help(uint8_t *ip, uint32_t length, uint8_t what)
{
	uint32_t header = (ip[0] & 15) * 4u;
	uint16_t value;

	if (length >= 40 && ip[0] >> 4 == 6) {
		if (what & AIM)
			memcpy(ip + 24, vip6, 16);
		value = htons((uint16_t)(length - 40));
		if (what & FIX)
			memcpy(ip + 4, &value, 2);
		return;
	}
	if (length < 20 || ip[0] >> 4 != 4 || header < 20 || header > length)
		return;
	if (what & AIM)
		memcpy(ip + 16, vip4, 4);
	if (!(what & FIX))
		return;
	value = htons((uint16_t)length);
	memcpy(ip + 2, &value, 2);
	memset(ip + 10, 0, 2);
	value = (uint16_t)~checksum_fold(checksum_add(ip, header, 0));
	memcpy(ip + 10, &value, 2);
}

/* As GRO and drivers tell of TCP: only the size of segments stays what the input says. */
static void tell(const uint8_t *ip, uint32_t length, struct virtio_net_hdr *offload)
{
	uint32_t header = length && ip[0] >> 4 == 6 ? 40 : 20;

	if (length < header)
		return;
	offload->flags |= VIRTIO_NET_HDR_F_NEEDS_CSUM;
	offload->gso_type = header == 40 ? VIRTIO_NET_HDR_GSO_TCPV6 : VIRTIO_NET_HDR_GSO_TCPV4;
	offload->csum_start = (uint16_t)(ETH_HLEN + (header == 40 ? 40 : (ip[0] & 15) * 4));
	offload->csum_offset = 16;
}

static void add_packet(struct burst *burst, const uint8_t *header, const uint8_t *data, uint32_t length, uint8_t what)
{
	struct virtio_net_hdr offload;
	uint8_t *memory = malloc(IO_HEADROOM + length), *start = memory + IO_HEADROOM;

	expect(memory != NULL);
	memcpy(start, data, length);
	memcpy(&offload, header, sizeof(offload));
	if (length > ETH_HLEN) {
		help(start + ETH_HLEN, length - ETH_HLEN, what);
		if (what & TELL)
			tell(start + ETH_HLEN, length - ETH_HLEN, &offload);
	}
	memcpy(start - sizeof(offload), &offload, sizeof(offload));
	burst->memory[burst->count] = memory;
	packet_frame_fill(start, length, length, &burst->frames[burst->count++]);
}

static void run(struct mux *mux, const struct snapshot *snapshot, struct burst *burst)
{
	struct io io = { .ops = &fuzz_ops, .link = LINK_ETHERNET, .sends_whole = true };

	mux->pipeline.burst(&mux->pipeline, snapshot, &io, burst->frames, burst->count, 1);
	mux->pipeline.tick(&mux->pipeline, snapshot, 1);
	while (burst->count)
		free(burst->memory[--burst->count]);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const struct mux_config config = { .flows = 1, .link = MUX_LINK_NEXT_HOP };
	static struct burst burst;
	static struct mux mux;
	unsigned which;

	if (!size)
		return 0;
	which = data[0] & 1;
	start_mux(&mux, &config);
	for (size_t at = 1; at + RECORD <= size;) {
		const uint8_t *record = data + at;
		uint32_t length = load_be16(record + 1);

		at += RECORD;
		if (length > size - at)
			length = (uint32_t)(size - at);
		add_packet(&burst, record + 3, data + at, length, record[0]);
		at += length;
		if (record[0] & BURST_ENDS || burst.count == BURST_MAX)
			run(&mux, snapshot_of(which), &burst);
		if (record[0] & OTHER_SNAPSHOT && !burst.count)
			which = !which;
	}
	run(&mux, snapshot_of(which), &burst);
	return 0;
}
