# SPDX-License-Identifier: Apache-2.0
"""AF_XDP as drivers answer: zero-copy, else copying, else by the kernel, else packet mode, each with its reason.

The answers are those of the C side, errno by errno; everything above it is what runs in a MUX.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, ip_network
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

import lb.dataplane.io as plain_io
import lb.dataplane.xdp as plane
from lb.daemon.kernel.watch import OwnMarks
from lb.dataplane.binding import c, ffi
from lb.errors import FeatureError, IoError
from lb.model import IoMode, MuxSettings, Network
from lb.mux.io import open_port as opening
from lb.mux.io import ports, xdp_port
from lb.mux.io.ethernet import Facts
from lb.mux.io.mode import TOGETHER, Mode
from lb.mux.io.open_port import open_port
from lb.mux.io.startup import NamespaceClaim
from lb.mux.io.xdp_port import OFF_NOTE, XdpPort
from lb.mux.io.xdp_support import LINK_HEADER

OLD, NEW = ip_network("203.0.113.10/32"), ip_network("203.0.113.20/32")
MAC, OTHER_MAC = bytes.fromhex("020000000001"), bytes.fromhex("020000000002")
LINK = f"lb{os.getpid()}"  #: of one test process: claims are the network namespace's
ZERO_COPY, COPYING = "native, zero-copy", "native, copying"
GENERIC_COPYING = "generic, copying"  #: as it is asked for; and in words:
GENERIC = "generic (the kernel's code, not the driver's), copying"


@dataclass
class Machine:
    """An interface, its driver and the kernel below us: what they answer, and what was done to them."""

    facts: Facts = field(default_factory=lambda: Facts("mlx5_core", 1500, 2))
    load: int = 0
    attach: dict[str, int] = field(default_factory=dict)  #: by native or generic
    bind: dict[str, int] = field(default_factory=dict)  #: by native or generic, and zero-copy or copying
    busy: bool = True  #: busy polling is taken
    packet: str | None = None  #: why AF_PACKET is refused
    inherited: bool = False
    there: bool = True
    mac: bytes = MAC
    refuses: set[Network] = field(default_factory=set)  #: that the map has no room for

    done: list[str] = field(default_factory=list)
    attached: str | None = None  #: native or generic
    taken: set[Network] = field(default_factory=set)
    told: bytes = b""
    sockets: list[Any] = field(default_factory=list)  #: settings of those that are open
    programs: int = 0
    merges: bool = True  #: received packets are merged

    def tried(self, kind: str) -> list[str]:
        return [what.removeprefix(f"{kind} ") for what in self.done if what.startswith(f"{kind} ")]


class Calls:
    """``lb.dataplane.binding.c`` where AF_XDP is concerned; all else of it is itself."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def __getattr__(self, name: str) -> Any:
        return getattr(c, name)

    def redirect_load(self, queues: int, _log: Any, _size: int, out: Any) -> int:
        if self._machine.load:
            return self._machine.load
        assert queues >= self._machine.facts.queues
        self._machine.programs += 1
        out[0] = ffi.cast("struct redirect *", 1)
        return 0

    def redirect_destroy(self, _redirect: Any) -> None:
        self._machine.programs -= 1
        self._machine.attached = None

    def redirect_attach(self, _redirect: Any, ifindex: int, generic: bool) -> int:
        way = "generic" if generic else "native"
        self._machine.done.append(f"attach {way}")
        assert ifindex == 7
        assert self._machine.attached is None, "the kernel takes one program"
        code = self._machine.attach.get(way, 0)
        if not code:
            self._machine.attached = way
        return code

    def redirect_attached(self, _redirect: Any) -> bool:
        return self._machine.attached is not None

    def redirect_detach(self, _redirect: Any) -> None:
        self._machine.attached = None

    def redirect_add_vip(self, _redirect: Any, prefix: Any) -> int:
        network = _network(prefix)
        if network in self._machine.refuses:
            return -errno.ENOSPC
        self._machine.done.append(f"take {network}")
        self._machine.taken.add(network)
        return 0

    def redirect_remove_vip(self, _redirect: Any, prefix: Any) -> int:
        network = _network(prefix)
        if network not in self._machine.taken:
            return -errno.ENOENT
        self._machine.taken.remove(network)
        return 0

    def redirect_set_address(self, _redirect: Any, mac: bytes) -> int:
        self._machine.told = mac
        return 0

    def xdp_io_open(self, _name: bytes, _redirect: Any, settings: Any, out: Any) -> int:
        machine = self._machine
        assert machine.attached is not None, "drivers set their queues up anew when they get a program"
        way = f"{machine.attached}, {'zero-copy' if settings.zero_copy else 'copying'}"
        machine.done.append(f"bind {way}")
        code = machine.bind.get(way, 0)
        if code:
            return code
        settings.busy_poll = settings.busy_poll and machine.busy
        machine.sockets.append((settings.first_queue, settings.every, settings.queues, settings.frame_max))
        out[0] = ffi.cast("struct io *", len(machine.sockets))
        return 0

    def xdp_io_set_gso_tap(self, _io: Any, _name: bytes, _shared: int, _program: int) -> int:
        self._machine.done.append("tap")
        return 0

    def io_close(self, _io: Any) -> None:
        self._machine.sockets.pop()


