/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is shipped runs on any processor of the architecture; functions marked MULTIVERSION are compiled for newer
 * ones as well, and the dynamic linker picks at load time.  It picks before a sanitizer has set itself up (a function that
 * ThreadSanitizer instruments crashes then), musl cannot, and GCC before 12 does not know these levels: there all get the
 * plain one.  A level is picked only where the processor and the kernel have all of it.
 */
#ifndef VIPMUX_CPU_H
#define VIPMUX_CPU_H

#include <features.h>

#if defined(__x86_64__) && defined(__GLIBC__) && !defined(__clang__) && __GNUC__ >= 12 && \
	!defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define MULTIVERSION __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define MULTIVERSION
#endif

#define LIKELY(x) __builtin_expect(!!(x), 1)
#define UNLIKELY(x) __builtin_expect(!!(x), 0)
#define CACHE_LINE 64
#define CACHE_ALIGNED __attribute__((aligned(CACHE_LINE)))

#endif
