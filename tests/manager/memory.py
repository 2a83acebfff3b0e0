# SPDX-License-Identifier: Apache-2.0
"""What trust keeps, in memory: the smallest store that keeps its promises."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from manager.tokens import Certificate, Token


class MemoryTrust:
    """A :class:`manager.tokens.TrustStore`."""

    def __init__(self) -> None:
        self.tokens: dict[str, Token] = {}
        self.signed: dict[str, Certificate] = {}

    async def add_token(self, token: Token) -> None:
        self.tokens[token.digest] = token

    async def token(self, digest: str) -> Token | None:
        return self.tokens.get(digest)

    async def spend_token(self, digest: str, at: float, by: str) -> bool:
        token = self.tokens[digest]
        if token.used_at is not None:
            return False
        self.tokens[digest] = replace(token, used_at=at, used_by=by)
        return True

    async def add_certificate(self, certificate: Certificate) -> None:
        self.signed[certificate.serial] = certificate

    async def certificates(self) -> list[Certificate]:
        return list(self.signed.values())

    async def revoke(self, serials: Collection[str], at: float, why: str) -> None:
        for serial in serials:
            self.signed[serial] = replace(self.signed[serial], revoked_at=at, revoked_why=why)
