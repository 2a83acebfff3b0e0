# SPDX-License-Identifier: Apache-2.0
"""Who is logged in at the web page: sessions that an operator's token opens, each for half an hour at most.

Asked by :mod:`manager.pages`. A session is known by a secret in a cookie, of which only the hash is kept here, and what
it does needs a second secret that no other site can read. Sessions live in memory: they end with the manager. Wrong
tokens are limited, for each address and for all together, before anybody looks them up.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import secrets
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from lb.errors import AccessError

#: How long a session lasts at most, seconds.
LIFETIME = 30 * 60.0
#: Sessions at once; the oldest goes when there are more.
SESSIONS_MAX = 200
#: Wrong tokens in WINDOW seconds: from one address, and from all.
WINDOW = 60.0
FAILURES_MAX = 5
FAILURES_ALL = 100
TOKEN_MAX = 512

#: The operator's name and the token's end, by its text and the address that it came from; raises AccessError.
CheckToken = Callable[[str, str], Awaitable[tuple[str, float]]]


@dataclass(frozen=True, slots=True)
class Session:
    """One login."""

    who: str  #: as in the audit: "operator:alice"
    csrf: str  #: comes with everything that changes something
    expires: float  #: Unix time


class TooManyError(AccessError):
    """So many wrong tokens came that the next has to wait."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"too many wrong tokens; wait {math.ceil(seconds)} s")
        self.seconds = math.ceil(seconds)


@dataclass(slots=True)
class Failures:
    """Wrong tokens of the last WINDOW seconds, and where they came from."""

    _latest: deque[tuple[float, str]] = field(default_factory=deque)

    def wait(self, address: str, now: float) -> float:
        """Seconds until this address may try again."""
        while self._latest and self._latest[0][0] <= now - WINDOW:
            self._latest.popleft()
        own = [at for at, where in self._latest if where == address]
        if len(own) >= FAILURES_MAX:
            return own[-FAILURES_MAX] + WINDOW - now
        if len(self._latest) >= FAILURES_ALL:
            return self._latest[-FAILURES_ALL][0] + WINDOW - now
        return 0.0

    def add(self, address: str, now: float) -> None:
        self._latest.append((now, address))

    def forgive(self, address: str) -> None:
        """The latest was none."""
        for place in range(len(self._latest) - 1, -1, -1):
            if self._latest[place][1] == address:
                del self._latest[place]
                return


class Sessions:
    """All sessions of this manager."""

    def __init__(self, check: CheckToken, clock: Callable[[], float]) -> None:
        self._check = check
        self._clock = clock
        self._failures = Failures()
        self._sessions: dict[str, Session] = {}

    async def login(self, token: str, address: str) -> tuple[str, Session]:
        """The cookie's secret and the session. Raises AccessError."""
        now = self._clock()
        wait = self._failures.wait(address, now)
        if wait > 0:
            raise TooManyError(wait)
        # Counted before it is looked up: many at the same time are no way around the limit.
        self._failures.add(address, now)
        if len(token) > TOKEN_MAX:
            raise AccessError("the token is not an operator's of this manager")
        who, expires = await self._check(token, address)
        self._failures.forgive(address)
        secret = secrets.token_urlsafe(32)
        session = Session(who, secrets.token_urlsafe(24), min(expires, now + LIFETIME))
        self._clean(now)
        self._sessions[_digest(secret)] = session
        return secret, session

    def find(self, secret: str | None) -> Session | None:
        """The session of a cookie, unless it has ended."""
        session = self._sessions.get(_digest(secret)) if secret else None
        return session if session is not None and session.expires > self._clock() else None

    def logout(self, secret: str | None) -> None:
        if secret:
            self._sessions.pop(_digest(secret), None)

    def _clean(self, now: float) -> None:
        self._sessions = {key: found for key, found in self._sessions.items() if found.expires > now}
        while len(self._sessions) >= SESSIONS_MAX:
            del self._sessions[next(iter(self._sessions))]


def proves(session: Session, csrf: str | None) -> bool:
    """Whether a request comes from the page itself."""
    return csrf is not None and hmac.compare_digest(session.csrf.encode(), csrf.encode("utf-8", "replace"))


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()
