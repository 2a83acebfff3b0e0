# SPDX-License-Identifier: Apache-2.0
"""Where no Debian can be had, labs that need one are skipped, and say why; what was begun is not taken for whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab import debian
from tests.lab.debian import UnavailableError


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where programs are looked for."""
    monkeypatch.setattr(debian, "CACHE", tmp_path / "cache")
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    return tmp_path


def mmdebstrap(place: Path, script: str) -> None:
    path = place / "bin" / "mmdebstrap"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_without_a_way_to_a_mirror_it_is_said_why(place: Path) -> None:
    mmdebstrap(place, "echo 'E: Failed to fetch http://mirror.example' >&2; echo 'E: mmdebstrap failed' >&2; exit 25")
    for _ in range(2):  # what the first left behind is no hindrance
        with pytest.raises(
            UnavailableError, match=r"^Debian 12 could not be had: E: Failed to fetch http://mirror\.example$"
        ):
            debian.fresh(["curl"])


def test_a_mirror_that_says_nothing_is_waited_for_so_long(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(debian, "PATIENCE", 0.2)
    mmdebstrap(place, "exec sleep 60")
    with pytest.raises(UnavailableError, match=r"could not be had within 0\.2 s"):
        debian.fresh(["curl"])


def test_without_the_program_its_package_is_named(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{place}/bin")
    with pytest.raises(UnavailableError, match="apt-get install mmdebstrap"):
        debian.fresh(["curl"])


def test_what_was_made_is_kept_and_what_is_for_others_goes(place: Path) -> None:
    mmdebstrap(
        place,
        'echo >> "$0.runs"\nwhile [ "$1" != bookworm ]; do shift; done\n'
        'mkdir -p "$2/var/cache/apt/archives" "$2/var/lib/apt/lists" "$2/etc/apt" "$2/usr/sbin"',
    )
    first = debian.fresh(["curl"])
    assert debian.fresh(["curl"]) == first
    assert (first.root / "etc/apt/sources.list").read_text() == f"deb [trusted=yes] file:{debian.MIRROR} ./\n"
    (debian.CACHE / "making-0").mkdir()
    second = debian.fresh(["curl", "wget"])
    assert second.root.exists()
    assert not first.root.exists()
    assert not (debian.CACHE / "making-0").exists()
    assert (place / "bin/mmdebstrap.runs").read_text() == "\n\n"
