# SPDX-License-Identifier: Apache-2.0
"""Who is logged in at the web page: sessions that an operator's token opens, each for half an hour at most.

Asked by :mod:`manager.web.server`. A session is known by a secret in a cookie, of which only the hash is kept here, and
what it does needs a second secret that no other site can read. Sessions live in memory: they end with the manager.
Wrong tokens are limited, for each address and for all together, before anybody looks them up.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import secrets
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from lb.errors import AccessError
from manager.trust.stranger_limits import ADDRESSES_MAX, group

#: How long a session lasts at most, seconds.
LIFETIME = 30 * 60.0
#: Sessions at once; the oldest goes when there are more.
SESSIONS_MAX = 200
#: Wrong tokens from one address in WINDOW seconds; after that it is told to wait.
WINDOW = 60.0
FAILURES_MAX = 5
TOKEN_MAX = 512

#: The operator's name and the token's end, by its text and the address that it came from; raises AccessError.
CheckToken = Callable[[str, str], Awaitable[tuple[str, float]]]


@dataclass(frozen=True, slots=True)
class LoginSession:
    """One login."""

    who: str  #: as in the audit: "operator:alice"
    csrf: str  #: comes with everything that changes something
    expires: float  #: Unix time


class TooManyError(AccessError):
    """So many wrong tokens came that the next has to wait."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"too many wrong tokens; wait {math.ceil(seconds)} s")
        self.seconds = math.ceil(seconds)


class Failures:
    """Wrong tokens of the last WINDOW seconds, for each address by itself: nobody's guesses are held against others."""

    def __init__(self) -> None:
        self._latest: OrderedDict[str, deque[float]] = OrderedDict()

    def wait(self, address: str, now: float) -> float:
        """Seconds until this address may try again."""
        own = self._latest.get(group(address))
        return max(0.0, own[0] + WINDOW - now) if own is not None and len(own) == FAILURES_MAX else 0.0

    def add(self, address: str, now: float) -> None:
        key = group(address)
        self._latest.setdefault(key, deque(maxlen=FAILURES_MAX)).append(now)
        self._latest.move_to_end(key)
        if len(self._latest) > ADDRESSES_MAX:
            self._latest.popitem(last=False)

    def forgive(self, address: str) -> None:
        """The latest was none."""
        own = self._latest.get(group(address))
        if own:
            own.pop()


class Sessions:
    """All sessions of this manager."""

    def __init__(self, check: CheckToken, clock: Callable[[], float]) -> None:
        self._check = check
        self._clock = clock
        self._failures = Failures()
        self._sessions: dict[str, LoginSession] = {}

    async def login(self, token: str, address: str) -> tuple[str, LoginSession]:
        """The cookie's secret and the session. Raises AccessError."""
        now = self._clock()
        wait = self._failures.wait(address, now)
        # Counted before it is looked up: many at the same time are no way around the limit.
        self._failures.add(address, now)
        try:
            if len(token) > TOKEN_MAX:
                raise AccessError("the token is not an operator's of this manager")
            who, expires = await self._check(token, address)
        except AccessError:
            if wait > 0:
                raise TooManyError(wait) from None
            raise
        self._failures.forgive(address)
        secret = secrets.token_urlsafe(32)
        session = LoginSession(who, secrets.token_urlsafe(24), min(expires, now + LIFETIME))
        self._clean(now)
        self._sessions[_digest(secret)] = session
        return secret, session

    def find(self, secret: str | None) -> LoginSession | None:
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


def proves(session: LoginSession, csrf: str | None) -> bool:
    """Whether a request comes from the page itself."""
    return csrf is not None and hmac.compare_digest(session.csrf.encode(), csrf.encode("utf-8", "replace"))


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()
