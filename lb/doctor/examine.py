# SPDX-License-Identifier: Apache-2.0
"""The examination of one machine, as what its file says that it is. Looks, then has it judged."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, ip_address, ip_network
from pathlib import Path

from lb.config import toml
from lb.config.load import load_agent, load_manager, load_mux
from lb.daemon.kernel.table_names import mux_table
from lb.daemon.process.privileges import Capability
from lb.doctor.checks import bgp, host, reception
from lb.doctor.checks import machine as machines
from lb.doctor.checks import mux as muxes
from lb.doctor.collect import kernel, this_machine
from lb.doctor.firewall.packet_filter import Ruleset
from lb.doctor.model.facts import ArpClaim, DaemonSeen, Network, NftTable, OwnBackend, Rights, Role, Row
from lb.doctor.model.findings import Finding, Severity, fault, ok, unknown
from lb.doctor.path_tests import explain as paths
from lb.doctor.path_tests import send as reach
from lb.errors import ConfigError, IoError
from lb.model import Address, AgentConfig, AgentSettings, BgpSettings, ManagerSettings, MuxConfig, MuxSettings

#: VIPs that are asked for by ARP.
ARP_MAX = 64

_NET = (Capability.NET_ADMIN, Capability.NET_RAW)
_FOR_BGP = (Capability.KILL, Capability.SETGID, Capability.SETUID)


def role_of(config: str) -> Role:
    """What the file is for; raises ConfigError."""
    document = toml.read(config)
    for role in (Role.MUX, Role.AGENT, Role.MANAGER):  # [manager] may stand beside one of the others
        if role.value in document:
            return role
    raise ConfigError([(config, "has neither [mux] nor [agent] nor [manager]; give the file of a daemon")])


def machine(config: str, *, fleet_follows: bool = True, manager: str | None = None) -> list[Finding]:
    """This machine, as the one that the file is for. Raises ConfigError if the file is wrong.

    ``fleet_follows``: whoever asks has the manager's fleet examined as well, or does not want it. ``manager``: the URL
    that the daemon was given, which goes before the file's.
    """
    role, path = role_of(config), Path(config)
    if role is Role.MUX:
        return list(_mux(config, load_mux(path, manager=manager)))
    if role is Role.AGENT:
        return list(_host(config, load_agent(path, manager=manager)))
    found = list(_manager(config, load_manager(path)))
    if not fleet_follows:
        remedy = "as an operator: `lb doctor --manager URL`, or set LB_MANAGER"
        found.append(unknown("fleet", "the fleet of this manager was not examined", remedy))
    return found


# --- a MUX -----------------------------------------------------------------------------------------------------------


def _mux(config: str, file: MuxConfig) -> Iterator[Finding]:
    settings, rights = file.mux, this_machine.rights()
    daemon = this_machine.daemon(Role.MUX, settings.state_dir)
    network = this_machine.network(settings.interface)
    twins = this_machine.twins(Role.MUX)
    vips = sorted({str(row.get("vip")) for row in daemon.services} | {_short(str(s.vip)) for s in file.services})
    needed = _NET + (_FOR_BGP if file.bgp is not None else ())
    lacking = machines.lacking_of(needed, rights.capabilities)
    yield from machines.check_daemon(Role.MUX, config, daemon, lacking=lacking)
    secret = file.bgp is not None and any(peer.password for peer in file.bgp.peers)
    yield from _private(Role.MUX, settings.state_dir, daemon, config if secret else None)
    hurt = "sessions of this machine's own (BGP, the manager) are lost"
    yield from machines.check_conntrack(kernel.conntrack(), hurt)
    yield from machines.check_rights(Role.MUX, config, needed, daemon, rights)
    yield from machines.check_kernel(this_machine.kernel(), needs_tun=settings.io.value == "tun")
    yield from machines.check_interface(network.interface, settings.mtu, "mux", config)
    for address in filter(None, (settings.address, settings.address6)):
        yield from machines.check_own_address(network.addresses, address, "mux", config)
    yield from machines.check_twins(Role.MUX, settings.name, twins, interface=settings.interface)
    others = {mux_table(twin.name) for twin in twins if twin.name is not None}
    tables = this_machine.tables() if rights.root or rights.capabilities & 1 << Capability.NET_ADMIN else None
    forwards = bool(this_machine.values(["ipv4/ip_forward"]).get("ipv4/ip_forward"))
    isolated = muxes.check_isolation(tables, mux_table(settings.name), daemon, others, vips, forwards=forwards)
    yield from machines.but_undone(isolated, daemon)
    yield from muxes.check_vips_not_local(vips, network.addresses)
    yield from _arp(settings.interface, vips, rights)
    yield from muxes.check_io(daemon.status, settings.io, settings.interface, config)
    yield from muxes.check_flows(daemon.status)
    yield from muxes.check_tunnels(daemon.status, settings.mtu)
    yield from muxes.check_saturation(daemon.status, "this MUX", "lb top --local")
    yield from machines.check_repairs(Role.MUX, daemon, time.time(), [f"vip {vip}" for vip in vips])
    yield from _kept(Role.MUX, config, settings, file.manager, daemon)
    yield from _bgp(file.bgp, settings.address, config, daemon, rights)
    yield from _ways(daemon, settings.address, settings.mtu, rights, file)


def _ways(
    daemon: DaemonSeen, source: IPv4Address | None, mtu: int, rights: Rights, file: MuxConfig
) -> Iterator[Finding]:
    """The live probe. What to try is what the daemon serves, or would by its file."""
    rows, services = daemon.backends, daemon.services
    if not daemon.answers:
        rows, services = _rows(file)
    yield from paths.check_unreachable(daemon.status)
    yield from paths.check_unprobed(rows)
    if source is None:
        yield from paths.check_probes(rows)  # packets of our own go in tunnels of IPv4
        return
    targets = paths.targets(rows, services, managed=file.manager is not None)
    if not targets:
        if not rows:
            yield ok("path", "there is no backend whose way could be tried")
    elif not _may_send(rights):
        yield unknown("path", "no packet of our own was sent to the backends: needs root", "run `lb doctor` as root")
        yield from paths.check_probes(rows)
        return
    else:
        try:
            found = reach.paths(targets, source, mtu)
        except OSError as error:
            yield unknown("path", f"no packet can be sent from {source}: {(error.strerror or str(error)).lower()}")
        else:
            yield from paths.check_paths(found, source)
    tried = {target.name for target in targets}
    questions = paths.questions(rows, services, managed=file.manager is not None) if _may_send(rights) else []
    with contextlib.suppress(OSError):  # it was told above
        answers = reach.datagrams(questions, source) if questions else []
        yield from paths.check_datagrams(answers)
        tried |= {datagram.target.name for datagram in answers if datagram.answered_by is not None}
    yield from paths.check_probes([row for row in rows if f"{row.get('service')}/{row.get('name')}" not in tried])


def _rows(file: MuxConfig) -> tuple[tuple[Row, ...], tuple[Row, ...]]:
    """Backends and services of the file, as a running MUX would tell of them."""
    services = tuple(
        {
            "name": s.name,
            "vip": _short(str(s.vip)),
            "protocol": s.protocol.value,
            "port": str(s.ports),
            "request": s.udp_request,
        }
        for s in file.services
    )
    backends = tuple(
        {
            "service": s.name,
            "name": b.name,
            "address": str(b.address),
            "port": b.port or (s.ports.first if s.ports.exact else None),
            "state": b.state.value,
        }
        for s in file.services
        for b in s.backends
    )
    return backends, services


def _bgp(
    settings: BgpSettings | None, source: IPv4Address | None, config: str, daemon: DaemonSeen, rights: Rights
) -> Iterator[Finding]:
    for peer in settings.peers if settings is not None else ():
        row = next((row for row in daemon.peers if row.get("name") == peer.name), None)
        up = row is not None and row.get("state") == "established"
        dialled = None
        if not up and isinstance(peer.address, IPv4Address) and source is not None and _may_send(rights):
            try:
                dialled = reach.dial_bgp(peer.address, source, peer.password)
            except OSError as error:
                yield unknown("bgp", f"{peer.address} was not tried: {(error.strerror or str(error)).lower()}")
        yield from bgp.check_peer(peer, row, dialled, config)


# --- a host ----------------------------------------------------------------------------------------------------------


def _host(config: str, file: AgentConfig) -> Iterator[Finding]:
    from agent.host.linux import FILTER_NAME, FILTER_PRIORITY  # noqa: PLC0415
    from agent.rules.nftables_table import TABLE  # noqa: PLC0415

    settings, rights = file.agent, this_machine.rights()
    daemon = this_machine.daemon(Role.AGENT, settings.state_dir)
    network = this_machine.network(settings.interface, filters=(FILTER_PRIORITY, FILTER_NAME))
    twins = this_machine.twins(Role.AGENT)
    services, backends = (daemon.services, daemon.backends) if daemon.answers else _last_known(file)
    own = reception.owns(services, backends)
    tables = this_machine.tables() if rights.root or rights.capabilities & 1 << Capability.NET_ADMIN else None
    stale = _stale(tables)
    ruleset = kernel.ruleset() if rights.capabilities & 1 << Capability.NET_ADMIN else None
    if ruleset is not None:  # what those drop is told with them
        ruleset = ruleset.without({(table.family, table.name) for table in stale or ()})
    untranslated = reception.untranslated(own, ruleset, TABLE, settings.interface) if ruleset is not None else []
    away = not daemon.answers and daemon.may_ask
    lost = host.lost(network, tables, own, TABLE, untranslated) if away else {}
    about = sorted({one.about for found in lost.values() for one in found})
    lacking = machines.lacking_of(_NET, rights.capabilities)
    yield from machines.check_daemon(Role.AGENT, config, daemon, list(lost), about, lacking=lacking)
    yield from _private(Role.AGENT, settings.state_dir, daemon, None)
    hurt = "new connections to services that are translated are dropped"
    tracked = [one.about for one in own if one.tracked]
    yield from machines.check_conntrack(kernel.conntrack(), hurt, tracked)
    yield from machines.check_rights(Role.AGENT, config, _NET, daemon, rights)
    yield from machines.check_kernel(this_machine.kernel(), needs_tun=settings.decap.value == "tun")
    yield from machines.check_interface(network.interface, settings.mtu, "agent", config)
    for address in settings.addresses:
        yield from machines.check_own_address(network.addresses, address, "agent", config)
    yield from machines.check_twins(Role.AGENT, settings.name, twins)
    whole = [one for one in own if one.about not in about]
    vips = sorted({str(row.get("vip")) for row in daemon.services})
    kept = itertools.chain(
        _reception(daemon, file, network, whole, ruleset),
        host.check_arp(network),
        host.check_decapsulation(network, daemon, own, asked=settings.decap.value),
        host.check_translation(tables, daemon, TABLE, untranslated),
        host.check_settings(*_raised(settings.state_dir)),
    )
    yield from machines.but_undone(kept, daemon)
    yield from _arp(settings.interface, vips, rights)
    yield from host.check_filters_ahead(network, daemon, own)
    yield from host.check_strangers(daemon)
    if stale is not None:
        yield from muxes.told_stale(stale)
    yield from host.check_backends(daemon)
    yield from machines.check_repairs(Role.AGENT, daemon, time.time(), sorted({one.about for one in own}))
    yield from _kept(Role.AGENT, config, settings, file.manager, daemon)


def _reception(
    daemon: DaemonSeen, file: AgentConfig, network: Network, own: list[OwnBackend], ruleset: Ruleset | None
) -> Iterator[Finding]:
    """What becomes of packets once they are out of their tunnels."""
    from agent.rules.nftables_table import TABLE  # noqa: PLC0415

    interface = file.agent.interface
    mode = str(daemon.status["mode"]) if daemon.status.get("mode") else None
    muxes = _addresses(daemon.status.get("muxes")) if daemon.answers else list(file.agent.muxes)
    filtered, arrived = list(host.check_rp_filter(network, mode, own)), []
    if mode in (None, "bpf"):
        asked = kernel.arrivals(interface, reception.questions(own, muxes))
        arrived = list(reception.check_arrivals(own, asked, network, host.effective(network, "rp_filter")))
    yield from without_twice(filtered, arrived)
    yield from reception.check_firewall(own, ruleset, interface=interface, muxes=muxes, mode=mode)
    yield from reception.check_listeners(own, kernel.listeners(), ruleset, TABLE, interface)


def without_twice(filtered: list[Finding], arrived: list[Finding]) -> Iterator[Finding]:
    """What the settings say of the reverse path filter, and what the kernel does by them: the graver alone."""
    settings = {finding.cause for finding in filtered} - {None}
    seen = {finding.cause for finding in arrived} & {"rp_filter", "no_route_back"}
    yield from (finding for finding in filtered if not seen or finding.severity is Severity.FAULT)
    yield from (finding for finding in arrived if finding.cause not in settings)


def _addresses(texts: object) -> list[Address]:
    return [ip_address(str(text)) for text in texts] if isinstance(texts, list) else []


def _last_known(file: AgentConfig) -> tuple[tuple[Row, ...], tuple[Row, ...]]:
    """Services and backends of an agent that does not run: by its file, or by the last state that a manager gave it."""
    from agent.rules.local_services import serve  # noqa: PLC0415
    from agent.status import backend_rows, service_rows  # noqa: PLC0415
    from lb.node.follower import last_services  # noqa: PLC0415

    services = file.services
    if file.manager is not None:
        services = last_services("agent", file.agent)
    config = replace(file, services=services)
    served = serve(config).services
    return tuple(service_rows(config, served)), tuple(backend_rows(config))


def _raised(state_dir: str) -> tuple[dict[str, int] | None, dict[str, int]]:
    """Settings that the agent raised, to what, and what they are now."""
    from agent.host.change_log import ChangeLog  # noqa: PLC0415

    try:
        raised = {name: change.ours for name, change in ChangeLog(state_dir).load().sysctls.items()}
    except IoError:
        return None, {}
    return raised, this_machine.values(raised)


def _stale(tables: list[NftTable] | None) -> list[NftTable] | None:
    if tables is None:
        return None
    return muxes.stale(tables, {mux_table(twin.name) for twin in this_machine.twins(Role.MUX) if twin.name is not None})


# --- a manager -------------------------------------------------------------------------------------------------------


def _manager(config: str, settings: ManagerSettings) -> Iterator[Finding]:
    directory = Path(settings.state_dir) / "ca"
    clock = this_machine.clock(None)
    yield from _listens(config, settings.listen)
    yield from machines.check_disk(this_machine.disk(settings.state_dir))
    yield from machines.check_authority(this_machine.certificate(directory / "ca.pem"), clock.now)
    yield from machines.check_server_certificate(this_machine.certificate(directory / "server.pem"), clock.now)
    yield from machines.check_clock(clock)


def _listens(config: str, listen: str) -> Iterator[Finding]:
    """Whether somebody takes connections where the manager should."""
    import socket  # noqa: PLC0415

    name, _, port = listen.rpartition(":")
    name = name.strip("[]")
    reached = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(name, name)  # noqa: S104  where everything is listened on
    try:
        socket.create_connection((reached, int(port)), 2.0).close()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        yield fault(
            "daemon",
            f"lb-manager does not answer on {listen}: {reason}; nodes serve on, and nothing can be changed",
            f"start it: {machines.start(Role.MANAGER, config)}; `journalctl -u lb-manager -n 20` says why it ended",
        )
    else:
        yield ok("daemon", f"lb-manager takes connections on {listen}")


# --- what they share -------------------------------------------------------------------------------------------------


def _kept(
    role: Role, config: str, settings: MuxSettings | AgentSettings, manager: str | None, daemon: DaemonSeen
) -> Iterator[Finding]:
    """What is in the kernel, disk, certificate, clock, and the connection to the manager."""
    name, state_dir = settings.name, settings.state_dir
    clock = this_machine.clock(manager)
    yield from machines.check_disk(this_machine.disk(state_dir))
    if manager is not None:
        held = this_machine.certificate(Path(state_dir) / "identity" / "node.pem")
        yield from machines.check_certificate(role, name, config, held, clock.now)
    yield from machines.check_clock(clock)
    yield from machines.check_manager(role, name, config, daemon.manager)


def _private(role: Role, state_dir: str, daemon: DaemonSeen, secret: str | None) -> Iterator[Finding]:
    config = this_machine.private(Path(secret)) if secret is not None else None
    yield from machines.check_private(
        role, this_machine.user_of(daemon.pid), this_machine.private_in(Path(state_dir)), config
    )


def _arp(interface: str, vips: list[str], rights: Rights) -> Iterator[Finding]:
    first = [network.network_address for network in map(ip_network, vips)]
    asked = [address for address in first if isinstance(address, IPv4Address)][:ARP_MAX]
    found: list[ArpClaim] | str = "needs root"
    if _may_send(rights):
        try:
            found = reach.claims(interface, asked)
        except OSError as error:
            found = (error.strerror or str(error)).lower()
    yield from muxes.check_claims(found, interface, len(asked))


def _may_send(rights: Rights) -> bool:
    return bool(rights.capabilities & 1 << Capability.NET_RAW)


def _short(vip: str) -> str:
    return vip.removesuffix("/32").removesuffix("/128")
