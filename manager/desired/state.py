# SPDX-License-Identifier: Apache-2.0
"""What operators want: the desired state as a value, and the changes of it, checked whole before anything happens.

:mod:`manager.controller.controller` makes a :class:`DesiredChange` here, commits it to the store, and only then takes
it for true. A change never alters a :class:`Desired`; it makes a new one that shares what is the same, so that one
change among ten thousand services costs little. In the store and in the audit it is ``{section: {key: plain value}}``:

    services    name -> ``[[service]]`` table
    retiring    key -> table of a service that is deleted, or was at another VIP, and is not yet withdrawn everywhere
    drains      "SERVICE/BACKEND" -> {"who", "at"}, and "now" where it is to have no packet more; outlives ``lb apply``
    mux_drains  MUX -> {"who", "at"}
    pending     version -> {"who", "at", "until"}; the change that is taken back unless it is confirmed, if there is one
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from ipaddress import IPv4Network, IPv6Network
from typing import Any

from lb.config.load import ANNOUNCED, parse_service_tables, service_table
from lb.config.render import vip_text
from lb.config.tables import NAME_MAX, show
from lb.errors import ConfigError, NotFoundError, RequestError
from lb.model import MAX_SERVICES, Address, Announce, Backend, BackendState, Network, PortRange, Service
from manager.desired.salvage import salvaged

#: So many services that a change leaves as they are have a line of their own.
LISTED = 100

Entries = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Order:
    """Who gave an order, and when (Unix time)."""

    who: str
    at: float
    now: bool = False  #: of a backend: it is down at once, and does not finish what it has


def _plain_order(order: Order) -> dict[str, Any]:
    """As versions write it that know of no other orders, where it is none."""
    return asdict(order) if order.now else {"who": order.who, "at": order.at}


@dataclass(frozen=True, slots=True)
class Pending:
    """A change that lasts only if it is confirmed in time."""

    who: str
    at: float
    until: float  #: Unix time, for people, and for after a boot of the machine
    seconds: float | None = None  #: all of its time; None: written by a version that did not tell
    boot: str = ""  #: the boot whose steady clock ``deadline`` is of (lb.daemon.clocks)
    deadline: float = 0.0

    def left(self, wall: float, steady: float, boot: str) -> float:
        """Seconds until its time is over."""
        if boot and boot == self.boot:
            return self.deadline - steady
        left = self.until - wall
        return left if self.seconds is None else min(left, self.seconds)


@dataclass(frozen=True, slots=True)
class Desired:
    """One version of what operators want. Its mappings are never changed."""

    version: int = 0
    services: Mapping[str, Service] = field(default_factory=dict)
    retiring: Mapping[str, Service] = field(default_factory=dict)
    drains: Mapping[str, Order] = field(default_factory=dict)
    mux_drains: Mapping[str, Order] = field(default_factory=dict)
    pending: Mapping[str, Pending] = field(default_factory=dict)  #: by the version that the change made; at most one
    # Derived, kept in step by _with(): where to find what belongs together.
    by_vip: Mapping[str, tuple[str, ...]] = field(default_factory=dict, compare=False)  #: "203.0.113.10/32" -> names
    by_address: Mapping[Address, tuple[str, ...]] = field(default_factory=dict, compare=False)
    retiring_by_vip: Mapping[str, tuple[str, ...]] = field(default_factory=dict, compare=False)
    #: IP version and prefix length of every VIP, and perhaps of some that were.
    vip_lengths: frozenset[tuple[int, int]] = field(default=frozenset(), compare=False)

    def has_backend(self, service: str, backend: str) -> bool:
        found = self.services.get(service)
        return found is not None and any(one.name == backend for one in found.backends)

    @property
    def unconfirmed(self) -> tuple[int, Pending] | None:
        """The version that waits for its confirmation."""
        return next(((int(version), pending) for version, pending in self.pending.items()), None)


@dataclass(frozen=True, slots=True)
class ChangeLine:
    """One thing that a change does."""

    name: str
    action: str  #: created, changed, unchanged, deleted, drained, taken out, undrained, confirmed, taken back
    details: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.name} {self.action}" + (f": {', '.join(self.details)}" if self.details else "")


@dataclass(frozen=True, slots=True)
class DesiredChange:
    """From one desired state to the next."""

    old: Desired
    new: Desired
    lines: tuple[ChangeLine, ...]
    names: frozenset[str] = frozenset()  #: of all services that may differ
    unlisted: int = 0  #: services more that are unchanged
    title: str = ""  #: for the audit, where the lines alone do not tell what was done

    @property
    def empty(self) -> bool:
        return all(line.action == "unchanged" for line in self.lines)

    @property
    def what(self) -> str:
        """For the audit."""
        done = [str(line) for line in self.lines if line.action != "unchanged"]
        said = "; ".join(done[:20]) + (f"; and {len(done) - 20:,} more" if len(done) > 20 else "")
        return f"{self.title}: {said}" if self.title else said

    def vips(self) -> set[str]:
        """The VIPs whose plan may differ."""
        retiring = self.old.retiring.keys() | self.new.retiring.keys()
        vips = {
            str(service.vip)
            for table, names in (("services", self.names), ("retiring", retiring))
            for service in _touched(getattr(self.old, table), getattr(self.new, table), names)
        }
        for name in self.drained():
            vips |= {str(desired.services[name].vip) for desired in (self.old, self.new) if name in desired.services}
        return vips

    def drained(self) -> set[str]:
        """The services of which a backend is drained, or is not any more, or in another way."""
        before, after = self.old.drains, self.new.drains
        keys = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
        found = {_drained(desired.services, key) for key in keys for desired in (self.old, self.new)}
        return {place[0] for place in found if place is not None}

    def delta(self) -> dict[str, Any]:
        """What the store writes: ``{"set": {section: {key: value}}, "remove": {section: [key]}}``."""
        changed: dict[str, dict[str, Any]] = {}
        removed: dict[str, list[str]] = {}
        for section, plain in _PLAIN.items():
            before, after = getattr(self.old, section), getattr(self.new, section)
            keys = sorted(self.names if section == "services" else before.keys() | after.keys())
            found = {key: plain(after[key]) for key in keys if key in after and before.get(key) is not after[key]}
            gone = [key for key in keys if key in before and key not in after]
            if found:
                changed[section] = found
            if gone:
                removed[section] = gone
        return {"set": changed, "remove": removed}


def _touched(old: Mapping[str, Service], new: Mapping[str, Service], names: Iterable[str]) -> Iterator[Service]:
    for name in names:
        before, after = old.get(name), new.get(name)
        if before is not after:
            yield from (service for service in (before, after) if service is not None)


_PLAIN: dict[str, Any] = {
    "services": service_table,
    "retiring": service_table,
    "drains": _plain_order,
    "mux_drains": _plain_order,
    "pending": asdict,
}


def from_entries(version: int, entries: Entries) -> Desired:
    """What the store had."""
    names = list(entries.get("services", {}))
    services = parse_service_tables([entries["services"][name] for name in names])
    # One by one: a retiring service may well be in the way of others of its kind.
    retiring = {key: parse_service_tables([table])[0] for key, table in entries.get("retiring", {}).items()}

    def orders(section: str) -> dict[str, Order]:
        return {key: Order(**value) for key, value in entries.get(section, {}).items()}

    pending = {key: Pending(**value) for key, value in entries.get("pending", {}).items()}
    empty = Desired(version, drains=orders("drains"), mux_drains=orders("mux_drains"), pending=pending)
    return assembled(empty, {service.name: service for service in services}, retiring)


def assembled(empty: Desired, services: Mapping[str, Service], retiring: Mapping[str, Service]) -> Desired:
    """One that has none yet, with these services."""
    return _with(empty, services, retiring, list(services))


# --- services --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rules:
    """What a manager allows."""

    vip_prefixes: tuple[Network, ...]
    node_addresses: Mapping[Address, str] = field(default_factory=dict)  #: address -> "MUX mux1"; none may be a VIP
    without_ipv6: tuple[str, ...] = ()  #: all MUXes, if none of them has an IPv6 address


_ANYTHING = Rules((IPv4Network("0.0.0.0/0"), IPv6Network("::/0")))

#: A service with its backends as MUXes were last told of them; used where it retires.
AsTold = Callable[[Service], Service]


def apply_tables(
    desired: Desired,
    array: Sequence[object],
    rules: Rules,
    *,
    replace_all: bool = False,
    delete: Collection[str] = (),
    as_told: AsTold = lambda service: service,
) -> DesiredChange:
    """Services created or changed, and those in ``delete`` deleted; with ``replace_all`` all that are not named.
    Raises every mistake at once. ``array``: tables; one that is known to make a service that is there, by the same
    rules, may be that very service instead (see :mod:`manager.desired.submitted`)."""
    named = _names(array)
    delete = {name for name in (desired.services if replace_all else delete) if name in desired.services} - named
    rest = [item for item in array if not isinstance(item, Service)]
    if len(rest) < len(array) and len(named) == len(array) and not _takes_addresses(desired, rules):
        with contextlib.suppress(ConfigError):  # then every mistake is told, with its place in the whole
            change = _apply(desired, rest, rules, delete, as_told=as_told)
            return _short(change, _with_unchanged(array, change.lines))
    tables = [service_table(item) if isinstance(item, Service) else item for item in array]
    change = _apply(desired, tables, rules, delete, as_told=as_told)
    return _short(change, change.lines)


def _apply(
    desired: Desired,
    array: Sequence[object],
    rules: Rules,
    delete: set[str],
    *,
    as_told: AsTold,
) -> DesiredChange:
    """What is not named, and not in ``delete``, stays."""
    named = _names(array)
    others = _Others(desired.services, named | delete)
    services, mistakes = _read(array)
    mistakes += _Neighbours(desired, others, rules).check(services)
    # Those that are being withdrawn are on MUXes as well.
    if len(array) + len(others) + len(desired.retiring) + len(delete) > MAX_SERVICES:
        total = len(array) + len(others) + len(desired.retiring) + len(delete)
        mistakes.append(("service", f"would be {total} with those that are there; at most {MAX_SERVICES} are possible"))
    if mistakes:
        raise ConfigError(sorted(mistakes, key=lambda mistake: _place(mistake[0])))
    made = {service.name: _same(desired.services.get(service.name), service) for service in services.values()}
    lines = [_line(desired.services.get(name), service) for name, service in made.items()]
    lines += [ChangeLine(f"service {name}", "deleted") for name in sorted(delete)]
    names = frozenset(made) | delete
    after = dict(desired.services)  # a copy and a few changes: the quickest for one among ten thousand
    for name in delete:
        del after[name]
    after.update(made)
    new = _change_services(desired, after, names, as_told)
    in_the_way = list(_in_the_way(new))
    if in_the_way:
        raise ConfigError(in_the_way)
    return DesiredChange(desired, new, tuple(lines), names)


def _read(array: Sequence[object]) -> tuple[dict[int, Service], list[tuple[str, str]]]:
    """The services by their place, and all mistakes; of an array with mistakes, as much of each table as is right."""
    try:
        return dict(enumerate(parse_service_tables(array))), []
    except ConfigError as error:
        found: dict[int, Service] = {}
        for i, table in enumerate(array):
            service, _ = salvaged(table)
            if service is not None and isinstance(table, dict):
                all_there = len(service.backends) == len(table.get("backend", ()))
                found[i] = service if all_there else replace(service, backends=())  # else places are not to be told
        return found, list(error.mistakes)


def _in_the_way(desired: Desired) -> Iterator[tuple[str, str]]:
    """What is being withdrawn is on MUXes for a moment more, and they would send to their own VIPs."""
    for service in desired.retiring.values():
        name, vip = show(service.name), service.vip
        if vip.prefixlen == vip.max_prefixlen:
            inside = [vip.network_address] if vip.network_address in desired.by_address else []
        else:
            inside = [address for address in desired.by_address if address in vip]
        for address in inside[:1]:
            message = f"would have a backend at {address}, inside the VIP of service {name}, which is being withdrawn"
            yield "service", f"{message}; apply this again once it is gone, in a few seconds"
        for backend in service.backends:
            for held, _ in holders(desired, backend.address):
                message = (
                    f"would have the VIP {vip_text(held)}, which holds a backend of service {name}, which is being"
                )
                yield "service", f"{message} withdrawn; apply this again once it is gone, in a few seconds"


def _with_unchanged(array: Sequence[object], lines: Sequence[ChangeLine]) -> Iterator[ChangeLine | Service]:
    """Lines of the whole array, of which those of its tables are there; a service stands for its being unchanged."""
    rest = iter(lines)
    for item in array:
        yield item if isinstance(item, Service) else next(rest)
    yield from rest


def _short(change: DesiredChange, lines: Iterable[ChangeLine | Service]) -> DesiredChange:
    """With these lines; of thousands that are unchanged it is enough to know how many."""
    found: list[ChangeLine] = []
    unchanged = 0
    for line in lines:
        same = isinstance(line, Service) or line.action == "unchanged"
        unchanged += same
        if not same or unchanged <= LISTED:
            found.append(ChangeLine(f"service {line.name}", "unchanged") if isinstance(line, Service) else line)
    return replace(change, lines=tuple(found), unlisted=max(0, unchanged - LISTED))


def _takes_addresses(desired: Desired, rules: Rules) -> bool:
    """Whether what is there already is against the rules, as it may be since a node joined."""
    return any(
        (whose.startswith("MUX ") and address in desired.by_address) or any(True for _ in holders(desired, address))
        for address, whose in rules.node_addresses.items()
    )


def delete_services(
    desired: Desired, names: Collection[str], as_told: AsTold = lambda service: service
) -> DesiredChange:
    """All of them, or none where one is not there."""
    for name in names:
        if name not in desired.services:
            raise NotFoundError(f"there is no service {show(name)}{_hint(desired)}")
    gone = frozenset(names)
    services = {key: service for key, service in desired.services.items() if key not in gone}
    new = _change_services(desired, services, gone, as_told)
    return DesiredChange(desired, new, tuple(ChangeLine(f"service {name}", "deleted") for name in sorted(gone)), gone)


def purge(desired: Desired, keys: Iterable[str]) -> DesiredChange:
    """Retiring services that are withdrawn everywhere."""
    gone = [key for key in keys if key in desired.retiring]
    retiring = {key: service for key, service in desired.retiring.items() if key not in gone}
    lines = tuple(ChangeLine(f"service {key}", "removed", ("withdrawn everywhere",)) for key in gone)
    return DesiredChange(desired, _with(desired, desired.services, retiring, ()), lines)


def _change_services(
    desired: Desired, services: Mapping[str, Service], names: Collection[str], as_told: AsTold
) -> Desired:
    """A VIP that nobody wants any more keeps its services, as retiring ones, until it is withdrawn everywhere.
    Only services in ``names`` differ."""
    changed = [(desired.services.get(name), services.get(name)) for name in sorted(names)]
    wanted = {str(now.vip) for was, now in changed if now is not None and now is not was}

    def is_wanted(network: Network) -> bool:
        vip = str(network)
        return vip in wanted or any(
            services.get(name) is desired.services[name] for name in desired.by_vip.get(vip, ())
        )

    retiring = {key: service for key, service in desired.retiring.items() if not is_wanted(service.vip)}
    for was, now in changed:
        if was is not None and (now is None or now.vip != was.vip) and not is_wanted(was.vip):
            retiring[_free_key(was.name, retiring)] = as_told(was)
    taken = {key: service for key, service in retiring.items() if key in services}
    for key, service in taken.items():
        del retiring[key]
        retiring[_free_key(key, {**services, **retiring})] = service
    drains = desired.drains
    if any(_drained(services, key) is None for key in drains):
        drains = {key: order for key, order in drains.items() if _drained(services, key) is not None}
    return replace(_with(desired, services, retiring, names), drains=drains)


def _free_key(name: str, taken: Mapping[str, object]) -> str:
    """The name itself, or the first of name~2, name~3, …; never longer than a name may be."""
    number = 2
    key = name
    while key in taken:
        suffix = f"~{number}"
        key = name[: NAME_MAX - len(suffix)] + suffix
        number += 1
    return key


def _with(
    desired: Desired, services: Mapping[str, Service], retiring: Mapping[str, Service], names: Iterable[str]
) -> Desired:
    """Other services (those in ``names`` differ), and the indices of them."""
    by_vip, by_address = dict(desired.by_vip), dict(desired.by_address)
    lengths = set(desired.vip_lengths)
    for name in names:
        was, now = desired.services.get(name), services.get(name)
        if was is now:
            continue
        if now is not None:
            lengths.add((now.vip.version, now.vip.prefixlen))
        here, there = ({str(service.vip)} if service is not None else set() for service in (was, now))
        for vip in here - there:
            _unlist(by_vip, vip, name)
        for vip in there - here:
            by_vip[vip] = tuple(sorted((*by_vip.get(vip, ()), name)))
        old, new = ({backend.address for backend in service.backends} if service else set() for service in (was, now))
        for address in old - new:
            _unlist(by_address, address, name)
        for address in new - old:
            by_address[address] = (*by_address.get(address, ()), name)
    retiring_by_vip: dict[str, tuple[str, ...]] = {}
    for key in sorted(retiring):
        vip = str(retiring[key].vip)
        retiring_by_vip[vip] = (*retiring_by_vip.get(vip, ()), key)
    return replace(
        desired,
        services=services,
        retiring=retiring,
        by_vip=by_vip,
        by_address=by_address,
        retiring_by_vip=retiring_by_vip,
        vip_lengths=frozenset(lengths),
    )


def _unlist(index: dict[Any, tuple[str, ...]], key: Any, name: str) -> None:
    left = tuple(item for item in index[key] if item != name)
    if left:
        index[key] = left
    else:
        del index[key]


def _same(old: Service | None, new: Service) -> Service:
    """The old object where nothing changed, so that everything later sees at a glance that it is the same."""
    return old if old is not None and old == new else new


# --- back to what was ------------------------------------------------------------------------------------------------


def restore(
    desired: Desired, undo: Mapping[str, Any], rules: Rules, *, as_told: AsTold = lambda service: service
) -> DesiredChange:
    """Services and drains of backends as they were: ``undo`` is what the store tells of the versions in between.
    MUXes that drain go on with it, for that is work on a machine, and not a setting. Checked as any other change."""
    given, gone = undo.get("set", {}), undo.get("remove", {})
    tables = list(given.get("services", {}).values())
    change = apply_tables(desired, tables, rules, delete=gone.get("services", ()), as_told=as_told)
    before = change.new.drains
    drains = {key: order for key, order in before.items() if key not in gone.get("drains", ())}
    for key, plain in given.get("drains", {}).items():
        order = Order(**plain)
        known = before.get(key)
        if (known is None or known.now != order.now) and _drained(change.new.services, key) is not None:
            drains[key] = order
    lines = [ChangeLine(f"backend {key}", "undrained") for key in before if key not in drains]
    lines += [
        ChangeLine(f"backend {key}", _done(order)) for key, order in drains.items() if before.get(key) is not order
    ]
    lines = [line for line in change.lines if line.action != "unchanged"] + lines
    return replace(change, new=replace(change.new, drains=drains), lines=tuple(lines), unlisted=0)


def until_confirmed(change: DesiredChange, pending: Pending) -> DesiredChange:
    """The same change, to be taken back unless it is confirmed."""
    return replace(change, new=replace(change.new, pending={str(change.old.version + 1): pending}))


def take_back(
    desired: Desired, undo: Mapping[str, Any], why: str, *, as_told: AsTold = lambda service: service
) -> DesiredChange:
    """What waits for its confirmation ends. What was there before it was served a moment ago, so today's rules do not
    stand in its way."""
    lines = tuple(ChangeLine(f"version {version}", "rolled back", (why,)) for version in desired.pending)
    change = restore(desired, undo, _ANYTHING, as_told=as_told)
    return replace(change, new=replace(change.new, pending={}), lines=(*lines, *change.lines))


def confirm(desired: Desired) -> DesiredChange:
    """The change that waits for it lasts."""
    lines = tuple(ChangeLine(f"version {version}", "confirmed") for version in desired.pending)
    return DesiredChange(desired, replace(desired, pending={}), lines)


# --- what a change says of itself ------------------------------------------------------------------------------------


def _line(old: Service | None, new: Service) -> ChangeLine:
    name = f"service {new.name}"
    if old is None:
        where = f"{vip_text(new.vip)} {new.protocol.value} {new.ports}"
        return ChangeLine(name, "created", (where, f"{len(new.backends)} backend{'s' * (len(new.backends) != 1)}"))
    if old is new:
        return ChangeLine(name, "unchanged")
    details = [
        f"{f.name} {_word(getattr(old, f.name))} → {_word(getattr(new, f.name))}"
        for f in fields(Service)
        if f.name not in ("backends", "probe", "announce") and getattr(old, f.name) != getattr(new, f.name)
    ]
    if old.probe != new.probe or old.announce != new.announce:
        before, after = service_table(old), service_table(new)
        for key in ("probe", "announce"):
            details += _table_details(key, before.get(key), after.get(key))
    return ChangeLine(name, "changed", (*details, *_backend_details(old, new)) or ("order of its backends",))


def _table_details(name: str, old: Mapping[str, Any] | None, new: Mapping[str, Any] | None) -> Iterator[str]:
    """What of a table within a service's differs; of one that comes or goes all that it says."""
    if old is None or new is None:
        found = old or new or {}
        said = ", ".join(f"{key} {_value(value)}" for key, value in found.items()) or "with nothing but defaults"
        if old is not new:
            yield f"{name} {'added' if old is None else 'removed'} ({said})"
        return
    for key in dict.fromkeys((*old, *new)):
        if old.get(key) != new.get(key):
            yield f"{name}.{key} {_value(old.get(key))} → {_value(new.get(key))}"


