# SPDX-License-Identifier: Apache-2.0
"""The HTTP API of operators: thin methods between requests and the controller, one for each route of the table.

Who asks is decided before any of them runs, by the ``authenticate`` that :mod:`manager.daemon` gives (TLS and tokens,
or nothing on loopback where that was asked for). An error is ``{"error": sentence, "mistakes": [{path, message}]}``:
400 a wrong request, 401 or 403 who may not ask, 404 no such thing, 409 somebody else was faster, 503 the store failed.
"""

from __future__ import annotations

import asyncio
import heapq
import json
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from ipaddress import ip_address
from typing import Any

import msgspec
from aiohttp import web
from msgspec import UNSET

from lb.config.tables import show
from lb.config.toml import decoded
from lb.daemon.log import get_logger
from lb.errors import AccessError, ConfigError, NotFoundError, RequestError, VipmuxError
from lb.model import Address, Protocol
from lb.rows.backend import BackendRow
from lb.rows.row import Row
from lb.rows.service import ServiceRow
from lb.rows.table import Listing
from manager.api import requests
from manager.api.answers import AnnouncedVips, ChangeLineRow, ChangeRow, Error, Mistake, Nothing, Preview, TokenRow
from manager.api.flow_explanation import AskedFlow
from manager.api.kept_rows import Drawer, KeptRows
from manager.api.openapi import describe
from manager.api.query import Words
from manager.api.routes import BY_OPERATION, ROUTES
from manager.api.status_rows import warn_of_drain
from manager.api.view import View
from manager.controller.change_feed import BY_SERVICE, Cursor, News
from manager.controller.controller import Applied, Controller
from manager.plan.model import AGENT, MUX
from manager.store.events import Wanted
from manager.store.interface import ConflictError, Store, StoreError
from manager.trust.bounded_listener import known
from manager.trust.tokens import DEFAULT_TTL

#: Largest request: some tens of thousands of services.
BODY_MAX = 64 * 2**20
#: So many mistakes are told in one answer.
MISTAKES_MAX = 1000
#: Of an answer with lines of the audit, so much of what they changed, the latest first; characters.
AUDIT_MAX = 8 * 2**20
WAIT_MAX = 300.0
#: MUXes have so long to say what they know of a flow, seconds.
FLOW_WAIT = 2.0
#: And nodes so long to have themselves examined: more than one takes at the most, so that each says why it did not.
EXAMINATION_WAIT = 30.0
#: Of a wait for nodes, so long at most is for those that have all and are about to announce, and how often they are
#: looked at; seconds.
ANNOUNCE_WAIT, ANNOUNCE_TURN = 10.0, 0.1
#: A change may wait so long for its confirmation, seconds.
CONFIRM_MIN, CONFIRM_MAX = 1.0, 86_400.0
WHY_MAX = 1000
#: A number or a word in a query is shorter.
QUERY_MAX = 100
#: A file of services, in a request or an answer.
TOML = "application/toml"
JSON = "application/json"
#: What any page may send to anywhere.
FORMS = frozenset({"text/plain", "application/x-www-form-urlencoded", "multipart/form-data"})

#: Who asks, as it will stand in the audit; raises AccessError.
Authenticate = Callable[[web.Request], Awaitable[str]]
#: Makes a token: kind, name, seconds, who, and when the token of whoever asks ends; returns its text.
MakeToken = Callable[[str, str | None, float, str, float | None], Awaitable[str]]

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

#: Where a request keeps who asks.
WHO: web.RequestKey[str] = web.RequestKey("who", str)
#: And when the token ends that it asks with, Unix time; not there: it shows a certificate.
TOKEN_ENDS: web.RequestKey[float | None] = web.RequestKey("token_ends", float)

log = get_logger()


def application(api: Api, authenticate: Authenticate, of_nodes: Iterable[web.AbstractRouteDef] = ()) -> web.Application:
    """The whole server: operators' routes, and those of nodes, which authenticate by themselves."""
    own = {(route.method, route.path) for route in ROUTES if not route.of_nodes}

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            resource = request.match_info.route.resource
            path = resource.canonical if resource is not None else ""
            if (request.method, path) in own or not path:
                _from_no_page(request)
                request[WHO] = await authenticate(request)
                known(request, request[WHO])
                if request.method not in ("GET", "HEAD") and request.can_read_body:
                    await request.read()
                    request[WHO] = await authenticate(request)  # who may have been revoked since
            return await handler(request)
        except web.HTTPException as error:
            return _error(error.status, _http_sentence(request, error))
        except VipmuxError as error:
            return refusal(error)
        except ConnectionError as error:  # whoever asked has left, so nobody reads this
            return _error(499, f"nobody waits for the answer any more: {error}")
        except Exception:  # a mistake of ours must not take the answer's form from it
            log.exception("internal error", method=request.method, path=request.path)
            return _error(500, "internal error, please report it; the manager's log has more")

    app = web.Application(middlewares=[middleware], client_max_size=BODY_MAX)
    for route in ROUTES:
        if not route.of_nodes:
            app.router.add_route(route.method, route.path, getattr(api, route.operation))
    app.add_routes(of_nodes)
    return app


