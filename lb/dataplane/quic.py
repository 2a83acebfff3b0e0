# SPDX-License-Identifier: Apache-2.0
"""Whose packets of QUIC are, by their connection ids: see native/services/quic/quic_routes.h.

Made by :mod:`lb.dataplane.compile.compiler` for each service that has them; immutable, and of any thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from lb.dataplane.binding import c, ffi, make

_BEST_AES = 2


class IdFormat(NamedTuple):
    """One way to read connection ids."""

    number: int
    server_id_bytes: int
    nonce_bytes: int
    key: bytes | None  #: None: they are not encrypted

    def __repr__(self) -> str:
        """Without the key."""
        return f"IdFormat({self.number}, {self.server_id_bytes}, {self.nonce_bytes})"


class ServerId(NamedTuple):
    """A backend's, in one format; ``backend``: its number within the service."""

    number: int
    server_id: bytes
    backend: int


class QuicRoutes:
    """From connection id to backend."""

    def __init__(self, formats: Sequence[IdFormat], servers: Iterable[ServerId]) -> None:
        rows = [(f.number, f.server_id_bytes, f.nonce_bytes, f.key is not None, f.key or bytes(16)) for f in formats]
        ids = [(server.number, server.server_id.ljust(15, b"\0"), server.backend) for server in servers]
        configurations = ffi.new("struct quic_configuration[]", rows)
        named = ffi.new("struct quic_server[]", ids)
        self._c = make(
            "quic_routes",
            c.quic_routes_put,
            f"Cannot read connection ids of {len(rows)} configurations and {len(ids)} server ids",
            lambda out: c.quic_routes_create(configurations, len(rows), named, len(ids), _BEST_AES, out),
        )
