# SPDX-License-Identifier: Apache-2.0
"""A store that another version wrote, or that is damaged: the manager starts, serves what it can, and says the rest."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lb.doctor.fleet import check_held
from manager.api.view import View
from manager.desired.salvage import salvaged
from manager.store.interface import ConflictError, StoreError
from manager.store.load_desired import read
from manager.store.sqlite import FILE
from tests.manager.fake_nodes import Site, running, until
from tests.manager.fleet import plain, service

WHO = "operator:alice"


@contextmanager
def said() -> Iterator[list[str]]:
    """The sentence, if the store cannot be had; any other error is a failure."""
    why: list[str] = []
    try:
        yield why
    except StoreError as error:
        why.append(str(error))


def edit(directory: Path, *statements: tuple[str, tuple[Any, ...]]) -> None:
    with sqlite3.connect(directory / FILE) as database:
        for statement, values in statements:
            database.execute(statement, values)


def put(section: str, key: str, value: Any) -> tuple[str, tuple[Any, ...]]:
    return "INSERT OR REPLACE INTO desired VALUES (?, ?, ?)", (section, key, json.dumps(value))


async def begin(directory: Path) -> None:
    async with running(directory) as controller:
        Site().connect(controller)
        await controller.writer.apply([service(), service("dns", "203.0.113.11")], WHO)
        await controller.writer.drain_backend("dns", "dns-1", WHO, drain=True)


async def test_a_key_of_a_newer_version_is_served_without_it_and_held(tmp_path: Path) -> None:
    await begin(tmp_path)
    edit(tmp_path, put("services", "web", {**service(), "colour": "blue"}))
    async with running(tmp_path) as controller:
        site = Site().connect(controller)
        await until(lambda: bool(site.muxes[0].states) and "web" in site.muxes[0].state["services"])
        assert "colour" not in site.muxes[0].state["services"]["web"]
        (row,) = plain(View(controller).manager.status())["held"]
        assert (row["service"], row["served"]) == ("web", True)
        assert row["why"].startswith("colour: unknown key")
        assert [finding.check for finding in check_held([row])] == ["held"]
        assert any("is served without it" in event.text and event.bad for event in controller.events.latest(20))
        with pytest.raises(ConflictError, match="apply it whole, or delete it, and then change it"):
            await controller.writer.drain_backend("web", "web-1", WHO, drain=True)
        await controller.writer.drain_backend("dns", "dns-2", WHO, drain=True)  # others are changed as ever
        await controller.writer.apply([service(hosts=(1, 2, 3))], WHO)
        assert controller.writer.held == {}
        await controller.writer.drain_backend("web", "web-1", WHO, drain=True)
    async with running(tmp_path) as controller:
        assert controller.writer.held == {}


async def test_what_cannot_be_read_at_all_is_set_aside_and_can_be_deleted(tmp_path: Path) -> None:
    await begin(tmp_path)
    edit(tmp_path, put("services", "web", {"name": "web", "vip": "nowhere"}))
    async with running(tmp_path) as controller:
        assert controller.desired.services.keys() == {"dns"}
        assert [row["served"] for row in plain(View(controller).manager.status())["held"]] == [False]
        await controller.writer.delete_services(["web"], WHO)
        assert controller.writer.held == {}
    async with running(tmp_path) as controller:
        assert controller.writer.held == {}
        assert controller.desired.services.keys() == {"dns"}


async def test_services_that_a_stricter_rule_sets_against_each_other_serve_on(tmp_path: Path) -> None:
    await begin(tmp_path)
    twin = {**service("twin"), "backend": [{"name": "twin-1", "address": "10.0.3.3"}]}
    edit(tmp_path, put("services", "twin", twin))  # ties with web
    async with running(tmp_path) as controller:
        assert controller.desired.services.keys() == {"web", "dns", "twin"}
        await controller.writer.delete_services(["twin"], WHO)


async def test_orders_of_a_newer_version_are_read_as_far_as_they_can_be(tmp_path: Path) -> None:
    await begin(tmp_path)
    order = {"who": WHO, "at": 1.0, "until_empty": True}
    edit(tmp_path, put("drains", "dns/dns-1", order), put("mux_drains", "mux1", "nonsense"))
    async with running(tmp_path) as controller:
        assert controller.desired.drains.keys() == {"dns/dns-1"}
        assert controller.desired.mux_drains == {}


@pytest.mark.parametrize(
    ("change", "left"),
    [
        (lambda table: table.update(probe={"type": "quic"}), 2),
        (lambda table: table["backend"][0].update(colour=1), 2),
        (lambda table: table["backend"][0].update(address="nowhere"), 1),
        (lambda table: [row.update(address="nowhere") for row in table["backend"]], 0),
        (lambda table: table["backend"].append(5), 2),
        (lambda table: table.update(slots=10, hash="7-tuple", backend=7), 0),
        (lambda table: table.pop("port"), None),
        (lambda table: table.update(vip=[]), None),
    ],
)
def test_of_a_service_as_much_is_served_as_can_be_read(change: Callable[[Any], Any], left: int | None) -> None:
    table = service()
    change(table)
    found, wrong = salvaged(table)
    assert (None if found is None else len(found.backends)) == left
    assert wrong


@pytest.mark.parametrize("table", [None, 5, "web", [], [{}], {"backend": {}}])
def test_what_is_no_service_is_none(table: object) -> None:
    assert salvaged(table)[0] is None


@pytest.mark.parametrize("entries", [{"services": 5}, {"services": {"web": 5}}, {"retiring": {"x": []}}, {"drains": 7}])
def test_a_state_of_another_form_is_read_or_refused_in_one_sentence(entries: Any) -> None:
    with said() as why:
        assert read(3, entries).desired.version == 3
    assert all("restore it from a backup" in one for one in why)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "garbage": lambda file: file.write_bytes(b"garbage" * 1000),
    "cut": lambda file: file.write_bytes(file.read_bytes()[:5000]),
    "a page of noise": lambda file: file.write_bytes(
        file.read_bytes()[:4096] + b"\xff" * 8192 + file.read_bytes()[12288:]
    ),
    "no counter": lambda file: edit(file.parent, ("DELETE FROM counter", ())),
    "no table": lambda file: edit(file.parent, ("DROP TABLE memory", ())),
    "no JSON": lambda file: edit(file.parent, ("UPDATE desired SET value = '{'", ())),
    "no memory of ours": lambda file: edit(
        file.parent, ("INSERT OR REPLACE INTO memory VALUES ('backends', 'x', '[1]')", ())
    ),
    "a directory": lambda file: (file.unlink(), file.mkdir())[0],
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda name: name)
async def test_a_damaged_file_costs_one_sentence(tmp_path: Path, damage: str) -> None:
    await begin(tmp_path)
    for name in (f"{FILE}-wal", f"{FILE}-shm"):
        (tmp_path / name).unlink(missing_ok=True)
    DAMAGES[damage](tmp_path / FILE)
    with said() as why:
        async with running(tmp_path) as controller:
            assert controller.desired.version >= 0  # it found enough to go on
    assert all("\n" not in one and str(tmp_path) in one for one in why)


def test_the_command_says_it_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"garbage" * 1000)
    config = tmp_path / "manager.toml"
    config.write_text(
        f'[manager]\nname = "m"\nvip_prefixes = ["203.0.113.0/24"]\nlisten = "127.0.0.1:0"\n'
        f'metrics = "127.0.0.1:0"\nstate_dir = "{tmp_path}"\n'
    )
    command = [sys.executable, "-m", "manager.daemon", "run", "--config", str(config), "--insecure-loopback"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == StoreError.exit_code
    (line,) = done.stderr.splitlines()
    assert "restore it from a backup" in line
