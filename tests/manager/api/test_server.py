# SPDX-License-Identifier: Apache-2.0
"""The HTTP API over a real socket: what its description says is what is served, and every refusal is a sentence."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestServer
from structlog.testing import capture_logs

from lb.cli.tables.row_tables import TABLES, draw
from lb.config.toml import format_tables
from lb.errors import AccessError
from lb.rows.table import rows_of
from manager.api.openapi import BY_TYPE, SCHEMAS, describe
from manager.api.routes import ROUTES
from manager.api.server import BODY_MAX, MISTAKES_MAX, Api, application
from manager.api.view import View
from manager.controller.controller import Controller
from manager.daemon import _loopback
from manager.store.sqlite import SqliteStore
from tests.manager.api.schema import mistakes
from tests.manager.fake_nodes import Site, running, settings_for, until
from tests.manager.fleet import service, with_probe


class Client:
    """Asks the API, and looks at every answer with its description in hand."""

    def __init__(self, session: ClientSession, url: str, site: Site, controller: Controller) -> None:
        self._session = session
        self.url = url
        self.site = site
        self.controller = controller

    async def ask(self, method: str, path: str, body: Any = None, **options: Any) -> tuple[int, Any]:
        if body is not None:
            options["json"] = body
        async with self._session.request(method, self.url + path, **options) as reply:
            answer = await reply.json()
        schema = SCHEMAS["Error"] if reply.status >= 300 else BY_TYPE.get(_route(method, path).answer, {})
        assert list(mistakes(answer, schema, SCHEMAS)) == [], (method, path)
        return reply.status, answer

    async def text(self, path: str, kind: str) -> str:
        async with self._session.get(self.url + path) as reply:
            assert (reply.status, reply.content_type) == (200, kind)
            return await reply.text()

    async def get(self, path: str) -> Any:
        status, answer = await self.ask("GET", path)
        assert status == 200, answer
        return answer


def _route(method: str, path: str) -> Any:
    for route in ROUTES:
        pattern = re.sub(r"{\w+}", "[^/]+", route.path)
        if route.method == method and re.fullmatch(pattern, path.partition("?")[0]):
            return route
    raise AssertionError(f"{method} {path} is not described")


@asynccontextmanager
async def api(directory: Path, who: str | None = "operator:alice") -> AsyncIterator[Client]:
    store = await SqliteStore.open(directory)

    async def authenticate(_: web.Request) -> str:
        if who is None:
            raise AccessError("no client certificate was shown; an operator's is needed")
        return who

    async with running(directory, store) as controller:
        site = Site().connect(controller)
        app = application(Api(controller, View(controller), store, "0.1.0"), authenticate)
        async with TestServer(app) as server, ClientSession() as session:
            yield Client(session, str(server.make_url("")).rstrip("/"), site, controller)


# --- the description -------------------------------------------------------------------------------------------------


async def test_the_description_tells_of_exactly_what_is_served(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path)
    async with running(tmp_path, store) as controller:

        async def nobody(_: web.Request) -> str:
            return "nobody"

        app = application(Api(controller, View(controller), store, "0.1.0"), nobody)
        served = {
            (route.method, route.resource.canonical)
            for route in app.router.routes()
            if route.resource is not None and route.method != "HEAD"
        }
    described = {(r.method, r.path) for r in ROUTES if not r.of_nodes}
    assert served == described
    paths = describe("0.1.0")["paths"]
    assert {(m.upper(), path) for path, found in paths.items() for m in found} == {(r.method, r.path) for r in ROUTES}


def test_the_description_is_whole() -> None:
    document = describe("0.1.0")
    text = repr(document)
    for name in re.findall(r"#/components/schemas/(\w+)", text):
        assert name in document["components"]["schemas"]
    operations = [found["operationId"] for path in document["paths"].values() for found in path.values()]
    assert len(operations) == len(set(operations))
    for path, found in document["paths"].items():
        for operation in found.values():
            named = [parameter["name"] for parameter in operation["parameters"] if parameter["in"] == "path"]
            assert named == re.findall(r"{(\w+)}", path)


async def test_the_description_is_served(tmp_path: Path) -> None:
    async with api(tmp_path) as client:
        assert await client.get("/v1/openapi.json") == describe("0.1.0")


# --- a life ----------------------------------------------------------------------------------------------------------


async def test_a_service_from_its_first_day_to_its_last(tmp_path: Path) -> None:
    async with api(tmp_path) as client:
        status, done = await client.ask("POST", "/v1/apply", {"services": [with_probe(service())], "wait": 5})
        assert (status, done["version"], done["lines"][0]["action"], done["behind"]) == (200, 1, "created", [])
        client.site.hosts[0].report("web", "web-1", True)
        client.site.hosts[1].report("web", "web-2", True)
        await until(lambda: bool(client.site.muxes[0].announces()))
        for path in ("services", "backends", "muxes", "agents", "announcements", "events", "audit", "status", "tables"):
            assert await client.get(f"/v1/{path}")
        row = (await client.get("/v1/services"))[0]
        assert (row["state"], row["healthy"], row["announced_by"]) == ("up", 2, ["mux1", "mux2"])
        assert (await client.get("/v1/tables"))[0] == with_probe(service())

        _, done = await client.ask("POST", "/v1/backends/web/web-1/drain")
        assert done["lines"] == [{"name": "backend web/web-1", "action": "drained", "details": []}]
        said = await client.get("/v1/services/web")
        assert said["explanation"][0].startswith(
            "web-1 keeps its connections and takes no new ones: drained by operator:alice"
        )
        assert said["announcements"][0]["mux"] == "mux1"
        await client.ask("POST", "/v1/backends/web/web-1/undrain", {"why": "the disk is new"})
        assert (await client.get("/v1/audit?limit=1"))[0]["why"] == "the disk is new"
        assert (await client.ask("POST", "/v1/muxes/mux1/drain", {"who": "me"}))[0] == 400

        _, done = await client.ask("PUT", "/v1/services/web", {**service(), "idle": 60})
        assert done["lines"][0]["details"] == ["idle default → 60", "probe removed (type tcp)"]
        for wrong in ([], "web", [1]):
            assert (await client.ask("POST", "/v1/delete", {"services": wrong}))[0] == 400
        await client.ask("PUT", "/v1/services/two", service("two", vip="203.0.113.2"))
        assert (await client.ask("POST", "/v1/delete", {"services": ["two", "none"]}))[0] == 404
        _, done = await client.ask("POST", "/v1/delete", {"services": ["two"], "why": "as one change"})
        assert [line["name"] for line in done["lines"]] == ["service two"]
        assert "as one change" in {line["why"] for line in await client.get("/v1/audit?limit=3")}
        _, done = await client.ask("DELETE", "/v1/services/web?why=nobody%20asks%20for%20it")
        assert done["lines"][0]["action"] == "deleted"
        assert (await client.get("/v1/audit?limit=1"))[0]["why"] == "nobody asks for it"
        lines = await client.get("/v1/audit?limit=3")
        assert lines[-1]["who"] in ("operator:alice", "manager")
        assert len(lines) == 3


async def test_an_apply_is_answered_once_its_services_are_followed_though_reports_never_end(tmp_path: Path) -> None:
    async with api(tmp_path) as client:
        many = {f"203.0.{n // 250}.{n % 250}/32" for n in range(2000)}

        async def report() -> None:
            while True:
                client.controller.node_events.touched(many)
                await asyncio.sleep(0)

        reporting = asyncio.create_task(report())
        try:
            for what in ("created", "unchanged"):
                _, done = await client.ask("POST", "/v1/apply", {"services": [service()], "wait": 10})
                assert (done["lines"][0]["action"], done["behind"]) == (what, [])
                assert client.controller.planner.unplanned(many), "the planner had no rest"
            assert all(mux.announces() == {"203.0.113.10/32"} for mux in client.site.muxes)
        finally:
            reporting.cancel()
            await asyncio.gather(reporting, return_exceptions=True)


async def test_replacing_all_and_pruning_delete_what_is_not_named(tmp_path: Path) -> None:
    async with api(tmp_path) as client:
        await client.ask("PUT", "/v1/services", [service(), service("dns", "203.0.113.11")])
        _, done = await client.ask("POST", "/v1/apply", {"services": [service()], "prune": True, "dry_run": True})
        assert [line["action"] for line in done["lines"]] == ["unchanged", "deleted"]
        assert done["dry_run"]
        assert len(await client.get("/v1/services")) == 2
        _, done = await client.ask("PUT", "/v1/services", [service()])
        assert done["version"] == 2


# --- rates -----------------------------------------------------------------------------------------------------------


async def test_the_busiest_come_first_and_what_nobody_told_is_null(tmp_path: Path) -> None:
    async with api(tmp_path) as client:
        tables = [service(), service("dns", "203.0.113.11"), service("idle", "203.0.113.12")]
        await client.ask("POST", "/v1/apply", {"services": tables, "wait": 5})
        top = await client.get("/v1/top")
        assert (top["of"], top["total"]["pps"], top["rows"][0]["pps"]) == (3, None, None)
        hub = client.site.muxes[0].hub
        assert hub is not None
        for second in (1, 2):
            rows = [
                {"name": "web", "packets": second * 100, "bytes": second * 1000, "flows_new": second, "flows": 9},
                {"name": "dns", "packets": second * 500, "bytes": second * 500, "flows_new": second, "flows": 1},
            ]
            backends = [{"service": "web", "name": "web-2", "packets": second * 100, "flows": 9}]
            mux = {"received": second, "forwarded": second * 600, "flows": 10, "flow_capacity": 40}
            body = {"at": float(second), "mux": mux, "services": rows, "backends": backends}
            hub.status(client.site.muxes[0], body)
        top = await client.get("/v1/top")
        assert [(row["service"], row["pps"]) for row in top["rows"]] == [("dns", 500), ("web", 100), ("idle", 0)]
        assert (top["total"]["pps"], top["rows"][1]["bps"]) == (600, 8000)
        assert [row["service"] for row in (await client.get("/v1/top?sort=flows&limit=2"))["rows"]] == ["web", "dns"]
        assert [row["service"] for row in (await client.get("/v1/top?sort=name&limit=1"))["rows"]] == ["dns"]
        row = (await client.get("/v1/top?by=backend&service=web"))["rows"][0]
        assert (row["service"], row["backend"], row["pps"], row["flows"]) == ("web", "web-2", 100, 9)
        rows = (await client.get("/v1/top?by=mux"))["rows"]
        assert [(row["mux"], row["pps"], row["fill"]) for row in rows] == [("mux1", 600, 0.25), ("mux2", None, None)]
        await asyncio.sleep(0.5)  # two turns of the clock
        assert (await client.get("/v1/rates?services=1"))["services"].keys() <= {"dns", "web"}


async def test_a_change_waits_is_confirmed_and_rolled_back(tmp_path: Path) -> None:
    async with api(tmp_path) as client:
        table = service()
        _, done = await client.ask("POST", "/v1/apply", {"services": [table], "confirm": 60, "why": "new"})
        assert (done["version"], done["confirm"]) == (1, 60)
        waiting = (await client.get("/v1/status"))["confirm"]
        assert (waiting["version"], waiting["who"]) == (1, "operator:alice")
        status, answer = await client.ask("DELETE", "/v1/services/web")
        assert (status, answer["error"].startswith("version 1 of operator:alice waits")) == (409, True)
        _, done = await client.ask("POST", "/v1/confirm", {"version": 1, "why": "it works"})
        assert done["lines"][0]["action"] == "confirmed"
        await client.ask("DELETE", "/v1/services/web")
        _, done = await client.ask("POST", "/v1/rollback", {"to": 1, "wait": 5, "why": "needed after all"})
        assert (done["title"], done["behind"], done["why"]) == ("rolled back to version 1", [], {})
        assert await client.get("/v1/tables") == [table]
        lines = await client.get("/v1/history?limit=20")
        assert [line["why"] for line in lines if line["why"]] == ["needed after all", "it works", "new"]
        audit = await client.get("/v1/audit?limit=20")
        assert [{k: v for k, v in line.items() if k != "change"} for line in audit] == lines
        _, done = await client.ask("POST", "/v1/rollback", {"dry_run": True})
        assert [line["action"] for line in done["lines"]] == ["deleted"]


async def test_with_wait_it_is_said_who_has_not_followed_and_why(tmp_path: Path) -> None:
    async with api(tmp_path) as client:
        one, two = client.site.muxes
        one.refuses = "no memory for 1 Maglev table"
        two.leave()
        _, done = await client.ask("POST", "/v1/apply", {"services": [service()], "wait": 2})
        assert done["behind"] == ["mux:mux1", "mux:mux2"]
        assert done["why"] == {
            "mux:mux1": "it refused: no memory for 1 Maglev table",
            "mux:mux2": "it is not connected, and goes on with what it has",
        }
        one.refuses = None
        one.take()
        client.site.hosts[2].answers = False
        two.connect(client.controller)
        _, done = await client.ask("POST", "/v1/apply", {"services": [service(hosts=(1, 3))], "wait": 2})
        assert done["behind"] == ["agent:host3"]
        assert done["why"]["agent:host3"].startswith("it has not acknowledged generation ")


async def test_a_difference_shows_services_as_muxes_are_told_of_them(tmp_path: Path) -> None:
    async with api(tmp_path) as client:
        await client.ask("POST", "/v1/apply", {"services": [with_probe(service())], "wait": 5})
        client.site.hosts[0].report("web", "web-1", True)
        client.site.hosts[1].report("web", "web-2", True)
        await until(lambda: bool(client.site.muxes[0].announces()))
        await until(lambda: client.site.muxes[0].backends("web") == {"web-1": "up", "web-2": "up"})
        client.site.hosts[1].report("web", "web-2", False)
        await until(lambda: client.site.muxes[0].backends("web")["web-2"] == "down")
        for mux, flows in zip(client.site.muxes, (30, 12), strict=True):
            rows = [{"service": "web", "name": "web-1", "packets": 1, "flows": flows}]
            client.controller.hub.status(mux, {"backends": rows})
        await client.ask("POST", "/v1/backends/web/web-1/drain")
        wanted = with_probe(service(hosts=(1, 2, 3), idle=60))
        status, told = await client.ask("POST", "/v1/diff", {"services": [wanted]})
        assert status == 200
        web = told["services"][0]
        assert [(row["name"], row["state"], row["flows"]) for row in web["before"]["backend"]] == [
            ("web-1", "drain", 42),
            ("web-2", "down", 0),
        ]
        assert [(row["name"], row["state"]) for row in web["after"]["backend"]] == [
            ("web-1", "drain"),
            ("web-2", "down"),
            ("web-3", "up"),
        ]
        _, told = await client.ask("POST", "/v1/diff", {"to": 1})
        assert [line["action"] for line in told["lines"]] == ["undrained"]
        assert [row["state"] for row in told["services"][0]["after"]["backend"]] == ["up", "down"]
        _, told = await client.ask("POST", "/v1/diff", {"services": [], "prune": True})
        assert (told["services"][0]["after"], told["lines"][0]["action"]) == (None, "deleted")
        assert (await client.get("/v1/status"))["version"] == 2, "nothing was changed"


# --- refusals --------------------------------------------------------------------------------------------------------


async def test_all_mistakes_come_at_once_and_nothing_is_changed(tmp_path: Path) -> None:
    async with api(tmp_path) as client:
        await client.ask("POST", "/v1/apply", {"services": [service("old")]})
        tables = [
            service("twice"),
            service("ranged", "203.0.113.12", port="80-90", backend=[{"name": "a", "address": "10.0.3.1", "port": 1}]),
            service("far", "198.51.100.1"),
            service("odd", "203.0.113.13", colour="red"),
        ]
        status, answer = await client.ask("POST", "/v1/apply", {"services": tables})
        assert status == 400
        assert [item["path"] for item in answer["mistakes"]] == [
            "service[0].port",
            "service[1].backend[0].port",
            "service[2].vip",
            "service[3].colour",
        ]
        assert [row["name"] for row in await client.get("/v1/services")] == ["old"]
        assert (await client.get("/v1/status"))["version"] == 1


@pytest.mark.parametrize(
    ("call", "body", "status", "sentence"),
    [
        ("GET /v1/services/nono", None, 404, 'there is no service "nono"; there are none yet'),
        ("DELETE /v1/services/nono", None, 404, 'there is no service "nono"; there are none yet'),
        ("POST /v1/muxes/mux9/drain", None, 404, 'there is no MUX "mux9"; known are mux1, mux2'),
        ("DELETE /v1/agents/host1", None, 403, "agent:host1 is connected; stop it first"),
        ("POST /v1/apply", {"services": 5}, 400, "services must be an array of [[service]] tables, not 5"),
        ("POST /v1/apply", [], 400, "the body must be a JSON object"),
        (
            "POST /v1/apply",
            {"services": [], "dryrun": True},
            400,
            "dryrun: unknown key; known are confirm, dry_run, prune",
        ),
        ("POST /v1/apply", {"services": [], "wait": -1}, 400, "wait must be 0 to 300 seconds, not -1"),
        ("POST /v1/apply", {"services": [], "confirm": 0}, 400, "confirm must be 1 to 86400 seconds, not 0"),
        ("POST /v1/apply", {"services": [], "why": "a\nb"}, 400, "why must be one line of text, of at most 1000"),
        ("POST /v1/confirm", {}, 404, "no change waits for a confirmation"),
        ("POST /v1/confirm", {"version": "1"}, 400, 'version must be the number of a version, not "1"'),
        ("POST /v1/rollback", {"to": 7}, 404, "there is no version 7; the latest is 0"),
        ("POST /v1/rollback", {"to": -1}, 400, "to must be the number of a version, not -1"),
        ("POST /v1/rollback", {}, 404, "none of the latest versions changed services or drains"),
        ("POST /v1/diff", {}, 400, "services must be an array of [[service]] tables, not"),
        ("POST /v1/diff", {"services": [], "to": 1}, 400, "give either services, or the version to go back to"),
        ("PUT /v1/services/web", {"name": "dns"}, 400, 'the table\'s name is "dns", and the path\'s is "web"'),
        ("GET /v1/events?limit=0", None, 400, 'limit must be 1 to 5000, not "0"'),
        (f"GET /v1/audit?limit={'9' * 5000}", None, 400, "limit must be 1 to 5000"),
        (f"GET /v1/history?limit={'9' * 5000}", None, 400, "limit must be 1 to 5000"),
        ("GET /v1/audit?limit=x", None, 400, 'limit must be 1 to 5000, not "x"'),
        ("GET /v1/top?by=port", None, 400, 'by must be one of service, backend, mux, not "port"'),
        ("GET /v1/top?sort=x", None, 400, "sort must be one of pps, bps, cps, dropped, flows, name"),
        ("GET /v1/top?limit=1e9", None, 400, 'limit must be 1 to 5000, not "1e9"'),
        ("GET /v1/rates?services=99", None, 400, 'services must be 0 to 50, not "99"'),
        ("POST /v1/tokens", {"kind": "mux"}, 400, "this manager serves without TLS, so it has no tokens"),
        ("POST /v1/tokens", {"kind": 5}, 400, "kind must be mux, agent, viewer, operator or admin"),
        ("DELETE /v1/apply", None, 405, "/v1/apply takes POST, not DELETE"),
        ("GET /v2/services", None, 404, "there is no /v2/services; GET /v1/openapi.json tells what there is"),
    ],
)
async def test_what_is_wrong_is_said(tmp_path: Path, call: str, body: Any, status: int, sentence: str) -> None:
    async with api(tmp_path) as client:
        found, answer = await client.ask(*call.split(" "), body)
        assert found == status
        assert sentence in answer["error"]


async def test_a_body_that_is_no_json_is_refused(tmp_path: Path) -> None:
    async with api(tmp_path) as client:
        for text in (b"{", b"\xff\xfe", b"[" * 100_000):
            status, answer = await client.ask("POST", "/v1/apply", data=text)
            assert (status, answer["error"].startswith("the body must be JSON")) == (400, True)
    assert BODY_MAX == 64 * 2**20


async def test_a_file_is_applied_as_it_is_and_had_back_as_one(tmp_path: Path) -> None:
    file = {"headers": {"Content-Type": "application/toml"}}
    tables = [with_probe(service()), service("dns", "203.0.113.11", port=53, protocol="udp")]
    text = format_tables(sorted(tables, key=lambda table: str(table["name"])))
    async with api(tmp_path) as client:
        _, done = await client.ask("POST", "/v1/apply?dry_run=true&why=a+try", data=text, **file)
        assert (done["dry_run"], done["changed"], await client.get("/v1/tables")) == (True, True, [])
        _, done = await client.ask("POST", "/v1/apply?wait=5&why=60&confirm=60", data=text, **file)
        assert (done["behind"], done["confirm"], (await client.get("/v1/audit"))[0]["why"]) == ([], 60.0, "60")
        await client.ask("POST", "/v1/confirm", {})
        _, done = await client.ask("POST", "/v1/diff?prune=true", data=text.replace("port = 53", "port = 54"), **file)
        assert [line["action"] for line in done["lines"]] == ["changed", "unchanged"]
        assert await client.text("/v1/tables?as=toml", "application/toml") == text
        assert await client.text("/v1/tables?as=toml&service=web", "application/toml") == format_tables(
            [with_probe(service())]
        )
        for path, body, sentence in (
            ("/v1/apply", "[[service]", "line 1: is not TOML at column 11: unclosed array table"),
            ("/v1/apply", b"\xff", "line 1: must be UTF-8 text"),
            ("/v1/apply", "[mux]", "mux: has no place in a file of services"),
            ("/v1/apply?dry=true", text, "dry: unknown key; known are confirm, dry_run, prune, wait, why"),
            ("/v1/apply?dry_run=yes", text, 'dry_run must be true or false, not "yes"'),
            ("/v1/apply?wait=NaN", text, "wait must be 0 to 300 seconds"),
            ("/v1/diff?to=0", text, "give either services, or the version to go back to"),
        ):
            status, answer = await client.ask("POST", path, data=body, **file)
            assert status == 400
            assert sentence in answer["error"]
        status, answer = await client.ask("GET", "/v1/tables?as=toml&service=nono")
        assert (status, answer["error"]) == (404, 'there is no service "nono"')


async def test_rows_can_be_had_as_the_table_of_lb_get(tmp_path: Path) -> None:
    async with api(tmp_path) as client:
        await client.ask("POST", "/v1/apply", {"services": [service(), service("b", "203.0.113.11")], "wait": 5})
        for what in ("services", "backends", "announcements"):
            for query in ("", "?service=b") if what != "announcements" else ("",):
                rows = rows_of(TABLES[what], await client.get(f"/v1/{what}{query}"))
                text = await client.text(f"/v1/{what}{query or '?'}&as=text", "text/plain")
                assert text.splitlines() == draw(what, rows)
        status, answer = await client.ask("GET", "/v1/services?as=rows")
        assert (status, answer["error"]) == (400, 'as must be one of json, text, not "rows"')


async def test_that_somebody_left_is_no_error_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def gone(_: Api, __: web.Request) -> web.Response:
        raise ConnectionResetError("Cannot write to closing transport")

    monkeypatch.setattr(Api, "status", gone)
    async with api(tmp_path) as client:
        with capture_logs() as logs:
            status, _ = await client.ask("GET", "/v1/status")
    assert (status, logs) == (499, [])


async def test_nobody_gets_past_the_door_without_being_known(tmp_path: Path) -> None:
    async with api(tmp_path, who=None) as client:
        for route in ROUTES:
            if not route.of_nodes:
                path = re.sub(r"{\w+}", "x", route.path)
                status, answer = await client.ask(route.method, path)
                assert (status, answer["error"]) == (403, "no client certificate was shown; an operator's is needed")


async def test_names_with_slashes_and_spaces_are_only_names(tmp_path: Path) -> None:
    async with api(tmp_path) as client:
        table = service("a/b c", backend=[{"name": "x/y", "address": "10.0.3.1"}])
        await client.ask("POST", "/v1/apply", {"services": [table], "wait": 5})
        async with client._session.get(client.url + "/v1/services/a%2Fb%20c") as reply:
            assert (await reply.json())["service"]["name"] == "a/b c"
        async with client._session.post(client.url + "/v1/backends/a%2Fb%20c/x%2Fy/drain") as reply:
            assert (await reply.json())["lines"][0]["name"] == "backend a/b c/x/y"


@pytest.mark.parametrize(
    ("headers", "sentence"),
    [
        ({"Origin": "https://evil.example"}, "the request comes from a page of"),
        ({"Origin": "null"}, "the request comes from a page of"),
        ({"Sec-Fetch-Site": "cross-site"}, "the request comes from a page of"),
        ({"Content-Type": "text/plain"}, "a body of type text/plain is not taken"),
        ({"Content-Type": "text/plain; charset=utf-8"}, "a body of type text/plain is not taken"),
        ({"Content-Type": "multipart/form-data"}, "a body of type multipart/form-data is not taken"),
    ],
)
async def test_what_a_browser_sends_for_another_site_changes_nothing(
    headers: dict[str, str], sentence: str, tmp_path: Path
) -> None:
    async with api(tmp_path) as client:
        body = json.dumps({"services": []})
        async with client._session.post(f"{client.url}/v1/apply", data=body, headers=headers) as reply:
            assert reply.status == 403
            assert (await reply.json())["error"].startswith(sentence)


async def test_of_a_million_mistakes_some_are_told(tmp_path: Path) -> None:
    async with api(tmp_path) as client:
        text = "[[service]]\n" + "".join(f"k{number} = 1\n" for number in range(20_000))
        headers = {"Content-Type": "application/toml"}
        async with client._session.post(f"{client.url}/v1/apply", data=text, headers=headers) as reply:
            assert reply.status == 400
            mistakes = (await reply.json())["mistakes"]
    assert len(mistakes) == MISTAKES_MAX + 1
    assert "more mistakes" in mistakes[-1]["message"]


@pytest.mark.parametrize("host", ["evil.example", "evil.example:9740", "127.0.0.1.evil.example", "192.0.2.1", "[::2]"])
async def test_without_tls_a_name_that_was_pointed_at_the_loopback_gets_nothing(host: str, tmp_path: Path) -> None:
    """Rebinding: a page of evil.example asks its own name, which leads here; its browser calls that the same origin."""
    store = await SqliteStore.open(tmp_path)
    settings = replace(settings_for(tmp_path), listen="127.0.0.1:9740")
    async with running(tmp_path, store) as controller:
        app = application(Api(controller, View(controller), store, "0"), _loopback(settings))
        async with TestServer(app) as server, ClientSession() as session:
            url = str(server.make_url("/v1/apply"))
            for named, expected in ((host, 403), (f"localhost:{server.port}", 200), ("[::1]:1", 200)):
                headers = {"Host": named, "Origin": f"http://{named}", "Sec-Fetch-Site": "same-origin"}
                async with session.post(url, json={"services": [service()]}, headers=headers) as reply:
                    assert reply.status == expected, await reply.text()
                if expected == 403:
                    assert controller.desired.version == 0


# --- machines --------------------------------------------------------------------------------------------------------


async def test_a_host_is_drained_in_one_change_and_what_is_left_is_told(tmp_path: Path) -> None:
    async with api(tmp_path) as client:
        tables = [service(hosts=(1, 2)), service("dns", "203.0.113.11", (1,))]
        await client.ask("POST", "/v1/apply", {"services": tables, "wait": 5})
        mux = client.site.muxes
        await until(lambda: mux[0].backends("web") == {"web-1": "up", "web-2": "up"})
        for one, flows in zip(mux, (30, 12), strict=True):
            rows = [{"service": "web", "name": "web-1", "packets": 1, "flows": flows}]
            client.controller.hub.status(one, {"backends": rows})
        status, told = await client.ask("POST", "/v1/hosts/host1/drain", {"dry_run": True})
        assert (status, told["dry_run"], told["version"]) == (200, True, 1)
        assert told["left"] == [
            {"service": "dns", "backends": 1, "takes_flows": 0, "flows": 0},
            {"service": "web", "backends": 2, "takes_flows": 1, "flows": 42},
        ]
        (warning,) = told["warnings"]
        assert warning.startswith("service dns has no other backend that takes new flows")
        assert "`lb undrain host host1` ends the drain" in warning
        status, told = await client.ask("POST", "/v1/hosts/host1/drain", {"why": "new disk"})
        assert {(line["name"], line["action"]) for line in told["lines"]} == {
            ("backend dns/dns-1", "drained"),
            ("backend web/web-1", "drained"),
        }
        await until(lambda: mux[0].backends("web") == {"web-1": "drain", "web-2": "up"})
        await until(lambda: mux[0].backends("dns") == {"dns-1": "drain"})
        assert (await client.get("/v1/history"))[0]["what"].startswith("host host1 drained: ")

        _, told = await client.ask("POST", "/v1/hosts/10.0.3.1/drain", {"now": True})
        assert {line["action"] for line in told["lines"]} == {"taken out"}
        await until(lambda: mux[0].backends("web") == {"web-1": "down", "web-2": "up"})
        row = next(row for row in await client.get("/v1/backends") if row["name"] == "web-1")
        assert (row["state"], row["reason"]) == ("down", "taken out by operator:alice")
        client.site.hosts[1].report("web", "web-2", False)  # who was taken out is not kept by a panic
        await until(lambda: mux[0].backends("web")["web-2"] == "down" or "web-2" in str(client.controller.plan.vips))
        assert mux[0].backends("web")["web-1"] == "down"

        status, told = await client.ask("POST", "/v1/hosts/host1/undrain")
        assert {line["action"] for line in told["lines"]} == {"undrained"}
        await until(lambda: mux[0].backends("dns") == {"dns-1": "up"})
        assert (await client.ask("POST", "/v1/hosts/host9/drain"))[1]["error"] == (
            'there is no agent "host9", and it is no address; known are host1, host2, host3'
        )
        assert (await client.ask("POST", "/v1/hosts/host3/drain"))[0] == 404, "nothing is there"


async def test_a_weight_is_set_live(tmp_path: Path) -> None:
    async with api(tmp_path) as client:
        await client.ask("POST", "/v1/apply", {"services": [service()], "wait": 5})
        status, told = await client.ask("POST", "/v1/backends/web/web-2/weight", {"weight": 5, "wait": 5})
        assert (status, told["lines"][0]["details"], told["behind"]) == (200, ["weight of web-2 1 → 5"], [])
        rows = client.site.muxes[0].state["services"]["web"]["backend"]
        assert {row["name"]: row.get("weight", 1) for row in rows} == {"web-1": 1, "web-2": 5}
        for body in ({}, {"weight": "5"}, {"weight": -1}, {"weight": True}):
            assert (await client.ask("POST", "/v1/backends/web/web-2/weight", body))[0] == 400
        assert (await client.ask("POST", "/v1/backends/web/web-9/weight", {"weight": 1}))[0] == 404


async def test_who_forgot_which_node_stands_in_the_audit(tmp_path: Path) -> None:
    async with api(tmp_path) as client:
        client.site.muxes[1].leave()
        await client.ask("DELETE", "/v1/muxes/mux2")
        (line,) = [line for line in await client.get("/v1/audit") if "forgotten" in line["what"]]
        assert (line["who"], line["what"], line["version"]) == ("operator:alice", "mux mux2 forgotten", 0)


# --- waiting ---------------------------------------------------------------------------------------------------------


async def test_waiting_for_what_nobody_announces_ends_soon_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No session is up: it may be in a moment, and perhaps never."""
    monkeypatch.setattr("manager.api.server.ANNOUNCE_WAIT", 0.5)
    async with api(tmp_path) as client:
        for mux in client.site.muxes:
            peers = [{"name": "r1", "state": "active"}]
            waiting = [{"vip": "203.0.113.10", "peer": "r1", "state": "waiting"}]
            client.controller.hub.status(mux, {"peers": peers, "announcements": waiting})
        _, told = await client.ask("POST", "/v1/apply", {"services": [service()], "wait": 60})
        (row,) = told["announced"]
        assert (row["announced_by"], row["wanted_by"], row["silent"]) == ([], ["mux1", "mux2"], True)
        assert row["note"] == "nobody announces it: mux1, mux2 should and do not: BGP session with r1 is down"
        assert told["behind"] == []


async def test_waiting_includes_a_policy_that_waits_for_backends(tmp_path: Path) -> None:
    async with api(tmp_path) as client:
        table = with_probe(service(), policy="any-backend")
        asking = asyncio.create_task(client.ask("POST", "/v1/apply", {"services": [table], "wait": 60}))
        await until(lambda: any(mux.states and "web" in mux.state.get("services", ()) for mux in client.site.muxes))
        await asyncio.sleep(0.3)
        assert not asking.done(), "its backends may be well in a moment"
        client.site.hosts[0].report("web", "web-1", True)
        _, told = await asking
        assert [row["silent"] for row in told["announced"]] == [False]
        client.site.hosts[0].report("web", "web-1", False)
