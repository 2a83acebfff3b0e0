/* SPDX-License-Identifier: Apache-2.0 */
/*
 * UDP load for the labs, and its counter.  Compiled and run by tests/lab/load.py; owns nothing that outlives it.
 *
 *   udp send SOURCE DESTINATION PORT FLOWS PPS WINDOWS WINDOW_MS
 *       Sends at a steady rate from FLOWS source ports, in windows; prints "window N" as each begins and, at the
 *       end, one line "sent N N ..." with the packets of each window.
 *   udp sink PORT FLOWS WINDOWS
 *       Counts until SIGTERM, then prints "received N N ...", "drops N" (what the socket had no room for) and
 *       "flows HEX": one bit for each flow that ever came here.
 *
 * A packet's payload says its window and its flow.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <linux/sock_diag.h>
#include <netinet/ip.h>
#include <netinet/udp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define BURST 32
#define FIRST_PORT 2048
#define MAX_WINDOWS 1024
#define MAX_FLOWS 32768
#define IDLE_ROUNDS 25 /* of 20 ms */

struct payload {
	uint32_t window;
	uint32_t flow;
	uint64_t sequence;
};

struct packet {
	struct iphdr ip;
	struct udphdr udp;
	struct payload payload;
} __attribute__((packed));

static volatile sig_atomic_t stopping;

static void stop(int signal)
{
	(void)signal;
	stopping = 1;
}

static void fail(const char *what)
{
	fprintf(stderr, "udp: %s: %s\n", what, strerror(errno));
	exit(1);
}

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void sleep_until(uint64_t at)
{
	struct timespec t = {.tv_sec = (time_t)(at / 1000000000u), .tv_nsec = (long)(at % 1000000000u)};

	clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL);
}

static uint32_t add16(uint32_t sum, const void *data, size_t len)
{
	const uint8_t *bytes = data;

	for (size_t i = 0; i + 1 < len; i += 2)
		sum += (uint32_t)bytes[i] << 8 | bytes[i + 1];
	return sum;
}

static uint16_t fold(uint32_t sum)
{
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return (uint16_t)~sum;
}

/* The kernel fills in the IP checksum and identification of a raw socket's packets; the UDP checksum is ours. */
static void fill(struct packet *packet, uint32_t window, uint32_t flow, uint64_t sequence)
{
	uint32_t sum = IPPROTO_UDP + sizeof(struct udphdr) + sizeof(struct payload);

	packet->udp.source = htons((uint16_t)(FIRST_PORT + flow));
	packet->payload = (struct payload){.window = window, .flow = flow, .sequence = sequence};
	packet->udp.check = 0;
	sum = add16(sum, &packet->ip.saddr, 8);
	sum = add16(sum, &packet->udp, sizeof(packet->udp) + sizeof(packet->payload));
	packet->udp.check = htons(fold(sum));
	if (!packet->udp.check)
		packet->udp.check = 0xffff;
}

static void prepare(struct packet *packet, const char *source, const char *destination, uint16_t port)
{
	memset(packet, 0, sizeof(*packet));
	packet->ip.version = 4;
	packet->ip.ihl = 5;
	packet->ip.tot_len = htons(sizeof(*packet));
	packet->ip.frag_off = htons(IP_DF);
	packet->ip.ttl = 64;
	packet->ip.protocol = IPPROTO_UDP;
	packet->ip.saddr = inet_addr(source);
	packet->ip.daddr = inet_addr(destination);
	packet->udp.dest = htons(port);
	packet->udp.len = htons(sizeof(struct udphdr) + sizeof(struct payload));
}

