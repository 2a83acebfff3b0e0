# SPDX-License-Identifier: Apache-2.0
"""Tokens: a secret that lets one node join once, or an operator's script ask for a while.

Pure, but for the random numbers. :mod:`manager.trust.trust` asks :func:`refusal` and keeps what it decides in the
store, by way of :class:`TrustStore`. A token is shown once, when it is made; the store has only its hash. (The secret
is 24 random bytes, so a plain hash cannot be guessed back.) Its text holds the fingerprint of the authority as well, so
that a node that joins knows the manager from the first message. The text's form is known to :mod:`lb.node.identity`.
"""

from __future__ import annotations

import enum
import hashlib
import math
import re
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

from lb.errors import RequestError
from lb.node.identity import TokenText
from manager.trust.ca import subject

#: What operators may: see everything; change services and drain; and decide who takes part as well. An operator's
#: certificate is an admin's.
ROLES = ("viewer", "operator", "admin")
KINDS = ("mux", "agent", *ROLES)
#: Of what changes something.
OPERATORS_MAY = frozenset(
    {
        ("PUT", "/v1/services"),
        ("PUT", "/v1/services/{name}"),
        ("DELETE", "/v1/services/{name}"),
        ("POST", "/v1/apply"),
        ("POST", "/v1/delete"),
        ("POST", "/v1/confirm"),
        ("POST", "/v1/rollback"),
        *(
            ("POST", f"{what}/{verb}")
            for what in ("/v1/muxes/{name}", "/v1/backends/{service}/{backend}", "/v1/hosts/{name}")
            for verb in ("drain", "undrain")
        ),
        ("POST", "/v1/backends/{service}/{backend}/weight"),
    }
)
ID_LENGTH = 12
DEFAULT_TTL = 15 * 60.0
TTL_MAX = 366 * 86400.0
_SECRET_BYTES = 24
#: Who does something where it is not said: whoever runs a program of the manager's on its machine.
HERE = "lb-manager"


@dataclass(frozen=True, slots=True)
class Token:
    """What the store keeps of a token."""

    digest: str  #: SHA-256 of the secret, hex
    kind: str  #: mux and agent join with it, once; one of ROLES asks with it until it expires
    name: str | None  #: the only name that may join with it; None: any that has no certificate yet
    made_by: str
    made_at: float
    expires: float
    used_at: float | None = None
    used_by: str | None = None
    joined: str | None = None  #: the certificate that was given for it, as PEM, to whoever has its key

    @property
    def id(self) -> str:
        """What it is called in lists: the beginning of the hash, of which nobody can make the secret."""
        return self.digest[:ID_LENGTH]


@dataclass(frozen=True, slots=True)
class Certificate:
    """What the store keeps of a certificate that was signed."""

    serial: str
    kind: str
    name: str
    made_at: float
    expires: float
    revoked_at: float | None = None
    revoked_why: str | None = None

    @property
    def common_name(self) -> str:
        return f"{self.kind}:{self.name}"


class JoinRefusal(enum.Enum):
    """Why a token that was good a moment ago joins nobody."""

    USED = "the token was used already, and works once"
    THERE = "it has a certificate already"


@dataclass(frozen=True, slots=True)
class Deed:
    """A line of the audit that changes no service: who decided that somebody takes part, or no more."""

    at: float  #: Unix time
    who: str
    what: str
    why: str = ""


def made(token: Token) -> Deed:
    whom = f"{token.kind} {token.name or 'of any name'} to join once"
    if token.kind in ROLES:
        whom = f"operator {token.name} to ask as {token.kind}"
    return Deed(
        token.made_at, token.made_by, f"token {token.id} made for {whom}, for {token.expires - token.made_at:g} s"
    )


def ended(token: Token, at: float, who: str) -> Deed:
    return Deed(at, who, f"token {token.id} of {token.kind} {token.name or 'of any name'} revoked")


def joined(token: Token, certificate: Certificate) -> Deed:
    what = f"joined with token {token.id}, made by {token.made_by}"
    return Deed(certificate.made_at, certificate.common_name, what)


def signed(certificate: Certificate, who: str) -> Deed:
    what = f"certificate {certificate.serial} made for {certificate.kind} {certificate.name}"
    return Deed(certificate.made_at, who, f"{what}, for {(certificate.expires - certificate.made_at) / 86400:.0f} days")


def revoked(certificate: Certificate, at: float, who: str, why: str) -> Deed:
    what = f"certificate {certificate.serial} of {certificate.kind} {certificate.name} revoked"
    return Deed(at, who, what, why)


def forgotten(kind: str, name: str, at: float, who: str) -> Deed:
    return Deed(at, who, f"{kind} {name} forgotten")


