# SPDX-License-Identifier: Apache-2.0
"""On which nodes somebody undoes what keeps them serving. :mod:`manager.controller.controller` owns one
:class:`Undone`.

What a node put into its kernel it puts back when another program takes it away, and says so
(:mod:`lb.daemon.kernel.repairs`). A repair is over as soon as it is told; a fight with another program, or what cannot
be put back, goes on and is everybody's concern: an event when it begins and when it ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from lb.daemon.kernel.repairs import goes_on


class Undone:
    """In the event loop; ``nodes`` is never changed, only replaced, and may be read from any thread."""

    def __init__(self) -> None:
        self.nodes: Mapping[str, str] = {}  #: by node ("agent host1"), what goes on there, in words

    def heard(self, node: str, repaired: object) -> Iterator[tuple[str, str, bool]]:
        """What a node says of its repairs; returns events, as subject, text and whether they are bad."""
        words = repaired if goes_on(repaired) else None
        before = self.nodes.get(node)
        if words == before:
            return
        rest = {name: said for name, said in self.nodes.items() if name != node}
        self.nodes = rest if words is None else {**rest, node: words}
        if words is None:
            yield node, "what it keeps in its kernel is left alone again", False
        elif before is None:
            yield node, words, True
