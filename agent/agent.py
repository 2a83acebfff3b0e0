# SPDX-License-Identifier: Apache-2.0
"""The agent itself: brings the host to what a configuration asks for, and takes everything away again.

Called by :mod:`agent.daemon`, one call at a time, in a helper thread. :class:`Agent` owns the way of decapsulation in
use and the record of what was changed; the decisions are made by :mod:`agent.plan`, the changes by a
:class:`agent.host.interface.Host`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TypeVar

from agent import plan as planning
from agent.decap import IPIP_DEVICE, TUN_DEVICE, BpfDecap, Decap, DecapRefused, Prepare, Tunnel, found_filter, prepare
from agent.host.change_log import ChangeLog, HostChanges
from agent.host.conntrack import Expected, FlowTarget, changed_places
from agent.host.interface import Host, HostLink
from agent.plan import Action, DesiredHost, Found
from agent.rules import nftables_table as nat
from agent.rules import stray_packets as fence
from agent.rules import sysctls
from agent.rules.foreign_filters import Stranger
from agent.rules.local_services import OwnService, Served, serve
from agent.rules.vips import owned_vips, served_vips
from lb.daemon.log import get_logger
from lb.dataplane import DecapProgram
from lb.errors import ConfigError, FeatureError, IoError, VipmuxError
from lb.model import Address, AgentConfig, AgentSettings, DecapMode

log = get_logger()

T = TypeVar("T")

HostFactory = Callable[[], AbstractContextManager[Host]]


@dataclass(frozen=True, slots=True)
class _ListedTable:
    """The nftables table as it was right after we put it there."""

    text: str  #: what nft was given
    listing: str  #: what it then listed
    generation: int | None  #: of the ruleset, at the last listing that was the same


@dataclass(frozen=True, slots=True)
class _InForce:
    """What was planned for, to compare the host with."""

    desired: DesiredHost
    tunnel: Tunnel
    least: Mapping[str, int]  #: of each setting
    other_routes: frozenset[str]  #: interfaces; a long list of routes is not read at each look


@dataclass(frozen=True, slots=True)
class AppliedConfig:
    """A configuration that is in force, and how."""

    config: AgentConfig
    served: Served
    mode: DecapMode
    reason: str  #: why this way of decapsulation

    @property
    def services(self) -> tuple[OwnService, ...]:
        return self.served.services


class Agent:
    """Applies configurations; see the module's text."""

    def __init__(self, host: HostFactory, store: ChangeLog, prepare: Prepare = prepare) -> None:
        self._host = host
        self._prepare = prepare
        self._store = store
        self._changes = _recalled(store)
        self._not_remembered: str | None = None  # why the record cannot be written, as it was said
        self._decap: Decap | None = None
        self._listed: _ListedTable | None = None
        self._in_force: _InForce | None = None
        self._unforgotten: frozenset[FlowTarget] = frozenset()  # where conntrack may know flows of before
        self._why_unforgotten: str | None = None  # as it was said
        self._decap_lock = threading.Lock()  # counters are read from other threads
        self.applied: AppliedConfig | None = None

    def apply(self, config: AgentConfig) -> AppliedConfig:
        """Makes the host as the configuration asks; what can be refused is refused before anything is changed."""
        if self.applied is not None:
            _check_unchanged(self.applied.config.agent, config.agent)
        refusals: list[str] = []
        # A way that works is kept: whatever refuses it for a moment is no reason to take another.
        modes = _candidates(config.agent.decap) if self.applied is None else (self.applied.mode,)
        for mode in modes:
            served = serve(config, mode)
            try:
                with self._host() as host:
                    link = check_host(host, config.agent)
                    restored = self._converge(host, link, config, served.services, mode)
                    before = None if self.applied is None or restored else self.applied.services
                    self._forget_flows(host, config.agent, before, served.services)
            except DecapRefused as refusal:
                refusals.append(str(refusal))
                continue
            reason = "; ".join(refusals) if refusals else _WHY[config.agent.decap is DecapMode.AUTO, mode]
            if self.applied is not None:
                reason = self.applied.reason
            # What is left out is no part of what is in force: nobody probes it.
            kept = tuple(service for service in config.services if service.name not in served.left_out)
            self.applied = AppliedConfig(replace(config, services=kept), served, mode, reason)
            return self.applied
        raise FeatureError("; ".join(refusals) + _OTHERWISE[config.agent.decap])

    def apply_again(self) -> None:
        """Puts back what is not as it was applied, from what the host has; without the interface, all but what is on
        it. Raises VipmuxError."""
        if self.applied is None:
            return
        if self.interface_amiss() is None:
            self.apply(self.applied.config)
            return
        actions = self.undone()
        with self._host() as host:
            for action in actions:
                self._perform(host, action, _nothing_begins)
            if any(isinstance(action, planning.ReplaceRules) for action in actions):
                self._forget_flows(host, self.applied.config.agent, None, self.applied.services)

    def undone(self) -> list[Action]:
        """What applying once more would do: nothing, unless somebody else changed the host. Where the interface is gone
        or has another name, what would be done elsewhere. Raises VipmuxError where that cannot be seen."""
        if self.applied is None or self._in_force is None:
            return []
        wanted, settings = self._in_force, self.applied.config.agent
        program = self._decap.program if isinstance(self._decap, BpfDecap) else None
        with self._host() as host:
            interfaces = {settings.interface} | self._changes.interfaces
            found, attached = self._survey(host, settings.interface, interfaces, program, wanted.other_routes)
            if attached is not None:
                attached.close()
            works = _works(host, wanted.desired.mode)
        actions = planning.plan(wanted.desired, replace(found, decapsulates=works))
        if self.interface_amiss() is None:
            return actions
        return [action for action in actions if not isinstance(action, planning.NEEDS_INTERFACE)]

    def interface_amiss(self) -> str | None:
        """Why nothing can be done on the interface; None: it is as the configuration says."""
        if self.applied is not None:
            with self._host() as host:
                try:
                    check_host(host, self.applied.config.agent)
                except IoError as error:
                    return str(error)
        return None

    def ahead(self) -> tuple[tuple[Stranger, ...], int] | None:
        """Filters of others before ours, and then the packets that ours has met; None where we have none."""
        applied = self.applied
        if applied is None or applied.mode is not DecapMode.BPF:
            return None
        with self._host() as host:
            ingress = host.ingress(applied.config.agent.interface)
        counters = self.counters()
        if not ingress.place_taken or counters is None:
            return None
        return ingress.ahead, sum(counters.values())

    def lowered(self) -> Mapping[str, int]:
        """The settings that are lower now than was applied, and what they are."""
        if self._in_force is None:
            return {}
        with self._host() as host:
            found = host.sysctls(self._in_force.least.keys())
        return {name: found[name] for name, value in self._in_force.least.items() if found.get(name, value) < value}

    def cleanup(self, settings: AgentSettings) -> list[str]:
        """Takes everything of ours off the host; returns what was done, a line each."""
        with self._host() as host:
            done = []
            interfaces = {settings.interface} | self._changes.interfaces
            for action in planning.plan(planning.NOTHING, self._survey(host, None, interfaces, None)[0]):
                self._perform(host, action, _nothing_begins)
                done.append(describe(action))
            for name in self._changes.interfaces:  # of interfaces that are gone
                self._changes = self._changes.without_interface(name)
            self._store.save(self._changes)
        return done

    def counters(self) -> Mapping[str, int] | None:
        """Packets by reason; None where nothing counts. From any thread."""
        with self._decap_lock:
            return None if self._decap is None else self._decap.counters()

    def turns(self) -> int | None:
        """How often the worker that packets pass through has turned; None without one. From any thread."""
        with self._decap_lock:
            return None if self._decap is None else self._decap.turns()

    def close(self) -> None:
        """Lets go of what the process owns; the host stays as it is, but a TUN device ends with us."""
        with self._decap_lock:
            old, self._decap = self._decap, None
        if old is not None:
            old.close()

    # --- inside --------------------------------------------------------------------------------------------------

    def _converge(
        self, host: Host, link: HostLink, config: AgentConfig, services: tuple[OwnService, ...], mode: DecapMode
    ) -> bool:
        """Whether rules that should have been there were not."""
        settings = config.agent
        muxes, vips = frozenset(settings.muxes), served_vips(services)
        tunnel = Tunnel(settings.address, settings.address6, muxes, vips, settings.gue_port)
        interfaces = {settings.interface} | self._changes.interfaces
        prepared = self._prepare(host, link, settings.interface, tunnel, mode, self._decap)
        program: DecapProgram | None = None
        try:
            wanted = prepared.program if isinstance(prepared, BpfDecap) else None
            found, program = self._survey(host, settings.interface, interfaces, wanted)
            was = self._in_force
            works = was is not None and was.tunnel == tunnel and _works(host, mode)
            found = replace(found, decapsulates=works)
            desired = _desired(settings, services, mode)
            actions = planning.plan(desired, found)
            for action in actions:
                self._perform(host, action, lambda: prepared.begin(host, settings.interface, tunnel))
            if wanted is None or any(isinstance(action, planning.Decapsulate) for action in actions):
                self._use(prepared)
            else:  # the program found is just the one prepared
                self._use(BpfDecap(_present(program)))
                program = None
            least = planning.needed_sysctls(desired, found)
            self._in_force = _InForce(desired, tunnel, least, found.other_routes)
            return found.rules is None and was is not None and was.desired.rules is not None
        finally:
            if program is not None:
                program.close()
            if prepared is not self._decap:
                prepared.close()

    def _forget_flows(
        self,
        host: Host,
        settings: AgentSettings,
        before: tuple[OwnService, ...] | None,
        services: tuple[OwnService, ...],
    ) -> None:
        """Those that conntrack would go on sending where they went before this change; ``before`` None: nobody knows
        what rules there were."""
        places = changed_places(before, services)
        if before is None and not any(own.tracked for own in services):
            places = frozenset()  # none of them is looked up in conntrack
        self._unforgotten |= places
        if self._unforgotten:
            self._forget(host, Expected(services, _addresses(settings)))

    def forget_again(self) -> None:
        """What conntrack could not be made to forget when it should have."""
        if self._unforgotten and self.applied is not None:
            applied = self.applied
            with self._host() as host:
                self._forget(host, Expected(applied.services, _addresses(applied.config.agent)))

    def _forget(self, host: Host, expected: Expected) -> None:
        try:
            forgotten = host.forget_flows(self._unforgotten, expected.is_stale)
        except VipmuxError as error:
            if str(error) != self._why_unforgotten:
                log.warning("flows_not_forgotten", reason=str(error), then="UDP clients may be sent to an old port")
            self._why_unforgotten = str(error)
            if isinstance(error, FeatureError):  # nor will it be possible soon
                self._unforgotten = frozenset()
            return
        self._unforgotten, self._why_unforgotten = frozenset(), None
        if forgotten:
            log.info("flows_forgotten", count=forgotten, reason="they went where the service is no more")

    def _survey(
        self,
        host: Host,
        interface: str | None,
        interfaces: Iterable[str],
        wanted: DecapProgram | None,
        other_routes: frozenset[str] | None = None,
    ) -> tuple[Found, DecapProgram | None]:
        """What there is; the program found on ``interface`` goes to the caller. ``other_routes``: if that is known."""
        filters, ours = {}, None
        for name in sorted(interfaces):
            filters[name], program = found_filter(host, name, wanted if name == interface else None)
            if name == interface:
                ours = program
            elif program is not None:
                program.close()
        loopback = host.loopback()
        names = {sysctls.ARP_IGNORE, sysctls.ARP_ANNOUNCE, sysctls.RP_FILTER_ALL, sysctls.TCP_LIBERAL}
        names |= self._changes.sysctls.keys()
        if interface is not None:
            names.add(sysctls.rp_filter(interface))
        table, rules = self._rules(host)
        if other_routes is None:
            other_routes = host.route_interfaces() - {interface or ""}
        found = Found(
            addresses=loopback.ours,
            unrouted=loopback.unrouted,
            taken=loopback.others,
            routes=host.local_routes(),
            table=table,
            rules=rules,
            fence=host.fence(),
            ipip_device=host.link(IPIP_DEVICE) is not None,
            other_routes=other_routes,
            sysctls=host.sysctls(names),
            filters=filters,
            changes=self._changes,
        )
        return found, ours

    def _rules(self, host: Host) -> tuple[bool, str | None]:
        """Whether our table is there, and the text that is in force: None unless it is known to be unchanged since."""
        listed, generation = self._listed, host.rules_generation()
        if listed is not None and generation is not None and listed.generation == generation:
            return True, listed.text
        listing = host.rules()
        if listing is None or listed is None or listing != listed.listing:
            return listing is not None, None
        self._listed = replace(listed, generation=generation)
        return True, listed.text

    def _replace_rules(self, host: Host, text: str) -> None:
        self._listed = None
        host.run_rules(nat.replacement(text))
        generation, listing = host.rules_generation(), host.rules()
        if listing is not None:
            self._listed = _ListedTable(text, listing, generation)

    def _perform(self, host: Host, action: Action, begin: Callable[[], None]) -> None:  # noqa: PLR0912  a list
        """One action; what cannot be seen on the host is remembered before it is done."""
        match action:
            case planning.SetSysctl(name, value):
                original = host.sysctls([name]).get(name)
                if original is None:
                    log.warning("sysctl_missing", name=f"net/{name}", reason="this kernel has no such setting")
                    return
                self._remember(self._changes.with_sysctl(name, original, value))
                host.set_sysctl(name, value)
                log.info("sysctl_raised", name=f"net/{name}", value=value, before=original)
            case planning.RestoreSysctl(name, value, restore):
                if restore:
                    host.set_sysctl(name, value)
                self._remember(self._changes.without_sysctl(name))
            case planning.ReplaceRules(text):
                self._replace_rules(host, text)
            case planning.RemoveRules():
                host.run_rules(nat.removal())
            case planning.AddVip(address):
                host.add_vip(address)
            case planning.RemoveVip(address):
                host.remove_vip(address)
            case planning.AddRoute(prefix):
                host.add_route(prefix)
            case planning.RemoveRoute(prefix):
                host.remove_route(prefix)
            case planning.AddFenceRoute(prefix):
                host.add_fence_route(prefix)
            case planning.RemoveFenceRoute(prefix):
                host.remove_fence_route(prefix)
            case planning.AddFenceRule(version, interface):
                host.add_fence_rule(version, interface)
            case planning.RemoveFenceRule(version, interface):
                host.remove_fence_rule(version, interface)
            case planning.AddQdisc(interface):
                self._add_qdisc(host, interface)
            case planning.EvictFilter(interface):
                log.warning("foreign_filter", interface=interface, done="taken out of our place")
                host.detach(interface)
            case planning.Decapsulate(mode, interface):
                if mode is DecapMode.BPF:
                    self._remember(self._changes.with_interface(interface, made_qdisc=False))
                begin()
            case planning.RemoveFilter(interface, is_ours, qdisc):
                if is_ours:
                    host.detach(interface)
                if qdisc:
                    host.remove_qdisc(interface)
                self._remember(self._changes.without_interface(interface))
            case planning.RemoveIpipDevice():
                host.remove_link(IPIP_DEVICE)

    def _add_qdisc(self, host: Host, interface: str) -> None:
        before = self._changes
        self._remember(self._changes.with_interface(interface, made_qdisc=True))
        try:
            host.add_qdisc(interface)
        except IoError as error:
            self._remember(before)
            raise DecapRefused(f"decapsulation by BPF is refused: {error}") from None

    def _use(self, decap: Decap) -> None:
        """The new way is working already; the old one is let go."""
        with self._decap_lock:
            old, self._decap = self._decap, decap
        if old is not None and old is not decap:
            old.close()

    def _remember(self, changes: HostChanges) -> None:
        """Before the change is made. A record that cannot be written is said, and keeps no packet waiting."""
        if changes == self._changes and self._not_remembered is None:
            return
        self._changes = changes
        try:
            self._store.save(changes)
        except IoError as error:
            if self._not_remembered != str(error):
                log.error("change_not_remembered", reason=str(error), then="`lb-agent cleanup` may not undo all of it")
            self._not_remembered = str(error)
        else:
            self._not_remembered = None