def _network(prefix: Any) -> Network:
    address = bytes(prefix[0].address)
    assert address[:12] == bytes(10) + b"\xff\xff"
    return ip_network((address[12:], prefix[0].length - 96))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine()
    calls = Calls(made)
    monkeypatch.setattr(plane, "c", calls)
    monkeypatch.setattr(plain_io, "c", calls)

    class Isolation:
        table = "vipmux_m"

        def __init__(self, *_: object) -> None:
            self.inherited = made.inherited

        async def install(self, vips: Iterable[Network]) -> None:
            made.done += [f"keep away {vip}" for vip in vips]

        cover = install

        async def put_back(self, _: object) -> None:
            pass

        async def remove(self) -> None:
            made.done.append("isolation removed")

    class Tun:
        def __init__(self, *_: object) -> None:
            pass

        async def remove(self) -> None:
            pass

    class Anchor:
        def __init__(self, _: str) -> None:
            self.interface = made

        def holds(self, _: str) -> bool:
            return True

        def close(self) -> None:
            pass

    class Offloads:
        def __init__(self, _: str) -> None:
            pass

        def merge_nothing(self) -> None:
            made.merges = False
            made.done.append("merge nothing")

        def went_off(self) -> list[str]:
            return [] if made.merges else ["rx-gro"]

        def put_back(self) -> None:
            made.merges = True

    class PacketIo:
        switches = 0

        def __init__(self, *_: object, **__: object) -> None:
            if made.packet is not None:
                raise IoError(made.packet)

        def set_gso_tap(self, name: str | None, *_: object, **__: object) -> None:
            if name is not None:
                raise IoError("no TAP device")

        def close(self) -> None:
            pass

    monkeypatch.setattr(ports, "Isolation", Isolation)
    monkeypatch.setattr(ports, "Tun", Tun)
    monkeypatch.setattr(ports, "Anchor", Anchor)
    monkeypatch.setattr(ports, "PacketIo", PacketIo)
    monkeypatch.setattr(ports, "exists", lambda _: made.there)
    monkeypatch.setattr("lb.mux.io.gso_tap.TunnelGsoProgram", lambda _: None)
    for act in ("_silence", "_set_up"):
        monkeypatch.setattr(f"lb.mux.io.gso_tap.{act}", lambda _: None)
    monkeypatch.setattr("lb.mux.io.gso_tap._exists", lambda _: made.there)
    monkeypatch.setattr(xdp_port, "Anchor", Anchor)
    monkeypatch.setattr(xdp_port, "Offloads", Offloads)
    monkeypatch.setattr(xdp_port, "facts_of", lambda _: made.facts)
    monkeypatch.setattr(xdp_port, "queues_of", lambda _: made.facts.queues)
    monkeypatch.setattr(xdp_port, "address_of", lambda _: made.mac)
    monkeypatch.setattr(xdp_port, "exists", lambda _: made.there)
    monkeypatch.setattr("socket.if_nametoindex", lambda _: 7)
    return made


