# SPDX-License-Identifier: Apache-2.0
"""A MUX that ends because something failed leaves the isolation of the VIPs; and its next start says so."""

from __future__ import annotations

import asyncio
import threading
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs

from lb.daemon import control_socket
from lb.daemon.control_socket import ControlServer
from lb.daemon.files.clean_shutdown import RunMarker
from lb.daemon.notify import Supervisor
from lb.dataplane import FlowTuple
from lb.errors import ControlError, DataplaneError
from lb.model import IoMode, MuxConfig, MuxSettings, Protocol
from lb.mux.daemon import ENTERING, RunningMux
from lb.mux.io.mode import WHOLE, Mode, cut
from lb.mux.io.startup import StateDir
from lb.mux.plane import MuxPlane
from lb.mux.workers.engine import Engine


class Port:
    """What the daemon put into the kernel."""

    def __init__(self, *, inherited: bool) -> None:
        self.inherited = inherited
        self.removed = False

    def close_ios(self) -> None:
        pass

    async def remove(self) -> None:
        self.removed = True


class Stopped:
    """An engine or a table of probes that can be stopped."""

    def stop(self) -> None:
        pass

    async def close(self) -> None:
        pass


class Opened:
    def __init__(self, port: Port) -> None:
        self.port = port
        self.engine = Stopped()


def stopped(directory: Path, *, served: bool, inherited: bool, clean: bool) -> tuple[bool, bool]:
    """Whether the isolation was removed, and whether the marker is still there."""

    async def main() -> tuple[bool, bool]:
        settings = MuxSettings("m", IPv4Address("10.0.1.11"), bytes(16), "eth0", state_dir=str(directory))
        state_dir = StateDir(directory)
        nothing: Any = None
        daemon: Any = RunningMux(
            directory / "mux.toml",
            MuxConfig(settings, ()),
            nothing,
            state_dir,
            asyncio.Event(),
            supervisor=Supervisor(),
        )
        daemon._marker.begin()
        port = Port(inherited=inherited)
        daemon._opened, daemon._probes, daemon._served = Opened(port), Stopped(), served
        await daemon.stop(clean=clean)
        state_dir.close()
        return port.removed, (directory / "mux.running").exists()

    return asyncio.run(main())


class Reopened(Port):
    """An interface that is there again."""

    ios: tuple[Any, ...] = ()

    def __init__(self) -> None:
        super().__init__(inherited=False)
        self.open = False
        self.details = WHOLE

    async def reopen(self) -> None:
        self.open = True

    def close_ios(self) -> None:
        self.open = False


class Workerless(Stopped):
    """No thread can be started."""

    generation = 1

    def start(self, _: object) -> None:
        raise RuntimeError("can't start new thread")


def made(directory: Path) -> Any:
    """A daemon that was not started."""
    settings = MuxSettings("m", IPv4Address("10.0.1.11"), bytes(16), "eth0", state_dir=str(directory))
    nothing: Any = None
    return RunningMux(
        directory / "mux.toml",
        MuxConfig(settings, ()),
        nothing,
        StateDir(directory),
        asyncio.Event(),
        supervisor=Supervisor(),
    )


def opened(daemon: Any, port: Any, engine: Any) -> MuxPlane:
    """What its start would have opened."""
    mode = Mode(IoMode.PACKET, "asked for", WHOLE)
    return MuxPlane(port, mode, engine, interface="eth0", workers=1, tasks=daemon._tasks, lost=daemon._port_lost)


def test_an_interface_whose_workers_do_not_start_counts_as_lost_whatever_the_reason(tmp_path: Path) -> None:
    """Else it looks open, is never opened again, and nobody forwards."""

    async def main() -> None:
        daemon = made(tmp_path)
        port = Reopened()
        daemon._opened = opened(daemon, port, Workerless())
        daemon._condition.state = "ready"
        with pytest.raises(RuntimeError):
            await daemon._reopen()
        assert not port.open
        assert daemon._condition.state == "degraded"

    asyncio.run(main())


class Working(Stopped):
    inherits = False

    def start(self, _: object) -> None:
        pass


def test_what_became_of_super_packets_is_said_whenever_the_interface_is_opened_again(tmp_path: Path) -> None:
    """The way out for whole ones may not be had again, and may be had later; the status shows the same."""

    async def main() -> None:
        daemon = made(tmp_path)
        port = Reopened()
        daemon._opened = opened(daemon, port, Working())
        daemon._watch = SimpleNamespace(links={})
        daemon._links_changed = lambda _: None
        whole, refused = f"AF_PACKET: {WHOLE}", f"AF_PACKET: {cut('in the way')}"
        for details, level, text, before in (
            (WHOLE, "info", whole, None),
            (cut("in the way"), "warning", refused, whole),
            (cut("in the way"), "info", refused, None),
            (WHOLE, "info", whole, refused),
        ):
            port.details = details
            with capture_logs() as said:
                await daemon._reopen()
            (line,) = [line for line in said if line["event"] == "interface opened again"]
            assert (line["log_level"], line["mode"], line.get("before")) == (level, text, before)
            assert daemon._plane.mode == Mode(IoMode.PACKET, "asked for", details)

    asyncio.run(main())


