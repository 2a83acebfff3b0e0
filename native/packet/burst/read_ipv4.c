/* SPDX-License-Identifier: Apache-2.0 */
/* See read_ipv4.h. */
#include "packet/burst/read_ipv4.h"

#include "flow/flow.h"
#include "services/vip/exact4_table.h"
#include "packet/burst/lanes8.h"

/* Of a packet with all of its header. */
static inline struct outer4 outer_of(const uint8_t *ip, uint32_t length)
{
	struct outer4 outer = { .first = (load64(ip) & (OUTER4_TOS | OUTER4_DF)) | OUTER4_VERSION };

	outer.first |= htobe64((uint64_t)(uint16_t)(length + 20) << 32);
	outer.sum = (uint32_t)(outer.first & 0xffff) + (uint32_t)(outer.first >> 16 & 0xffff) +
		    (uint32_t)(outer.first >> 32 & 0xffff) + (uint32_t)(outer.first >> 48);
	memcpy(&outer.life, ip + 8, 4);
	outer.life = ipv4_life_after(outer.life);
	return outer;
}

static inline uint64_t read_each(const struct frame *frames, unsigned count, enum link_type link, struct packet *packets,
				 uint64_t *services, uint64_t *flows, struct outer4 *outer)
{
	uint64_t taken = 0;
	uint32_t address;

	for (unsigned i = 0; i < count; i++) {
		struct packet *packet = &packets[i];

		if (!packet_parse_plain(packet, &frames[i], link))
			continue;
		taken |= 1ULL << i;
		memcpy(&address, packet->ip + 16, 4);
		services[i] = exact_key(address, packet->protocol, packet->destination_port);
		memcpy(&address, packet->ip + 12, 4);
		flows[i] = flow_key_narrow(0, address, packet->source_port);
		outer[i] = outer_of(packet->ip, packet->length);
	}
	return taken;
}

uint64_t read_ipv4_scalar(const struct frame *frames, unsigned count, enum link_type link, struct packet *packets,
			   uint64_t *services, uint64_t *flows, struct outer4 *outer)
{
	return read_each(frames, count, link, packets, services, flows, outer);
}

#ifdef VECTORS_X86
/* Words of 32 bits of eight headers (lanes8.h), numbered by their offset in the IP header. */
struct headers {
	__m256i link; /* the four bytes before the IP header */
	__m256i at0, at4, at8, at12, at16, at20, at24, at32;
	__m256i len, wire_len; /* of the frames */
};

/* From 12 bytes before each IP header, which are in the headroom at least. */
static ALWAYS_INLINE TARGET_AVX2 void load_beginnings(struct headers *headers, const struct frame *frames, uint32_t before)
{
	__m256i rows[4];

	for (unsigned i = 0; i < 4; i++)
		rows[i] = load_pair(frames[i].data + before - 12, frames[i + 4].data + before - 12);
	last_columns(rows, &headers->link, &headers->at0);
}

/* To the 36th byte of each IP header: not beyond what packet_parse_plain() wants to be there. */
static ALWAYS_INLINE TARGET_AVX2 void load_headers(struct headers *headers, const struct frame *frames, uint32_t before)
{
	__m256i rows[4];

	for (unsigned i = 0; i < 4; i++)
		rows[i] = load_pair(frames[i].data + before + 4, frames[i + 4].data + before + 4);
	first_columns(rows, &headers->at4, &headers->at8);
	last_columns(rows, &headers->at12, &headers->at16);
	for (unsigned i = 0; i < 4; i++)
		rows[i] = load_pair(frames[i].data + before + 20, frames[i + 4].data + before + 20);
	first_columns(rows, &headers->at20, &headers->at24);
	headers->at32 = _mm256_unpackhi_epi64(_mm256_unpackhi_epi32(rows[0], rows[1]), _mm256_unpackhi_epi32(rows[2], rows[3]));
}

/* Adds both halves of each word. */
static ALWAYS_INLINE TARGET_AVX2 __m256i fold(__m256i x)
{
	return _mm256_add_epi32(_mm256_and_si256(x, word(0xffff)), _mm256_srli_epi32(x, 16));
}

