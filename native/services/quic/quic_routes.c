/* SPDX-License-Identifier: Apache-2.0 */
/* See quic_routes.h. */
#include "services/quic/quic_routes.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "machine/cpu.h"
#include "services/quic/aes128.h"

#define SINGLE_PASS AES128_BYTES /* of server id and nonce: one block, encrypted as it is */
#define HALF_MAX ((QUIC_BLOCK_MAX + 1) / 2)

struct configuration {
	uint8_t server_id_bytes; /* 0: there is no such configuration */
	uint8_t block_bytes;     /* with the nonce */
	bool encrypted;
	struct aes128 aes;
};

/* Server ids of all configurations, in open addressing; at most half full, so that any search ends. */
struct row {
	uint8_t number; /* of the configuration */
	uint8_t server_id[15];
	uint16_t backend; /* QUIC_NOBODY: empty */
};

struct quic_routes {
	uint32_t references; /* atomic */
	uint32_t mask;       /* rows - 1 */
	struct configuration configurations[QUIC_CONFIGURATIONS];
	struct row rows[];
};

/* ---- the connection id of a datagram (RFC 8999, 5.1 and 5.2) ---- */

#define LONG_HEADER 0x80
#define LONG_ID_AT 6u /* behind first byte, version and length */
#define SHORT_ID_AT 1u

/* Where it is, and how many bytes it has at most; NULL: there is none. */
static const uint8_t *connection_id(const uint8_t *datagram, uint32_t length, uint32_t *bytes)
{
	if (length <= SHORT_ID_AT)
		return NULL;
	if (!(datagram[0] & LONG_HEADER)) { /* how long it is, its server knows */
		*bytes = length - SHORT_ID_AT;
		return datagram + SHORT_ID_AT;
	}
	if (length <= LONG_ID_AT || datagram[LONG_ID_AT - 1] > length - LONG_ID_AT)
		return NULL;
	*bytes = datagram[LONG_ID_AT - 1];
	return datagram + LONG_ID_AT;
}

/* ---- four passes (5.4.2) ---- */

struct halves {
	uint8_t left[HALF_MAX], right[HALF_MAX];
	unsigned half, bytes;
};

/* An odd middle byte is of both: its first four bits of the left, the others of the right. */
static void split(struct halves *halves, const uint8_t *block, unsigned bytes)
{
	halves->bytes = bytes;
	halves->half = (bytes + 1) / 2;
	memcpy(halves->left, block, halves->half);
	memcpy(halves->right, block + bytes - halves->half, halves->half);
	if (bytes & 1) {
		halves->left[halves->half - 1] &= 0xf0;
		halves->right[0] &= 0x0f;
	}
}

static void join(const struct halves *halves, uint8_t *block)
{
	unsigned overlap = halves->bytes & 1;

	memcpy(block, halves->left, halves->half);
	memcpy(block + halves->half, halves->right + overlap, halves->half - overlap);
	if (overlap)
		block[halves->half - 1] |= halves->right[0];
}

/* One half in the light of the other. */
static void pass(const struct aes128 *aes, const struct halves *halves, const uint8_t *from, uint8_t *to, uint8_t number)
{
	uint8_t block[AES128_BYTES] = { 0 };

	memcpy(block, from, halves->half);
	block[14] = (uint8_t)halves->bytes;
	block[15] = number;
	aes128_encrypt(aes, block);
	for (unsigned i = 0; i < halves->half; i++)
		to[i] ^= block[i];
	if (halves->bytes & 1 && to == halves->left)
		to[halves->half - 1] &= 0xf0;
	else if (halves->bytes & 1)
		to[0] &= 0x0f;
}

/* The server id at the beginning of block; what is behind it may stay encrypted. */
static void decrypt_four(const struct configuration *configuration, uint8_t *block)
{
	struct halves halves;

	split(&halves, block, configuration->block_bytes);
	pass(&configuration->aes, &halves, halves.right, halves.left, 4);
	pass(&configuration->aes, &halves, halves.left, halves.right, 3);
	pass(&configuration->aes, &halves, halves.right, halves.left, 2);
	if (configuration->server_id_bytes * 2u > configuration->block_bytes)
		pass(&configuration->aes, &halves, halves.left, halves.right, 1);
	join(&halves, block);
}

/* ---- find ---- */

static uint32_t place_of(const struct quic_routes *routes, uint8_t number, const uint8_t server_id[static 15])
{
	uint64_t words[2] = { 0 };

	memcpy(words, server_id, 8);
	memcpy(words + 1, server_id + 8, 7);
	words[0] = (words[0] ^ words[1] * 0x9e3779b97f4a7c15u ^ number) * 0xd6e8feb86659fd93u;
	return (uint32_t)(words[0] >> 32) & routes->mask;
}

