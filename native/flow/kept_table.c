/* SPDX-License-Identifier: Apache-2.0 */
/* See kept_table.h. */
#define _GNU_SOURCE
#include "flow/kept_table.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "flow/flow.h"

#define TITLE "vipmux flow table"
#define TITLE_PAGE 4096u

/* Behind the lines. */
struct title {
	char name[24];
	uint32_t layout;
	uint32_t line_bytes;
	uint64_t line_count;
	uint64_t mark;
};

uint64_t kept_table_mark(const uint8_t *seed)
{
	struct flow_seed expanded;
	/* No packet has it, so that it is the hash of none. */
	const struct flow_tuple none = { .protocol = 0, .family = 0 };

	flow_seed_init(&expanded, seed);
	return flow_tuple_hash(&expanded, &none, false);
}

static struct title title_of(uint64_t lines, uint64_t mark)
{
	struct title title = { .name = TITLE, .layout = KEPT_TABLE_LAYOUT, .line_bytes = sizeof(struct flow_line),
			       .line_count = lines, .mark = mark };

	return title;
}

int kept_table_create(int fd, uint64_t mark, uint64_t flows, struct flow_table **out)
{
	size_t bytes = flow_table_map_bytes(flows);
	struct title title;
	int error;

	/* Not posix_fallocate(), which would write a file system full that knows no other way. */
	if (fallocate(fd, 0, 0, (off_t)(bytes + TITLE_PAGE)))
		return -errno;
	error = flow_table_map(fd, PROT_READ | PROT_WRITE, flow_table_line_count(flows), bytes + TITLE_PAGE, out);
	if (error)
		return error;
	title = title_of((*out)->line_count, mark);
	memcpy((uint8_t *)(*out)->lines + bytes, &title, sizeof(title));
	return 0;
}

int kept_table_open(int fd, uint64_t mark, struct flow_table **out)
{
	struct title found, right;
	struct stat file;
	ssize_t got;

	if (fstat(fd, &file))
		return -errno;
	if (file.st_size <= TITLE_PAGE)
		return -EBADMSG;
	got = pread(fd, &found, sizeof(found), file.st_size - TITLE_PAGE);
	if (got < 0)
		return -errno;
	if (got != sizeof(found) || memcmp(found.name, TITLE, sizeof(TITLE)))
		return -EBADMSG;
	right = title_of(found.line_count, mark);
	if (found.layout != right.layout || found.line_bytes != right.line_bytes)
		return -EPROTONOSUPPORT;
	if (found.mark != right.mark)
		return -EKEYREJECTED;
	if (!flow_table_lines_fit(found.line_count, (size_t)file.st_size - TITLE_PAGE))
		return -EBADMSG;
	return flow_table_map(fd, PROT_READ, found.line_count, (size_t)file.st_size, out);
}
