# SPDX-License-Identifier: Apache-2.0
"""Which packet I/O is tried, and what is said about it."""

from __future__ import annotations

from lb.model import IoMode
from lb.mux.io.mode import RINGS_SLOTS, WHOLE, Mode, candidates, cut, nothing_works, obtained


def test_automatic_tries_all_the_fastest_first() -> None:
    assert candidates(IoMode.AUTO) == (IoMode.XDP, IoMode.PACKET, IoMode.TUN)


def test_what_was_asked_for_is_the_only_candidate_but_for_xdp() -> None:
    assert candidates(IoMode.TUN) == (IoMode.TUN,)
    assert candidates(IoMode.XDP) == (IoMode.XDP, IoMode.PACKET)


def test_the_reason_says_what_was_refused() -> None:
    mode = obtained(IoMode.AUTO, IoMode.TUN, {IoMode.PACKET: "operation not permitted"})
    assert mode.reason == "automatic: packet refused: operation not permitted"
    mode = obtained(IoMode.XDP, IoMode.PACKET, {IoMode.XDP: "no such thing"})
    assert mode.reason == "asked for was xdp: xdp refused: no such thing"
    assert obtained(IoMode.TUN, IoMode.TUN, {}).reason == "asked for by the configuration"


def test_who_wanted_busy_polling_reads_that_there_is_none() -> None:
    mode = obtained(IoMode.XDP, IoMode.PACKET, {IoMode.XDP: "no such thing"}, busy_poll=True)
    assert mode.reason == "asked for was xdp: xdp refused: no such thing; so there is no busy polling either"
    assert "busy" not in obtained(IoMode.XDP, IoMode.XDP, {}, busy_poll=True).reason


def test_an_error_names_every_refusal() -> None:
    error = nothing_works(IoMode.AUTO, {IoMode.PACKET: "a", IoMode.TUN: "b"})
    assert str(error) == "no packet I/O works here: packet: a; tun: b"


def test_the_text_says_what_the_port_found_besides() -> None:
    assert Mode(IoMode.PACKET, "", RINGS_SLOTS).text == "AF_PACKET: a ring of slots"
    assert obtained(IoMode.TUN, IoMode.TUN, {}).text == "TUN device, packets routed by the kernel"
    mode = Mode(IoMode.TUN, "", cut("no BPF"))
    assert mode.text.endswith("by the kernel: super-packets are cut (no BPF)")
    assert mode.cuts
    assert not Mode(IoMode.TUN, "", WHOLE).cuts
