# SPDX-License-Identifier: Apache-2.0
"""Changing safely by command line, at a real ``lb-manager run`` killed now and then: diff, confirm, rollback."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lb.cli.tables.row_tables import TABLES, draw
from lb.rows.table import rows_of
from tests.lb.cli.test_with_manager import SERVICES, SIX, Daemon, fine, lb


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    started = Daemon(tmp_path)
    try:
        yield started
    finally:
        started.kill()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "services.toml"
    path.write_text(SERVICES)
    return path


def asked(*arguments: object, manager: str) -> Any:
    return json.loads(fine(*arguments, "-o", "json", manager=manager))


def ports(daemon: Daemon) -> dict[str, str]:
    return {
        row["name"]: row["port"] for row in asked("get", "services", manager=daemon.url) if row["state"] != "retiring"
    }


def until(condition: Callable[[], bool], what: str, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


# --- confirm ---------------------------------------------------------------------------------------------------------


def test_a_change_is_confirmed_or_taken_back_by_command(daemon: Daemon, file: Path) -> None:
    fine("apply", "-f", file, manager=daemon.url)
    file.write_text(SERVICES.replace("port = 80\n", "port = 81\n"))
    said = fine("apply", "-f", file, "--confirm", "60s", "-m", "to the new port", manager=daemon.url).splitlines()
    assert said[-2:] == ["version 2", "rolled back in 1 min, unless you keep it: lb confirm 2"]
    assert "version 2 of operator:loopback is rolled back in" in fine("get", "status", manager=daemon.url)
    refused = lb("delete", "service", "web", manager=daemon.url)
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert "`lb confirm` keeps it, `lb rollback` ends it" in refused.stderr
    assert fine("confirm", "2", manager=daemon.url).splitlines() == ["version 2 confirmed", "version 3"]
    none = lb("confirm", manager=daemon.url)
    assert (none.returncode, none.stderr) == (1, "lb: no change waits for a confirmation\n")

    assert fine("apply", "-f", file, "--confirm", "60s", manager=daemon.url) == "service web unchanged\n"
    file.write_text(SERVICES)
    fine("apply", "-f", file, "--confirm", "60s", manager=daemon.url)
    assert "version 4 rolled back: by operator:loopback" in fine("rollback", manager=daemon.url)
    assert ports(daemon) == {"web": "81"}
    assert "service web changed: ports 80 → 81 (to the new port)" in fine("get", "history", manager=daemon.url)


def test_nobody_confirms_and_the_manager_takes_it_back_by_itself(daemon: Daemon, file: Path) -> None:
    fine("apply", "-f", file, "--confirm", "1s", manager=daemon.url)
    assert ports(daemon) == {"web": "80"}
    until(lambda: ports(daemon) == {}, "it was not taken back")
    assert "did not confirm it in time" in fine("get", "events", manager=daemon.url)


def test_killed_while_it_waits_the_manager_takes_back_as_soon_as_it_is_there(daemon: Daemon, file: Path) -> None:
    fine("apply", "-f", file, manager=daemon.url)
    file.write_text(SERVICES.replace("port = 80\n", "port = 81\n") + SIX)
    fine("apply", "-f", file, "--confirm", "8s", manager=daemon.url)
    deadline = asked("get", "status", manager=daemon.url)["confirm"]["until"]
    daemon.kill()
    daemon.restart()
    assert ports(daemon) == {"web": "81", "six": "53-54"}, "there is time left"
    daemon.kill()
    time.sleep(max(0.0, deadline - time.time()))
    daemon.restart()
    assert ports(daemon) == {"web": "80"}
    assert asked("get", "status", manager=daemon.url)["confirm"] is None


# --- history and rollback --------------------------------------------------------------------------------------------


def test_back_to_any_version_by_command(daemon: Daemon, file: Path) -> None:
    fine("apply", "-f", file, manager=daemon.url)
    fine("drain", "web/web-1", manager=daemon.url)
    fine("delete", "service", "web", manager=daemon.url)
    before = asked("get", "status", manager=daemon.url)["version"]
    said = fine("diff", "--to", "2", manager=daemon.url)
    assert "+ service web would be created: 203.0.113.10 tcp 80, 2 backends" in said
    assert "~ backend web/web-1 would be drained" in said
    assert "service web would be created" in fine("rollback", "--to", "2", "--dry-run", manager=daemon.url)
    assert asked("get", "status", manager=daemon.url)["version"] == before
    said = fine("rollback", "--to", "2", "--wait", "5", "-m", "too early", manager=daemon.url).splitlines()
    assert said[:2] == ["service web created: 203.0.113.10 tcp 80, 2 backends", "backend web/web-1 drained"]
    assert said[2].endswith(": rolled back to version 2")
    assert said[3] == "live on every node"
    assert fine("rollback", "--to", "2", manager=daemon.url) == "nothing to change\n"
    lines = asked("get", "history", manager=daemon.url)
    assert (lines[0]["why"], lines[0]["what"].startswith("rolled back to version 2: ")) == ("too early", True)
    assert asked("get", "audit", "--limit", "1", manager=daemon.url)[0]["change"]["set"]["services"].keys() == {"web"}
    none = lb("rollback", "--to", "99", manager=daemon.url)
    assert (none.returncode, "there is no version 99; the latest is" in none.stderr) == (1, True)


# --- print, and apply again ------------------------------------------------------------------------------------------


def test_what_is_printed_and_applied_again_changes_nothing(daemon: Daemon, tmp_path: Path) -> None:
    example = (Path(__file__).parents[3] / "deploy" / "services.toml").read_text()
    (tmp_path / "given.toml").write_text(example)
    fine("apply", "-f", tmp_path / "given.toml", manager=daemon.url)
    text = fine("export", manager=daemon.url)
    (tmp_path / "printed.toml").write_text(text)
    count = text.count("[[service]]")
    assert count > 1
    said = fine("apply", "-f", tmp_path / "printed.toml", "--prune", manager=daemon.url)
    assert said == f"{count} unchanged\n"
    assert fine("diff", "-f", tmp_path / "printed.toml", "--prune", manager=daemon.url).endswith(
        "nothing would change\n"
    )
    assert fine("export", manager=daemon.url) == text
    one = fine("export", "shop", manager=daemon.url)
    assert one.count("[[service]]") == 1
    assert one in text
    assert "file of services" not in fine("check", tmp_path / "printed.toml", manager=daemon.url)
    none = lb("export", "nono", manager=daemon.url)
    assert (none.returncode, none.stdout) == (1, "")


# --- diff ------------------------------------------------------------------------------------------------------------


def test_a_difference_tells_of_slots_and_flows(daemon: Daemon, file: Path) -> None:
    said = fine("diff", "-f", file, manager=daemon.url).splitlines()
    assert said == [
        "+ service web would be created: 203.0.113.10 tcp 80, 2 backends",
        "1 created; no live flow would break",
    ]
    fine("apply", "-f", file, manager=daemon.url)
    assert fine("diff", "-f", file, manager=daemon.url).splitlines() == ["= 1 unchanged", "nothing would change"]
    file.write_text(SERVICES.replace('name = "web-2"', 'name = "web-9"') + SIX)
    said = fine("diff", "-f", file, manager=daemon.url).splitlines()
    assert said[0] == "~ service web would be changed: backend web-9 added, backend web-2 removed"
    assert said[1].startswith("    slots  ")
    unknown = "an unknown number"
    assert said[2] == f"    flows  {unknown} break: web-2 is removed; {unknown} keep their MUX though their slot moves"
    assert said[3].startswith("+ service six would be created")
    assert said[4] == "1 changed, 1 created; an unknown number of live flows would break"
    told = asked("diff", "-f", file, manager=daemon.url)
    web = next(item for item in told["services"] if item["name"] == "web")
    assert 0.5 < web["slots"]["share"] < 0.75, "all of web-2's, and some that web-9 takes from web-1"
    assert (web["slots"]["size"], web["flows"], told["flows"]["break"]) == (
        65537,
        {"break": None, "drain": 0, "move": None},
        None,
    )
    file.write_text(SIX)
    said = fine("diff", "-f", file, "--prune", manager=daemon.url)
    assert "- service web would be deleted\n    slots  65,537 of 65,537 move, 100.0%\n" in said
    assert ports(daemon) == {"web": "80"}, "nothing was changed"


def test_a_difference_in_a_file_with_mistakes_is_all_of_them(daemon: Daemon, file: Path) -> None:
    file.write_text('colour = "red"\n' + SERVICES + "slots = 8\n")
    done = lb("diff", "-f", file, manager=daemon.url)
    assert (done.returncode, done.stdout) == (2, "")
    assert [line.split(":")[0].strip() for line in done.stderr.splitlines()[1:]] == [
        "colour",
        "service[0].backend[1].slots",
    ]


@pytest.mark.parametrize("arguments", [["diff"], ["diff", "-f", "x", "--to", "1"]])
def test_a_difference_needs_one_thing_to_compare_with(daemon: Daemon, arguments: list[str]) -> None:
    done = lb(*arguments, manager=daemon.url)
    assert (done.returncode, "give -f FILE, to compare with a file, or --to VERSION" in done.stderr) == (2, True)


def test_the_pools_seed_comes_from_a_muxs_file(daemon: Daemon, file: Path) -> None:
    mux = Path(__file__).parents[3] / "deploy" / "mux.toml"
    fine("apply", "-f", file, manager=daemon.url)
    file.write_text(SERVICES.replace('name = "web-2"', 'name = "web-9"'))
    with_seed = asked("diff", "-f", file, "--mux", mux, manager=daemon.url)["services"][0]["slots"]
    without = asked("diff", "-f", file, manager=daemon.url)["services"][0]["slots"]
    assert with_seed["moved"] != without["moved"]
    assert with_seed["share"] == pytest.approx(without["share"], abs=0.01)


def test_marks_are_coloured_on_a_terminal_only(daemon: Daemon, file: Path) -> None:
    assert "\x1b" not in fine("diff", "-f", file, manager=daemon.url)
    assert on_a_terminal("diff", "-f", file, manager=daemon.url, TERM="xterm").startswith(
        "\x1b[32m+ service web would be created"
    )
    assert "\x1b" not in on_a_terminal("diff", "-f", file, manager=daemon.url, NO_COLOR="1")


def test_what_is_not_well_is_coloured_on_a_terminal_only(daemon: Daemon, file: Path) -> None:
    fine("apply", "-f", file, manager=daemon.url)
    fine("drain", "web/web-1", manager=daemon.url)
    assert "\x1b" not in fine("get", "backends", manager=daemon.url)
    on = on_a_terminal("get", "backends", manager=daemon.url, TERM="xterm")
    assert "\x1b[33mdrain\x1b[0m" in on or "\x1b[33mdrained\x1b[0m" in on
    assert "\x1b" not in on_a_terminal("get", "backends", manager=daemon.url, NO_COLOR="1")


def on_a_terminal(*arguments: object, manager: str, **environment: str) -> str:
    """What a command prints where its output is a terminal."""
    ours, its = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "lb.cli.main", *map(str, arguments), "--manager", manager],
        stdout=its,
        env={**os.environ, **environment},
    )
    os.close(its)
    text = b""
    with contextlib.suppress(OSError):  # which is how the end of a terminal is told
        while piece := os.read(ours, 65536):
            text += piece
    os.close(ours)
    assert process.wait(30) == 0
    return text.decode()


# --- what operators of other load balancers look for -----------------------------------------------------------------


def test_some_of_a_table_by_name_and_what_is_amiss(daemon: Daemon, file: Path) -> None:
    fine("apply", "-f", file, manager=daemon.url)
    assert [row["name"] for row in asked("get", "service", "web", manager=daemon.url)] == ["web"]
    assert "web-2" in fine("get", "backend", "web/web-2", manager=daemon.url)
    assert "web-1" not in fine("get", "backend", "web/web-2", manager=daemon.url)
    assert [row["name"] for row in asked("get", "backends", "web", manager=daemon.url)] == ["web-1", "web-2"]
    for words in (["services", "nono"], ["backend", "web/nono"], ["mux", "mux9"]):
        refused = lb("get", *words, manager=daemon.url)
        assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (1, "", 1), words
    for words in (["events", "web"], ["status", "--problems"], ["backends", "-w", "--problems"]):
        refused = lb("get", *words, manager=daemon.url)
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1), words
    assert fine("get", "backends", "--problems", manager=daemon.url) == "nothing is amiss with 2 backends\n"
    fine("drain", "web/web-1", manager=daemon.url)
    warned = fine("drain", "web/web-2", manager=daemon.url)
    assert "warning: service web has no other backend that takes new flows" in warned
    said = fine("get", "services", "--problems", manager=daemon.url)
    assert "no backend takes new flows: all 2 drained" in said


def test_the_exit_code_of_diff_tells_of_a_difference_where_it_is_asked_to(daemon: Daemon, file: Path) -> None:
    codes = [lb("diff", "-f", file, *more, manager=daemon.url).returncode for more in ([], ["--exit-code"])]
    assert codes == [0, 1]
    fine("apply", "-f", file, manager=daemon.url)
    assert lb("diff", "-f", file, "--exit-code", manager=daemon.url).returncode == 0
    assert lb("diff", "-f", file.parent / "none", "--exit-code", manager=daemon.url).returncode == 2


def test_a_host_out_of_service_by_command_and_back(daemon: Daemon, file: Path) -> None:
    fine("apply", "-f", file, manager=daemon.url)
    said = fine("drain", "host", "10.0.3.21", "--dry-run", manager=daemon.url).splitlines()
    assert said == [
        "backend web/web-1 would be drained",
        "service web: new flows go to 1 of 2 backends; an unknown number of live flows on the drained",
    ]
    assert "backend web/web-1 drained" in fine("drain", "host", "10.0.3.21", manager=daemon.url)
    said = fine("drain", "web/web-1", "--now", "-m", "it burns", manager=daemon.url)
    assert said.startswith("backend web/web-1 taken out\n")
    assert "taken out by operator:loopback" in fine("get", "backends", "--stats", manager=daemon.url)
    assert "backend web/web-1 undrained" in fine("undrain", "host", "10.0.3.21", manager=daemon.url)
    for words in (["mux", "mux1", "--now"], ["web/web-1", "--now", "--wait"]):
        assert lb("drain", *words, manager=daemon.url).returncode == 2


def test_a_weight_by_command(daemon: Daemon, file: Path) -> None:
    fine("apply", "-f", file, manager=daemon.url)
    said = fine("set", "weight", "web/web-2", 3, manager=daemon.url)
    assert said.splitlines()[0] == "service web changed: weight of web-2 1 → 3"
    assert "weight = 3" in fine("export", manager=daemon.url)
    for words in (["weight", "web/web-2"], ["weight", "web/web-2", "x"], ["weight", "mux", "mux1", "3"], ["state"]):
        refused = lb("set", *words, manager=daemon.url)
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1), words


def test_what_history_says_at_length_is_cut_for_a_terminal_alone() -> None:
    row = {
        "version": 1,
        "at": 0,
        "who": "ada",
        "what": "; ".join(f"service web-{n} created" for n in range(60)),
        "why": "",
    }
    shown = draw("history", rows_of(TABLES["history"], [row]), 80)
    assert len(shown) < 10
    assert shown[-1].startswith("… is cut: ")
    assert not any("is cut" in line for line in draw("audit", rows_of(TABLES["audit"], [row]), 80))
    assert "web-59" in "\n".join(draw("history", rows_of(TABLES["history"], [row]), None))
