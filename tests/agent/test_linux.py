# SPDX-License-Identifier: Apache-2.0
"""What ``nft`` says of the host's table, and what it means; a stand-in for ``nft``."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from agent.linux import LinuxHost
from lb.errors import IoError, PrivilegeError, VipmuxError


def speaking(directory: Path, code: int, output: str, complaint: str) -> None:
    program = directory / "nft"
    program.write_text(f"#!/bin/sh\nprintf '%s' '{output}'\nprintf '%s' '{complaint}' >&2\nexit {code}\n")
    program.chmod(0o755)


@pytest.mark.parametrize(
    ("code", "complaint", "found"),
    [
        (0, "", "table inet vipmux_agent {}"),
        (1, "Error: No such file or directory", None),
        (1, "Error: Could not process rule: Operation not supported", None),
        (1, "netlink: Error: cache initialization failed: Device or resource busy", IoError),
        (1, "netlink: Error: cache initialization failed: Operation not permitted", PrivilegeError),
    ],
)
def test_a_table_that_cannot_be_listed_is_not_a_table_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, complaint: str, found: str | type[VipmuxError] | None
) -> None:
    """Else it is put back without need, and a clean-up leaves it behind."""
    speaking(tmp_path, code, "table inet vipmux_agent {}", complaint)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with LinuxHost() as host:
        if isinstance(found, type):
            with pytest.raises(found, match="nft"):
                host.rules()
        else:
            assert host.rules() == found


def test_a_want_of_processes_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*_: Any, **__: Any) -> None:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(subprocess, "Popen", none_left)
    with LinuxHost() as host, pytest.raises(IoError, match="cannot run nft: resource temporarily unavailable"):
        host.rules()
