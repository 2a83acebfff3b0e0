# SPDX-License-Identifier: Apache-2.0
"""Changes that must be confirmed, and going back to what was: at the controller, with a clock that a test moves."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import select
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from lb.daemon.clocks import Clocks
from lb.errors import ConfigError, NotFoundError, VipmuxError
from manager.api.view import View
from manager.controller.controller import Controller
from manager.desired.state import Desired, DesiredChange, Order, apply_tables, drain_backend, restore, take_back
from manager.store.events import about
from manager.store.interface import ConflictError
from manager.store.sqlite import SqliteStore
from tests.manager.fake_nodes import Site, settings_for, until
from tests.manager.fleet import RULES, plain, service

WHO = "operator:alice"
BOB = "operator:bob"


class Clock:
    """Goes on as usual, from wherever a test puts it."""

    def __init__(self) -> None:
        self._ahead = 0.0
        self._wrong = 0.0
        self.boot = "the first"
        self._since = 0.0

    @property
    def clocks(self) -> Clocks:
        return Clocks(
            lambda: time.time() + self._ahead + self._wrong,
            lambda: time.monotonic() + self._ahead - self._since,
            self.boot,
        )

    def skip(self, seconds: float) -> None:
        """Time passes."""
        self._ahead += seconds

    def set(self, seconds: float) -> None:
        """Somebody sets the wall's clock ahead."""
        self._wrong += seconds

    def restart_machine(self) -> None:
        self.boot += " and the next"
        self._since = time.monotonic() + self._ahead


@asynccontextmanager
async def managing(directory: Path, clock: Clock) -> AsyncIterator[Controller]:
    store = await SqliteStore.open(directory)
    controller = Controller(settings_for(directory), store, clocks=clock.clocks)
    try:
        await controller.start()
        yield controller
    finally:
        await controller.stop()
        await store.close()


def ports(controller: Controller) -> dict[str, str]:
    return {name: str(found.ports) for name, found in controller.desired.services.items()}


# --- confirm ---------------------------------------------------------------------------------------------------------


async def test_what_nobody_confirms_is_taken_back_on_every_mux(tmp_path: Path) -> None:
    clock = Clock()
    async with managing(tmp_path, clock) as controller:
        site = Site().connect(controller)
        await controller.writer.apply([service(), service("dns", "203.0.113.11")], WHO)
        await until(lambda: len(site.muxes[0].announces()) == 2)
        new = [service(port=81), service("more", "203.0.113.12")]
        done = await controller.writer.apply(new, WHO, replace_all=True, confirm=60)
        assert done.version == 2
        await until(lambda: site.muxes[0].state["services"]["web"]["port"] == 81)
        assert plain(View(controller).manager.status())["confirm"]["version"] == 2
        clock.skip(59)
        await asyncio.sleep(0.5)
        assert ports(controller) == {"web": "81", "more": "80"}
        clock.skip(1)
        await until(lambda: ports(controller) == {"web": "80", "dns": "80"})
        await until(lambda: site.muxes[1].state["services"]["web"]["port"] == 80)
        assert plain(View(controller).manager.status())["confirm"] is None
        waits, latest = controller.events.latest(9, about(["version 2"]))
        assert waits.text == "is rolled back in 60 s unless it is confirmed; it is of operator:alice"
        assert (latest.bad, latest.text.startswith("rolled back because operator:alice did not confirm")) == (
            True,
            True,
        )
        lines = [line for line in await controller.writer.history(9) if "rolled back" in line.what]
        assert [line.who for line in lines] == ["manager"]


async def test_what_is_confirmed_lasts(tmp_path: Path) -> None:
    clock = Clock()
    async with managing(tmp_path, clock) as controller:
        await controller.writer.apply([service()], WHO, confirm=60)
        with pytest.raises(NotFoundError, match="version 7 does not wait for a confirmation; version 1 does"):
            await controller.writer.confirm(7, WHO)
        done = await controller.writer.confirm(1, BOB, why="it works")
        assert [str(line) for line in done.change.lines] == ["version 1 confirmed"]
        assert [event.text for event in controller.events.latest(9, about(["version 1"]))][1:] == [
            "confirmed by operator:bob (it works)"
        ]
        clock.skip(3600)
        await asyncio.sleep(0.5)
        assert ports(controller) == {"web": "80"}
        with pytest.raises(NotFoundError, match="no change waits for a confirmation"):
            await controller.writer.confirm(None, WHO)
        line = (await controller.writer.history(1))[0]
        assert (line.who, line.what, line.why) == (BOB, "version 1 confirmed", "it works")