def settings(directory: Path, io: IoMode = IoMode.XDP, workers: int = 1, *, busy: bool = False) -> MuxSettings:
    return MuxSettings(
        LINK,
        IPv4Address("10.0.1.11"),
        bytes(16),
        LINK,
        io=io,
        workers=workers,
        busy_poll=busy,
        state_dir=str(directory),
    )


NETLINK: Any = None


def opened(wanted: MuxSettings, *vips: Network) -> tuple[Any, Mode]:
    made: Any
    made, mode = asyncio.run(open_port(wanted, vips or [OLD], NETLINK, Path(wanted.state_dir), OwnMarks()))
    for claim in made._claims:
        claim.close()
    return made, mode


def claimable(wanted: MuxSettings) -> bool:
    """Whether another MUX could start now."""
    for what, name in (("name", wanted.name), ("interface", wanted.interface)):
        NamespaceClaim(what, name).close()
    return True


# ---- what is tried, and what is said ----


@dataclass(frozen=True)
class Case:
    claim: str
    bind: dict[str, int]
    attach: dict[str, int]
    tried: list[str]
    mode: str
    said: tuple[str, ...]  #: why not the better ones, in their order


NO_ZERO_COPY = {ZERO_COPY: -errno.EOPNOTSUPP}
NO_SHARING = "its driver does not share its memory with us"
TAKEN = "somebody else has a queue of it"
NO_PROGRAM = "its driver runs no XDP program"

CASES = [
    Case("a driver that shares its memory is not copied from", {}, {}, [ZERO_COPY], ZERO_COPY, ()),
    Case(
        "one that does not is copied from",
        NO_ZERO_COPY, {}, [ZERO_COPY, COPYING], COPYING, (f"{ZERO_COPY}: AF_XDP on {LINK}: {NO_SHARING}",),
    ),
    Case(
        "what else zero-copy may fail of is no reason to do without",
        {ZERO_COPY: -errno.EINVAL}, {}, [ZERO_COPY, COPYING], COPYING,
        (f"{ZERO_COPY}: AF_XDP on {LINK}: invalid argument",),
    ),
    Case(
        "where the driver runs the program but binds no socket the kernel's own code does",
        {**NO_ZERO_COPY, COPYING: -errno.EBUSY}, {}, [ZERO_COPY, COPYING, GENERIC_COPYING], GENERIC,
        (f"{ZERO_COPY}: AF_XDP on {LINK}: {NO_SHARING}", f"{COPYING}: AF_XDP on {LINK}: {TAKEN}"),
    ),
    Case(
        "where the driver runs no program the kernel does",
        {}, {"native": -errno.EOPNOTSUPP}, [GENERIC_COPYING], GENERIC,
        (f"{ZERO_COPY}: {NO_PROGRAM}", f"{COPYING}: {NO_PROGRAM}"),
    ),
    Case(
        "where a large MTU keeps the driver from it the kernel does",
        {}, {"native": -errno.ERANGE}, [GENERIC_COPYING], GENERIC,
        tuple(f"{way}: its MTU is too large for an XDP program in the driver" for way in (ZERO_COPY, COPYING)),
    ),
]  # fmt: skip


