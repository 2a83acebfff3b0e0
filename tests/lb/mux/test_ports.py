# SPDX-License-Identifier: Apache-2.0
"""What a port remembers of a change that failed half way: nothing that is not so."""

from __future__ import annotations

import asyncio
from ipaddress import IPv4Address, ip_network
from pathlib import Path
from typing import Any

import pytest

from lb.daemon.kernel_watch import Own
from lb.errors import IoError
from lb.model import MuxSettings
from lb.mux import gate, ports
from lb.mux.mode import WHOLE, cut
from lb.mux.ports import PacketPort
from lb.mux.socket_filter import vip_filter

OLD, NEW = ip_network("203.0.113.10/32"), ip_network("203.0.113.20/32")


class Ring:
    """Of a worker."""

    #: What the kernel says of the device by which super-packets leave.
    gate_refused: str | None = None
    switches = None
    group = 1

    def __init__(self) -> None:
        self.filter: Any = vip_filter([OLD]).program
        self.refuses = False

    def set_filter(self, program: Any) -> None:
        if self.refuses:
            raise IoError("cannot change the packet filter on eth0: cannot allocate memory")
        self.filter = program

    def set_gate(self, name: str | None, *_: object, **__: object) -> None:
        if name is not None and self.gate_refused is not None:
            raise IoError(self.gate_refused)

    def close(self) -> None:
        pass


class Isolation:
    async def cover(self, vips: object) -> None:
        pass

    async def put_back(self, differences: object) -> None:
        pass


@pytest.fixture
def port(tmp_path: Path) -> Any:
    settings = MuxSettings("m", IPv4Address("10.0.1.11"), bytes(16), "eth0", state_dir=str(tmp_path))
    netlink: Any = None
    made: Any = PacketPort(settings, netlink, tmp_path, Own(), ())
    made._isolation, made._ios = Isolation(), [Ring(), Ring()]
    made._vips, made._filter = frozenset([OLD]), vip_filter([OLD])
    return made


def filters(port: Any) -> list[Any]:
    return [ring.filter for ring in port.ios]


def test_a_filter_that_one_ring_refuses_is_tried_again(port: Any) -> None:
    """As the same change is; else no packet of the new VIP ever reached that worker."""
    port.ios[1].refuses = True
    with pytest.raises(IoError):
        asyncio.run(port.cover([OLD, NEW]))
    port.ios[1].refuses = False
    asyncio.run(port.cover([OLD, NEW]))
    assert filters(port) == [vip_filter([OLD, NEW]).program] * 2


def test_a_change_that_is_taken_back_leaves_all_rings_with_the_same_filter(port: Any) -> None:
    port.ios[1].refuses = True
    with pytest.raises(IoError):
        asyncio.run(port.cover([OLD, NEW]))
    port.ios[1].refuses = False
    asyncio.run(port.cover([OLD]))
    assert filters(port) == [vip_filter([OLD]).program] * 2


def test_a_port_that_is_opened_again_says_what_becomes_of_super_packets_now(
    port: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way out of whole ones may be refused then, and be had the next time."""
    monkeypatch.setattr(ports, "PacketIo", lambda *_, **__: Ring())
    monkeypatch.setattr(ports, "Anchor", lambda _: Ring())
    monkeypatch.setattr(gate, "WholeProgram", lambda _: None)
    monkeypatch.setattr(gate, "_silence", lambda _: None)
    monkeypatch.setattr(gate, "_set_up", lambda _: None)
    monkeypatch.setattr(gate.socket, "if_nametoindex", lambda _: 7)
    said = []
    for refused in (None, "cannot make device lbwhole7: invalid argument", None):
        monkeypatch.setattr(Ring, "gate_refused", refused)
        asyncio.run(port.reopen())
        said.append(port.details.partition("; ")[2])
    assert said == [WHOLE, cut("cannot make device lbwhole7: invalid argument"), WHOLE]
