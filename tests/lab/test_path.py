# SPDX-License-Identifier: Apache-2.0
"""A packet's whole way, bit for bit: every I/O and decapsulation, offloads on and off, ports translated or not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from lb.model import DecapMode, IoMode
from tests.lab.services import FILES_VIP, WEB_VIP, files, web
from tests.lab.topology import Lab
from tests.lab.traffic import checksum, download, requests, upload_random

pytestmark = pytest.mark.lab

SERVICES = pytest.mark.parametrize("vip", [pytest.param(WEB_VIP, id="translated"), pytest.param(FILES_VIP, id="plain")])


@dataclass(frozen=True, slots=True)
class Variant:
    io: IoMode
    decap: DecapMode
    offloads: bool

    def __str__(self) -> str:
        return f"{self.io.value}-{self.decap.value}-offloads-{'on' if self.offloads else 'off'}"


VARIANTS = [
    Variant(IoMode.PACKET, DecapMode.BPF, True),
    Variant(IoMode.PACKET, DecapMode.BPF, False),
    Variant(IoMode.XDP, DecapMode.BPF, True),
    Variant(IoMode.TUN, DecapMode.BPF, True),
    Variant(IoMode.TUN, DecapMode.BPF, False),
    Variant(IoMode.PACKET, DecapMode.TUN, True),
]


@pytest.fixture(scope="module", params=VARIANTS, ids=str)
def variant(request: pytest.FixtureRequest) -> Variant:
    chosen: Variant = request.param
    return chosen


@pytest.fixture(scope="module")
def lab(variant: Variant) -> Iterator[Lab]:
    with Lab(io=variant.io, decap=variant.decap, offloads=variant.offloads) as started:
        started.start((web(started.hosts), files(started.hosts)))
        yield started


def test_daemons_say_the_mode_that_was_asked_for(lab: Lab, variant: Variant) -> None:
    assert {lab.status(mux)["io"] for mux in lab.muxes} == {variant.io.value}
    assert {lab.get(host, "agents")[0]["mode"] for host in lab.hosts} == {variant.decap.value}


@SERVICES
def test_every_request_is_answered_and_every_host_serves(lab: Lab, vip: str) -> None:
    served = requests(lab, f"http://{vip}/", 300)
    assert set(served) == {host.name for host in lab.hosts}


@SERVICES
def test_30_mb_upload_arrives_bit_for_bit(lab: Lab, vip: str) -> None:
    sent, arrived = upload_random(lab, f"http://{vip}")
    assert arrived == [sent]


@SERVICES
def test_30_mb_download_arrives_bit_for_bit(lab: Lab, vip: str) -> None:
    assert download(lab, f"http://{vip}/big") == checksum(lab.big_file)
