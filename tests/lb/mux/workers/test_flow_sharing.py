# SPDX-License-Identifier: Apache-2.0
"""Unsynchronised flows told at all times: real flow tables and the manager's own office between them, no network."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from lb.model import BackendState, Service
from lb.mux.workers import flow_sharing
from lb.mux.workers.flow_sharing import FlowSharing
from lb.node.messages import FlowNewsMessage
from tests.lb.mux.workers.test_flow_sync import CLIENTS, Mux, Office
from tests.native.test_flow_table_scan import services

UP, DRAIN = BackendState.UP, BackendState.DRAIN


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks follow each other faster than flows age: the packets' clock is the tests' own."""
    monkeypatch.setattr(flow_sharing, "PAUSES", (0.01, 0.02))
    monkeypatch.setattr(flow_sharing, "ANEW_EVERY", 0.05)


def sharing(mux: Mux) -> FlowSharing:
    return mux.handover.sharing


@contextlib.asynccontextmanager
async def at_work(*muxes: Mux) -> Any:
    tasks = [asyncio.create_task(work()) for mux in muxes for work in (mux.handover.run, sharing(mux).run)]
    try:
        yield
    finally:
        for task in tasks:
            assert not task.done(), task
            task.cancel()


def play(test: Callable[[Office, list[Mux]], Awaitable[None]], *tables: tuple[Service, ...], **keys: Any) -> Office:
    """With a MUX for each of these."""
    office = Office()

    async def main() -> None:
        muxes = [Mux(office, f"mux{n}", told, **keys) for n, told in enumerate(tables, 1)]
        async with asyncio.timeout(30), at_work(*muxes):
            await test(office, muxes)

    asyncio.run(main())
    return office


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110  a flow table tells nobody
        await asyncio.sleep(0.01)


def publish(told: tuple[Service, ...], *muxes: Mux) -> None:
    for mux in muxes:
        mux.publish(told)
        sharing(mux).changed()


def remembered(mux: Mux) -> dict[str, int]:
    """Flows by backend, as they would be found in a packet's way."""
    forwarding, found = mux.engine.unsynchronised(10_000)
    return {
        str(backend.name): len(records) // 8
        for (service, number), records in found.records.items()
        if (backend := forwarding.backend(service, number)) is not None
    }


def live(mux: Mux) -> int:
    return mux.engine.totals().live


def grown(mux: Mux, flags: str = "A", *, begin: int = 1, clients: range = CLIENTS) -> list[str | None]:
    """Conversations that are trusted: a packet, and another a second later."""
    went = mux.went("S", clients=clients, now=begin)
    mux.went(flags, clients=clients, now=begin + 1)
    return went


class Heard:
    """What passes the manager."""

    def __init__(self, office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
        self.letters: list[tuple[str, FlowNewsMessage]] = []
        say = office.say

        def noted(mux: str, letter: Any) -> None:
            if isinstance(letter, FlowNewsMessage):
                self.letters.append((mux, letter))
            say(mux, letter)

        monkeypatch.setattr(office, "say", noted)

    def told(self, mux: str) -> int:
        return sum(group.count for name, letter in self.letters if name == mux for group in letter.come)

    def asked(self) -> Iterator[str]:
        return (name for name, letter in self.letters if letter.again)


def test_a_mux_may_die_after_a_change_and_the_others_know_where_its_flows_go() -> None:
    async def test(office: Office, muxes: list[Mux]) -> None:
        one, two, three = muxes
        went = grown(one)
        publish(services(DRAIN, UP, UP), *muxes)
        await until(lambda: remembered(two) == remembered(one) == remembered(three) != {})
        for mux in (two, three):
            assert mux.went("A", now=3) == went

    play(test, *[services(UP, UP)] * 3)


def test_what_others_told_is_a_copy_and_what_goes_on_here_is_none() -> None:
    def copies(mux: Mux) -> int:
        ids = mux.engine.forwarding.ids
        return sum(sharing(mux).copies(service, number) for service in ids for number in range(3))

    async def test(office: Office, muxes: list[Mux]) -> None:
        one, two = muxes
        grown(one)
        publish(services(DRAIN, UP, UP), *muxes)
        await until(lambda: remembered(two) == remembered(one) != {})
        await until(lambda: copies(two) == sum(remembered(two).values()))
        assert copies(one) == 0

    play(test, *[services(UP, UP)] * 2)


def test_copies_are_forgotten_once_any_mux_would_choose_the_same() -> None:
    """The change is taken back: whoever has the flow goes on with it, and nobody else needs to know it."""

    async def test(office: Office, muxes: list[Mux]) -> None:
        one, two = muxes
        went = grown(one)
        publish(services(DRAIN, UP, UP), *muxes)
        await until(lambda: remembered(two) == remembered(one) != {})
        publish(services(UP, UP), *muxes)
        await until(lambda: live(two) == 0)
        assert live(one) == len(went)

    play(test, *[services(UP, UP)] * 2)


def test_flows_that_began_under_the_older_state_are_told_when_the_change_comes_to_their_mux() -> None:
    async def test(office: Office, muxes: list[Mux]) -> None:
        late, soon = muxes
        publish(services(UP, UP, UP), soon)
        went = grown(late)
        await asyncio.sleep(0.1)
        assert live(soon) == 0, "nothing differs by what that MUX knows"
        publish(services(UP, UP, UP), late)
        await until(lambda: remembered(soon) == remembered(late) != {})
        assert soon.went("A", now=3) == went

    play(test, *[services(UP, UP)] * 2)


def test_a_flow_that_is_trusted_only_after_the_change_is_told_then() -> None:
    async def test(office: Office, muxes: list[Mux]) -> None:
        one, two = muxes
        one.went("S")
        publish(services(DRAIN, DRAIN, UP), *muxes)
        await asyncio.sleep(0.1)
        assert live(two) == 0, "a flood of SYNs shares nothing"
        one.went("A", now=2)
        await until(lambda: live(two) == len(CLIENTS))

    play(test, *[services(UP, UP)] * 2)


def test_of_more_young_flows_than_conversations_ever_make_none_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow_sharing, "YOUNG_MAX", 50)

    async def test(office: Office, muxes: list[Mux]) -> None:
        one, two = muxes
        conversations = grown(one, clients=range(1, 11))
        one.went("S", now=2, clients=range(1001, 1101))
        one.went("A", now=2, clients=range(1001, 1101))
        publish(services(DRAIN, DRAIN, UP), *muxes)
        await until(lambda: live(two) > 0)
        await asyncio.sleep(0.1)
        assert live(two) == len(conversations)

    play(test, *[services(UP, UP)] * 2)


