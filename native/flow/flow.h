/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a flow is, in numbers: the tuple a packet carries, the keyed hash that chooses its Maglev slot, and the
 * 64-bit key under which the flow table remembers it.
 *
 * Two numbers, on purpose.  The *tuple hash* must be the same on every MUX of a pool, so it sees only the packet and
 * the pool's seed.  The *flow key* names the service by a number that is local to this MUX, so it never leaves it.
 */
#ifndef VIPMUX_FLOW_H
#define VIPMUX_FLOW_H

#include <endian.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

/* The pool's secret, expanded once.  Host order numbers. */
struct flow_seed {
	uint64_t sip[2];    /* SipHash key: the 16 bytes of the seed */
	uint32_t speck[12]; /* round keys of the bijection, see flow_seed_init() */
};

/* Wire order throughout; IPv4 addresses fill the first 4 bytes and leave the rest zero. */
struct flow_tuple {
	uint8_t source[16];
	uint8_t destination[16];
	uint16_t source_port;
	uint16_t destination_port;
	uint8_t protocol;
	uint8_t family; /* 4 or 6 */
	uint16_t zero;
};
_Static_assert(sizeof(struct flow_tuple) == 40, "hashed as five 64-bit words, no padding");

#define FLOW_SERVICE_BITS 15
#define FLOW_WIDE (1ULL << 63)

void flow_seed_init(struct flow_seed *seed, const uint8_t bytes[16]);

/* SipHash-1-3 over the whole tuple, or over family and source only.  Same seed, same tuple: same value on every MUX. */
uint64_t flow_tuple_hash(const struct flow_seed *seed, const struct flow_tuple *tuple, bool source_only);

/*
 * What of an IPv4 tuple is hashed, as two words; flow_hash4_burst_scalar() hashes many, and so do those that
 * struct vector chooses from.  The values are those of flow_tuple_hash().  Addresses and ports as they lie in memory.
 */
static inline uint64_t flow_word4_addresses(uint32_t source, uint32_t destination)
{
	return (uint64_t)le32toh(destination) << 32 | le32toh(source);
}

static inline uint64_t flow_word4_ports(uint16_t source_port, uint16_t destination_port, uint8_t protocol)
{
	return (uint64_t)protocol << 32 | (uint64_t)le16toh(destination_port) << 16 | le16toh(source_port);
}

typedef void flow_hash4_many(const struct flow_seed *seed, const uint64_t *addresses, const uint64_t *ports,
			     uint64_t *out, unsigned count);
flow_hash4_many flow_hash4_burst_scalar, flow_hash4_burst_avx2, flow_hash4_burst_avx512;

/*
 * What is hashed of IPv6 tuples, a column for each word of them: struct flow_tuple as words, as they lie in memory.  The burst makes
 * flow_tuple_hash() of each, not by its source alone.
 */
#define FLOW_TUPLE_WORDS (sizeof(struct flow_tuple) / 8)
#define FLOW_WORDS6 16u /* tuples at most */

struct flow_words6 {
	uint64_t word[FLOW_TUPLE_WORDS][FLOW_WORDS6];
};

/* addresses: source and destination, one behind the other as in an IPv6 header */
static inline void flow_words6_set(struct flow_words6 *words, unsigned at, const uint8_t *addresses, uint16_t source_port,
				   uint16_t destination_port, uint8_t protocol)
{
	uint64_t pairs[4];

	memcpy(pairs, addresses, sizeof(pairs));
	for (unsigned w = 0; w < 4; w++)
		words->word[w][at] = le64toh(pairs[w]);
	words->word[4][at] = 6ULL << 40 | flow_word4_ports(source_port, destination_port, protocol);
}

typedef void flow_hash6_many(const struct flow_seed *seed, const struct flow_words6 *words, uint64_t *out, unsigned count);
flow_hash6_many flow_hash6_burst_scalar, flow_hash6_burst_avx2, flow_hash6_burst_avx512;

/*
 * The key of a flow of an IPv4 service with one address and one port: source address, source port and service are
 * the whole tuple, so the key is exact.  Layout: 0 | service (15) | port (16) | address (32); port and address as read
 * from the wire.
 */
static inline uint64_t flow_key_narrow(uint32_t service, uint32_t source, uint16_t source_port)
{
	return (uint64_t)service << 48 | (uint64_t)source_port << 32 | source;
}

/*
 * The key of any other flow (IPv6, port ranges, prefixes): 1 | service (15) | high 48 bits of the tuple hash, of which the
 * upper 32 are those that a Maglev slot is made of.  Not exact: two live flows of one service share a key with
 * probability 2^-48 each, which at a million flows makes a new flow meet a wrong entry once in 2^28.
 */
static inline uint64_t flow_key_wide(uint32_t service, uint64_t tuple_hash)
{
	return FLOW_WIDE | (uint64_t)service << 48 | tuple_hash >> 16;
}

/*
 * What of a key is the same on every MUX of a pool: all but the service's number, 48 bits.  flow_key_of() makes the key
 * again where the service has another number.
 */
static inline uint64_t flow_key_name(uint64_t key)
{
	return key & 0xffffffffffff;
}

static inline uint64_t flow_key_of(uint32_t service, bool narrow, uint64_t name)
{
	return (narrow ? 0 : FLOW_WIDE) | (uint64_t)service << 48 | flow_key_name(name);
}

static inline uint32_t flow_key_service(uint64_t key)
{
	return (uint32_t)(key >> 48) & ((1u << FLOW_SERVICE_BITS) - 1);
}

/*
 * A keyed bijection over 64 bits: 12 of the 27 rounds of Speck64/128 (Beaulieu et al. 2013).  It spreads keys that an
 * attacker chooses evenly over the table without losing a bit, so a table that stores what the line number does not
 * tell can compare keys exactly.  It is flood resistance, not encryption.  flow_scramble_burst_scalar() does many
 * at once, and so do those that struct vector chooses from; flow_unscramble() is the inverse.
 */
uint64_t flow_scramble(const struct flow_seed *seed, uint64_t key);
uint64_t flow_unscramble(const struct flow_seed *seed, uint64_t scrambled);
typedef void flow_scramble_many(const struct flow_seed *seed, const uint64_t *keys, uint64_t *out, unsigned count);
flow_scramble_many flow_scramble_burst_scalar, flow_scramble_burst_avx2, flow_scramble_burst_avx512;

#endif
