/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Any bytes as a tunnel packet to a backend's host.  Each packet must end in exactly one counter, and what goes on must
 * lie within what came in.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "host/host_pipeline.h"
#include "host/host_reason.h"
#include "io/io_memory.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct host *make_host(void)
{
	/* Half of all sources and destinations pass, so that mutations get beyond these checks. */
	static const struct host_prefix half = { { [10] = 0xff, [11] = 0xff }, 97 };
	struct host_rules *rules;
	struct host *host;

	if (host_rules_create(&half, 1, &half, 1, &rules) || host_create(rules, &host))
		abort();
	return host;
}

static uint64_t total(const struct host *host)
{
	uint64_t counts[HOST_REASON_COUNT], sum = 0;

	host_counters(host, counts);
	for (unsigned i = 0; i < HOST_REASON_COUNT; i++)
		sum += counts[i];
	return sum;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct host *host;
	static struct io *io;
	struct memory_sent sent;
	uint64_t before;

	if (!host) {
		host = make_host();
		if (io_memory_open(LINK_RAW_IP, &io))
			abort();
	}
	before = total(host);
	if (io_memory_load(io, data, (uint32_t)size, (uint32_t)size) || host_run_once(host, io) != 1)
		abort();
	if (total(host) != before + 1)
		abort();
	if (io_memory_sent_count(io)) {
		io_memory_sent(io, 0, &sent);
		if (sent.len + 20 > size || sent.len < 20)
			abort();
	}
	return 0;
}
