/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From a QUIC connection id to a backend's number (draft-ietf-quic-load-balancers-21): what a server was given as its server id it
 * writes into the ids that it gives to clients, plain or encrypted, and so says whose packet it is, whatever address it comes
 * from.  The id lies where RFC 8999 has it in every version of QUIC.
 *
 * Of one service, with all configurations at once that ids of its clients may be of; immutable once made, and shared by reference.
 * Keys stay within; any thread may ask.
 */
#ifndef VIPMUX_QUIC_ROUTES_H
#define VIPMUX_QUIC_ROUTES_H

#include <stdint.h>

#define QUIC_CONFIGURATIONS 7u    /* numbers 0 to 6; an id that says 7 is of none */
#define QUIC_BLOCK_MAX 19u        /* of server id and nonce together, bytes */
#define QUIC_NONCE_MIN 4u
#define QUIC_SERVER_ID_MAX (QUIC_BLOCK_MAX - QUIC_NONCE_MIN)
#define QUIC_NOBODY 0xffffu

struct quic_configuration {
	uint8_t number; /* that ids say in their first three bits */
	uint8_t server_id_bytes;
	uint8_t nonce_bytes;
	uint8_t encrypted;
	uint8_t key[16]; /* AES-128, where encrypted */
};

struct quic_server {
	uint8_t configuration; /* whose number */
	uint8_t server_id[15]; /* the first server_id_bytes of the configuration count */
	uint32_t backend;      /* its number within the service, less than QUIC_NOBODY */
};

struct quic_routes;

/*
 * -EINVAL: a number twice or out of range, lengths out of range, a server of no configuration, or two that share an id; -ENOMEM.
 * level: enum aes128_level, for tests; AES128_LEVELS: the best.  -ENOTSUP: not here.
 */
int quic_routes_create(const struct quic_configuration *configurations, uint32_t count, const struct quic_server *servers,
		       uint32_t server_count, uint32_t level, struct quic_routes **out);

/* Whose a datagram's first packet is by its destination connection id; QUIC_NOBODY: it does not say so, or there is no such backend. */
uint32_t quic_routes_find(const struct quic_routes *routes, const uint8_t *datagram, uint32_t length);

struct quic_routes *quic_routes_get(struct quic_routes *routes);
void quic_routes_put(struct quic_routes *routes);

#endif
