# SPDX-License-Identifier: Apache-2.0
"""The web page of the manager, on a listener of its own: read by whoever reaches it, changed by operators alone.

``[manager] web`` turns it on. It shows services, backends, nodes, BGP sessions and events, and nothing that is secret:
no token, certificate, password or client's address. To drain and undrain, an operator logs in with a token
(:mod:`manager.web.sessions`). What changes something must come from this very page: the session's cookie is not sent by
other sites, the ``Origin`` is looked at, and a second secret comes in a header. Every refusal is logged.

``GET /v1/page`` is what is on the screen (:mod:`manager.web.fleet_overview`) as JSON; ``GET /v1/page/stream`` is that
as server-sent events: the whole first, then the rows that changed, at once and at most four times a second. A
reader that is slow skips states. The files are in ``manager/web/static``, are read once, and need nothing from
elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping
from importlib import resources
from ipaddress import ip_address
from typing import Any

from aiohttp import web

from lb.daemon.log import get_logger
from lb.errors import AccessError, RequestError, VipmuxError
from manager.api.reader import Row
from manager.api.server import Handler, refusal
from manager.api.view import View
from manager.controller.controller import Controller
from manager.trust.bounded_listener import known
from manager.trust.joining import address_of
from manager.trust.stranger_limits import Limits, group
from manager.web.fleet_overview import PAGE_MAX, Overview, Query
from manager.web.page_rows import columns_script
from manager.web.sessions import LIFETIME, LoginSession, Sessions, TooManyError, proves

#: Readers at once, and how often one is written to, at most and at least, seconds.
STREAMS_MAX, STREAMS_EACH = 64, 16
GAP = 0.25
BEAT = 1.0
#: How often what is kept is looked through while nobody reads, seconds, and how many services in one turn.
IDLE = 5.0
TURN = 200
#: A reader that takes nothing for so long is given up, seconds.
WRITE_TIMEOUT = 15.0
#: A browser asks for two dozen files at once, over half a dozen connections.
READERS = Limits(burst=120.0, rate=10.0, burst_all=400.0, rate_all=40.0, inside_each=32)
EVENTS = 100
#: Until the body of a request must be there, seconds.
BODY_TIMEOUT = 5.0
BODY_MAX = 4096
QUERY_MAX = 100

CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": CSP,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}

#: Sections that are rows with a name of their own, and the name.
KEYED = {"services": "name", "muxes": "name", "hosts": "name", "events": "id"}

log = get_logger()


class WebPage:
    """The application. :meth:`run` must run beside it."""

    def __init__(
        self,
        controller: Controller,
        view: View,
        sessions: Sessions | None,
        *,
        secure: bool,
        program: str = "",
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``sessions`` None: nobody can log in here. ``secure``: by TLS; otherwise on loopback only."""
        self._controller = controller
        self._view = view
        self._sessions = sessions
        self._secure = secure
        self._program = program
        self._clock = clock
        self._overview = Overview(controller, view, clock)
        self._streams = 0
        self._followers: Counter[str] = Counter()  # of each address
        self._news = asyncio.Condition()
        self._number = 0  # of what is new; every reader compares
        self._details: dict[str, tuple[tuple[int, int], Row | None]] = {}
        self._files = dict(_files())
        self.app = web.Application(middlewares=[self._middleware], client_max_size=BODY_MAX)
        self.app.add_routes(self._routes())

    def _routes(self) -> list[web.RouteDef]:
        return [
            web.get("/", self._file),
            web.get("/web/{name}", self._file),
            web.get("/v1/page", self._page),
            web.get("/v1/page/stream", self._stream),
            web.get("/v1/page/session", self._session),
            web.post("/v1/page/login", self._login),
            web.post("/v1/page/logout", self._logout),
            web.post("/v1/page/drain", self._drain),
        ]

    # -- upkeep -------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Wakes readers whenever the manager decided something; returns never. What is known of ten thousand services
        takes a second to make: it is kept up to date in small turns, also while nobody reads."""
        changed = self._controller.change_made
        while True:
            while not self._overview.refresh(TURN):  # noqa: ASYNC110  it is no wait, but lets others work
                await asyncio.sleep(0)
            await self._tell()
            idle = time.monotonic() + IDLE
            await asyncio.sleep(GAP)
            while not self._streams and time.monotonic() < idle:  # noqa: ASYNC110  nobody is in a hurry
                await asyncio.sleep(GAP)
            async with changed:
                await changed.wait_for(lambda: not self._overview.current)

    async def _tell(self) -> None:
        async with self._news:
            self._number += 1
            self._news.notify_all()

    # -- reading ------------------------------------------------------------------------------------------------

    async def _file(self, request: web.Request) -> web.Response:
        name = request.match_info.get("name", "index.html")
        if name not in self._files:
            raise web.HTTPNotFound
        body, tag = self._files[name]
        headers = {"ETag": f'"{tag}"', "Cache-Control": "no-cache"}
        if request.headers.get("If-None-Match") == headers["ETag"]:
            return web.Response(status=304, headers=headers)
        kind = TYPES[name.rpartition(".")[2]]
        answer = web.Response(body=body, content_type=kind, charset="utf-8", headers=headers)
        answer.enable_compression()
        return answer

    async def _page(self, request: web.Request) -> web.Response:
        answer = _json({**self._whole(_query(request)), "history": self._history(None)})
        answer.enable_compression()
        return answer

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        query = _query(request)
        where = group(address_of(request))
        if self._followers[where] >= STREAMS_EACH:
            reason = f"{STREAMS_EACH} readers at this address follow the page already"
            raise self._refused(request, reason, web.HTTPServiceUnavailable)
        if self._streams >= STREAMS_MAX:
            raise self._refused(request, f"{STREAMS_MAX} readers follow the page already", web.HTTPServiceUnavailable)
        self._streams += 1
        self._followers[where] += 1
        try:
            headers = {"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
            answer = web.StreamResponse(headers={**headers, **HEADERS})
            await answer.prepare(request)
            with contextlib.suppress(ConnectionError, TimeoutError):
                await self._follow(answer, query)
            return answer
        finally:
            self._streams -= 1
            self._followers[where] -= 1
            self._followers += Counter()  # without those that have none

    async def _follow(self, answer: web.StreamResponse, query: Query) -> None:
        """Writes the whole, then what changed, until the reader goes."""
        number = self._number
        before = self._whole(query)
        await _write(answer, "whole", {**before, "history": self._history(None)})
        sampled = self._clock()
        while True:
            began = time.monotonic()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(BEAT), self._news:
                    await self._news.wait_for(lambda known=number: self._number != known)  # type: ignore[misc]
            number = self._number
            after = self._whole(query)
            change = changes(before, after)
            history = self._history(sampled)
            if history["points"] > 0:
                sampled = after["at"]
                change["history"] = history
            await _write(answer, "change", change)
            before = after
            await asyncio.sleep(max(0.0, GAP - (time.monotonic() - began)))

    def _history(self, since: float | None) -> Row:
        """The charts' points of the last five minutes, or since."""
        return self._controller.rates.history.read(since, ())

    def _whole(self, query: Query) -> Row:
        """All that is on the screen but the charts."""
        overview = self._overview
        overview.refresh()
        muxes, hosts = overview.muxes(), overview.hosts()
        total, services = overview.services(query)
        controller = self._controller
        return {
            "at": self._clock(),
            "manager": {
                "name": controller.settings.name,
                "program": self._program,
                "version": controller.desired.version,
                "term": controller.hub.term,
                "login": self._sessions is not None,
            },
            "summary": overview.summary(muxes, hosts),
            "matched": total,
            "services": services,
            "service": self._detail(query.service) if query.service is not None else None,
            "muxes": muxes,
            "hosts": hosts,
            "events": [
                {"id": event.id, "at": event.at, "subject": event.subject, "text": event.text, "bad": event.bad}
                for event in reversed(controller.events.latest(EVENTS))
            ],
        }

    def _detail(self, name: str) -> Row | None:
        """One service in words, made once for all who look at it."""
        moment = self._number, int(self._clock() / BEAT)
        known = self._details.get(name)
        if known is not None and known[0] == moment:
            return known[1]
        if len(self._details) > STREAMS_MAX:
            self._details.clear()
        detail = self._overview.detail(name)
        self._details[name] = moment, detail
        return detail

    # -- who asks -----------------------------------------------------------------------------------------------

    async def _session(self, request: web.Request) -> web.Response:
        session = self._who(request)
        return _json(_told(session))

    async def _login(self, request: web.Request) -> web.Response:
        self._from_here(request)
        sessions = self._sessions
        if sessions is None:
            raise self._refused(request, "this manager serves without TLS, so it has no tokens and no login")
        token = (await _body(request, {"token": str}))["token"]
        address = address_of(request)
        try:
            secret, session = await sessions.login(token.strip(), address)
        except TooManyError as error:
            log.warning("refused", what="login", peer=address, reason=str(error))
            return _json({"error": str(error)}, 429, {"Retry-After": str(error.seconds)})
        except AccessError as error:  # whoever checks the token has logged it
            return _json({"error": f"not logged in: {error}"}, 403)
        log.info("logged in", who=session.who, peer=address)
        answer = _json(_told(session))
        answer.set_cookie(
            self._cookie, secret, max_age=int(LIFETIME), path="/", secure=self._secure, httponly=True, samesite="Strict"
        )
        return answer

    async def _logout(self, request: web.Request) -> web.Response:
        self._from_here(request)
        if self._sessions is not None:
            self._sessions.logout(request.cookies.get(self._cookie))
        answer = _json(_told(None))
        answer.del_cookie(self._cookie, path="/", secure=self._secure, httponly=True, samesite="Strict")
        return answer

    @property
    def _cookie(self) -> str:
        """Browsers take a ``__Host-`` cookie from this very host alone, by TLS."""
        return "__Host-vipmux" if self._secure else "vipmux"

    def _who(self, request: web.Request) -> LoginSession | None:
        return self._sessions.find(request.cookies.get(self._cookie)) if self._sessions is not None else None

    def _from_here(self, request: web.Request) -> None:
        """A request that changes something comes from a page of ours, or is refused."""
        own = f"{'https' if self._secure else 'http'}://{request.host}"
        origin = request.headers.get("Origin")
        if origin != own or request.headers.get("Sec-Fetch-Site", "same-origin") != "same-origin":
            raise self._refused(request, f"the request comes from {str(origin)[:80]!r}, not from {own[:80]!r}")
        if request.content_type != "application/json":
            raise self._refused(request, "the request is not JSON")

    def _operator(self, request: web.Request) -> LoginSession:
        self._from_here(request)
        session = self._who(request)
        if session is not None:
            known(request, session.who)
        if session is None:
            raise self._refused(request, "nobody is logged in, or the session has ended; log in", web.HTTPUnauthorized)
        if not proves(session, request.headers.get("X-Vipmux-Csrf")):
            raise self._refused(request, "the request does not carry the session's second secret", who=session.who)
        return session

    @staticmethod
    def _refused(
        request: web.Request, reason: str, kind: type[web.HTTPError] = web.HTTPForbidden, **also: str
    ) -> web.HTTPError:
        """Logs a refusal; the error is for the caller to raise."""
        log.warning("refused", what=f"page {request.path}", peer=address_of(request), reason=reason, **also)
        return kind(text=reason)

    # -- changing -----------------------------------------------------------------------------------------------

    async def _drain(self, request: web.Request) -> web.Response:
        """``{"service", "backend", "drain"}``, or ``{"mux", "drain"}``."""
        session = self._operator(request)
        body = await _body(request, {"drain": bool}, {"service": str, "backend": str, "mux": str})
        controller = self._controller
        if "mux" in body and len(body) == 2:
            done = await controller.node_orders.drain_mux(body["mux"], session.who, drain=body["drain"])
        elif "service" in body and "backend" in body and len(body) == 3:
            names = body["service"], body["backend"]
            done = await controller.writer.drain_backend(*names, session.who, drain=body["drain"])
        else:
            raise RequestError("name either a mux, or a service and a backend")
        return _json({"version": done.version, "changed": not done.change.empty})

    # -- every request ------------------------------------------------------------------------------------------

    @web.middleware
    async def _middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        answer = await self._answer(request, handler)
        if not answer.prepared:
            answer.headers.update(HEADERS)
            answer.headers.setdefault("Cache-Control", "no-store")
        return answer

    async def _answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            if not self._secure and not is_loopback(request.url.host):
                # A name that somebody points at 127.0.0.1 makes a browser on this machine read for them.
                raise self._refused(request, f"{str(request.url.host)[:80]!r} is not a name of this machine's loopback")
            return await handler(request)
        except web.HTTPException as error:
            return _json({"error": error.text or error.reason}, error.status)
        except VipmuxError as error:
            return refusal(error)
        except (ConnectionError, asyncio.CancelledError):
            raise
        except Exception:  # a mistake of ours must not take the answer's form from it
            log.exception("internal error", method=request.method, path=request.path)
            return _json({"error": "internal error, please report it; the manager's log has more"}, 500)


