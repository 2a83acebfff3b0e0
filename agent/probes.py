# SPDX-License-Identifier: Apache-2.0
"""The agent's own backends, probed without the tunnel, at the address to which clients' packets go.

:mod:`agent.daemon` owns one :class:`LocalProbes`, gives it every configuration that is in force, and shows what it
knows. Which probe a backend gets is decided by :func:`checks`, which is pure:

    the service has a probe        that
    tcp service without one        TCP connect
    udp service without one        none: taken to be up
    no single port to ask          none: taken to be up; ``probe.port`` would name one
    a command, not allowed here    TCP connect instead, where there is a single port of TCP to ask; and said

and where it asks:

    at another port                the host's address, ``probe.port``
    the service is translated      the host's address, the backend's port: what clients' packets are translated to
    any other                      the VIP and the service's port, from the host's address. Only who answers there, and
                                   from there, answers clients; rules of the host's own (a container's published port)
                                   are passed as well

State, weight and order of the operator play no part: a drained backend is probed as well.
"""

from __future__ import annotations

import errno
import os
import pwd
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

from lb.daemon.log import get_logger
from lb.errors import ConfigError
from lb.model import Address, AgentConfig, AgentSettings, Backend, Probe, ProbeType, Protocol, Service
from lb.node.messages import HealthReport
from lb.probe.checkers import PlainSockets, RunAs, ask
from lb.probe.results import Board, Known, Label, NotProbed
from lb.probe.state import ProbeAnswer, ProbeHealth

log = get_logger()

DEFAULT = Probe(ProbeType.TCP)
FORBIDDEN = "this host runs no commands; `command_probes = true` in [agent] of its own file lets it"
#: Of a backend that is not well at its VIP it is asked so long whether it answers elsewhere, seconds.
ELSEWHERE = 0.2
_UNREACHABLE = os.strerror(errno.ENETUNREACH).lower()
#: Where the default user of commands does not exist: the number that it has everywhere else.
DEFAULT_USER, _NOBODY = "nobody", 65534


@dataclass(frozen=True, slots=True)
class LocalCheck:
    """A probe of something on this host."""

    probe: Probe
    address: Address
    port: int
    source: Address | None = None  #: the host's own address, where ``address`` is a VIP
    run_as: RunAs | None = None  #: commands
    instead: str | None = None  #: why this is asked, and not what the service says

    @property
    def host(self) -> bool:
        return False

    @property
    def place(self) -> str:
        if self.probe.type is ProbeType.COMMAND:
            return f"command {self.probe.command[0]}"
        host = str(self.address) if self.address.version == 4 else f"[{self.address}]"
        return f"{self.probe.type.value} {host}:{self.port}"


def checks(
    config: AgentConfig, run_as: RunAs | None = None, forbidden: str | None = None
) -> dict[Label, LocalCheck | NotProbed]:
    """What to ask of each backend on this host; ``run_as``: whom commands run as, if not as this process;
    ``forbidden``: why none can be run now."""
    own = config.agent.addresses
    if not config.agent.command_probes:
        forbidden = FORBIDDEN
    return {
        (service.name, backend.name): _check(service, backend, own, run_as, forbidden)
        for service in config.services
        for backend in service.backends
        if backend.address in own
    }


def _check(
    service: Service, backend: Backend, own: Collection[Address], run_as: RunAs | None, forbidden: str | None
) -> LocalCheck | NotProbed:
    probe = service.probe
    if probe is None:
        if service.protocol is Protocol.UDP:
            return NotProbed("not probed: a UDP service without a probe")
        probe = DEFAULT
    instead = forbidden if probe.type is ProbeType.COMMAND else None
    if instead is not None:
        if service.protocol is Protocol.UDP:
            return NotProbed(f"not probed: {instead}")
        timing = {"interval": probe.interval, "timeout": probe.timeout, "rise": probe.rise, "fall": probe.fall}
        probe = Probe(ProbeType.TCP, port=probe.port, **timing)  # type: ignore[arg-type]
    translated = service.backend_port(backend) is not None
    port = probe.port or backend.port or (service.ports.first if service.ports.exact else None)
    if probe.type is ProbeType.COMMAND:
        return LocalCheck(probe, backend.address, port or 0, run_as=run_as)
    if port is None:
        return NotProbed(f"not probed: {instead or 'the service has no single port; probe.port would name one'}")
    # Its tunnel may be of the other family: then clients' packets are for the host's address of theirs.
    at = next((one for one in own if one.version == service.vip.version), None)
    if backend.address.version == service.vip.version:
        at = backend.address
    if probe.port is not None or translated:
        return LocalCheck(probe, at or backend.address, port, instead=instead)
    return LocalCheck(probe, service.vip.network_address, port, source=at, instead=instead)


