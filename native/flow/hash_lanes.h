/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The cipher of keys and SipHash-1-3 of messages, many at once, each a lane of vectors that are written as such: compilers do
 * not find them in loops over lanes.  flow.c includes this once for each level of vector_level.h, which is why nothing guards it, with
 *
 *	LANES(name)	the name of a function of this level
 *	LANES_TARGET	what its functions are compiled for
 *	LANES_BYTES	the size of a vector
 *
 * The values are those of flow_scramble() and siphash13() in flow.c.  Vectors of GCC and Clang, no intrinsics: one text for all
 * levels, and other architectures have it as well.
 */

/* ---- the cipher ---- */

#define SPECK_LANES (2 * LANES_BYTES / 4) /* two vectors of each half of a key, which do not wait for each other */

typedef uint32_t LANES(speck_vector) __attribute__((vector_size(LANES_BYTES)));

/* Rotates right by a byte, which is a shuffle of bytes where the level has one. */
static ALWAYS_INLINE LANES_TARGET void LANES(speck_rotate8)(LANES(speck_vector) *x)
{
#if LANES_BYTES == 32 && __has_builtin(__builtin_shufflevector) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
	typedef uint8_t bytes __attribute__((vector_size(LANES_BYTES)));

	*x = (LANES(speck_vector))__builtin_shufflevector((bytes)*x, (bytes)*x, 1, 2, 3, 0, 5, 6, 7, 4, 9, 10, 11, 8, 13,
							  14, 15, 12, 17, 18, 19, 16, 21, 22, 23, 20, 25, 26, 27, 24, 29,
							  30, 31, 28);
#else
	*x = *x >> 8 | *x << 24;
#endif
}

/* Keys to halves and back.  Lanes may lie in any order between the two. */
static ALWAYS_INLINE LANES_TARGET void LANES(speck_split)(const uint64_t *keys, LANES(speck_vector) *x,
							  LANES(speck_vector) *y)
{
#if LANES_BYTES == 32 && __has_builtin(__builtin_shufflevector) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
	LANES(speck_vector) a, b;

	memcpy(&a, keys, LANES_BYTES);
	memcpy(&b, keys + LANES_BYTES / 8, LANES_BYTES);
	*x = __builtin_shufflevector(a, b, 1, 3, 9, 11, 5, 7, 13, 15);
	*y = __builtin_shufflevector(a, b, 0, 2, 8, 10, 4, 6, 12, 14);
#else
	for (unsigned i = 0; i < LANES_BYTES / 4; i++) {
		(*x)[i] = (uint32_t)(keys[i] >> 32);
		(*y)[i] = (uint32_t)keys[i];
	}
#endif
}

static ALWAYS_INLINE LANES_TARGET void LANES(speck_join)(const LANES(speck_vector) *x, const LANES(speck_vector) *y,
							 uint64_t *out)
{
#if LANES_BYTES == 32 && __has_builtin(__builtin_shufflevector) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
	LANES(speck_vector) a = __builtin_shufflevector(*y, *x, 0, 8, 1, 9, 4, 12, 5, 13);
	LANES(speck_vector) b = __builtin_shufflevector(*y, *x, 2, 10, 3, 11, 6, 14, 7, 15);

	memcpy(out, &a, LANES_BYTES);
	memcpy(out + LANES_BYTES / 8, &b, LANES_BYTES);
#else
	for (unsigned i = 0; i < LANES_BYTES / 4; i++)
		out[i] = (uint64_t)(*x)[i] << 32 | (*y)[i];
#endif
}

static ALWAYS_INLINE LANES_TARGET void LANES(scramble)(const struct flow_seed *seed, const uint64_t *keys, uint64_t *out)
{
	LANES(speck_vector) x[2], y[2];

	for (unsigned i = 0; i < 2; i++)
		LANES(speck_split)(keys + i * (SPECK_LANES / 2), &x[i], &y[i]);
	for (unsigned r = 0; r < SPECK_ROUNDS; r++) {
		for (unsigned i = 0; i < 2; i++) {
			LANES(speck_rotate8)(&x[i]);
			x[i] = (x[i] + y[i]) ^ seed->speck[r];
			y[i] = (y[i] << 3 | y[i] >> 29) ^ x[i];
		}
	}
	for (unsigned i = 0; i < 2; i++)
		LANES(speck_join)(&x[i], &y[i], out + i * (SPECK_LANES / 2));
}