# --- what changed ----------------------------------------------------------------------------------------------------


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """What makes ``after`` of ``before``: other values, whole rows that differ, and the order where that is another."""
    change: dict[str, Any] = {"at": after["at"], "set": {}, "rows": {}}
    for section, value in after.items():
        old = before[section]
        if section == "at" or value == old:
            continue
        if section not in KEYED:
            change["set"][section] = value
            continue
        key = KEYED[section]
        known = {row[key]: row for row in old}
        part: dict[str, Any] = {"set": [row for row in value if known.get(row[key]) != row]}
        order = [row[key] for row in value]
        if order != [row[key] for row in old]:
            part["order"] = order
        change["rows"][section] = part
    return change


async def _write(answer: web.StreamResponse, event: str, body: Mapping[str, Any]) -> None:
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    async with asyncio.timeout(WRITE_TIMEOUT):
        await answer.write(f"event: {event}\ndata: {text}\n\n".encode())


# --- requests and answers --------------------------------------------------------------------------------------------


def _query(request: web.Request) -> Query:
    """What is on the screen; raises RequestError."""
    asked = request.query
    unknown = sorted(set(asked) - {"q", "state", "offset", "limit", "service"})
    if unknown:
        raise RequestError(f"unknown parameter {unknown[0][:40]!r}; known are q, state, offset, limit, service")
    for key in ("q", "state", "service"):
        if len(asked.get(key, "")) > QUERY_MAX:
            raise RequestError(f"{key} has {len(asked[key])} characters; {QUERY_MAX} are the most")
    offset, limit = _whole_number(asked, "offset", 0, 0, 1_000_000), _whole_number(asked, "limit", 25, 1, PAGE_MAX)
    return Query(asked.get("q", ""), asked.get("state", ""), offset, limit, asked.get("service"))


