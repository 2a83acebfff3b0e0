# SPDX-License-Identifier: Apache-2.0
"""The three calls of a node that is not on the stream yet: the authority's certificate, joining, renewal.

Added to the manager's application by :mod:`manager.daemon`; everything is decided by :mod:`manager.trust.trust`.
"""

from __future__ import annotations

import asyncio
import functools
from typing import Any

import msgspec
from aiohttp import web

from lb.errors import AccessError
from manager.trust.bounded_listener import known
from manager.trust.trust import Trust

BODY_MAX = 64 * 1024
#: Until all of it must be there, seconds.
BODY_TIMEOUT = 5.0


def routes(trust: Trust) -> list[web.RouteDef]:
    """``GET /v1/ca``, ``POST /v1/join``, ``POST /v1/renew``."""

    async def ca(_: web.Request) -> web.Response:
        """Public: who fetches it compares the fingerprint."""
        return web.json_response({"ca": trust.authority.pem})

    async def join(request: web.Request) -> web.Response:
        """The only call that changes something and needs no certificate."""
        try:
            body = await _body(request)
            # Whoever has a good token is no stranger from then on: nobody takes its place while it is joined.
            return web.json_response(await trust.join(body, address_of(request), functools.partial(known, request)))
        except AccessError as error:
            return web.json_response({"error": str(error)}, status=403)

    async def renew(request: web.Request) -> web.Response:
        address = address_of(request)
        try:
            peer = trust.node(certificate_of(request), address)
            return web.json_response(await trust.renew(peer, await _body(request), address))
        except AccessError as error:
            return web.json_response({"error": str(error)}, status=403)

    return [web.get("/v1/ca", ca), web.post("/v1/join", join), web.post("/v1/renew", renew)]


def certificate_of(request: web.Request) -> dict[str, Any] | None:
    """The client's certificate, verified by TLS; None if it showed none."""
    found: dict[str, Any] | None = request.transport.get_extra_info("peercert") if request.transport else None
    return found or None


def address_of(request: web.Request) -> str:
    """Where the connection comes from; not what a header says."""
    name = request.transport.get_extra_info("peername") if request.transport else None
    return str(name[0]) if isinstance(name, tuple) else "?"


async def _body(request: web.Request) -> dict[str, Any]:
    text = b""
    try:
        async with asyncio.timeout(BODY_TIMEOUT):
            async for piece in request.content.iter_chunked(BODY_MAX):
                text += piece
                if len(text) > BODY_MAX:
                    raise web.HTTPRequestEntityTooLarge(BODY_MAX, len(text))
    except TimeoutError:
        raise AccessError(f"the request's body was not there within {BODY_TIMEOUT:g} s") from None
    try:
        body = msgspec.json.decode(text)
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise AccessError("the request must be a JSON object")
    return body