LANES_TARGET void LANES(flow_scramble_burst)(const struct flow_seed *seed, const uint64_t *keys, uint64_t *out,
					     unsigned count)
{
	uint64_t rest[SPECK_LANES];
	unsigned base = 0;

	for (; count - base >= SPECK_LANES; base += SPECK_LANES)
		LANES(scramble)(seed, keys + base, out + base);
	if (base == count)
		return;
	/* Here and not above: compilers would clear it for those who have no rest as well. */
	memset(rest, 0, sizeof(rest));
	memcpy(rest, keys + base, (count - base) * sizeof(uint64_t));
	LANES(scramble)(seed, rest, rest);
	memcpy(out + base, rest, (count - base) * sizeof(uint64_t));
}

/* ---- the hash ---- */

#define SIP_VECTORS 2 /* two that do not wait for each other */
#define SIP_LANES (SIP_VECTORS * LANES_BYTES / 8)

typedef uint64_t LANES(sip_vector) __attribute__((vector_size(LANES_BYTES)));
typedef uint32_t LANES(sip_halves) __attribute__((vector_size(LANES_BYTES)));

/* A word of each message, or one of the four words of each state. */
union LANES(sip_words) {
	uint64_t lane[SIP_LANES];
	LANES(sip_vector) vector[SIP_VECTORS];
};

/* Rotation by a half is a shuffle, one instruction where shifts take three. */
static ALWAYS_INLINE LANES_TARGET void LANES(sip_swap_halves)(LANES(sip_vector) *x)
{
#if LANES_BYTES == 16 && __has_builtin(__builtin_shufflevector)
	LANES(sip_halves) halves = (LANES(sip_halves))*x;

	*x = (LANES(sip_vector))__builtin_shufflevector(halves, halves, 1, 0, 3, 2);
#elif LANES_BYTES == 32 && __has_builtin(__builtin_shufflevector)
	LANES(sip_halves) halves = (LANES(sip_halves))*x;

	*x = (LANES(sip_vector))__builtin_shufflevector(halves, halves, 1, 0, 3, 2, 5, 4, 7, 6);
#else
	*x = *x << 32 | *x >> 32;
#endif
}

static ALWAYS_INLINE LANES_TARGET void LANES(sip_round)(union LANES(sip_words) v[4])
{
	for (unsigned i = 0; i < SIP_VECTORS; i++) {
		LANES(sip_vector) a = v[0].vector[i], b = v[1].vector[i], c = v[2].vector[i], d = v[3].vector[i];

		a += b, b = (b << 13 | b >> 51) ^ a;
		LANES(sip_swap_halves)(&a);
		c += d, d = (d << 16 | d >> 48) ^ c;
		a += d, d = (d << 21 | d >> 43) ^ a;
		c += b, b = (b << 17 | b >> 47) ^ c;
		LANES(sip_swap_halves)(&c);
		v[0].vector[i] = a;
		v[1].vector[i] = b;
		v[2].vector[i] = c;
		v[3].vector[i] = d;
	}
}

static ALWAYS_INLINE LANES_TARGET void LANES(sip_begin)(union LANES(sip_words) v[4], const struct flow_seed *seed)
{
	for (unsigned i = 0; i < SIP_VECTORS; i++) {
		v[0].vector[i] = (LANES(sip_vector)){ 0 } + (seed->sip[0] ^ SIP_0);
		v[1].vector[i] = (LANES(sip_vector)){ 0 } + (seed->sip[1] ^ SIP_1);
		v[2].vector[i] = (LANES(sip_vector)){ 0 } + (seed->sip[0] ^ SIP_2);
		v[3].vector[i] = (LANES(sip_vector)){ 0 } + (seed->sip[1] ^ SIP_3);
	}
}

