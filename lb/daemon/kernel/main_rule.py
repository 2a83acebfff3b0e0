# SPDX-License-Identifier: Apache-2.0
"""Keeps the kernel's own routing rules, by which the tables ``main`` and ``default`` are found.

No daemon of ours made them, but ``ip rule flush`` takes them as well, and then no packet leaves this machine any more.
They are put back only where they were as the kernel makes them when the daemon began, and no other rule leads to their
table: an operator who has rules of his own for it is left alone.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lb.daemon.kernel.netlink_bytes import HEADER, attribute, attributes, messages
from lb.daemon.kernel.repairs import Difference
from lb.daemon.kernel.watch import Area
from lb.errors import IoError

_RTM_NEWRULE, _RTM_GETRULE = 32, 34
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_REQUEST, _ACK, _EXCLUSIVE, _CREATE, _DUMP = 0x1, 0x4, 0x200, 0x400, 0x300
_RULE = struct.Struct("=BBBBBBBBI")  # struct fib_rule_hdr: family, lengths, tos, table, two reserved, action, flags
_FRA_PRIORITY, _FRA_TABLE, _FRA_PROTOCOL = 6, 15, 21
_TO_TABLE = 1
_KERNEL = 2  # RTPROT_KERNEL
_NAMES = {254: "main", 253: "default"}


@dataclass(frozen=True, slots=True)
class KernelRule:
    """A rule that leads to a table."""

    family: int
    priority: int
    table: int

    @property
    def name(self) -> str:
        return f"{'ip' if self.family == socket.AF_INET else 'ip -6'} rule {self.priority}, lookup {_NAMES[self.table]}"


#: As the kernel makes them; of IPv6 there is no table "default".
KERNELS = (
    KernelRule(socket.AF_INET, 32766, 254),
    KernelRule(socket.AF_INET, 32767, 253),
    KernelRule(socket.AF_INET6, 32766, 254),
)


class MainRule:
    """A part of :mod:`lb.daemon.kernel.keeper`."""

    areas = Area.RULE
    interval = 10.0

    def __init__(self) -> None:
        self._were_there: tuple[KernelRule, ...] | None = None

    async def look(self) -> Sequence[Difference]:
        there = rules()
        if self._were_there is None:
            self._were_there = tuple(rule for rule in KERNELS if rule in there)
        led_to = {(rule.family, rule.table) for rule in there}
        return [
            Difference("rule", rule.name, urgent=True)
            for rule in self._were_there
            if (rule.family, rule.table) not in led_to
        ]

    async def put_back(self, differences: Sequence[Difference]) -> None:
        names = {difference.name for difference in differences}
        for rule in KERNELS:
            if rule.name in names:
                add(rule)


def rules() -> frozenset[KernelRule]:
    """Those of all families that lead to a table, whatever else they ask for. Raises IoError."""
    found = set()
    for family in (socket.AF_INET, socket.AF_INET6):
        for kind, body in _ask(_RTM_GETRULE, _DUMP, _RULE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0), "for its rules"):
            if kind == _RTM_NEWRULE:
                found.add(_rule(body))
    return frozenset(found)


def add(rule: KernelRule) -> None:
    """Raises IoError."""
    body = _RULE.pack(rule.family, 0, 0, 0, rule.table, 0, 0, _TO_TABLE, 0)
    body += attribute(_FRA_PRIORITY, rule.priority.to_bytes(4, sys.byteorder))
    body += attribute(_FRA_TABLE, rule.table.to_bytes(4, sys.byteorder)) + attribute(_FRA_PROTOCOL, bytes([_KERNEL]))
    for _ in _ask(_RTM_NEWRULE, _ACK | _CREATE | _EXCLUSIVE, body, f"to add {rule.name}"):
        pass


def _rule(body: bytes) -> KernelRule:
    family, _, _, _, table, _, _, _, _ = _RULE.unpack_from(body)
    found = attributes(body[_RULE.size :])
    priority = int.from_bytes(found.get(_FRA_PRIORITY, b""), sys.byteorder)
    if _FRA_TABLE in found:
        table = int.from_bytes(found[_FRA_TABLE], sys.byteorder)
    return KernelRule(family, priority, table)


def _ask(kind: int, flags: int, body: bytes, what: str) -> Iterator[tuple[int, bytes]]:
    """The messages of the answer; what the kernel refuses is an IoError."""
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as asked:
            asked.settimeout(2.0)
            asked.bind((0, 0))
            asked.send(HEADER.pack(HEADER.size + len(body), kind, _REQUEST | flags, 1, 0) + body)
            while True:
                for answer, _, _, told in messages(asked.recv(1 << 16)):
                    if answer == _NLMSG_ERROR:
                        code = -struct.unpack_from("=i", told)[0]
                        if code:
                            raise OSError(code, os.strerror(code))
                        return
                    if answer == _NLMSG_DONE:
                        return
                    yield answer, told
    except OSError as error:
        raise IoError(f"cannot ask the kernel {what}: {(error.strerror or str(error)).lower()}") from None
