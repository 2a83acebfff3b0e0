# SPDX-License-Identifier: Apache-2.0
"""What native/api/api.h promises, called as C is called: what may be NULL, and numbers that mean nothing."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
from pathlib import Path

import pytest

from lb.dataplane import HOST_REASONS, REASONS, LinkHeader, Pipeline
from lb.dataplane.binding import c, ffi
from tests.native.compiled import NATIVE


@pytest.mark.parametrize("flows", [0, 1])
@pytest.mark.parametrize("wanted", range(8))
def test_only_the_counters_that_are_asked_for_are_written(flows: int, wanted: int) -> None:
    pipeline = Pipeline(flows, LinkHeader.NONE)
    received = ffi.new("uint64_t *", 7) if wanted & 1 else ffi.NULL
    reasons = ffi.new("uint64_t[]", len(REASONS)) if wanted & 2 else ffi.NULL
    counted = ffi.new("struct flow_counters *", {"refused": 7}) if wanted & 4 else ffi.NULL
    c.mux_counters_read(pipeline._c, received, reasons, counted)
    assert not (wanted & 1 and received[0])
    assert not (wanted & 4 and counted.refused)


def test_reasons_that_do_not_exist_have_no_name() -> None:
    for number in (len(REASONS), 1 << 31, (1 << 32) - 1):
        assert c.reason_name(number) == c.reason_sentence(number) == ffi.NULL
        assert c.reason_verdict(number) == 4
    for number in (len(HOST_REASONS), (1 << 32) - 1):
        assert c.host_reason_name(number) == c.host_reason_sentence(number) == ffi.NULL
        assert c.host_reason_drops(number) == 0


def test_what_is_not_there_is_put_without_harm() -> None:
    for put in (c.maglev_put, c.vip_map_put, c.snapshot_put, c.mux_destroy, c.io_close, c.bench_destroy):
        put(ffi.NULL)
    for put in (c.generator_close, c.worker_destroy, c.host_destroy, c.decap_destroy):
        put(ffi.NULL)


def test_every_function_of_the_interface_is_explained() -> None:
    """By a comment, or a section's title, above it: of its own, or of it and its neighbours."""
    plain, bare = (NATIVE / "api" / "api.h").read_text(), []
    for block in plain.split("\n\n"):
        explained = False
        for line in block.splitlines():
            explained = explained or "*/" in line
            if re.match(r"^[a-z].*\b\w+\(", line) and not explained:
                bare.append(line)
    assert bare == []
    assert plain.count("/*") > 30


# ---- which variant of a function runs ----


def test_every_variant_for_newer_processors_is_chosen_by_all_that_it_needs() -> None:
    """A new ``target("...")`` must be looked at: here stand those whose choice asks for every feature named."""
    found = set()
    for path in NATIVE.glob("**/*.[ch]"):
        found |= {(path.name, features) for features in re.findall(r'target\("([^"]*)"\)', path.read_text())}
    assert found == {
        ("aes128.c", "aes"),
        ("cpu.h", "avx2,bmi,bmi2"),
        ("cpu.h", "avx512f,avx512vl,avx512dq,avx512bw,bmi,bmi2"),
    }


TSAN = """
#include <stdio.h>
#include "flow/flow.h"
int main(void)
{
	uint64_t keys[3] = { 1, 2, 3 }, out[3];
	struct flow_seed seed;

	flow_seed_init(&seed, (const uint8_t *)"0123456789abcdef");
	flow_scramble_burst_scalar(&seed, keys, out, 3);
	flow_hash4_burst_scalar(&seed, keys, keys, out, 3);
	puts("runs");
	return 0;
}
"""


def sanitized(directory: Path, source: str, *files: str) -> subprocess.CompletedProcess[str]:
    """Compiled with ThreadSanitizer and run."""
    main, program = directory / "main.c", directory / "main"
    main.write_text(source)
    flags = ["-std=gnu11", "-O1", "-g", "-fsanitize=thread", f"-I{NATIVE}"]
    subprocess.run(["gcc", *flags, str(main), *(str(NATIVE / name) for name in files), "-o", str(program)], check=True)
    return subprocess.run(["setarch", "-R", str(program)], capture_output=True, text=True, check=False)


@pytest.mark.skipif("libasan" in os.environ.get("LD_PRELOAD", ""), reason="one sanitizer at a time")
def test_a_program_built_with_thread_sanitizer_starts(tmp_path: Path) -> None:
    empty = sanitized(tmp_path, '#include <stdio.h>\nint main(void) { puts("runs"); return 0; }')
    if empty.stdout != "runs\n":
        pytest.skip("ThreadSanitizer does not run here: " + (empty.stderr.splitlines() or ["?"])[0])
    found = sanitized(tmp_path, TSAN, "flow/flow.c")
    assert found.stdout == "runs\n", found.stderr


def test_a_warning_of_another_compiler_does_not_keep_anybody_from_installing() -> None:
    build = runpy.run_path(str(NATIVE / "api" / "build_extension.py"))
    _, _, _, keywords = build["ffibuilder"]._assigned_source
    assert "-Wall" in keywords["extra_compile_args"]
    assert "-Werror" not in keywords["extra_compile_args"] + keywords["extra_link_args"]
