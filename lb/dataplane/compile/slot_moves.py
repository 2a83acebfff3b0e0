# SPDX-License-Identifier: Apache-2.0
"""What a change means for flows: the slots that it moves, by building the Maglev tables before and after, and what
becomes of the flows that are live. ``lb diff`` asks, with two tables of a service as MUXes are told of it; pure.

Flows whose backend goes away or goes down break. Flows of a backend that begins to drain stay, but UDP's move at once.
Flows whose slot moves stay as well, for their MUX remembers them; only losing that MUX would cost them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lb.dataplane.maglev import build_table
from lb.model import DEFAULT_SLOTS

Table = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Pool:
    """What the MUXes of a pool have in common."""

    seed: bytes = bytes(16)
    slots: int = DEFAULT_SLOTS


@dataclass(frozen=True, slots=True)
class Moves:
    """Of one service. Counts of flows are None where they are not known."""

    moved: float  #: slots that belong to another backend
    size: int  #: of the table
    breaking: int | None = 0  #: flows that end
    draining: int | None = 0  #: flows that stay with a backend that begins to drain
    moving: int | None = 0  #: flows that stay, though their slot moves; about
    why: tuple[str, ...] = ()  #: flows end
    drained: tuple[str, ...] = ()  #: backends that begin to drain

    @property
    def share(self) -> float:
        return self.moved / self.size


@dataclass(slots=True)
class _Flows:
    """Sums; None once a part is not known."""

    breaking: int | None = 0
    draining: int | None = 0
    moving: float | None = 0
    why: list[str] = field(default_factory=list)
    drained: list[str] = field(default_factory=list)


def moves(before: Table, after: Table, pool: Pool) -> Moves:
    """From one table of a service to the next."""
    if any(before[key] != after[key] for key in ("vip", "protocol", "port")):
        return _over(before, pool, "its address or port is another")
    pairs, size = _pairs(before, after, pool)
    new = {row["name"]: row for row in after["backend"]}
    flows = _Flows()
    for row in before["backend"]:
        _follow(row, new.get(row["name"]), pairs, flows, udp=before["protocol"] == "udp")
    return Moves(
        sum(count for (was, now), count in pairs.items() if was != now),
        size,
        flows.breaking,
        flows.draining,
        None if flows.moving is None else round(flows.moving),
        tuple(flows.why),
        tuple(flows.drained),
    )


def deleted(before: Table, pool: Pool) -> Moves:
    """All its flows end."""
    return _over(before, pool, "the service is deleted")


def _over(before: Table, pool: Pool, why: str) -> Moves:
    size = before["slots"] or pool.slots
    counts = [row["flows"] for row in before["backend"]]
    return Moves(size, size, None if None in counts else sum(counts), why=(why,))


def _follow(row: Table, now: Table | None, pairs: Mapping[tuple[str, str], float], flows: _Flows, *, udp: bool) -> None:
    """What becomes of the flows of one backend."""
    name, count = row["name"], row["flows"]
    end = _end(row, now, udp=udp)
    if end is not None:
        flows.breaking = _add(flows.breaking, count)
        flows.why.append(f"{name} {end}")
    elif now is not None and now["state"] == "drain" and row["state"] != "drain":
        flows.draining = _add(flows.draining, count)
        flows.drained.append(name)
    else:
        own = sum(found for (was, _), found in pairs.items() if was == name)
        moved = own - pairs.get((name, name), 0)
        if moved:
            flows.moving = None if count is None or flows.moving is None else flows.moving + count * moved / own


def _end(row: Table, now: Table | None, *, udp: bool) -> str | None:
    """Why a backend's flows end; None: they do not."""
    if now is None:
        return "is removed"
    if now["address"] != row["address"]:
        return f"moves to {now['address']}"
    if now["state"] == "down" != row["state"]:
        return "goes down"
    if udp and now["state"] == "drain" != row["state"]:
        return "drains, and UDP moves at once"
    return None


def _add(total: int | None, count: int | None) -> int | None:
    return None if total is None or count is None else total + count


# --- slots -----------------------------------------------------------------------------------------------------------

#: Stands for no backend.
NOBODY = ""


def _pairs(before: Table, after: Table, pool: Pool) -> tuple[dict[tuple[str, str], float], int]:
    """(whose a slot was, whose it would be) -> how many slots, nothing if none moves; and how many there are."""
    old, new = _members(before), _members(after)
    size, later = before["slots"] or pool.slots, after["slots"] or pool.slots
    if (size, before["hash"]) != (later, after["hash"]):
        # A flow's new slot has nothing to do with its old one.
        was, now = Counter(_owners(old, size, pool.seed)), Counter(_owners(new, later, pool.seed))
        return {(one, two): was[one] * now[two] / later for one in was for two in now}, size
    if old == new:
        return {}, size
    return dict(Counter(zip(_owners(old, size, pool.seed), _owners(new, size, pool.seed), strict=True))), size


def _members(table: Table) -> list[tuple[str, int]]:
    """Backends that take new flows, as the MUX's compiler has them."""
    return sorted((row["name"], row["weight"]) for row in table["backend"] if row["state"] == "up" and row["weight"])


def _owners(members: Sequence[tuple[str, int]], size: int, seed: bytes) -> Iterator[str]:
    """The backend of each slot."""
    names = [name for name, _ in members]
    if not names:
        return iter([NOBODY] * size)
    numbers = {name: number for number, name in enumerate(names)}
    return map(names.__getitem__, build_table(seed, size, members, numbers).slots())
