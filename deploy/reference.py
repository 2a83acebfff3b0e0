# SPDX-License-Identifier: Apache-2.0
"""``make docs``: docs/reference.md, every key of every configuration file, made of the models themselves.

What a key means is said beside it in :mod:`lb.config.tables`. What its value must be is what its own check says of
a wrong one. Its default is that of the value in :mod:`lb.model`. So the page cannot say anything else than the program
does; ``tests/deploy/test_reference.py`` sees to it that the page is current.
"""

from __future__ import annotations

import enum
import sys
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, NamedTuple

from lb import model
from lb.config import tables

PAGE = Path(__file__).resolve().parent.parent / "docs" / "reference.md"

#: No key takes the first; one that takes any text refuses the second.
WRONG = ("\t", "")
#: An address of one family, for who takes the other alone.
FAMILIES = ("2001:db8::1", "192.0.2.1")
#: Four is no prime.
NO_PRIME = 4

HEAD = """# Configuration reference

<!-- Made by "make docs" from the models that read the files; edit their texts, not this page. -->

Every key of every file. Files are TOML; an unknown key is a mistake. `lb check FILE` reports every mistake at once, each with
its path, such as `service[2].backend[0].weight`. Annotated examples are in `deploy/`: [mux.toml](../deploy/mux.toml),
[agent.toml](../deploy/agent.toml), [manager.toml](../deploy/manager.toml), [services.toml](../deploy/services.toml).

| file | tables |
| --- | --- |
| of a MUX | [`[mux]`](#mux), [`[mux.idle]`](#muxidle), [`[bgp]`](#bgp), [`[[bgp.peer]]`](#bgppeer), and [`[manager]` of a node](#manager-of-a-node) or services |
| of a host agent | [`[agent]`](#agent), and [`[manager]` of a node](#manager-of-a-node) or services |
| of the manager | [`[manager]`](#manager) |
| of services, for `lb apply` | [`[[service]]`](#service), [`[[service.backend]]`](#servicebackend), [`[service.probe]`](#serviceprobe), [`[service.announce]`](#serviceannounce) |

A file has at most {services:,} services, and a service at most {backends:,} backends.
"""  # noqa: E501  rows of a table


class Section(NamedTuple):
    """A table of a file, and where its defaults are."""

    title: str
    table: type[tables.TomlTable]
    values: type[Any] | None
    about: str


SECTIONS = (
    Section("[mux]", tables.MuxTable, model.MuxSettings, "How this MUX works."),
    Section("[mux.idle]", tables.IdleTable, model.Idle, "When a MUX forgets a flow."),
    Section("[bgp]", tables.BgpTable, model.BgpSettings, "Optional: have `lb-mux` announce VIPs. See [BGP](bgp.md)."),
    Section("[[bgp.peer]]", tables.PeerTable, model.BgpPeer, "One for each router."),
    Section("[agent]", tables.AgentTable, model.AgentSettings, "How this host's agent works."),
    Section(
        "[manager] of a node", tables.FollowTable, None, "In the file of a MUX or an agent: services come from there."
    ),
    Section("[manager]", tables.ManagerTable, model.ManagerSettings, "All of a manager's file."),
    Section("[[service]]", tables.ServiceTable, model.Service, "One for each service."),
    Section("[[service.backend]]", tables.BackendTable, model.Backend, "One for each backend of the service above."),
    Section("[service.probe]", tables.ProbeTable, model.Probe, "See [health probes](health.md)."),
    Section("[[service.quic]]", tables.QuicTable, model.QuicIds, "See [the life of a flow](flow.md#quic)."),
    Section("[service.announce]", tables.AnnounceTable, model.Announce, "See [BGP](bgp.md)."),
)


def page() -> str:
    """The whole page."""
    head = HEAD.format(services=model.MAX_SERVICES, backends=model.MAX_BACKENDS_PER_SERVICE)
    return head + "".join("".join(_section(section)) for section in SECTIONS)


def _section(section: Section) -> Iterator[str]:
    defaults = {} if section.values is None else {item.name: item for item in fields(section.values)}
    title = section.title if " of " in section.title else f"`{section.title}`"
    yield f"\n## {title}\n\n{section.about}\n\n| key | value | default | meaning |\n| --- | --- | --- | --- |\n"
    for name, key in section.table.KEYS.items():
        if name in section.table.REQUIRED:
            default = "required"
        else:
            known = defaults.get(name)
            default = "" if known is None or known.default is MISSING else _shown(known.default)
        cells = (f"`{name}`", must_be(key.check), default, key.meaning)
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n"


def must_be(check: Callable[[object], Any] | None) -> str:
    """What the key's own check says that a value must be; a table has none."""
    if check is None:
        return "a table"
    text = next(said for wrong in WRONG if (said := _complaint(check, wrong)) is not None)
    if text == "an IP address":
        text = next((said for wrong in FAMILIES if (said := _complaint(check, wrong)) is not None), text)
    if (_complaint(check, NO_PRIME) or "").startswith("a prime"):
        text = text.replace("a whole number", "a prime number")
    return text


def _complaint(check: Any, wrong: object) -> str | None:
    """Without what the value is instead; None: it is right."""
    try:
        check(wrong)
    except ValueError as error:
        return str(error).partition(", not ")[0].removeprefix("must be ")
    return None


def _shown(value: object) -> str:  # noqa: PLR0911  one way for each type
    """As it would stand in the file; nothing where the meaning says what happens without."""
    if value is None or value == () or isinstance(value, model.Idle):
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, enum.Enum):
        return f'`"{value.value}"`'
    if isinstance(value, tuple):  # of HTTP's statuses
        return f'`"{value[0]}-{value[1]}"`'
    if isinstance(value, float):
        return f"`{value:_.0f}`" if value >= 10_000 else f"`{value:g}`"
    if isinstance(value, int):
        return f"`{value:_}`" if value >= 1_000_000 else f"`{value}`"
    return f'`"{value}"`'


if __name__ == "__main__":
    PAGE.write_text(page())
    sys.stdout.write(f"{PAGE}\n")
