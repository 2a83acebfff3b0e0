# SPDX-License-Identifier: Apache-2.0
"""The fewest prefixes that cover exactly some networks, kept as networks come and go. Pure.

What :func:`ipaddress.collapse_addresses` says of all of them at once; of ten thousand VIPs that takes a twentieth of a
second, and here each that comes or goes takes some ten microseconds. Used by :mod:`lb.mux.io.isolation`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, collapse_addresses
from typing import NamedTuple

from lb.model import Network

#: Of so many at once the cover is made anew.
MANY = 200


class Prefix(NamedTuple):
    """A network as numbers, which are faster to compute with."""

    version: int
    address: int
    length: int

    @classmethod
    def of(cls, network: Network) -> Prefix:
        return cls(network.version, int(network.network_address), network.prefixlen)

    @property
    def network(self) -> Network:
        kind = IPv4Network if self.version == 4 else IPv6Network
        return kind((self.address, self.length))

    @property
    def parent(self) -> Prefix:
        return self.shortened(self.length - 1)

    @property
    def sibling(self) -> Prefix:
        """The other half of the parent."""
        return Prefix(self.version, self.address ^ 1 << (self._width - self.length), self.length)

    def shortened(self, length: int) -> Prefix:
        shift = self._width - length
        return Prefix(self.version, self.address >> shift << shift, length)

    def holds(self, other: Prefix) -> bool:
        return self.version == other.version and self.length <= other.length and other.shortened(self.length) == self

    @property
    def single(self) -> bool:
        return self.length == self._width

    @property
    def _width(self) -> int:
        return 32 if self.version == 4 else 128


@dataclass(frozen=True, slots=True)
class CoverStep:
    """What makes one cover of another. An interval set wants what goes to go first."""

    come: tuple[Prefix, ...]
    gone: tuple[Prefix, ...]


class Cover:
    """The cover of some networks."""

    def __init__(self, networks: Iterable[Network] = ()) -> None:
        there = list(networks)
        ipv4 = collapse_addresses(network for network in there if isinstance(network, IPv4Network))
        ipv6 = collapse_addresses(network for network in there if isinstance(network, IPv6Network))
        self._wanted = {Prefix.of(network) for network in there}
        self._prefixes = {Prefix.of(network) for network in ipv4} | {Prefix.of(network) for network in ipv6}

    def __len__(self) -> int:
        return len(self._prefixes)

    def __iter__(self) -> Iterator[Prefix]:
        return iter(sorted(self._prefixes))

    @property
    def networks(self) -> list[Network]:
        return [prefix.network for prefix in self]

    def step(self, come: Collection[Network], gone: Collection[Network]) -> CoverStep:
        """Networks that were not there come, and some that were there go."""
        if len(come) + len(gone) > MANY:
            left = self._wanted - set(map(Prefix.of, gone)) | set(map(Prefix.of, come))
            new, old = Cover(prefix.network for prefix in left), self._prefixes
            self._wanted, self._prefixes = new._wanted, new._prefixes
            return CoverStep(tuple(self._prefixes - old), tuple(old - self._prefixes))
        before: dict[Prefix, bool] = {}  # of those that were touched, whether they were part of the cover
        for network in gone:
            self._remove(Prefix.of(network), before)
        for network in come:
            prefix = Prefix.of(network)
            self._wanted.add(prefix)
            self._add(prefix, before)
        now = {prefix: prefix in self._prefixes for prefix in before}
        return CoverStep(
            tuple(prefix for prefix, was in before.items() if now[prefix] and not was),
            tuple(prefix for prefix, was in before.items() if was and not now[prefix]),
        )

    def _put(self, prefix: Prefix, before: dict[Prefix, bool]) -> None:
        before.setdefault(prefix, prefix in self._prefixes)
        self._prefixes.add(prefix)

    def _take(self, prefix: Prefix, before: dict[Prefix, bool]) -> None:
        before.setdefault(prefix, prefix in self._prefixes)
        self._prefixes.discard(prefix)

    def _add(self, prefix: Prefix, before: dict[Prefix, bool]) -> None:
        if _holder(prefix, self._prefixes) is not None:
            return
        for inner in list(_inside(prefix, self._prefixes)):
            self._take(inner, before)
        while prefix.length and prefix.sibling in self._prefixes:
            self._take(prefix.sibling, before)
            prefix = prefix.parent
        self._put(prefix, before)

    def _remove(self, prefix: Prefix, before: dict[Prefix, bool]) -> None:
        self._wanted.remove(prefix)
        if _holder(prefix, self._wanted) is not None:
            return
        holder = _holder(prefix, self._prefixes)
        assert holder is not None  # noqa: S101  it was added
        self._take(holder, before)
        for length in range(holder.length + 1, prefix.length + 1):
            self._put(prefix.shortened(length).sibling, before)  # all of it is others'
        for inner in list(_inside(prefix, self._wanted)):
            self._add(inner, before)


def _holder(prefix: Prefix, prefixes: set[Prefix]) -> Prefix | None:
    """The longest one that holds it."""
    lengths = range(prefix.length, -1, -1)
    return next((found for found in map(prefix.shortened, lengths) if found in prefixes), None)


def _inside(prefix: Prefix, prefixes: set[Prefix]) -> Iterator[Prefix]:
    """Those within it."""
    return iter(()) if prefix.single else (other for other in prefixes if prefix.holds(other))