@pytest.mark.parametrize("case", [pytest.param(case, id=case.claim) for case in CASES])
def test_the_best_that_driver_and_kernel_give_is_taken(machine: Machine, tmp_path: Path, case: Case) -> None:
    machine.bind, machine.attach = case.bind, case.attach
    with capture_logs() as logs:
        port, mode = opened(settings(tmp_path))
    assert machine.tried("bind") == case.tried
    assert (mode.io, mode.reason) == (IoMode.XDP, "asked for by the configuration")
    words = f"{case.mode}, 2 queues" + ("" if case.mode == ZERO_COPY else f"; {TOGETHER}")
    assert mode.text == f"AF_XDP: {words}"
    assert machine.done.count("tap") == (case.mode != ZERO_COPY), "others must not overtake what zero-copy sends"
    assert machine.attached == case.mode.split()[0].rstrip(",")
    (line,) = (line for line in logs if line["event"] == "XDP program attached")
    assert line["mode"] == words
    assert line["refused"] == ("; ".join(case.said) or "nothing")
    assert line["offloads_off"] == ("rx-gro" if case.mode == GENERIC else "none")
    assert machine.sockets == [(0, 1, 2, 1500 + LINK_HEADER)], "those of attempts that failed are closed"
    assert (machine.taken, machine.told) == ({OLD}, MAC)
    asyncio.run(port.remove())


NOTHING_BINDS = {**NO_ZERO_COPY, COPYING: -errno.ENOBUFS, GENERIC_COPYING: -errno.ENOBUFS}
NO_LOCKING = f"AF_XDP on {LINK}: no memory may be locked for it (ulimit -l, LimitMEMLOCK)"


def test_where_no_way_of_it_works_packet_mode_serves_and_says_all_that_was_tried(
    machine: Machine, tmp_path: Path
) -> None:
    machine.bind = NOTHING_BINDS
    port, mode = opened(settings(tmp_path, busy=True))
    assert type(port) is ports.PacketPort
    assert machine.tried("bind") == [ZERO_COPY, COPYING, GENERIC_COPYING]
    assert mode.io is IoMode.PACKET
    assert mode.reason == (
        f"asked for was xdp: xdp refused: {ZERO_COPY}: AF_XDP on {LINK}: {NO_SHARING}; {COPYING}: {NO_LOCKING}; "
        f"{GENERIC}: {NO_LOCKING}; so there is no busy polling either"
    )
    assert mode.details.endswith("super-packets are cut (no TAP device)")
    assert (machine.attached, machine.programs, machine.sockets, machine.merges) == (None, 0, [], True)
    assert machine.done[-1] == f"keep away {OLD}"


def test_nobody_is_served_by_generic_code_that_nobody_asked_for(machine: Machine, tmp_path: Path) -> None:
    machine.attach = {"native": -errno.EOPNOTSUPP}
    _, mode = opened(settings(tmp_path, IoMode.AUTO))
    assert machine.tried("attach") == ["native", "native"]
    assert mode.reason == f"automatic: xdp refused: {ZERO_COPY}: {NO_PROGRAM}; {COPYING}: {NO_PROGRAM}"


@pytest.mark.parametrize("code", [-errno.EBUSY, -errno.EEXIST])
def test_a_program_of_somebody_else_is_left_alone(machine: Machine, tmp_path: Path, code: int) -> None:
    machine.attach = {"native": code, "generic": code}
    _, mode = opened(settings(tmp_path))
    assert mode.io is IoMode.PACKET
    assert mode.reason.count("another XDP program is on it, which is left alone") == 3


def test_what_speaks_against_it_is_found_before_anything_is_touched(machine: Machine, tmp_path: Path) -> None:
    machine.facts = replace(machine.facts, mtu=9000)
    _, mode = opened(settings(tmp_path))
    assert "xdp refused: the MTU of the interface, 9,000, is above" in mode.reason
    assert machine.tried("attach") == machine.tried("bind") == []


def test_a_kernel_that_takes_no_program_is_served_over_packet(machine: Machine, tmp_path: Path) -> None:
    machine.load = -errno.EPERM
    _, mode = opened(settings(tmp_path))
    assert mode.io is IoMode.PACKET
    assert "xdp refused: the XDP program was not loaded: not permitted" in mode.reason


