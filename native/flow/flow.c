/* SPDX-License-Identifier: Apache-2.0 */
/* See flow.h. */
#include "flow/flow.h"

#include "machine/cpu.h"

#define SPECK_ROUNDS 12
#define SIP_0 0x736f6d6570736575u
#define SIP_1 0x646f72616e646f6du
#define SIP_2 0x6c7967656e657261u
#define SIP_3 0x7465646279746573u

static ALWAYS_INLINE uint32_t ror32(uint32_t x, unsigned n)
{
	return x >> n | x << (32 - n);
}

static ALWAYS_INLINE uint32_t rol32(uint32_t x, unsigned n)
{
	return x << n | x >> (32 - n);
}

static ALWAYS_INLINE uint64_t rol64(uint64_t x, unsigned n)
{
	return x << n | x >> (64 - n);
}

/* One Speck64 round; the key schedule is the same function with the round number for a key. */
#define SPECK_ROUND(x, y, k)                                                                                           \
	do {                                                                                                           \
		x = (ror32(x, 8) + y) ^ (k);                                                                           \
		y = rol32(y, 3) ^ x;                                                                                   \
	} while (0)

static uint64_t load_le64(const uint8_t *p)
{
	uint64_t v = 0;

	for (int i = 7; i >= 0; i--)
		v = v << 8 | p[i];
	return v;
}

#define SIP_ROUND(v)                                                                                                   \
	do {                                                                                                           \
		v[0] += v[1], v[1] = rol64(v[1], 13) ^ v[0], v[0] = rol64(v[0], 32);                                   \
		v[2] += v[3], v[3] = rol64(v[3], 16) ^ v[2];                                                           \
		v[0] += v[3], v[3] = rol64(v[3], 21) ^ v[0];                                                           \
		v[2] += v[1], v[1] = rol64(v[1], 17) ^ v[2], v[2] = rol64(v[2], 32);                                   \
	} while (0)

/* SipHash-1-3 (Aumasson, Bernstein 2012) of whole words; len is that of the message in bytes. */
static uint64_t siphash13(const uint64_t key[2], const uint64_t *words, unsigned count)
{
	uint64_t v[4] = { key[0] ^ SIP_0, key[1] ^ SIP_1, key[0] ^ SIP_2, key[1] ^ SIP_3 };
	uint64_t last = (uint64_t)(count * 8) << 56;

	for (unsigned i = 0; i < count; i++) {
		v[3] ^= words[i];
		SIP_ROUND(v);
		v[0] ^= words[i];
	}
	v[3] ^= last;
	SIP_ROUND(v);
	v[0] ^= last;
	v[2] ^= 0xff;
	SIP_ROUND(v);
	SIP_ROUND(v);
	SIP_ROUND(v);
	return v[0] ^ v[1] ^ v[2] ^ v[3];
}

void flow_seed_init(struct flow_seed *seed, const uint8_t bytes[16])
{
	uint64_t key[2];

	seed->sip[0] = load_le64(bytes);
	seed->sip[1] = load_le64(bytes + 8);

	/*
	 * The cipher's key is made by the hash, so that nothing that the cipher reveals leads back to the seed.  No tuple is a
	 * message of a single word, so these two are no tuple's hashes either.
	 */
	for (uint64_t half = 0; half < 2; half++)
		key[half] = siphash13(seed->sip, &half, 1);

	uint32_t b = (uint32_t)key[0];
	uint32_t l[3] = { (uint32_t)(key[0] >> 32), (uint32_t)key[1], (uint32_t)(key[1] >> 32) };

	for (uint32_t i = 0; i < SPECK_ROUNDS; i++) {
		seed->speck[i] = b;
		SPECK_ROUND(l[i % 3], b, i);
	}
}

uint64_t flow_tuple_hash(const struct flow_seed *seed, const struct flow_tuple *tuple, bool source_only)
{
	uint8_t message[40] = { 0 };
	uint64_t words[5];
	unsigned count;

	if (tuple->family == 6) {
		count = source_only ? 2 : 5;
		memcpy(message, tuple, count * 8);
	} else {
		count = 2;
		memcpy(message, tuple->source, 4);
		if (!source_only) {
			memcpy(message + 4, tuple->destination, 4);
			memcpy(message + 8, &tuple->source_port, 2);
			memcpy(message + 10, &tuple->destination_port, 2);
			message[12] = tuple->protocol;
		}
	}
	for (unsigned i = 0; i < count; i++)
		words[i] = load_le64(message + 8 * i);
	return siphash13(seed->sip, words, count);
}

uint64_t flow_scramble(const struct flow_seed *seed, uint64_t key)
{
	uint32_t x = (uint32_t)(key >> 32), y = (uint32_t)key;

	for (unsigned i = 0; i < SPECK_ROUNDS; i++)
		SPECK_ROUND(x, y, seed->speck[i]);
	return (uint64_t)x << 32 | y;
}

uint64_t flow_unscramble(const struct flow_seed *seed, uint64_t scrambled)
{
	uint32_t x = (uint32_t)(scrambled >> 32), y = (uint32_t)scrambled;

	for (unsigned i = SPECK_ROUNDS; i-- > 0;) {
		y = ror32(y ^ x, 3);
		x = rol32((x ^ seed->speck[i]) - y, 8);
	}
	return (uint64_t)x << 32 | y;
}

/* ---- many at once, for each level of vector instructions, see vector_level.h ---- */

#define LANES(name) name##_scalar
#define LANES_TARGET
#define LANES_BYTES 16
#include "flow/hash_lanes.h"

#ifdef VECTORS_X86
#define LANES(name) name##_avx2
#define LANES_TARGET TARGET_AVX2
#define LANES_BYTES 32
#include "flow/hash_lanes.h"

#define LANES(name) name##_avx512
#define LANES_TARGET TARGET_AVX512
#define LANES_BYTES 64
#include "flow/hash_lanes.h"
#endif