class Api:
    """Each method serves the route of its name."""

    def __init__(
        self, controller: Controller, view: View, store: Store, version: str, make_token: MakeToken | None = None
    ) -> None:
        self._controller = controller
        self._view = view
        self._store = store
        self._kept = KeptRows(controller, view)
        self._drawers = {table: Drawer() for table in ("services", "backends", "announcements")}
        self._exporting = asyncio.Lock()
        self._description = describe(version)
        self._make_token = make_token

    # -- reading ------------------------------------------------------------------------------------------------

    async def status(self, _: web.Request) -> web.Response:
        return _answer(self._view.manager.status())

    async def services(self, request: web.Request) -> web.Response:
        return await self._rows("services", request)

    async def _rows(self, table: str, request: web.Request) -> web.Response:
        """All, or those of some services, or the first so many."""
        known = self._controller.desired
        names = self._known_names(request, known.services, known.retiring)
        asked = _query(table, request)
        of = known.services if names is None else names
        if asked["limit"] and asked["limit"] < len(of):  # so many services
            names = heapq.nsmallest(asked["limit"], of)
        if asked["as"] == "text":
            make = self._kept.list_services if table == "services" else self._kept.list_backends
            return await self._listing(make(names), self._drawers[table] if names is None else Drawer())
        return _answer(self._by_service(table, names))

    @staticmethod
    async def _listing(table: Listing, drawer: Drawer) -> web.Response:
        """Drawn beside the event loop: of sixty thousand lines all may be new."""
        return _bytes_answer((await asyncio.to_thread(drawer.draw, table)).encode(), "text/plain")

    @staticmethod
    def _known_names(request: web.Request, *known: Collection[str]) -> list[str] | None:
        """The services that are asked for, in this order; None: all."""
        names = request.query.getall("service", None)
        unknown = [name for name in names or () if not any(name in some for some in known)]
        if unknown:
            raise NotFoundError(f"there is no service {show(unknown[0])}")
        return names

    def _by_service(self, table: str, names: Iterable[str] | None) -> Sequence[ServiceRow | BackendRow]:
        return self._kept.services(names) if table == "services" else self._kept.backends(names)

    async def describe(self, request: web.Request) -> web.Response:
        return _answer(self._view.explanations.service(request.match_info["name"]))

    async def tables(self, request: web.Request) -> web.Response:
        as_file = _query("tables", request)["as"] == "toml"
        names = self._known_names(request, self._controller.desired.services)
        async with self._exporting:  # the first time it takes a while, where there are tens of thousands
            if as_file:
                return _bytes_answer(await asyncio.to_thread(self._kept.file, names), TOML)
            return _bytes_answer(await asyncio.to_thread(self._kept.tables, names), JSON)

    async def vip(self, request: web.Request) -> web.Response:
        return _answer(self._view.explanations.vip(_address("the address", request.match_info["address"])))

    async def flow(self, request: web.Request) -> web.Response:
        source, destination = (_address(key, request.query.get(key, "")) for key in ("source", "destination"))
        if source.version != destination.version:
            raise RequestError("source and destination must be of one family, both IPv4 or both IPv6")
        asked = _query("flow", request)
        ports = [asked[f"{key}_port"] for key in ("source", "destination")]
        if None in ports:
            raise RequestError("source_port and destination_port must be given")
        flow = AskedFlow(Protocol(asked["protocol"]), source, ports[0], destination, ports[1])
        return _answer(await self._view.explanations.flow(flow, FLOW_WAIT))

    async def examination(self, _: web.Request) -> web.Response:
        return _answer(await self._view.explanations.examination(EXAMINATION_WAIT))

    async def backends(self, request: web.Request) -> web.Response:
        return await self._rows("backends", request)

    async def backend(self, request: web.Request) -> web.Response:
        return _answer(self._view.services.backend(request.match_info["service"], request.match_info["backend"]))

    async def muxes(self, _: web.Request) -> web.Response:
        return _answer(self._view.nodes.muxes())

    async def agents(self, _: web.Request) -> web.Response:
        return _answer(self._view.nodes.agents())

    async def announcements(self, request: web.Request) -> web.Response:
        if _query("announcements", request)["as"] == "text":
            return await self._listing(self._kept.list_announcements(), self._drawers["announcements"])
        return _answer(self._view.announcements.rows())

    async def events(self, request: web.Request) -> web.Response:
        asked = _query("events", request)
        wanted = Wanted(asked["subject"], asked["since"] or None, asked["after"] or None, asked["bad"] == "true")
        return _answer(self._view.manager.events(asked["limit"], wanted))

    async def top(self, request: web.Request) -> web.Response:
        asked = _query("top", request)
        return _answer(self._view.busiest.top(asked["by"], asked["sort"], asked["limit"], asked["service"]))

    async def watch(self, request: web.Request) -> web.Response:
        asked = _query("watch", request)
        table, only = asked["what"], asked["service"]
        changes = self._controller.changes
        cursor = Cursor.parse(asked["since"] or "")
        news, counters = News(None), True
        if cursor is not None:
            news, counters = await changes.wait(table, cursor, asked["wait"], only)
        began = time.monotonic()
        after = changes.cursor(cursor, counters=counters)
        whole = news.services is None
        names = only or None if news.services is None else news.services
        rows: Sequence[Any] = ()
        if names is None or names:
            rows = self._by_service(table, names) if table in BY_SERVICE else await self._watched(table)
        gone: list[str] = []
        if news.services is not None:
            known = {row.service if table == "backends" else row.name for row in rows}
            gone = sorted(news.services - known)
        answer = _answer({"cursor": str(after), "whole": whole, "rows": rows, "gone": gone})
        if cursor is not None:
            changes.spent(time.monotonic() - began, counters=counters)
        return answer

    async def _watched(self, table: str) -> Sequence[Any]:
        if table == "history":
            return await self._store.history(100)
        if table == "events":
            return self._view.manager.events(100)
        return self._view.table(table)

    async def rates(self, request: web.Request) -> web.Response:
        asked = _query("rates", request)
        return _answer(self._view.busiest.rates(asked["since"] or None, asked["services"], asked["service"]))

    async def audit(self, request: web.Request) -> web.Response:
        asked = _query("audit", request)
        lines = await self._store.audit(asked["limit"], AUDIT_MAX if asked["change"] == "true" else -1)
        return await asyncio.to_thread(lambda: _answer(lines))

    async def history(self, request: web.Request) -> web.Response:
        return _answer(await self._store.history(_query("history", request)["limit"]))

    async def openapi(self, _: web.Request) -> web.Response:
        return _answer(self._description)

    # -- changing -----------------------------------------------------------------------------------------------

    async def apply(self, request: web.Request) -> web.Response:
        given, body = await _given(request, requests.Apply)
        dry_run, prune, wait, confirm = _flag(body, "dry_run"), _flag(body, "prune"), _wait(body), _confirm(body)
        done = await self._controller.writer.apply(
            _services(given), request[WHO], replace_all=prune, dry_run=dry_run, why=_why(body), confirm=confirm
        )
        return await self._followed(done, wait, dry_run=dry_run, confirm=confirm)

    async def diff(self, request: web.Request) -> web.Response:
        given, body = await _given(request, requests.Diff)
        to, prune = _version(body, "to"), _flag(body, "prune")
        if to is not None:
            if given is not None or prune:
                raise RequestError("give either services, or the version to go back to")
            done = await self._controller.writer.rollback(to, request[WHO], dry_run=True)
        else:
            done = await self._controller.writer.apply(_services(given), request[WHO], replace_all=prune, dry_run=True)
        # Of thousands of services it takes seconds, which others must not wait for.
        return await asyncio.to_thread(
            lambda: _change(done, dry_run=True, services=self._view.manager.preview(done.change))
        )

    async def rollback(self, request: web.Request) -> web.Response:
        body = await _table(request, requests.Rollback)
        to, dry_run, wait, confirm = _version(body, "to"), _flag(body, "dry_run"), _wait(body), _confirm(body)
        done = await self._controller.writer.rollback(
            to, request[WHO], dry_run=dry_run, why=_why(body), confirm=confirm
        )
        return await self._followed(done, wait, dry_run=dry_run, confirm=confirm)

    async def confirm(self, request: web.Request) -> web.Response:
        body = await _table(request, requests.Confirm)
        return _change(await self._controller.writer.confirm(_version(body, "version"), request[WHO], why=_why(body)))

    async def _followed(self, done: Applied, wait: float, *, dry_run: bool, confirm: float | None) -> web.Response:
        if dry_run:
            return _change(done, dry_run=True)
        unconfirmed = None if done.change.empty else confirm
        if not wait:
            return _change(done, confirm=unconfirmed)
        began = time.monotonic()
        # Of what was given and is as it was, nodes may not have all yet either.
        same = any(line.action == "unchanged" for line in done.change.lines)
        behind = await self._controller.followers.wait(wait, None if same else done.change.vips())
        why = self._controller.followers.why_behind(behind) | self._controller.followers.without(done.change.names)
        announced = await self._announced(done, 0.0 if behind else wait - (time.monotonic() - began))
        return _change(done, behind=sorted({*behind, *why}), why=why, confirm=unconfirmed, announced=announced)

    async def _announced(self, done: Applied, seconds: float) -> list[AnnouncedVips] | None:
        """Who announces the VIPs of what was changed; waits so long for MUXes that are about to."""
        services = self._controller.desired.services
        vips = {str(services[name].vip) for name in done.change.names if name in services}
        ending = time.monotonic() + min(seconds, ANNOUNCE_WAIT)
        while True:
            found, soon = self._view.announcements.of_vips(vips)
            if not soon or time.monotonic() >= ending:
                return found or None
            await asyncio.sleep(ANNOUNCE_TURN)

    async def replace_services(self, request: web.Request) -> web.Response:
        tables = _array(await _json(request), "the body")
        return _change(await self._controller.writer.apply(tables, request[WHO], replace_all=True))

    async def put_service(self, request: web.Request) -> web.Response:
        body = await _table(request, None)
        name = request.match_info["name"]
        if body.setdefault("name", name) != name:
            raise RequestError(f"the table's name is {show(body['name'])}, and the path's is {show(name)}")
        return _change(await self._controller.writer.apply([body], request[WHO]))

    async def delete_service(self, request: web.Request) -> web.Response:
        why = _why(request.query)
        return _change(
            await self._controller.writer.delete_services([request.match_info["name"]], request[WHO], why=why)
        )

    async def delete_services(self, request: web.Request) -> web.Response:
        body = await _table(request, requests.Delete)
        names = _array(body.get("services"), "services")
        if not names or not all(isinstance(name, str) for name in names):
            raise RequestError("services must be the names of services, at least one")
        return _change(await self._controller.writer.delete_services(names, request[WHO], why=_why(body)))

    async def drain_backend(self, request: web.Request) -> web.Response:
        return await self._drain_backends(request, drain=True)

    async def undrain_backend(self, request: web.Request) -> web.Response:
        return await self._drain_backends(request, drain=False)

    async def drain_host(self, request: web.Request) -> web.Response:
        return await self._drain_backends(request, drain=True)

    async def undrain_host(self, request: web.Request) -> web.Response:
        return await self._drain_backends(request, drain=False)

    async def _drain_backends(self, request: web.Request, *, drain: bool) -> web.Response:
        """The backend that the path names, or all of a host."""
        names, who, controller = request.match_info, request[WHO], self._controller
        kind = requests.Drain if drain else requests.Undrain
        body = await _table(request, kind) if await request.read() else {}
        how: dict[str, Any] = {"drain": drain, "now": _flag(body, "now"), "dry_run": _flag(body, "dry_run")}
        if "backend" in names:
            what = f"{names['service']}/{names['backend']}"
            done = await controller.writer.drain_backend(names["service"], names["backend"], who, why=_why(body), **how)
        else:
            what = f"host {names['name']}"
            done = await controller.node_orders.drain_host(names["name"], who, why=_why(body), **how)
        if not drain:
            return _change(done, how["dry_run"])
        left = self._view.manager.left_by(done.change)
        return _change(done, how["dry_run"], warnings=warn_of_drain(left, what) or None, left=left or None)

    async def drain_mux(self, request: web.Request) -> web.Response:
        return await self._drain_mux(request, drain=True)

    async def undrain_mux(self, request: web.Request) -> web.Response:
        return await self._drain_mux(request, drain=False)

    async def _drain_mux(self, request: web.Request, *, drain: bool) -> web.Response:
        why = _why(await _table(request, requests.Why) if await request.read() else {})
        name, who = request.match_info["name"], request[WHO]
        return _change(await self._controller.node_orders.drain_mux(name, who, drain=drain, why=why))

    async def set_weight(self, request: web.Request) -> web.Response:
        body = await _table(request, requests.SetWeight)
        dry_run, wait, confirm = _flag(body, "dry_run"), _wait(body), _confirm(body)
        if "weight" not in body:
            raise RequestError("weight must be given")
        names = request.match_info["service"], request.match_info["backend"]
        done = await self._controller.writer.set_weight(
            *names, body["weight"], request[WHO], dry_run=dry_run, why=_why(body), confirm=confirm
        )
        return await self._followed(done, wait, dry_run=dry_run, confirm=confirm)

    async def forget_mux(self, request: web.Request) -> web.Response:
        await self._controller.node_orders.forget(MUX, request.match_info["name"], request[WHO])
        return _answer(Nothing())

    async def forget_agent(self, request: web.Request) -> web.Response:
        await self._controller.node_orders.forget(AGENT, request.match_info["name"], request[WHO])
        return _answer(Nothing())

    async def make_token(self, request: web.Request) -> web.Response:
        body = await _table(request, requests.MakeToken)
        kind, name, ttl = body.get("kind"), body.get("name"), body.get("ttl", DEFAULT_TTL)
        if not isinstance(kind, str) or not (name is None or isinstance(name, str)):
            raise RequestError("kind must be mux, agent, viewer, operator or admin, and name a text or absent")
        if not isinstance(ttl, int | float) or isinstance(ttl, bool):
            raise RequestError(f"ttl must be a number of seconds, not {show(ttl)}")
        if self._make_token is None:
            raise RequestError("this manager serves without TLS, so it has no tokens")
        made = await self._make_token(kind, name, float(ttl), request[WHO], request.get(TOKEN_ENDS))
        self._controller.chronicle.happened(
            "tokens", f"{request[WHO]} made one for {kind} {name or 'of any name'}, for {ttl:g} s"
        )
        return _answer(TokenRow(token=made))


