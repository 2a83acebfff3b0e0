# SPDX-License-Identifier: Apache-2.0
"""``lb get``: services, backends, nodes and so on, as the manager knows them, or the daemon on this machine."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import click
import msgspec

from lb.cli.ask.daemon import ask, find_socket, local_options
from lb.cli.ask.manager import Manager, manager_options
from lb.cli.options.completion import by_kind, of
from lb.cli.options.completion import services as service_names
from lb.cli.tables.row_filter import JUDGED, NAMED, SINGULAR, by_name
from lb.cli.tables.row_tables import DRAWN, STATS
from lb.cli.tables.row_tables import TABLES as ROWS
from lb.cli.tables.row_tables import draw as draw_rows
from lb.cli.terminal.output import console, example, output_option, print_json, table
from lb.cli.terminal.times import lasting, parse_duration, terminal_width
from lb.errors import ControlError, RequestError
from lb.rows.table import rows_of
from lb.tables.layout import hanging
from lb.tables.values import cell, size

#: What can be asked -> (columns of the table, those that hold numbers).
TABLES: dict[str, tuple[tuple[str, ...], frozenset[str]]] = {
    "services": (
        ("name", "vip", "port", "backends", "packets", "bytes", "flows_new", "flows"),
        frozenset({"backends", "packets", "bytes", "flows_new", "flows"}),
    ),
    "backends": (
        ("service", "name", "address", "port", "weight", "state", "flows", "packets"),
        frozenset({"weight", "flows", "packets"}),
    ),
    "announcements": (("vip", "peer", "state", "med", "prepend", "communities", "why"), frozenset({"med", "prepend"})),
    "peers": (
        ("name", "address", "asn", "kind", "state", "seconds", "announced", "error"),
        frozenset({"seconds", "announced"}),
    ),
}
#: Asked of an agent, not of a MUX.
_OF_AGENT = ("agents",)
#: One row each, so shown as a list of keys and values.
_SINGLE = ("muxes", "agents", "status")


#: Of so many services a terminal shows tables, unless told: nobody reads more, and all take a second.
SHOWN = 1000

WHAT = ("services", "backends", "muxes", "agents", "announcements", "peers", "status", "events", "history", "audit")
#: Asked of the manager alone, and of a daemon alone.
_OF_MANAGER = ("events", "history", "audit")
_OF_DAEMON = ("peers",)


@click.command(
    "get",
    epilog=example(
        "lb get services",
        "lb get backends web/web-1",
        "lb get services --problems",
        "lb get muxes --local",
        "lb get events --bad --since 2h",
        "lb get backends -w",
    ),
)
@click.argument("what", type=click.Choice([*WHAT, *SINGULAR]), metavar="WHAT")
@click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=by_kind("what"))
@click.option("-w", "--watch", "follow", is_flag=True, help="Go on showing what changes, until Ctrl-C.")
@click.option(
    "--service",
    "services",
    multiple=True,
    metavar="NAME",
    help="For services and backends: only those of this service.",
    shell_complete=of(service_names),
)
@click.option("--stats", is_flag=True, help="For services and backends: exact counters, in wide tables.")
@click.option(
    "--limit",
    type=click.IntRange(1, 32767),
    help="The last so many events, 100 if not given, or lines of history and audit; services and backends of the first "
    f"so many services, on a terminal {SHOWN:,} if not given.",
)
@click.option("--subject", metavar="TEXT", help='Only events of this, such as "backend web/web-1", "web" or "mux".')
@click.option("--since", metavar="TIME", help="Only events of the last 90s, 10m or 2h.")
@click.option("--bad", is_flag=True, help="Only events that are bad news.")
@click.option("--problems", is_flag=True, help="Only what is not as it should be.")
@local_options
@manager_options
@output_option
def command(
    *,
    what: str,
    names: tuple[str, ...],
    follow: bool,
    services: tuple[str, ...],
    stats: bool,
    limit: int | None,
    subject: str | None,
    since: str | None,
    bad: bool,
    problems: bool,
    local: bool,
    socket: str | None,
    config: str | None,
    manager: Manager,
    as_json: bool,
) -> None:
    """Show WHAT the manager knows: services, backends, muxes, agents, announcements, events, history, audit or status.

    Or what the daemon on this machine knows (--local): services, backends, muxes, agents, announcements, peers, status.
    Services, backends, muxes and agents can be named: `lb get service web`, `lb get backend web/web-1`.
    """
    what = SINGULAR.get(what, what)
    if problems and what == "events":
        problems, bad = False, True
    _may_choose(what, names, services, problems=problems, follow=follow)
    if what in ("services", "backends"):
        services = (*services, *(name.partition("/")[0] if what == "backends" else name for name in names))
    query = _query(what, services, subject, since, bad=bad)
    if local or socket is not None or config is not None:
        if follow or stats or query or names or problems:
            raise RequestError("a daemon shows all it has, once: leave --local out, or -w and what is to be chosen")
        _ask_daemon(what, socket, config, as_json=as_json)
        return
    if what in _OF_DAEMON:
        raise RequestError(f"only a MUX knows its {what}: add --local; `lb get muxes` tells of all sessions")
    if stats and what not in STATS:
        raise RequestError(f"--stats is of services and backends, not of {what}")
    if follow:
        _follow(manager, what, limit, query, _draw_of(what, stats=stats), as_json=as_json)
    elif problems or (names and what != "services"):
        _show_chosen(manager, what, query, names, stats=stats, problems=problems, limit=limit, as_json=as_json)
    else:
        _show(manager, what, query, stats=stats, limit=limit, as_json=as_json)


def _ask_daemon(what: str, socket: str | None, config: str | None, *, as_json: bool) -> None:
    if what in _OF_MANAGER:
        raise RequestError(f"only the manager knows {what}; leave --local out")
    path = find_socket(socket, config, "agent" if what in _OF_AGENT else "mux")
    _show_local(what, ask(path, {"op": "get", "what": what}), as_json)


def _show(manager: Manager, what: str, query: dict[str, Any], *, stats: bool, limit: int | None, as_json: bool) -> None:
    """What the manager chooses."""
    first = SHOWN if what in STATS and limit is None and not query and not as_json and sys.stdout.isatty() else None
    if limit or first:
        query["limit"] = limit or first
    # The audit's lines hold all that was changed; a table shows less, and of ten thousand services far less.
    if what == "audit" and not as_json:
        query["change"] = "false"
    asked = what
    if as_json:
        click.echo(manager.raw(asked, **query))
    elif what == "status":
        data = manager.get(asked)
        shown = {key: value for key, value in data.items() if key not in ("now", "refusals")}  # those are for lb doctor
        shown["held"] = ", ".join(row["service"] for row in shown.get("held") or ()) or None
        shown["history"] = (shown.get("history") or {}).get("why")
        shown["confirm"] = _unconfirmed(shown.get("confirm"), data["now"])
        _show_keys([{key: str(value) if isinstance(value, int) else value for key, value in shown.items()}])
    else:
        text = _drawn(manager, asked, query, stats=stats)
        click.echo(text)
        if first and (text.count("\n") >= first or what == "backends"):  # a service may well have none
            _tell_more(manager.get("status")["services"], first)


def _may_choose(what: str, names: tuple[str, ...], services: tuple[str, ...], *, problems: bool, follow: bool) -> None:
    """Raises RequestError where the table has no names, or none that are amiss."""
    if names and what not in NAMED:
        raise RequestError(f"{', '.join(NAMED)} have names; {what} are chosen by options, see `lb get --help`")
    if names and services:
        raise RequestError("give either names, or --service")
    if problems and what not in JUDGED:
        raise RequestError(f"--problems is of {', '.join(JUDGED)} and events, not of {what}")
    if follow and (problems or (names and what != "services")):
        raise RequestError("-w follows a whole table, or services: leave --problems and the names out")


def _show_chosen(
    manager: Manager,
    what: str,
    query: dict[str, Any],
    names: tuple[str, ...],
    *,
    stats: bool,
    problems: bool,
    limit: int | None,
    as_json: bool,
) -> None:
    """Rows that are chosen here, for the manager does not."""
    rows = every = manager.rows(ROWS[what], what, **query)
    rows = by_name(what, rows, names) if names else rows
    rows = [row for row in rows if row.amiss] if problems else rows
    if as_json:
        click.echo(msgspec.json.encode(rows[:limit]))
    elif problems and not rows:
        click.echo(f"nothing is amiss with {len(every):,} {what}")
    else:
        click.echo("\n".join(draw_rows(what, rows[:limit], terminal_width(), stats=stats)))


def _drawn(manager: Manager, what: str, query: dict[str, Any], *, stats: bool) -> str:
    """A table. Of tens of thousands of lines the manager draws them, where they may be wide."""
    width = terminal_width()
    if width is None and what in DRAWN and not stats:
        return manager.page(what, **query)
    return "\n".join(draw_rows(what, manager.rows(ROWS[what], what, **query), width, stats=stats))


def _tell_more(services: int, shown: int) -> None:
    if services > shown:
        click.echo(f"… {services - shown:,} more services; --limit {services} shows all, --service NAME one of them")


def _draw_of(what: str, *, stats: bool) -> Callable[[Sequence[dict[str, Any]]], list[str]]:
    if what == "status":
        return _status_lines
    return lambda rows: draw_rows(what, rows_of(ROWS[what], rows), terminal_width(), stats=stats)


def _status_lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    lines = [f"{key:<12}{cell(value)}" for row in rows for key, value in row.items()]
    return hanging(lines, terminal_width(), 12)


def _query(
    what: str, services: tuple[str, ...], subject: str | None, since: str | None, *, bad: bool
) -> dict[str, Any]:
    """What is chosen of a table, as the manager is asked for it."""
    if services and what not in ("services", "backends"):
        raise RequestError(f"--service chooses services and backends, not {what}")
    if (subject is not None or since is not None or bad) and what != "events":
        raise RequestError(f"--subject, --since and --bad choose events, not {what}")
    query: dict[str, Any] = {"service": list(services)} if services else {}
    if subject is not None:
        query["subject"] = subject
    if since is not None:
        query["since"] = round(time.time() - parse_duration(since), 3)
    if bad:
        query["bad"] = "true"
    return query


def _follow(
    manager: Manager,
    what: str,
    limit: int | None,
    query: dict[str, Any],
    draw: Callable[[Sequence[dict[str, Any]]], list[str]],
    *,
    as_json: bool,
) -> None:
    from lb.cli.tables import watch_table  # noqa: PLC0415

    if what == "events":
        watch_table.events(manager, limit or 100, query, draw, as_json=as_json)
    elif what == "audit":
        raise RequestError("the audit's lines are those of history: `lb get history -w` shows them as they come")
    else:
        watch_table.run(manager, what, query, draw, as_json=as_json)


def _unconfirmed(waiting: dict[str, Any] | None, now: float) -> str | None:
    """The change that is taken back unless it is confirmed, in words; ``now`` by the manager's clock, as its end is."""
    if waiting is None:
        return None
    left = lasting(max(0, round(waiting["until"] - now)))
    return f"version {waiting['version']} of {waiting['who']} is rolled back in {left}; `lb confirm` keeps it"