def _value(value: object) -> str:
    """Of a table; what a host is to run stands there as it is."""
    if isinstance(value, list | tuple):
        return f"[{' '.join(map(str, value))}]"
    return _word(value)


def _backend_details(old: Service, new: Service) -> list[str]:
    before = {backend.name: backend for backend in old.backends}
    after = {backend.name: backend for backend in new.backends}
    details = [f"backend {name} added" for name in after if name not in before]
    details += [f"backend {name} removed" for name in before if name not in after]
    for name, backend in after.items():
        if name in before and before[name] != backend:
            details += [
                f"{f.name} of {name} {_word(getattr(before[name], f.name))} → {_word(getattr(backend, f.name))}"
                for f in fields(Backend)
                if getattr(before[name], f.name) != getattr(backend, f.name)
            ]
    return details


def _word(value: object) -> str:
    if value is None:
        return "default"
    return str(getattr(value, "value", value))


# --- drains ----------------------------------------------------------------------------------------------------------


def drain_backend(desired: Desired, service: str, backend: str, order: Order | None) -> DesiredChange:
    """``order`` None takes the drain back."""
    key = f"{service}/{backend}"
    found = _drained(desired.services, key)
    if found is None:
        if service not in desired.services:
            raise NotFoundError(f"there is no service {show(service)}{_hint(desired)}")
        names = ", ".join(item.name for item in desired.services[service].backends) or "none"
        raise NotFoundError(f"service {show(service)} has no backend {show(backend)}; its backends are {names}")
    name = f"backend {key}"
    if order is None:
        if key not in desired.drains and found[1].state is BackendState.DRAIN:
            raise RequestError(f'{name} is drained by its table (state = "drain"); change it there and apply')
        return _ordered(desired, "drains", key, None, ChangeLine(name, "undrained"))
    return _ordered(desired, "drains", key, order, ChangeLine(name, _done(order)))


