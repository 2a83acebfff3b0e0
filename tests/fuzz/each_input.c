/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Runs a fuzz target without libFuzzer: over each file named, as it is and with bits turned.  For processors that are only
 * emulated, see tests/fuzz/test_aarch64.py.  Prints how many inputs there were.
 */
#include <stdint.h>
#include <stdio.h>

#define LONGEST 65536
#define TURNS 10

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int main(int argc, char **argv)
{
	static uint8_t input[LONGEST];
	uint64_t chance = 1;
	unsigned inputs = 0;

	for (int i = 1; i < argc; i++) {
		FILE *file = fopen(argv[i], "rb");
		size_t size = file ? fread(input, 1, sizeof(input), file) : 0;

		if (!file)
			return 1;
		fclose(file);
		for (unsigned turn = 0; turn <= TURNS; turn++) {
			LLVMFuzzerTestOneInput(input, size);
			inputs++;
			chance = chance * 6364136223846793005u + 1442695040888963407u;
			if (size)
				input[(chance >> 33) % size] ^= (uint8_t)(1u << (chance >> 61));
		}
	}
	printf("%u\n", inputs);
	return 0;
}
