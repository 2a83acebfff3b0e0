# SPDX-License-Identifier: Apache-2.0
"""Manual pages and completions: each command has a page that says what its help says, and shells take the scripts."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import click
import pytest

from deploy import manual
from deploy.manual import PROGRAMS, Program

PAGES = [(program, names, context) for program in PROGRAMS for names, context in manual.commands(program)]


@pytest.fixture(scope="module")
def share(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("share")
    manual.make(directory)
    return directory


def drawn(path: Path) -> str:
    """As man shows it, on lines that are as long as they like; whatever it complains of fails the test."""
    if shutil.which("man") is None:
        pytest.skip("man is not installed (apt-get install man-db)")
    done = subprocess.run(
        ["man", "--warnings", "--local-file", path],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "MANWIDTH": "300", "LC_ALL": "C.UTF-8", "MANPAGER": "cat"},
    )
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize(("program", "names", "context"), PAGES, ids=[" ".join(names) for _, names, _ in PAGES])
def test_a_page_has_every_option_and_sentence_of_the_help(
    program: Program, names: tuple[str, ...], context: click.Context, share: Path
) -> None:
    text = drawn(share / f"man/man{program.section}/{'-'.join(names)}.{program.section}")
    said = " ".join(text.replace("`", "").split())
    assert f"{'-'.join(names)} - " in said
    for parameter in context.command.get_params(context):
        if not isinstance(parameter, click.Option) or (record := parameter.get_help_record(context)) is None:
            continue
        for words in record:
            assert " ".join(words.replace("`", "").split()) in said
    for paragraph in (context.command.help or "").split("\n\n"):
        assert " ".join(paragraph.replace("`", "").split()) in said
    example = (context.command.epilog or "").partition("Example:\n")[2]
    for line in example.splitlines():
        assert line.strip() in text


def test_pages_are_the_same_each_time(share: Path, tmp_path: Path) -> None:
    for path in manual.make(tmp_path):
        assert path.read_bytes() == (share / path.relative_to(tmp_path)).read_bytes()


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_bash_takes_the_completion_and_completes_an_option(program: Program, share: Path, tmp_path: Path) -> None:
    """As after Tab: the function that the file defines fills COMPREPLY."""
    script = share / "bash-completion/completions" / program.name
    (function,) = (
        line.partition("()")[0] for line in script.read_text().splitlines() if line.endswith("_completion() {")
    )
    ask = (
        f". {script}; COMP_WORDS=({program.name} --vers); COMP_CWORD=1; {function} {program.name}; "
        'echo "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "--norc", "-euc", ask],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": f"{programs(tmp_path)}:{os.environ['PATH']}"},
    )
    assert (done.stdout, done.returncode) == ("--version\n", 0), done.stderr


def programs(directory: Path) -> Path:
    """All of them as commands, whatever the environment of the tests has."""
    import sys

    modules = {
        "lb": "lb.cli.main",
        "lb-mux": "lb.mux.daemon",
        "lb-agent": "agent.daemon",
        "lb-manager": "manager.daemon",
    }
    for name, module in modules.items():
        path = directory / name
        path.write_text(
            f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(Path(__file__).parents[2])!r})\n"
            f"sys.argv[0] = {name!r}\nfrom {module} import main\nmain()\n"
        )
        path.chmod(0o755)
    return directory
