# SPDX-License-Identifier: Apache-2.0
"""Watching: news come at once, counters within a share of the time, and nothing is missed."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from lb.daemon.time_budget import Budget
from manager.controller.change_feed import SAVED, SHARE, ChangeFeed, Cursor, News
from tests.manager.api.test_server import api
from tests.manager.fleet import service


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("text", ["", "1", "1-2", "1-2-3-4", "a-b-c", "-1-2-3", "1-2-" + "9" * 30, "1-2-²"])
def test_a_cursor_of_somebody_else_is_none(text: str) -> None:
    assert Cursor.parse(text) is None
    assert Cursor.parse(str(Cursor(3, 4, 5))) == Cursor(3, 4, 5)


def test_a_budget_is_a_share_of_the_time() -> None:
    clock = Clock()
    budget = Budget(SHARE, clock)
    assert budget.wait() == 0
    budget.spend(SAVED + 0.1)
    assert budget.wait() == pytest.approx(0.1 / SHARE)
    clock.now += 0.1 / SHARE + 0.001
    assert budget.wait() == 0
    clock.now += 1e6
    budget.spend(SAVED / 2)  # what is saved has an end, but may be spent at once
    assert budget.wait() == 0
    budget.spend(SAVED)
    assert budget.wait() > 0


async def test_news_of_a_service_come_at_once_and_of_others_not_at_all() -> None:
    changes = ChangeFeed()
    cursor = changes.cursor()
    began = time.monotonic()
    asyncio.get_running_loop().call_later(0.05, changes.services, ["web"])
    assert await changes.wait("services", cursor, 5.0) == (News(frozenset({"web"})), False)
    assert time.monotonic() - began < 2.0
    assert (await changes.wait("backends", cursor, 5.0))[0].services == {"web"}
    assert await changes.wait("services", changes.cursor(), 0.0) == (News(frozenset()), False)
    assert await changes.wait("services", cursor, 0.05, ["dns"]) == (News(frozenset()), False)
    assert await changes.wait("muxes", cursor, 0.0) == (News(frozenset()), False)
    changes.tables("muxes")
    assert await changes.wait("muxes", cursor, 0.0) == (News(None), False)


async def test_counters_that_must_wait_hold_no_news_up_and_are_not_forgotten() -> None:
    changes = ChangeFeed()
    cursor = changes.cursor()
    changes.spent(SAVED + SHARE * 0.3, counters=True)  # 0.3 s to wait
    changes.counted(["web", "dns"])
    assert await changes.wait("services", cursor, 0.01) == (News(frozenset()), False)
    changes.services(["mail"])
    news, counters = await changes.wait("services", cursor, 1.0)
    assert (news.services, counters) == ({"mail"}, False)
    later = changes.cursor(cursor, counters=counters)
    news, counters = await changes.wait("services", later, 5.0)
    assert (news.services, counters) == ({"web", "dns"}, True)


async def test_who_saw_too_little_or_another_manager_gets_everything() -> None:
    changes = ChangeFeed()
    changes.term = 7
    assert (await changes.wait("services", Cursor(6, 1, 1), 0.0))[0].services is None
    assert (await changes.wait("services", Cursor(7, 99, 1), 0.0))[0].services is None
    early = changes.cursor()
    changes.services(f"s{n}" for n in range(20_000))
    changes.forget({"s1"})
    changes.services(["s1"])
    assert (await changes.wait("services", early, 0.0))[0].services is None
    assert (await changes.wait("services", changes.cursor(), 0.0))[0].services == frozenset()


async def test_a_watcher_hears_of_every_change_and_of_every_end(tmp_path: Path) -> None:
    async with api(tmp_path) as client:
        await client.ask("POST", "/v1/apply", {"services": [service(), service("dns", "203.0.113.11")], "wait": 5})
        await asyncio.sleep(0.3)  # until all of it is planned
        first = await client.get("/v1/watch?what=backends")
        assert first["whole"]
        assert {row["service"] for row in first["rows"]} == {"web", "dns"}
        cursor = first["cursor"]
        asking = asyncio.create_task(client.get(f"/v1/watch?what=backends&since={cursor}&wait=10"))
        await asyncio.sleep(0.1)
        await client.ask("POST", "/v1/backends/web/web-2/drain")
        seen: list[tuple[str, str]] = []
        while ("web-2", "drain") not in seen:
            answer = await asking
            assert not answer["whole"]
            assert {row["service"] for row in answer["rows"]} <= {"web"}
            seen = [(row["name"], row["state"]) for row in answer["rows"]]
            asking = asyncio.create_task(client.get(f"/v1/watch?what=backends&since={answer['cursor']}&wait=10"))
        await client.ask("DELETE", "/v1/services/dns")
        gone: list[str] = []
        while "dns" not in gone:
            answer = await asking
            gone = answer["gone"]
            asking = asyncio.create_task(client.get(f"/v1/watch?what=backends&since={answer['cursor']}&wait=1"))
        await asking
        for what in ("services", "muxes", "agents", "announcements", "events", "history", "status"):
            assert (await client.get(f"/v1/watch?what={what}"))["rows"], what


async def test_tables_are_chosen_from_by_service(tmp_path: Path) -> None:
    async with api(tmp_path) as client:
        tables = [service(), service("dns", "203.0.113.11"), service("mail", "203.0.113.12")]
        await client.ask("POST", "/v1/apply", {"services": tables, "wait": 5})
        assert [row["name"] for row in await client.get("/v1/services?service=web&service=dns")] == ["dns", "web"]
        assert [row["name"] for row in await client.get("/v1/services?limit=2")] == ["dns", "mail"]
        assert {row["service"] for row in await client.get("/v1/backends?service=mail")} == {"mail"}
        client.site.muxes[0].answers = False  # so what is deleted is not withdrawn yet
        await client.ask("DELETE", "/v1/services/web")
        assert [row["name"] for row in await client.get("/v1/services?limit=2")] == ["dns", "mail", "web"], "no limit"
        assert [row["name"] for row in await client.get("/v1/services?limit=1")] == ["dns"]
        status, answer = await client.ask("GET", "/v1/backends?service=nono")
        assert (status, answer["error"]) == (404, 'there is no service "nono"')
