# SPDX-License-Identifier: Apache-2.0
"""The desired state as the store has it: all of it where today's rules take it, and as much as can be where not. Pure.

What was written by another version, or by one whose rules were less strict, must not keep a manager from starting. So
a service that cannot be read as it stands is read without what is wrong in it (a key of a newer version, say), and is
served so; what is left unreadable is set aside. Both are *held*: they are shown with the reason, the store keeps them
word for word, and nothing about them is changed until somebody applies or deletes them whole, which is the mend. What
is fine by itself and not beside the others, such as two services that tie by a stricter rule, is served as it was.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TypeVar

from lb.errors import ConfigError
from lb.model import Service
from manager.desired.salvage import salvaged
from manager.desired.state import Desired, Order, Pending, assembled, from_entries
from manager.store.interface import Entries, StoreError

T = TypeVar("T", Order, Pending)


@dataclass(frozen=True, slots=True)
class HeldService:
    """A service that the store has, and that today's rules do not take as it stands."""

    why: str
    served: bool  #: without what is wrong in it


@dataclass(frozen=True, slots=True)
class Read:
    """What was read."""

    desired: Desired
    held: Mapping[str, HeldService] = field(default_factory=dict)  #: by the service's name


def read(version: int, entries: Entries, file: str = "the store") -> Read:
    """Raises StoreError for what is no desired state at all; ``file`` names it."""
    with contextlib.suppress(ConfigError, KeyError, TypeError, AttributeError, ValueError):
        return Read(from_entries(version, entries))
    try:
        return _read_apart(version, entries)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise StoreError(f"{file} holds no desired state ({reason}); restore it from a backup") from None


def _read_apart(version: int, entries: Entries) -> Read:
    services: dict[str, Service] = {}
    held: dict[str, HeldService] = {}
    for name, table in entries.get("services", {}).items():
        service, wrong = salvaged(table)
        if service is not None and service.name == name:
            services[name] = service
        elif service is not None:
            wrong = [f"it calls itself {service.name!r}"]
        if wrong:
            held[name] = HeldService("; ".join(wrong[:5]), name in services)
    retiring = {}
    for key, table in entries.get("retiring", {}).items():
        service, _ = salvaged(table)
        if service is not None:
            retiring[key] = service
    rest = Desired(
        version,
        drains=_records(Order, entries.get("drains")),
        mux_drains=_records(Order, entries.get("mux_drains")),
        pending=_records(Pending, entries.get("pending")),
    )
    return Read(assembled(rest, services, retiring), held)


def _records(kind: type[T], values: object) -> dict[str, T]:
    """Without keys of a newer version, and without what is none."""
    known = {item.name for item in fields(kind)}
    found = {}
    for key, value in values.items() if isinstance(values, Mapping) else ():
        try:
            found[key] = kind(**{name: one for name, one in value.items() if name in known})
        except (TypeError, AttributeError):
            continue
    return found