def taken_over(term: int, at: float) -> Deed:
    return Deed(
        at, HERE, f"took over: this store counts from now on, above term {term}, whatever newer orders nodes had"
    )


class TrustStore(Protocol):
    """What :mod:`manager.trust.trust` needs of the store. Whoever decides who takes part leaves a line in the audit
    with it, both or neither."""

    async def add_token(self, token: Token) -> None: ...

    async def token(self, digest: str) -> Token | None: ...

    async def all_tokens(self) -> list[Token]:
        """All that have not expired."""
        ...

    async def end_tokens(self, digests: Collection[str], at: float, who: str = HERE) -> None:
        """They work no more from now on, and what was given for them is not given again."""
        ...

    async def add_certificate(
        self, certificate: Certificate, renews: str | None = None, made_by: str | None = None
    ) -> bool:
        """``renews``: the serial of the one that asked; False: that one was revoked, and nothing was added.
        ``made_by``: who made it, where nobody asked for it with a token or with another."""
        ...

    async def join(self, digest: str, certificate: Certificate, pem: str, *, replaces: bool) -> JoinRefusal | None:
        """In one transaction: spends the token, revokes what the node had (``replaces``; else it may have nothing), and
        adds its certificate, which the token keeps as text. All of it, or nothing and why."""
        ...

    async def certificates(self) -> list[Certificate]:
        """All that have not expired."""
        ...

    async def revoked(self) -> dict[str, str]:
        """Serial and reason of those of them that were revoked, may be of some that expired since; asked for every
        second."""
        ...

    async def revoke(self, serials: Collection[str], at: float, why: str, who: str = HERE) -> None: ...

    async def forget_expired(self, before: float) -> int:
        """Certificates and tokens that expired before this time, their revocations with them; what was done with them
        stays in the audit. Returns how many."""
        ...


def digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def make(kind: str, name: str | None, ttl: float, made_by: str, now: float) -> tuple[Token, str]:
    """A new token and its secret; raises RequestError."""
    if kind not in KINDS:
        raise RequestError(f"kind must be one of {', '.join(KINDS)}, not {kind[:20]!r}")
    if kind in ROLES and name is None:
        raise RequestError("an operator's token needs a name, for the audit")
    if name is not None:
        subject("operator" if kind in ROLES else kind, name)
    if not 0 < ttl <= TTL_MAX:
        raise RequestError(f"a token lives for 1 s to {TTL_MAX / 86400:.0f} days, not {ttl:g} s")
    secret = secrets.token_urlsafe(_SECRET_BYTES)
    return Token(digest(secret), kind, name, made_by, now, now + ttl), secret


def text(secret: str, fingerprint: str) -> str:
    """What is shown, and given to ``--token``."""
    return str(TokenText(secret, fingerprint))


def may_ask(role: str, method: str, path: str) -> str | None:
    """Why one of this role may not use a route; None if it may. What changes something and is not named here, only
    an admin may."""
    if role == "admin" or method in ("GET", "HEAD") or path == "/v1/diff":
        return None
    if role == "viewer":
        return "a viewer sees everything and changes nothing; ask with an operator's token"
    if (method, path) not in OPERATORS_MAY:
        return "only an admin decides who takes part; ask with an admin's token, or an operator's certificate"
    return None


def refusal(token: Token | None, kind: str, name: str, now: float) -> str | None:
    """Why a node of this kind and name may not join with the token; None if it may."""
    if token is None:
        return "the token is not one of this manager's"
    reasons = (
        (token.kind in ROLES, "the token is an operator's, and nodes cannot join with it"),
        (token.used_at is not None, f"the token was used already, by {token.used_by}, and works once"),
        (token.expires <= now, f"the token expired {_ago(now - token.expires)} ago"),
        (token.kind != kind, f"the token is for a node of kind {token.kind}, not {kind}"),
        (token.name not in (None, name), f"the token is for {token.name!r}, not for {name!r}"),
    )
    return next((reason for applies, reason in reasons if applies), None)


def operator_refusal(token: Token | None, now: float) -> str | None:
    """Why nobody may ask with the token as an operator."""
    if token is None or token.kind not in ROLES:
        return "the token is not an operator's of this manager"
    if token.expires <= now:
        return f"the token expired {_ago(now - token.expires)} ago"
    return None


def parse_ttl(value: str) -> float:
    """``90``, ``90s``, ``15m``, ``12h`` or ``7d`` in seconds; raises RequestError."""
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,3})?)([smhd]?)", value.strip())
    seconds = float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]] if match else math.nan
    if not 0 < seconds <= TTL_MAX:
        raise RequestError(f"a time must be such as 90s, 15m, 12h or 7d, not {value[:20]!r}")
    return seconds


def _ago(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
