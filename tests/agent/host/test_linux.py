# SPDX-License-Identifier: Apache-2.0
"""What the host says and what it means: ``nft`` (a stand-in for it), and routes that others have made."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from agent.host.linux import LinuxHost
from lb.errors import IoError, PrivilegeError, VipmuxError
from lb.model import Network
from tests.lab import netns


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


@pytest.fixture
def namespace() -> Iterator[str]:
    name = netns.unique_prefix()
    netns.ip("netns", "add", name)
    netns.ip("-n", name, "link", "set", "lo", "up")
    yield name
    netns.ip("netns", "del", name)


@pytest.mark.lab
@pytest.mark.parametrize("prefix", [ip_network("203.0.113.128/25"), ip_network("2001:db8::/64")])
def test_a_local_route_of_the_operators_own_is_no_obstacle_and_stays(namespace: str, prefix: Network) -> None:
    """As with AnyIP, or of a balancer that was here before; else the whole state of this host was refused for it."""

    def theirs() -> list[str]:
        family = "-4" if prefix.version == 4 else "-6"
        shown = netns.ip("-n", namespace, family, "route", "show", "table", "local", str(prefix))
        return [line for line in shown.splitlines() if "proto 177" not in line]

    netns.ip("-n", namespace, "route", "add", "local", str(prefix), "dev", "lo")
    before = theirs()

    def test() -> None:
        with LinuxHost() as host:
            host.add_route(prefix)
            assert host.local_routes() == {prefix}
            host.remove_route(prefix)
            assert host.local_routes() == frozenset()

    netns.inside(namespace, test)
    assert len(before) == 1
    assert theirs() == before
