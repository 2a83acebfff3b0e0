/* SPDX-License-Identifier: Apache-2.0 */
/* See bpf_syscalls.h. */
#define _GNU_SOURCE
#include "bpf/bpf_syscalls.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

static int bpf(enum bpf_cmd command, union bpf_attr *attr)
{
	long rc = syscall(SYS_bpf, command, attr, sizeof(*attr));

	return rc < 0 ? -errno : (int)rc;
}

static uint64_t pointer(const void *p)
{
	return (uint64_t)(uintptr_t)p;
}

/* Kernels before 5.11 charge maps and programs against RLIMIT_MEMLOCK, whose default is too small. */
static void raise_memlock(void)
{
	struct rlimit all = { RLIM_INFINITY, RLIM_INFINITY };

	(void)setrlimit(RLIMIT_MEMLOCK, &all);
}

int bpf_sys_map_create(enum bpf_map_type type, const char *name, uint32_t key_size, uint32_t value_size,
		       uint32_t entries, uint32_t flags)
{
	union bpf_attr attr;

	raise_memlock();
	memset(&attr, 0, sizeof(attr));
	attr.map_type = type;
	attr.key_size = key_size;
	attr.value_size = value_size;
	attr.max_entries = entries;
	attr.map_flags = flags;
	strncpy(attr.map_name, name, sizeof(attr.map_name) - 1);
	return bpf(BPF_MAP_CREATE, &attr);
}

int bpf_sys_program_load(enum bpf_prog_type type, const char *name, const struct bpf_insn *insns, uint32_t count,
			 char *log, uint32_t log_size)
{
	union bpf_attr attr;
	int fd, again;

	raise_memlock();
	memset(&attr, 0, sizeof(attr));
	attr.prog_type = type;
	attr.insns = pointer(insns);
	attr.insn_cnt = count;
	/* The helpers that change a packet's size and lengths are not reserved to GPL programs, and this one is not. */
	attr.license = pointer("Apache-2.0");
	strncpy(attr.prog_name, name, sizeof(attr.prog_name) - 1);
	if (log_size)
		log[0] = '\0';
	fd = bpf(BPF_PROG_LOAD, &attr);
	if (fd >= 0 || !log_size)
		return fd;
	/* Asked for the log only on refusal: it costs memory, and a full log turns a success into -ENOSPC. */
	attr.log_buf = pointer(log);
	attr.log_size = log_size;
	attr.log_level = 1;
	again = bpf(BPF_PROG_LOAD, &attr);
	log[log_size - 1] = '\0';
	return again == -ENOSPC ? fd : again;
}

int bpf_sys_program_by_id(uint32_t id)
{
	union bpf_attr attr;

	memset(&attr, 0, sizeof(attr));
	attr.prog_id = id;
	return bpf(BPF_PROG_GET_FD_BY_ID, &attr);
}

int bpf_sys_map_by_id(uint32_t id)
{
	union bpf_attr attr;

	memset(&attr, 0, sizeof(attr));
	attr.map_id = id;
	return bpf(BPF_MAP_GET_FD_BY_ID, &attr);
}

#define ATTACH_TCX_INGRESS 46 /* newer than the oldest headers that this builds with */

int bpf_sys_attach_ingress(int program, unsigned ifindex)
{
	union bpf_attr attr;

	memset(&attr, 0, sizeof(attr));
	attr.link_create.prog_fd = (uint32_t)program;
	attr.link_create.target_ifindex = ifindex;
	attr.link_create.attach_type = ATTACH_TCX_INGRESS;
	return bpf(BPF_LINK_CREATE, &attr);
}

static int map_element(enum bpf_cmd command, int fd, const void *key, const void *value)
{
	union bpf_attr attr;

	memset(&attr, 0, sizeof(attr));
	attr.map_fd = (uint32_t)fd;
	attr.key = pointer(key);
	attr.value = pointer(value); /* shares its place with next_key */
	return bpf(command, &attr);
}

int bpf_sys_map_update(int fd, const void *key, const void *value)
{
	return map_element(BPF_MAP_UPDATE_ELEM, fd, key, value);
}

