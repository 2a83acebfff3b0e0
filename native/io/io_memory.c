/* SPDX-License-Identifier: Apache-2.0 */
/* See io_memory.h. */
#include "io/io_memory.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct buffer {
	uint8_t *memory;
	size_t size;
};

struct sent {
	size_t offset;
	uint32_t len;
	uint32_t origin;
};

struct io_memory {
	struct io io;
	struct buffer in[BURST_MAX];
	struct frame frames[BURST_MAX];
	unsigned loaded;
	struct buffer out; /* everything sent, one after the other */
	size_t out_used;
	struct sent *sent;
	uint32_t sent_count, sent_room;
	struct io_stats stats;
};

static int grow(struct buffer *buffer, size_t size)
{
	size_t room = buffer->size ? buffer->size : 2048;
	uint8_t *memory;

	while (room < size)
		room *= 2;
	if (room == buffer->size)
		return 0;
	memory = realloc(buffer->memory, room);
	if (!memory)
		return -ENOMEM;
	buffer->memory = memory;
	buffer->size = room;
	return 0;
}

int io_memory_load(struct io *io, const uint8_t *data, uint32_t len, uint32_t wire_len)
{
	struct io_memory *memory = (struct io_memory *)io;
	struct buffer *buffer;
	int error;

	if (memory->loaded == BURST_MAX)
		return -ENOSPC;
	buffer = &memory->in[memory->loaded];
	error = grow(buffer, IO_HEADROOM + (size_t)len);
	if (error)
		return error;
	if (len)
		memcpy(buffer->memory + IO_HEADROOM, data, len);
	memory->frames[memory->loaded++] = (struct frame){
		.data = buffer->memory + IO_HEADROOM, .len = len, .wire_len = wire_len, .headroom = IO_HEADROOM
	};
	return 0;
}

int io_memory_offload(struct io *io, uint16_t gso_size, uint16_t csum_start, uint16_t csum_offset, bool verified)
{
	struct io_memory *memory = (struct io_memory *)io;
	struct frame *frame;

	if (!memory->loaded)
		return -EINVAL;
	frame = &memory->frames[memory->loaded - 1];
	frame->gso_size = gso_size;
	frame->csum_start = csum_start;
	frame->csum_offset = csum_offset;
	frame->offload = FRAME_TOLD | (verified ? FRAME_VERIFIED : 0);
	return 0;
}

static int memory_receive(struct io *io, struct frame *frames, unsigned max)
{
	struct io_memory *memory = (struct io_memory *)io;
	unsigned count = memory->loaded < max ? memory->loaded : max;

	memcpy(frames, memory->frames, count * sizeof(*frames));
	memory->loaded = 0;
	memory->out_used = 0;
	memory->sent_count = 0;
	memory->stats.received += count;
	return (int)count;
}

static int keep(struct io_memory *memory, const struct frame *frame)
{
	struct sent *sent = memory->sent;

	if (memory->sent_count == memory->sent_room) {
		uint32_t room = memory->sent_room ? memory->sent_room * 2 : BURST_MAX;

		sent = realloc(sent, room * sizeof(*sent));
		if (!sent)
			return -ENOMEM;
		memory->sent = sent;
		memory->sent_room = room;
	}
	if (grow(&memory->out, memory->out_used + frame->len))
		return -ENOMEM;
	memcpy(memory->out.memory + memory->out_used, frame->data, frame->len);
	sent[memory->sent_count++] = (struct sent){ memory->out_used, frame->len, frame->origin };
	memory->out_used += frame->len;
	return 0;
}

static void memory_send(struct io *io, struct frame *frames, unsigned count)
{
	struct io_memory *memory = (struct io_memory *)io;

	for (unsigned i = 0; i < count; i++) {
		frames[i].error = keep(memory, &frames[i]) ? ENOMEM : 0;
		memory->stats.sent += !frames[i].error;
		memory->stats.send_errors += frames[i].error != 0;
	}
}

uint32_t io_memory_sent_count(const struct io *io)
{
	return ((const struct io_memory *)io)->sent_count;
}

void io_memory_sent(const struct io *io, uint32_t index, struct memory_sent *out)
{
	const struct io_memory *memory = (const struct io_memory *)io;
	const struct sent *sent = &memory->sent[index];

	*out = (struct memory_sent){ memory->out.memory + sent->offset, sent->len, sent->origin };
}

static void memory_release(struct io *io)
{
	(void)io;
}

static void memory_wait(struct io *io, int wake_fd, int timeout_ms)
{
	(void)io;
	(void)wake_fd;
	(void)timeout_ms;
}

static void memory_stats(const struct io *io, struct io_stats *out)
{
	*out = ((const struct io_memory *)io)->stats;
}

static void memory_close(struct io *io)
{
	struct io_memory *memory = (struct io_memory *)io;

	for (unsigned i = 0; i < BURST_MAX; i++)
		free(memory->in[i].memory);
	free(memory->out.memory);
	free(memory->sent);
	free(memory);
}

static const struct io_ops memory_ops = {
	.name = "memory",
	.receive = memory_receive,
	.send = memory_send,
	.release = memory_release,
	.wait = memory_wait,
	.stats = memory_stats,
	.close = memory_close,
};

int io_memory_open(enum link_type link, struct io **out)
{
	struct io_memory *memory = calloc(1, sizeof(*memory));

	if (!memory)
		return -ENOMEM;
	memory->io.ops = &memory_ops;
	memory->io.link = link;
	memory->io.references = 1;
	*out = &memory->io;
	return 0;
}
