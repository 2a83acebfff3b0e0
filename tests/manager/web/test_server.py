# SPDX-License-Identifier: Apache-2.0
"""The web page's server: what it shows, what it pushes, and whom it lets drain. By real HTTP."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientResponse, ClientSession, CookieJar
from aiohttp.test_utils import TestServer

from lb.errors import AccessError
from lb.rows.backend import BackendRow
from manager.api.view import View
from manager.controller.controller import Controller
from manager.store.sqlite import SqliteStore
from manager.web import server as pages_module
from manager.web.server import WebPage, changes
from manager.web.sessions import FAILURES_MAX, WINDOW, Sessions, TooManyError
from tests.manager.fake_nodes import Site, running, until
from tests.manager.fleet import plain, service, with_probe

TOKEN = "lb1.alice.0"  # noqa: S105


class Clock:
    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


@dataclass
class Reader:
    """A browser, as far as the server knows."""

    session: ClientSession
    url: str
    site: Site
    controller: Controller
    pages: WebPage
    clock: Clock
    csrf: str = ""

    async def get(self, path: str, **options: Any) -> tuple[int, Any]:
        async with self.session.get(self.url + path, **options) as reply:
            return reply.status, await reply.json()

    async def post(self, path: str, body: Any, **headers: str) -> tuple[int, Any, ClientResponse]:
        given = {"Origin": self.url, "X-Vipmux-Csrf": self.csrf, "Content-Type": "application/json"}
        given |= {name.replace("_", "-"): value for name, value in headers.items()}
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with self.session.post(self.url + path, data=data, headers=given) as reply:
            return reply.status, await reply.json(), reply

    async def login(self) -> None:
        status, body, _ = await self.post("/v1/page/login", {"token": TOKEN})
        assert status == 200, body
        self.csrf = body["csrf"]

    def shown(self, name: str = "web-1") -> str:
        return next(i.shown for p in self.controller.plan.vips.values() for i in p.backends if i.backend.name == name)

    async def drain(self, **headers: str) -> tuple[int, Any]:
        body = {"service": "web", "backend": "web-1", "drain": True}
        return (await self.post("/v1/page/drain", body, **headers))[:2]


async def check(token: str, _: str) -> tuple[str, float]:
    if token != TOKEN:
        raise AccessError("the token is not an operator's of this manager")
    return "operator:alice", time.time() + 3600


@asynccontextmanager
async def page(directory: Path, *, login: bool = True, services: int = 1) -> AsyncIterator[Reader]:
    store = await SqliteStore.open(directory)
    clock = Clock()
    async with running(directory, store) as controller:
        site = Site().connect(controller)
        tables = [with_probe(service(f"web{n or ''}", f"203.0.113.{n + 10}")) for n in range(services)]
        for table in tables[:1]:
            for number, backend in enumerate(table["backend"]):
                backend["name"] = f"web-{number + 1}"
        await controller.writer.apply(tables, "operator:alice")
        await until(lambda: bool(site.hosts[1].state.get("services")))
        for table in tables:
            for host, backend in zip(site.hosts, table["backend"], strict=False):
                host.report(table["name"], backend["name"], True)
        pages = WebPage(controller, View(controller), Sessions(check, clock) if login else None, secure=False)
        running_pages = asyncio.create_task(pages.run())
        jar = CookieJar(unsafe=True)
        try:
            async with TestServer(pages.app) as server, ClientSession(cookie_jar=jar) as session:
                url = str(server.make_url("")).rstrip("/")
                reader = Reader(session, url, site, controller, pages, clock)
                await until(lambda: reader.shown() == "up")
                await until(
                    lambda: all(
                        row["announced_by"] == ["mux1", "mux2"] for row in plain(View(controller).services.rows())
                    )
                )
                yield reader
        finally:
            running_pages.cancel()


async def events(reply: ClientResponse) -> AsyncIterator[tuple[str, Any]]:
    name = ""
    async for line in reply.content:
        word, _, rest = line.decode().rstrip("\n").partition(": ")
        if word == "event":
            name = rest
        elif word == "data":
            yield name, json.loads(rest)


# --- reading ---------------------------------------------------------------------------------------------------------


async def test_the_page_is_read_without_login_and_says_that_all_is_well(tmp_path: Path) -> None:
    async with page(tmp_path) as reader:
        status, body = await reader.get("/v1/page?service=web")
        assert status == 200
        assert body["summary"]["text"] == "All well: 1 service, 2 MUXes, 3 hosts"
        assert (body["summary"]["level"], body["summary"]["problems"]) == ("well", [])
        assert [row["name"] for row in body["services"]] == ["web"]
        assert [row["state"] for row in body["service"]["backends"]] == ["up", "up"]
        assert "10.0.3.1" in json.dumps(body["hosts"])


async def test_the_verdict_names_what_is_wrong_the_worst_first(tmp_path: Path) -> None:
    async with page(tmp_path, services=2) as reader:
        reader.site.hosts[0].report("web", "web-1", False, "connection refused")
        reader.site.muxes[1].leave()
        peer = {"name": "tor1", "address": "10.0.1.1", "state": "active", "error": "hold timer expired"}
        reader.controller.hub.status(reader.site.muxes[0], {"peers": [peer], "mux": {"flows": 7}})
        await until(lambda: reader.shown() == "down")
        _, body = await reader.get("/v1/page")
        assert body["summary"]["level"] == "bad"
        assert body["summary"]["text"] == "1 backend down; mux2 away; BGP mux1 with tor1 not established"
        problems = [(problem["subject"], problem["text"]) for problem in body["summary"]["problems"]]
        assert ("backend web/web-1", "down: its agent says: connection refused") in problems
        assert ("mux mux1", "BGP session with tor1 is active: hold timer expired") in problems
        assert problems[0] == ("mux mux2", "is disconnected: it goes on with what it has")
        assert [row["name"] for row in body["services"]] == ["web", "web1"]


async def test_every_row_says_why_it_is_as_it_is_in_the_words_of_lb_get(tmp_path: Path) -> None:
    async with page(tmp_path, services=2) as reader:
        _, body = await reader.get("/v1/page")
        assert [row["why"] for row in (*body["services"], *body["muxes"])] == [None] * 4
        reader.site.hosts[0].report("web", "web-1", False, "connection refused")
        told = {"rejected": "port: must be 1 to 65535", "saturated": "loses packets of web"}
        reader.controller.hub.status(reader.site.muxes[0], {"mux": told})
        reader.site.muxes[1].leave()
        reader.site.hosts[1].leave()
        await until(lambda: reader.shown() == "down")
        _, body = await reader.get("/v1/page")
        whys = {row["name"]: row["why"] for key in ("services", "muxes", "hosts") for row in body[key]}
        assert "web-1 down: its agent says: connection refused" in whys["web"]
        assert "loses packets of web" in whys["mux1"]
        assert "goes on with an older configuration: port: must be 1 to 65535" in whys["mux1"]
        assert whys["mux2"].startswith("is disconnected; it goes on with what it has")
        assert whys["host2"].startswith("is disconnected; it goes on with what it has")
        view = View(reader.controller)
        for row in view.nodes.muxes():  # the same sentences
            assert all(word in whys[row.name] for word in row.words())
        (note,) = [note for note in BackendRow.notes(view.services.backends()) if "web/web-1" in note]
        assert note.replace("web/", "") in whys["web"]


async def test_services_are_searched_filtered_and_paged_by_the_manager(tmp_path: Path) -> None:
    async with page(tmp_path, services=12) as reader:
        reader.site.hosts[0].report("web11", "web11-1", False)

        async def names(query: str) -> tuple[int, list[str]]:
            _, body = await reader.get(f"/v1/page?{query}")
            return body["matched"], [row["name"] for row in body["services"]]

        await until(lambda: reader.shown("web11-1") == "down")
        assert await names("limit=3") == (12, ["web11", "web", "web1"])
        assert await names("limit=2&offset=10") == (12, ["web9", "web10"])
        assert await names("q=203.0.113.13") == (1, ["web3"])
        assert await names("q=WEB7-2") == (1, ["web7"])
        assert await names("state=problems") == (1, ["web11"])
        assert await names("q=nothing") == (0, [])
        assert (await reader.get("/v1/page?service=gone"))[1]["service"] is None


async def test_what_is_kept_of_services_agrees_with_the_plan_through_changes(tmp_path: Path) -> None:
    async with page(tmp_path, services=5) as reader:
        await reader.get("/v1/page")
        await reader.controller.writer.delete_services(["web3"], "operator:alice")
        reader.site.hosts[0].report("web", "web-1", False)
        await reader.controller.writer.drain_backend("web1", "web1-2", "operator:alice", drain=True)
        await until(lambda: reader.shown("web1-2") == "drain" and reader.shown() == "down")
        _, body = await reader.get("/v1/page")
        assert body["summary"]["service_states"] == {"degraded": 1, "up": 3}
        assert body["summary"]["backend_states"] == {"up": 6, "down": 1, "drain": 1}
        hosts = {row["name"]: row["backends"] for row in body["hosts"]}
        assert hosts == {"host1": {"up": 3, "down": 1}, "host2": {"up": 3, "drain": 1}, "host3": {}}


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("offset=-1", "offset must be 0 to 1000000, not '-1'"),
        ("limit=0", "limit must be 1 to 200, not '0'"),
        ("limit=9999999999", "limit must be 1 to 200"),
        ("limit=%D9%A1", "limit must be 1 to 200"),
        ("q=" + "x" * 101, "q has 101 characters; 100 are the most"),
        ("sort=name", "unknown parameter 'sort'"),
    ],
)
async def test_a_wrong_query_is_refused_in_a_sentence(tmp_path: Path, query: str, sentence: str) -> None:
    async with page(tmp_path) as reader:
        for path in ("/v1/page", "/v1/page/stream"):
            status, body = await reader.get(f"{path}?{query}")
            assert status == 400
            assert sentence in body["error"]


async def test_every_answer_keeps_browsers_strict_and_every_file_is_ours(tmp_path: Path) -> None:
    async with page(tmp_path) as reader:
        for path in ("/", "/web/main.js", "/web/page.css", "/v1/page", "/nothing", "/web/../pages.py", "/web/pages.py"):
            async with reader.session.get(reader.url + path) as reply:
                text = await reply.text()
                assert reply.headers["X-Content-Type-Options"] == "nosniff"
                policy = reply.headers["Content-Security-Policy"]
                assert "default-src 'none'" in policy
                assert "frame-ancestors 'none'" in policy
                assert "unsafe" not in policy
                assert reply.status == (404 if path.endswith((".py", "nothing")) else 200)
                without = text.replace("http://www.w3.org/2000/svg", "")
                assert "http://" not in without.replace(reader.url, "")
                assert "https://" not in without
                assert "innerHTML" not in without


async def test_a_file_that_the_browser_has_is_not_sent_again(tmp_path: Path) -> None:
    async with page(tmp_path) as reader:
        async with reader.session.get(f"{reader.url}/web/page.css") as reply:
            tag = reply.headers["ETag"]
        async with reader.session.get(f"{reader.url}/web/page.css", headers={"If-None-Match": tag}) as reply:
            assert reply.status == 304


async def test_without_tls_only_names_of_the_loopback_are_answered(tmp_path: Path) -> None:
    async with page(tmp_path) as reader:
        status, body = await reader.get("/v1/page", headers={"Host": "evil.example:9744"})
        assert (status, body["error"]) == (403, "'evil.example' is not a name of this machine's loopback")


# --- the stream ------------------------------------------------------------------------------------------------------


async def test_a_backends_death_is_pushed_at_once_with_its_reason_and_only_the_rows_that_changed(
    tmp_path: Path,
) -> None:
    async with page(tmp_path, services=3) as reader:
        async with reader.session.get(f"{reader.url}/v1/page/stream?service=web") as reply:
            told = events(reply)
            name, whole = await anext(told)
            assert (name, len(whole["services"])) == ("whole", 3)
            await asyncio.sleep(0.3)  # the first push is behind us
            began = time.monotonic()
            reader.site.hosts[0].report("web", "web-1", False, "connection refused")
            async for name, change in told:
                assert name == "change"
                if "services" in change["rows"]:
                    break
            took = time.monotonic() - began
        assert [row["name"] for row in change["rows"]["services"]["set"]] == ["web"]
        backend = change["set"]["service"]["backends"][0]
        assert (backend["state"], backend["reason"]) == ("down", "its agent says: connection refused")
        assert change["set"]["summary"]["text"] == "1 backend down"
        assert took < 1.0


async def test_many_changes_are_pushed_together_at_most_four_times_a_second(tmp_path: Path) -> None:
    async with page(tmp_path) as reader:
        async with reader.session.get(f"{reader.url}/v1/page/stream") as reply:
            told = events(reply)
            await anext(told)
            end, pushed, up = time.monotonic() + 1.2, 0, True
            while time.monotonic() < end:
                up = not up
                reader.site.hosts[0].report("web", "web-1", up)
                with_next = asyncio.ensure_future(anext(told))
                done, _ = await asyncio.wait({with_next}, timeout=max(0.0, end - time.monotonic()))
                if not done:
                    with_next.cancel()
                    break
                pushed += 1
        assert 2 <= pushed <= 6


async def test_readers_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages_module, "STREAMS_MAX", 1)
    async with page(tmp_path) as reader, reader.session.get(f"{reader.url}/v1/page/stream") as first:
        await anext(events(first))
        assert await reader.get("/v1/page/stream") == (503, {"error": "1 readers follow the page already"})


async def test_readers_at_one_address_leave_places_to_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages_module, "STREAMS_EACH", 1)
    async with page(tmp_path) as reader:
        async with reader.session.get(f"{reader.url}/v1/page/stream") as first:
            await anext(events(first))
            status, body = await reader.get("/v1/page/stream")
            assert (status, body["error"]) == (503, "1 readers at this address follow the page already")
            first.close()
        await until(lambda: not reader.pages._followers)


def test_a_change_makes_the_new_of_the_old() -> None:
    row = {"name": "a", "state": "up"}
    before = {"at": 1, "services": [row, {"name": "b"}], "summary": {"text": "x"}, "matched": 2}
    after = {"at": 2, "services": [{"name": "c"}, row], "summary": {"text": "x"}, "matched": 2}
    assert changes(before, after) == {
        "at": 2,
        "set": {},
        "rows": {"services": {"set": [{"name": "c"}], "order": ["c", "a"]}},
    }
    assert changes(after, {**after, "at": 3}) == {"at": 3, "set": {}, "rows": {}}


# --- drain and undrain -----------------------------------------------------------------------------------------------


async def test_an_operator_logs_in_drains_and_undrains_and_logs_out(tmp_path: Path) -> None:
    async with page(tmp_path) as reader:
        status, _, reply = await reader.post("/v1/page/login", {"token": TOKEN})
        cookie = reply.headers["Set-Cookie"]
        assert all(word in cookie for word in ("HttpOnly", "SameSite=Strict", "Max-Age=1800", "Path=/"))
        _, body = await reader.get("/v1/page/session")
        assert body["who"] == "operator:alice"
        reader.csrf = body["csrf"]
        assert (await reader.drain())[0] == 200
        await until(lambda: reader.shown() == "drain")
        body = {"service": "web", "backend": "web-1", "drain": False}
        assert (await reader.post("/v1/page/drain", body))[0] == 200
        await until(lambda: reader.shown() == "up")
        assert (await reader.post("/v1/page/drain", {"mux": "mux1", "drain": True}))[0] == 200
        assert "mux1" in reader.controller.desired.mux_drains
        status, body, _ = await reader.post("/v1/page/logout", {})
        assert (status, body["who"]) == (200, None)
        assert (await reader.drain())[0] == 401


async def test_nobody_drains_without_session_second_secret_or_from_elsewhere(tmp_path: Path) -> None:
    async with page(tmp_path) as reader:
        assert (await reader.drain())[0] == 401
        await reader.login()
        right = reader.csrf
        for wrong in ("", "x", right[:-1], right + "x", "é"):
            reader.csrf = wrong.encode("ascii", "replace").decode()
            assert (await reader.drain())[0] == 403
        reader.csrf = right
        for headers in (
            {"Origin": "https://evil.example"},
            {"Origin": "null"},
            {"Origin": ""},
            {"Sec_Fetch_Site": "cross-site"},
            {"Sec_Fetch_Site": "same-site"},
            {"Content_Type": "text/plain"},
        ):
            assert (await reader.drain(**headers))[0] == 403, headers
        assert reader.shown() == "up"
        reader.clock.ahead = 1801.0
        status, body = await reader.drain()
        assert (status, body["error"]) == (401, "nobody is logged in, or the session has ended; log in")


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"\xff", b"[]", b"{", b"5", b"[" * 4000),
        *({"drain": True}, {"mux": "mux1"}, {"mux": "mux1", "drain": 1}, {"mux": 5, "drain": True}),
        *({"service": "web", "drain": True}, {"service": "web", "backend": "web-1", "mux": "mux1", "drain": True}),
        {"mux": "mux1", "drain": True, "force": True},
    ],
)
async def test_garbage_is_refused_in_a_sentence(tmp_path: Path, body: Any) -> None:
    async with page(tmp_path) as reader:
        await reader.login()
        version = reader.controller.desired.version
        status, answer, _ = await reader.post("/v1/page/drain", body)
        assert status == 400, answer
        assert answer["error"]
        assert reader.controller.desired.version == version


async def test_what_is_not_there_is_not_drained_and_what_is_too_large_is_not_read(tmp_path: Path) -> None:
    async with page(tmp_path) as reader:
        await reader.login()
        status, body, _ = await reader.post("/v1/page/drain", {"mux": "mux9", "drain": True})
        assert (status, body["error"]) == (404, 'there is no MUX "mux9"; known are mux1, mux2')
        assert (await reader.post("/v1/page/drain", b" " * 5000))[0] == 413


async def test_wrong_tokens_are_limited_and_the_right_one_is_taken_all_the_same(tmp_path: Path) -> None:
    async with page(tmp_path) as reader:
        for _ in range(FAILURES_MAX):
            assert (await reader.post("/v1/page/login", {"token": "wrong"}))[0] == 403
        status, body, reply = await reader.post("/v1/page/login", {"token": "wrong"})
        assert status == 429
        assert body["error"].startswith("too many wrong tokens; wait ")
        assert 1 <= int(reply.headers["Retry-After"]) <= WINDOW
        await reader.login()


async def test_a_manager_without_tokens_lets_nobody_log_in(tmp_path: Path) -> None:
    async with page(tmp_path, login=False) as reader:
        status, body, _ = await reader.post("/v1/page/login", {"token": TOKEN})
        assert (status, body["error"]) == (403, "this manager serves without TLS, so it has no tokens and no login")
        assert (await reader.get("/v1/page"))[1]["manager"]["login"] is False


async def test_sessions_and_failures_are_bounded() -> None:
    now = 1000.0
    sessions = Sessions(check, lambda: now)
    first, _ = await sessions.login(TOKEN, "192.0.2.1")
    for number in range(250):
        await sessions.login(TOKEN, f"192.0.2.{number}")
    assert sessions.find(first) is None
    for number in range(100):
        with pytest.raises(AccessError, match="not an operator's"):
            await sessions.login("x" * (1 + 600 * (number % 2)), f"198.51.100.{number}")
    await sessions.login(TOKEN, "203.0.113.1")  # whatever others guessed
    for _ in range(FAILURES_MAX):
        with pytest.raises(AccessError, match="not an operator's"):
            await sessions.login("wrong", "2001:db8::1")
    with pytest.raises(TooManyError):
        await sessions.login("wrong", "2001:db8::2")  # of IPv6 one machine has a whole /64
    await sessions.login(TOKEN, "2001:db8::1")
