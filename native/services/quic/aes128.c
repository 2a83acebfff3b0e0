/* SPDX-License-Identifier: Apache-2.0 */
/* See aes128.h. */
#include "services/quic/aes128.h"

#include <errno.h>
#include <string.h>

#ifdef __x86_64__
#include <wmmintrin.h>
#endif

/* ---- portable: sixteen elements of GF(2^8) at a time, without a table ---- */

typedef uint8_t bytes16 __attribute__((vector_size(16)));

#ifdef __clang__
#define SHUFFLE(from, ...) __builtin_shufflevector(from, from, __VA_ARGS__)
#else
#define SHUFFLE(from, ...) __builtin_shuffle(from, (bytes16){ __VA_ARGS__ })
#endif

static inline bytes16 load(const uint8_t *from)
{
	bytes16 value;

	memcpy(&value, from, sizeof(value));
	return value;
}

/* Times x, modulo x^8 + x^4 + x^3 + x + 1. */
static inline bytes16 twice(bytes16 a)
{
	return (a << 1) ^ ((-(a >> 7)) & 0x1b);
}

static inline bytes16 multiply(bytes16 a, bytes16 b)
{
	bytes16 product = { 0 };

	for (unsigned bit = 0; bit < 8; bit++) {
		product ^= a & -(b & 1);
		b >>= 1;
		a = twice(a);
	}
	return product;
}

/* A square is linear in the bits: each has one of its own, x^(2 * bit). */
static inline bytes16 square(bytes16 a)
{
	static const uint8_t squares[8] = { 0x01, 0x04, 0x10, 0x40, 0x1b, 0x6c, 0xab, 0x9a };
	bytes16 sum = { 0 };

	for (unsigned bit = 0; bit < 8; bit++)
		sum ^= -(a >> bit & 1) & squares[bit];
	return sum;
}

/* a^254, which is the inverse, and 0 of 0. */
static bytes16 invert(bytes16 a)
{
	bytes16 a2 = square(a), a3 = multiply(a2, a), a12 = square(square(a3)), a15 = multiply(a12, a3);
	bytes16 a240 = square(square(square(square(a15))));

	return multiply(multiply(a240, a12), a2);
}

static inline bytes16 rotate(bytes16 a, unsigned bits)
{
	return a << bits | a >> (8 - bits);
}

/* FIPS 197, 5.1.1 and 5.3.2. */
static bytes16 substitute(bytes16 a)
{
	a = invert(a);
	return a ^ rotate(a, 1) ^ rotate(a, 2) ^ rotate(a, 3) ^ rotate(a, 4) ^ 0x63;
}

static bytes16 substitute_back(bytes16 a)
{
	return invert(rotate(a, 1) ^ rotate(a, 3) ^ rotate(a, 6) ^ 0x05);
}

/* Row r of the state, byte r of each column, moves r columns: 5.1.2, 5.3.1. */
static inline bytes16 shift_rows(bytes16 a)
{
	return SHUFFLE(a, 0, 5, 10, 15, 4, 9, 14, 3, 8, 13, 2, 7, 12, 1, 6, 11);
}

static inline bytes16 shift_rows_back(bytes16 a)
{
	return SHUFFLE(a, 0, 13, 10, 7, 4, 1, 14, 11, 8, 5, 2, 15, 12, 9, 6, 3);
}

/* Byte r of each column becomes what byte r + 1, 2, 3 was. */
#define NEXT1(a) SHUFFLE(a, 1, 2, 3, 0, 5, 6, 7, 4, 9, 10, 11, 8, 13, 14, 15, 12)
#define NEXT2(a) SHUFFLE(a, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13)
#define NEXT3(a) SHUFFLE(a, 3, 0, 1, 2, 7, 4, 5, 6, 11, 8, 9, 10, 15, 12, 13, 14)

/* 5.1.3: 2, 3, 1, 1. */
static inline bytes16 mix_columns(bytes16 a)
{
	bytes16 next = NEXT1(a);

	return twice(a ^ next) ^ next ^ NEXT2(a) ^ NEXT3(a);
}

/* 5.3.3: 14, 11, 13, 9 is 2, 3, 1, 1 after 5, 0, 4, 0. */
static inline bytes16 mix_columns_back(bytes16 a)
{
	return mix_columns(a ^ twice(twice(a ^ NEXT2(a))));
}

static void encrypt_portable(const struct aes128 *aes, uint8_t *block)
{
	bytes16 state = load(block) ^ load(aes->rounds[0]);

	for (unsigned round = 1; round < AES128_ROUNDS; round++)
		state = mix_columns(shift_rows(substitute(state))) ^ load(aes->rounds[round]);
	state = shift_rows(substitute(state)) ^ load(aes->rounds[AES128_ROUNDS]);
	memcpy(block, &state, sizeof(state));
}

