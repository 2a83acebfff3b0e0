/* SPDX-License-Identifier: Apache-2.0 */
/* native/io/af_xdp/xsk.c over system calls of our own, which write down what they were asked for.  For tests/native/test_xsk.py. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/if_xdp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "io/af_xdp/xsk.h"

#define FD 77

static char said[8192];
static unsigned mapped;  /* less what was unmapped */
static int refused_option, refusal; /* of SOL_XDP */
static struct xdp_statistics statistics;
static uint32_t offsets_size;

__attribute__((format(printf, 1, 2))) static void say(const char *format, ...)
{
	size_t length = strlen(said);
	va_list words;

	va_start(words, format);
	vsnprintf(said + length, sizeof(said) - length, format, words);
	va_end(words);
}

static int fail(int error)
{
	errno = error;
	return -1;
}

static int fake_socket(int family, int kind, int protocol)
{
	say("socket %d %d;", family, (kind & SOCK_CLOEXEC) != 0);
	(void)protocol;
	return FD;
}

static int fake_setsockopt(int fd, int level, int option, const void *value, socklen_t size)
{
	uint32_t number = 0;

	(void)fd;
	memcpy(&number, value, size < sizeof(number) ? size : sizeof(number));
	if (level == SOL_XDP && option == XDP_UMEM_REG) {
		struct xdp_umem_reg memory = { 0 };

		memcpy(&memory, value, size < sizeof(memory) ? size : sizeof(memory));
		say("memory %llu of %u headroom %u;", (unsigned long long)memory.len, memory.chunk_size, memory.headroom);
	} else if (level == SOL_XDP) {
		say("option %d %u;", option, number);
	} else {
		say("socket option %d %u;", option, number);
	}
	return option == refused_option ? fail(refusal) : 0;
}

static int fake_getsockopt(int fd, int level, int option, void *value, socklen_t *size)
{
	(void)fd, (void)level;
	if (option == XDP_STATISTICS) {
		memcpy(value, &statistics, sizeof(statistics));
		return 0;
	}
	memset(value, 0, *size);
	((struct xdp_mmap_offsets *)value)->fr.desc = 64;
	*size = offsets_size;
	return option == refused_option ? fail(refusal) : 0;
}

static void *fake_mmap(void *at, size_t bytes, int protection, int flags, int fd, off_t page)
{
	(void)at, (void)protection, (void)flags;
	if (fd == FD)
		say("ring %llx of %zu;", (unsigned long long)page, bytes);
	mapped++;
	return calloc(1, bytes);
}

static int fake_munmap(void *at, size_t bytes)
{
	(void)bytes;
	mapped--;
	free(at);
	return 0;
}

static int fake_madvise(void *at, size_t bytes, int advice)
{
	(void)at, (void)bytes;
	say("advice %d;", advice);
	return 0;
}

static int fake_setrlimit(int what, const struct rlimit *limit)
{
	say("limit %d %d;", what == RLIMIT_MEMLOCK, limit->rlim_cur == RLIM_INFINITY && limit->rlim_max == RLIM_INFINITY);
	return 0;
}

static int fake_bind(int fd, const struct sockaddr *address, socklen_t size)
{
	const struct sockaddr_xdp *xdp = (const void *)address;

	(void)fd, (void)size;
	say("bind %u queue %u flags %u first %u;", xdp->sxdp_ifindex, xdp->sxdp_queue_id, xdp->sxdp_flags,
	    xdp->sxdp_shared_umem_fd);
	return refused_option == -1 ? fail(refusal) : 0;
}

static int fake_close(int fd)
{
	say("close %d;", fd);
	return 0;
}

#define socket fake_socket
#define setsockopt fake_setsockopt
#define getsockopt fake_getsockopt
#define mmap fake_mmap
#define munmap fake_munmap
#define madvise fake_madvise
#define setrlimit(what, limit) fake_setrlimit(what, limit)
#define bind fake_bind
#define close fake_close
#include "io/af_xdp/xsk.c"

static struct xsk_memory memory;
static struct xsk xsk;

void probe_start(int option, int error, unsigned size);
const char *probe_said(void);
unsigned probe_mapped(void);
int probe_memory(void);
int probe_open(int with_memory, int receives);
int probe_bind(int ifindex, unsigned queue, int copy);
int probe_bind_shared(int ifindex, unsigned queue);
int probe_busily(unsigned microseconds);
void probe_counts(uint64_t *out);
void probe_close(void);

/* What is refused with which error: an option, -1: the bind; 0: nothing.  size: of the answer about offsets, 0: as it should be. */
void probe_start(int option, int error, unsigned size)
{
	memset(said, 0, sizeof(said));
	refused_option = option;
	refusal = error;
	offsets_size = size ? size : sizeof(struct xdp_mmap_offsets);
	mapped = 0;
	xsk_init(&xsk);
}

const char *probe_said(void)
{
	return said;
}

unsigned probe_mapped(void)
{
	return mapped;
}

int probe_memory(void)
{
	return xsk_memory_map(&memory, 2048, 64);
}

int probe_open(int with_memory, int receives)
{
	return xsk_open(&xsk, with_memory ? &memory : NULL, receives);
}

int probe_bind(int ifindex, unsigned queue, int copy)
{
	return xsk_bind(&xsk, ifindex, queue, copy ? XSK_COPY : XSK_ZERO_COPY);
}

int probe_bind_shared(int ifindex, unsigned queue)
{
	struct xsk first = { .fd = 55 };

	return xsk_bind_shared(&xsk, ifindex, queue, &first);
}

int probe_busily(unsigned microseconds)
{
	return xsk_poll_busily(&xsk, microseconds);
}

/* Of statistics that are all different. */
void probe_counts(uint64_t *out)
{
	statistics = (struct xdp_statistics){ 1, 10, 100, 1000, 10000, 100000 };
	xsk_counts(&xsk, &out[0], &out[1]);
}

void probe_close(void)
{
	xsk_close(&xsk);
	xsk_memory_unmap(&memory);
	xsk_memory_unmap(&memory);
}
