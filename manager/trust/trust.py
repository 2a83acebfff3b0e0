# SPDX-License-Identifier: Apache-2.0
"""Who is on the other end, and whether they may: TLS contexts, joining, renewal, revocation. Every refusal is logged.

One :class:`Trust` belongs to the daemon; the API and the node stream ask it. At the TLS layer a client certificate is
optional, so that a node without one can join; everything else needs one (or, for operators, a bearer token). Who asks
is what the certificate says, never what a message says. Certificates that do not verify never get as far as a request;
:class:`LoggingListener` and :class:`_LoggedTls` see to it that they leave a line in the log, too.
"""

from __future__ import annotations

import contextvars
import hmac
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lb.daemon.log import get_logger
from lb.errors import AccessError, IoError, RequestError
from manager.trust import tokens
from manager.trust.ca import CertificateAuthority, Issued, Subject, subject
from manager.trust.stranger_limits import Credit
from manager.trust.tokens import Certificate, JoinRefusal, Token, TrustStore

log = get_logger()

#: The peer of the connection that the running handshake belongs to.
_peer: contextvars.ContextVar[str] = contextvars.ContextVar("peer", default="?")

#: So many renewals of one node at once; later ones come back with its certificate's life.
RENEWALS = 5
#: Of so many nodes that is remembered.
RENEWERS_MAX = 20_000
#: A node that did not get the answer to its joining may ask for it again for so long, seconds.
JOIN_AGAIN = 3600.0
#: An expired certificate or token is kept for so long, seconds: longer than a clock is set back that went wrong, after
#: which what was revoked must not be good again.
FORGOTTEN_AFTER = 30 * 86400.0
#: Connections waiting to be accepted.
BACKLOG = 768


@dataclass(frozen=True, slots=True)
class Peer:
    """Who asks, as verified."""

    kind: str
    name: str
    serial: str | None = None  #: of the certificate; None: a bearer token
    expires: float | None = None  #: Unix time
    role: str = "admin"  #: of an operator, see manager.trust.tokens

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}"


