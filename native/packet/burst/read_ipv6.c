/* SPDX-License-Identifier: Apache-2.0 */
/* See read_ipv6.h. */
#include "packet/burst/read_ipv6.h"

#include "packet/burst/lanes8.h"

static inline bool read_each(const struct frame *frames, unsigned first, unsigned count, enum link_type link,
			     struct packet *packets, struct flow_words6 *words)
{
	for (unsigned i = first; i < count; i++) {
		struct packet *packet = &packets[i];

		if (!packet_parse_plain6(packet, &frames[i], link))
			return false;
		flow_words6_set(words, i, packet->ip + 8, packet->source_port, packet->destination_port, packet->protocol);
	}
	return true;
}

bool read_ipv6_scalar(const struct frame *frames, unsigned count, enum link_type link, struct packet *packets,
		       struct flow_words6 *words)
{
	return read_each(frames, 0, count, link, packets, words);
}

#ifdef VECTORS_X86
/* Beginnings of IP headers, and what lies before and behind; columns are named by their offset in the IP header. */
struct headers {
	__m256i link; /* the four bytes before */
	__m256i at0, at4;
	__m256i at38, at42, at50;
};

static ALWAYS_INLINE TARGET_AVX2 void load_beginnings(struct headers *h, const struct frame *frames, uint32_t before)
{
	__m256i rows[4], far;

	for (unsigned i = 0; i < 4; i++)
		rows[i] = load_pair(frames[i].data + before - 8, frames[i + 4].data + before - 8);
	first_columns(rows, &far, &h->link);
	last_columns(rows, &h->at0, &h->at4);
}

/* To the 54th byte: flags of TCP are the last. */
static ALWAYS_INLINE TARGET_AVX2 void load_ends(struct headers *h, const struct frame *frames, uint32_t before)
{
	__m256i rows[4], unused;

	for (unsigned i = 0; i < 4; i++)
		rows[i] = load_pair(frames[i].data + before + 38, frames[i + 4].data + before + 38);
	first_columns(rows, &h->at38, &h->at42);
	last_columns(rows, &unused, &h->at50);
}

/*
 * Addresses of four packets, a word of each in a vector, into words[]; true if no source is odd as packet_odd_source6()
 * has it, or the destination itself.
 */
static ALWAYS_INLINE TARGET_AVX2 bool take_addresses(const struct frame *frames, uint32_t before, struct flow_words6 *words,
						     unsigned first)
{
	const __m256i octet = _mm256_set1_epi64x(0xfe), zero = _mm256_setzero_si256();
	__m256i rows[4], a, b, c, d, word[4], head, odd;

	for (unsigned i = 0; i < 4; i++)
		rows[i] = _mm256_loadu_si256((const __m256i *)(frames[i].data + before + 8));
	a = _mm256_unpacklo_epi64(rows[0], rows[1]); /* words 0 and 2 of packets 0 and 1 */
	b = _mm256_unpackhi_epi64(rows[0], rows[1]); /* 1 and 3 */
	c = _mm256_unpacklo_epi64(rows[2], rows[3]);
	d = _mm256_unpackhi_epi64(rows[2], rows[3]);
	word[0] = _mm256_permute2x128_si256(a, c, 0x20);
	word[1] = _mm256_permute2x128_si256(b, d, 0x20);
	word[2] = _mm256_permute2x128_si256(a, c, 0x31);
	word[3] = _mm256_permute2x128_si256(b, d, 0x31);
	for (unsigned w = 0; w < 4; w++)
		_mm256_storeu_si256((__m256i *)&words->word[w][first], word[w]);

	head = _mm256_and_si256(word[0], octet);
	odd = _mm256_or_si256(_mm256_cmpeq_epi64(head, zero), _mm256_cmpeq_epi64(head, octet));
	odd = _mm256_or_si256(odd, _mm256_and_si256(_mm256_cmpeq_epi64(word[0], word[2]), _mm256_cmpeq_epi64(word[1], word[3])));
	return !_mm256_movemask_epi8(odd);
}

