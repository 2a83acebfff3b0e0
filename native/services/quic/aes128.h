/* SPDX-License-Identifier: Apache-2.0 */
/*
 * AES with a key of 128 bits (FIPS 197), a block at a time, for connection ids (quic_routes.h).  The key is a secret and blocks come
 * from strangers: no branch and no place in memory depends on either, whichever implementation runs.  Any thread.
 */
#ifndef VIPMUX_AES128_H
#define VIPMUX_AES128_H

#include <stdbool.h>
#include <stdint.h>

#define AES128_BYTES 16u
#define AES128_ROUNDS 10u

/* One after the other, the last is used where the CPU has its instructions. */
enum aes128_level {
	AES128_PORTABLE = 0, /* vectors of bytes, whatever the machine makes of them; the oracle of the others */
	AES128_NI = 1,       /* x86's AES instructions */
	AES128_LEVELS
};

struct aes128 {
	uint8_t rounds[AES128_ROUNDS + 1][AES128_BYTES];  /* of the key */
	uint8_t inverse[AES128_ROUNDS + 1][AES128_BYTES]; /* the same for decryption by AES128_NI, in the order used */
	uint32_t level;                                   /* enum aes128_level */
};

/* Whether this machine has it. */
bool aes128_has(enum aes128_level level);

/* -ENOTSUP: this machine has no such level.  AES128_LEVELS: the best it has. */
int aes128_init(struct aes128 *aes, const uint8_t key[static AES128_BYTES], enum aes128_level level);

/* In place. */
void aes128_encrypt(const struct aes128 *aes, uint8_t block[static AES128_BYTES]);
void aes128_decrypt(const struct aes128 *aes, uint8_t block[static AES128_BYTES]);

#endif
