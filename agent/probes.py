# SPDX-License-Identifier: Apache-2.0
"""The agent's own backends, probed where their processes listen: at DIP:port, without the tunnel.

:mod:`agent.daemon` owns one :class:`LocalProbes`, gives it every configuration that is in force, and shows what it
knows. Which probe a backend gets is decided by :func:`checks`, which is pure:

    the service has a probe        that, at its port, else at the backend's
    tcp service without one        TCP connect to the backend's port
    udp service without one        none: taken to be up
    no single port to ask          none: taken to be up; ``probe.port`` would name one

State, weight and order of the operator play no part: a drained backend is probed as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lb.log import get_logger
from lb.model import Address, AgentConfig, Backend, Probe, ProbeType, Protocol, Service
from lb.node.messages import HealthReport
from lb.probe.board import Board, Known, Label, NotProbed
from lb.probe.checkers import PlainSockets, ask
from lb.probe.state import Answer, Health

log = get_logger()

DEFAULT = Probe(ProbeType.TCP)


@dataclass(frozen=True, slots=True)
class LocalCheck:
    """A probe of something on this host."""

    probe: Probe
    address: Address
    port: int

    @property
    def place(self) -> str:
        if self.probe.type is ProbeType.COMMAND:
            return f"command {self.probe.command[0]}"
        host = str(self.address) if self.address.version == 4 else f"[{self.address}]"
        return f"{self.probe.type.value} {host}:{self.port}"


def checks(config: AgentConfig) -> dict[Label, LocalCheck | NotProbed]:
    """What to ask of each backend on this host."""
    own = (config.agent.address, config.agent.address6)
    return {
        (service.name, backend.name): _check(service, backend)
        for service in config.services
        for backend in service.backends
        if backend.address in own
    }


def _check(service: Service, backend: Backend) -> LocalCheck | NotProbed:
    probe = service.probe
    if probe is None:
        if service.protocol is Protocol.UDP:
            return NotProbed("not probed: a UDP service without a probe")
        probe = DEFAULT
    port = probe.port or backend.port or (service.ports.first if service.ports.exact else None)
    if port is None and probe.type is not ProbeType.COMMAND:
        return NotProbed("not probed: the service has no single port; probe.port would name one")
    return LocalCheck(probe, backend.address, port or 0)


class LocalProbes:
    """Probes this host's backends; ``send`` hears of changes, None: there is no manager."""

    def __init__(self, send: Callable[[Sequence[HealthReport]], None] | None = None) -> None:
        self._board: Board[LocalCheck] = Board("agent", _ask, send or _nobody, unprobed=Health.UP)
        self._told = "the manager" if send else "nobody, as there is no manager: see lb get backends --local"
        self._backends = -1  # as they were logged

    def update(self, config: AgentConfig) -> None:
        """The configuration that is in force; a probe that stays the same keeps its state."""
        wanted = checks(config)
        self._board.update(wanted)
        if len(wanted) != self._backends:
            self._backends = len(wanted)
            log.info("probing", backends=len(wanted), probes=len(self._board), told=self._told)

    def known(self) -> dict[Label, Known]:
        """By service and backend. From any thread."""
        return self._board.known()

    def reports(self) -> list[HealthReport]:
        return self._board.reports()

    async def run(self) -> None:
        """Returns never; raises what is a programming error."""
        await self._board.run()

    async def close(self) -> None:
        await self._board.close()


async def _ask(check: LocalCheck) -> Answer:
    return await ask(check.probe, check.address, check.port, PlainSockets(check.address))


def _nobody(reports: Sequence[HealthReport]) -> None:
    """Without a manager."""