def drain_host(desired: Desired, host: str, addresses: Collection[Address], order: Order | None) -> DesiredChange:
    """All backends at a host's addresses at once; ``order`` None takes back whatever order there is of each."""
    places = sorted({(name, address) for address in addresses for name in desired.by_address.get(address, ())}, key=str)
    keys = {
        f"{name}/{backend.name}": None
        for name, address in places
        for backend in desired.services[name].backends
        if backend.address == address
    }
    if not keys:
        where = ", ".join(map(str, addresses)) or "no address that is known"
        raise NotFoundError(f"no backend is on host {show(host)} ({where})")
    change = DesiredChange(desired, desired, ())
    for key in keys:
        line = ChangeLine(f"backend {key}", "undrained" if order is None else _done(order))
        one = _ordered(change.new, "drains", key, order, line)
        change = replace(change, new=one.new, lines=(*change.lines, *one.lines))
    title = f"host {host} {'undrained' if order is None else _done(order)}"
    return change if change.empty else replace(change, title=title)


def _done(order: Order) -> str:
    return "taken out" if order.now else "drained"


def set_weight(
    desired: Desired,
    service: str,
    backend: str,
    weight: object,
    *,
    rules: Rules,
    as_told: AsTold = lambda service: service,
) -> DesiredChange:
    """A backend's weight alone, as if its service had been applied with it."""
    found = _drained(desired.services, f"{service}/{backend}")
    if found is None:
        drain_backend(desired, service, backend, None)  # says what is not there
    table = service_table(desired.services[service])
    rows = [{**row, "weight": weight} if row["name"] == backend else row for row in table["backend"]]
    return apply_tables(desired, [{**table, "backend": rows}], rules, as_told=as_told)