def _from_no_page(request: web.Request) -> None:
    """A browser that has an operator's certificate sends it with whatever any page asks for; and one on the manager's
    machine reaches its loopback. Nothing of ours is a page that asks here, so what a browser says of itself is enough
    to refuse it, and what a page may send without being asked for leave is no request either."""
    origin, site = request.headers.get("Origin"), request.headers.get("Sec-Fetch-Site", "none")
    own = f"{request.scheme}://{request.host}"
    if origin not in (None, own) or site not in ("none", "same-origin"):
        raise AccessError(f"the request comes from a page of {show(origin or site)}; only programs may ask here")
    kind = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if kind in FORMS and request.method not in ("GET", "HEAD"):
        raise AccessError(f"a body of type {kind} is not taken; send {JSON}")


# --- requests --------------------------------------------------------------------------------------------------------


async def _json(request: web.Request) -> Any:
    text = await request.read()
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        where = f": {error.msg} at line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise RequestError(f"the body must be JSON{where}") from None


async def _table(request: web.Request, kind: type[Row] | None) -> dict[str, Any]:
    """A body that has no other keys than this type; None: whatever it has."""
    body = await _json(request)
    if not isinstance(body, dict):
        raise RequestError("the body must be a JSON object")
    if kind is not None:
        _check_keys(body.keys(), requests.keys_of(kind))
    return body


