/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Keep-alive HTTP connections for the labs: each asks for "/" again and again, and what becomes of it is written down.
 * Compiled and run by tests/lab/traffic.py; owns nothing that outlives it but the table that it was given.
 *
 *   keepalive TABLE SOURCE FIRST_PORT VIP PORT COUNT INTERVAL_MS PATIENCE_MS REQUESTS
 *       COUNT connections at a time, each with a request every INTERVAL_MS.  REQUESTS 0: they last; otherwise each ends
 *       after so many answers, in peace, and another takes its place.  A connection is broken when it is reset or
 *       closed before its time, or when no answer comes within PATIENCE_MS.  Ends with SIGTERM.
 *
 * Source ports go up from FIRST_PORT, so that none is used twice for as long as there are others: a MUX remembers a flow
 * for longer than its connection lives, and another on the same ports goes where the first one went.
 *
 * TABLE is a file of TABLE_ROWS rows, mapped by both sides; the reader may see a row at any moment.  Times are
 * CLOCK_MONOTONIC, nanoseconds.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define TABLE_ROWS 65536
#define EVENTS 256
#define PORT_FIRST 2048
#define PORT_LAST 32767 /* the kernel gives out what is above */

enum { ROW_OPEN = 1, ROW_DONE = 2, ROW_BROKEN = 3 };

/* As tests/lab/traffic.py unpacks it. */
struct row {
	uint32_t state;
	uint32_t source_port;
	uint64_t opened;
	uint64_t ended;
	uint64_t slowest; /* the longest that a request waited for its answer, ns */
	uint64_t slowest_at; /* when that answer came */
	uint64_t answers;
	char host[24];
	char why[56];
};
_Static_assert(sizeof(struct row) == 128, "as the reader has it");

struct connection {
	struct row *row;
	int fd;
	uint64_t asked; /* 0: no request is under way */
	uint64_t next;
	unsigned filled;
	char answer[2048];
};

struct load {
	struct sockaddr_in source, vip;
	uint64_t interval, patience, requests;
	char request[2][128]; /* the second asks the server to close */
	struct row *rows;
	unsigned used;
	unsigned port; /* the next */
	int epoll;
};

static volatile sig_atomic_t stopping;

static void stop(int signal)
{
	(void)signal;
	stopping = 1;
}

static void fail(const char *what)
{
	fprintf(stderr, "keepalive: %s: %s\n", what, strerror(errno));
	exit(1);
}

static uint64_t now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

static void end(struct connection *c, uint32_t state, const char *why)
{
	snprintf(c->row->why, sizeof(c->row->why), "%s", why);
	c->row->ended = now();
	__atomic_store_n(&c->row->state, state, __ATOMIC_RELEASE);
	close(c->fd);
	c->fd = -1;
}

/* Takes the next source port that is free. */
static int bind_next(struct load *load, int fd)
{
	for (int tries = 0; tries <= PORT_LAST - PORT_FIRST; tries++) {
		load->source.sin_port = htons((uint16_t)load->port);
		load->port = load->port == PORT_LAST ? PORT_FIRST : load->port + 1;
		if (!bind(fd, (struct sockaddr *)&load->source, sizeof(load->source)))
			return 0;
		if (errno != EADDRINUSE)
			return -1;
	}
	return -1;
}

/* A new connection, whose first request is due at `due`. */
static void open_connection(struct load *load, struct connection *c, uint64_t due)
{
	struct epoll_event event = { .events = EPOLLIN, .data.ptr = c };

	if (load->used == TABLE_ROWS)
		return;
	memset(c, 0, sizeof(*c));
	c->row = &load->rows[load->used++];
	c->row->opened = now();
	c->next = due;
	c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (c->fd < 0 || bind_next(load, c->fd))
		fail("socket");
	c->row->source_port = ntohs(load->source.sin_port);
	if (connect(c->fd, (struct sockaddr *)&load->vip, sizeof(load->vip)) && errno != EINPROGRESS) {
		end(c, ROW_BROKEN, strerror(errno));
		return;
	}
	if (epoll_ctl(load->epoll, EPOLL_CTL_ADD, c->fd, &event))
		fail("a new connection");
	c->asked = c->row->opened; /* what it waits for first is the handshake, and patience counts from here */
	__atomic_store_n(&c->row->state, ROW_OPEN, __ATOMIC_RELEASE);
}

static bool is_last(const struct load *load, const struct connection *c)
{
	return load->requests && c->row->answers + 1 >= load->requests;
}

static void ask(const struct load *load, struct connection *c, uint64_t at)
{
	const char *request = load->request[is_last(load, c)];
	ssize_t sent = send(c->fd, request, strlen(request), MSG_NOSIGNAL);

	if (sent < 0 && (errno == EAGAIN || errno == ENOTCONN)) /* the handshake goes on */
		return;
	if (sent != (ssize_t)strlen(request)) {
		end(c, ROW_BROKEN, sent < 0 ? strerror(errno) : "a request could not be sent whole");
		return;
	}
	c->asked = at;
	c->next = UINT64_MAX;
}

