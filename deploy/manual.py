# SPDX-License-Identifier: Apache-2.0
"""Manual pages and shell completions of all programs, made of the commands themselves: nothing is written twice.

    python deploy/manual.py DIRECTORY

makes, as they lie below ``share`` of an installation::

    man/man1/lb.1, lb-get.1, ...               one page for each command of the operator's
    man/man8/lb-mux.8, lb-manager-token.8, ... and of the daemons
    bash-completion/completions/lb, ...        the same in zsh/site-functions and fish/vendor_completions.d

Run by setup.py when a wheel is built, so that whoever installs it has them. The same sources make the same bytes.
"""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
from click.shell_completion import BashComplete, FishComplete, ShellComplete, ZshComplete

import agent.daemon
import lb.cli.main
import lb.mux.daemon
import manager.daemon

#: Where each shell looks for the file of a program.
_SHELLS: tuple[tuple[type[ShellComplete], str], ...] = (
    (BashComplete, "bash-completion/completions/{program}"),
    (ZshComplete, "zsh/site-functions/_{program}"),
    (FishComplete, "fish/vendor_completions.d/{program}.fish"),
)


@dataclass(frozen=True, slots=True)
class Program:
    """One that is installed."""

    name: str
    command: click.Command
    section: int  #: of the manual: 1 for everybody's commands, 8 for daemons
    codes: str  #: what its exit codes say


