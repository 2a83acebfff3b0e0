# SPDX-License-Identifier: Apache-2.0
"""What this kernel does with packets, as it tells of it."""

from __future__ import annotations

import socket
import sys
from ipaddress import ip_address

import pytest

from lb.doctor.collect import kernel
from lb.doctor.model.facts import ListeningSocket


@pytest.mark.skipif(sys.byteorder != "little", reason="the sample was taken on a little-endian machine")
def test_the_kernels_tables_of_sockets_are_read() -> None:
    text = (
        "  sl  local_address rem_address   st tx_queue rx_queue\n"
        "   0: 1503000A:1F90 00000000:0000 0A 00000000:00000000\n"
        "   1: 0100007F:0016 00000000:0000 0A 00000000:00000000\n"
        "   2: 1503000A:9C40 0B01000A:01BB 01 00000000:00000000\n"
        "   3: 00000000000000000000000000000000:0050 00000000000000000000000000000000:0000 0A 0:0\n"
        "   4: 0000000000000000FFFF00001503000A:0051 00000000000000000000000000000000:0000 0A 0:0\n"
    )
    assert list(kernel.read_sockets(text, "tcp", "0A")) == [
        ListeningSocket("tcp", ip_address("10.0.3.21"), 8080),
        ListeningSocket("tcp", ip_address("127.0.0.1"), 22),
        ListeningSocket("tcp", ip_address("::"), 80),
        ListeningSocket("tcp", ip_address("10.0.3.21"), 81),
    ]


def test_who_listens_here_is_found() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        datagrams.bind(("127.0.0.1", 0))
        found = kernel.listeners()
        assert found is not None
        assert ListeningSocket("tcp", ip_address("127.0.0.1"), server.getsockname()[1]) in found
        assert ListeningSocket("udp", ip_address("127.0.0.1"), datagrams.getsockname()[1]) in found


def test_what_conntrack_refused_is_summed_over_the_cores() -> None:
    text = (
        "entries  found new insert insert_failed drop early_drop\n"
        "00000010 00000000 00000000 00000000 00000001 0000000a 00000002\n"
        "00000010 00000000 00000000 00000000 00000000 00000006 00000001\n"
    )
    assert kernel.read_refused(text) == (17, 3)
    assert kernel.read_refused("") == (0, 0)
