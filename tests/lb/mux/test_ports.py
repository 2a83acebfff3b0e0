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
from lb.mux.ports import PacketPort
from lb.mux.socket_filter import vip_filter

OLD, NEW = ip_network("203.0.113.10/32"), ip_network("203.0.113.20/32")


class Ring:
    """Of a worker."""

    def __init__(self) -> None:
        self.filter: Any = vip_filter([OLD]).program
        self.refuses = False

    def set_filter(self, program: Any) -> None:
        if self.refuses:
            raise IoError("cannot change the packet filter on eth0: cannot allocate memory")
        self.filter = program


class Isolation:
    async def cover(self, vips: object) -> None:
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
