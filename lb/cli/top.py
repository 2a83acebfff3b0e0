# SPDX-License-Identifier: Apache-2.0
"""``lb top``: the busiest services of a running MUX, packets and bits per second, once a second."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lb.cli.local import ask, find_socket, local_options, require_local
from lb.cli.output import cell, console, example, output_option, print_json, table
from lb.errors import ControlError

if TYPE_CHECKING:
    from rich.console import Group

COLUMNS = ("service", "vip", "port", "pps", "mbit/s", "new/s", "packets")
NUMBERS = frozenset({"pps", "mbit/s", "new/s", "packets"})


@click.command("top", epilog=example("lb top --local"))
@click.option("--once", is_flag=True, help="Measure for one second, print, and end.")
@click.option("--interval", type=click.FloatRange(0.1, 60), default=1.0, show_default=True, help="Seconds per view.")
@local_options
@output_option
def command(
    *,
    once: bool,
    interval: float,
    local: bool,
    socket: str | None,
    config: str | None,
    as_json: bool,
) -> None:
    """Watch the running MUX on this machine (--local): the busiest services first. Ends with Ctrl-C."""
    require_local(local, socket)
    path = find_socket(socket, config, "mux")
    before = _sample(path)
    if once or as_json:
        time.sleep(interval)
        after = _sample(path)
        if as_json:
            print_json({"mux": after.mux, "services": rates(before, after)})
        else:
            console().print(_view(before, after, None))
        return
    with contextlib.suppress(KeyboardInterrupt):
        _watch(path, before, interval)


class Sample:
    """The counters of one moment."""

    def __init__(self, at: float, mux: Mapping[str, Any], services: Sequence[Mapping[str, Any]]) -> None:
        self.at = at
        self.mux = mux
        self.services = services


def rates(before: Sample, after: Sample) -> list[dict[str, Any]]:
    """One row per service, the busiest first; a service that was not there before has no rate yet."""
    seconds = max(after.at - before.at, 1e-9)
    earlier = {row.get("name"): row for row in before.services}
    rows = []
    for row in after.services:
        old = earlier.get(row.get("name"), row)

        def per_second(key: str, row: Mapping[str, Any] = row, old: Mapping[str, Any] = old) -> float:
            # Counters of a MUX that was started again begin at 0: no rate, rather than a negative one.
            return max(0.0, ((row.get(key) or 0) - (old.get(key) or 0)) / seconds)

        rows.append(
            {
                "service": row.get("name"),
                "vip": row.get("vip"),
                "port": f"{row.get('port')}/{row.get('protocol')}",
                "pps": round(per_second("packets")),
                "mbit/s": round(per_second("bytes") * 8 / 1e6, 1),
                "new/s": round(per_second("flows_new")),
                "packets": row.get("packets"),
            }
        )
    return sorted(rows, key=lambda row: (-row["pps"], -(row["packets"] or 0), str(row["service"])))


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


def _watch(path: Path, before: Sample, interval: float) -> None:
    from rich.live import Live  # noqa: PLC0415

    screen = console()
    with Live(
        _view(before, before, screen.height), console=screen, screen=screen.is_terminal, auto_refresh=False
    ) as live:
        while True:
            time.sleep(interval)
            after = _sample(path)
            live.update(_view(before, after, screen.height), refresh=True)
            before = after


def _view(before: Sample, after: Sample, height: int | None) -> Group:
    """Two lines on the MUX, then as many services as fit."""
    from rich.console import Group  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    mux = after.mux
    seconds = max(after.at - before.at, 1e-9)
    received = max(0, (mux.get("received") or 0) - (before.mux.get("received") or 0)) / seconds
    dropped = max(0, (mux.get("dropped") or 0) - (before.mux.get("dropped") or 0)) / seconds
    head = [
        f"{mux.get('name')}: {mux.get('state')}, {received:,.0f} packets/s in, {dropped:,.0f} dropped/s",
        f"flows {cell(mux.get('flows'))} of {cell(mux.get('flow_capacity'))}, io {mux.get('io')}",
        "",
    ]
    rows = rates(before, after)
    shown = rows if height is None else rows[: max(1, height - len(head) - 2)]
    return Group(*(Text(line) for line in head), table(COLUMNS, shown, NUMBERS))
