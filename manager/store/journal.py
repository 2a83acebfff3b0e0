# SPDX-License-Identifier: Apache-2.0
"""What the manager learns by itself and must outlive it, on its way to the disk: memory, nodes and events.

Nobody waits for it but new announcements. Whatever is handed to a :class:`Journal` is gathered, and one task writes all
of it in one transaction, again and again while there is something; so a disk that takes a second, a large change that
is being committed, or a thousand nodes that join hold up no verdict. What is lost by a manager that is killed, and why
that may be:

    term                  nothing: a manager takes its term before it speaks to anybody (Store.next_term)
    operators' changes    nothing: they are committed before they count (manager.controller.writer), never by way of
    this
    announcements         nothing: a MUX is told to announce a VIP only once that is written (Journal.unwritten), so a
                          manager that starts anew withdraws nothing that it does not remember. A disk that fails
                          holds them up for one attempt: then serving is worth more than remembering
    generations           nothing: the next manager counts on from GENERATION_GAP beyond the last that was written, and
                          orders of another term are never taken for one another
    verdicts              those of the last moment, some milliseconds on an idle disk. The next manager begins with the
                          verdict before, and hears of the present one from the agent's first words; the same as if it
                          had been killed that moment earlier
    nodes, events         those of the last moment: nodes say again who they are when they connect
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

from lb.daemon.clocks import Clocks
from lb.errors import VipmuxError
from manager.desired.state import Desired
from manager.plan.model import BackendKey, Plan, PlanMemory, Remembered
from manager.plan.previous import plain_leaving, read_leaving, served
from manager.store.events import KEPT, Events
from manager.store.interface import Entries, NodeRecord, Store

#: An event alone waits so long for others, seconds.
GATHER = 0.5
#: After a failure the disk is tried again after so long, seconds.
RETRY = 0.5
#: A manager that starts anew counts on from here, beyond what it may have given out after its last note.
GENERATION_GAP = 1000

#: Section and key of the memory; None: it is there no more.
_Pending = dict[tuple[str, str], Any]
#: A MUX, and a VIP that it is to announce.
Grant = tuple[str, str]
_NOBODY: frozenset[str] = frozenset()
#: In the order in which they stand in the store; plain values, so nothing need be copied.
_REMEMBERED = tuple(item.name for item in dataclasses.fields(Remembered))


class Journal:
    """See the module's text. Used in the event loop; :meth:`run` is its task."""

    def __init__(
        self,
        store: Store,
        events: Events,
        *,
        wrote: Callable[[set[str]], None],
        said: Callable[[str | None], None],
    ) -> None:
        """``wrote`` hears the VIPs of announcements that are written, or were tried; ``said`` hears once why the disk
        cannot be written, and with None once that it can again."""
        self._store = store
        self._events = events
        self._wrote, self._said = wrote, said
        self._memory: _Pending = {}
        self._nodes: dict[tuple[str, str], NodeRecord] = {}
        self._grants: set[Grant] = set()
        self._writing: set[Grant] = set()  #: on their way to the disk just now
        self._generation = 0  #: the last that was noted
        self._wake = asyncio.Event()
        self._failing = False

    # -- what is handed in --------------------------------------------------------------------------------------

    def note(self, old: Plan, new: Plan, vips: Iterable[str]) -> None:
        """What the plan of these VIPs must remember, as far as it is another than before."""
        before, after = old.memory, new.memory
        keys: dict[BackendKey, None] = {}
        for vip in vips:
            for plan in (old, new):
                if vip in plan.vips:
                    keys.update((item.key, None) for item in plan.vips[vip].backends)
            had, has = before.granted.get(vip, _NOBODY), after.granted.get(vip, _NOBODY)
            if had != has:
                self._memory["granted", vip] = sorted(has) or None
                self._grants |= {(mux, vip) for mux in has - had}
                gone = {(mux, vip) for mux in had - has}
                self._grants -= gone
                self._writing -= gone
            stayed, stays = before.leaving.get(vip, ()), after.leaving.get(vip, ())
            if stayed != stays:
                self._memory["leaving", vip] = plain_leaving(stays) or None
        for key in keys:
            was, now = before.backends.get(key), after.backends.get(key)
            if was != now:
                self._memory["backends", "\n".join(key)] = (
                    None if now is None else [*key, *(getattr(now, name) for name in _REMEMBERED)]
                )
        if self._memory:
            self._wake.set()

    def trim(self, stored: PlanMemory, memory: PlanMemory) -> None:
        """What is stored of backends and VIPs that are no more is of no use."""
        gone = [("backends", "\n".join(key)) for key in stored.backends.keys() - memory.backends.keys()]
        gone += [("granted", vip) for vip in stored.granted.keys() - memory.granted.keys()]
        gone += [("leaving", vip) for vip in stored.leaving.keys() - memory.leaving.keys()]
        self._memory.update(dict.fromkeys(gone))

    def count(self, generation: int) -> None:
        """Orders of this generation are given out."""
        if generation >= self._generation + GENERATION_GAP // 2:
            self._generation = generation
            self._memory["generation", "latest"] = generation
            self._wake.set()

    def clock(self, boot: str) -> None:
        """Of which boot the moments of the steady clock are, in what is written from now on."""
        self._memory["clock", "boot"] = boot
        self._wake.set()

    def behind(self, value: object | None) -> None:
        """Who has newer orders than the store (manager.store.lineage); None: nobody."""
        self._memory["behind", "nodes"] = value
        self._wake.set()

    def node(self, record: NodeRecord) -> None:
        self._nodes[record.kind, record.name] = record
        self._wake.set()

    def forget(self, kind: str, name: str) -> None:
        """The node is no longer one of ours: what was not written of it never will be."""
        self._nodes.pop((kind, name), None)

    @property
    def unwritten(self) -> set[Grant]:
        """Announcements that MUXes must not be told of yet."""
        return self._grants | self._writing if self._writing else self._grants

    @property
    def failing(self) -> bool:
        """Whether the disk did not take the last that was to be written."""
        return self._failing

    # -- to the disk --------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Writes what there is, as soon as there is something; returns never."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(GATHER):  # events alone wake nobody
                    await self._wake.wait()
            self._wake.clear()
            if not await self.write():
                await asyncio.sleep(RETRY)
                self._wake.set()

    async def write(self) -> bool:
        """All that there is, in one transaction; whether the disk took it. What it did not take is tried again."""
        memory, self._memory = self._memory, {}
        nodes, self._nodes = self._nodes, {}
        self._writing, self._grants = self._grants, set()
        events = self._events.take_unkept()
        if not (memory or nodes or self._writing or events):
            return True
        taken, problem = False, None
        try:
            await self._store.keep(_change(memory), list(nodes.values()), events, KEPT)
            taken = True
        except VipmuxError as error:
            problem = str(error)
        finally:
            if not taken:
                self._memory = memory | self._memory
                self._nodes = nodes | self._nodes
                self._events.not_kept(events)
            written, self._writing = self._writing, set()
        if (problem is not None) is not self._failing:
            self._failing = problem is not None
            self._said(problem)
        if written:
            self._wrote({vip for _, vip in written})
        return taken