/* Takes a word of each in. */
static ALWAYS_INLINE LANES_TARGET void LANES(sip_word)(union LANES(sip_words) v[4], const union LANES(sip_words) *word)
{
	for (unsigned i = 0; i < SIP_VECTORS; i++)
		v[3].vector[i] ^= word->vector[i];
	LANES(sip_round)(v);
	for (unsigned i = 0; i < SIP_VECTORS; i++)
		v[0].vector[i] ^= word->vector[i];
}

/* The last word, which tells the length of a message, and the rounds behind it.  v[0] is the hashes then. */
static ALWAYS_INLINE LANES_TARGET void LANES(sip_end)(union LANES(sip_words) v[4], uint64_t bytes)
{
	union LANES(sip_words) last;

	for (unsigned i = 0; i < SIP_VECTORS; i++)
		last.vector[i] = (LANES(sip_vector)){ 0 } + (bytes << 56);
	LANES(sip_word)(v, &last);
	for (unsigned i = 0; i < SIP_VECTORS; i++)
		v[2].vector[i] ^= 0xff;
	for (unsigned r = 0; r < 3; r++)
		LANES(sip_round)(v);
	for (unsigned i = 0; i < SIP_VECTORS; i++)
		v[0].vector[i] ^= v[1].vector[i] ^ v[2].vector[i] ^ v[3].vector[i];
}

/* A word of each of n messages; what other lanes hold does not matter.  Whole vectors are loaded as such. */
static ALWAYS_INLINE LANES_TARGET void LANES(sip_load)(union LANES(sip_words) *words, const uint64_t *from, unsigned n)
{
	if (LIKELY(n == SIP_LANES)) {
		for (unsigned i = 0; i < SIP_VECTORS; i++)
			memcpy(&words->vector[i], from + i * (LANES_BYTES / 8), LANES_BYTES);
		return;
	}
	for (unsigned i = 0; i < SIP_LANES; i++)
		words->lane[i] = i < n ? from[i] : 0;
}

static ALWAYS_INLINE LANES_TARGET void LANES(sip_store)(const union LANES(sip_words) *words, uint64_t *to, unsigned n)
{
	if (LIKELY(n == SIP_LANES))
		for (unsigned i = 0; i < SIP_VECTORS; i++)
			memcpy(to + i * (LANES_BYTES / 8), &words->vector[i], LANES_BYTES);
	else
		memcpy(to, words, n * sizeof(uint64_t));
}

LANES_TARGET void LANES(flow_hash4_burst)(const struct flow_seed *seed, const uint64_t *addresses, const uint64_t *ports,
					  uint64_t *out, unsigned count)
{
	union LANES(sip_words) v[4], words[2];

	for (unsigned base = 0; base < count; base += SIP_LANES) {
		unsigned n = count - base < SIP_LANES ? count - base : SIP_LANES;

		LANES(sip_load)(&words[0], addresses + base, n);
		LANES(sip_load)(&words[1], ports + base, n);
		LANES(sip_begin)(v, seed);
		LANES(sip_word)(v, &words[0]);
		LANES(sip_word)(v, &words[1]);
		LANES(sip_end)(v, sizeof(uint64_t[2]));
		LANES(sip_store)(&v[0], out + base, n);
	}
}

LANES_TARGET void LANES(flow_hash6_burst)(const struct flow_seed *seed, const struct flow_words6 *words, uint64_t *out,
					  unsigned count)
{
	union LANES(sip_words) v[4], word;

	for (unsigned base = 0; base < count; base += SIP_LANES) {
		unsigned n = count - base < SIP_LANES ? count - base : SIP_LANES;

		LANES(sip_begin)(v, seed);
		for (unsigned w = 0; w < FLOW_TUPLE_WORDS; w++) {
			LANES(sip_load)(&word, &words->word[w][base], n);
			LANES(sip_word)(v, &word);
		}
		LANES(sip_end)(v, sizeof(struct flow_tuple));
		LANES(sip_store)(&v[0], out + base, n);
	}
}

#undef SPECK_LANES
#undef SIP_VECTORS
#undef SIP_LANES
#undef LANES
#undef LANES_TARGET
#undef LANES_BYTES
