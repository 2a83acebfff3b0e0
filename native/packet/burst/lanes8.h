/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What reads the headers of eight packets at once is made of: words of 32 bits, a lane each, as they lie in memory.  Lanes 0 to 3
 * are packets 0 to 3 in the lower half of a vector, 4 to 7 in the upper one.  For read_ipv4.c and read_ipv6.c alone.
 */
#ifndef VIPMUX_LANES8_H
#define VIPMUX_LANES8_H

#include "machine/cpu.h"

#ifdef VECTORS_X86
#include <immintrin.h>
#include <stddef.h>

#include "packet/packet.h"

#define LANES 8u

static ALWAYS_INLINE TARGET_AVX2 __m256i load_pair(const void *low, const void *high)
{
	return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128(low)), _mm_loadu_si128(high), 1);
}

/* Of four rows of four words the last two columns. */
static ALWAYS_INLINE TARGET_AVX2 void last_columns(const __m256i rows[4], __m256i *third, __m256i *fourth)
{
	__m256i a = _mm256_unpackhi_epi32(rows[0], rows[1]), b = _mm256_unpackhi_epi32(rows[2], rows[3]);

	*third = _mm256_unpacklo_epi64(a, b);
	*fourth = _mm256_unpackhi_epi64(a, b);
}

static ALWAYS_INLINE TARGET_AVX2 void first_columns(const __m256i rows[4], __m256i *first, __m256i *second)
{
	__m256i a = _mm256_unpacklo_epi32(rows[0], rows[1]), b = _mm256_unpacklo_epi32(rows[2], rows[3]);

	*first = _mm256_unpacklo_epi64(a, b);
	*second = _mm256_unpackhi_epi64(a, b);
}

/* Length and length on the wire are the third and the fourth word of a frame. */
static ALWAYS_INLINE TARGET_AVX2 void load_lengths(const struct frame *frames, __m256i *len, __m256i *wire_len)
{
	__m256i rows[4];

	for (unsigned i = 0; i < 4; i++)
		rows[i] = load_pair(&frames[i], &frames[i + 4]);
	last_columns(rows, len, wire_len);
}
_Static_assert(offsetof(struct frame, len) == 8 && offsetof(struct frame, wire_len) == 12, "as load_lengths() has it");

/* The same number in each lane. */
static ALWAYS_INLINE TARGET_AVX2 __m256i word(uint32_t value)
{
	return _mm256_set1_epi32((int)value);
}

static ALWAYS_INLINE TARGET_AVX2 __m256i not_above(__m256i a, __m256i b)
{
	return _mm256_cmpeq_epi32(_mm256_min_epu32(a, b), a);
}

/* The number in wire order that begins at byte `at` of each word. */
#define WIRE16(x, at)                                                                                                  \
	_mm256_shuffle_epi8(x, _mm256_setr_epi8((at) + 1, at, -1, -1, (at) + 5, (at) + 4, -1, -1, (at) + 9, (at) + 8,   \
						-1, -1, (at) + 13, (at) + 12, -1, -1, (at) + 1, at, -1, -1, (at) + 5,   \
						(at) + 4, -1, -1, (at) + 9, (at) + 8, -1, -1, (at) + 13, (at) + 12, -1, \
						-1))

/* Rows of four words, from pairs of their columns, to places `step` bytes apart. */
static ALWAYS_INLINE TARGET_AVX2 void store_rows(void *to, size_t step, __m256i first_low, __m256i first_high, __m256i last_low,
						 __m256i last_high)
{
	__m256i rows[4] = { _mm256_unpacklo_epi64(first_low, last_low), _mm256_unpackhi_epi64(first_low, last_low),
			    _mm256_unpacklo_epi64(first_high, last_high), _mm256_unpackhi_epi64(first_high, last_high) };

	for (unsigned i = 0; i < 4; i++) {
		_mm_storeu_si128((__m128i *)((uint8_t *)to + i * step), _mm256_castsi256_si128(rows[i]));
		_mm_storeu_si128((__m128i *)((uint8_t *)to + (i + 4) * step), _mm256_extracti128_si256(rows[i], 1));
	}
}

/* Three columns to the second to the sixth word of eight packets; the fifth (transport, family, reason) is the same of all. */
static ALWAYS_INLINE TARGET_AVX2 void store_packets(struct packet *packets, __m256i length, __m256i ports, __m256i same,
						    __m256i last)
{
	__m256i a = _mm256_unpacklo_epi32(length, ports), b = _mm256_unpackhi_epi32(length, ports);
	__m256i c = _mm256_unpacklo_epi32(same, last), d = _mm256_unpackhi_epi32(same, last);

	store_rows(&packets->length, sizeof(*packets), a, b, c, d);
}
_Static_assert(offsetof(struct packet, length) == 8 && offsetof(struct packet, source_port) == 12 &&
		       offsetof(struct packet, destination_port) == 14 && offsetof(struct packet, transport) == 16 &&
		       offsetof(struct packet, family) == 18 && offsetof(struct packet, reason) == 19 &&
		       offsetof(struct packet, protocol) == 20 && offsetof(struct packet, flags) == 21 &&
		       sizeof(struct packet) == 24,
	       "as store_packets() writes it");

/* Words to the lower and the upper halves of eight numbers, in the order of the packets. */
static ALWAYS_INLINE TARGET_AVX2 void store_numbers(uint64_t *to, __m256i lower, __m256i upper)
{
	__m256i a = _mm256_unpacklo_epi32(lower, upper), b = _mm256_unpackhi_epi32(lower, upper);

	_mm256_storeu_si256((__m256i *)to, _mm256_permute2x128_si256(a, b, 0x20));
	_mm256_storeu_si256((__m256i *)(to + 4), _mm256_permute2x128_si256(a, b, 0x31));
}
#endif

#endif
