# SPDX-License-Identifier: Apache-2.0
"""What threads share of the data plane: snapshots, counters, the flow table that others see, questions to a worker."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.native.compiled import HERE, NATIVE
from tests.native.test_interface import sanitized


@pytest.mark.skipif("libasan" in os.environ.get("LD_PRELOAD", ""), reason="one sanitizer at a time")
def test_thread_sanitizer_sees_no_race_between_a_worker_and_those_who_publish_ask_and_count(tmp_path: Path) -> None:
    empty = sanitized(tmp_path, "int main(void) { return 0; }")
    if empty.returncode:
        pytest.skip("ThreadSanitizer does not run here: " + (empty.stderr.splitlines() or ["?"])[0])
    stress = f'#include "{HERE / "shared_stress.c"}"\n'
    found = sanitized(tmp_path, stress, *(str(path.relative_to(NATIVE)) for path in sorted(NATIVE.glob("**/*.c"))))
    assert (found.returncode, found.stderr) == (0, "")
    forwarded, taken_over = map(int, found.stdout.split())
    assert forwarded > 0
    assert taken_over > 0, "workers found flows at each other"
