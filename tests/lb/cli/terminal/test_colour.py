# SPDX-License-Identifier: Apache-2.0
"""Colours: on a terminal only, for what somebody should look at, and they take no room in a table."""

from __future__ import annotations

import sys

import pytest
from msgspec.structs import replace

from lb.cli.commands import doctor
from lb.cli.options.change import marked
from lb.cli.tables.row_tables import draw
from lb.cli.terminal.colour import ATTENTION, BAD, STATES, plain, states, styled, wanted
from lb.cli.terminal.redraw import fitted
from lb.doctor.model.findings import fault, warning
from tests.lb.cli.tables.test_row_tables import BACKEND, EVENTS, NARROW, SERVICE


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    return monkeypatch


def test_colours_go_to_a_terminal_that_wants_them(terminal: pytest.MonkeyPatch) -> None:
    assert wanted()
    terminal.setenv("NO_COLOR", "1")
    assert not wanted()
    terminal.setenv("NO_COLOR", "")  # as no-color.org has it: set, and not empty
    assert wanted()
    terminal.setenv("TERM", "dumb")
    assert not wanted()
    terminal.setenv("TERM", "xterm")
    terminal.setattr(sys.stdout, "isatty", lambda: False)
    assert not wanted()


@pytest.mark.parametrize("width", [None, 80])
@pytest.mark.parametrize("name", NARROW)
def test_a_table_with_colours_is_the_same_table(name: str, width: int | None, terminal: pytest.MonkeyPatch) -> None:
    with_them = draw(name, NARROW[name], width)
    terminal.setenv("NO_COLOR", "1")
    without = draw(name, NARROW[name], width)
    assert [plain(line) for line in with_them] == without
    assert not any("\x1b" in line for line in without)


@pytest.mark.parametrize(("state", "colour"), [("down", BAD), ("PANIC", BAD), ("degraded", ATTENTION), ("up", None)])
def test_a_state_has_the_colour_of_what_it_means(state: str, colour: str | None, terminal: pytest.MonkeyPatch) -> None:
    rows = [replace(SERVICE, state=state, name="down")]
    for stats in (False, True):
        line = draw("services", rows, stats=stats)[1]
        assert line.count("\x1b[0m") == (colour is not None)  # the service's name is no state
        if colour is not None:
            assert styled(state, colour) in line


def test_bad_events_are_red_and_others_are_not(terminal: pytest.MonkeyPatch) -> None:
    lines = draw("events", EVENTS, 60)
    bad = [line for line in lines if "\x1b" in line]
    assert len(bad) > 1
    assert all(line.startswith(f"\x1b[{BAD}m") and line.endswith("\x1b[0m") for line in bad)
    assert "connected" not in "".join(bad)


def test_faults_and_warnings_of_doctor_are_marked(terminal: pytest.MonkeyPatch) -> None:
    found = [fault("disk", "it is full", "make room"), warning("clock", "it is late", "set it")]
    lines = doctor.lines(found, show_all=False)
    assert f"{styled('FAULT', BAD)}    disk: it is full" in lines
    assert f"{styled('warning', ATTENTION)}  clock: it is late" in lines
    terminal.setenv("NO_COLOR", "1")
    assert doctor.lines(found, show_all=False) == [plain(line) for line in lines]


@pytest.mark.parametrize(
    ("line", "colour"),
    [
        ("warning: service web has no other backend", ATTENTION),
        ("not live on mux:mux1: it is not connected", BAD),
        ("live on every node", None),
        ("service warning: created", None),
    ],
)
def test_what_an_answer_warns_of_stands_out(line: str, colour: str | None, terminal: pytest.MonkeyPatch) -> None:
    assert marked(line) == styled(line, colour)
    terminal.setenv("NO_COLOR", "1")
    assert marked(line) == line


def test_a_line_that_is_drawn_in_place_is_cut_by_what_is_seen_of_it() -> None:
    line = f"web  {styled('down', BAD)}  1"
    assert fitted([line], 12, 5) == [line]
    assert fitted([line], 8, 5) == ["web  do…"]


def test_every_state_with_a_colour_can_stand_in_a_table() -> None:
    paint = states(("Service", "State"), on=True)
    assert list(paint) == [1]
    assert states(("Service", "State"), on=False) == {}
    for state in STATES:
        assert plain(paint[1](f"{state}   ")) == f"{state}   "
    assert paint[1](BACKEND.name) == BACKEND.name