def _check_keys(keys: Collection[str], known: set[str]) -> None:
    unknown = sorted(set(keys) - known)
    if unknown:
        expected = f"unknown key; known are {', '.join(sorted(known))}"
        raise ConfigError([(key, expected) for key in unknown])


async def _given(request: web.Request, kind: type[Row]) -> tuple[object, dict[str, Any]]:
    """Services, and what else is asked: of a JSON object (None: it has none); or the text of a file of services as it
    is, and the other keys in the query."""
    if request.content_type != TOML:
        body = await _table(request, kind)
        return body.pop("services", None), body
    _check_keys(request.query.keys(), requests.keys_of(kind) - {"services"})
    text = decoded(await request.read())
    return _File(text), {key: _of_query(key, value) for key, value in request.query.items()}


class _File(str):
    """The text of a file of services, which a text within JSON is not."""

    __slots__ = ()


def _of_query(key: str, text: str) -> Any:
    """What the same key has in JSON; what is none of it is refused as a text is."""
    if key == "why" or len(text) > QUERY_MAX:
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


def _services(given: object) -> str | list[Any]:
    return given if isinstance(given, _File) else _array(given, "services")


def _array(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise RequestError(f"{name} must be an array of [[service]] tables, not {show(value)}")
    return value


def _flag(body: dict[str, Any], key: str) -> bool:
    value = body.get(key, False)
    if not isinstance(value, bool):
        raise RequestError(f"{key} must be true or false, not {show(value)}")
    return value


def _wait(body: dict[str, Any]) -> float:
    value = body.get("wait", 0)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= WAIT_MAX:
        raise RequestError(f"wait must be 0 to {WAIT_MAX:g} seconds, not {show(value)}")
    return float(value)


def _confirm(body: dict[str, Any]) -> float | None:
    value = body.get("confirm")
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool) or not CONFIRM_MIN <= value <= CONFIRM_MAX:
        raise RequestError(f"confirm must be {CONFIRM_MIN:g} to {CONFIRM_MAX:g} seconds, not {show(value)}")
    return float(value)