def test_where_nothing_works_every_reason_is_told_and_nothing_stays(machine: Machine, tmp_path: Path) -> None:
    machine.bind, machine.packet = NOTHING_BINDS, "operation not permitted"
    wanted = settings(tmp_path)
    with pytest.raises(FeatureError) as refused:
        opened(wanted)
    assert str(refused.value).startswith(f"no packet I/O works here: xdp: {ZERO_COPY}: ")
    assert str(refused.value).endswith("; packet: operation not permitted")
    assert machine.done.count("isolation removed") == 2
    assert machine.programs == 0
    assert claimable(wanted)


def test_a_start_that_fails_leaves_the_isolation_of_a_mux_that_was_killed(machine: Machine, tmp_path: Path) -> None:
    machine.bind, machine.packet, machine.inherited = NOTHING_BINDS, "operation not permitted", True
    with pytest.raises(FeatureError):
        opened(settings(tmp_path))
    assert "isolation removed" not in machine.done


@pytest.mark.parametrize("what", ["name", "interface"])
def test_what_another_mux_has_is_refused_before_anything_is_touched(
    machine: Machine, tmp_path: Path, what: str
) -> None:
    wanted = settings(tmp_path)
    claim = NamespaceClaim(what, wanted.name if what == "name" else wanted.interface)
    try:
        with pytest.raises(IoError, match="another lb-mux"):
            opened(wanted)
    finally:
        claim.close()
    assert machine.done == []
    assert claimable(wanted), "the other claim was given back"


def test_muxes_with_a_device_of_their_own_may_be_on_one_interface(machine: Machine, tmp_path: Path) -> None:
    wanted = settings(tmp_path, IoMode.TUN)
    claim = NamespaceClaim("interface", wanted.interface)
    try:
        (name,) = opening._claims(wanted)
        name.close()
    finally:
        claim.close()
    assert machine.done == []


def test_offloads_that_a_killed_one_left_off_are_put_back_and_it_is_said(machine: Machine, tmp_path: Path) -> None:
    del machine

    class Note:
        def __init__(self, path: Path) -> None:
            assert path == tmp_path / OFF_NOTE

        def settle(self) -> tuple[str, list[str]]:
            return LINK, ["rx-gro", "rx-lro"]

    with pytest.MonkeyPatch.context() as patch, capture_logs() as logs:
        patch.setattr(opening, "OffNote", Note)
        opened(settings(tmp_path))
    (line,) = (line for line in logs if line["event"] == "offloads put back")
    assert (line["interface"], line["offloads"]) == (LINK, "rx-gro rx-lro")


# ---- one that is open ----


def test_each_worker_has_every_so_many_of_the_queues(machine: Machine, tmp_path: Path) -> None:
    machine.facts = replace(machine.facts, queues=5)
    port, mode = opened(settings(tmp_path, workers=2))
    assert [sockets[:3] for sockets in machine.sockets] == [(0, 2, 5), (1, 2, 5)]
    assert len(port.ios) == 2
    assert mode.details.endswith("5 queues")


@pytest.mark.parametrize(("taken", "said"), [(True, "busy polling"), (False, "no busy polling: the kernel refused it")])
def test_busy_polling_that_was_asked_for_is_had_or_missed_in_words(
    machine: Machine, tmp_path: Path, taken: bool, said: str
) -> None:
    machine.busy = taken
    assert opened(settings(tmp_path, busy=True))[1].details == f"{ZERO_COPY}, 2 queues, {said}"


def test_the_kernel_is_kept_away_from_a_vip_before_its_packets_are_taken(machine: Machine, tmp_path: Path) -> None:
    port, _ = opened(settings(tmp_path))
    machine.done.clear()
    asyncio.run(port.cover([NEW]))
    assert machine.done == [f"keep away {NEW}", f"take {NEW}"]
    assert machine.taken == {NEW}
    asyncio.run(port.cover([NEW]))
    assert machine.done == [f"keep away {NEW}", f"take {NEW}"], "nothing is done twice"


