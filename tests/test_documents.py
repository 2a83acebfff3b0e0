# SPDX-License-Identifier: Apache-2.0
"""The pages say what is so: their links lead somewhere, their examples parse, their commands exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lb.cli.main import COMMANDS
from lb.config.load import parse
from lb.model import MuxConfig
from tests.lb.cli.test_help import parse as parse_line
from tests.lb.cli.test_help import words

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in link:
            continue
        path, _, heading = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (heading and heading not in anchors(target)):
            broken.append(link)
    assert broken == []


def test_readme_example_is_a_configuration() -> None:
    blocks = re.findall(r"^ *```toml\n(.*?)^ *```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    config = parse(blocks[0])
    assert isinstance(config, MuxConfig)
    assert [backend.name for backend in config.services[0].backends] == ["web-1", "web-2"]
    parse(blocks[1] + blocks[0][blocks[0].index("[[service]]") :])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_named_exists(page: Path) -> None:
    named = set(re.findall(r"^(?:lb|\.venv/bin/lb) (\w+)", page.read_text(), re.MULTILINE))
    assert named - COMMANDS.keys() == set()


def test_make_help_names_every_target_of_the_readme() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {word for page in PAGES for word in re.findall(r"`?make (\w+)`", page.read_text())}
    assert named <= targets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_line_shown_can_be_typed(page: Path) -> None:
    for line in re.findall(r"^(?:\.venv/bin/)?(lb [a-z]+(?: .*)?)$", page.read_text(), re.MULTILINE):
        parse_line(words(line)[1:])


def test_the_figures_of_the_comparison_are_those_of_the_benchmarks() -> None:
    """After ``make bench`` the table of docs/compare.md is brought up to date by hand."""
    section = (ROOT / "docs" / "compare.md").read_text().partition("## Figures")[2]
    figures = set(re.findall(r"\b\d+,\d{3}\b|\b\d\.\d{3}\b", section)) - {"1,000"}
    measured = (ROOT / "docs" / "benchmarks.md").read_text()
    assert len(figures) == 11
    assert {figure for figure in figures if f"| {figure} [" not in measured} == set()
