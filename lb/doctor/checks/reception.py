# SPDX-License-Identifier: Apache-2.0
"""Why a host does not take, or does not answer, what comes out of tunnels: causes, and what mends each. Pure.

A client's packet that lb-agent took out of its tunnel still has to pass, in this order: the reverse path filter and the
routes, the host's own packet filter, a process that listens where the packet is for; and the answer has to leave from
there. All this looks the same from a MUX: silence, as if protocol 4 were dropped on the way. Here it is told apart.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network, ip_address, ip_network
from typing import Any, TypeVar

from lb.doctor.firewall import packet_filter
from lb.doctor.firewall.packet_filter import FilteredPacket, RulePlace, Ruleset
from lb.doctor.model.facts import Arrival, ListeningSocket, Network, OwnBackend, Row
from lb.doctor.model.findings import Finding, fault, few, ok, unknown
from lb.model import Address

K = TypeVar("K", bound=Hashable)

#: Chains of prerouting before this priority see a VIP; those behind it the host's address, where it is translated.
TRANSLATED = -100
_EARLY, _LATE = range(packet_filter.EVERY.start, TRANSLATED), range(TRANSLATED, packet_filter.EVERY.stop)
#: Of many ports that something listens at, so many are named.
SHOWN = 6


def owns(services: Iterable[Row], backends: Iterable[Row]) -> list[OwnBackend]:
    """This host's backends, from the agent's rows."""
    known = {row.get("name"): row for row in services}
    found = (_own(known[row.get("service")], row) for row in backends if row.get("service") in known)
    return [own for own in found if own is not None]


def _own(service: Row, row: Row) -> OwnBackend | None:
    try:
        first, _, last = str(service.get("port")).partition("-")
        ports = (int(first), int(last or first))
        return OwnBackend(
            f"{row.get('service')}/{row.get('name')}",
            ip_network(str(service.get("vip"))),
            str(service.get("protocol")),
            (0, 65535) if ports == (0, 0) else ports,
            ip_address(str(row.get("address"))),
            service.get("translated_to"),
            bool(service.get("track") or service.get("translated_to")),
            str(row.get("health")),
            str(row.get("reason") or ""),
        )
    except ValueError:
        return None


# --- routes and the reverse path filter ------------------------------------------------------------------------------


def questions(own: Iterable[OwnBackend], muxes: Iterable[Address]) -> list[tuple[IPv4Address, IPv4Address]]:
    """The packets, by source and destination, whose arrival the kernel is asked about: those of MUXes' probes."""
    places = sorted({one.place[0] for one in own if isinstance(one.place[0], IPv4Address)})
    return [(mux, place) for mux in muxes if isinstance(mux, IPv4Address) for place in places]


def check_arrivals(
    own: Collection[OwnBackend], arrivals: Sequence[Arrival] | None, network: Network, strict: int | None
) -> Iterator[Finding]:
    """``strict``: the reverse path filter in force; 1 is strict, 2 loose."""
    if arrivals is None or not own:
        return
    name = network.interface.name
    wrong = [arrival for arrival in arrivals if not arrival.local]
    kinds: dict[str, list[Arrival]] = {}
    for arrival in wrong:
        kinds.setdefault(_kind(arrival, network, strict), []).append(arrival)
    if "accept_local" in kinds:
        yield fault(
            "accept_local",
            f"the MUX {kinds['accept_local'][0].source} has an address of this host as its own: the kernel drops what "
            f"comes from it on {name}",
            f"`sysctl -w net.ipv4.conf.{name.replace('.', '/')}.accept_local=1`, and keep it in /etc/sysctl.d/",
            cause="accept_local",
            about=_about(own),
        )
    for kind in ("rp_filter", "no_route_back"):
        if kind in kinds:
            yield _no_way_back(own, kinds[kind], name, strict)
    places = {kind: sorted({arrival.destination for arrival in found}) for kind, found in kinds.items()}
    yield from _not_local(own, places.get("vip_missing", ()), places.get("local_table", ()), network)
    if not wrong and arrivals:
        yield ok("reception", f"the kernel takes in what MUXes send for {len(own)} backends of this host")


def _kind(arrival: Arrival, network: Network, strict: int | None) -> str:
    """Why it is not taken in. Kernels of today do not say; what is around it does."""
    name = network.interface.name
    owned = arrival.destination in network.addresses
    if arrival.source in network.addresses:
        return "accept_local"
    if owned and network.local_rule is False:
        return "local_table"
    if strict == 1 and arrival.back not in (None, name):
        return "rp_filter"
    if strict and arrival.back is None:
        return "no_route_back"
    return "local_table" if owned else "vip_missing"


