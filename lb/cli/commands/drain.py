# SPDX-License-Identifier: Apache-2.0
"""``lb drain`` and ``lb undrain``: a backend, all of a host, or a whole MUX."""

from __future__ import annotations

from typing import Any

import click

from lb.cli.ask.manager import Manager, manager_options
from lb.cli.options.change import show, why_option
from lb.cli.options.completion import agents, backends, by_words, muxes
from lb.cli.terminal.output import example, output_option, print_json
from lb.cli.terminal.times import parse_duration
from lb.errors import RequestError

complete = by_words({"host": agents, "mux": muxes, "backend": backends}, backends)


@click.command(
    "drain",
    epilog=example(
        "lb drain web/web-1 --wait --timeout 10m",
        "lb drain host 10.0.3.21 --dry-run",
        'lb drain mux mux1 -m "new kernel"',
    ),
)
@click.argument(
    "what", nargs=-1, required=True, metavar="SERVICE/BACKEND | host NAME | mux NAME", shell_complete=complete
)
@click.option("--now", is_flag=True, help="End a backend's connections at once.")
@click.option("--dry-run", is_flag=True, help="Only show what would change, and what would be left. Not for a MUX.")
@click.option("--wait", is_flag=True, help="Until no flow is left, or no packet comes to the MUX any more.")
@click.option("--timeout", default="10m", show_default=True, metavar="TIME", help="With --wait: how long at most.")
@why_option
@manager_options
@output_option
def command(
    *,
    what: tuple[str, ...],
    now: bool,
    dry_run: bool,
    wait: bool,
    timeout: str,
    why: str,
    manager: Manager,
    as_json: bool,
) -> int:
    """Drain a backend or a host: it keeps its connections and takes no new ones. Or a MUX: it withdraws its VIPs.

    All backends of a host, whatever their services, are drained as one change; a host is named by its agent or address.
    The command says how many others of each service go on, and warns where there is none.

    With --wait it shows how many flows are left, over all MUXes, and exits 0 once there are none, or 1 when time is
    over. You may interrupt it at any time: the drain goes on.
    """
    seconds = parse_duration(timeout)
    path = target("drain", what)
    if path[0] == "muxes" and (now or dry_run):
        raise RequestError("--now and --dry-run are for backends and hosts; a MUX withdraws its VIPs")
    if wait and (now or dry_run):
        raise RequestError("--wait has nothing to wait for with --now or --dry-run; leave it out")
    answer = order("drain", path, why, manager, now=now, dry_run=dry_run)
    if not wait:
        print_json(answer) if as_json else show(answer)
        return 0
    return _wait(path, answer, seconds, manager, as_json)


def _wait(path: tuple[str, ...], answer: dict[str, Any], seconds: float, manager: Manager, as_json: bool) -> int:
    from lb.cli import drain_wait  # noqa: PLC0415

    if not as_json:
        show(answer)
    one = drain_wait.Wait(manager, seconds, drain_wait.ProgressLine(silent=as_json))
    if path[0] == "muxes":
        left, sentence = drain_wait.mux(one, path[1])
    elif path[0] == "hosts":
        names = [line["name"].removeprefix("backend ") for line in answer["lines"]]
        left, sentence = drain_wait.host(one, path[1], names)
    else:
        left, sentence = drain_wait.backend(one, path[1], path[2])
    if as_json:
        print_json({**answer, "left": left})
    if sentence is None:
        return 0
    click.echo(f"lb: {sentence}", err=True)
    return 1


def order(verb: str, path: tuple[str, ...], why: str, manager: Manager, **flags: bool) -> dict[str, Any]:
    """Has the manager drain or undrain it; only what is not as ever is sent."""
    body = {key: value for key, value in {"why": why, **flags}.items() if value}
    answer: dict[str, Any] = manager.post(*path, verb, body=body or None)
    return answer


def target(verb: str, what: tuple[str, ...]) -> tuple[str, ...]:
    """The path of ``web/web-1``, ``web web-1``, ``backend web/web-1``, ``backend web web-1``, ``host host1`` or
    ``mux mux1``."""
    match what:
        case ("mux", name):
            return ("muxes", name)
        case ("host", name):
            return ("hosts", name)
        case ("backend", service, backend):
            return ("backends", service, backend)
        case ("backend", both) | (both,) if both.count("/") == 1 and all(both.split("/")):
            return ("backends", *both.split("/"))
        case (service, backend) if service != "backend":
            return ("backends", service, backend)
    raise RequestError(
        f"what is to {verb}? `lb {verb} SERVICE/BACKEND`, `lb {verb} SERVICE BACKEND`, `lb {verb} host NAME` or "
        f"`lb {verb} mux NAME`"
    )