def drain_mux(desired: Desired, mux: str, order: Order | None) -> DesiredChange:
    line = ChangeLine(f"mux {mux}", "undrained" if order is None else "drained")
    return _ordered(desired, "mux_drains", mux, order, line)


def _ordered(desired: Desired, section: str, key: str, order: Order | None, line: ChangeLine) -> DesiredChange:
    orders = dict(getattr(desired, section))
    known = orders.get(key)
    if known is order or (known is not None and order is not None and known.now == order.now):
        return DesiredChange(desired, desired, (ChangeLine(line.name, "unchanged"),))
    if order is None:
        del orders[key]
    else:
        orders[key] = order
    new = replace(desired, drains=orders) if section == "drains" else replace(desired, mux_drains=orders)
    return DesiredChange(desired, new, (line,))


def _drained(services: Mapping[str, Service], key: str) -> tuple[str, Backend] | None:
    """The service and its backend that "SERVICE/BACKEND" names; either name may hold slashes."""
    for match in re.finditer("/", key):
        service = services.get(key[: match.start()])
        for backend in service.backends if service else ():
            if backend.name == key[match.end() :]:
                return key[: match.start()], backend
    return None


def _hint(desired: Desired) -> str:
    names = sorted(desired.services)
    if not names:
        return "; there are none yet"
    return f"; there are {', '.join(names[:8])}{' and others' if len(names) > 8 else ''}"