def _no_way_back(own: Collection[OwnBackend], refused: Sequence[Arrival], name: str, strict: int | None) -> Finding:
    sources = few(sorted({str(arrival.source) for arrival in refused}))
    setting = f"net.ipv4.conf.{name.replace('.', '/')}.rp_filter"
    places = {arrival.destination for arrival in refused}
    about = _about(one for one in own if one.place[0] in places)
    if any(arrival.back for arrival in refused):
        return fault(
            "rp_filter",
            f"{setting} is 1 (strict), and packets from {sources} would be answered by another interface than {name}: "
            "they are dropped without a word",
            f"`sysctl -w {setting}=2`, and keep it in /etc/sysctl.d/",
            cause="rp_filter",
            about=about,
        )
    return fault(
        "no_route_back",
        f"no route leads back to {sources}: the reverse path filter of {name} drops what comes from there",
        f"`ip route add default via GATEWAY dev {name}`, with the router's address; or `sysctl -w {setting}=0`",
        cause="no_route_back",
        about=about,
    )


def _not_local(
    own: Collection[OwnBackend], lost: Sequence[IPv4Address], held: Sequence[IPv4Address], network: Network
) -> Iterator[Finding]:
    """Addresses whose packets the kernel does not take for its own; ``held``: though it has them."""
    vips = [one for one in own if one.port is None and one.place[0] in lost]
    if vips:
        first, *more = sorted({one.vip for one in vips}, key=str)
        yield fault(
            "vip_missing",
            f"the VIP {_short(first)}{f' and {len(more)} more' if more else ''} "
            f"{'are' if more else 'is'} not taken in by this host, though no translation leads elsewhere: packets for "
            f"{'them' if more else 'it'} are dropped",
            f"`{_owning(first)}`" + (", likewise the others" if more else "") + "; lb-agent does so by itself while it "
            "runs",
            cause="vip_missing",
            about=_about(vips),
        )
    if held:
        yield fault(
            "local_table",
            f"{held[0]} is an address of this host, and its routes lead packets for it elsewhere: the table of local "
            "addresses is not asked first, or lacks it",
            "`ip rule add pref 0 lookup local`"
            if network.local_rule is False
            else f"`ip route add local {held[0]} dev {network.addresses[held[0]]} table local`",
            cause="local_table",
            about=_about(one for one in own if one.place[0] in held),
        )


def _owning(vip: Any) -> str:
    """As lb-agent would."""
    if isinstance(vip, IPv4Network) and vip.prefixlen == 32:
        return f"ip addr add {vip} dev lo label lo:vipmux scope host"
    return f"ip route add local {vip} dev lo table local proto 177 metric 19522"


# --- translation -----------------------------------------------------------------------------------------------------


def untranslated(own: Iterable[OwnBackend], ruleset: Ruleset, table: str, interface: str) -> list[OwnBackend]:
    """Those that the agent's table should translate, and does not (any more) as it should."""
    return [one for one in own if one.port is not None and not _translated(one, ruleset, table, interface)]


def _translated(own: OwnBackend, ruleset: Ruleset, table: str, interface: str) -> bool:
    found = packet_filter.translations(ruleset, _arriving(own, None, interface))
    return any(
        place.table == table and isinstance(target, Mapping) and target.get("port") == own.port
        for place, target in found
    )


# --- the host's packet filter ----------------------------------------------------------------------------------------


def check_firewall(
    own: Collection[OwnBackend],
    ruleset: Ruleset | None,
    *,
    interface: str,
    muxes: Collection[Address],
    mode: str | None,
) -> Iterator[Finding]:
    """``mode``: how tunnels are taken off. tc-BPF does it before any rule of nftables sees a packet."""
    if not own:
        return
    if ruleset is None:
        yield unknown("host_firewall", "the packet filter of this host was not looked at", "run `lb doctor` as root")
        return
    found = list(_tunnels_dropped(own, ruleset, interface, muxes, mode))
    found += _dropped(own, ruleset, interface, muxes)
    yield from found
    if not found:
        yield ok("host_firewall", f"no rule of this host is known to drop packets of its {len(own)} backends")


def _tunnels_dropped(
    own: Collection[OwnBackend], ruleset: Ruleset, interface: str, muxes: Collection[Address], mode: str | None
) -> Iterator[Finding]:
    if mode in (None, "bpf"):
        return
    address = next((one.address for one in own if one.address.version == 4), None)
    for mux in muxes:
        packet = FilteredPacket("ipencap", mux, address, interface=interface)
        for hook in ("ingress", "prerouting", "input"):
            place = packet_filter.dropped_at(ruleset, packet, hook)
            if place is not None:
                match = "-p 4" if place.iptables else "ip protocol 4"
                yield fault(
                    "host_firewall",
                    f"{place.words} drops protocol 4 from the MUX {mux} on this host itself, before lb-agent ({mode}) "
                    "gets it",
                    _insertion(place, match),
                    cause="host_firewall_tunnel",
                    about=_about(own),
                )
                return