async def test_a_manager_that_starts_after_the_deadline_takes_back_before_a_node_hears_of_anything(
    tmp_path: Path,
) -> None:
    clock = Clock()
    async with managing(tmp_path, clock) as controller:
        await controller.writer.apply([service()], WHO)
        await controller.writer.apply([service(port=81)], WHO, confirm=60)
    async with managing(tmp_path, clock) as controller:
        assert ports(controller) == {"web": "81"}, "there is time left, and it waits on"
        assert controller.desired.unconfirmed is not None
    clock.skip(61)
    async with managing(tmp_path, clock) as controller:
        site = Site().connect(controller)
        assert ports(controller) == {"web": "80"}
        await until(lambda: bool(site.muxes[0].announces()))
        assert {state["services"]["web"]["port"] for state in site.muxes[0].states if "services" in state} == {80}


async def test_beside_what_waits_services_cannot_be_changed_but_machines_can_be_drained(tmp_path: Path) -> None:
    clock = Clock()
    async with managing(tmp_path, clock) as controller:
        Site().connect(controller)
        await controller.writer.apply([service()], WHO)
        await controller.writer.apply([service(port=81, hosts=(1, 2, 3))], WHO, confirm=60)
        sentence = "version 2 of operator:alice waits for its confirmation, for another 60 s: `lb confirm` keeps it"
        for refused in (
            controller.writer.apply([service("dns", "203.0.113.11")], BOB),
            controller.writer.delete_services(["web"], BOB),
            controller.writer.rollback(0, BOB),
        ):
            with pytest.raises(ConflictError, match=sentence):
                await refused
        assert (await controller.writer.apply([service("dns", "203.0.113.11")], BOB, dry_run=True)).change.lines
        assert (await controller.writer.apply([service(port=81, hosts=(1, 2, 3))], BOB)).change.empty
        for backend in ("web-1", "web-3"):
            await controller.writer.drain_backend("web", backend, BOB, drain=True)
        await controller.node_orders.drain_mux("mux1", BOB, drain=True)
        clock.skip(60)
        await until(lambda: ports(controller) == {"web": "80"})
        assert controller.desired.drains.keys() == {"web/web-1"}, "a drain outlives it, but for backends that are gone"
        assert controller.desired.mux_drains.keys() == {"mux1"}


async def test_a_rollback_ends_the_waiting_at_once(tmp_path: Path) -> None:
    async with managing(tmp_path, Clock()) as controller:
        await controller.writer.apply([service()], WHO)
        await controller.writer.apply([service(port=81)], WHO, confirm=60)
        shown = await controller.writer.rollback(None, BOB, dry_run=True)
        assert [line.name for line in shown.change.lines] == ["version 2", "service web"]
        assert controller.desired.unconfirmed is not None
        await controller.writer.rollback(None, BOB)
        assert (ports(controller), controller.desired.unconfirmed) == ({"web": "80"}, None)


async def test_nothing_changed_is_nothing_to_confirm(tmp_path: Path) -> None:
    async with managing(tmp_path, Clock()) as controller:
        await controller.writer.apply([service()], WHO)
        await controller.writer.apply([service()], WHO, confirm=60)
        assert controller.desired.unconfirmed is None


async def test_a_disk_that_is_full_puts_off_taking_back_and_no_more(tmp_path: Path) -> None:
    clock = Clock()
    store = await FullAtTimes.open(tmp_path)
    assert isinstance(store, FullAtTimes)
    controller = Controller(settings_for(tmp_path), store, clocks=clock.clocks)
    await controller.start()
    await controller.writer.apply([service()], WHO, confirm=5)
    store.full = True
    clock.skip(5)
    await until(lambda: any("cannot roll back" in event.text for event in controller.events.latest(20)))
    await asyncio.sleep(0.5)
    assert sum("cannot roll back" in event.text for event in controller.events.latest(20)) == 1
    assert ports(controller) == {"web": "80"}
    store.full = False
    await until(lambda: ports(controller) == {})
    await controller.stop()
    await store.close()


class FullAtTimes(SqliteStore):
    full = False

    async def commit(self, *arguments: Any, **more: Any) -> int:
        if self.full:
            raise VipmuxError("disk full")
        return await super().commit(*arguments, **more)


# --- rollback --------------------------------------------------------------------------------------------------------