/* An answer is whole: head, and as many bytes of body as it says.  The body is the host's name. */
static bool take_answer(struct load *load, struct connection *c)
{
	char *body = strstr(c->answer, "\r\n\r\n"), *length = strcasestr(c->answer, "content-length:");
	uint64_t at;
	size_t size;

	if (!body || !length)
		return false;
	size = strtoul(length + 15, NULL, 10);
	body += 4;
	if ((size_t)(c->answer + c->filled - body) < size)
		return false;
	snprintf(c->row->host, sizeof(c->row->host), "%.*s", (int)strcspn(body, "\r\n"), body);
	at = now();
	if (at - c->asked > c->row->slowest) {
		c->row->slowest = at - c->asked;
		c->row->slowest_at = at;
	}
	__atomic_store_n(&c->row->answers, c->row->answers + 1, __ATOMIC_RELEASE);
	c->asked = 0;
	c->filled = 0;
	c->next = at + load->interval;
	return true;
}

static void receive(struct load *load, struct connection *c)
{
	ssize_t got = recv(c->fd, c->answer + c->filled, sizeof(c->answer) - 1 - c->filled, 0);

	if (got < 0 && errno == EAGAIN)
		return;
	if (got <= 0) {
		end(c, ROW_BROKEN, got < 0 ? strerror(errno) : "closed by the server");
		return;
	}
	c->filled += (unsigned)got;
	c->answer[c->filled] = 0;
	if (take_answer(load, c) && load->requests && c->row->answers >= load->requests)
		end(c, ROW_DONE, "");
}

static void turn(struct load *load, struct connection *c, uint64_t at)
{
	if (c->fd < 0) {
		if (load->requests)
			open_connection(load, c, at);
		return;
	}
	if (at >= c->next)
		ask(load, c, at);
	if (c->fd >= 0 && c->asked && at - c->asked > load->patience) {
		char why[64];

		snprintf(why, sizeof(why), "no answer within %.0f s", (double)load->patience / 1e9);
		end(c, ROW_BROKEN, why);
	}
}

static void run(struct load *load, struct connection *connections, unsigned count)
{
	struct epoll_event events[EVENTS];
	uint64_t began = now();

	for (unsigned i = 0; i < count; i++)
		open_connection(load, &connections[i], began + load->interval * i / count);
	puts("running");
	fflush(stdout);
	while (!stopping) {
		int ready = epoll_wait(load->epoll, events, EVENTS, 1);
		uint64_t at;

		for (int i = 0; i < ready; i++)
			if (((struct connection *)events[i].data.ptr)->fd >= 0)
				receive(load, events[i].data.ptr);
		at = now();
		for (unsigned i = 0; i < count; i++)
			turn(load, &connections[i], at);
	}
}

static struct sockaddr_in address(const char *text, int port)
{
	struct sockaddr_in found = { .sin_family = AF_INET, .sin_port = htons((uint16_t)port) };

	if (inet_pton(AF_INET, text, &found.sin_addr) != 1)
		fail(text);
	return found;
}

int main(int argc, char **argv)
{
	struct load load = { 0 };
	unsigned count;
	int table;

	if (argc != 10) {
		fprintf(stderr, "usage: keepalive TABLE SOURCE FIRST_PORT VIP PORT COUNT INTERVAL_MS PATIENCE_MS REQUESTS\n");
		return 2;
	}
	signal(SIGTERM, stop);
	table = open(argv[1], O_RDWR | O_CLOEXEC);
	if (table < 0)
		fail(argv[1]);
	load.rows = mmap(NULL, TABLE_ROWS * sizeof(struct row), PROT_READ | PROT_WRITE, MAP_SHARED, table, 0);
	load.epoll = epoll_create1(EPOLL_CLOEXEC);
	if (load.rows == MAP_FAILED || load.epoll < 0)
		fail("start");
	load.source = address(argv[2], 0);
	load.port = (unsigned)atoi(argv[3]);
	load.vip = address(argv[4], atoi(argv[5]));
	count = (unsigned)atoi(argv[6]);
	load.interval = strtoull(argv[7], NULL, 10) * 1000000;
	load.patience = strtoull(argv[8], NULL, 10) * 1000000;
	load.requests = strtoull(argv[9], NULL, 10);
	snprintf(load.request[0], sizeof(load.request[0]), "GET / HTTP/1.1\r\nHost: %s\r\n\r\n", argv[4]);
	snprintf(load.request[1], sizeof(load.request[1]), "GET / HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", argv[4]);
	struct connection *connections = calloc(count, sizeof(*connections));

	if (!connections)
		fail("memory");
	run(&load, connections, count);
	return 0;
}
