# SPDX-License-Identifier: Apache-2.0
"""``lb top``: the busiest services, backends or MUXes of the whole fleet, or services of the MUX on this machine."""

from __future__ import annotations

import select
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import msgspec

from lb.cli.ask.daemon import ask, find_socket, local_options
from lb.cli.ask.manager import Manager, manager_options
from lb.cli.terminal.colour import states
from lb.cli.terminal.output import example, output_option, plural, print_json
from lb.errors import ControlError, RequestError
from lb.rows.row import Row
from lb.rows.table import listed, listing, rows_of
from lb.rows.top import TopBackend, TopLocal, TopMux, TopService
from lb.tables.values import cell, rate

Told = Mapping[str, Any]
#: What is asked again after a moment: the answer, and how it looks.
View = tuple[Any, list[str]]

BY = ("service", "backend", "mux")
SORTS = ("pps", "bps", "cps", "dropped", "flows", "name")
KEYS = "s services b backends m MUXes | p packets t bits n new d drops f flows | q quit"
_OF_KEYS = {"s": "service", "b": "backend", "m": "mux"}
_SORT_KEYS = {"p": "pps", "t": "bps", "n": "cps", "d": "dropped", "f": "flows"}
#: Rows where there is no terminal to be filled.
ROWS = 20


@click.command("top", epilog=example("lb top", "lb top --by mux --once -o json", "lb top --local"))
@click.option("--by", type=click.Choice(BY), default="service", show_default=True, help="What has a row.")
@click.option("--sort", type=click.Choice(SORTS), default="pps", show_default=True, help="What the first have most of.")
@click.option("--limit", type=click.IntRange(1, 5000), help="How many rows; as many as fit, or 20.")
@click.option("--once", is_flag=True, help="Print once, and end.")
@click.option("--interval", type=click.FloatRange(0.1, 60), default=1.0, show_default=True, help="Seconds per view.")
@local_options
@manager_options
@output_option
def command(
    *,
    by: str,
    sort: str,
    limit: int | None,
    once: bool,
    interval: float,
    local: bool,
    socket: str | None,
    config: str | None,
    manager: Manager,
    as_json: bool,
) -> None:
    """Watch packets, bits and new flows per second over all MUXes, the busiest first; or of the MUX on this machine.

    On a terminal, keys choose what is shown. -o json prints one object per view. Ends with q or Ctrl-C.
    """
    look = Look(by, sort, limit)
    if local or socket is not None or config is not None:
        if by != "service":
            raise RequestError("one MUX's own view is of services; leave --local out, or --by")
        view = _local(find_socket(socket, config, "mux"), look, interval, once)
    else:
        view = _fleet(manager, look)
    if once:
        answer, lines = view()
        print_json(answer) if as_json else click.echo("\n".join(lines))
    elif as_json or not sys.stdout.isatty():
        _follow(view, interval, as_json)
    else:
        _watch(view, look, interval, keys=not (local or socket or config))


class Look:
    """What is looked at; keys change it."""

    def __init__(self, by: str, sort: str, limit: int | None) -> None:
        self.by = by
        self.sort = sort
        self.limit = limit
        self.rows = ROWS  #: that fit
        self.ended = False

    def press(self, key: str) -> None:
        self.by = _OF_KEYS.get(key, self.by)
        self.sort = _SORT_KEYS.get(key, self.sort)
        self.ended = key in ("q", "\x03")


def _follow(view: Callable[[], View], interval: float, as_json: bool) -> None:
    """Into a file or a pipe: one view after the other."""
    while True:
        answer, lines = view()
        print_json(answer) if as_json else click.echo("\n".join([*lines, ""]))
        time.sleep(interval)


def _watch(view: Callable[[], View], look: Look, interval: float, *, keys: bool) -> None:
    from lb.cli.terminal.redraw import screen  # noqa: PLC0415

    with screen() as terminal, _keys() as pressed:
        while not look.ended:
            look.rows = max(1, terminal.height - 5)
            try:
                _, lines = view()
            except ControlError as error:  # it may come back
                lines = [f"waiting: {error}"]
            if keys:
                lines = [*lines[: terminal.height - 2], "", KEYS]
            terminal.draw(lines)
            ending = time.monotonic() + interval
            while (left := ending - time.monotonic()) > 0:
                key = pressed(left)
                if key:
                    look.press(key)
                    break


@contextmanager
def _keys() -> Iterator[Callable[[float], str]]:
    """Waits so long for a key; without a terminal to read from there is none."""
    if not sys.stdin.isatty():
        yield _no_key
        return
    import termios  # noqa: PLC0415
    import tty  # noqa: PLC0415

    number = sys.stdin.fileno()
    before = termios.tcgetattr(number)
    tty.setcbreak(number)
    try:
        yield lambda seconds: sys.stdin.read(1) if select.select([sys.stdin], [], [], seconds)[0] else ""
    finally:
        termios.tcsetattr(number, termios.TCSADRAIN, before)


