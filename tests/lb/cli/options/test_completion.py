# SPDX-License-Identifier: Apache-2.0
"""What the Tab key offers: commands without loading them, names as the manager has them, nothing where it is away."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import msgspec
import pytest
from click.shell_completion import ShellComplete

from lb.cli.ask.manager import Manager
from lb.cli.main import COMMANDS, lb
from lb.cli.options import completion as completing
from lb.errors import ControlError

SERVICES = [
    {"name": name, "vip": f"203.0.113.{10 + i}", "port": 80, "protocol": "tcp", "healthy": 1, "backends": 1}
    for i, name in enumerate(("web", "webmail", "dns"))
]
BACKENDS = [{"service": row["name"], "name": f"{row['name']}-{i}"} for row in SERVICES for i in (1, 2)]


class Fleet:
    """A manager's answers."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.services = SERVICES

    def get(self, table: str, **query: Any) -> Any:
        self.asked.append(table)
        if table == "backends":
            return [row for row in BACKENDS if row["service"] in query["service"]]
        return [{"name": name} for name in {"muxes": ("mux1", "mux2"), "agents": ("host1", "host2")}[table]]

    def rows(self, row_type: Any, table: str, **query: Any) -> Any:
        found = self.get(table) if table != "services" else self.services
        return msgspec.convert(found, list[row_type])


@pytest.fixture
def fleet(monkeypatch: pytest.MonkeyPatch) -> Fleet:
    answers = Fleet()
    monkeypatch.setattr(Manager, "get", lambda self, *path, **query: answers.get(*path, **query))
    monkeypatch.setattr(Manager, "rows", lambda self, *path, **query: answers.rows(*path, **query))
    return answers


def offered(*words: str) -> list[str]:
    """After ``lb …``, the last word being the one that was begun."""
    shell = ShellComplete(lb, {}, "lb", "_LB_COMPLETE")
    return [item.value for item in shell.get_completions(list(words[:-1]), words[-1])]


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (("dr",), ["drain"]),
        (("un",), ["undrain"]),
        (("get", "back"), ["backends", "backend"]),
        (("get", "services", ""), ["web", "webmail", "dns"]),
        (("get", "service", "web"), ["web", "webmail"]),
        (("get", "backends", "web/"), ["web/web-1", "web/web-2"]),
        (("get", "mux", ""), ["mux1", "mux2"]),
        (("get", "events", ""), []),
        (("get", "backends", "--service", "d"), ["dns"]),
        (("describe", "agent", "host"), ["host1", "host2"]),
        (("describe", "backend", "dn"), ["dns/dns-1", "dns/dns-2"]),
        (("drain", ""), ["host", "mux", "backend", *(f"{row['service']}/{row['name']}" for row in BACKENDS)]),
        (("drain", "host", ""), ["host1", "host2"]),
        (("drain", "mux", "mux2"), ["mux2"]),
        (("drain", "mux", "mux2", ""), []),
        (("undrain", "backend", "dns"), ["dns/dns-1", "dns/dns-2"]),
        (("set", ""), ["weight"]),
        (("set", "weight", "dns"), ["dns/dns-1", "dns/dns-2"]),
        (("export", "w"), ["web", "webmail"]),
        (("export", "web", "w"), ["web", "webmail"]),
        (("delete", "service", "d"), ["dns"]),
        (("top", "--by", "b"), ["backend"]),
    ],
    ids=" ".join,
)
def test_what_may_come_next_is_offered(words: tuple[str, ...], wanted: list[str], fleet: Fleet) -> None:
    assert offered(*words) == wanted


def test_of_many_services_the_services_come_first(fleet: Fleet) -> None:
    fleet.services = [{**SERVICES[0], "name": f"shop-{i}"} for i in range(completing.SERVICES + 1)]
    assert offered("set", "weight", "shop") == [f"shop-{i}/" for i in range(completing.SERVICES + 1)]
    assert "backends" not in fleet.asked
    assert offered("set", "weight", "web/web-2") == ["web/web-2"]


@pytest.mark.parametrize(
    "words", [("get", "services", ""), ("drain", "host", ""), ("describe", "mux", "")], ids=" ".join
)
def test_a_manager_that_does_not_answer_is_no_error(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object, **__: object) -> None:
        raise ControlError("it is away")

    monkeypatch.setattr(Manager, "get", away)
    monkeypatch.setattr(Manager, "rows", away)
    assert offered(*words) == []


def test_without_a_manager_to_ask_there_are_no_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.delenv("LB_MANAGER", raising=False)
    monkeypatch.setattr(completing, "LOCAL_FILE", tmp_path / "none.toml")
    assert offered("get", "services", "") == []


def test_a_manager_is_waited_for_a_moment_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that takes the connection and says nothing."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(completing, "PATIENCE", 0.2)
        began = time.monotonic()
        assert offered("get", "--manager", f"http://127.0.0.1:{silent.getsockname()[1]}", "services", "") == []
        assert time.monotonic() - began < 20  # the manager's own patience is 30


def test_commands_are_offered_without_loading_them() -> None:
    """For somebody waits for each: the modules of all of them take a quarter of a second."""
    ask = (
        "import sys; from click.shell_completion import ShellComplete; from lb.cli.main import lb; "
        "print(*(i.value for i in ShellComplete(lb, {}, 'lb', 'X').get_completions([], ''))); "
        "print(*(n for n in sys.modules if n.startswith('lb.cli.') and n != 'lb.cli.main'))"
    )
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True)
    names, loaded = done.stdout.splitlines()
    assert names.split() == list(COMMANDS)
    assert loaded == ""