def test_a_vip_that_the_program_had_no_room_for_is_tried_again(machine: Machine, tmp_path: Path) -> None:
    port, _ = opened(settings(tmp_path))
    machine.refuses = {NEW}
    with pytest.raises(IoError, match=r"cannot add 203\.0\.113\.20/32 to the XDP program"):
        asyncio.run(port.cover([OLD, NEW]))
    machine.refuses = set()
    asyncio.run(port.cover([OLD, NEW]))
    assert machine.taken == {OLD, NEW}


def test_a_link_that_got_another_address_is_told_of(machine: Machine, tmp_path: Path) -> None:
    port, _ = opened(settings(tmp_path))
    machine.mac = OTHER_MAC
    assert port.lost() is None
    assert machine.told == OTHER_MAC


def test_a_program_that_somebody_took_off_and_queues_that_changed_are_losses(machine: Machine, tmp_path: Path) -> None:
    port, _ = opened(settings(tmp_path))
    assert port.lost() is None
    machine.attached = None
    assert (port.lost().name, port.lost().became) == (f"XDP program on {LINK}", "was detached")
    machine.attached, machine.facts = "native", replace(machine.facts, queues=3)
    assert (port.lost().name, port.lost().became) == (f"queues of {LINK}", "are others")
    machine.there = False
    assert port.lost() is None, "it may come back"


def test_what_is_opened_anew_is_tried_from_the_best_on(machine: Machine, tmp_path: Path) -> None:
    """With the program that is there: the right to load one was given up."""
    machine.bind = NO_ZERO_COPY
    port, _ = opened(settings(tmp_path))
    machine.bind, machine.load, machine.taken, machine.mac = {}, -errno.EPERM, {OLD}, OTHER_MAC
    asyncio.run(port.reopen())
    assert port.details == f"{ZERO_COPY}, 2 queues"
    assert (len(machine.sockets), machine.told, machine.programs) == (1, OTHER_MAC, 1)
    machine.bind = NOTHING_BINDS
    with pytest.raises(IoError, match="no memory may be locked"):
        asyncio.run(port.reopen())
    assert (machine.attached, machine.sockets) == (None, [])
    machine.bind = {}
    asyncio.run(port.reopen())
    assert (machine.attached, len(machine.sockets)) == ("native", 1)


def test_offloads_are_noted_while_they_are_off_and_put_back_in_the_end(machine: Machine, tmp_path: Path) -> None:
    machine.attach = {"native": -errno.EOPNOTSUPP}
    port, _ = opened(settings(tmp_path))
    assert "merge nothing" in machine.done
    note = json.loads((tmp_path / OFF_NOTE).read_text())
    assert (note["interface"], note["off"]) == (LINK, ["rx-gro"])
    port.close_ios()
    assert machine.merges
    assert not (tmp_path / OFF_NOTE).exists()
    assert (machine.attached, machine.sockets, machine.programs) == (None, [], 1)
    asyncio.run(port.remove())
    assert machine.programs == 0
    assert machine.done[-1] == "isolation removed"


def test_workers_stay_as_many_as_they_are_while_it_runs(machine: Machine, tmp_path: Path) -> None:
    port, _ = opened(settings(tmp_path))
    assert "one socket for each queue" in port.keeps_workers(2)
    with pytest.raises(IoError, match=r"mux\.workers cannot become 2 while the MUX runs with AF_XDP"):
        asyncio.run(port.resize(2, NETLINK))
    assert len(machine.sockets) == 1


def test_a_port_without_a_program_says_so(machine: Machine, tmp_path: Path) -> None:
    port = XdpPort(settings(tmp_path), NETLINK, tmp_path, OwnMarks(), ())
    assert port.details == ""
    with pytest.raises(IoError, match="there is no XDP program"):
        asyncio.run(port.cover([NEW]))
    assert machine.taken == set()
