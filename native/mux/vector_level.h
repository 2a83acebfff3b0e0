/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the pipeline does to many packets at once, for the vector instructions that a processor has.  Chosen once, when a
 * pipeline is made, and the same for all its life; every level gives the same results as VECTOR_SCALAR, which says what
 * is meant and runs on any processor.
 *
 * No ifunc, on purpose: the dynamic linker would choose before a sanitizer has set itself up, nobody could choose
 * otherwise for a test or a measurement, and musl has none.
 */
#ifndef VIPMUX_VECTOR_LEVEL_H
#define VIPMUX_VECTOR_LEVEL_H

#include <stdbool.h>
#include <stdint.h>

#include "flow/flow.h"
#include "flow/flow_table.h"
#include "packet/burst/read_ipv4.h"
#include "packet/burst/read_ipv6.h"

enum vector_level {
	VECTOR_BEST = 0, /* whatever of the others is best here */
	VECTOR_SCALAR = 1,
	VECTOR_AVX2 = 2,
	VECTOR_AVX512 = 3,
	VECTOR_LEVELS = 4,
};

/* What of a processor decides.  All of a level's are needed: compilers use them all, and a hypervisor may mask any. */
struct vector_processor {
	bool avx2, bmi, bmi2;
	bool avx512f, avx512vl, avx512dq, avx512bw;
};

struct vector {
	const char *name;
	flow_scramble_many *scramble;
	flow_hash4_many *hash4;
	flow_hash6_many *hash6;
	flow_find_burst *find;
	read_ipv4_burst *read4;
	read_ipv6_burst *read6;
};

/* NULL: there is no such level, this is another architecture, or the processor lacks what it needs. */
const struct vector *vector_get(uint32_t level);

/* The same for any processor. */
const struct vector *vector_for(uint32_t level, const struct vector_processor *processor);

/* Of a level, whether it runs here or not; NULL: there is no such level. */
const char *vector_name(uint32_t level);

#endif