def _show_local(what: str, data: Any, as_json: bool) -> None:
    if as_json:
        print_json(data)
        return
    rows = data if isinstance(data, list) else [data]
    if not all(isinstance(row, dict) for row in rows):
        raise ControlError("the daemon's answer is not a table; are daemon and lb of one version?")
    if what in _SINGLE:
        _show_keys([{key: value for key, value in row.items() if key != "kernel"} for row in rows])
        return
    columns, numbers = TABLES[what]
    probed = [row for row in rows if "health" in row]
    columns = (*columns, "health") if probed else columns
    console().print(table(columns, [_short(row) for row in rows], numbers))
    for row in probed:  # a reason is a sentence, too long for a column
        if row["health"] != "up":
            click.echo(f"{row.get('service')}/{row.get('name')} is {row['health']}: {row.get('reason')}")


def _short(row: dict[str, Any]) -> dict[str, Any]:
    """A row as it fits a terminal; JSON has it all, and exactly."""
    shown = dict(row)
    for key in ("asn", "port"):  # numbers of no quantity
        if isinstance(row.get(key), int):
            shown[key] = str(row[key])
    if "protocol" in row:
        shown["port"] = f"{row.get('port')}/{row['protocol']}"
    if isinstance(row.get("bytes"), int):
        shown["bytes"] = size(row["bytes"])
    return shown


def _show_keys(rows: list[dict[str, Any]]) -> None:
    for i, row in enumerate(rows):
        if i:
            click.echo()
        width = max((len(key) for key in row), default=0) + 2
        for key, value in row.items():
            for line in hanging([f"{key.replace('_', ' '):<{width}}{cell(value)}"], terminal_width(), width):
                click.echo(line)
