# SPDX-License-Identifier: Apache-2.0
"""``lb drain`` and ``lb undrain``: a backend, or a whole MUX."""

from __future__ import annotations

import click

from lb.cli.apply import show
from lb.cli.output import output_option, print_json
from lb.cli.remote import Manager, manager_options
from lb.errors import RequestError


@click.command("drain")
@click.argument("what", nargs=-1, required=True, metavar="SERVICE/BACKEND | mux NAME")
@manager_options
@output_option
def command(*, what: tuple[str, ...], manager: Manager, as_json: bool) -> None:
    """Let a backend keep its connections and take no new ones; or let a MUX hand its VIPs to the others.

    \b
    lb drain web/web-1
    lb drain mux mux1
    """
    run("drain", what, manager, as_json)


def run(verb: str, what: tuple[str, ...], manager: Manager, as_json: bool) -> None:
    answer = manager.post(*target(verb, what), verb)
    if as_json:
        print_json(answer)
    else:
        show(answer)


def target(verb: str, what: tuple[str, ...]) -> tuple[str, ...]:
    """The path of ``web/web-1``, ``web web-1``, ``backend web/web-1``, ``backend web web-1`` or ``mux mux1``."""
    match what:
        case ("mux", name):
            return ("muxes", name)
        case ("backend", service, backend):
            return ("backends", service, backend)
        case ("backend", both) | (both,) if both.count("/") == 1 and all(both.split("/")):
            return ("backends", *both.split("/"))
        case (service, backend) if service != "backend":
            return ("backends", service, backend)
    raise RequestError(
        f"what is to {verb}? `lb {verb} SERVICE/BACKEND`, `lb {verb} SERVICE BACKEND` or `lb {verb} mux NAME`"
    )
