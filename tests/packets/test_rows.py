# SPDX-License-Identifier: Apache-2.0
"""Every row of the tables, through memory: as raw IP and as Ethernet, and as the model of a whole MUX sees it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address

import pytest

from lb.dataplane import REASONS, Answers, Hop, LinkHeader, Pipeline, Result
from lb.dataplane.compile.compiler import Compiler
from lb.model import Encap
from tests.model.mux import Mux, Options
from tests.packets.build import MUX_MAC, ROUTER_MAC, ethernet
from tests.packets.frames import ROWS as FRAMES
from tests.packets.frames import FrameRow
from tests.packets.rows import ROWS
from tests.packets.tunnels import ROWS as TUNNELS
from tests.packets.world import FIRST_ID, SERVICES, SETTINGS, Row

FORWARDING = Compiler(SETTINGS).compile(SERVICES)
SNAPSHOT = FORWARDING.offline_snapshot()

each_row = pytest.mark.parametrize("row", ROWS, ids=[row.claim for row in ROWS])


def run(row: Row, link: LinkHeader, frame: Callable[[bytes], bytes] = bytes) -> Result:
    """The row alone, through a MUX that has seen nothing yet."""
    answers = Answers.of(row.settings)
    pipeline = Pipeline(SETTINGS.flows, link, detect_partial=row.partial, first_id=FIRST_ID, answers=answers)
    data = frame(row.packet)
    cut = 0 if row.wire_length is None else row.wire_length - len(row.packet)
    (result,) = pipeline.process(SNAPSHOT, [(data, len(data) + cut, 0)])
    counters = pipeline.counters()
    assert counters.received == sum(counters.reasons) == 1
    assert pipeline.check() is None
    return result


def test_every_claim_is_made_once() -> None:
    assert len({row.claim for row in ROWS}) == len(ROWS) > 100


def test_every_reason_of_the_pipeline_has_a_row() -> None:
    others = {
        "no_next_hop",
        "send_failed",
        "answer_limited",
        "shed",
        "fragment_overlap",
    }  # not of one packet: test_changes.py, test_veth_lab.py, test_shed.py, test_answers.py, test_fragments.py
    assert {row.reason for row in ROWS} == {reason.name for reason in REASONS} - others


@each_row
def test_row_over_raw_ip(row: Row) -> None:
    result = run(row, LinkHeader.NONE)
    assert (result.verdict.name.lower(), result.reason) == (row.verdict, row.reason)
    assert result.out == row.out


@each_row
def test_row_over_ethernet(row: Row) -> None:
    result = run(row, LinkHeader.SWAP, ethernet)
    if row.reason == "not_ip":
        assert result.reason == "bad_header"  # Ethernet said that it would be IPv4
        return
    assert (result.verdict.name.lower(), result.reason) == (row.verdict, row.reason)
    assert [out[14:] for out in result.out] == list(row.out)
    for out in result.out:
        assert out[:12] == ROUTER_MAC + MUX_MAC
        assert out[12:14] == (b"\x86\xdd" if out[14] >> 4 == 6 else b"\x08\x00")


@each_row
def test_row_in_the_model(row: Row) -> None:
    model = Mux(row.settings, Options(detect_partial=row.partial, first_id=FIRST_ID, answers=True))
    model.publish(SERVICES)
    wire_length = len(row.packet) if row.wire_length is None else row.wire_length
    expected = model.process(row.packet, wire_length, 0)
    assert (expected.reason, expected.out) == (row.reason, row.out)


@pytest.mark.parametrize("row", TUNNELS, ids=[row.claim for row in TUNNELS])
@pytest.mark.parametrize("variant", [0, 1])
def test_tunnels_that_the_mux_makes_of_itself(row: Row, variant: int) -> None:
    """Over GUE where the service does not say, in either variant, with the same packets as the model's."""
    settings = replace(SETTINGS, encap=Encap.GUE, gue_variant=variant)
    snapshot = Compiler(settings).compile(SERVICES).offline_snapshot()
    model = Mux(settings, Options(detect_partial=row.partial, first_id=FIRST_ID))
    model.publish(SERVICES)
    expected = model.process(row.packet, len(row.packet), 0)
    pipeline = Pipeline(settings.flows, LinkHeader.NONE, detect_partial=row.partial, first_id=FIRST_ID)
    (result,) = pipeline.process(snapshot, [(row.packet, len(row.packet), 0)])
    assert (result.reason, result.out) == (expected.reason, expected.out)
    assert all(out[9 if out[0] >> 4 == 4 else 6] == 17 for out in result.out)


@pytest.mark.parametrize("row", FRAMES, ids=[row.claim for row in FRAMES])
def test_frame(row: FrameRow) -> None:
    pipeline = Pipeline(SETTINGS.flows, LinkHeader.SWAP, first_id=FIRST_ID)
    wire_length = len(row.frame) if row.wire_length is None else row.wire_length
    (result,) = pipeline.process(SNAPSHOT, [(row.frame, wire_length, 0)])
    assert (result.reason, tuple(out[14:] for out in result.out)) == (row.reason, row.out)
    assert all(out[:12] == row.frame[6:12] + row.frame[:6] for out in result.out)


def test_an_empty_raw_packet_is_passed() -> None:
    (result,) = Pipeline(0, LinkHeader.NONE).process(SNAPSHOT, [(b"", 0, 0)])
    assert (result.verdict.name, result.reason) == ("PASS", "not_ip")


def test_frames_leave_by_the_next_hops_addresses() -> None:
    """On a live link the outer header's way is that of the backend, not back where the packet came from."""
    hops = {
        a: Hop(a, bytes([2, 0, 0, 0, 1, i]), bytes([2, 0, 0, 0, 2, i])) for i, a in enumerate(FORWARDING.hop_addresses)
    }
    snapshot = FORWARDING.snapshot(hops)
    for row in ROWS:
        if row.reason != "forwarded" or len(row.out) > 1:
            continue
        pipeline = Pipeline(0, LinkHeader.NEXT_HOP, detect_partial=row.partial, first_id=FIRST_ID)
        (result,) = pipeline.process(snapshot, [(ethernet(row.packet), len(row.packet) + 14, 0)])
        (out,) = result.out
        assert out[14:] == row.out[0]
        hop = hops[ip_address(out[30:34]) if out[14] >> 4 == 4 else ip_address(out[38:54])]
        assert out[:14] == bytes(hop.mac or b"") + bytes(hop.source_mac or b"") + ethernet(row.out[0])[12:14]
