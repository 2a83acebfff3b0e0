/* SPDX-License-Identifier: Apache-2.0 */
/* See packet_generator.h. */
#define _GNU_SOURCE
#include "bench/packet_generator.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "bench/xdp_frame_source.h"

#define BATCH 64u       /* frames a system call when it goes as fast as it can */
#define PACED_BATCH 16u /* at a steady rate: small bursts, as a NIC that moderates its interrupts makes them */
#define LIVE_MIN (1u << 14) /* frames in one call, to begin with */
#define LIVE_MAX (1u << 22)
#define LIVE_CALL_NS 150000000u /* a shorter call makes twice as many the next time */
#define FRAME_MAX 2048u
#define SOURCE_PORT 34u /* of the frame: behind 14 bytes of Ethernet and 20 of IPv4 */
#define HEADERS 42u     /* Ethernet, IPv4, UDP */
#define FIRST_PORT 1024u
#define FLOWS_MAX (65536u - FIRST_PORT)
#define SEND_BUFFER (8 << 20)
#define BEHIND_NS 1000000u /* what was not sent for so long (we lost the CPU) is not made up for in one burst */

struct generator {
	uint32_t kind;
	int ifindex;
	int fd;
	struct live_frames live;
	uint32_t live_count; /* frames in one call; what earlier runs found to be right */
	uint32_t flows;
	uint32_t flow; /* of the next frame */
	struct mmsghdr messages[BATCH];
	struct iovec vectors[BATCH];
	uint8_t frames[BATCH][FRAME_MAX];
};

static uint64_t now_ns(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static int open_socket(struct generator *generator)
{
	struct sockaddr_ll address = { .sll_family = AF_PACKET, .sll_ifindex = generator->ifindex };
	int one = 1, bytes = SEND_BUFFER;

	generator->fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);
	if (generator->fd < 0)
		return -errno;
	if (setsockopt(generator->fd, SOL_PACKET, PACKET_QDISC_BYPASS, &one, sizeof(one)) ||
	    setsockopt(generator->fd, SOL_SOCKET, SO_SNDBUFFORCE, &bytes, sizeof(bytes)) ||
	    bind(generator->fd, (struct sockaddr *)&address, sizeof(address)))
		return -errno;
	return 0;
}

/* With a frame at once: a kernel that takes the program may still not know how to run it so. */
static int open_live(struct generator *generator, uint32_t length)
{
	int error = live_frames_open(&generator->live, generator->ifindex, generator->frames[0], length, FIRST_PORT,
				     generator->flows);

	return error ? error : live_frames_run(&generator->live, 1);
}

int generator_open(const char *interface, const uint8_t *frame, uint32_t length, uint32_t flows, uint32_t kind,
		   struct generator **out)
{
	struct generator *generator;
	int error;

	if (length < HEADERS || length > FRAME_MAX || !flows || flows > FLOWS_MAX)
		return -EINVAL;
	generator = calloc(1, sizeof(*generator));
	if (!generator)
		return -ENOMEM;
	generator->kind = kind;
	generator->live_count = LIVE_MIN;
	generator->fd = generator->live.program = generator->live.numbers = -1;
	generator->ifindex = (int)if_nametoindex(interface);
	generator->flows = flows;
	for (unsigned i = 0; i < BATCH; i++) {
		memcpy(generator->frames[i], frame, length);
		generator->vectors[i] = (struct iovec){ .iov_base = generator->frames[i], .iov_len = length };
		generator->messages[i].msg_hdr.msg_iov = &generator->vectors[i];
		generator->messages[i].msg_hdr.msg_iovlen = 1;
	}
	if (!generator->ifindex)
		error = -ENODEV;
	else
		error = kind == GENERATOR_LIVE ? open_live(generator, length) : open_socket(generator);
	if (error) {
		generator_close(generator);
		return error;
	}
	*out = generator;
	return 0;
}

static void number_frames(struct generator *generator, unsigned count)
{
	for (unsigned i = 0; i < count; i++) {
		uint16_t port = htons((uint16_t)(FIRST_PORT + generator->flow));

		memcpy(generator->frames[i] + SOURCE_PORT, &port, sizeof(port));
		if (++generator->flow == generator->flows)
			generator->flow = 0;
	}
}

/* A frame that is refused for want of room is not tried again: the next one is as good. */
static int send_frames(struct generator *generator, unsigned count, struct generator_result *result)
{
	unsigned next = 0;

	number_frames(generator, count);
	while (next < count) {
		int sent = sendmmsg(generator->fd, generator->messages + next, count - next, MSG_DONTWAIT);

		if (sent > 0) {
			next += (unsigned)sent;
			result->sent += (unsigned)sent;
			continue;
		}
		if (errno == EINTR)
			continue;
		if (errno != ENOBUFS && errno != EAGAIN)
			return -errno;
		next++;
		result->refused++;
	}
	return 0;
}

/* A call waits for some RCU grace periods before it begins and after it ended: it should be long, but end in time. */
static int run_live(struct generator *generator, double seconds, double rate, struct generator_result *out)
{
	uint64_t start = now_ns(), end = start + (uint64_t)(seconds * 1e9), before = live_frames_made(&generator->live);
	int error = live_frames_pace(&generator->live, rate);

	for (uint64_t now = start; now < end && !error;) {
		uint64_t called = now;

		error = live_frames_run(&generator->live, generator->live_count);
		if (error == -EINTR)
			error = 0;
		now = now_ns();
		if (now - called < LIVE_CALL_NS && generator->live_count < LIVE_MAX)
			generator->live_count *= 2;
	}
	out->sent = live_frames_made(&generator->live) - before;
	out->elapsed_ns = now_ns() - start;
	return error;
}

int generator_run(struct generator *generator, double seconds, double rate, struct generator_result *out)
{
	uint64_t start = now_ns(), end = start + (uint64_t)(seconds * 1e9), now = start;
	double interval = rate > 0 ? PACED_BATCH * 1e9 / rate : 0, due = (double)start;
	unsigned count = rate > 0 ? PACED_BATCH : BATCH;
	int error = 0;

	*out = (struct generator_result){ .sent = 0 };
	if (generator->kind == GENERATOR_LIVE)
		return run_live(generator, seconds, rate, out);
	for (; now < end && !error; now = now_ns()) {
		if ((double)now < due)
			continue;
		if ((double)now - due > BEHIND_NS)
			due = (double)now;
		due += interval;
		error = send_frames(generator, count, out);
	}
	out->elapsed_ns = now_ns() - start;
	return error;
}

void generator_close(struct generator *generator)
{
	if (!generator)
		return;
	if (generator->fd >= 0)
		close(generator->fd);
	live_frames_close(&generator->live);
	free(generator);
}