def test_what_ended_is_forgotten_everywhere_and_what_goes_on_is_not() -> None:
    async def test(office: Office, muxes: list[Mux]) -> None:
        one, two = muxes
        grown(one)
        publish(services(DRAIN, DRAIN, UP), *muxes)
        await until(lambda: live(two) == len(CLIENTS))
        ended = CLIENTS[:80]
        one.went("FA", clients=ended, now=3)
        one.went("A", clients=CLIENTS[80:], now=20)  # by then the ends are silent for long enough
        two.went("A", clients=[5000], now=20)
        await until(lambda: live(two) == len(CLIENTS) - len(ended) + 1)

    play(test, *[services(UP, UP)] * 2)


def test_what_ended_just_before_it_became_unsynchronised_is_forgotten_though_ages_are_told_in_round_numbers() -> None:
    async def test(office: Office, muxes: list[Mux]) -> None:
        one, two = muxes
        grown(one)
        one.went("FA", now=3)
        for mux in muxes:
            mux.went("A", clients=[5000], now=5)  # 7 ticks later, which others hear of as 4
        publish(services(DRAIN, DRAIN, UP), *muxes)
        await until(lambda: live(two) == len(CLIENTS) + 1)
        for mux in muxes:
            mux.went("A", clients=[5000], now=14)
        await until(lambda: live(two) == 1)

    play(test, *[services(UP, UP)] * 2)


def test_a_new_connection_on_the_ports_of_one_that_was_shared_is_not_sent_where_that_one_went() -> None:
    async def test(office: Office, muxes: list[Mux]) -> None:
        one, two = muxes
        grown(one)
        publish(services(DRAIN, DRAIN, UP, UP), *muxes)
        await until(lambda: live(two) == len(CLIENTS))
        anew = one.went("S", now=4)
        assert set(anew) == {"b3", "b4"}
        await until(lambda: live(two) == 0)
        assert two.went("A", now=5) == anew

    play(test, *[services(UP, UP)] * 2)


def test_each_flow_is_told_once_and_by_one_mux_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(office: Office, muxes: list[Mux]) -> None:
        heard = Heard(office, monkeypatch)
        grown(muxes[0])
        publish(services(DRAIN, DRAIN, UP), *muxes)
        await until(lambda: all(live(mux) == len(CLIENTS) for mux in muxes))
        await asyncio.sleep(0.2)
        assert [heard.told(mux.name) for mux in muxes] == [len(CLIENTS), 0, 0]

    play(test, *[services(UP, UP)] * 3)


def test_a_flow_that_goes_on_is_told_again_before_others_forget_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FlowSharing, "_look_at_idle", lambda self: 0.6)

    async def test(office: Office, muxes: list[Mux]) -> None:
        heard = Heard(office, monkeypatch)
        one, two = muxes
        grown(one)
        publish(services(DRAIN, DRAIN, UP), *muxes)
        await until(lambda: live(two) == len(CLIENTS))
        for now in (300, 600, 900, 1200, 1500):  # longer than idle flows are remembered, 900 s
            told = heard.told("mux1")
            one.went("A", now=now)
            two.went("A", clients=[5000], now=now)
            await until(lambda told=told: heard.told("mux1") >= told + len(CLIENTS))  # type: ignore[misc]
        await until(lambda: sum(remembered(two).values()) >= len(CLIENTS))

    play(test, *[services(UP, UP)] * 2)


def test_who_was_not_connected_hears_everything_when_it_is() -> None:
    async def test(office: Office, muxes: list[Mux]) -> None:
        one, two = muxes
        went = grown(one)
        two.connected = False
        publish(services(DRAIN, UP, UP), *muxes)
        await until(lambda: sharing(one)._ledger.known > 0)
        await asyncio.sleep(0.1)
        assert live(two) == 0
        two.connected = True
        sharing(two).joined()
        await until(lambda: remembered(two) == remembered(one))
        assert two.went("A", now=3) == went

    play(test, *[services(UP, UP)] * 2)


def test_muxes_with_another_seed_take_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(office: Office, muxes: list[Mux]) -> None:
        heard = Heard(office, monkeypatch)
        one, two = muxes[0], Mux(office, "other", services(UP, UP), seed=bytes(16))
        async with at_work(two):
            grown(one)
            publish(services(DRAIN, DRAIN, UP), one, two)
            await until(lambda: heard.told("mux1") == len(CLIENTS))
            await asyncio.sleep(0.1)
            assert live(two) == 0

    play(test, services(UP, UP))
