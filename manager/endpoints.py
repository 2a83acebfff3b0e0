# SPDX-License-Identifier: Apache-2.0
"""What makes the daemon a safe one to reach: its certificate, who may ask, the node stream, and their upkeep.

Made once by :mod:`manager.daemon`; puts :mod:`manager.trust.trust`, :mod:`manager.nodes.stream` and
:mod:`manager.trust.joining` together for it. Without TLS (``--insecure-loopback``) there is none of this: no node can
follow then.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aiohttp import web

from lb.daemon.log import get_logger
from lb.daemon.supervise import Tasks
from lb.model import ManagerSettings
from manager.api.server import TOKEN_ENDS
from manager.nodes.stream import Hub, Streams
from manager.store.interface import Store, StoreError
from manager.trust import joining
from manager.trust.ca import CertificateAuthority
from manager.trust.joining import address_of, certificate_of
from manager.trust.tokens import may_ask
from manager.trust.trust import Trust, peer_of

#: How often the manager's own certificate is looked at, seconds.
UPKEEP_INTERVAL = 3600.0
#: The authority's directory in the state directory.
CA_DIRECTORY = "ca"

log = get_logger()


class Access:
    """Trust at work; raises AccessError where there is no authority yet."""

    def __init__(self, settings: ManagerSettings, store: Store, hub: Hub) -> None:
        self._settings = settings
        authority = CertificateAuthority.load(Path(settings.state_dir) / CA_DIRECTORY)
        ahead = authority.begins_in(datetime.now(UTC))
        if ahead > 0:
            log.error(
                "the CA's certificate begins in the future",
                hours=round(ahead / 3600, 1),
                reason="the clock is behind, or was ahead when `lb-manager init` ran: until it is valid nobody trusts "
                "this manager; set the clock, or make another CA",
            )
        self.trust = Trust(authority, store, settings.node_lifetime)
        self.streams = Streams(hub, self.trust)
        self._listens = (settings.listen, *([settings.web] if settings.web is not None else ()))
        self.context: ssl.SSLContext = self.trust.server_context(settings.name, *self._listens)
        self.page_context: ssl.SSLContext = self.trust.page_context(settings.name, *self._listens)

    @property
    def routes(self) -> Sequence[web.AbstractRouteDef]:
        """The calls that authenticate by themselves."""
        return [*joining.routes(self.trust), *self.streams.routes()]

    async def authenticate(self, request: web.Request) -> str:
        """The operator who asks; raises AccessError."""
        authorization, address = request.headers.get("Authorization"), address_of(request)
        peer = await self.trust.operator(certificate_of(request), authorization, address)
        resource = request.match_info.route.resource
        why = may_ask(peer.role, request.method, resource.canonical if resource is not None else "")
        if why is not None:
            raise self.trust.refused("request", address, why, who=str(peer), path=request.path)
        if peer.serial is None:
            request[TOKEN_ENDS] = peer.expires
        return str(peer)

    def recognise(self, certificate: Mapping[str, Any]) -> str | None:
        """Whose certificate this is that a handshake showed, unless it is worth nothing any more."""
        peer = peer_of(certificate)
        return str(peer) if peer is not None and self.trust.standing(peer) is None else None

    async def check_token(self, token: str, address: str) -> tuple[str, float]:
        """The operator of a token and when it expires; raises AccessError."""
        peer = await self.trust.operator(None, f"Bearer {token}", address)
        if peer.role == "viewer":
            raise self.trust.refused("login", address, "a viewer's token changes nothing", who=str(peer))
        return str(peer), peer.expires or 0.0

    async def make_token(self, kind: str, name: str | None, ttl: float, who: str, ends: float | None) -> str:
        return await self.trust.make_token(kind, name, ttl, who, ends)

    def begin(self, tasks: Tasks) -> None:
        """Revocations and expiries take effect, and the manager's own certificate stays valid."""
        tasks.restarted("revocations", self.streams.watch)
        tasks.restarted("own certificate", self._upkeep)

    async def _upkeep(self) -> None:
        while True:
            try:
                await self.trust.forget_expired()
            except StoreError as error:  # the next time, then
                log.error("expired certificates not forgotten", reason=str(error))
            await asyncio.sleep(UPKEEP_INTERVAL)
            for context in (self.context, self.page_context):
                await asyncio.to_thread(
                    self.trust.load_server_certificate, context, self._settings.name, *self._listens
                )

    async def close(self) -> None:
        """Tells nodes that the manager stops."""
        await self.streams.close()
