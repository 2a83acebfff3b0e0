# SPDX-License-Identifier: Apache-2.0
"""What goes wrong around ExaBGP is said and tried again; it never ends ``lb-mux``."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable
from typing import Any

import pytest
from structlog.testing import capture_logs

from lb.bgp import launch
from lb.bgp import sidecar as module
from lb.bgp.sidecar import Account, Sidecar, SidecarListener


def no_descriptors(*_: Any, **__: Any) -> Any:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


async def no_descriptors_later(*_: Any, **__: Any) -> Any:
    no_descriptors()


async def odd(*_: Any, **__: Any) -> Any:
    raise KeyError("odd")


class Process:
    """Lives until it is killed."""

    def __init__(self) -> None:
        self.pid = 2**22 + 7  # nobody's
        self.returncode: int | None = None
        self._ended = asyncio.Event()
        self.stdout = asyncio.StreamReader()
        self.stdout.feed_eof()

    async def wait(self) -> int:
        await self._ended.wait()
        return self.returncode or 0

    def end(self) -> None:
        self.returncode = -9
        self._ended.set()


def lives(monkeypatch: pytest.MonkeyPatch, break_: Callable[[pytest.MonkeyPatch], None], count: int = 3) -> list[str]:
    """Why the lives of a sidecar ended, as its listener was told."""
    monkeypatch.setattr(module, "BACKOFF", (0.001,))
    down: list[str] = []

    async def main() -> None:
        break_(monkeypatch)
        listener = SidecarListener(lambda: None, down.append, lambda _: None, lambda _: None)
        speaks: Any = None
        sidecar = Sidecar(speaks, Account("nobody", None, None, ""), listener)
        running = asyncio.create_task(sidecar.run())
        while len(down) < count:
            assert not running.done(), running.exception()
            await asyncio.sleep(0.001)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    async def bounded() -> None:
        async with asyncio.timeout(30):
            await main()

    asyncio.run(bounded())
    return down


def break_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.socket, "socket", no_descriptors)


def break_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sidecar, "_start", no_descriptors_later)


def break_accept(how: Callable[..., Any]) -> Callable[[pytest.MonkeyPatch], None]:
    """Inside the group of tasks: what it raises is a group of exceptions."""

    def break_(monkeypatch: pytest.MonkeyPatch) -> None:
        async def start(self: Sidecar, name: str) -> Process:
            return Process()

        def kill(pid: int, number: int) -> None:
            raise ProcessLookupError

        def dead(self: Sidecar) -> None:
            if isinstance(self._process, Process):
                self._process.end()

        monkeypatch.setattr(Sidecar, "_start", start)
        monkeypatch.setattr(Sidecar, "_kill", dead)
        monkeypatch.setattr(module.os, "killpg", kill)
        monkeypatch.setattr(module, "_accept", how)

    return break_


@pytest.mark.parametrize("break_", [break_socket, break_process, break_accept(no_descriptors_later)])
def test_a_want_of_descriptors_is_a_reason_to_try_again(
    monkeypatch: pytest.MonkeyPatch, break_: Callable[[pytest.MonkeyPatch], None]
) -> None:
    with capture_logs() as logs:
        assert lives(monkeypatch, break_) == ["too many open files"] * 3
    assert {line["event"] for line in logs} == {"ExaBGP ended"}


def test_an_exabgp_that_dies_at_each_start_is_tried_for_ever_and_does_not_fill_the_log(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with capture_logs() as logs:
        assert len(lives(monkeypatch, break_process, 101)) >= 101
    assert [line["times_in_a_row"] for line in logs][:11] == [1, 2, 3, 4, 5, 6, 20, 40, 60, 80, 100]
    assert len(logs) < 15


def test_an_error_of_ours_has_its_traceback_in_the_log_and_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with capture_logs() as logs:
        assert lives(monkeypatch, break_accept(odd)) == ["KeyError: 'odd'"] * 3
    assert any("exc_info" in line for line in logs)


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_exabgps_connections_are_begun_anew_soon_and_marked_as_routing(
    monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    outgoing = pytest.importorskip("exabgp.reactor.network.outgoing")
    from exabgp.protocol.family import AFI

    monkeypatch.setattr(outgoing, "create", outgoing.create)
    launch.prepare_sockets()
    with outgoing.create(getattr(AFI, family)) as opened:
        assert opened.getsockopt(socket.IPPROTO_TCP, socket.TCP_SYNCNT) == launch.SYNS_AGAIN
        of_family = (
            (socket.IPPROTO_IP, socket.IP_TOS) if family == "ipv4" else (socket.IPPROTO_IPV6, socket.IPV6_TCLASS)
        )
        assert opened.getsockopt(*of_family) == 0xC0, "CS6"
        assert opened.getsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY) == launch.INTERACTIVE
