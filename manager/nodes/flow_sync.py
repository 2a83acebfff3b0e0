# SPDX-License-Identifier: Apache-2.0
"""Flows that only one MUX knows, on their way to the others: who is asked, who has answered, when it is enough. Pure.

A MUX that is about to leave tells its unsynchronised flows, and one that is about to come asks the others for theirs.
The MUXes that stay tell one another as well: where the number of ways changes, most routers also move flows between the
ways that stay (RFC 2992, section 2.1). The manager passes on what it does not understand, and remembers only who began
and whose answer is due. Whoever does not answer, or leaves, holds nobody up for longer than :data:`PATIENCE`: the MUX
that began goes on then without. What is news of such flows at other times goes to all others, and is not waited for.
:class:`manager.nodes.hub.NodeHub` owns the one :class:`Handovers`, and sends what it returns.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec

from lb.node.messages import (
    FlowNewsMessage,
    FlowsDoneMessage,
    FlowsFromNode,
    FlowsMessage,
    FlowsTakenMessage,
    FlowsToNode,
    FlowsWantedMessage,
)

#: How long an answer is waited for, seconds.
PATIENCE = 5.0
#: Hand-overs under way; more are as good as done.
MOST = 64

#: In the place of one MUX's name: whoever takes part.
ALL = "*"

#: To whom, and what.
Letter = tuple[str, FlowsToNode]


@dataclass(slots=True)
class FlowSyncRound:
    """One that is under way."""

    began: float
    waiting: set[str]
    gives: bool  #: the MUX that began leaves; else it comes
    others: set[str]
    due: set[tuple[str, str]]  #: of the others: who has not yet taken over all that the first tells
    muxes: int = 0  #: that have done their part
    flows: int = 0
    left_out: int = 0
    refused: int = 0


@dataclass(slots=True)
class FlowSyncStep:
    """What follows from one message: letters to MUXes, and words for the events: subject, text, whether it is bad."""

    letters: list[Letter] = field(default_factory=list)
    words: list[tuple[str, str, bool]] = field(default_factory=list)


class Handovers:
    """All that are under way, by who began and the serial that it gave."""

    def __init__(self) -> None:
        self._under_way: dict[tuple[str, int], FlowSyncRound] = {}

    def said(self, mux: str, message: FlowsFromNode, others: Iterable[str], now: float) -> FlowSyncStep:
        """A MUX's message. ``others``: the MUXes that are connected, without itself."""
        match message:
            case FlowsWantedMessage(serial):
                return self._wanted(mux, serial, set(others), now)
            case FlowsMessage() if message.mux:
                return self._answered(mux, message)
            case FlowsMessage():
                return self._given(mux, message, set(others), now)
            case FlowsTakenMessage():
                return self._taken(mux, message)
            case FlowNewsMessage():
                told = msgspec.structs.replace(message, mux=mux)
                return FlowSyncStep([(other, told) for other in sorted(others)])

    def left(self, mux: str) -> FlowSyncStep:
        """A MUX is not connected any more: nobody waits for it."""
        for key in [key for key in self._under_way if key[0] == mux]:
            del self._under_way[key]
        answer = FlowSyncStep()
        for key, found in list(self._under_way.items()):
            if mux in found.others:
                found.others.discard(mux)
                found.waiting.discard(mux)
                found.due = {pair for pair in found.due if mux not in pair}
                self._look(key, found, answer)
        return answer

    def tick(self, now: float) -> FlowSyncStep:
        """Time passes: whoever has not answered is left out."""
        answer = FlowSyncStep()
        for key, found in list(self._under_way.items()):
            if now - found.began > PATIENCE:
                silent = found.waiting | {taker for _, taker in found.due}
                answer.words.append((f"mux {key[0]}", f"flow sync: no answer from {', '.join(sorted(silent))}", True))
                found.waiting.clear()
                found.due.clear()
                self._look(key, found, answer)
        return answer

    # -- one message --------------------------------------------------------------------------------------------

    def _begin(self, key: tuple[str, int], others: set[str], now: float, *, gives: bool) -> FlowSyncRound:
        while len(self._under_way) >= MOST:
            del self._under_way[next(iter(self._under_way))]
        due = {(teller, taker) for teller in others for taker in others if teller != taker}
        found = self._under_way[key] = FlowSyncRound(now, set(others), gives, set(others), due)
        return found

    def _wanted(self, mux: str, serial: int, others: set[str], now: float) -> FlowSyncStep:
        key = (mux, serial)
        found = self._begin(key, others, now, gives=False)
        answer = FlowSyncStep([(other, FlowsWantedMessage(serial, ALL)) for other in sorted(others)])
        answer.letters.append((mux, _done(key, found)))
        self._look(key, found, answer, said=True)
        return answer

    def _given(self, mux: str, message: FlowsMessage, others: set[str], now: float) -> FlowSyncStep:
        key = (mux, message.serial)
        found = self._under_way.get(key)
        answer = FlowSyncStep()
        if found is None:
            found = self._begin(key, others, now, gives=True)
            answer.letters.append((mux, _done(key, found)))
            if found.due:
                answer.letters += [(other, FlowsWantedMessage(message.serial, ALL)) for other in sorted(others)]
        found.flows += message.count
        found.left_out = message.left_out
        answer.letters += [(other, _from(mux, message)) for other in sorted(found.waiting)]
        if message.last:
            self._look(key, found, answer, said=not found.waiting and len(answer.letters) == 1)
        return answer

    def _answered(self, mux: str, message: FlowsMessage) -> FlowSyncStep:
        """One of the others tells what it alone knows: to those that stay, and to the one that comes."""
        answer = FlowSyncStep()
        for key, found in self._under_way.items():
            if key[1] != message.serial or mux not in found.others:
                continue
            comes = not found.gives and mux in found.waiting
            takers = sorted(taker for teller, taker in found.due if teller == mux) + [key[0]] * comes
            answer.letters += [(taker, _from(mux, message)) for taker in takers]
            if comes:
                found.flows += message.count
                if message.last:
                    found.left_out += message.left_out
                    found.waiting.discard(mux)
                    found.muxes += 1
                    self._look(key, found, answer)
            break
        return answer

    def _taken(self, mux: str, message: FlowsTakenMessage) -> FlowSyncStep:
        answer = FlowSyncStep()
        for key, found in self._under_way.items():
            if key[1] != message.serial:
                continue
            if found.gives and key[0] == message.mux and mux in found.waiting:
                found.waiting.discard(mux)
                found.muxes += 1
            elif (message.mux, mux) in found.due:
                found.due.discard((message.mux, mux))
            else:
                continue
            found.refused += message.refused
            self._look(key, found, answer)
            break
        return answer

    def _look(self, key: tuple[str, int], found: FlowSyncRound, answer: FlowSyncStep, *, said: bool = False) -> None:
        """Is it done? ``said``: the letter that says so is written."""
        if found.waiting or found.due:
            return
        self._under_way.pop(key, None)
        if not said:
            answer.letters.append((key[0], _done(key, found)))
        if found.flows or found.left_out:
            answer.words += [(f"mux {key[0]}", text, bad) for text, bad in words(found)]


def words(found: FlowSyncRound) -> list[tuple[str, bool]]:
    """What became of it, for the events."""
    whom = f"{found.muxes} other MUX" + ("" if found.muxes == 1 else "es")
    flows = f"{found.flows:,} flow" + ("" if found.flows == 1 else "s")
    told = f"sent {flows} that only it knew to {whom}" if found.gives else f"received {flows} from {whom}"
    said = [(told, False)]
    if found.left_out:
        text = f"{found.left_out:,} more flows were too many to send: they may break where routers move them"
        said.append((text, True))
    if found.refused:
        said.append((f"{found.refused:,} flows found no room at another MUX: raise flows in its [mux]", True))
    return said


def _done(key: tuple[str, int], found: FlowSyncRound) -> FlowsDoneMessage:
    return FlowsDoneMessage(key[1], found.muxes, len(found.waiting))


def _from(mux: str, message: FlowsMessage) -> FlowsMessage:
    return FlowsMessage(message.serial, mux, message.pool, message.last, message.left_out, message.groups)
