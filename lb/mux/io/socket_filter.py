# SPDX-License-Identifier: Apache-2.0
"""Classic BPF that lets only frames for VIPs into the receive ring, so that bulk traffic of others is not copied.

Pure. Only a matter of speed: the pipeline decides again about everything, so a filter may let too much in; where it has
no room for all prefixes, neighbours are taken together. Attached by :mod:`lb.mux.io.ports`; the drop for the kernel is
:mod:`lb.mux.io.isolation`.

The kernel runs the program from the top for every frame, so addresses are searched: 32 bits at a time, by halves. A
thousand VIPs cost some ten comparisons more than one.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network

from lb.model import Network

#: Instructions that the kernel makes of a program: an old and a new one must fit in net.core.optmem_max (20,480 bytes
#: before Linux 6.7).
EXPANDED_MAX = 1200
#: So many ranges of addresses are tried first; they are fewer if they do not fit.
RANGES_MAX = 200

_LD_W_ABS, _LD_H_ABS, _LD_B_ABS, _LD_MEM, _ST = 0x20, 0x28, 0x30, 0x60, 0x02
_JA, _JEQ_K, _JGE_K, _AND_K, _RET_K = 0x05, 0x15, 0x35, 0x54, 0x06
_JUMP_MAX = 255  #: a conditional jump goes no further
_PKTTYPE = 0xFFFFF000 + 4  #: SKF_AD_OFF + SKF_AD_PKTTYPE
_VLAN_TAG, _VLAN_PRESENT = 0xFFFFF000 + 44, 0xFFFFF000 + 48
_VLAN_ID = 0x0FFF
_ETHERTYPE, _IPV4_DESTINATION, _IPV6_DESTINATION = 12, 30, 38
_WHOLE, _NOTHING = 0xFFFFFFFF, 0
_WORD = 1 << 32

#: One instruction as the kernel lays it out, in a 64-bit word.
_LAYOUT = struct.Struct("=HBBI")

Program = list[int]
Range = tuple[int, int]  #: addresses as numbers, first and last


def _word(code: int, k: int, if_true: int = 0, if_false: int = 0) -> int:
    return int(struct.unpack("=Q", _LAYOUT.pack(code, if_true, if_false, k & 0xFFFFFFFF))[0])


@dataclass(frozen=True, slots=True)
class Filter:
    """A program, and which addresses it lets in."""

    program: Program
    ipv4: Sequence[Range]
    ipv6: Sequence[Range]
    rough: bool  #: neighbours were taken together: addresses between VIPs come in

    def lets_in(self, network: Network) -> bool:
        """All of it."""
        ranges = self.ipv4 if network.version == 4 else self.ipv6
        first, last = _range(network)
        at = bisect_right(ranges, first, key=lambda found: found[0]) - 1
        return at >= 0 and last <= ranges[at][1]


def vip_filter(vips: Collection[Network], before: Filter | None = None, come: Iterable[Network] = ()) -> Filter:
    """Never empty: without VIPs nothing enters.

    ``before``: the filter so far, to which these have ``come``; with very many VIPs it is kept while it lets them in.
    """
    if before is not None and before.rough and len(vips) > RANGES_MAX and all(map(before.lets_in, come)):
        return before
    ipv4 = _ranges(vip for vip in vips if isinstance(vip, IPv4Network))
    ipv6 = _ranges(vip for vip in vips if isinstance(vip, IPv6Network))
    room = RANGES_MAX
    while True:
        some4, some6 = _closest_together(ipv4, room), _closest_together(ipv6, room)
        program = _program(some4, some6)
        size = _expanded(program)
        if size <= EXPANDED_MAX:
            return Filter(program, some4, some6, rough=len(some4) + len(some6) < len(ipv4) + len(ipv6))
        room = room * EXPANDED_MAX // size * 31 // 32


def _expanded(program: Program) -> int:
    """As many instructions as the kernel makes of it, or fewer: of its own kind, which check each load."""
    size = 0
    for instruction in program:
        code = _LAYOUT.unpack(struct.pack("=Q", instruction))[0]
        size += 16 if code in {_LD_W_ABS, _LD_H_ABS, _LD_B_ABS} else 2
    return size


def _program(ipv4: Sequence[Range], ipv6: Sequence[Range]) -> Program:
    return [
        _word(_LD_B_ABS, _PKTTYPE),
        _word(_JEQ_K, 0, 1, 0),  # PACKET_HOST
        _word(_RET_K, _NOTHING),
        _word(_LD_B_ABS, _VLAN_PRESENT),
        _word(_JEQ_K, 0, 4, 0),
        _word(_LD_W_ABS, _VLAN_TAG),
        _word(_AND_K, _VLAN_ID),
        _word(_JEQ_K, 0, 1, 0),  # its VLAN is none: a priority alone
        _word(_RET_K, _NOTHING),
        _word(_LD_H_ABS, _ETHERTYPE),
        *_if_equal(0x0800, [*_keep(_IPV4_DESTINATION, 1), *_search(ipv4, 0, 1)]),
        *_if_equal(0x86DD, [*_keep(_IPV6_DESTINATION, 4), *_search(ipv6, 0, 4)]),
        _word(_RET_K, _NOTHING),
    ]


def _range(network: Network) -> Range:
    first = int(network.network_address)
    return first, first + (1 << network.max_prefixlen - network.prefixlen) - 1


def _ranges(networks: Iterable[IPv4Network | IPv6Network]) -> list[Range]:
    """Ascending, and neither touching nor overlapping."""
    found: list[Range] = []
    for first, last in sorted(map(_range, networks)):
        if found and found[-1][1] + 1 >= first:
            found[-1] = (found[-1][0], max(last, found[-1][1]))
        else:
            found.append((first, last))
    return found


def _closest_together(ranges: Sequence[Range], most: int) -> Sequence[Range]:
    """No more than ``most``: the smallest gaps are closed, so that the fewest addresses of others come in."""
    if len(ranges) <= most:
        return ranges
    gaps = sorted(range(1, len(ranges)), key=lambda i: ranges[i][0] - ranges[i - 1][1])
    kept = sorted(gaps[len(ranges) - most :])
    starts = [0, *kept]
    return [(ranges[a][0], ranges[b - 1][1]) for a, b in zip(starts, [*kept, len(ranges)], strict=True)]


def _if_equal(value: int, then: Program) -> Program:
    """``then``, which does not come back, where the accumulator has this value."""
    return [_word(_JEQ_K, value, 1, 0), _word(_JA, len(then)), *then]


def _keep(offset: int, words: int) -> Program:
    """So many 32-bit words of the frame in the program's own memory: reading that again costs an eighth."""
    return [step for n in range(words) for step in (_word(_LD_W_ABS, offset + 4 * n), _word(_ST, n))]


