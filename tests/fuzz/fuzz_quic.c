/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Any datagram to connection ids of any configurations, in a buffer of exactly its size: whatever the CPU has for AES says what
 * plain C says; and an id that names a server, and no other, is found by what begins as it does.
 *
 * Input: count of configurations and of servers (1 byte), four bytes of each configuration, three of each server, the datagram.
 */
#include <stdlib.h>
#include <string.h>

#include "expect.h"
#include "services/quic/aes128.h"
#include "services/quic/quic_routes.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define SERVERS_MAX 15u

struct input {
	const uint8_t *data;
	size_t size;
};

static uint8_t next(struct input *input)
{
	if (!input->size)
		return 0;
	input->size--;
	return *input->data++;
}

static struct quic_routes *make(const struct quic_configuration *configurations, uint32_t count,
				const struct quic_server *servers, uint32_t server_count, uint32_t level)
{
	struct quic_routes *routes = NULL;
	int error = quic_routes_create(configurations, count, servers, server_count, level, &routes);

	expect(!error == !!routes);
	return routes;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct quic_configuration configurations[QUIC_CONFIGURATIONS + 1];
	struct quic_server servers[SERVERS_MAX];
	struct input input = { data, size };
	uint8_t counts = next(&input);
	uint32_t count = counts & 7, server_count = counts >> 4, found;
	struct quic_routes *routes, *plain;
	uint8_t *datagram;

	memset(configurations, 0, sizeof(configurations));
	memset(servers, 0, sizeof(servers));
	for (uint32_t i = 0; i < count; i++) {
		configurations[i].number = next(&input) & 7;
		configurations[i].server_id_bytes = next(&input) & 31;
		configurations[i].nonce_bytes = next(&input) & 31;
		configurations[i].encrypted = next(&input) & 1;
		configurations[i].key[0] = (uint8_t)i;
	}
	for (uint32_t i = 0; i < server_count; i++) {
		servers[i].configuration = next(&input) & 7;
		servers[i].server_id[0] = next(&input);
		servers[i].server_id[14] = next(&input);
		servers[i].backend = i;
	}
	routes = make(configurations, count, servers, server_count, AES128_LEVELS);
	plain = make(configurations, count, servers, server_count, AES128_PORTABLE);
	expect(!routes == !plain);
	if (!routes)
		return 0;
	datagram = malloc(input.size ? input.size : 1);
	expect(datagram != NULL);
	memcpy(datagram, input.data, input.size);
	found = quic_routes_find(routes, datagram, (uint32_t)input.size);
	expect(found == quic_routes_find(plain, datagram, (uint32_t)input.size));
	expect(found == QUIC_NOBODY || found < server_count);
	free(datagram);
	quic_routes_put(plain);
	quic_routes_put(routes);
	return 0;
}