def _why(body: Mapping[str, Any]) -> str:
    value = body.get("why", "")
    if not isinstance(value, str) or len(value) > WHY_MAX or not value.isprintable():
        raise RequestError(f"why must be one line of text, of at most {WHY_MAX} characters")
    return value


def _version(body: dict[str, Any], key: str) -> int | None:
    value = body.get(key)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**53):
        raise RequestError(f"{key} must be the number of a version, not {show(value)}")
    return value


def _query(operation: str, request: web.Request) -> dict[str, Any]:
    """The parameters of a route, read; raises RequestError for the first that is wrong."""
    found = request.query
    return {
        key: found.getall(key, []) if isinstance(known, Words) and known.many else known.read(key, found.get(key))
        for key, known in BY_OPERATION[operation].query.items()
    }


def _address(name: str, text: str) -> Address:
    try:
        return ip_address(text)
    except ValueError:
        raise RequestError(f"{name} must be an IP address, not {show(text)}") from None


# --- answers ---------------------------------------------------------------------------------------------------------


def _answer(value: Any) -> web.Response:
    """Rows, or what is made of them."""
    return _bytes_answer(_encode(value), JSON)


def _bytes_answer(body: bytes, kind: str) -> web.Response:
    return web.Response(body=body, content_type=kind, charset="utf-8")


