# SPDX-License-Identifier: Apache-2.0
"""What the commands that change the desired state share: their options, the request, and what is printed of the answer.

Used by ``lb apply``, ``rollback`` and ``confirm``; ``drain``, ``undrain`` and ``delete`` print with :func:`show`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from lb.cli.terminal.colour import ATTENTION, BAD, painted
from lb.cli.terminal.output import plural, print_json
from lb.cli.terminal.times import lasting, parse_duration
from lb.tables.values import cell

F = TypeVar("F", bound=Callable[..., Any])

#: Lines that somebody should look at, by how they begin.
_MARKED = {"warning: ": ATTENTION, "not live on ": BAD}
#: Of ``--wait`` with no number behind it, seconds.
WAIT = 30.0


@dataclass(frozen=True, slots=True)
class ChangeOptions:
    """How a change is to be made."""

    dry_run: bool
    wait: float
    confirm: str | None
    why: str

    def body(self) -> dict[str, Any]:
        """For the request."""
        confirm = {"confirm": parse_duration(self.confirm)} if self.confirm is not None else {}
        return {"dry_run": self.dry_run, "wait": self.wait, "why": self.why, **confirm}


def why_option(function: F) -> F:
    """``-m "why"``; the command gets ``why``."""
    return click.option("-m", "--message", "why", default="", metavar="TEXT", help="Why; kept in the audit.")(function)


def terms_options(function: F) -> F:
    """``--dry-run``, ``--wait``, ``--confirm`` and ``-m``; the command gets ``terms``."""
    import functools  # noqa: PLC0415

    @functools.wraps(function)
    def command(*arguments: Any, dry_run: bool, wait: float, confirm: str | None, why: str, **others: Any) -> Any:
        return function(*arguments, terms=ChangeOptions(dry_run, wait, confirm, why), **others)

    wrapped: Any = why_option(command)
    for option in (
        click.option(
            "--confirm",
            metavar="TIME",
            help="Roll it back after this time, such as 60s, unless `lb confirm` comes before.",
        ),
        click.option(
            "--wait",
            type=click.FloatRange(0, 300),
            default=0.0,
            is_flag=False,
            flag_value=WAIT,
            metavar="[SECONDS]",
            help=f"Until every MUX has it, and VIPs are announced where that can be; {WAIT:g} s unless given.",
        ),
        click.option("--dry-run", is_flag=True, help="Only tell what would change."),
    ):
        wrapped = option(wrapped)
    return wrapped  # type: ignore[no-any-return]


def finish(answer: dict[str, Any], *, as_json: bool) -> int:
    """Prints, and returns the exit code: a node that did not follow is bad news, and so is a VIP that no MUX announces
    though there are some."""
    print_json(answer) if as_json else show(answer)
    return 1 if answer.get("behind") or any(row.get("silent") for row in answer.get("announced") or ()) else 0


def show(answer: dict[str, Any]) -> None:
    """A line for each thing that changed."""
    for line in lines(answer):
        click.echo(marked(line))


def marked(line: str) -> str:
    """In its colour, where it has one and there are any."""
    (found,) = painted([line], next((colour for word, colour in _MARKED.items() if line.startswith(word)), None))
    return found


def describe(line: dict[str, Any], *, would: bool) -> str:
    """``service web changed: weight of web-2 1 → 3``."""
    details = f": {', '.join(cell(text) for text in line['details'])}" if line["details"] else ""
    return f"{cell(line['name'])} {'would be ' if would else ''}{line['action']}{details}"


def lines(answer: dict[str, Any]) -> Iterable[str]:
    for line in answer["lines"]:
        if line["action"] != "unchanged":
            yield describe(line, would=answer["dry_run"])
    if answer["unchanged"] == 1:
        yield from (f"{cell(line['name'])} unchanged" for line in answer["lines"] if line["action"] == "unchanged")
    elif answer["unchanged"]:
        yield f"{answer['unchanged']:,} unchanged"
    elif not answer["lines"]:
        yield "nothing to change"
    if answer["changed"] and not answer["dry_run"]:
        title = f": {cell(answer['title'])}" if answer.get("title") else ""
        yield f"version {answer['version']}{title}"
    for row in (answer.get("left") or ()) if answer["dry_run"] or answer.get("title") else ():
        flows = "an unknown number of" if row["flows"] is None else f"{row['flows']:,}"
        go_on = f"new flows go to {row['takes_flows']} of {plural(row['backends'], 'backend')}"
        yield f"service {cell(row['service'])}: {go_on}; {flows} live flow{'s' * (row['flows'] != 1)} on the drained"
    for warning in answer.get("warnings") or ():
        yield f"warning: {cell(warning)}"
    yield from _waited(answer)
    if answer.get("confirm"):
        yield f"rolled back in {lasting(answer['confirm'])}, unless you keep it: lb confirm {answer['version']}"


def _waited(answer: dict[str, Any]) -> Iterable[str]:
    if "behind" not in answer:
        return
    why = answer.get("why", {})
    for node in answer["behind"]:
        yield f"not live on {cell(node)}: {cell(why.get(node, 'it did not follow in time'))}"
    if not answer["behind"]:
        yield "live on every node"
    for row in answer.get("announced") or ():
        vips = ", ".join(map(cell, row["vips"])) + (f" and {row['count'] - 3:,} more" if row["count"] > 3 else "")
        of = f"{len(row['announced_by'])} of {plural(len(row['wanted_by']), 'MUX')}"
        yield f"{vips}: announced by {of}" + (f"; {cell(row['note'])}" if row["note"] else "")