static void decrypt_portable(const struct aes128 *aes, uint8_t *block)
{
	bytes16 state = load(block) ^ load(aes->rounds[AES128_ROUNDS]);

	for (unsigned round = AES128_ROUNDS - 1; round; round--)
		state = mix_columns_back(substitute_back(shift_rows_back(state)) ^ load(aes->rounds[round]));
	state = substitute_back(shift_rows_back(state)) ^ load(aes->rounds[0]);
	memcpy(block, &state, sizeof(state));
}

/* 5.2 */
static void expand_key(struct aes128 *aes, const uint8_t *key)
{
	uint8_t constant = 1, word[AES128_BYTES] = { 0 };

	memcpy(aes->rounds[0], key, AES128_BYTES);
	for (unsigned round = 1; round <= AES128_ROUNDS; round++) {
		const uint8_t *before = aes->rounds[round - 1];
		uint8_t *after = aes->rounds[round];
		bytes16 substituted;

		for (unsigned i = 0; i < 4; i++)
			word[i] = before[12 + (i + 1) % 4];
		substituted = substitute(load(word));
		memcpy(after, &substituted, 4);
		after[0] ^= constant;
		for (unsigned i = 0; i < 4; i++)
			after[i] ^= before[i];
		for (unsigned i = 4; i < AES128_BYTES; i++)
			after[i] = after[i - 4] ^ before[i];
		constant = (uint8_t)(constant << 1 ^ (constant >> 7) * 0x1b);
	}
}

/* ---- the CPU's own ---- */

#ifdef __x86_64__

#define NI __attribute__((target("aes")))

static inline NI __m128i load_ni(const uint8_t *from)
{
	return _mm_loadu_si128((const __m128i *)from);
}

static NI void encrypt_ni(const struct aes128 *aes, uint8_t *block)
{
	__m128i state = _mm_xor_si128(load_ni(block), load_ni(aes->rounds[0]));

	for (unsigned round = 1; round < AES128_ROUNDS; round++)
		state = _mm_aesenc_si128(state, load_ni(aes->rounds[round]));
	_mm_storeu_si128((__m128i *)block, _mm_aesenclast_si128(state, load_ni(aes->rounds[AES128_ROUNDS])));
}

static NI void decrypt_ni(const struct aes128 *aes, uint8_t *block)
{
	__m128i state = _mm_xor_si128(load_ni(block), load_ni(aes->inverse[0]));

	for (unsigned round = 1; round < AES128_ROUNDS; round++)
		state = _mm_aesdec_si128(state, load_ni(aes->inverse[round]));
	_mm_storeu_si128((__m128i *)block, _mm_aesdeclast_si128(state, load_ni(aes->inverse[AES128_ROUNDS])));
}

/* The equivalent inverse cipher, 5.3.5. */
static void invert_key(struct aes128 *aes)
{
	memcpy(aes->inverse[0], aes->rounds[AES128_ROUNDS], AES128_BYTES);
	for (unsigned round = 1; round < AES128_ROUNDS; round++) {
		bytes16 mixed = mix_columns_back(load(aes->rounds[AES128_ROUNDS - round]));

		memcpy(aes->inverse[round], &mixed, sizeof(mixed));
	}
	memcpy(aes->inverse[AES128_ROUNDS], aes->rounds[0], AES128_BYTES);
}

bool aes128_has(enum aes128_level level)
{
	return level == AES128_PORTABLE || (level == AES128_NI && __builtin_cpu_supports("aes"));
}

#else

static void encrypt_ni(const struct aes128 *aes, uint8_t *block)
{
	encrypt_portable(aes, block);
}

static void decrypt_ni(const struct aes128 *aes, uint8_t *block)
{
	decrypt_portable(aes, block);
}

static void invert_key(struct aes128 *aes)
{
	(void)aes;
}

bool aes128_has(enum aes128_level level)
{
	return level == AES128_PORTABLE;
}

#endif

/* ---- any ---- */

int aes128_init(struct aes128 *aes, const uint8_t key[static AES128_BYTES], enum aes128_level level)
{
	if (level == AES128_LEVELS)
		level = aes128_has(AES128_NI) ? AES128_NI : AES128_PORTABLE;
	if (!aes128_has(level))
		return -ENOTSUP;
	memset(aes, 0, sizeof(*aes));
	aes->level = level;
	expand_key(aes, key);
	if (level == AES128_NI)
		invert_key(aes);
	return 0;
}

void aes128_encrypt(const struct aes128 *aes, uint8_t block[static AES128_BYTES])
{
	if (aes->level == AES128_NI)
		encrypt_ni(aes, block);
	else
		encrypt_portable(aes, block);
}

void aes128_decrypt(const struct aes128 *aes, uint8_t block[static AES128_BYTES])
{
	if (aes->level == AES128_NI)
		decrypt_ni(aes, block);
	else
		decrypt_portable(aes, block);
}