_encode = msgspec.json.Encoder().encode


def _change(done: Applied, dry_run: bool = False, **more: Any) -> web.Response:
    """``more``: what of the optional keys there is."""
    lines = [ChangeLineRow(name=it.name, action=it.action, details=list(it.details)) for it in done.change.lines]
    made = Preview if "services" in more else ChangeRow
    found = made(
        version=done.version,
        changed=not done.change.empty,
        dry_run=dry_run,
        lines=lines,
        unchanged=sum(line.action == "unchanged" for line in done.change.lines) + done.change.unlisted,
        title=done.change.title or UNSET,
        **{key: value for key, value in more.items() if value is not None},
    )
    return _answer(found)


def _error(status: int, sentence: str, mistakes: Iterable[tuple[str, str]] = ()) -> web.Response:
    found = [Mistake(path=path, message=message) for path, message in mistakes]
    answer = _answer(Error(error=sentence, mistakes=found or UNSET))
    answer.set_status(status)
    return answer


def refusal(error: VipmuxError) -> web.Response:
    if isinstance(error, ConfigError):
        more = len(error.mistakes) - MISTAKES_MAX
        if more > 0:
            error = ConfigError([*error.mistakes[:MISTAKES_MAX], ("", f"and {more:,} more mistakes")], error.file)
        return _error(400, str(error), error.mistakes)
    codes = {NotFoundError: 404, AccessError: 403, ConflictError: 409, StoreError: 503, RequestError: 400}
    status = next((code for kind, code in codes.items() if isinstance(error, kind)), 500)
    return _error(status, str(error))


def _http_sentence(request: web.Request, error: web.HTTPException) -> str:
    if error.status == 404:
        return f"there is no {request.path}; GET /v1/openapi.json tells what there is"
    if error.status == 405 and isinstance(error, web.HTTPMethodNotAllowed):
        return f"{request.path} takes {', '.join(sorted(error.allowed_methods))}, not {request.method}"
    if error.status == 413:
        return f"the request is larger than {BODY_MAX >> 20} MiB"
    return error.reason
