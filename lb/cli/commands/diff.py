# SPDX-License-Identifier: Apache-2.0
"""``lb diff``: what ``lb apply`` or ``lb rollback`` would change, the slots it moves and the live flows it touches.

The manager says what each service is and would be for MUXes; the Maglev tables of both are built and compared here.
"""

from __future__ import annotations

import contextlib
import importlib
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from lb.cli.ask.manager import Manager, manager_options
from lb.cli.commands.apply import post_files
from lb.cli.options.change import describe
from lb.cli.options.service_files import files_option
from lb.cli.terminal.colour import wanted
from lb.cli.terminal.output import example, output_option, plural, print_json
from lb.errors import RequestError
from lb.tables.values import cell

if TYPE_CHECKING:
    from lb.dataplane.compile.slot_moves import Moves, Pool

#: Tables of so many services are built and compared unless --all asks for more; one takes some 10 ms.
MANY = 100

_MARKS = {"created": ("+", "green"), "deleted": ("-", "red")}


@click.command("diff", epilog=example("lb diff -f services.toml", "lb diff --to 12"))
@files_option()
@click.option("--prune", is_flag=True, help="As if services that are in none of the files were to be deleted.")
@click.option("--to", type=click.IntRange(0), metavar="VERSION", help="What `lb rollback --to VERSION` would change.")
@click.option(
    "--mux", type=click.Path(), metavar="FILE", help="A MUX's file, for the pool's seed and its default of slots."
)
@click.option("--all", "whole", is_flag=True, help=f"Count slots also where more than {MANY} services change.")
@click.option("--exit-code", "tell", is_flag=True, help="Exit 1 where something would change, 0 where nothing would.")
@manager_options
@output_option
def command(
    *,
    paths: tuple[str, ...],
    prune: bool,
    to: int | None,
    mux: str | None,
    whole: bool,
    tell: bool,
    manager: Manager,
    as_json: bool,
) -> int:
    """Tell what `lb apply -f FILE` would change, and every mistake in it. Changes nothing.

    For each service: the share of its Maglev slots that would move, and the live flows that would break, stay with a
    backend that drains, or stay although their slot moves. Without --mux the tables are those of a pool with another
    seed, whose shares differ by less than a percent. Exits 0 whether there is a difference or not, unless
    --exit-code is given; and 2 where the file is wrong.
    """
    if bool(paths) == (to is not None):
        raise RequestError("give -f FILE, to compare with a file, or --to VERSION, to compare with an earlier version")
    # What builds tables is loaded while the manager thinks.
    threading.Thread(target=_load).start()
    answer = post_files(manager, "diff", paths, {"prune": prune}) if paths else manager.post("diff", body={"to": to})
    effects = _effects(answer["services"], _pool(mux), whole=whole)
    if as_json:
        print_json(_as_json(answer, effects))
    else:
        for line in _lines(answer, effects):
            click.echo(line, color=wanted())
    return int(tell and answer["changed"])


def _load() -> None:
    """Whatever goes wrong with it is said where it is used."""
    with contextlib.suppress(ImportError):
        importlib.import_module("lb.dataplane.compile.slot_moves")


def _pool(mux: str | None) -> Pool:
    from lb.dataplane.compile.slot_moves import Pool  # noqa: PLC0415  brings the extension

    if mux is None:
        return Pool()
    from lb.config.load import load_mux  # noqa: PLC0415

    found = load_mux(mux, offline=True).mux
    return Pool(found.seed, found.slots)


def _effects(services: list[dict[str, Any]], pool: Pool, *, whole: bool) -> dict[str, Moves | None]:
    """By service; None: not compared, for there are too many. New ones are not in it: they move nothing."""
    from lb.dataplane.compile.slot_moves import deleted, moves  # noqa: PLC0415

    found: dict[str, Moves | None] = {}
    compared = 0
    for item in services:
        name, before, after = item["name"], item["before"], item["after"]
        if before is None:
            continue
        if after is None:
            found[name] = deleted(before, pool)
        else:
            compared += 1
            found[name] = moves(before, after, pool) if whole or compared <= MANY else None
    return found


# --- JSON ------------------------------------------------------------------------------------------------------------


def _as_json(answer: dict[str, Any], effects: dict[str, Moves | None]) -> dict[str, Any]:
    known = [found for found in effects.values() if found is not None]
    complete = len(known) == len(effects)
    return {
        **answer,
        "services": [{**item, **_effect_row(effects.get(item["name"]))} for item in answer["services"]],
        "flows": {
            key: _sum([getattr(found, name) for found in known]) if complete else None for key, name in _FLOWS.items()
        },
    }


#: Name in the JSON -> in Moves.
_FLOWS = {"break": "breaking", "drain": "draining", "move": "moving"}


def _effect_row(found: Moves | None) -> dict[str, Any]:
    if found is None:
        return {"slots": None, "flows": None}
    return {
        "slots": {"moved": round(found.moved), "size": found.size, "share": found.share},
        "flows": {key: getattr(found, name) for key, name in _FLOWS.items()},
    }


def _sum(counts: list[int | None]) -> int | None:
    return None if None in counts else sum(count for count in counts if count is not None)


# --- words -----------------------------------------------------------------------------------------------------------


def _lines(answer: dict[str, Any], effects: dict[str, Moves | None]) -> Iterator[str]:
    told = set()
    for line in answer["lines"]:
        if line["action"] == "unchanged":
            continue
        mark, colour = _MARKS.get(line["action"], ("~", "yellow"))
        yield click.style(f"{mark} {describe(line, would=True)}", fg=colour)
        name = line["name"].removeprefix("service ")
        if name in effects and line["name"] != name:
            told.add(name)
            yield from _effect_lines(effects[name])
    for name in sorted(effects.keys() - told):  # only its drains differ
        yield click.style(f"~ service {cell(name)}", fg="yellow")
        yield from _effect_lines(effects[name])
    if answer["unchanged"]:
        yield f"= {answer['unchanged']:,} unchanged"
    yield _total(answer, effects)


def _effect_lines(found: Moves | None) -> Iterator[str]:
    if found is None:
        yield f"    slots and flows not counted: more than {MANY} services change; --all counts all"
        return
    yield f"    slots  {found.moved:,.0f} of {found.size:,} move, {found.share:.1%}"
    yield f"    flows  {'; '.join(_flow_words(found)) or 'none is touched'}"


def _flow_words(found: Moves) -> Iterator[str]:
    if found.breaking or (found.breaking is None and found.why):
        yield f"{_count(found.breaking)} break: {', '.join(cell(why) for why in found.why)}"
    if found.draining or (found.draining is None and found.drained):
        yield f"{_count(found.draining)} stay with {', '.join(cell(name) for name in found.drained)}, which drains"
    if found.moving is None:
        yield "an unknown number keep their MUX though their slot moves"
    elif found.moving:
        yield f"about {found.moving:,} keep their MUX though their slot moves"


def _count(flows: int | None) -> str:
    return "an unknown number" if flows is None else f"{flows:,}"


def _total(answer: dict[str, Any], effects: dict[str, Moves | None]) -> str:
    counts = {
        action: sum(line["action"] == action for line in answer["lines"])
        for action in dict.fromkeys(line["action"] for line in answer["lines"])
        if action != "unchanged"
    }
    if not counts:
        return "nothing would change"
    said = ", ".join(f"{count:,} {action}" for action, count in counts.items())
    breaking = _sum([None if found is None else found.breaking for found in effects.values()])
    flows = "an unknown number of live flows" if breaking is None else plural(breaking, "live flow")
    return f"{said}; {flows if breaking != 0 else 'no live flow'} would break"
