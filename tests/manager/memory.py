# SPDX-License-Identifier: Apache-2.0
"""What trust keeps, in memory: the smallest store that keeps its promises."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from manager.trust.tokens import HERE, Certificate, JoinRefusal, Token


class MemoryTrust:
    """A :class:`manager.trust.tokens.TrustStore`."""

    def __init__(self) -> None:
        self.tokens: dict[str, Token] = {}
        self.signed: dict[str, Certificate] = {}

    async def add_token(self, token: Token) -> None:
        self.tokens[token.digest] = token

    async def token(self, digest: str) -> Token | None:
        return self.tokens.get(digest)

    async def all_tokens(self) -> list[Token]:
        return list(self.tokens.values())

    async def end_tokens(self, digests: Collection[str], at: float, who: str = HERE) -> None:
        for digest in digests:
            self.tokens[digest] = replace(self.tokens[digest], expires=at, joined=None)

    async def join(self, digest: str, certificate: Certificate, pem: str, *, replaces: bool) -> JoinRefusal | None:
        token = self.tokens[digest]
        if token.used_at is not None:
            return JoinRefusal.USED
        whose = certificate.common_name
        held = [one.serial for one in self.signed.values() if one.common_name == whose and one.revoked_at is None]
        if held and not replaces:
            return JoinRefusal.THERE
        await self.revoke(held, certificate.made_at, f"{certificate.name} joined anew")
        self.tokens[digest] = replace(token, used_at=certificate.made_at, used_by=whose, joined=pem)
        self.signed[certificate.serial] = certificate
        return None

    async def add_certificate(
        self, certificate: Certificate, renews: str | None = None, made_by: str | None = None
    ) -> bool:
        if renews is not None and self.signed[renews].revoked_at is not None:
            return False
        self.signed[certificate.serial] = certificate
        return True

    async def certificates(self) -> list[Certificate]:
        return list(self.signed.values())

    async def revoked(self) -> dict[str, str]:
        gone = [one for one in self.signed.values() if one.revoked_at is not None]
        return {one.serial: one.revoked_why or "no reason was given" for one in gone}

    async def revoke(self, serials: Collection[str], at: float, why: str, who: str = HERE) -> None:
        for serial in serials:
            self.signed[serial] = replace(self.signed[serial], revoked_at=at, revoked_why=why)

    async def forget_expired(self, before: float) -> int:
        old = [serial for serial, one in self.signed.items() if one.expires < before]
        for serial in old:
            del self.signed[serial]
        return len(old)
