# SPDX-License-Identifier: Apache-2.0
"""Where the fuzzers start: every row of tests/packets, in the form that each target reads.

``python -m tests.fuzz.seeds DIRECTORY`` writes ``DIRECTORY/fuzz_*.corpus/``; ``make fuzz`` calls it.
"""

from __future__ import annotations

import hashlib
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.model.tunnel import outer_ipv4
from tests.packets.build import ethernet
from tests.packets.frames import ROWS as FRAMES
from tests.packets.rows import ROWS
from tests.packets.world import MUX

#: What to do with a record of fuzz_mux.c.
GROW, OFFLOAD, BURST_ENDS, TIME_PASSES, OTHER_SNAPSHOT = 0x04, 0x08, 0x20, 0x40, 0x80
LONGEST = 4000
#: With one of fuzz_gso_tap.c.
GATE_FIX, GATE_AIM, GATE_TELL = 0x01, 0x02, 0x04


def _record(packet: bytes, what: int = 0, how: int = 0) -> bytes:
    return bytes([what, how]) + len(packet).to_bytes(2, "big") + packet


def mux() -> Iterator[bytes]:
    """One packet each, then several in one burst, offloaded, with time passing and services changing."""
    packets = [row.packet for row in ROWS if len(row.packet) < LONGEST]
    for setup, frames in ((0, packets), (1, [ethernet(p) for p in packets] + [row.frame for row in FRAMES])):
        for frame in frames:
            yield bytes([setup]) + _record(frame)
        for start in range(0, len(frames), 8):
            some = frames[start : start + 8]
            yield bytes([setup]) + b"".join(_record(f, BURST_ENDS, 0) + _record(f, OTHER_SNAPSHOT, 0) for f in some)
            yield bytes([setup | 8]) + b"".join(_record(f, TIME_PASSES | OFFLOAD, 35) for f in some)
            yield bytes([setup | 4]) + b"".join(_record(f, GROW, 20) for f in some)


def packet() -> Iterator[bytes]:
    for row in ROWS:
        if len(row.packet) < LONGEST:
            yield bytes([0, 99]) + row.packet
            yield bytes([4, 99]) + row.packet
            yield bytes([5, 255]) + ethernet(row.packet)
    for frame in FRAMES:
        yield bytes([1, 20]) + frame.frame


def host() -> Iterator[bytes]:
    for row in ROWS:
        yield from (out for out in row.out if len(out) < LONGEST)
        if row.packet and row.packet[0] >> 4 == 4 and 20 < len(row.packet) < LONGEST:
            yield outer_ipv4(MUX, MUX, row.packet, 1)


def flow_table() -> Iterator[bytes]:
    """Fill, trust, let time pass, fill again."""
    fill = b"".join(bytes([n, 4 * n]) for n in range(32))
    trust = b"".join(bytes([3 << 5 | n, 0]) for n in range(32))
    for jump in range(8):
        yield fill + trust + bytes([7 << 5, jump | 8]) + fill + bytes([7 << 5, jump | 24]) + trust + fill


def handover() -> Iterator[bytes]:
    """Records of every class and of many ages; both snapshots, all backends."""
    records = b"".join((n * 0x9E3779B97F4A7C15 % 2**64).to_bytes(8, "little") for n in range(64))
    for choice in range(64):
        yield bytes([choice]) + records


def services() -> Iterator[bytes]:
    """One of each kind, alone and among others that begin or end as it does."""
    kinds = [bytes([first, 64, address, 1, 3, last]) for first in range(16) for address in (1, 2) for last in (0x80, 9)]
    yield from kinds
    for start in range(len(kinds)):
        some = kinds[start : start + 24 : 3]
        yield b"".join(some)
        yield b"".join(bytes([kind[0] | n % 4 << 6]) + kind[1:] for n, kind in enumerate(some))


def quic() -> Iterator[bytes]:
    """Ids of one configuration and a server or two, of every length of block, plain and encrypted."""
    for size in range(5, 20):
        for encrypted in (0, 1):
            setup = bytes([0x21, 0, size - 4, 4, encrypted, 0, 10, 0, 0, 11, 0])
            connection_id = bytes([size, 10]) + bytes(size - 1)
            yield setup + b"\x41" + connection_id
            yield setup + b"\xc1\0\0\0\1" + bytes([len(connection_id)]) + connection_id


def gso_tap() -> Iterator[bytes]:
    """Every row as a plain frame and as a super-packet, and TCP rows with more behind them than a segment takes."""
    told = struct.pack("=BBHHHH", 0, 0, 0, 300, 0, 0)  # a virtio header of which the segments' size counts
    for row in ROWS:
        if not row.packet or len(row.packet) >= LONGEST:
            continue
        frame = ethernet(row.packet)
        yield bytes([0]) + _gate_record(frame, 0, bytes(10))
        for more in (0, 400, 2000):
            yield bytes([0]) + _gate_record(frame + bytes(more), GATE_FIX | GATE_AIM | GATE_TELL, told)


def _gate_record(frame: bytes, what: int, offload: bytes) -> bytes:
    return bytes([what]) + len(frame).to_bytes(2, "big") + offload + frame


def sibling_tables() -> Iterator[bytes]:
    """What others know is asked for, of every class, at once and after each jump of a clock."""
    known = b"".join(bytes([2 | table << 3, n, 7 * n + table]) for n in range(24) for table in (2, 3))
    ask = b"".join(bytes([0, n, 0]) for n in range(24))
    own = b"".join(bytes([2, n, n]) for n in range(0, 24, 2))
    for jump in range(8):
        for table in (0, 2, 3):
            later = bytes([6 | table << 3, 0, jump])
            yield known + later + ask + own + later + ask


SEEDS = {
    "fuzz_gso_tap": gso_tap,
    "fuzz_sibling_tables": sibling_tables,
    "fuzz_mux": mux,
    "fuzz_packet": packet,
    "fuzz_host": host,
    "fuzz_flow_table": flow_table,
    "fuzz_handover": handover,
    "fuzz_services": services,
    "fuzz_quic": quic,
}


def write(directory: Path) -> None:
    for target, seeds in SEEDS.items():
        corpus = directory / f"{target}.corpus"
        corpus.mkdir(parents=True, exist_ok=True)
        for seed in seeds():
            (corpus / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