# --- checks against what is there ------------------------------------------------------------------------------------


def _names(array: Sequence[object]) -> set[str]:
    tables = (item for item in array if isinstance(item, dict))
    names = {table["name"] for table in tables if isinstance(table.get("name"), str)}
    return names | {item.name for item in array if isinstance(item, Service)}


def _place(path: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\[(\d+)\]", path))


class _Others:
    """The services but some; without a copy, for there are thousands."""

    def __init__(self, services: Mapping[str, Service], without: Collection[str]) -> None:
        self._services = services
        self._without = without
        self._count = len(services) - sum(name in services for name in without)

    def get(self, name: str) -> Service | None:
        return None if name in self._without else self._services.get(name)

    def __contains__(self, name: str) -> bool:
        return name not in self._without and name in self._services

    def __len__(self) -> int:
        return self._count


class _Neighbours:
    """New services against the manager's rules and the services that stay."""

    def __init__(self, desired: Desired, others: _Others, rules: Rules) -> None:
        self._others = others
        self._rules = rules
        self._by_vip = desired.by_vip if others else {}
        self._by_address = desired.by_address if others else {}
        self._desired = desired
        self._announce: dict[Network, tuple[str, Announce]] = {}

    def check(self, services: Mapping[int, Service]) -> Iterator[tuple[str, str]]:
        """Mistakes; ``services`` by their place among the tables."""
        for i, service in services.items():
            for key, message in self._mistakes(service):
                yield f"service[{i}].{key}", f"{message} (service {show(service.name)})"

    def _mistakes(self, service: Service) -> Iterator[tuple[str, str]]:
        yield from self._vip(service)
        yield from self._ties(service)
        yield from self._announcement(service)
        for j, backend in enumerate(service.backends):
            for message in self._backend(backend.address):
                yield f"backend[{j}].address", message

    def _vip(self, service: Service) -> Iterator[tuple[str, str]]:
        vip = service.vip
        if not any(_inside(vip, prefix) for prefix in self._rules.vip_prefixes):
            allowed = ", ".join(str(prefix) for prefix in self._rules.vip_prefixes)
            yield "vip", f"must be inside manager.vip_prefixes, {allowed}; {vip_text(vip)} is not"
        for address, whose in self._rules.node_addresses.items():
            if address in vip:
                yield "vip", f"takes the address of {whose}, {address}"
        if vip.prefixlen == vip.max_prefixlen:
            held = [vip.network_address] if vip.network_address in self._by_address else []
        else:
            held = [address for address in self._by_address if address in vip]
        for address in held:
            users = [name for name in self._by_address[address] if name in self._others]
            if users:
                yield "vip", f"takes the address of a backend of service {show(users[0])}, {address}"
        old = self._desired.services.get(service.name)  # what is there already does not keep others from changing
        if vip.version == 6 and self._rules.without_ipv6 and (old is None or old.vip != vip):
            # What no MUX can serve is refused; what some cannot, these leave out, and say so.
            names = ", ".join(self._rules.without_ipv6)
            yield "vip", f"is IPv6, and no MUX has an address for it: set mux.address6 on {names} and restart"

    def _ties(self, service: Service) -> Iterator[tuple[str, str]]:
        for name in self._by_vip.get(str(service.vip), ()):
            other = self._others.get(name)
            if other is not None and other.protocol is service.protocol and _tie(service.ports, other.ports):
                there = f"service {show(name)}, which is there already"
                yield "port", f"ties with {there}: same VIP and protocol, and the ports overlap"

    def _announcement(self, service: Service) -> Iterator[tuple[str, str]]:
        """A VIP has one announcement, so services that share it must not want different ones."""
        mine, vip = service.announce, service.vip
        if mine is None:
            return
        known = self._announce.get(vip)
        for name in self._by_vip.get(str(vip), ()):
            other = self._others.get(name)
            if known is None and other is not None and other.announce is not None:
                known = (name, other.announce)
        if known is not None:
            differing = [key for key in ANNOUNCED if getattr(known[1], key) != getattr(mine, key)]
            if differing:
                words = f"must agree with that of service {show(known[0])} at the same VIP in {', '.join(differing)}"
                yield "announce", words
        self._announce.setdefault(vip, (service.name, mine))

    def _backend(self, address: Address) -> Iterator[str]:
        whose = self._rules.node_addresses.get(address, "")
        if whose.startswith("MUX "):
            yield f"is the address of {whose}; a MUX cannot be a backend"
        for vip, names in holders(self._desired, address) if self._others else ():
            for name in names:
                if name in self._others:
                    yield f"must be outside the VIP of service {show(name)}, {vip_text(vip)}; {address} is not"


def holders(desired: Desired, address: Address) -> Iterator[tuple[Network, tuple[str, ...]]]:
    """The VIPs that hold an address, with the services at each."""
    for version, length in desired.vip_lengths:
        if version == address.version:
            vip = _around(address, length)
            names = desired.by_vip.get(str(vip))
            if names:
                yield vip, names


def _around(address: Address, length: int) -> Network:
    """The prefix of that length that holds the address."""
    low = address.max_prefixlen - length
    number = int(address) >> low << low
    return IPv4Network((number, length)) if address.version == 4 else IPv6Network((number, length))


def _inside(vip: Network, prefix: Network) -> bool:
    return vip.version == prefix.version and vip.subnet_of(prefix)  # type: ignore[arg-type]  # of one version


def _tie(one: PortRange, other: PortRange) -> bool:
    """Of one VIP and protocol: is neither the more specific for some port? See lb.config."""

    def kind(ports: PortRange) -> int:
        return 0 if ports.exact else 2 if ports.any else 1

    return kind(one) == kind(other) and one.first <= other.last and other.first <= one.last