def _recalled(store: ChangeLog) -> HostChanges:
    """What was changed on this host; of a record that cannot be read nothing, and that is said."""
    try:
        return store.load()
    except IoError as error:
        aside = store.set_aside()
        log.error(
            "changes_not_known",
            reason=str(error),
            kept_as=str(aside) if aside is not None else None,
            then="lb-agent goes on; `lb-agent cleanup` cannot give back the sysctls that it raised before (in net/ipv4/"
            "conf and net/netfilter), nor take away a clsact qdisc that it made: look at those by hand",
        )
        return HostChanges()


def _works(host: Host, mode: DecapMode | None) -> bool:
    """Outside BPF: is the device as it should be?"""
    device = _APPEARS.get(mode) if mode is not None else None
    return device is not None and host.receives_on(device)


def _nothing_begins() -> None:
    raise AssertionError("a clean-up begins nothing")


def check_host(host: Host, settings: AgentSettings) -> HostLink:
    """The interface, if it and the addresses on it are as the configuration says."""
    link = host.link(settings.interface)
    if link is None:
        raise IoError(
            f"interface {settings.interface} does not exist on this host: set agent.interface to the one that has "
            f"{settings.addresses[0]}"
        )
    for key, address in (("address", settings.address), ("address6", settings.address6)):
        if address is not None and address not in link.addresses:
            raise IoError(
                f"agent.{key} {address} is not an address of interface {settings.interface}: add it there, or "
                "correct the configuration"
            )
    return link