def test_a_reload_that_fails_by_an_error_of_ours_is_said_and_the_next_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        daemon = made(tmp_path)
        daemon._opened = Opened(Port(inherited=False))
        daemon._opened.engine = Workerless()
        monkeypatch.setattr(daemon, "_summary", lambda: "")
        asked = asyncio.Event()

        async def odd() -> None:
            asked.set()
            raise KeyError("odd")

        monkeypatch.setattr(daemon, "_reload", odd)
        reloads = asyncio.create_task(daemon._reloads())
        for _ in range(2):
            daemon._reload_wanted.set()
            await asyncio.wait_for(asked.wait(), 5)
            asked.clear()
            await asyncio.sleep(0)
        assert not reloads.done()
        assert daemon._condition.rejected == "KeyError: 'odd'"
        reloads.cancel()
        await asyncio.gather(reloads, return_exceptions=True)

    with capture_logs() as logs:
        asyncio.run(main())
    assert [line["event"] for line in logs if line["log_level"] == "error"] == ["configuration rejected"] * 2


def test_first_announcements_that_fail_by_an_error_of_ours_are_said_and_made_the_second_time(tmp_path: Path) -> None:
    wanted = {"203.0.113.10/32": {"announce": "always"}}
    told: list[object] = []
    waited: list[float] = []

    class FlowSync:
        async def connected(self, seconds: float) -> None:
            waited.append(seconds)
            if len(waited) == 1:
                raise KeyError("odd")

        async def fetch(self, away: float | None) -> None:
            assert not told, "flows are here before routers are told"

    async def main() -> None:
        daemon = made(tmp_path)
        daemon._announcer = SimpleNamespace(
            want=told.append, drain=lambda drained: None, away_since=None, announces=False
        )
        daemon._handover = FlowSync()
        daemon._tasks.retried(ENTERING, partial(daemon._enter, {"announcements": wanted}))
        async with asyncio.timeout(20):
            while daemon._tasks.running(ENTERING):  # noqa: ASYNC110  nobody tells
                await asyncio.sleep(0.01)
        await daemon._tasks.close()

    with capture_logs() as logs:
        asyncio.run(main())
    assert told == [wanted]
    assert len(waited) == 2
    assert len([line for line in logs if line["log_level"] == "error"]) == 1


@pytest.mark.parametrize(
    ("served", "inherited", "clean", "removed"),
    [
        (True, False, True, True),  # asked to stop, after the withdrawal
        (True, True, True, True),
        (True, False, False, False),  # something failed: clients may still be sent here
        (True, True, False, False),
        (False, False, False, True),  # a start that failed, and never announced anything
        (False, True, False, False),  # but what a predecessor left stays
    ],
)
def test_only_a_clean_stop_removes_the_isolation(
    tmp_path: Path, served: bool, inherited: bool, clean: bool, removed: bool
) -> None:
    was_removed, marked = stopped(tmp_path, served=served, inherited=inherited, clean=clean)
    assert was_removed is removed
    assert marked is (served and not clean)


def test_the_next_start_says_how_the_last_run_ended(tmp_path: Path) -> None:
    said = []
    for clean in (False, True, True):
        with capture_logs() as logs:
            stopped(tmp_path, served=True, inherited=False, clean=clean)
        said.append("previous run ended uncleanly" in [line["event"] for line in logs])
    assert said == [False, True, False]
    with capture_logs() as logs:
        RunMarker(tmp_path / "mux.running").begin()
    assert logs == [], "after a clean stop nothing is said"
    with capture_logs() as logs:
        RunMarker(tmp_path / "mux.running").begin()
    assert [line["event"] for line in logs] == ["previous run ended uncleanly"]


def test_a_marker_that_cannot_be_written_ends_nobody(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with capture_logs() as logs:
        marker = RunMarker(tmp_path / "file" / "mux.running")
        marker.begin()
    assert [line["event"] for line in logs] == ["marker not written"]


def test_without_workers_a_lookup_is_a_sentence() -> None:
    """While the interface is opened again there are none."""
    engine: Any = object.__new__(Engine)
    engine._workers, engine._snapshot = [], None
    engine._guard = threading.Lock()
    flow = FlowTuple(Protocol.TCP, IPv4Address("192.0.2.1"), 1, IPv4Address("203.0.113.1"), 80)
    with pytest.raises(DataplaneError, match="no worker runs now"):
        engine.lookup(flow)


def test_a_question_that_fails_by_itself_is_answered_with_an_error_and_the_next_is_answered(tmp_path: Path) -> None:
    async def main() -> None:
        def odd(_: dict[str, Any]) -> Any:
            raise KeyError("web")

        server = ControlServer(tmp_path / "s", {"odd": odd, "well": lambda _: [1]})
        await server.start()
        with pytest.raises(ControlError, match="a fault of its own: KeyError: 'web'"):
            await asyncio.to_thread(control_socket.request, tmp_path / "s", {"op": "odd"})
        assert await asyncio.to_thread(control_socket.request, tmp_path / "s", {"op": "well"}) == [1]
        await server.close()

    with capture_logs() as logs:
        asyncio.run(main())
    assert [line["event"] for line in logs] == ["question not answered"]
