# SPDX-License-Identifier: Apache-2.0
"""All rows, by subject. To run them over another I/O: :mod:`tests.packets.test_rows` shows how."""

from __future__ import annotations

from tests.packets import icmp, ipv4, ipv6, matching, quic, size, transport, tunnels
from tests.packets.world import Row

ROWS: tuple[Row, ...] = (
    *ipv4.ROWS,
    *transport.ROWS,
    *ipv6.ROWS,
    *matching.ROWS,
    *size.ROWS,
    *icmp.ROWS,
    *tunnels.ROWS,
    *quic.ROWS,
)