int bpf_sys_map_lookup(int fd, const void *key, void *value)
{
	return map_element(BPF_MAP_LOOKUP_ELEM, fd, key, value);
}

int bpf_sys_map_delete(int fd, const void *key)
{
	return map_element(BPF_MAP_DELETE_ELEM, fd, key, NULL);
}

int bpf_sys_map_next_key(int fd, const void *key, void *next)
{
	return map_element(BPF_MAP_GET_NEXT_KEY, fd, key, next);
}

static int object_info(int fd, void *info, uint32_t size)
{
	union bpf_attr attr;

	memset(&attr, 0, sizeof(attr));
	attr.info.bpf_fd = (uint32_t)fd;
	attr.info.info_len = size;
	attr.info.info = pointer(info);
	return bpf(BPF_OBJ_GET_INFO_BY_FD, &attr);
}

int bpf_sys_program_info(int fd, struct bpf_prog_info *info)
{
	return object_info(fd, info, sizeof(*info));
}

int bpf_sys_map_info(int fd, struct bpf_map_info *info)
{
	return object_info(fd, info, sizeof(*info));
}

int bpf_sys_link_xdp(int program, int ifindex, uint32_t flags)
{
	union bpf_attr attr;

	memset(&attr, 0, sizeof(attr));
	attr.link_create.prog_fd = (uint32_t)program;
	attr.link_create.target_ifindex = (uint32_t)ifindex;
	attr.link_create.attach_type = BPF_XDP;
	attr.link_create.flags = flags;
	return bpf(BPF_LINK_CREATE, &attr);
}

int bpf_sys_link_ifindex(int link)
{
	struct bpf_link_info info;
	int error;

	memset(&info, 0, sizeof(info));
	error = object_info(link, &info, sizeof(info));
	return error ? error : (int)info.xdp.ifindex;
}

int bpf_sys_program_test(int fd, const uint8_t *in, uint32_t in_len, uint8_t *out, uint32_t *out_len,
			 uint32_t *verdict)
{
	union bpf_attr attr;
	int rc;

	memset(&attr, 0, sizeof(attr));
	attr.test.prog_fd = (uint32_t)fd;
	attr.test.data_in = pointer(in);
	attr.test.data_size_in = in_len;
	attr.test.data_out = pointer(out);
	attr.test.data_size_out = *out_len;
	rc = bpf(BPF_PROG_TEST_RUN, &attr);
	if (rc < 0)
		return rc;
	*out_len = attr.test.data_size_out;
	*verdict = attr.test.retval;
	return 0;
}

int bpf_sys_program_run_live(int fd, const uint8_t *frame, uint32_t length, uint32_t count, uint32_t batch)
{
	union bpf_attr attr;
	int rc;

	memset(&attr, 0, sizeof(attr));
	attr.test.prog_fd = (uint32_t)fd;
	attr.test.data_in = pointer(frame);
	attr.test.data_size_in = length;
	attr.test.repeat = count;
	attr.test.flags = BPF_F_TEST_XDP_LIVE_FRAMES;
	attr.test.batch_size = batch;
	rc = bpf(BPF_PROG_TEST_RUN, &attr);
	return rc < 0 ? rc : 0;
}

unsigned bpf_sys_possible_cpus(void)
{
	unsigned first = 0, last = 0, most = 0;
	FILE *file = fopen("/sys/devices/system/cpu/possible", "re");

	if (!file) { /* /sys may be hidden; never guess too low, the kernel would write past our buffer */
		long configured = sysconf(_SC_NPROCESSORS_CONF);
		return configured > 1024 ? (unsigned)configured : 1024;
	}
	for (;;) { /* "0-3" or "0-3,8-11" */
		if (fscanf(file, "%u", &first) != 1)
			break;
		last = first;
		if (fscanf(file, "-%u", &last) != 1)
			last = first;
		most = last > most ? last : most;
		if (fgetc(file) != ',')
			break;
	}
	fclose(file);
	return most + 1;
}
