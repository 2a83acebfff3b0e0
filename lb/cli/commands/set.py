# SPDX-License-Identifier: Apache-2.0
"""``lb set weight``: one number of what is served, without a file."""

from __future__ import annotations

import click

from lb.cli.ask.manager import Manager, manager_options
from lb.cli.commands.drain import target
from lb.cli.options.change import ChangeOptions, finish, terms_options
from lb.cli.options.completion import backends, by_words
from lb.cli.terminal.output import example, output_option
from lb.errors import RequestError


@click.command("set", epilog=example("lb set weight web/web-1 50", 'lb set weight web web-1 50 -m "half of it is new"'))
@click.argument(
    "what",
    nargs=-1,
    required=True,
    metavar="weight SERVICE/BACKEND NUMBER",
    shell_complete=by_words({"weight": backends}),
)
@terms_options
@manager_options
@output_option
def command(*, what: tuple[str, ...], terms: ChangeOptions, manager: Manager, as_json: bool) -> int:
    """Change the weight of a backend, 0 to 1000. It decides where new flows go; existing ones stay.

    It is a change of the service like any other: `lb export` has it, and the next `lb apply` of a file that says
    another weight changes it again.
    """
    kind, *place, number = what if len(what) > 2 else ("", "", "")
    if kind != "weight" or not number.isascii() or not number.isdecimal() or len(number) > 9:
        raise RequestError("what is to be set? `lb set weight SERVICE/BACKEND NUMBER`")
    path = target("set weight of", tuple(place))
    if path[0] != "backends":
        raise RequestError("only backends have a weight: `lb set weight SERVICE/BACKEND NUMBER`")
    return finish(manager.post(*path, "weight", body={"weight": int(number), **terms.body()}), as_json=as_json)
