# SPDX-License-Identifier: Apache-2.0
"""``lb doctor``: what is wrong with this machine or with the fleet, where, and what to do."""

from __future__ import annotations

import shutil
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lb.cli.ask.manager import Manager, manager_options
from lb.cli.terminal.colour import ATTENTION, BAD, painted
from lb.cli.terminal.output import example, output_option, print_json
from lb.errors import RequestError

if TYPE_CHECKING:
    from lb.doctor.model.findings import Finding

#: Where files are looked for with --local alone.
DIRECTORY = Path("/etc/vipmux")
WIDTH = 80


@click.command(
    "doctor",
    epilog=example("lb doctor --config /etc/vipmux/mux.toml", "lb doctor --manager https://10.0.1.9:9740 -o json"),
)
@click.option(
    "--config",
    type=click.Path(),
    metavar="FILE",
    help="A MUX's, an agent's or a manager's file: examine this machine as that.",
)
@click.option("--local", is_flag=True, help="This machine alone; without --config by the files in /etc/vipmux.")
@click.option("-a", "--all", "-v", "show_all", is_flag=True, help="Show what is fine as well.")
@manager_options
@output_option
def command(*, config: str | None, local: bool, show_all: bool, manager: Manager, as_json: bool) -> int:
    """Find what is wrong with this machine (--config) or the fleet (--manager), and say what to do.

    Changes nothing. On a MUX, as root, it sends packets of its own through the tunnel to each backend. Exit code 0: no
    fault; 1: faults were found; 2: the request was wrong.
    """
    from lb.doctor.model.findings import Severity, count, explained, ordered, row, verdict  # noqa: PLC0415

    found: list[Finding] = []
    files = [config] if config is not None else _files() if local else []
    # The manager of this machine is asked where nothing was named.
    fleet = bool(manager.url) and not local and (manager.named or not files)
    if files:
        from lb.doctor.examine import machine  # noqa: PLC0415  brings much

        for file in files:
            found += machine(file, fleet_follows=fleet or local)
    if fleet:
        from lb.doctor.fleet import examine  # noqa: PLC0415

        found += examine(manager.get)
    elif not files:
        raise RequestError(
            "nothing to examine: give --config FILE of a MUX, an agent or a manager, or --manager URL "
            "(LB_MANAGER) for the "
            "fleet"
        )
    found = ordered(explained(found))
    if as_json:
        print_json(
            {
                "verdict": verdict(found),
                "faults": count(found, Severity.FAULT),
                "warnings": count(found, Severity.WARNING),
                "unknown": count(found, Severity.UNKNOWN),
                "fine": count(found, Severity.OK),
                "findings": [row(finding) for finding in found],
            }
        )
    else:
        click.echo("\n".join([verdict(found), *lines(found, show_all=show_all)]))
    return 1 if count(found, Severity.FAULT) else 0


def _files() -> list[str]:
    found = [str(path) for name in ("mux", "agent", "manager") if (path := DIRECTORY / f"{name}.toml").exists()]
    if not found:
        raise RequestError(
            f"there is no mux.toml, agent.toml or manager.toml in {DIRECTORY}: say which file with --config"
        )
    return found


def lines(found: list[Finding], *, show_all: bool) -> list[str]:
    """Each finding in lines that fit the terminal; what is fine only if asked for."""
    from lb.doctor.model.findings import Severity  # noqa: PLC0415

    width = max(40, min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns))
    shown: list[str] = []
    for finding in found:
        if finding.severity is Severity.OK:
            if show_all:
                shown += _wrapped("ok       ", f"{finding.check}: {finding.what}", width)
            continue
        word = _WORDS[finding.severity.value]
        first, *more = _wrapped(f"{word:<9}", f"{finding.check}: {finding.what}", width)
        (marked,) = painted([word], _COLOURS.get(finding.severity.value))
        shown += ["", marked + first[len(word) :], *more]
        if finding.remedy:
            shown += _wrapped("   do:   ", finding.remedy, width)
    return shown


_COLOURS = {"fault": BAD, "warning": ATTENTION}
_WORDS = {"fault": "FAULT", "warning": "warning", "unknown": "unseen"}


def _wrapped(label: str, text: str, width: int) -> list[str]:
    """Commands are not cut at their hyphens; what daemons and files say must not steer a terminal."""
    plain = "".join(c if c.isprintable() else "?" for c in text)
    indent = " " * len(label)
    return textwrap.wrap(
        plain, width, initial_indent=label, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False
    )
