# SPDX-License-Identifier: Apache-2.0
"""The data plane on aarch64: cross-compiled, and the fuzz targets with their oracles over their seeds, emulated."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
NATIVE = ROOT / "native"
COMPILER, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64-static"
SEEDS = {"fuzz_handover": 8}  #: of each target; this one looks through the whole flow table each time
SEEDS_OTHERWISE = 60
INPUTS_PER_SEED = 11  #: see each_input.c
FLAGS = ["-std=gnu11", "-O2", "-w", f"-I{NATIVE}"]  # warnings: "make check"

pytestmark = [
    pytest.mark.skipif(not shutil.which(tool), reason=f"{tool} is not installed: aarch64 was not looked at")
    for tool in (COMPILER, EMULATOR)
]


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Path]:
    """Of each source file of the data plane, compiled."""
    directory = tmp_path_factory.mktemp("aarch64")
    sources = sorted(NATIVE.glob("**/*.c"))
    made = {source: directory / f"{source.stem}-{source.parent.name}.o" for source in sources}
    for source, made_of_it in made.items():
        subprocess.run([COMPILER, *FLAGS, "-c", str(source), "-o", str(made_of_it)], check=True)
    return made


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("seeds")
    subprocess.run([sys.executable, "-m", "tests.fuzz.seeds", str(directory)], cwd=ROOT, check=True)
    return directory


@pytest.mark.parametrize("target", sorted(HERE.glob("fuzz_*.c")), ids=lambda path: path.stem)
def test_a_fuzz_target_holds_on_aarch64(target: Path, objects: dict[Path, Path], seeds: Path, tmp_path: Path) -> None:
    included = {NATIVE / name for name in re.findall(r'#include "(.*\.c)"', target.read_text())}
    linked = [str(made) for source, made in objects.items() if source not in included]
    program = tmp_path / target.stem
    compile_it = [COMPILER, *FLAGS, "-static", str(target), str(HERE / "each_input.c"), *linked, "-lpthread"]
    subprocess.run([*compile_it, "-o", str(program)], check=True)
    inputs = sorted((seeds / f"{target.stem}.corpus").iterdir())
    inputs = inputs[:: max(1, len(inputs) // SEEDS.get(target.stem, SEEDS_OTHERWISE))]
    run = subprocess.run([EMULATOR, str(program), *map(str, inputs)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) == INPUTS_PER_SEED * len(inputs) > 0