def _desired(settings: AgentSettings, services: tuple[OwnService, ...], mode: DecapMode) -> DesiredHost:
    guard = None
    if mode is DecapMode.IPIP and settings.address is not None:
        guard = nat.TunnelGuard(IPIP_DEVICE, settings.address, settings.muxes)
    return DesiredHost(
        interface=settings.interface,
        mode=mode,
        vips=owned_vips(services),
        rules=nat.render(services, _addresses(settings), guard),
        translates=any(own.translated for own in services),
        fence=fence.around(services, _APPEARS.get(mode, settings.interface)),
    )


def _addresses(settings: AgentSettings) -> list[Address]:
    """The host's own, to which packets are translated."""
    return list(settings.addresses)


def _check_unchanged(old: AgentSettings, new: AgentSettings) -> None:
    """What only a restart can change: connections hang on it."""
    mistakes = [
        (f"agent.{key}", f"cannot change while lb-agent runs (now {was}): restart lb-agent, or take the change back")
        for key in ("address", "address6", "interface", "decap", "gue_port", "state_dir", "metrics")
        if (was := getattr(old, key)) != getattr(new, key)
    ]
    if mistakes:
        raise ConfigError(mistakes)


def _candidates(decap: DecapMode) -> tuple[DecapMode, ...]:
    return (DecapMode.BPF, DecapMode.TUN) if decap is DecapMode.AUTO else (decap,)


