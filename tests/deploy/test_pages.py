# SPDX-License-Identifier: Apache-2.0
"""What the pages tell to write and to run is right: files parse, options exist, what is copied is in the wheel."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from agent.daemon import command as lb_agent
from lb.config.load import parse
from lb.model import AgentConfig, ManagerSettings, MuxConfig
from lb.mux.daemon import main as lb_mux
from manager.daemon import lb_manager

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = {name: (ROOT / "docs" / name).read_text() for name in ("install.md", "upgrade.md")}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROGRAMS = {"lb-manager": lb_manager, "lb-agent": lb_agent, "lb-mux": lb_mux}


def blocks(page: str, kind: str) -> list[str]:
    """Fenced blocks whose first line begins with this word; empty: those without any."""
    pattern = rf"^ *```{kind}(?: [^\n]+)?\n(.*?)^ *```$" if kind else r"^ *```\n(.*?)^ *```$"
    return re.findall(pattern, PAGES[page], re.MULTILINE | re.DOTALL)


def commands() -> Iterator[list[str]]:
    """Every command of ours on the pages, as its words."""
    for page in PAGES:
        for text in blocks(page, "sh") + blocks(page, ""):
            for line in text.splitlines():
                for piece in line.split("  #")[0].split("&&"):
                    if not re.search(r"\blb\b", piece):
                        continue
                    words = shlex.split(piece)
                    if words[:3] == ["runuser", "-u", "lb-manager"]:
                        words = words[4:]
                    if words and words[0] in (*PROGRAMS, "lb") and words[1:] != ["--version"]:
                        yield words


def test_the_files_of_the_install_page_are_right_as_they_stand() -> None:
    kinds = [type(parse(text)) for text in blocks("install.md", "toml")]
    assert kinds == [ManagerSettings, MuxConfig, AgentConfig, tuple, tuple]


@pytest.mark.parametrize("words", list(commands()), ids=" ".join)
def test_a_command_of_the_pages_exists_with_its_options(words: list[str]) -> None:
    """Parsed as the program would, and not run."""
    if words[0] == "lb":
        program = lb_command(words[1])
        arguments = words[2:]
    else:
        program = PROGRAMS[words[0]]
        arguments = words[1:]
        if isinstance(program, click.Group):
            program = program.commands[arguments[0]]
            arguments = arguments[1:]
    arguments = [word.replace("TERM", "7") for word in arguments]
    program.make_context(words[0], arguments)


def lb_command(name: str) -> click.Command:
    from importlib import import_module

    from lb.cli.main import COMMANDS

    assert name in COMMANDS
    found = import_module(f"lb.cli.commands.{name}").command
    assert isinstance(found, click.Command)
    return found


def test_every_file_that_is_copied_comes_with_the_wheel() -> None:
    text = "".join(PAGES.values())
    copied = set(re.findall(r"(?:share/vipmux|vipmux-[\d.]+\d)/([\w/.-]+\w)", text)) - {"wheels"}
    missing = [name for name in copied if not (ROOT / "deploy" / name).exists()]
    assert missing == []
    assert {"systemd/lb-mux.service", "sysctl/90-vipmux-host.conf", "routers/bird.conf"} <= copied


def test_the_wheel_named_is_the_one_that_is_built() -> None:
    version, options = PROJECT["project"]["version"], (ROOT / "setup.py").read_text()
    assert '"py_limited_api": "cp311"' in options
    assert f"vipmux-{version}-cp311-abi3-linux_x86_64.whl" in PAGES["install.md"]


def test_the_units_run_the_programs_where_the_page_installs_them() -> None:
    for unit in (ROOT / "deploy/systemd").glob("*.service"):
        assert re.search(r"^ExecStart=/opt/vipmux/current/bin/lb-\w+ ", unit.read_text(), re.MULTILINE)
    version = PROJECT["project"]["version"]
    assert f"ln -sfn {version} /opt/vipmux/current" in PAGES["install.md"]


def test_the_drill_of_the_page_is_the_one_that_the_lab_runs() -> None:
    from tests.lab.test_upgrade import STEPS

    rows = re.findall(r"^\| ([^|]+) \| [\d.]+ s \| [\d,]+ \| (\d+) \|$", PAGES["upgrade.md"], re.MULTILINE)
    assert [what for what, _ in rows] == STEPS
    assert {broken for _, broken in rows} == {"0"}
