# SPDX-License-Identifier: Apache-2.0
"""The help of every command of ``lb`` ends with an example, and the example works."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
import pytest

from lb.cli.main import COMMANDS, lb, run
from lb.dataplane.replay.pcap import CapturedPacket, PcapWriter
from tests.packets.build import ethernet, ipv4, tcp

ROOT = Path(__file__).parents[3]

#: Those that ask no daemon and no manager, and need no root: their examples are run, not only read.
OFFLINE = ("check", "lookup", "replay", "reasons", "bench pipeline")


def commands() -> Iterator[tuple[str, click.Command]]:
    """Every command by its words; ``bench`` and ``bench io`` are two."""
    root = click.Context(lb, info_name="lb")
    for name in COMMANDS:
        command = lb.get_command(root, name)
        assert command is not None
        yield name, command
        if isinstance(command, click.Group):
            yield from ((f"{name} {inner}", found) for inner, found in command.commands.items())


ALL = dict(commands())


def examples(name: str) -> list[str]:
    """The command lines at the end of the help."""
    text = ALL[name].get_help(click.Context(ALL[name], info_name=f"lb {name}"))
    _, mark, rest = text.rpartition("\n  Example:\n")
    assert mark, f"`lb {name} --help` has no example; give its command epilog=example(…) of lb.cli.terminal.output"
    assert "\n\n" not in rest.strip("\n"), f"`lb {name} --help` goes on after its example"
    return [line.strip() for line in rest.splitlines() if line.strip()]


def words(line: str) -> list[str]:
    """Of the first program of a line, as a shell would have them."""
    found = shlex.split(line, comments=True)
    return found[: next((i for i, word in enumerate(found) if word in ("|", ">", "&&")), len(found))]


def parse(arguments: Sequence[str]) -> str:
    """Reads a command line as ``lb`` does, but for running it; returns the words of the command."""
    context = click.Context(lb, info_name="lb")
    command: click.Command = lb
    rest, name = list(arguments), ""
    while isinstance(command, click.Group):
        word, *rest = rest
        found = command.get_command(context, word)
        assert found is not None, f"there is no `lb {name}{word}`"
        command, name = found, f"{name}{word} "
    command.make_context(name, rest)
    return name.strip()


@pytest.mark.parametrize("name", ALL)
def test_help_ends_with_an_example_that_can_be_typed(name: str) -> None:
    lines = examples(name)
    assert lines
    for line in lines:
        assert line.startswith("lb ")
        assert len(line) <= 96
        program, *arguments = words(line)
        assert program == "lb"
        parsed = parse(arguments)
        assert parsed == name or parsed.startswith(f"{name} "), f"an example of another command: {line}"


@pytest.mark.parametrize("name", OFFLINE)
def test_example_of_an_offline_tool_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mux.toml").write_text((ROOT / "deploy" / "mux.toml").read_text())
    with (tmp_path / "seen.pcap").open("wb") as stream:
        frame = ethernet(ipv4(tcp("S")))
        PcapWriter(stream, 1).write(CapturedPacket(frame, len(frame), 10**9))
    monkeypatch.chdir(tmp_path)
    for line in examples(name):
        assert run(words(line)[1:]) == 0, line
        assert capsys.readouterr().err == ""


def test_one_line_of_help_for_each_command_is_a_sentence() -> None:
    for name, (_, summary) in COMMANDS.items():
        assert summary.endswith("."), name
        assert len(f"  {name:<10}{summary}") <= 100, name