def command_user(settings: AgentSettings, who_am_i: Callable[[], int] = os.geteuid) -> RunAs | None:
    """Whom commands run as; None: as this process, because it is not root or because the file says so. Raises
    ConfigError."""
    if who_am_i() != 0 or not settings.command_probes:
        return None
    name = settings.command_user
    try:
        found = pwd.getpwnam(name)
    except KeyError:
        if name == DEFAULT_USER:
            return RunAs(name, _NOBODY, _NOBODY)
        message = f'there is no user "{name}" on this host: make one (`useradd --system {name}`), or name another'
        raise ConfigError([("agent.command_user", message)]) from None
    return RunAs(name, found.pw_uid, found.pw_gid) if found.pw_uid else None


class LocalProbes:
    """Probes this host's backends; ``send`` hears of changes, None: there is no manager."""

    def __init__(self, send: Callable[[Sequence[HealthReport]], None] | None = None) -> None:
        self._board: Board[LocalCheck] = Board("agent", _ask, send or _nobody, unprobed=ProbeHealth.UP)
        self._told = "the manager" if send else "nobody: there is no manager; see lb get backends --local"
        self._backends = -1  # as they were logged
        self._forbidden: str | None = None  # why no command can be run, as it was logged

    def update(self, config: AgentConfig) -> None:
        """The configuration that is in force; a probe that stays the same keeps its state.

        A user of commands who was there at the start and is not any more costs the commands alone."""
        run_as, forbidden = None, None
        try:
            run_as = command_user(config.agent)
        except ConfigError as error:
            forbidden = "; ".join(error.lines)
        wanted = checks(config, run_as, forbidden)
        self._say_forbidden(config, forbidden)
        self._board.update(wanted)
        if len(wanted) != self._backends:
            self._backends = len(wanted)
            log.info("probing", backends=len(wanted), probes=len(self._board), told=self._told)

    def _say_forbidden(self, config: AgentConfig, reason: str | None) -> None:
        """Once, where it matters: commands that are wanted here are not run."""
        if not config.agent.command_probes:
            own = config.agent.addresses
            commands = any(
                service.probe is not None
                and service.probe.type is ProbeType.COMMAND
                and any(backend.address in own for backend in service.backends)
                for service in config.services
            )
            reason = FORBIDDEN if commands else None
        if reason is not None and reason != self._forbidden:
            log.error(
                "commands not run", reason=reason, then="TCP is asked instead, and UDP backends are taken to be up"
            )
        self._forbidden = reason

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


async def _ask(check: LocalCheck) -> ProbeAnswer:
    answer = await _asked(check)
    return answer if check.instead is None else replace(answer, reason=f"{answer.reason}; {check.instead}")


async def _asked(check: LocalCheck) -> ProbeAnswer:
    answer = await ask(check.probe, check.address, check.port, PlainSockets(check.address, check.source), check.run_as)
    if answer.success or check.source is None:
        return answer
    if answer.reason == _UNREACHABLE:
        return replace(answer, reason=f"the VIP {check.address} is no address of this host now")
    brief = replace(check.probe, timeout=min(check.probe.timeout, ELSEWHERE))
    if brief.type is ProbeType.UDP and brief.expect is None:
        return answer
    elsewhere = await ask(brief, check.source, check.port, PlainSockets(check.source))
    return _advised(check, answer) if elsewhere.success else answer


def _advised(check: LocalCheck, answer: ProbeAnswer) -> ProbeAnswer:
    """The backend is well, only not where clients' packets go, or its answers come from where they would not."""
    reason = (
        f"{answer.reason} at the VIP {check.address}, but well at {check.source}:{check.port}: give the backend "
        f"`port = {check.port}`, so that packets are translated to there"
    )
    return replace(answer, reason=reason)


def _nobody(reports: Sequence[HealthReport]) -> None:
    """Without a manager."""