def _no_key(seconds: float) -> str:
    time.sleep(seconds)
    return ""


# --- the fleet -------------------------------------------------------------------------------------------------------


def _fleet(manager: Manager, look: Look) -> Callable[[], View]:
    def view() -> View:
        answer = manager.get("top", by=look.by, sort=look.sort, limit=look.limit or look.rows)
        return answer, list(fleet_lines(answer, look.sort))

    return view


def fleet_lines(answer: Told, sort: str) -> Iterator[str]:
    """The total, then a table."""
    total, rows = answer["total"], answer["rows"]
    if total["pps"] is None:
        yield "No MUX tells its counters: none is connected, or it joined a moment ago."
    else:
        yield (
            f"All MUXes: {rate(total['pps'])} packets/s, {rate(total['bps'])} bit/s, {rate(total['cps'])} new flows/s, "
            f"{cell(total['flows'])} flows" + (f", {rate(total['dropped'])} dropped/s" if total["dropped"] else "")
        )
    noun = {"service": "service", "backend": "backend", "mux": "MUX"}[str(answer["by"])]
    yield f"{plural(answer['of'], noun)}, by {sort}"
    yield ""
    table = listing(_ROWS[answer["by"]], rows_of(_ROWS[answer["by"]], rows))
    yield from listed(table, None, states(table.table.header))


_ROWS: Mapping[str, type[Row]] = {"service": TopService, "backend": TopBackend, "mux": TopMux}


# --- one MUX ---------------------------------------------------------------------------------------------------------


def _local(path: Path, look: Look, interval: float, once: bool) -> Callable[[], View]:
    """Its counters are compared with those of the view before."""
    before = _sample(path)
    if once:
        time.sleep(interval)

    def view() -> View:
        nonlocal before
        old, before = before, _sample(path)
        rows = rates(old, before, look.sort)
        shown = rows[: look.limit or look.rows]
        return {"mux": before.mux, "services": msgspec.to_builtins(rows)}, list(local_lines(old, before, shown))

    return view


class Sample:
    """The counters of one moment."""

    def __init__(self, at: float, mux: Told, services: Sequence[Told]) -> None:
        self.at = at
        self.mux = mux
        self.services = services


#: What a service of one MUX is sorted by.
_SORTS = {"pps": "pps", "bps": "mbit", "cps": "fresh", "dropped": "dropped", "flows": "flows"}


def rates(before: Sample, after: Sample, sort: str = "pps") -> list[TopLocal]:
    """One row per service, the busiest first; a service that was not there before has no rate yet."""
    seconds = max(after.at - before.at, 1e-9)
    earlier = {row.get("name"): row for row in before.services}
    rows = []
    for row in after.services:
        old = earlier.get(row.get("name"), row)

        def per_second(key: str, row: Told = row, old: Told = old) -> float:
            # Counters of a MUX that was started again begin at 0: no rate, rather than a negative one.
            return max(0.0, ((row.get(key) or 0) - (old.get(key) or 0)) / seconds)

        rows.append(
            TopLocal(
                service=str(row.get("name")),
                vip=str(row.get("vip")),
                port=f"{row.get('port')}/{row.get('protocol')}",
                pps=round(per_second("packets")),
                mbit=round(per_second("bytes") * 8 / 1e6, 1),
                fresh=round(per_second("flows_new")),
                dropped=round(per_second("dropped")),
                flows=row.get("flows"),
                packets=row.get("packets"),
            )
        )
    if sort == "name":
        return sorted(rows, key=lambda row: row.service)
    key = _SORTS[sort]
    return sorted(rows, key=lambda row: (-(getattr(row, key) or 0), -row.pps, -(row.packets or 0), row.service))


def _sample(path: Path) -> Sample:
    data = ask(path, {"op": "top"})
    try:
        mux = data["mux"]
        services = data["services"]
        if not isinstance(mux, dict) or not all(isinstance(row, dict) for row in services):
            raise TypeError
    except (KeyError, TypeError):
        raise ControlError("the daemon's answer is not what top needs; are daemon and lb of one version?") from None
    return Sample(time.monotonic(), mux, services)


def local_lines(before: Sample, after: Sample, rows: Sequence[TopLocal]) -> Iterator[str]:
    """Two lines on the MUX, then its services."""
    mux = after.mux
    seconds = max(after.at - before.at, 1e-9)
    received = max(0, (mux.get("received") or 0) - (before.mux.get("received") or 0)) / seconds
    dropped = max(0, (mux.get("dropped") or 0) - (before.mux.get("dropped") or 0)) / seconds
    yield f"{cell(mux.get('name'))}: {cell(mux.get('state'))}, {rate(received)} packets/s in, {rate(dropped)} dropped/s"
    yield f"flows {cell(mux.get('flows'))} of {cell(mux.get('flow_capacity'))}, io {cell(mux.get('io'))}"
    if mux.get("saturated"):
        yield f"saturated: {cell(mux.get('saturated'))}"
    yield ""
    yield from listed(listing(TopLocal, rows))
