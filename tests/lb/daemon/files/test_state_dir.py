# SPDX-License-Identifier: Apache-2.0
"""A state directory in which somebody else may write is refused, in one sentence that says what to do."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.host.change_log import Lock
from lb.daemon.files.state_dir import check_private
from lb.errors import IoError
from lb.mux.io.startup import StateDir
from manager.daemon import state_directory

ME = os.geteuid()
SOMEBODY = 65_533


@pytest.fixture
def state(tmp_path: Path) -> Path:
    directory = tmp_path / "state"
    directory.mkdir(mode=0o700)
    (directory / "node").mkdir()
    return directory


def test_our_own_is_fine_with_what_is_in_it_and_behind_a_link(state: Path) -> None:
    (state / "node" / "services").write_text("")
    check_private(state, "mux.state_dir")
    link = state.with_name("link")
    link.symlink_to(state)
    check_private(link, "mux.state_dir")


def test_one_of_another_user_is_refused_with_what_to_do(state: Path) -> None:
    with pytest.raises(
        IoError, match=r"^mux.state_dir \S+ belongs to \S+( \d+)?: run this as .+, or choose another"
    ) as told:
        check_private(state, "mux.state_dir", user=SOMEBODY) if ME else _given_away(state, user=SOMEBODY - 1)
    assert "\n" not in str(told.value)


@pytest.mark.skipif(ME != 0, reason="gives files to other users, which root alone may do")
def test_root_is_told_as_whom_to_run_in_anothers_directory(state: Path) -> None:
    os.chown(state, SOMEBODY, SOMEBODY)
    with pytest.raises(IoError, match=r"belongs to user 65533: run this as user 65533 \(`runuser -u"):
        check_private(state, "manager.state_dir")


def _given_away(state: Path, user: int) -> None:
    os.chown(state, SOMEBODY, SOMEBODY)
    check_private(state, "mux.state_dir", user=user)


def test_one_that_others_may_write_in_is_refused(state: Path) -> None:
    state.chmod(0o770)
    with pytest.raises(IoError, match=r"can be written by others: `chmod go-w \S+`"):
        check_private(state, "agent.state_dir")


@pytest.mark.parametrize("where", ["mux.lock", "node/services"])
def test_a_symbolic_link_in_it_is_refused(state: Path, where: str) -> None:
    (state / where).symlink_to("/etc/passwd")
    with pytest.raises(IoError, match=rf"^mux.state_dir: \S+/{where} is a symbolic link, .*: remove it$"):
        check_private(state, "mux.state_dir")


@pytest.mark.skipif(ME != 0, reason="gives files to other users, which root alone may do")
def test_a_file_of_somebody_else_in_it_is_refused(state: Path) -> None:
    (state / "node" / "services").write_text("")
    os.chown(state / "node" / "services", SOMEBODY, SOMEBODY)
    with pytest.raises(IoError, match=r"node/services belongs to user 65533: remove it"):
        check_private(state, "mux.state_dir")


def begin_manager(directory: Path) -> None:
    with state_directory(str(directory)):
        pass


@pytest.mark.parametrize("begin", [StateDir, Lock, begin_manager], ids=["lb-mux", "lb-agent", "lb-manager"])
def test_no_daemon_begins_in_such_a_directory(begin: Callable[[Path], object], state: Path) -> None:
    (state / "evil").symlink_to("/etc/passwd")
    with pytest.raises(IoError, match="is a symbolic link"):
        begin(state)
    assert not (state / "mux.lock").exists()
