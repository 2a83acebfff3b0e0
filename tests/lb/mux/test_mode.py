# SPDX-License-Identifier: Apache-2.0
"""Which packet I/O is tried, and what is said about it."""

from __future__ import annotations

import pytest

from lb.errors import ConfigError
from lb.model import IoMode
from lb.mux.mode import RINGS_SLOTS, Mode, candidates, nothing_works, obtained


def test_automatic_prefers_packet_and_falls_back_to_tun() -> None:
    assert candidates(IoMode.AUTO) == (IoMode.PACKET, IoMode.TUN)


def test_what_was_asked_for_is_the_only_candidate() -> None:
    assert candidates(IoMode.TUN) == (IoMode.TUN,)


def test_xdp_is_refused_with_what_to_do() -> None:
    with pytest.raises(ConfigError, match=r'mux.io: .*not available in this version; use "auto"') as caught:
        candidates(IoMode.XDP)
    assert caught.value.exit_code == 2


def test_the_reason_says_what_was_refused() -> None:
    mode = obtained(IoMode.AUTO, IoMode.TUN, {IoMode.PACKET: "operation not permitted"})
    assert mode.reason == "automatic: packet refused: operation not permitted"
    assert obtained(IoMode.TUN, IoMode.TUN, {}).reason == "asked for by the configuration"


def test_an_error_names_every_refusal() -> None:
    error = nothing_works(IoMode.AUTO, {IoMode.PACKET: "a", IoMode.TUN: "b"})
    assert str(error) == "no packet I/O works here: packet: a; tun: b"


def test_the_text_says_what_the_port_found_besides() -> None:
    assert Mode(IoMode.PACKET, "", RINGS_SLOTS).text == "AF_PACKET: a ring of slots"
    assert obtained(IoMode.TUN, IoMode.TUN, {}).text == "TUN device, packets routed by the kernel"