def _dropped(
    own: Collection[OwnBackend], ruleset: Ruleset, interface: str, muxes: Collection[Address]
) -> Iterator[Finding]:
    """One for each place that drops, and what it drops."""
    alike: dict[tuple[RulePlace, str, str, bool, Address | None], list[OwnBackend]] = {}
    for one in own:
        for source in (None, *(mux for mux in muxes if mux.version == one.vip.version)):
            place, hook = _dropping(one, ruleset, interface, source)
            if place is not None:
                untracked = not one.tracked and _dropping(one, ruleset, interface, source, "new")[0] is None
                alike.setdefault((place, hook, one.protocol, untracked, source), []).append(one)
                break
    for (place, hook, protocol, untracked, source), members in alike.items():
        yield _drop(place, hook, protocol, members, source, untracked=untracked)


def _dropping(
    own: OwnBackend, ruleset: Ruleset, interface: str, source: Address | None, state: str | None = None
) -> tuple[RulePlace | None, str]:
    """Who drops the first packet of a client, or the answer to it."""
    state = state or ("new" if own.tracked else "untracked")
    arriving, placed = _arriving(own, source, interface, state), _placed(own, source, interface, state)
    steps = [
        (arriving, "ingress", packet_filter.EVERY),
        (arriving, "prerouting", _EARLY),
        (placed, "prerouting", _LATE),
        (placed, "input", packet_filter.EVERY),
        (_leaving(own, source, interface, state), "output", packet_filter.EVERY),
    ]
    for packet, hook, among in steps:
        place = packet_filter.dropped_at(ruleset, packet, hook, among=among)
        if place is not None:
            return place, hook
    return None, ""


def _arriving(own: OwnBackend, source: Address | None, interface: str, state: str = "new") -> FilteredPacket:
    first, last = own.ports
    port = first if first == last else None
    return FilteredPacket(own.protocol, source, own.vip.network_address, None, port, interface, state)


def _placed(own: OwnBackend, source: Address | None, interface: str, state: str) -> FilteredPacket:
    address, port = own.place
    return FilteredPacket(own.protocol, source, address, None, port, interface, state)


def _leaving(own: OwnBackend, client: Address | None, interface: str, state: str) -> FilteredPacket:
    address, port = own.place
    answer = "established" if state == "new" else state
    return FilteredPacket(own.protocol, address, client, port, None, interface, answer, leaving=True)


def _drop(
    place: RulePlace,
    hook: str,
    protocol: str,
    members: Sequence[OwnBackend],
    source: Address | None,
    *,
    untracked: bool,
) -> Finding:
    out = hook == "output"
    ports = sorted({port for one in members if (port := one.place[1]) is not None})
    exact = all(one.place[1] is not None for one in members)
    at = f"port{'s' if len(ports) > 1 else ''} {few(ports)}" if exact else f"ports of {few(_vips(members))}"
    what = f"the answers from {protocol.upper()} {at}" if out else f"what comes for {protocol.upper()} {at}"
    whose = f" from {source} (a MUX, for its probes)" if source is not None else ""
    words = f"{place.words} drops {what}{whose} on this host"
    if untracked:
        words += (
            ": it takes what conntrack knows, and packets of services that are not translated are not tracked; so is "
            "every one"
        )
    remedy = _insertion(place, _match(place, protocol, ports if exact else [], members, "sport" if out else "dport"))
    if untracked:
        remedy += ", or `track = true` in the service"
    cause = "host_firewall_untracked" if untracked else "host_firewall"
    return fault("host_firewall", f"{words}: {_labels(members)}", remedy, cause=cause, about=_about(members))


def _match(place: RulePlace, protocol: str, ports: Sequence[int], members: Sequence[OwnBackend], side: str) -> str:
    if place.iptables:
        if not ports:
            end = "-s" if side == "sport" else "-d"
            return f"-p {protocol} {end} {','.join(_vips(members))}"
        many = len(ports) > 1
        option = f"-m multiport --{side}s" if many else f"--{side}"
        return f"-p {protocol} {option} {','.join(map(str, ports))}"
    if not ports:
        family = "ip" if members[0].vip.version == 4 else "ip6"
        return f"{family} {'saddr' if side == 'sport' else 'daddr'} {_nft_set(_vips(members))}"
    return f"{protocol} {side} {_nft_set(ports)}"


def _insertion(place: RulePlace, match: str) -> str:
    if place.iptables:
        program = "ip6tables" if place.family == "ip6" else "iptables"
        table = "" if place.table == "filter" else f"-t {place.table} "
        return f"`{program} {table}-I {place.chain} {match} -j ACCEPT`, and keep it where your rules are kept"
    where = f"{place.family} {place.table} {place.chain}"
    return f"`nft insert rule {where} {match} accept`, and keep it where your rules are kept"


