# SPDX-License-Identifier: Apache-2.0
"""Running ``nft``: what it says, what becomes of a run that is cancelled, and the number of the ruleset."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lb.daemon.kernel import nftables
from lb.daemon.kernel.watch import OwnMarks
from lb.errors import FeatureError, IoError
from tests.lab import netns


@pytest.fixture
def slow_nft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nft"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")


@pytest.mark.usefixtures("slow_nft")
def test_a_run_that_is_cancelled_is_killed_and_waited_for() -> None:
    async def test() -> None:
        own = OwnMarks()
        running = asyncio.create_task(nftables.run("-f", "-", text="flush ruleset", own=own))
        while not own.processes:  # noqa: ASYNC110  a set
            await asyncio.sleep(0.005)
        (pid,) = own.processes
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)

    asyncio.run(test())


def test_where_there_is_no_nft_the_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(FeatureError, match="install the package nftables"):
        asyncio.run(nftables.run("list", "ruleset"))


def test_a_want_of_descriptors_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever changes VIPs at that moment has to know that it failed, and tries again."""

    async def none_left(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(asyncio, "create_subprocess_exec", none_left)
    with pytest.raises(IoError, match="cannot run nft: too many open files"):
        asyncio.run(nftables.run("list", "ruleset"))


def test_nft_speaks_english_whatever_the_locale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nft"
    program.write_text('#!/bin/sh\nprintf %s "$LC_ALL"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    assert asyncio.run(nftables.run("list")).output == "C"


@pytest.fixture
def namespace() -> Iterator[str]:
    name = netns.unique_prefix()
    netns.ip("netns", "add", name)
    yield name
    netns.ip("netns", "del", name)


@pytest.mark.lab
def test_the_number_of_the_ruleset_changes_with_each_transaction(namespace: str) -> None:
    def test() -> None:
        before = nftables.generation()
        assert nftables.generation() == before
        assert asyncio.run(nftables.run("add", "table", "inet", "other")).code == 0
        assert nftables.generation() != before

    netns.inside(namespace, test)


@pytest.mark.lab
def test_what_is_absent_is_told_from_what_is_wrong(namespace: str) -> None:
    def test() -> None:
        assert asyncio.run(nftables.run("list", "table", "inet", "nowhere")).absent
        wrong = asyncio.run(nftables.run("no", "such", "command"))
        assert wrong.code
        assert not wrong.absent

    netns.inside(namespace, test)
