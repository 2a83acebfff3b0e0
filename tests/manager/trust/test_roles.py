# SPDX-License-Identifier: Apache-2.0
"""What a token of each role may ask, over real TLS, of each route that there is."""

from __future__ import annotations

import asyncio
import json
import re
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import ClientSession, TCPConnector, web

from manager.api.routes import ROUTES
from manager.api.server import Api, application
from manager.api.view import View
from manager.controller.controller import Controller
from manager.endpoints import CA_DIRECTORY, Access
from manager.store.sqlite import SqliteStore
from manager.trust import tokens
from manager.trust.ca import CertificateAuthority
from manager.trust.trust import listener
from tests.manager.fake_nodes import Site, running, settings_for
from tests.manager.fleet import service

#: Each route, and the least of the roles that may use it. A route that is not here has no role yet: give it one.
LEAST = {
    **dict.fromkeys(
        [
            "GET /v1/status", "GET /v1/services", "GET /v1/services/{name}", "GET /v1/history", "GET /v1/tables",
            "GET /v1/backends", "GET /v1/backends/{service}/{backend}", "GET /v1/vips/{address}", "GET /v1/flow",
            "GET /v1/examination",
            "GET /v1/muxes", "GET /v1/agents", "GET /v1/announcements", "GET /v1/events", "GET /v1/top",
            "GET /v1/watch", "GET /v1/rates", "GET /v1/audit", "GET /v1/openapi.json", "POST /v1/diff",
        ],
        "viewer",
    ),
    **dict.fromkeys(
        [
            "PUT /v1/services", "PUT /v1/services/{name}", "DELETE /v1/services/{name}", "POST /v1/apply",
            "POST /v1/confirm", "POST /v1/rollback", "POST /v1/delete", "POST /v1/backends/{service}/{backend}/drain",
            "POST /v1/backends/{service}/{backend}/undrain", "POST /v1/muxes/{name}/drain",
            "POST /v1/muxes/{name}/undrain", "POST /v1/hosts/{name}/drain", "POST /v1/hosts/{name}/undrain",
            "POST /v1/backends/{service}/{backend}/weight",
        ],
        "operator",
    ),
    **dict.fromkeys(["DELETE /v1/muxes/{name}", "DELETE /v1/agents/{name}", "POST /v1/tokens"], "admin"),
}  # fmt: skip
OWN = [f"{route.method} {route.path}" for route in ROUTES if not route.of_nodes]


class Asker:
    """Asks one manager, with a token."""

    def __init__(self, session: ClientSession, url: str, access: Access, controller: Controller) -> None:
        self._session = session
        self._url = url
        self.access = access
        self.controller = controller

    async def token(self, role: str, name: str = "bob", ttl: float = 60) -> str:
        return await self.access.make_token(role, name, ttl, "operator:ada", None)

    async def begin(self, token: str, path: str, body: AsyncIterator[bytes]) -> tuple[int, dict[str, str]]:
        """A request whose body comes as it is made."""
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        async with self._session.post(self._url + path, data=body, headers=headers) as reply:
            return reply.status, await reply.json()

    async def ask(self, token: str, method: str, path: str, body: object = None) -> tuple[int, dict[str, str]]:
        headers = {"Authorization": f"Bearer {token}"}
        async with self._session.request(method, self._url + path, json=body, headers=headers) as reply:
            found = await reply.json()
            return reply.status, found if isinstance(found, dict) else {}


@asynccontextmanager
async def manager(directory: Path) -> AsyncIterator[Asker]:
    authority = await asyncio.to_thread(CertificateAuthority.create, directory / CA_DIRECTORY)
    store = await SqliteStore.open(directory)
    async with running(directory, store) as controller:
        Site().connect(controller)
        await controller.writer.apply([service()], "operator:ada")
        access = await asyncio.to_thread(Access, settings_for(directory), store, controller.hub)
        api = Api(controller, View(controller), store, "0", access.make_token)
        runner = web.AppRunner(application(api, access.authenticate, access.routes))
        await runner.setup()
        server = listener("127.0.0.1:0")
        await web.SockSite(runner, server, ssl_context=access.context).start()
        tls = ssl.create_default_context(cadata=authority.pem)
        try:
            async with ClientSession(connector=TCPConnector(ssl=tls)) as session:
                yield Asker(session, f"https://127.0.0.1:{server.getsockname()[1]}", access, controller)
        finally:
            await access.close()
            await runner.cleanup()


def test_each_route_has_a_role_here() -> None:
    assert sorted(LEAST) == sorted(OWN)


@pytest.mark.parametrize("role", tokens.ROLES)
async def test_a_token_may_what_its_role_may_and_nothing_else(
    role: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("manager.api.server.EXAMINATION_WAIT", 0.1)  # no node here answers
    async with manager(tmp_path) as asker:
        token = await asker.token(role)
        before = asker.controller.desired.version
        refused = set()
        for route in OWN:
            method, path = route.split()
            body = {} if method != "GET" else None
            status, answer = await asker.ask(token, method, re.sub(r"{\w+}", "x", path) + "?wait=0", body)
            assert status != 401
            if status == 403:
                refused.add(route)
                assert answer["error"].startswith(("a viewer sees", "only an admin decides")), (route, answer)
        least = tokens.ROLES.index(role)
        assert refused == {route for route in OWN if tokens.ROLES.index(LEAST[route]) > least}
        if role == "viewer":
            assert asker.controller.desired.version == before
        made = [one for one in await asker.access.trust.all_tokens() if one.made_by != "operator:ada"]
        assert made == []


async def test_a_token_that_the_api_made_stands_in_the_audit(tmp_path: Path) -> None:
    async with manager(tmp_path) as asker:
        token = await asker.token("admin", "bob", 3600)
        status, _ = await asker.ask(token, "POST", "/v1/tokens", {"kind": "operator", "name": "eve", "ttl": 90})
        assert status == 200
        (line, *_) = await asker.controller.store.audit(1)
        assert (line.who, line.version) == ("operator:bob", asker.controller.desired.version)
        assert re.sub("[0-9a-f]{12}", "ID", line.what) == "token ID made for operator eve to ask as operator, for 90 s"
        assert abs(line.at - time.time()) < 60
        # And the change after it goes on from the version that there was.
        assert (await asker.ask(token, "POST", "/v1/backends/web/web-1/drain"))[0] == 200


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/apply", {"services": [service(name="evil", vip="203.0.113.99")]}),
        ("/v1/tokens", {"kind": "admin", "name": "eve"}),
        ("/v1/backends/web/web-1/drain", {"why": "evil"}),
    ],
)
async def test_what_was_begun_before_a_revocation_is_not_done_after_it(
    path: str, body: dict[str, object], tmp_path: Path
) -> None:
    async with manager(tmp_path) as asker:
        token, begun = await asker.token("admin"), asyncio.Event()
        before, text = asker.controller.desired.version, json.dumps(body).encode()

        async def slowly() -> AsyncIterator[bytes]:
            yield text[:5]
            while not begun.is_set():  # the manager knows who asks, and waits for the rest
                begun.set()
                await asyncio.sleep(0.2)
            trust = asker.access.trust
            await trust.end_tokens([one.digest for one in await trust.all_tokens()], "operator:ada")
            yield text[5:]

        status, answer = await asker.begin(token, path, slowly())
        assert (status, answer["error"].partition(" expired")[0]) == (403, "the token")
        assert asker.controller.desired.version == before
        assert await asker.access.trust.all_tokens() == []
