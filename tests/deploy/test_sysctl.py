# SPDX-License-Identifier: Apache-2.0
"""The sysctl files say why for each setting, and a kernel takes every line of them."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import netns

#: Settings that namespaces do not have for themselves; more are so on some kernels than on others.
WHOLE_MACHINE = ("net.core.", "net.ipv4.neigh.default.gc_", "net.ipv6.neigh.default.gc_")
FILES = sorted(Path("deploy/sysctl").glob("*.conf"))


def settings(file: Path) -> dict[str, str]:
    lines = (line for line in file.read_text().splitlines() if line and not line.startswith("#"))
    return {key.strip().removeprefix("-"): value.strip() for key, _, value in (line.partition("=") for line in lines)}


def test_there_is_one_for_each_kind_of_machine() -> None:
    assert [file.stem for file in FILES] == ["90-vipmux-host", "90-vipmux-mux", "90-vipmux-router"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_group_of_settings_has_its_why_above_it(file: Path) -> None:
    before = ""
    for line in file.read_text().splitlines():
        if line and not line.startswith("#"):
            assert before.startswith(("#", "net.", "-net.")), f"{line}: nothing above it says why"
        before = line


@pytest.fixture
def machine() -> Iterator[str]:
    """A namespace of its own."""
    name = f"{netns.unique_prefix()}-s"
    netns.batch([f"netns add {name}"])
    yield name
    netns.ip("netns", "del", name)


@pytest.mark.lab
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_kernel_takes_every_setting(file: Path, machine: str) -> None:
    """As ``sysctl -p`` writes them. What belongs to the whole machine is only looked for: it would change this one."""
    whole_machine = []
    for key, value in settings(file).items():
        path = "/proc/sys/" + key.replace(".", "/")
        here = (
            f"test -w {path} && test $(stat -c %a {path}) != 444 || exit 3; echo {value} > {path} || exit 4; cat {path}"
        )
        done = subprocess.run(
            ["ip", "netns", "exec", machine, "sh", "-c", here], capture_output=True, text=True, check=False
        )
        if key.startswith(WHOLE_MACHINE) and done.returncode == 3 and Path(path).exists():
            whole_machine.append(key)
            continue
        assert done.returncode == 0, f"{key}: {done.stderr or 'this kernel has no such setting'}"
        assert done.stdout.strip() == value, key
    print(f"\n{file.stem}: not tried, for they belong to the whole machine: {', '.join(whole_machine) or 'none'}")
