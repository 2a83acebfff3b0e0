# SPDX-License-Identifier: Apache-2.0
"""Which VIPs are proved, and which services are to be tested next: what is new at once, all the rest at leisure. Pure.

Owned by :class:`lb.mux.announcer.Announcer`, which runs the self-test (:mod:`lb.bgp.selftest`). A VIP is proved once
all its services that were new have passed; it stays so while one of them, changed, is tested again, and until one
fails. A table shares with the one before what did not change, so that the test of what did says all there is to say,
unless that very sharing went wrong. So after each change all services are tested once more, in small slices: a *sweep*.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from typing import TypeVar

from lb.model import Network, Service
from lb.model.service_diff import ServiceDiff

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Failure:
    service: Service
    why: str


class Proofs:
    """``proved`` and ``failed`` are for reading, and always current."""

    def __init__(self) -> None:
        self.services: tuple[Service, ...] = ()
        self.proved: set[Network] = set()
        self.failed: dict[Network, str] = {}  #: VIPs, and what was wrong with one of their services
        self._uses: dict[Network, tuple[Network, int]] = {}  # each VIP itself, and by how many services it is used
        # Both by VIP and name of the service.
        self._waiting: dict[Network, dict[str, Service]] = {}
        self._failures: dict[Network, dict[str, _Failure]] = {}
        self._sweep: tuple[Service, ...] = ()
        self._swept = 0
        self._sweep_again = False

    # -- what happens -------------------------------------------------------------------------------------------

    def follow(self, change: ServiceDiff) -> set[Network]:
        """Another table is live; the VIPs about which something else may be known now."""
        change = change.since(self.services)
        for service in change.gone:
            _drop(self._waiting, service.vip, service.name)
            _drop(self._failures, service.vip, service.name)
            self._use(service.vip, -1)
        for service in change.come:
            self._waiting.setdefault(service.vip, {})[service.name] = service
            self._use(service.vip, 1)
        self.services = change.services
        self._sweep_again |= bool(change)
        return self._settle({service.vip for service in chain(change.gone, change.come)})

    def retry(self) -> None:
        """There are other ways to backends: what failed may pass now."""
        for vip, failures in self._failures.items():
            waiting = self._waiting.setdefault(vip, {})
            for name, failure in failures.items():
                waiting.setdefault(name, failure.service)

    def judge(self, services: Iterable[Service], failed: Mapping[str, str]) -> set[Network]:
        """These live services were tested; ``failed``: the names of those that failed, and why. As :meth:`follow`."""
        touched: set[Network] = set()
        for service in services:
            vip, name = service.vip, service.name
            if self._waiting.get(vip, {}).get(name, service) is not service:
                continue  # it became another meanwhile
            _drop(self._waiting, vip, name)
            _drop(self._failures, vip, name)
            if name in failed:
                self._failures.setdefault(vip, {})[name] = _Failure(service, failed[name])
            touched.add(vip)
        return self._settle(touched)

    def _settle(self, vips: set[Network]) -> set[Network]:
        """Brings ``proved`` and ``failed`` up to date; those of the VIPs for which they are others now."""
        changed: set[Network] = set()
        for vip in vips:
            before = vip in self.proved, self.failed.get(vip)
            if vip not in self._uses:
                self.proved.discard(vip)
                self.failed.pop(vip, None)
            elif vip in self._failures:
                self.proved.discard(vip)
                self.failed[vip] = list(self._failures[vip].values())[-1].why
            else:
                self.failed.pop(vip, None)
                if vip not in self._waiting:
                    self.proved.add(vip)
            if before != (vip in self.proved, self.failed.get(vip)):
                changed.add(vip)
        return changed

    def _use(self, vip: Network, step: int) -> None:
        known, count = self._uses.get(vip, (vip, 0))
        if count + step:
            self._uses[vip] = known, count + step
        else:
            del self._uses[vip]

    def known(self, vip: Network) -> Network:
        """The same VIP, and the very object that is known of it, if one is: ten thousand of them take 5 MiB."""
        return self._uses.get(vip, (vip, 0))[0]

    # -- what is to be tested -----------------------------------------------------------------------------------

    @property
    def urgent(self) -> bool:
        """Whether something new waits for its test."""
        return bool(self._waiting)

    @property
    def sweeping(self) -> bool:
        """Whether something is left to be tested again."""
        return self._sweep_again or self._swept < len(self._sweep)

    def waiting(self, most: int) -> list[Service]:
        """New services; they wait until they are judged."""
        return list(islice((service for found in self._waiting.values() for service in found.values()), most))

    def sweep(self, most: int) -> tuple[Service, ...]:
        """The next services that are to be tested again; some may be live no more."""
        if self._swept >= len(self._sweep):
            if not self._sweep_again:
                self._sweep = ()
                return ()
            self._sweep, self._swept, self._sweep_again = self.services, 0, False
        self._swept += most
        return self._sweep[self._swept - most : self._swept]


def _drop(table: dict[Network, dict[str, T]], vip: Network, name: str) -> None:
    found = table.get(vip)
    if found is not None:
        found.pop(name, None)
        if not found:
            del table[vip]