#: Where packets come from once they are out of their tunnels, if not from the agent's interface.
_APPEARS: Mapping[DecapMode, str] = {DecapMode.TUN: TUN_DEVICE, DecapMode.IPIP: IPIP_DEVICE}

_WHY = {
    (True, DecapMode.BPF): "the kernel takes the BPF program",
    (False, DecapMode.BPF): 'configured: decap = "bpf"',
    (False, DecapMode.IPIP): 'configured: decap = "ipip"',
    (False, DecapMode.TUN): 'configured: decap = "tun"',
}

_OTHERWISE = {
    DecapMode.AUTO: "; no other way is left",
    DecapMode.BPF: '; set decap = "auto" to fall back to a TUN device',
    DecapMode.IPIP: "",
    DecapMode.TUN: "",
}


def describe(action: Action) -> str:
    """An action in words, for the log and for ``lb-agent cleanup``."""
    words = {
        planning.SetSysctl: "set net/{0.name} to {0.value}",
        planning.ReplaceRules: "put nftables table in place",
        planning.RemoveRules: "removed the nftables table",
        planning.AddVip: "added {0.address} to lo",
        planning.RemoveVip: "removed {0.address} from lo",
        planning.AddRoute: "added the local route for {0.prefix}",
        planning.RemoveRoute: "removed the local route for {0.prefix}",
        planning.AddFenceRoute: "added the blackhole for {0.prefix}",
        planning.RemoveFenceRoute: "removed the blackhole for {0.prefix}",
        planning.AddFenceRule: "added the IPv{0.version} routing rule for {0.interface}",
        planning.RemoveFenceRule: "removed the IPv{0.version} routing rule for {0.interface}",
        planning.AddQdisc: "added a clsact qdisc to {0.interface}",
        planning.EvictFilter: "removed a foreign filter in our place on {0.interface}",
        planning.Decapsulate: "decapsulating by {0.mode.value}",
        planning.RemoveFilter: "removed the filter from {0.interface}",
        planning.RemoveIpipDevice: "removed the ipip device",
    }
    if isinstance(action, planning.RestoreSysctl):
        if action.restore:
            return f"set net/{action.name} back to {action.value}"
        return f"left net/{action.name} alone: it was changed after lb-agent set it"
    return words[type(action)].format(action)


def _present(value: T | None) -> T:
    """What the plan has made sure of."""
    assert value is not None  # noqa: S101
    return value