def _change(pending: _Pending) -> dict[str, Any]:
    """As the store takes it."""
    changed: dict[str, dict[str, Any]] = {}
    removed: dict[str, list[str]] = {}
    for (section, key), value in pending.items():
        if value is None:
            removed.setdefault(section, []).append(key)
        else:
            changed.setdefault(section, {})[key] = value
    return {"set": changed, "remove": removed}


def memory_of(entries: Entries, desired: Desired, clocks: Clocks) -> PlanMemory:
    """What a manager before us remembered, and what it had told MUXes of. A slow start that began before this machine
    was booted begins anew: how long ago that was only the wall's clock could tell, and that may have been set."""
    same_boot = bool(clocks.boot) and entries.get("clock", {}).get("boot") == clocks.boot
    backends: dict[BackendKey, Remembered] = {}
    for value in entries.get("backends", {}).values():
        try:
            service, backend, address, *known = value
            found = Remembered(*known)
        except (TypeError, ValueError):
            continue  # of another version: what it was is learned anew
        if found.ramp_begun is not None and not same_boot:
            found = dataclasses.replace(found, ramp_begun=clocks.steady())
        backends[service, backend, address] = found
    granted = {vip: frozenset(muxes) for vip, muxes in entries.get("granted", {}).items() if isinstance(muxes, list)}
    leaving = {vip: read_leaving(rows) for vip, rows in entries.get("leaving", {}).items() if isinstance(rows, list)}
    return PlanMemory(backends, granted, served=served(desired), leaving=leaving)


def generation_of(entries: Entries) -> int:
    """From where a manager counts on that follows the one which wrote this."""
    return int(entries.get("generation", {}).get("latest", 0)) + GENERATION_GAP
