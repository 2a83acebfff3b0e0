# SPDX-License-Identifier: Apache-2.0
"""Connection ids of services, with the keys that lie in files of their own, so that no configuration, store, message or
log has them. A :class:`QuicKeys` belongs to a :class:`~lb.dataplane.compile.compiler.Compiler`, and reads a file each
time that a service which names it comes or changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from lb.dataplane import IdFormat, QuicRoutes, ServerId
from lb.errors import DataplaneError
from lb.model import BackendState, QuicIds, Service
from lb.quic_ids import read_key_file, server_id_of

#: Told of a key that cannot be had, in a sentence.
Tell = Callable[[str], None]


def refuse(why: str) -> None:
    """Of what shall not be without a key."""
    raise DataplaneError(why)


class QuicKeys:
    """Keys by their files; where one can be read no more, what it was before goes on."""

    def __init__(self, tell: Tell = refuse) -> None:
        self._tell = tell
        self._known: dict[str, bytes] = {}

    def routes(self, service: Service, numbers: Sequence[int]) -> QuicRoutes | None:
        """``numbers``: of the service's backends, in their order. Ids of a configuration whose key cannot be had name
        nobody."""
        formats = [found for one in service.quic if (found := self._format(service, one)) is not None]
        return QuicRoutes(formats, _servers(service, formats, numbers)) if service.quic else None

    def _format(self, service: Service, one: QuicIds) -> IdFormat | None:
        key = None
        if one.key_file is not None:
            key = self._key(service, one, one.key_file)
            if key is None:
                return None
        return IdFormat(one.id, one.server_id_bytes, one.nonce_bytes, key)

    def _key(self, service: Service, one: QuicIds, path: str) -> bytes | None:
        try:
            self._known[path] = read_key_file(path)
        except (OSError, ValueError) as error:
            why = f"cannot be read: {error.strerror}" if isinstance(error, OSError) else str(error)
            known = path in self._known
            then = "the key that it held before goes on" if known else "they are balanced like other UDP"
            # Outside the handler: whoever is told may raise.
        else:
            return self._known[path]
        self._tell(f"Key file {path} of connection ids {one.id} of service {service.name} {why}; {then}.")
        return self._known.get(path)


def _servers(service: Service, formats: Sequence[IdFormat], numbers: Sequence[int]) -> Iterator[ServerId]:
    """Who drains is last: it may have the id of who came in its place."""
    backends = sorted(zip(service.backends, numbers, strict=True), key=lambda item: item[0].state is BackendState.DRAIN)
    for one in formats:
        seen: set[bytes] = set()
        for backend, number in backends:
            server_id = server_id_of(backend.name, one.server_id_bytes, backend.server_id)
            if server_id not in seen:
                seen.add(server_id)
                yield ServerId(one.number, server_id, number)