def _search(ranges: Sequence[Range], at: int, words: int) -> Program:
    """Whether the address of so many words in memory, from this one on, is in one of the ranges: returns either way."""
    if not ranges:
        return [_word(_RET_K, _NOTHING)]
    size = _WORD ** (words - 1)
    if ranges[0] == (0, _WORD * size - 1):
        return [_word(_RET_K, _WHOLE)]
    return [_word(_LD_MEM, at), *_halves(_steps(ranges, size), at, words)]


def _steps(ranges: Sequence[Range], size: int) -> list[tuple[int, list[Range]]]:
    """By the first word of an address: the values from which on these ranges count for what follows it, ascending.

    ``size``: how many addresses begin with the same word.
    """
    inside: dict[int, list[Range]] = {0: []}
    for first, last in ranges:
        low, high = first // size, last // size
        for word in {low, high}:
            part = (max(first, word * size) - word * size, min(last, word * size + size - 1) - word * size)
            inside[word] = [*inside.get(word, []), part]
            inside.setdefault(word + 1, [])
        if high - low > 1:
            inside[low + 1] = [(0, size - 1)]
    steps = sorted((word, parts) for word, parts in inside.items() if word < _WORD)
    return [step for i, step in enumerate(steps) if not i or step[1] != steps[i - 1][1]]


def _halves(steps: Sequence[tuple[int, list[Range]]], at: int, words: int) -> Program:
    """By the word in the accumulator: the last step that does not begin above it decides."""
    if len(steps) == 1:
        return _search(steps[0][1], at + 1, words - 1) if words > 1 else _end(steps[0][1])
    middle = len(steps) // 2
    below, above = _halves(steps[:middle], at, words), _halves(steps[middle:], at, words)
    value = steps[middle][0]
    if len(below) <= _JUMP_MAX:
        return [_word(_JGE_K, value, len(below), 0), *below, *above]
    return [_word(_JGE_K, value, 0, 1), _word(_JA, len(below)), *below, *above]


def _end(ranges: Sequence[Range]) -> Program:
    return [_word(_RET_K, _WHOLE if ranges else _NOTHING)]