def _whole_number(asked: Mapping[str, str], key: str, default: int, least: int, most: int) -> int:
    text = asked.get(key, str(default))
    if not text.isascii() or not text.isdigit() or len(text) > 9 or not least <= int(text) <= most:
        raise RequestError(f"{key} must be {least} to {most}, not {text[:20]!r}")
    return int(text)


async def _body(
    request: web.Request, needed: Mapping[str, type], others: Mapping[str, type] | None = None
) -> dict[str, Any]:
    try:
        async with asyncio.timeout(BODY_TIMEOUT):
            body = json.loads(await request.read())
    except TimeoutError:
        raise web.HTTPRequestTimeout(text=f"the body was not there within {BODY_TIMEOUT:g} s") from None
    except (ValueError, RecursionError):
        raise RequestError("the body must be JSON") from None
    known = {**needed, **(others or {})}
    if not isinstance(body, dict) or not needed.keys() <= body.keys() <= known.keys():
        raise RequestError(f"the body must be a JSON object with {', '.join(needed)} and known keys only")
    wrong = [key for key, value in body.items() if type(value) is not known[key]]
    if wrong:
        raise RequestError(f"{wrong[0]} must be {'true or false' if known[wrong[0]] is bool else 'a text'}")
    return body


def _told(session: LoginSession | None) -> Row:
    """Of a session, to its own page."""
    if session is None:
        return {"who": None, "csrf": None, "expires": None}
    return {"who": session.who, "csrf": session.csrf, "expires": session.expires}


def _json(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    text = json.dumps(body, ensure_ascii=False)
    return web.Response(text=text, status=status, content_type="application/json", headers=headers)


def is_loopback(host: str | None) -> bool:
    """Whether a request's host is a name of the machine itself."""
    try:
        return host == "localhost" or ip_address((host or "").strip("[]")).is_loopback
    except ValueError:
        return False


def _files() -> list[tuple[str, tuple[bytes, str]]]:
    """The page's files, and a tag for each that changes with it."""
    found = []
    found.append(_tagged("columns.js", columns_script().encode()))
    for item in (resources.files("manager.web") / "static").iterdir():
        if item.name.rpartition(".")[2] in TYPES:
            found.append(_tagged(item.name, item.read_bytes()))
    return found


def _tagged(name: str, body: bytes) -> tuple[str, tuple[bytes, str]]:
    return name, (body, hashlib.sha256(body).hexdigest()[:16])