_OPERATOR = "0: fine; 1: the answer is bad news; 2: the request or the file was wrong."
_DAEMON = "0: a clean stop; 1: something of the machine is missing or failed; 2: the file or the request was wrong."
PROGRAMS = (
    Program("lb", lb.cli.main.lb, 1, _OPERATOR),
    Program("lb-mux", lb.mux.daemon.main, 8, _DAEMON),
    Program("lb-agent", agent.daemon.command, 8, _DAEMON),
    Program("lb-manager", manager.daemon.lb_manager, 8, _DAEMON),
)
#: What the environment does, besides what options name.
_ENVIRONMENT = {
    "lb": {
        "LB_TOKEN": "An operator's token, in the place of a certificate.",
        "NO_COLOR": "Set to anything: no colours. There are none either where the output is no terminal.",
        "COLUMNS": "How wide lines may be; without it, as wide as the terminal.",
    },
    "lb-mux": {"LB_TOKEN": "The token to join with."},
    "lb-agent": {"LB_TOKEN": "The token to join with."},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("directory", type=Path)
    make(parser.parse_args().directory)


def make(directory: Path) -> list[Path]:
    """All files; returns them."""
    files = {}
    for program in PROGRAMS:
        for names, context in commands(program):
            files[f"man/man{program.section}/{'-'.join(names)}.{program.section}"] = page(program, names, context)
        for shell, place in _SHELLS:
            files[place.format(program=program.name)] = completion(program, shell)
    for name, text in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return [directory / name for name in files]


def commands(program: Program) -> Iterator[tuple[tuple[str, ...], click.Context]]:
    """Itself and all below it, each by its words."""
    yield from _below((program.name,), _context(program.command, None, program.name))


def _below(names: tuple[str, ...], context: click.Context) -> Iterator[tuple[tuple[str, ...], click.Context]]:
    yield names, context
    for name, command in _members(context):
        yield from _below((*names, name), _context(command, context, name))


def _context(command: click.Command, parent: click.Context | None, name: str) -> click.Context:
    return click.Context(command, parent=parent, info_name=name, **command.context_settings)


def _members(context: click.Context) -> list[tuple[str, click.Command]]:
    group = context.command
    if not isinstance(group, click.Group):
        return []
    found = ((name, group.get_command(context, name)) for name in group.list_commands(context))
    return [(name, command) for name, command in found if command is not None and not command.hidden]


def completion(program: Program, shell: type[ShellComplete]) -> str:
    """The shell's function that asks the program itself what may come next."""
    variable = f"_{program.name.upper().replace('-', '_')}_COMPLETE"
    # Not BashComplete's own source(): it looks at the bash of the machine that builds.
    return ShellComplete.source(shell(program.command, {}, program.name, variable))


# --- a page ----------------------------------------------------------------------------------------------------------


def page(program: Program, names: tuple[str, ...], context: click.Context) -> str:
    """In the language of man(7)."""
    command = context.command
    title = "-".join(names)
    lines = [
        '.\\" Made of the program by deploy/manual.py.',
        f'.TH "{_plain(title.upper())}" {program.section} "" "vipmux" "vipmux"',
        ".nh",  # no hyphens in names and commands
        ".ad l",
        ".SH NAME",
        f"{_plain(title)} \\- {_plain(_summary(program, names, command))}",
        ".SH SYNOPSIS",
        f".B {_plain(' '.join(names))}",
        _plain(" ".join(command.collect_usage_pieces(context))),
        *_section("DESCRIPTION", _paragraphs(command.help or "")),
        *_section("OPTIONS", _entries(_options(context))),
        *_section("COMMANDS", _entries(_members_said(program, names, context))),
        *_section("ENVIRONMENT", _entries(_environment(program, command))),
        *_section("EXIT STATUS", [_plain(program.codes)]),
        *_section("EXAMPLES", _examples(command.epilog or "")),
        *_section("SEE ALSO", [_others(program, names, context)]),
    ]
    return "\n".join(lines) + "\n"


def _summary(program: Program, names: tuple[str, ...], command: click.Command) -> str:
    """Its line in the list of commands, or else its first sentence; without the full stop."""
    if program.name == "lb" and len(names) == 2:
        return lb.cli.main.COMMANDS[names[1]][1].rstrip(".")
    text = " ".join((command.help or "").split("\n\n")[0].split())
    return re.split(r"(?<=[a-z)])[.:;] ", text + " ")[0].strip().rstrip(".")


def _section(title: str, lines: list[str]) -> list[str]:
    return [f".SH {title}", *lines] if lines else []


def _paragraphs(text: str) -> list[str]:
    found: list[str] = []
    for paragraph in re.split(r"\n\s*\n", textwrap.dedent(text).strip()):
        if paragraph:
            found += [".PP", _marked(" ".join(paragraph.split()))]
    return found[1:]  # the first needs no distance


def _members_said(program: Program, names: tuple[str, ...], context: click.Context) -> Iterator[tuple[str, str]]:
    for name, command in _members(context):
        yield name, _summary(program, (*names, name), command) + "."


def _options(context: click.Context) -> Iterator[tuple[str, str]]:
    for parameter in context.command.get_params(context):
        record = parameter.get_help_record(context) if isinstance(parameter, click.Option) else None
        if record is not None:
            yield record


def _environment(program: Program, command: click.Command) -> Iterator[tuple[str, str]]:
    for parameter in command.params:
        if isinstance(parameter, click.Option) and isinstance(parameter.envvar, str):
            yield parameter.envvar, f"The same as {parameter.opts[-1]}."
    yield from _ENVIRONMENT.get(program.name, {}).items()


def _entries(rows: Iterator[tuple[str, str]]) -> list[str]:
    return [line for name, text in rows for line in (".TP", f".B {_plain(name)}", _marked(text) or "\\&")]


def _examples(epilog: str) -> list[str]:
    lines = [line.strip() for line in epilog.splitlines() if line.startswith("  ")]
    return [".nf", *map(_plain, lines), ".fi"] if lines else []


def _others(program: Program, names: tuple[str, ...], context: click.Context) -> str:
    """The page above, those below, and the other programs."""
    found = [names[:-1]] if len(names) > 1 else []
    found += [(*names, name) for name, _ in _members(context)]
    here = [f"\\fB{_plain('-'.join(words))}\\fR({program.section})" for words in found]
    others = [f"\\fB{_plain(one.name)}\\fR({one.section})" for one in PROGRAMS if one is not program]
    return ",\n".join([*here, *others])


def _marked(text: str) -> str:
    """What stands between `marks` is bold."""
    parts = text.split("`")
    if len(parts) % 2 == 0:
        return _plain(text)
    return _guarded("".join(f"\\fB{_escaped(part)}\\fR" if i % 2 else _escaped(part) for i, part in enumerate(parts)))


def _plain(text: str) -> str:
    return _guarded(_escaped(text))


def _escaped(text: str) -> str:
    """So that it is printed as it stands: a hyphen may be copied into a shell."""
    return (
        text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("~", "\\(ti").replace("^", "\\(ha")
    )


def _guarded(line: str) -> str:
    """A line that begins with a dot would be an order."""
    return f"\\&{line}" if line.startswith((".", "'")) else line


if __name__ == "__main__":
    main()