/* Ten halves of up to 0xffff add up to a word, and fold to 0xffff alone where the checksum is right: zero they never are. */
static ALWAYS_INLINE TARGET_AVX2 __m256i checksum_is_right(const struct headers *h)
{
	__m256i sum = _mm256_add_epi32(fold(h->at0), fold(h->at4));

	sum = _mm256_add_epi32(sum, _mm256_add_epi32(fold(h->at8), fold(h->at12)));
	return _mm256_cmpeq_epi32(fold(_mm256_add_epi32(sum, fold(h->at16))), word(0xffff));
}

/* First octets of sources as packet_odd_source[] has them, and the destination itself. */
static ALWAYS_INLINE TARGET_AVX2 __m256i source_is_odd(const struct headers *h)
{
	__m256i octet = _mm256_and_si256(h->at12, word(0xff)), odd = _mm256_cmpeq_epi32(h->at12, h->at16);

	odd = _mm256_or_si256(odd, _mm256_cmpeq_epi32(octet, word(0)));
	odd = _mm256_or_si256(odd, _mm256_cmpeq_epi32(octet, word(127)));
	odd = _mm256_or_si256(odd, _mm256_cmpeq_epi32(octet, word(169)));
	return _mm256_or_si256(odd, _mm256_cmpeq_epi32(_mm256_and_si256(octet, word(0xe0)), word(0xe0)));
}

/* outer_of() of eight. */
static ALWAYS_INLINE TARGET_AVX2 void store_outers(struct outer4 *outer, const struct headers *h, __m256i length)
{
	const __m256i swap = _mm256_setr_epi8(-1, -1, 1, 0, -1, -1, 5, 4, -1, -1, 9, 8, -1, -1, 13, 12, -1, -1, 1, 0, -1, -1, 5, 4, -1,
					      -1, 9, 8, -1, -1, 13, 12);
	__m256i low = _mm256_or_si256(_mm256_and_si256(h->at0, word(0xffff)),
				      _mm256_shuffle_epi8(_mm256_add_epi32(length, word(20)), swap));
	__m256i high = _mm256_and_si256(h->at4, word(htonl(0x4000)));
	/* As ipv4_life_after() has it. */
	__m256i carry = _mm256_cmpeq_epi32(_mm256_max_epu32(h->at8, word(0xfffe0000)), h->at8);
	__m256i life = _mm256_add_epi32(_mm256_add_epi32(h->at8, word(0xffff)), _mm256_and_si256(carry, word(0x10000)));
	__m256i sum = _mm256_add_epi32(fold(low), fold(high));
	__m256i a = _mm256_unpacklo_epi32(low, high), b = _mm256_unpackhi_epi32(low, high);
	__m256i c = _mm256_unpacklo_epi32(life, sum), d = _mm256_unpackhi_epi32(life, sum);

	store_rows(outer, sizeof(*outer), a, b, c, d);
}
_Static_assert(offsetof(struct outer4, life) == 8 && offsetof(struct outer4, sum) == 12 && sizeof(struct outer4) == 16,
	       "as store_outers() writes it");

