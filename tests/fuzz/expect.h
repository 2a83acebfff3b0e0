/* SPDX-License-Identifier: Apache-2.0 */
/* A claim of a fuzz target: where it does not hold, it is named, and libFuzzer keeps the input. */
#ifndef VIPMUX_FUZZ_EXPECT_H
#define VIPMUX_FUZZ_EXPECT_H

#include <stdio.h>
#include <stdlib.h>

#define expect(claim)                                                                           \
	do {                                                                                    \
		if (!(claim)) {                                                                 \
			fprintf(stderr, "%s:%d: does not hold: %s\n", __FILE__, __LINE__, #claim); \
			abort();                                                                \
		}                                                                               \
	} while (0)

#endif
