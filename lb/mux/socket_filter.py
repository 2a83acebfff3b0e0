# SPDX-License-Identifier: Apache-2.0
"""Classic BPF that lets only frames for VIPs into the receive ring, so that bulk traffic of others is not copied.

Pure. Only a matter of speed: the pipeline decides again about everything, so a filter may let too much in, and with
many prefixes there is none. Attached by :mod:`lb.mux.engine`; the drop for the kernel is :mod:`lb.mux.isolation`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network, collapse_addresses

from lb.model import Network

#: The kernel runs the program from the top for every frame: beyond this many prefixes it costs more than it saves.
PREFIXES_MAX = 64

_LD_W_ABS, _LD_H_ABS, _LD_B_ABS = 0x20, 0x28, 0x30
_AND_K, _JEQ_K, _RET_K = 0x54, 0x15, 0x06
_PKTTYPE = 0xFFFFF000 + 4  #: SKF_AD_OFF + SKF_AD_PKTTYPE
_VLAN_PRESENT = 0xFFFFF000 + 48
_ETHERTYPE, _IPV4_DESTINATION, _IPV6_DESTINATION = 12, 30, 38
_WHOLE, _NOTHING = 0xFFFFFFFF, 0

#: One instruction as the kernel lays it out, in a 64-bit word.
_LAYOUT = struct.Struct("=HBBI")


def _word(code: int, k: int, if_true: int = 0, if_false: int = 0) -> int:
    return int(struct.unpack("=Q", _LAYOUT.pack(code, if_true, if_false, k & 0xFFFFFFFF))[0])


def vip_filter(vips: Iterable[Network]) -> list[int]:
    """The program; empty (everything enters) for too many prefixes."""
    networks = list(vips)
    ipv4 = list(collapse_addresses(vip for vip in networks if isinstance(vip, IPv4Network)))
    ipv6 = list(collapse_addresses(vip for vip in networks if isinstance(vip, IPv6Network)))
    if len(ipv4) + len(ipv6) > PREFIXES_MAX:
        return []
    program = [
        _word(_LD_B_ABS, _PKTTYPE),
        _word(_JEQ_K, 0, 1, 0),  # PACKET_HOST
        _word(_RET_K, _NOTHING),
        _word(_LD_B_ABS, _VLAN_PRESENT),
        _word(_JEQ_K, 0, 1, 0),
        _word(_RET_K, _NOTHING),
        _word(_LD_H_ABS, _ETHERTYPE),
    ]
    for ethertype, tests in ((0x0800, _tests4(ipv4)), (0x86DD, _tests6(ipv6))):
        # A conditional jump reaches 255 instructions, so the tests are skipped by their own misses: each group
        # begins with its ethertype again.
        for test in tests:
            program += [_word(_LD_H_ABS, _ETHERTYPE), _word(_JEQ_K, ethertype, 0, len(test)), *test]
    program.append(_word(_RET_K, _NOTHING))
    return program


def _tests4(networks: Iterable[IPv4Network]) -> list[list[int]]:
    tests: list[list[int]] = []
    for network in networks:
        mask, prefix = int(network.netmask), int(network.network_address)
        tests.append(
            [
                _word(_LD_W_ABS, _IPV4_DESTINATION),
                _word(_AND_K, mask),
                _word(_JEQ_K, prefix, 0, 1),
                _word(_RET_K, _WHOLE),
            ]
        )
    return tests


def _tests6(networks: Iterable[IPv6Network]) -> list[list[int]]:
    tests: list[list[int]] = []
    for network in networks:
        mask, prefix = network.netmask.packed, network.network_address.packed
        compares: list[tuple[int, int, int]] = []
        for part in range(0, 16, 4):
            word_mask = int.from_bytes(mask[part : part + 4], "big")
            if word_mask:
                compares.append((part, word_mask, int.from_bytes(prefix[part : part + 4], "big")))
        test: list[int] = []
        for index, (part, word_mask, word) in enumerate(compares):
            remaining = 3 * (len(compares) - index - 1) + 1  # past the rest of this test and its return
            test += [
                _word(_LD_W_ABS, _IPV6_DESTINATION + part),
                _word(_AND_K, word_mask),
                _word(_JEQ_K, word, 0, remaining),
            ]
        tests.append([*test, _word(_RET_K, _WHOLE)])
    return tests
