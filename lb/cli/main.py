# SPDX-License-Identifier: Apache-2.0
"""The program ``lb``: its table of subcommands, and the one place where errors become sentences and exit codes.

A subcommand's file is imported only when it runs, so that ``lb`` starts fast. Exit codes: 0 fine, 1 the
answer is bad news, 2 the request or the file was wrong.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

import click

from lb.errors import VipmuxError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

#: Subcommand -> (module that has it as ``command``, one line of help).
COMMANDS = {
    "check": ("lb.cli.commands.check", "Check a configuration file; list every mistake, or what it needs."),
    "lookup": ("lb.cli.commands.lookup", "Tell which backend a new flow gets."),
    "replay": ("lb.cli.commands.replay", "Run the data plane over a capture."),
    "reasons": ("lb.cli.commands.reasons", "List what can become of a packet, and why."),
    "apply": ("lb.cli.commands.apply", "Create or change the services of a file."),
    "confirm": ("lb.cli.commands.confirm", "Keep what `lb apply --confirm` changed."),
    "rollback": ("lb.cli.commands.rollback", "Make services what they were at an earlier version."),
    "export": ("lb.cli.commands.export", "Print the services as a file that `lb apply` takes."),
    "diff": ("lb.cli.commands.diff", "Tell what `lb apply` would change."),
    "get": ("lb.cli.commands.get", "Show services, backends, MUXes, agents, announcements or events."),
    "describe": ("lb.cli.commands.describe", "Explain a service, a backend, a VIP, a MUX, an agent or a flow."),
    "delete": ("lb.cli.commands.delete", "Delete a service; forget a MUX or an agent that is no more."),
    "drain": ("lb.cli.commands.drain", "Let a backend, a host or a MUX finish what it has, and take nothing new."),
    "undrain": ("lb.cli.commands.undrain", "Take a drain back."),
    "set": ("lb.cli.commands.set", "Change the weight of one backend."),
    "top": ("lb.cli.commands.top", "Watch packets, bits and new flows per second: services, backends, MUXes."),
    "doctor": ("lb.cli.commands.doctor", "Find what is wrong with a machine or the fleet, and say what to do."),
    "bench": ("lb.cli.commands.bench", "Measure the data plane on this machine."),
}


class _Commands(click.Group):
    """Knows its subcommands by name, and imports them when asked."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(COMMANDS[cmd_name][0]).command
        assert isinstance(command, click.Command)  # noqa: S101  what every module in the table has
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Without importing all of them; and the options, as ever."""
        from click.shell_completion import CompletionItem  # noqa: PLC0415

        found = [
            CompletionItem(name, help=summary) for name, (_, summary) in COMMANDS.items() if name.startswith(incomplete)
        ]
        return [*found, *click.Command.shell_complete(self, ctx, incomplete)]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])


def _version(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from importlib.metadata import version  # noqa: PLC0415  costs 30 ms

        click.echo(f"vipmux {version('vipmux')}")
        ctx.exit()


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version.")
def lb() -> None:
    """Operator's tools of vipmux, a layer-4 load balancer.

    Exit codes: 0 fine, 1 the answer is bad news, 2 the request or the file was wrong.
    """


def run(arguments: Sequence[str]) -> int:  # noqa: PLR0911  one way out for each kind of failure
    """Runs one command line and returns the exit code."""
    try:
        code = lb.main(args=list(arguments), prog_name="lb", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return 2
    except (click.Abort, KeyboardInterrupt):
        return 130
    except VipmuxError as error:
        return _say(str(error), error.exit_code)
    except BrokenPipeError:
        # The reader of our output left, as `head` does; nothing more may be written, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except ModuleNotFoundError as error:
        if error.name != "lb._dataplane" or "LB_DEBUG" in os.environ:
            raise
        return _say("the data plane is not compiled; `make build` compiles it", 1)
    except MemoryError:
        return _say("not enough memory", 1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _say(where + (error.strerror or str(error)).lower(), 1)
    except Exception as error:
        if "LB_DEBUG" in os.environ:
            raise
        return _say(f"internal error, please report it ({type(error).__name__}: {error}); LB_DEBUG=1 shows more", 1)
    return code if isinstance(code, int) else 0


def _say(sentence: str, code: int) -> int:
    click.echo(f"lb: {sentence}", err=True)
    return code


def main() -> NoReturn:
    """Entry point of the program."""
    code = run(sys.argv[1:])
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


if __name__ == "__main__":
    main()