def _nft_set(values: Sequence[object]) -> str:
    return str(values[0]) if len(values) == 1 else "{ " + ", ".join(map(str, values)) + " }"


# --- processes -------------------------------------------------------------------------------------------------------


def check_listeners(
    own: Iterable[OwnBackend],
    listeners: Collection[ListeningSocket] | None,
    ruleset: Ruleset | None,
    table: str,
    interface: str,
) -> Iterator[Finding]:
    """Whether somebody listens where packets are for. A backend whose probe is well is asked nothing more."""
    if listeners is None:
        return
    silent: dict[tuple[str, Address, int | None], list[OwnBackend]] = {}
    for one in own:
        port = one.place[1]
        probed_well = one.health == "up" and not one.reason.startswith("not probed")
        if port is None or probed_well or _elsewhere(one, ruleset, table, interface):
            continue
        silent.setdefault((one.protocol, *one.place), []).append(one)
    for members in silent.values():
        yield from _judge(members, listeners)


def _elsewhere(own: OwnBackend, ruleset: Ruleset | None, table: str, interface: str) -> bool:
    """Somebody else's rules lead its packets on, to a container's port perhaps: who listens here does not matter."""
    if ruleset is None:
        return False
    address, port = own.place
    packets = (_arriving(own, None, interface), FilteredPacket(own.protocol, None, address, None, port, interface))
    return any(place.table != table for packet in packets for place, _ in packet_filter.translations(ruleset, packet))


def _judge(members: Sequence[OwnBackend], listeners: Collection[ListeningSocket]) -> Iterator[Finding]:
    first = members[0]
    address, port = first.place
    same = [one.address for one in listeners if (one.protocol, one.port) == (first.protocol, port)]
    datagrams = first.protocol == "udp" and first.port is None  # on 0.0.0.0 its answers would leave from elsewhere
    where, label = f"{first.protocol.upper()} {address}:{port}", _labels(members)
    # Translated to there, whatever address of the host it listens at is found.
    by_port = f"`port = {port}` in the backend and `lb apply`, so that packets are translated to {first.address}:{port}"
    if any(_takes(each, address) for each in same):
        if first.protocol == "udp" and first.port is None and "but well at" in first.reason:
            yield fault(
                "udp_answer",
                f"the server behind {label} takes datagrams for the VIP {address}, and answers from {first.address} "
                "(it listens on every address): clients throw that away",
                f"{by_port}; or have it listen on {address} itself",
                cause="udp_answer_source",
                about=_about(members),
            )
    elif same and all(each.is_loopback for each in same):
        yield fault(
            "listens",
            f"what {label} is for listens on {same[0]}:{port} alone: packets for {address} are refused",
            f"have it listen on {address}{'' if datagrams else ' or 0.0.0.0'} and restart it: "
            f"`ss -ln{first.protocol[0]}p sport = :{port}` names it",
            cause="listens_on_loopback",
            about=_about(members),
        )
    elif same:
        others = few(sorted(str(each) for each in same if not each.is_loopback))
        yield fault(
            "listens",
            f"what {label} is for listens on {others}, and packets are for {where}: nobody takes them",
            f"{by_port}; or have it listen on {address}{'' if datagrams else ' or 0.0.0.0'}",
            cause="listens_elsewhere",
            about=_about(members),
        )
    else:
        yield _nobody(members, listeners)


def _nobody(members: Sequence[OwnBackend], listeners: Collection[ListeningSocket]) -> Finding:
    first = members[0]
    address, port = first.place
    other = sorted({one.port for one in listeners if one.protocol == first.protocol and not one.address.is_loopback})
    at = f"; what listens here: {few(other, SHOWN)}" if other else ""
    return fault(
        "listens",
        f"nothing listens on {first.protocol.upper()} {address}:{port}, where packets of {_labels(members)} go{at}",
        f"start the process there; `ss -ln{first.protocol[0]}p` shows who listens where",
        cause="nobody_listens",
        about=_about(members),
    )


def _takes(listening: Address, address: Address) -> bool:
    if listening.is_unspecified:
        return listening.version == 6 or address.version == 4
    return listening == address


# --- words -----------------------------------------------------------------------------------------------------------


def _about(own: Iterable[OwnBackend]) -> list[str]:
    return sorted({one.about for one in own})


def _labels(own: Iterable[OwnBackend]) -> str:
    return few(sorted({one.label for one in own}))


def _vips(own: Iterable[OwnBackend]) -> list[str]:
    return sorted({_short(one.vip) for one in own})


def _short(vip: object) -> str:
    return str(vip).removesuffix("/32").removesuffix("/128")
