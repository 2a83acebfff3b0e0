# SPDX-License-Identifier: Apache-2.0
"""``lb drain --wait``: asks the manager again and again until nothing is left of what drains, or time is over.

On a terminal one line says how far it is; elsewhere each change is a line of its own. A manager that is away for a
while, as for an upgrade, only makes it wait longer.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import click

from lb.cli.ask.manager import Manager
from lb.cli.terminal.output import plural
from lb.cli.terminal.times import lasting
from lb.errors import ControlError, NotFoundError, RequestError
from lb.tables.values import cell

Row = dict[str, Any]

#: Between two questions, seconds.
INTERVAL = 1.0
#: For so many seconds no packet must have come before a MUX counts as empty.
QUIET = 3.0
#: The manager's word for a MUX that may go now; else it says why it must wait.
TOLD = "told to drain"


class ProgressLine:
    """Where it is said how far things are."""

    def __init__(self, *, silent: bool = False) -> None:
        self._silent = silent
        self._terminal = sys.stdout.isatty()
        self._said = ""

    def say(self, text: str) -> None:
        if self._silent or text == self._said:
            return
        click.echo(f"\r\x1b[K{text}" if self._terminal else text, nl=not self._terminal)
        self._said = text

    def end(self) -> None:
        if self._terminal and self._said and not self._silent:
            click.echo()


@dataclass(slots=True)
class Wait:
    """One wait; time is given, so that a test needs none."""

    manager: Manager
    timeout: float
    line: ProgressLine
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    began: float = field(init=False)

    def __post_init__(self) -> None:
        self.began = self.clock()

    def until(
        self, ask: Callable[[], Row], say: Callable[[Row], str], done: Callable[[Row], bool]
    ) -> tuple[Row | None, bool]:
        """The last answer, and whether it was the one waited for."""
        answer: Row | None = None
        while True:
            try:
                answer = ask()
            except ControlError as error:
                self.line.say(f"waiting for the manager: {error}")
            else:
                self.line.say(say(answer))
                if done(answer):
                    self.line.end()
                    return answer, True
            left = self.began + self.timeout - self.clock()
            if left <= 0:
                self.line.end()
                return answer, False
            self.sleep(min(INTERVAL, left))


# --- a backend -------------------------------------------------------------------------------------------------------


def backend(wait: Wait, service: str, name: str) -> tuple[Row, str | None]:
    """What is left at the end, and a sentence if that is not nothing."""
    answer, done = wait.until(
        lambda: wait.manager.get("backends", service, name),
        backend_words,
        lambda row: row.get("empty_since") is not None,
    )
    left = answer.get("left", []) if answer is not None else []
    row = {"flows": sum(item["flows"] or 0 for item in left), "left": left, "done": done}
    if done:
        return row, None
    if answer is None:
        return row, f"the manager did not answer within {lasting(wait.timeout)}"
    return row, f"after {lasting(wait.timeout)} {backend_words(answer)}"


def backend_words(row: Row) -> str:
    """``web/web-1 drains: 12 flows left (mux1 9, mux2 3)``."""
    label = f"{cell(row['service'])}/{cell(row['name'])}"
    if row["state"] != "drain":
        raise RequestError(f"{label} does not drain any more; somebody took the drain back")
    if row.get("empty_since") is not None:
        return f"{label} is drained: no flow is left"
    told = [item for item in row["left"] if item["flows"] is not None]
    silent = [f"{cell(item['mux'])}: {cell(item['why'])}" for item in row["left"] if item["flows"] is None]
    where = ", ".join(f"{cell(item['mux'])} {item['flows']:,}" for item in told if item["flows"])
    text = f"{label} drains: {plural(sum(item['flows'] for item in told), 'flow')} left" + (
        f" ({where})" if where else ""
    )
    if not row["left"]:
        return f"{label} drains: no MUX is there to tell what is left"
    return "; ".join([text if told else f"{label} drains", *silent])


# --- a host ----------------------------------------------------------------------------------------------------------


def host(wait: Wait, name: str, labels: list[str]) -> tuple[Row, str | None]:
    """As of a backend, of all that drain there; ``labels``: as "web/web-1"."""
    wanted = set(labels)
    services: list[str] = []  # known once all were asked for: a label alone does not tell where its names end

    def ask() -> Row:
        rows = wait.manager.get("backends", **({"service": services} if services else {}))
        found = [row for row in rows if _label(row) in wanted]
        services[:] = sorted({row["service"] for row in found})
        return {"rows": found}

    answer, done = wait.until(
        ask, lambda found: _host_words(name, found["rows"]), lambda found: not any(map(_has_flows, found["rows"]))
    )
    left = [
        {"service": row["service"], "backend": row["name"], "flows": row["flows"]}
        for row in (answer or {"rows": []})["rows"]
        if _has_flows(row)
    ]
    row = {"flows": sum(item["flows"] or 0 for item in left), "left": left, "done": done}
    if done:
        return row, None
    if answer is None:
        return row, f"the manager did not answer within {lasting(wait.timeout)}"
    return row, f"after {lasting(wait.timeout)} {_host_words(name, answer['rows'])}"


def _label(row: Row) -> str:
    return f"{row['service']}/{row['name']}"


def _has_flows(row: Row) -> bool:
    """Whether it drains still; one that is down is not waited for."""
    return row["state"] == "drain" and row.get("empty_since") is None


def _host_words(name: str, rows: list[Row]) -> str:
    back = next((row for row in rows if row["state"] not in ("drain", "down")), None)
    if back is not None:
        raise RequestError(f"{cell(_label(back))} does not drain any more; somebody took the drain back")
    left = [row for row in rows if _has_flows(row)]
    if not left:
        return f"host {cell(name)} is drained: no flow is left"
    some = [f"{cell(_label(row))} {row['flows'] or 0:,}" for row in sorted(left, key=lambda row: -(row["flows"] or 0))]
    more = f" and {len(some) - 4:,} more" if len(some) > 4 else ""
    where = f"({', '.join(some[:4])}{more})"
    return f"host {cell(name)} drains: {len(left)} of {plural(len(rows), 'backend')} not empty yet {where}"


# --- a MUX -----------------------------------------------------------------------------------------------------------


class MuxWatch:
    """Sees whether packets still come to a MUX."""

    def __init__(self, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._name = name
        self._clock = clock
        self._forwarded: int | None = None
        self._since = clock()

    def find(self, rows: list[Row]) -> Row:
        row = next((row for row in rows if row.get("name") == self._name), None)
        if row is None:
            raise NotFoundError(f'there is no MUX "{self._name}" any more')
        if row.get("forwarded") != self._forwarded:
            self._forwarded, self._since = row.get("forwarded"), self._clock()
        return row

    @property
    def quiet(self) -> float:
        """For how long no packet was forwarded, seconds."""
        return self._clock() - self._since

    def done(self, row: Row) -> bool:
        withdrawn = row.get("announced") == 0 or row["state"] in ("away", "gone")
        return row.get("drain") == TOLD and withdrawn and self.quiet >= QUIET

    def words(self, row: Row) -> str:
        name = cell(row["name"])
        if row.get("drain") is None:
            raise RequestError(f"{name} does not drain any more; somebody took the drain back")
        if row["drain"] != TOLD:
            return f"{name} {cell(row['drain'])}"
        announced = row.get("announced")
        if row["state"] in ("away", "gone"):
            what = "is not connected"
        elif announced is None:
            what = "drains; it has not reported yet what it announces"
        elif announced:
            what = f"drains; {plural(announced, 'VIP')} announced still"
        else:
            what = (
                "is withdrawn; no packet comes any more" if self.quiet >= QUIET else "is withdrawn; packets still come"
            )
        told = f"; {cell(row['handover'])}" if row.get("handover") else ""
        return f"{name} {what}{told}"


def mux(wait: Wait, name: str) -> tuple[Row, str | None]:
    """The MUX's row at the end, and a sentence if it is not empty."""
    watch = MuxWatch(name, wait.clock)
    answer, done = wait.until(lambda: watch.find(wait.manager.get("muxes")), watch.words, watch.done)
    row = {**(answer or {}), "done": done}
    if done:
        return row, None
    if answer is None:
        return row, f"the manager did not answer within {lasting(wait.timeout)}"
    return row, f"after {lasting(wait.timeout)} {watch.words(answer)}"