class Trust:
    """Decides who may; see the module's text."""

    def __init__(
        self,
        authority: CertificateAuthority,
        store: TrustStore,
        node_lifetime: float,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.authority = authority
        self._store = store
        self.node_lifetime = node_lifetime
        self._clock = clock
        self._revoked: Mapping[str, str] = {}
        self._renewals: dict[str, Credit] = {}

    # -- who asks -----------------------------------------------------------------------------------------------

    def node(self, certificate: Mapping[str, Any] | None, address: str) -> Peer:
        """The node with this certificate (as ``peercert``), or AccessError."""
        peer = self._peer(certificate, address, "a node's")
        if peer.kind not in ("mux", "agent"):
            raise self.refused("node stream", address, f"{peer} is not a node", who=str(peer))
        return peer

    async def operator(self, certificate: Mapping[str, Any] | None, authorization: str | None, address: str) -> Peer:
        """The operator with this certificate, or with ``Authorization: Bearer TOKEN``; or AccessError."""
        if not certificate and authorization is not None:
            return await self._bearer(authorization, address)
        peer = self._peer(certificate, address, "an operator's")
        if peer.kind != "operator":
            raise self.refused("request", address, f"{peer} is not an operator", who=str(peer))
        return peer

    def _peer(self, certificate: Mapping[str, Any] | None, address: str, whose: str) -> Peer:
        if not certificate:
            raise self.refused("request", address, f"no client certificate was shown; {whose} is needed")
        peer = peer_of(certificate)
        if peer is None:
            raise self.refused("request", address, "the certificate is neither a node's nor an operator's")
        reason = self.standing(peer)
        if reason is not None:
            raise self.refused("request", address, reason, who=str(peer))
        return peer

    def standing(self, peer: Peer) -> str | None:
        """Why a peer that was verified once may not go on; None if it may."""
        why = self._revoked.get(peer.serial) if peer.serial is not None else None
        if why is not None:
            return f"the certificate of {peer} was revoked: {why}"
        if peer.expires is not None and peer.expires <= self._clock():
            return f"the certificate of {peer} has expired"
        return None

    async def _bearer(self, authorization: str, address: str) -> Peer:
        scheme, _, text = authorization.partition(" ")
        if scheme.lower() != "bearer":
            raise self.refused("request", address, "only bearer tokens and client certificates are accepted")
        token = await self._find(text.strip())
        reason = tokens.operator_refusal(token, self._clock())
        if token is None or token.name is None or reason is not None:
            raise self.refused("request", address, reason or "the token names nobody")
        return Peer("operator", token.name, expires=token.expires, role=token.kind)

    async def _find(self, text: str) -> Token | None:
        """By its secret, whether the fingerprint is still on it or not."""
        secret = text.split(".")[1] if text.startswith("lb1.") and text.count(".") == 2 else text
        digest = tokens.digest(secret)
        token = await self._store.token(digest)
        return token if token is not None and hmac.compare_digest(token.digest, digest) else None

    @staticmethod
    def refused(what: str, address: str, reason: str, **also: str) -> AccessError:
        """Logs a refusal; the error is for the caller to raise."""
        log.warning("refused", what=what, peer=address, reason=reason, **also)
        return AccessError(reason)

    # -- certificates -------------------------------------------------------------------------------------------

    async def join(
        self, body: Mapping[str, Any], address: str, good: Callable[[str], None] = lambda who: None
    ) -> dict[str, str]:
        """A first certificate for a node with a token. A token is spent with the certificate that it is for; the same
        node may ask for that again with the same key, for the answer may be lost on its way. ``good`` hears of a token
        that may be used, before it is. Raises AccessError."""
        kind, name, secret, csr = (_text(body, key) for key in ("kind", "name", "token", "csr"))
        whose: Subject | None = None
        try:
            whose = subject(kind, name)
            token = await self._find(secret)
            pem = await self._joined_before(token, whose, csr)
            if pem is None:
                reason = tokens.refusal(token, kind, name, self._clock())
                if token is None or reason is not None:
                    raise AccessError(reason or "no token")
                good(f"token:{token.id}")
                pem = await self._joined(token, whose, csr, address)
            else:
                good(str(whose))
                log.info("joined", node=str(whose), peer=address, reason="it asked again for what it had been given")
        except AccessError as error:
            raise self.refused("join", address, str(error), **({"who": str(whose)} if whose else {})) from None
        return {"certificate": pem, "ca": self.authority.pem}

    async def _joined(self, token: Token, whose: Subject, csr: str, address: str) -> str:
        """Its certificate, as PEM, for a token that is good."""
        now = self._clock()
        issued = self.authority.sign_request(csr, whose, self.node_lifetime)
        certificate = Certificate(issued.serial, whose.kind, whose.name, now, issued.not_after)
        refusal = await self._store.join(token.digest, certificate, issued.pem, replaces=token.name is not None)
        if refusal is JoinRefusal.THERE:
            raise AccessError(
                f"{whose.name} has a certificate already; to replace it make a token with --name {whose.name}"
            )
        if refusal is not None:  # somebody was faster: the same node, may be
            pem = await self._joined_before(await self._store.token(token.digest), whose, csr)
            if pem is None:
                raise AccessError(refusal.value)
            return pem
        if token.name is not None:
            await self.refresh()  # what it had is worth nothing any more
        log.info("joined", node=str(whose), peer=address, serial=issued.serial, token_by=token.made_by)
        return issued.pem

    async def _joined_before(self, token: Token | None, whose: Subject, csr: str) -> str | None:
        """What this node was given for the token, if it asks with the key that it is for. Whoever saw the token gets
        nothing by it, for the certificate is of use to nobody without the key."""
        if token is None or token.joined is None or token.used_at is None or token.used_by != str(whose):
            return None
        serial = self.authority.serial_for(token.joined, csr)
        if serial is None or self._clock() - token.used_at > JOIN_AGAIN:
            return None
        why = (await self._store.revoked()).get(serial)
        if why is not None:
            raise AccessError(f"the certificate that {whose} was given for the token was revoked: {why}")
        return token.joined

    async def renew(self, peer: Peer, body: Mapping[str, Any], address: str) -> dict[str, str]:
        """The next certificate of a node that has one."""
        if not self._renewals_of(str(peer)).take(self._clock()):
            reason = f"{peer} has renewed its certificate {RENEWALS} times in a short while; one is enough"
            raise self.refused("renewal", address, reason, who=str(peer))
        try:
            issued = self.authority.sign_request(_text(body, "csr"), Subject(peer.kind, peer.name), self.node_lifetime)
        except AccessError as error:
            raise self.refused("renewal", address, str(error), who=str(peer)) from None
        if not await self._record(issued, self._clock(), renews=peer.serial):
            reason = f"the certificate of {peer} was revoked meanwhile"
            raise self.refused("renewal", address, reason, who=str(peer))
        log.info("renewed", node=str(peer), peer=address, serial=issued.serial)
        return {"certificate": issued.pem, "ca": self.authority.pem}

    def _renewals_of(self, node: str) -> Credit:
        """A node asks for the next after a third of its certificate's life, and a twentieth later if that failed."""
        credit = self._renewals.get(node)
        if credit is None:
            if len(self._renewals) >= RENEWERS_MAX:
                self._renewals.clear()
            credit = self._renewals[node] = Credit(RENEWALS, 20 / self.node_lifetime, self._clock())
        return credit

    async def make_token(
        self, kind: str, name: str | None, ttl: float, made_by: str, expires: float | None = None
    ) -> str:
        """A token's text, shown once. ``expires``: when the token of whoever asks does, if it is one: none that it
        makes lives longer. Raises RequestError."""
        now = self._clock()
        if expires is not None and now + ttl > expires:
            raise RequestError(
                f"a token makes none that lives longer than itself: {max(0, int(expires - now))} s are left, and ttl "
                f"is {ttl:g} s; make it shorter, or ask with an operator's certificate"
            )
        token, secret = tokens.make(kind, name, ttl, made_by, now)
        await self._store.add_token(token)
        log.info("token made", id=token.id, kind=kind, name=name or "any", by=made_by, seconds=ttl)
        return tokens.text(secret, self.authority.fingerprint)

    async def all_tokens(self) -> list[Token]:
        """All that have not expired."""
        return await self._store.all_tokens()

    async def end_tokens(self, digests: list[str], who: str = tokens.HERE) -> None:
        """They work no more."""
        await self._store.end_tokens(digests, self._clock(), who)

    async def make_operator(self, name: str, made_by: str = tokens.HERE) -> tuple[str, str]:
        """An operator's certificate and key, as PEM."""
        issued, key = self.authority.make_operator(name)
        await self._record(issued, self._clock(), made_by=made_by)
        return issued.pem, key

    async def _record(self, issued: Issued, now: float, renews: str | None = None, made_by: str | None = None) -> bool:
        whose = issued.subject
        certificate = Certificate(issued.serial, whose.kind, whose.name, now, issued.not_after)
        return await self._store.add_certificate(certificate, renews, made_by)

    async def certificates(self) -> list[Certificate]:
        """All that have not expired, the revoked ones among them."""
        return await self._store.certificates()

    # -- revocation ---------------------------------------------------------------------------------------------

    async def revoke(self, serials: list[str], why: str, who: str = tokens.HERE) -> None:
        await self._store.revoke(serials, self._clock(), why, who)
        await self.refresh()

    async def refresh(self) -> None:
        """Reads what is revoked: it may have been another process. The daemon calls this every second or so."""
        self._revoked = await self._store.revoked()

    async def forget_expired(self) -> None:
        """What expired long ago is forgotten, and that it was revoked with it: it opens nothing. The daemon calls this
        every hour."""
        forgotten = await self._store.forget_expired(self._clock() - FORGOTTEN_AFTER)
        if forgotten:
            log.info(
                "forgot certificates and tokens", number=forgotten, expired_for=f"{FORGOTTEN_AFTER / 86400:g} days"
            )

    # -- TLS ----------------------------------------------------------------------------------------------------

    def server_context(self, manager: str, *listens: str) -> ssl.SSLContext:
        """TLS 1.3; a client certificate is verified if there is one."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_OPTIONAL
        context.load_verify_locations(self.authority.ca_file)
        self.load_server_certificate(context, manager, *listens)
        context.sslobject_class = _LoggedTls
        # A resumed session would bring back a certificate without anybody looking at it again.
        context.num_tickets = 0
        return context

    def page_context(self, manager: str, *listens: str) -> ssl.SSLContext:
        """For browsers: TLS 1.3 as well, and nobody is asked for a certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        self.load_server_certificate(context, manager, *listens)
        return context

    def load_server_certificate(self, context: ssl.SSLContext, manager: str, *listens: str) -> None:
        """Made anew when it ages; connections that come later see the new one. Call it once a day."""
        context.load_cert_chain(self.authority.server_certificate(manager, *listens))


class _LoggedTls(ssl.SSLObject):
    """A handshake that fails on the client's certificate is worth a line; asyncio would only drop the connection. And
    what is read is counted by its records, for it is they that cost."""

    reads = 0  #: records, and attempts to read another

    def read(self, len: int = 1024, buffer: Any = None) -> Any:
        self.reads += 1
        return super().read(len, buffer)

    def do_handshake(self) -> None:
        try:
            super().do_handshake()
        except ssl.SSLCertVerificationError as error:
            Trust.refused("connection", _peer.get(), f"the client's certificate is refused: {error.verify_message}")
            raise


class LoggingListener(socket.socket):
    """A listening socket that notes who connects, for the log of a handshake that fails before anybody is known."""

    def accept(self) -> tuple[socket.socket, Any]:
        connection, address = super().accept()
        # asyncio runs the connection's handshake in a copy of the context in which it was accepted.
        note_peer(str(address[0]))
        return connection, address


def note_peer(address: str) -> None:
    """The handshake that begins in this context is this peer's."""
    _peer.set(address)


def listener(listen: str, key: str = "manager.listen") -> LoggingListener:
    """Listens on ``host:port`` or ``[host]:port``; raises IoError."""
    host, _, port = listen.rpartition(":")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    server = LoggingListener(family, socket.SOCK_STREAM)
    try:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        server.bind((host, int(port)))
        server.listen(BACKLOG)
        server.setblocking(False)
    except OSError as error:
        server.close()
        raise IoError(f"{key} {listen}: {(error.strerror or str(error)).lower()}") from None
    return server


def peer_of(certificate: Mapping[str, Any]) -> Peer | None:
    """Who a verified certificate (as ``peercert``) is for; None for one that is not for a client of ours."""
    names = [value for part in certificate.get("subject", ()) for key, value in part if key == "commonName"]
    kind, _, name = names[0].partition(":") if len(names) == 1 else ("", "", "")
    if kind not in ("mux", "agent", "operator") or not name:
        return None
    expires = ssl.cert_time_to_seconds(certificate["notAfter"])
    return Peer(kind, name, str(certificate["serialNumber"]), float(expires))


def _text(body: Mapping[str, Any], key: str) -> str:
    value = body.get(key)
    return value if isinstance(value, str) else ""
