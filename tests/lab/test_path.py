# SPDX-License-Identifier: Apache-2.0
"""A packet's whole way, bit for bit: every I/O and decapsulation, offloads on and off, ports translated or not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

from lb.config.render import format_config
from lb.errors import IoError
from lb.model import DecapMode, IoMode, MuxConfig
from tests.lab.accounts import lost_in_mux
from tests.lab.services import FILES_VIP, WEB_VIP, files, web
from tests.lab.topology import PUBLISHED, Lab
from tests.lab.traffic import KeepAlive, checksum, download, requests, upload_random

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


def test_workers_that_become_two_and_one_again_under_1000_requests_a_second_break_nothing(
    lab: Lab, variant: Variant
) -> None:
    """Where AF_XDP cannot, that is said, and nothing breaks either."""
    before = sum(lost_in_mux(lab, mux) for mux in lab.muxes)
    kept = KeepAlive(lab, WEB_VIP, 80, count=100, interval=0.1).start()
    try:
        for workers in (2, 1):
            if variant.io is not IoMode.XDP:
                ask_for_workers(lab, workers, 'event="workers changed"')
                assert [len(lab.status(mux)["workers"]) for mux in lab.muxes] == [workers, workers]
            elif workers == 2:
                with pytest.raises(
                    IoError, match=r"workers: cannot become 2 while the MUX runs with AF_XDP.*: restart"
                ):
                    ask_for_workers(lab, workers, PUBLISHED)
            else:
                lab.write_files(lab.services)
            kept.one_more_answer()
        flows = kept.stop()
    finally:
        kept.close()
    assert [flow for flow in flows if flow.broken] == []
    assert len(flows) == 100
    assert sum(lost_in_mux(lab, mux) for mux in lab.muxes) == before
    print(f"slowest answer {kept.slowest * 1000:.0f} ms")


def ask_for_workers(lab: Lab, workers: int, answer: str) -> None:
    """Of each MUX, which answers so in its log."""
    for mux in lab.muxes:
        config = lab.configuration(mux)
        assert isinstance(config, MuxConfig)
        mux.config.write_text(format_config(replace(config, mux=replace(config.mux, workers=workers))))
    lab.reload(lab.muxes, "mux", answer)