/* packet_parse_plain() of eight at once, question by question. */
static ALWAYS_INLINE TARGET_AVX2 uint64_t read_lanes(const struct frame *frames, enum link_type link, struct packet *packets,
						     uint64_t *services, uint64_t *flows, struct outer4 *outer)
{
	const uint32_t before = link == LINK_ETHERNET ? ETHERNET_HEADER : 0;
	struct headers h;

	load_lengths(frames, &h.len, &h.wire_len);
	/* Where one is so short that bytes read here might not be there, all are read one by one. */
	if (UNLIKELY(_mm256_movemask_epi8(not_above(word(before + 40), h.len)) != -1))
		return read_each(frames, LANES, link, packets, services, flows, outer);
	load_beginnings(&h, frames, before);

	/* Ethertype, and version and header length. */
	__m256i right = _mm256_cmpeq_epi32(_mm256_and_si256(h.at0, word(0xff)), word(0x45));

	if (link == LINK_ETHERNET)
		right = _mm256_and_si256(right, _mm256_cmpeq_epi32(_mm256_srli_epi32(h.link, 16), word(htons(ETHERTYPE_IPV4))));
	if (!_mm256_movemask_epi8(right))
		return 0;
	load_headers(&h, frames, before);

	__m256i room = _mm256_sub_epi32(h.len, word(before)), length = WIRE16(h.at0, 2);
	__m256i protocol = _mm256_and_si256(_mm256_srli_epi32(h.at8, 8), word(0xff));
	__m256i tcp = _mm256_cmpeq_epi32(protocol, word(PROTOCOL_TCP)), udp = _mm256_cmpeq_epi32(protocol, word(PROTOCOL_UDP));
	__m256i takes = _mm256_blendv_epi8(WIRE16(h.at24, 0), _mm256_srli_epi32(_mm256_and_si256(h.at32, word(0xf0)), 2), tcp);
	__m256i least = _mm256_blendv_epi8(word(8), word(20), tcp);

	right = _mm256_and_si256(right, _mm256_and_si256(_mm256_or_si256(tcp, udp), checksum_is_right(&h)));
	right = _mm256_and_si256(right, not_above(h.wire_len, h.len));
	right = _mm256_and_si256(right, _mm256_cmpeq_epi32(_mm256_and_si256(h.at4, word(htonl(0x3fff))), word(0)));
	right = _mm256_and_si256(right, _mm256_cmpgt_epi32(_mm256_and_si256(h.at8, word(0xff)), word(1)));
	right = _mm256_and_si256(right, not_above(least, takes));
	right = _mm256_and_si256(right, not_above(_mm256_add_epi32(takes, word(20)), length));
	right = _mm256_and_si256(right, not_above(length, room));
	right = _mm256_andnot_si256(source_is_odd(&h), right);

	for (unsigned i = 0; i < LANES; i++)
		packets[i].ip = frames[i].data + before;
	store_packets(packets, length, h.at20, word(20 | 4u << 16 | (uint32_t)REASON_FORWARDED << 24),
		      _mm256_or_si256(protocol, _mm256_and_si256(_mm256_and_si256(h.at32, tcp), word(0xff00))));
	store_numbers(services, _mm256_or_si256(_mm256_slli_epi32(protocol, 16), _mm256_srli_epi32(h.at20, 16)), h.at16);
	store_numbers(flows, h.at12, _mm256_and_si256(h.at20, word(0xffff)));
	store_outers(outer, &h, length);
	return (unsigned)_mm256_movemask_ps(_mm256_castsi256_ps(right));
}

static ALWAYS_INLINE TARGET_AVX2 uint64_t read_vectors(const struct frame *frames, unsigned count, enum link_type link,
						       struct packet *packets, uint64_t *services, uint64_t *flows,
						       struct outer4 *outer)
{
	uint64_t taken = 0;
	unsigned first = 0;

	for (; first + LANES <= count; first += LANES)
		taken |= read_lanes(frames + first, link, packets + first, services + first, flows + first, outer + first) << first;
	if (first == count)
		return taken;
	return taken | read_each(frames + first, count - first, link, packets + first, services + first, flows + first, outer + first)
			       << first;
}

TARGET_AVX2 uint64_t read_ipv4_avx2(const struct frame *frames, unsigned count, enum link_type link, struct packet *packets,
				      uint64_t *services, uint64_t *flows, struct outer4 *outer)
{
	return read_vectors(frames, count, link, packets, services, flows, outer);
}

/* Eight lanes are as many as a burst can fill often enough; the registers are more, and so are what instructions can say. */
TARGET_AVX512 uint64_t read_ipv4_avx512(const struct frame *frames, unsigned count, enum link_type link,
					  struct packet *packets, uint64_t *services, uint64_t *flows, struct outer4 *outer)
{
	return read_vectors(frames, count, link, packets, services, flows, outer);
}
#endif
