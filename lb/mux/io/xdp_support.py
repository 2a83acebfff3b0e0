# SPDX-License-Identifier: Apache-2.0
"""Whether, and how, AF_XDP serves an interface. Pure: decided by what :mod:`lb.mux.io.ethernet` saw, done by
:mod:`lb.mux.io.xdp_port`.

``auto`` takes it where a real driver runs the program. On a veth the program would switch the neighbours' segmentation
offload off: they would send a packet at a time what ``packet`` takes as one of 64 KiB. Asked for by its name it is
taken there too; and where no driver runs the program the kernel's own code does, except on links whose neighbours
send super-packets, which AF_XDP would lose.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from lb.dataplane import XDP_FRAME_MAX, XDP_QUEUES_MAX
from lb.model import IoMode
from lb.mux.io.ethernet import Facts

#: A link header, and room for a tag.
LINK_HEADER = 18
#: Drivers whose links carry super-packets of neighbours, or of what they are made of.
VIRTUAL = frozenset({"veth", "tun", "bridge", "bonding", "team", "macvlan", "ipvlan", "vxlan", "dummy", ""})


@dataclass(frozen=True, slots=True)
class Attempt:
    """One way to attach the program and to bind the sockets."""

    generic: bool  #: the kernel's own code runs the program
    zero_copy: bool

    @property
    def text(self) -> str:
        where = "generic (the kernel's code, not the driver's)" if self.generic else "native"
        return f"{where}, {'zero-copy' if self.zero_copy else 'copying'}"


NATIVE = (Attempt(False, True), Attempt(False, False))
GENERIC = Attempt(True, False)


def refusal(facts: Facts, workers: int, asked: IoMode) -> str | None:
    """Why it is not even tried, as a sentence goes on."""
    if asked is IoMode.AUTO and facts.driver in VIRTUAL:
        kind = facts.driver or "virtual device"
        return f"on a {kind} the segmentation offload of neighbours, which it would end, is worth more"
    if facts.mtu + LINK_HEADER > XDP_FRAME_MAX:
        most = XDP_FRAME_MAX - LINK_HEADER
        return f"the MTU of the interface, {facts.mtu:,}, is above {most:,}, the most that one of its frames holds"
    if workers > facts.queues:
        return f"the interface has {_queues(facts.queues)}, one at least for each of {workers} workers is needed"
    if facts.queues > workers * XDP_QUEUES_MAX:
        return f"the interface has {_queues(facts.queues)}, more than {XDP_QUEUES_MAX} for each worker"
    if facts.vlans and facts.strips_vlans:
        names = ", ".join(facts.vlans[:3])
        return f"packets of its VLANs ({names}) would be taken for untagged ones: switch rx-vlan-offload off"
    return None


def attempts(facts: Facts, asked: IoMode) -> tuple[Attempt, ...]:
    """Best first."""
    return NATIVE if asked is IoMode.AUTO or facts.driver in VIRTUAL else (*NATIVE, GENERIC)


def described(attempt: Attempt, queues: int, *, busy_asked: bool, busy: Sequence[bool]) -> str:
    """What was obtained, in words; ``busy``: of each worker's sockets, whether the kernel polls for them."""
    words = [attempt.text, _queues(queues)]
    if busy_asked:
        words.append("busy polling" if busy and all(busy) else "no busy polling: the kernel refused it")
    return ", ".join(words)


def maps_need_rights(release: str) -> bool:
    """Whether a kernel of this release may ask for CAP_BPF also where a map is changed that the process has open."""
    numbers = re.match(r"(\d+)\.(\d+)", release)
    return numbers is None or (int(numbers[1]), int(numbers[2])) < (5, 19)


def _queues(count: int) -> str:
    return "1 queue" if count == 1 else f"{count} queues"