async def test_any_version_can_come_back_as_a_new_one(tmp_path: Path) -> None:
    async with managing(tmp_path, Clock()) as controller:
        await controller.writer.apply([service(), service("dns", "203.0.113.11")], WHO)
        await controller.writer.drain_backend("web", "web-1", WHO, drain=True)
        await controller.writer.apply([service(hosts=(2, 3))], WHO, replace_all=True, why="host1 is to go")
        assert controller.desired.drains == {}
        done = await controller.writer.rollback(2, BOB, why="it was too early")
        assert [str(line) for line in done.change.lines] == [
            "service web changed: backend web-1 added, backend web-3 removed",
            "service dns created: 203.0.113.11 tcp 80, 2 backends",
            "backend web/web-1 drained",
        ]
        assert controller.desired.drains["web/web-1"].who == WHO, "who drained it then"
        line = next(line for line in await controller.writer.history(9) if line.version == done.version)
        assert (line.who, line.why, line.what.startswith("rolled back to version 2: ")) == (
            BOB,
            "it was too early",
            True,
        )
        await controller.writer.rollback(1, BOB)
        assert controller.desired.drains == {}
        await controller.writer.rollback(0, BOB)
        assert controller.desired.services == {}
        assert (await controller.writer.rollback(0, BOB)).change.empty


async def test_without_a_version_the_latest_change_is_taken_back_and_twice_is_back(tmp_path: Path) -> None:
    async with managing(tmp_path, Clock()) as controller:
        Site().connect(controller)
        with pytest.raises(NotFoundError, match="none of the latest versions changed services or drains"):
            await controller.writer.rollback(None, WHO)
        await controller.writer.apply([service()], WHO)
        await controller.writer.apply([service(port=81)], WHO)
        await controller.node_orders.drain_mux("mux1", WHO, drain=True)
        await controller.writer.rollback(None, WHO)
        assert (ports(controller), controller.desired.mux_drains.keys()) == ({"web": "80"}, {"mux1"})
        await controller.writer.rollback(None, WHO)
        assert ports(controller) == {"web": "81"}


@pytest.mark.parametrize("by_hand", [False, True])
async def test_what_was_taken_back_already_is_not_offered_again(tmp_path: Path, by_hand: bool) -> None:
    clock = Clock()
    async with managing(tmp_path, clock) as controller:
        Site().connect(controller)
        await controller.writer.apply([service()], WHO)
        await controller.writer.apply([service(port=81)], WHO)
        await controller.writer.apply([service(port=82)], WHO, confirm=60)
        if by_hand:
            await controller.writer.rollback(None, WHO)
        else:
            clock.skip(60)
            await until(lambda: ports(controller) == {"web": "81"})
        shown = await controller.writer.rollback(None, WHO, dry_run=True)
        assert [str(line) for line in shown.change.lines] == ["service web changed: ports 81 → 80"]
        await controller.writer.rollback(None, WHO)
        assert ports(controller) == {"web": "80"}
        await controller.writer.rollback(None, WHO)
        assert ports(controller) == {"web": "81"}, "twice is back"


async def test_a_drain_ordered_while_a_change_waited_is_taken_back_alone(tmp_path: Path) -> None:
    clock = Clock()
    async with managing(tmp_path, clock) as controller:
        Site().connect(controller)
        await controller.writer.apply([service()], WHO)
        await controller.writer.apply([service(port=81)], WHO, confirm=60)
        await controller.writer.drain_backend("web", "web-1", BOB, drain=True)
        clock.skip(60)
        await until(lambda: ports(controller) == {"web": "80"})
        done = await controller.writer.rollback(None, WHO)
        assert [str(line) for line in done.change.lines] == ["backend web/web-1 undrained"]
        assert done.change.title == "version 3 rolled back"
        assert (ports(controller), controller.desired.drains) == ({"web": "80"}, {})


async def test_what_was_right_then_is_checked_by_the_rules_of_today(tmp_path: Path) -> None:
    async with managing(tmp_path, Clock()) as controller:
        await controller.writer.apply([service()], WHO)
        await controller.writer.delete_services(["web"], WHO)
        site = Site(hosts=0)
        site.muxes[0].settings = {"name": "mux1", "address": "203.0.113.10"}
        site.connect(controller)
        with pytest.raises(ConfigError, match=r"takes the address of MUX mux1, 203\.0\.113\.10"):
            await controller.writer.rollback(1, WHO)
        assert controller.desired.services == {}
        with pytest.raises(NotFoundError, match="there is no version 99; the latest is"):
            await controller.writer.rollback(99, WHO)


# --- as values -------------------------------------------------------------------------------------------------------

NAMES = ("web", "dns", "api")
STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.just("apply"),
            st.sampled_from(NAMES),
            st.integers(80, 82),
            st.sets(st.integers(1, 3), min_size=1).map(lambda hosts: tuple(sorted(hosts))),
            st.booleans(),
        ),
        st.tuples(st.just("drain"), st.sampled_from(NAMES), st.integers(1, 3), st.booleans()),
    ),
    max_size=10,
)


