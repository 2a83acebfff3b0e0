# SPDX-License-Identifier: Apache-2.0
"""Names for the shell's Tab key: of services, backends, MUXes and agents, as the manager knows them.

A shell asks while somebody waits with a finger on the key: what the manager does not answer at once, or not at all, is
nothing, and never an error. What there is beside names (commands, options, choices) click knows by itself.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Mapping

import click
import msgspec
from click.shell_completion import CompletionItem

from lb.cli.ask.manager import LOCAL_FILE, Manager, local_manager
from lb.errors import VipmuxError

#: How long one waits for the manager, seconds.
PATIENCE = 2.0
#: Backends are named where their services are no more than these; else the services come first.
SERVICES = 20


class _Named(msgspec.Struct):
    """What of a row is looked at."""

    name: str


Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]
Names = Callable[[Manager, str], Iterable[str]]


def services(manager: Manager, begun: str) -> Iterable[str]:
    return [row.name for row in manager.rows(_Named, "services")]


def backends(manager: Manager, begun: str) -> Iterable[str]:
    """As "web/web-1"."""
    service, slash, _ = begun.partition("/")
    some = [service] if slash else [name for name in services(manager, begun) if name.startswith(begun)]
    if len(some) > SERVICES:
        return [f"{name}/" for name in some]
    rows = manager.get("backends", service=some) if some else ()
    return [f"{row['service']}/{row['name']}" for row in rows]


def muxes(manager: Manager, begun: str) -> Iterable[str]:
    return [row.name for row in manager.rows(_Named, "muxes")]


def agents(manager: Manager, begun: str) -> Iterable[str]:
    return [row.name for row in manager.rows(_Named, "agents")]


_KINDS: dict[str, Names] = {"service": services, "backend": backends, "mux": muxes, "agent": agents}
_KINDS |= {"services": services, "backends": backends, "muxes": muxes, "agents": agents}


def of(names: Names) -> Complete:
    """Of this kind alone."""
    return lambda context, parameter, begun: _offered(context, names, begun)


def by_kind(kind: str) -> Complete:
    """Names of what the argument ``kind`` says."""

    def complete(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
        names = _KINDS.get(str(context.params.get(kind)))
        return [] if names is None else _offered(context, names, begun)

    return complete


def by_words(words: Mapping[str, Names], without: Names | None = None) -> Complete:
    """One of these words, and the names that may stand behind it; or a name of ``without``, which needs no word."""

    def complete(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
        before = context.params.get(parameter.name or "") or ()
        names = without if not before else words.get(before[0]) if len(before) == 1 else None
        first = _beginning(words, begun) if not before else []
        return [*map(CompletionItem, first), *(_offered(context, names, begun) if names is not None else [])]

    return complete


def _offered(context: click.Context, names: Names, begun: str) -> list[CompletionItem]:
    """What of them begins so, if the manager tells."""
    with contextlib.suppress(VipmuxError, LookupError, TypeError):
        return [CompletionItem(name) for name in _beginning(names(_manager(context), begun), begun)]
    return []


def _beginning(words: Iterable[str], begun: str) -> list[str]:
    return [word for word in words if word.startswith(begun)]


def _manager(context: click.Context) -> Manager:
    """The one that the command line names so far; see :func:`lb.cli.ask.manager.manager_options`."""
    url, cert, key, ca = (context.params.get(name) for name in ("url", "cert", "key", "ca"))
    return Manager(
        url or local_manager(LOCAL_FILE), cert, key, ca, os.environ.get("LB_TOKEN") or None, patience=PATIENCE
    )
