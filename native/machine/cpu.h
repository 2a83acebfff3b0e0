/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is shipped runs on any processor of the architecture; a function marked TARGET_ is compiled for newer ones, and
 * runs only where vector_level.c has seen that the processor and the kernel have all that is named here.
 */
#ifndef VIPMUX_CPU_H
#define VIPMUX_CPU_H

#ifdef __x86_64__
#define VECTORS_X86 1
#define TARGET_AVX2 __attribute__((target("avx2,bmi,bmi2")))
#define TARGET_AVX512 __attribute__((target("avx512f,avx512vl,avx512dq,avx512bw,bmi,bmi2")))
#endif

/* So that a body becomes part of each variant of a function, compiled for what that is compiled for. */
#define ALWAYS_INLINE inline __attribute__((always_inline))
#define NEVER_INLINE __attribute__((noinline))
#define LIKELY(x) __builtin_expect(!!(x), 1)
#define UNLIKELY(x) __builtin_expect(!!(x), 0)
#define CACHE_LINE 64

/*
 * Asks for a line.  A function that does nothing else is taken for one without effect, and calls of it are left out (GCC 12
 * does that); the empty statement says that it has one.
 */
static ALWAYS_INLINE void prefetch(const void *address)
{
	__builtin_prefetch(address);
	__asm__ volatile("");
}

#define CACHE_ALIGNED __attribute__((aligned(CACHE_LINE)))

#endif