def stepped(desired: Desired, step: tuple[Any, ...], number: int) -> DesiredChange | None:
    try:
        if step[0] == "apply":
            _, name, port, hosts, alone = step
            table = service(name, f"203.0.113.{10 + NAMES.index(name)}", hosts, port)
            return apply_tables(desired, [table], RULES, replace_all=alone)
        _, name, host, drain = step
        return drain_backend(desired, name, f"{name}-{host}", Order(WHO, float(number)) if drain else None)
    except VipmuxError:
        return None


@given(STEPS)
@settings(max_examples=40, deadline=None)
def test_going_back_over_any_history_gives_services_and_drains_of_then(steps: list[tuple[Any, ...]]) -> None:
    async def run() -> None:
        with TemporaryDirectory() as directory:
            store = await SqliteStore.open(Path(directory))
            versions = [Desired()]
            for number, step in enumerate(steps):
                change = stepped(versions[-1], step, number)
                if change is not None and not change.empty:
                    await store.commit(len(versions) - 1, change.delta(), WHO, change.what, float(number))
                    versions.append(change.new)
            for to, then in enumerate(versions):
                undo = await store.undo(to, len(versions) - 1)
                for again in (restore(versions[-1], undo, RULES).new, take_back(versions[-1], undo, "why").new):
                    assert again.services == then.services
                    assert again.drains.keys() == then.drains.keys()
                    assert again.by_vip == then.by_vip
            await store.close()

    asyncio.run(run())


# --- killed at any moment --------------------------------------------------------------------------------------------

KILLS = 200


def change_until_killed(directory: Path, acknowledge: int) -> None:
    """A child's life: applies with --confirm, and confirms or takes back; tells the port that is sure to last."""

    async def run() -> None:
        store = await SqliteStore.open(directory)
        controller = Controller(settings_for(directory), store)
        await controller.start()
        found = controller.desired.services.get("web")
        port = found.ports.first if found is not None else 0
        while True:
            await controller.writer.apply([service(port=port + 1)], WHO, confirm=3600)
            if random.random() < 0.3:
                await controller.writer.drain_backend("web", "web-1", WHO, drain=not controller.desired.drains)
            if random.random() < 0.5:
                await controller.writer.confirm(None, WHO)
                port += 1
            else:
                await controller.writer.rollback(None, WHO)
            os.write(acknowledge, f"{port}\n".encode())

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    asyncio.run(run())


async def stored_port(directory: Path) -> tuple[int, bool]:
    """The port in the store, and whether it waits for its confirmation."""
    store = await SqliteStore.open(directory)
    entries = (await store.load()).entries
    await store.close()
    return entries.get("services", {}).get("web", {"port": 0})["port"], "pending" in entries


async def port_after_a_start(directory: Path) -> int:
    """An hour later, with a manager that starts anew; and its history must be whole."""
    clock = Clock()
    clock.skip(3600)
    async with managing(directory, clock) as controller:
        assert controller.desired.unconfirmed is None
        versions = [line.version for line in await controller.writer.history(5000)]
        assert versions == list(range(controller.desired.version, 0, -1))
        everything = await controller.writer.rollback(0, WHO, dry_run=True)
        assert everything.change.new.services == {}
        found = controller.desired.services.get("web")
        return found.ports.first if found is not None else 0


def test_killed_200_times_what_was_confirmed_lasts_and_what_was_not_is_taken_back(tmp_path: Path) -> None:
    rng = random.Random(3)
    lasting = worked = caught_waiting = 0
    for number in range(KILLS):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.close(reader)
                change_until_killed(tmp_path, writer)
            finally:
                os._exit(1)
        os.close(writer)
        try:
            if number % 4:  # the others are killed while they start, or wherever they are by then
                assert select.select([reader], [], [], 30)[0], "it never came to its work"
            time.sleep(rng.uniform(0.0, 0.06))  # the moment is what is random
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        words = read_all(reader).split("\n")[:-1]
        if words:
            worked += 1
            lasting = int(words[-1])
        port, waits = asyncio.run(stored_port(tmp_path))
        assert port in (lasting, lasting + 1), "what was confirmed is lost"
        after = asyncio.run(port_after_a_start(tmp_path))
        if waits:
            caught_waiting += 1
            assert after == port - 1 == lasting, "what nobody confirmed was not taken back"
        else:
            assert after == port, "what was confirmed was taken back"
        lasting = after
    assert worked > KILLS / 4
    assert caught_waiting > KILLS / 10


def read_all(reader: int) -> str:
    data = b""
    while piece := os.read(reader, 65536):
        data += piece
    os.close(reader)
    return data.decode()