/* Where it is, or could be put. */
static uint32_t row_of(const struct quic_routes *routes, uint8_t number, const uint8_t server_id[static 15])
{
	uint32_t at = place_of(routes, number, server_id);

	while (routes->rows[at].backend != QUIC_NOBODY &&
	       (routes->rows[at].number != number || memcmp(routes->rows[at].server_id, server_id, 15) != 0))
		at = (at + 1) & routes->mask;
	return at;
}

uint32_t quic_routes_find(const struct quic_routes *routes, const uint8_t *datagram, uint32_t length)
{
	uint8_t block[QUIC_BLOCK_MAX], server_id[15] = { 0 };
	const struct configuration *configuration;
	const uint8_t *id;
	uint32_t bytes = 0;
	uint8_t number;

	id = connection_id(datagram, length, &bytes);
	if (!id || !bytes)
		return QUIC_NOBODY;
	number = id[0] >> 5;
	if (number >= QUIC_CONFIGURATIONS)
		return QUIC_NOBODY;
	configuration = &routes->configurations[number];
	if (!configuration->server_id_bytes || bytes < 1u + configuration->block_bytes)
		return QUIC_NOBODY;
	memcpy(block, id + 1, configuration->block_bytes);
	if (configuration->encrypted && configuration->block_bytes == SINGLE_PASS)
		aes128_decrypt(&configuration->aes, block);
	else if (configuration->encrypted)
		decrypt_four(configuration, block);
	memcpy(server_id, block, configuration->server_id_bytes);
	return routes->rows[row_of(routes, number, server_id)].backend;
}

/* ---- life ---- */

static int add_configuration(struct quic_routes *routes, const struct quic_configuration *from, uint32_t level)
{
	struct configuration *to;

	if (from->number >= QUIC_CONFIGURATIONS || !from->server_id_bytes || from->nonce_bytes < QUIC_NONCE_MIN ||
	    from->server_id_bytes + from->nonce_bytes > (int)QUIC_BLOCK_MAX)
		return -EINVAL;
	to = &routes->configurations[from->number];
	if (to->server_id_bytes)
		return -EINVAL;
	to->server_id_bytes = from->server_id_bytes;
	to->block_bytes = (uint8_t)(from->server_id_bytes + from->nonce_bytes);
	to->encrypted = from->encrypted != 0;
	return to->encrypted ? aes128_init(&to->aes, from->key, (enum aes128_level)level) : 0;
}

static int add_server(struct quic_routes *routes, const struct quic_server *server)
{
	uint8_t server_id[15] = { 0 };
	struct row *row;

	if (server->configuration >= QUIC_CONFIGURATIONS || server->backend >= QUIC_NOBODY ||
	    !routes->configurations[server->configuration].server_id_bytes)
		return -EINVAL;
	memcpy(server_id, server->server_id, routes->configurations[server->configuration].server_id_bytes);
	row = &routes->rows[row_of(routes, server->configuration, server_id)];
	if (row->backend != QUIC_NOBODY)
		return -EINVAL;
	row->number = server->configuration;
	memcpy(row->server_id, server_id, sizeof(row->server_id));
	row->backend = (uint16_t)server->backend;
	return 0;
}

int quic_routes_create(const struct quic_configuration *configurations, uint32_t count, const struct quic_server *servers,
		       uint32_t server_count, uint32_t level, struct quic_routes **out)
{
	size_t rows = 2, size;
	struct quic_routes *routes;
	int error = 0;

	if (count > QUIC_CONFIGURATIONS || server_count > QUIC_CONFIGURATIONS * QUIC_NOBODY)
		return -EINVAL;
	while (rows < 2 * (size_t)server_count)
		rows *= 2;
	size = sizeof(*routes) + rows * sizeof(routes->rows[0]);
	routes = aligned_alloc(CACHE_LINE, (size + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE);
	if (!routes)
		return -ENOMEM;
	memset(routes, 0, sizeof(*routes));
	routes->references = 1;
	routes->mask = (uint32_t)rows - 1;
	for (size_t i = 0; i < rows; i++)
		routes->rows[i] = (struct row){ .backend = QUIC_NOBODY };
	for (uint32_t i = 0; i < count && !error; i++)
		error = add_configuration(routes, &configurations[i], level);
	for (uint32_t i = 0; i < server_count && !error; i++)
		error = add_server(routes, &servers[i]);
	if (error)
		quic_routes_put(routes);
	else
		*out = routes;
	return error;
}

struct quic_routes *quic_routes_get(struct quic_routes *routes)
{
	if (routes)
		__atomic_fetch_add(&routes->references, 1, __ATOMIC_RELAXED);
	return routes;
}

void quic_routes_put(struct quic_routes *routes)
{
	if (!routes || __atomic_sub_fetch(&routes->references, 1, __ATOMIC_ACQ_REL))
		return;
	explicit_bzero(routes->configurations, sizeof(routes->configurations)); /* keys do not outlive their use */
	free(routes);
}
