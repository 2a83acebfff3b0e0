/* SPDX-License-Identifier: Apache-2.0 */
/* See vector_level.h. */
#include "mux/vector_level.h"

#include <stddef.h>

static const struct vector levels[VECTOR_LEVELS] = {
	[VECTOR_BEST] = { .name = "best" },
	[VECTOR_SCALAR] = { "plain", flow_scramble_burst_scalar, flow_hash4_burst_scalar, flow_hash6_burst_scalar,
			    flow_find_burst_scalar, read_ipv4_scalar, read_ipv6_scalar },
#ifdef VECTORS_X86
	[VECTOR_AVX2] = { "avx2", flow_scramble_burst_avx2, flow_hash4_burst_avx2, flow_hash6_burst_avx2,
			    flow_find_burst_avx2, read_ipv4_avx2, read_ipv6_avx2 },
	[VECTOR_AVX512] = { "avx512", flow_scramble_burst_avx512, flow_hash4_burst_avx512, flow_hash6_burst_avx512,
			    flow_find_burst_avx512, read_ipv4_avx512, read_ipv6_avx512 },
#else
	[VECTOR_AVX2] = { .name = "avx2" },
	[VECTOR_AVX512] = { .name = "avx512" },
#endif
};

static bool runs(uint32_t level, const struct vector_processor *has)
{
	if (!levels[level].find)
		return false;
	switch (level) {
	case VECTOR_SCALAR:
		return true;
	case VECTOR_AVX2:
		return has->avx2 && has->bmi && has->bmi2;
	case VECTOR_AVX512:
		return has->avx512f && has->avx512vl && has->avx512dq && has->avx512bw && has->bmi && has->bmi2;
	default:
		return false;
	}
}

const struct vector *vector_for(uint32_t level, const struct vector_processor *processor)
{
	if (level == VECTOR_BEST)
		for (level = VECTOR_LEVELS - 1; !runs(level, processor); level--)
			;
	return level < VECTOR_LEVELS && runs(level, processor) ? &levels[level] : NULL;
}

const struct vector *vector_get(uint32_t level)
{
	struct vector_processor here = { 0 };

#ifdef VECTORS_X86
	here.avx2 = __builtin_cpu_supports("avx2");
	here.bmi = __builtin_cpu_supports("bmi");
	here.bmi2 = __builtin_cpu_supports("bmi2");
	here.avx512f = __builtin_cpu_supports("avx512f");
	here.avx512vl = __builtin_cpu_supports("avx512vl");
	here.avx512dq = __builtin_cpu_supports("avx512dq");
	here.avx512bw = __builtin_cpu_supports("avx512bw");
#endif
	return vector_for(level, &here);
}

const char *vector_name(uint32_t level)
{
	return level < VECTOR_LEVELS ? levels[level].name : NULL;
}
