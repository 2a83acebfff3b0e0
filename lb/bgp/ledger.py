# SPDX-License-Identifier: Apache-2.0
"""What each peer shall hear, and what of it ExaBGP has taken: kept by what differs, a VIP among ten thousand. Pure.

Owned by :class:`lb.bgp.speaker.Speaker`. What :func:`lb.bgp.routes.plan` says of all keys at once,
:meth:`AnnouncementLedger.next` says of the keys where the two sides differ, which are noted when either side changes.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from lb.bgp.routes import ExabgpCommand, Key, plan
from lb.model import Address


class AnnouncementLedger:
    """Both sides, and where they differ. The mappings are for reading."""

    def __init__(self, peers: Iterable[Address]) -> None:
        self.wanted: dict[Key, str] = {}
        self.accepted: dict[Key, str] = {}  #: by ExaBGP, which tells peers as soon as they are up
        self.refused: dict[Key, str] = {}  #: what ExaBGP would not take
        self.counts = dict.fromkeys(peers, 0)  #: of what is accepted, by peer
        # Keys that are to be withdrawn, and to be announced, in the order in which they began to differ.
        self._surplus: dict[Key, None] = {}
        self._missing: dict[Key, None] = {}

    @property
    def left(self) -> int:
        """How many keys are still to be said."""
        return len(self._surplus) + len(self._missing)

    @property
    def settled(self) -> bool:
        """Whether ExaBGP has taken all that it can."""
        return not self.left

    def want(self, key: Key, text: str | None) -> bool:
        """These attributes from now on; None: nothing. False: that is no news."""
        if self.wanted.get(key) == text:
            return False
        if text is None:
            del self.wanted[key]
        else:
            self.wanted[key] = text
        if key in self.refused and self.refused[key] != text:
            del self.refused[key]
        self._compare(key)
        return True

    def next(self, most: int) -> tuple[ExabgpCommand, ...]:
        """What is still to be said, of so many keys at most: what must go goes first. Empty when nothing is."""
        surplus = list(islice(self._surplus, most))
        missing = list(islice(self._missing, most - len(surplus)))
        announced = {key: self.accepted[key] for key in surplus}
        wanted = {key: self.wanted[key] for key in missing}
        return plan(announced, wanted)

    def answered(self, command: ExabgpCommand, *, taken: bool) -> None:
        """What ExaBGP said to a command."""
        for key in command.keys:
            if command.attributes is None:
                self._accept(key, None)  # what ExaBGP does not know it does not announce
            elif taken:
                self._accept(key, command.attributes)
            else:
                self.refused[key] = command.attributes
            self._compare(key)

    def forget(self) -> None:
        """Nothing is announced any more: everything is to be said again."""
        self.accepted.clear()
        self.counts = dict.fromkeys(self.counts, 0)
        self._surplus.clear()
        self._missing = dict.fromkeys(key for key, text in self.wanted.items() if self.refused.get(key) != text)

    def _accept(self, key: Key, text: str | None) -> None:
        before = len(self.accepted)
        if text is None:
            self.accepted.pop(key, None)
        else:
            self.accepted[key] = text
        self.counts[key.peer] += len(self.accepted) - before

    def _compare(self, key: Key) -> None:
        text, has = self.wanted.get(key), self.accepted.get(key)
        if text is not None and self.refused.get(key) == text:
            text = None
        _note(self._surplus, key, there=text is None and has is not None)
        _note(self._missing, key, there=text is not None and text != has)


def _note(keys: dict[Key, None], key: Key, *, there: bool) -> None:
    if there:
        keys[key] = None
    elif keys:
        keys.pop(key, None)
