# SPDX-License-Identifier: Apache-2.0
"""From one set of services to the next, by what differs: of ten thousand services mostly one does.

A :class:`ServiceDiff` is made where services come from (:mod:`lb.node.follower`, or :meth:`ServiceDiff.between` for a
file), and whoever follows the services looks at ``gone`` and ``come`` alone. Services are told apart by identity: what
is equal may stay the same object, and then it costs nothing. Pure; imports only the model.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from lb.model import Network, Service


@dataclass(frozen=True, slots=True)
class ServiceDiff:
    """A service that became another is both in ``gone`` and in ``come``."""

    before: tuple[Service, ...]
    services: tuple[Service, ...]
    gone: tuple[Service, ...]
    come: tuple[Service, ...]

    @classmethod
    def between(cls, before: tuple[Service, ...], services: Iterable[Service]) -> ServiceDiff:
        """Looks at all of them."""
        services = tuple(services)
        old, new = set(map(id, before)), set(map(id, services))
        return cls(
            before,
            services,
            tuple(service for service in before if id(service) not in new),
            tuple(service for service in services if id(service) not in old),
        )

    def since(self, before: tuple[Service, ...]) -> ServiceDiff:
        """The same services, but seen from these."""
        return self if before is self.before else ServiceDiff.between(before, self.services)

    def without(self, names: Collection[str]) -> ServiceDiff:
        """The same, but that services of these names do not come; of what they were before nothing stays."""
        if not names:
            return self
        return ServiceDiff(
            self.before,
            tuple(service for service in self.services if service.name not in names),
            self.gone,
            tuple(service for service in self.come if service.name not in names),
        )

    def __bool__(self) -> bool:
        return bool(self.gone or self.come)


@dataclass(frozen=True, slots=True)
class Vips:
    """The VIPs of some services."""

    networks: frozenset[Network]
    _uses: Mapping[Network, int]  #: by how many services each is used

    @classmethod
    def of(cls, services: Iterable[Service]) -> Vips:
        return cls(frozenset(), {}).after(ServiceDiff.between((), services))

    def after(self, change: ServiceDiff) -> Vips:
        """This very object where no VIP comes or goes."""
        steps: dict[Network, int] = {}
        for services, step in ((change.come, 1), (change.gone, -1)):
            for service in services:
                steps[service.vip] = steps.get(service.vip, 0) + step
        if not any(steps.values()):
            return self
        uses = dict(self._uses)
        for vip, step in steps.items():
            uses[vip] = uses.get(vip, 0) + step
            if not uses[vip]:
                del uses[vip]
        networks = self.networks if uses.keys() == self._uses.keys() else frozenset(uses)
        return Vips(networks, uses)