static int send_windows(char **arguments)
{
	static struct packet packets[BURST];
	static uint64_t sent[MAX_WINDOWS];
	struct mmsghdr messages[BURST] = {0};
	struct iovec vectors[BURST];
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_addr.s_addr = inet_addr(arguments[1])};
	uint32_t flows = (uint32_t)atoi(arguments[3]), windows = (uint32_t)atoi(arguments[5]);
	uint64_t gap = BURST * 1000000000ull / (uint64_t)atoi(arguments[4]);
	uint64_t length = (uint64_t)atoi(arguments[6]) * 1000000u;
	int room = 8 << 20, fd = socket(AF_INET, SOCK_RAW, IPPROTO_RAW);
	uint64_t sequence = 0, start = now_ns(), next = start;
	uint32_t window = UINT32_MAX;

	if (fd < 0)
		fail("raw socket");
	if (flows > MAX_FLOWS || windows > MAX_WINDOWS)
		return 2;
	setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof(room));
	for (unsigned i = 0; i < BURST; i++) {
		prepare(&packets[i], arguments[0], arguments[1], (uint16_t)atoi(arguments[2]));
		vectors[i] = (struct iovec){.iov_base = &packets[i], .iov_len = sizeof(packets[i])};
		messages[i].msg_hdr = (struct msghdr){
			.msg_name = &to, .msg_namelen = sizeof(to), .msg_iov = &vectors[i], .msg_iovlen = 1};
	}
	for (;;) {
		uint64_t now = now_ns();
		uint32_t current = (uint32_t)((now - start) / length);
		int done;

		if (current >= windows || stopping)
			break;
		if (current != window) {
			window = current;
			printf("window %u\n", window);
			fflush(stdout);
		}
		for (unsigned i = 0; i < BURST; i++, sequence++)
			fill(&packets[i], window, (uint32_t)(sequence % flows), sequence);
		done = sendmmsg(fd, messages, BURST, 0);
		if (done > 0)
			sent[window] += (uint64_t)done;
		else if (errno != ENOBUFS && errno != EINTR)
			fail("sendmmsg");
		next += gap;
		if (next > now_ns())
			sleep_until(next);
		else if (now_ns() - next > 20000000u)
			next = now_ns(); /* fell behind: go on at the rate, do not catch up in a burst */
	}
	printf("sent");
	for (uint32_t i = 0; i < windows; i++)
		printf(" %llu", (unsigned long long)sent[i]);
	printf("\n");
	return 0;
}

static uint32_t socket_drops(int fd)
{
	uint32_t info[SK_MEMINFO_VARS] = {0};
	socklen_t len = sizeof(info);

	if (getsockopt(fd, SOL_SOCKET, SO_MEMINFO, info, &len))
		fail("SO_MEMINFO");
	return info[SK_MEMINFO_DROPS];
}

static int sink(char **arguments)
{
	static struct payload payloads[BURST];
	static uint64_t received[MAX_WINDOWS];
	static uint8_t seen[MAX_FLOWS / 8];
	struct mmsghdr messages[BURST] = {0};
	struct iovec vectors[BURST];
	struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(arguments[0]))};
	uint32_t flows = (uint32_t)atoi(arguments[1]), windows = (uint32_t)atoi(arguments[2]);
	struct timeval patience = {.tv_usec = 20000};
	int idle = 0, room = 64 << 20, fd = socket(AF_INET, SOCK_DGRAM, 0);

	if (flows > MAX_FLOWS || windows > MAX_WINDOWS)
		return 2;
	setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof(room));
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	if (bind(fd, (struct sockaddr *)&at, sizeof(at)))
		fail("bind");
	for (unsigned i = 0; i < BURST; i++) {
		vectors[i] = (struct iovec){.iov_base = &payloads[i], .iov_len = sizeof(payloads[i])};
		messages[i].msg_hdr = (struct msghdr){.msg_iov = &vectors[i], .msg_iovlen = 1};
	}
	printf("listening\n");
	fflush(stdout);
	for (;;) {
		int count = recvmmsg(fd, messages, BURST, MSG_WAITFORONE, NULL);

		/* Asked to stop: the last packets may still be in somebody's ring, so wait until none has come for a while. */
		idle = count < 0 && stopping ? idle + 1 : 0;
		if (idle == IDLE_ROUNDS)
			break;
		for (int i = 0; i < count; i++) {
			if (payloads[i].window >= windows || payloads[i].flow >= flows)
				continue;
			received[payloads[i].window]++;
			seen[payloads[i].flow / 8] |= (uint8_t)(1u << payloads[i].flow % 8);
		}
	}
	printf("received");
	for (uint32_t i = 0; i < windows; i++)
		printf(" %llu", (unsigned long long)received[i]);
	printf("\ndrops %u\nflows ", socket_drops(fd));
	for (uint32_t i = 0; i < (flows + 7) / 8; i++)
		printf("%02x", seen[i]);
	printf("\n");
	return 0;
}

int main(int count, char **arguments)
{
	struct sigaction action = {.sa_handler = stop};

	sigaction(SIGTERM, &action, NULL);
	sigaction(SIGINT, &action, NULL);
	if (count == 9 && !strcmp(arguments[1], "send"))
		return send_windows(arguments + 2);
	if (count == 5 && !strcmp(arguments[1], "sink"))
		return sink(arguments + 2);
	fprintf(stderr, "usage: see the head of udp.c\n");
	return 2;
}
