# SPDX-License-Identifier: Apache-2.0
"""Numbers of services and backends in a file that outlives the process, beside the flow tables that hold them.

:mod:`lb.dataplane.compile.numbers` lends them.

A line of JSON for each service whose numbers changed, which goes before the lines of the same service or id above it.
It is written before the change can reach a packet, so that no flow table ever holds a number that the file does not
tell. A line that its process died in was of no use to anybody yet.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path

from lb.dataplane.compile.numbers import Place, ServiceKey, ServiceNumbers
from lb.model import PortRange, Protocol

#: The file is written anew when it has grown to so many times what it was, and by so many bytes at least.
_GROWN = 4
_GROWN_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class KeptService:
    """What a process before lent to a service."""

    key: ServiceKey
    id: int
    backends: Mapping[Place, int]


def line_of(key: ServiceKey, numbers: ServiceNumbers) -> str:
    """With its end."""
    backends = [
        [str(place), number] if not isinstance(place, tuple) else [str(place[0]), number, place[1]]
        for place, number in numbers.backends.items()
    ]
    ports = [key.ports.first, key.ports.last]
    return json.dumps([numbers.id, str(key.vip), key.protocol.value, ports, backends], separators=(",", ":")) + "\n"


def read_lines(text: str) -> list[KeptService]:
    """What the lines say in the end. Raises ValueError where one is none of ours; the last may be cut short."""
    found: dict[int, KeptService] = {}
    ids: dict[ServiceKey, int] = {}
    for line in text.split("\n")[:-1]:
        kept = _read(line)
        found.pop(ids.pop(kept.key, -1), None)
        before = found.pop(kept.id, None)
        if before is not None:
            ids.pop(before.key, None)
        found[kept.id] = kept
        ids[kept.key] = kept.id
    return list(found.values())


def _read(line: str) -> KeptService:
    try:
        number, vip, protocol, (first, last), backends = json.loads(line)
        key = ServiceKey(ip_network(vip), Protocol(protocol), PortRange(first, last))
        return KeptService(key, int(number), {_place(*backend): int(backend[1]) for backend in backends})
    except (TypeError, ValueError, KeyError) as error:
        raise ValueError(f"{line[:80]!r} is no line of numbers: {error}") from None


def _place(address: str, _number: int, name: str | None = None) -> Place:
    return ip_address(address) if name is None else (ip_address(address), name)


class NumbersFile:
    """The file, open for what is lent from now on. One that cannot be written is removed: then nobody believes it."""

    def __init__(self, path: Path, lost: Callable[[str], None]) -> None:
        """``lost`` is told why the file is no more."""
        self._path = path
        self._lost = lost
        self._descriptor: int | None = None
        self._size = 0
        self._began = 0

    def load(self) -> list[KeptService]:
        """Of the process before. Raises OSError and ValueError."""
        return read_lines(self._path.read_text())

    def begin(self, lines: Iterable[str]) -> None:
        """Writes it anew. Raises OSError."""
        self.close()
        fresh = self._path.with_suffix(".new")
        fresh.unlink(missing_ok=True)
        self._descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        data = "".join(lines).encode()
        _write(self._descriptor, data)
        fresh.replace(self._path)
        self._size = self._began = len(data)

    def note(self, lines: list[str], whole: Iterator[str]) -> None:
        """Of services whose numbers changed; ``whole``: of all, where the file is to be written anew."""
        if self._descriptor is None or not lines:
            return
        data = "".join(lines).encode()
        try:
            if self._size + len(data) > self._began * _GROWN + _GROWN_BYTES:
                self.begin(whole)
            else:
                _write(self._descriptor, data)
                self._size += len(data)
        except OSError as error:
            self.remove()
            self._lost((error.strerror or str(error)).lower())

    def remove(self) -> None:
        """Nobody is to believe it any more."""
        self.close()
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _write(descriptor: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]