/* packet_parse_plain6() of eight at once, question by question. */
static ALWAYS_INLINE TARGET_AVX2 bool read_lanes(const struct frame *frames, unsigned first, enum link_type link,
						 struct packet *packets, struct flow_words6 *words)
{
	const uint32_t before = link == LINK_ETHERNET ? ETHERNET_HEADER : 0;
	__m256i len, wire_len, right;
	struct headers h;

	load_lengths(frames, &len, &wire_len);
	/* Where one is so short that bytes read here might not be there, all are read one by one. */
	right = not_above(word(before + 54), len);
	if (UNLIKELY(_mm256_movemask_epi8(right) != -1))
		return read_each(frames - first, first, first + LANES, link, packets - first, words);
	load_beginnings(&h, frames, before);
	right = _mm256_cmpeq_epi32(_mm256_and_si256(h.at0, word(0xf0)), word(0x60));
	if (link == LINK_ETHERNET)
		right = _mm256_and_si256(right, _mm256_cmpeq_epi32(_mm256_srli_epi32(h.link, 16), word(htons(ETHERTYPE_IPV6))));
	if (_mm256_movemask_epi8(right) != -1)
		return false;
	load_ends(&h, frames, before);

	__m256i length = _mm256_add_epi32(WIRE16(h.at4, 0), word(40));
	__m256i protocol = _mm256_and_si256(_mm256_srli_epi32(h.at4, 16), word(0xff));
	__m256i tcp = _mm256_cmpeq_epi32(protocol, word(PROTOCOL_TCP)), udp = _mm256_cmpeq_epi32(protocol, word(PROTOCOL_UDP));
	/* Of at50 the third byte is TCP's data offset, the fourth its flags; of at42 the last two are UDP's length. */
	__m256i offset = _mm256_and_si256(_mm256_srli_epi32(h.at50, 18), word(0x3c));
	__m256i takes = _mm256_blendv_epi8(WIRE16(h.at42, 2), offset, tcp), least = _mm256_blendv_epi8(word(8), word(20), tcp);
	__m256i ports = _mm256_or_si256(_mm256_srli_epi32(h.at38, 16), _mm256_slli_epi32(h.at42, 16));
	__m256i flags = _mm256_and_si256(_mm256_slli_epi32(_mm256_srli_epi32(h.at50, 24), 8), tcp);

	right = _mm256_and_si256(_mm256_or_si256(tcp, udp), not_above(wire_len, len));
	right = _mm256_and_si256(right, not_above(word(2), _mm256_srli_epi32(h.at4, 24)));
	right = _mm256_and_si256(right, not_above(least, takes));
	right = _mm256_and_si256(right, not_above(_mm256_add_epi32(takes, word(40)), length));
	right = _mm256_and_si256(right, not_above(length, _mm256_sub_epi32(len, word(before))));
	if (!take_addresses(frames, before, words, first) || !take_addresses(frames + 4, before, words, first + 4) ||
	    _mm256_movemask_epi8(right) != -1)
		return false;

	for (unsigned i = 0; i < LANES; i++)
		packets[i].ip = frames[i].data + before;
	store_packets(packets, length, ports, word(40 | 6u << 16 | (uint32_t)REASON_FORWARDED << 24),
		      _mm256_or_si256(protocol, flags));
	store_numbers(&words->word[4][first], ports, _mm256_or_si256(protocol, word(6u << 8)));
	return true;
}

static ALWAYS_INLINE TARGET_AVX2 bool read_vectors(const struct frame *frames, unsigned count, enum link_type link,
						   struct packet *packets, struct flow_words6 *words)
{
	unsigned first = 0;

	for (; first + LANES <= count; first += LANES)
		if (!read_lanes(frames + first, first, link, packets + first, words))
			return false;
	return read_each(frames, first, count, link, packets, words);
}

TARGET_AVX2 bool read_ipv6_avx2(const struct frame *frames, unsigned count, enum link_type link, struct packet *packets,
				  struct flow_words6 *words)
{
	return read_vectors(frames, count, link, packets, words);
}

TARGET_AVX512 bool read_ipv6_avx512(const struct frame *frames, unsigned count, enum link_type link, struct packet *packets,
				      struct flow_words6 *words)
{
	return read_vectors(frames, count, link, packets, words);
}
#endif
