# SPDX-License-Identifier: Apache-2.0
"""What the answers of one backend's way mean. Pure.

plain  small in a tunnel  full in a tunnel    then
no     no                 -                   the host cannot be reached
yes    no, ICMP said why  -                   no agent there, or a firewall that says so
yes    no                 -                   by what else is known:
                                                the backend's own port is silent beside the tunnel too: a firewall there
                                                another service of this host answers: the host, not the way
                                                neither: protocol 4 is dropped on the way (or at the host: not its MUX)
any    RST                -                   the process does not listen
any    yes                no                  the MTU of the way is smaller than the file says
any    yes                yes                 fine; or the MTU of the way back is smaller, as full pings tell
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from ipaddress import IPv4Address
from typing import Any

from lb.doctor.model.facts import Datagram, Path, Row, WayAnswer, WayTarget
from lb.doctor.model.findings import Finding, Severity, fault, few, ok, unknown, warning

#: Bytes of an outer IPv4 header.
TUNNEL = 20
#: Ways that are tried at once; of more services each backend's address is still tried once.
TARGETS_MAX = 256


def targets(rows: Iterable[Row], services: Iterable[Row], *, managed: bool = False) -> list[WayTarget]:
    """TCP services of backends with IPv4, from a MUX's rows; of too many one for each address.

    ``managed``: "down" is what the manager makes of probes; otherwise an operator wants it so.
    """
    return _targets(rows, services, "tcp", managed=managed)


def questions(rows: Iterable[Row], services: Iterable[Row], *, managed: bool = False) -> list[WayTarget]:
    """UDP services that answer to what their probe asks."""
    asked = [service for service in services if service.get("request") is not None]
    return [target for target in _targets(rows, asked, "udp", managed=managed) if target.exact]


def _targets(rows: Iterable[Row], services: Iterable[Row], protocol: str, *, managed: bool) -> list[WayTarget]:
    known = {row.get("name"): row for row in services}
    found: list[WayTarget] = []
    for row in rows:
        service = known.get(row.get("service"))
        if service is None or service.get("protocol") != protocol:
            continue
        target = _target(row, service, "up" if managed else str(row.get("state", "up")))
        if target is not None:
            found.append(target)
    if len(found) > TARGETS_MAX:
        found = list({target.address: target for target in found}.values())[:TARGETS_MAX]
    return found


def _target(row: Row, service: Row, told: str) -> WayTarget | None:
    try:
        address = IPv4Address(str(row.get("address")))
        vip = IPv4Address(str(service.get("vip")).partition("/")[0])
    except ValueError:
        return None
    first = str(service.get("port")).partition("-")[0]
    exact = str(service.get("port")) == first and first != "0"
    port = max(1, int(first)) if first.isdecimal() else 1
    inside, request = row.get("port"), service.get("request")
    return WayTarget(
        f"{row.get('service')}/{row.get('name')}",
        address,
        vip,
        port,
        exact,
        told,
        inside if isinstance(inside, int) and inside > 0 else None,
        request.encode() if isinstance(request, str) else None,
    )


def check_paths(paths: Sequence[Path], source: IPv4Address) -> Iterator[Finding]:
    """One finding for each cause, however many hosts and services have it; of what does not listen one a place."""
    alike: dict[tuple[object, ...], tuple[Finding, Path, list[Path]]] = {}
    taken = {path.target.address for path in paths if path.tunnel is not WayAnswer.SILENT}
    for path in paths:
        finding = judge(path, source, takes_others=path.target.address in taken)
        if finding.severity is Severity.OK:
            yield finding
            continue
        place = (path.target.address, path.target.inside) if finding.check == "backend" else ()
        key = (finding.check, finding.severity, finding.cause, *place)
        alike.setdefault(key, (finding, path, []))[2].append(path)
    for finding, first, found in alike.values():
        own = sum(path.target.address == first.target.address for path in found) - 1
        others = sorted({path.target.address for path in found} - {first.target.address})
        words = [f"{own} more of this host"] if own else []
        if others:
            words.append(", ".join(map(str, others[:4])) + (f" and {len(others) - 4} hosts" if len(others) > 4 else ""))
        yield replace(
            finding,
            what=finding.what + (f"; likewise {' and '.join(words)}" if words else ""),
            about=tuple(sorted({name for path in found for name in _about(path.target.name)})),
        )


def judge(path: Path, source: IPv4Address, *, takes_others: bool = False) -> Finding:
    """The one thing to say of a way. ``takes_others``: the host answers for another service through its tunnel."""
    target = path.target
    where = f"{target.address} ({target.name})"
    if path.tunnel is WayAnswer.SILENT:
        found = _silent(path, source, where, takes_others=takes_others)
    elif path.tunnel_full is WayAnswer.SILENT and path.tunnel_some is not WayAnswer.SILENT:
        found = _too_small(path, where)
    elif path.tunnel is WayAnswer.REFUSED and target.exact:
        found = fault(
            "backend",
            f"{target.name}: nobody listens behind {target.vip}:{target.port} on {target.address}: the tunnel "
            "works, and "
            "the connection is refused",
            f"start the process there; `ss -ltn` on {target.address} shows who listens; meanwhile `lb drain backend "
            f"{target.name}`",
        )
    elif path.tunnel_full is WayAnswer.SILENT:
        found = unknown(
            "mtu_path",
            f"whether {path.mtu} bytes reach {where} is not known: connections that begin with data are filtered",
        )
    elif path.plain_full is WayAnswer.SILENT and path.largest is not None:
        found = _too_small_back(path, where)
    else:
        found = ok(
            "path", f"{target.vip}:{target.port} answers through the tunnel to {where}, with {path.mtu} bytes too"
        )
    if found.severity is not Severity.OK:
        found = replace(found, about=_about(target.name))
    if target.told == "down" and found.severity is Severity.FAULT and found.check in ("backend", "unreachable"):
        return replace(found, severity=Severity.WARNING, what=f"{found.what} (and it is out of service)")
    return found


def _about(label: str) -> tuple[str, ...]:
    return (f"backend {label}",)


def _silent(path: Path, source: IPv4Address, where: str, *, takes_others: bool) -> Finding:
    target = path.target
    if path.plain is WayAnswer.SILENT:
        return fault(
            "unreachable",
            f"the host {where} cannot be reached from {source}: neither ping nor TCP is answered, with or "
            "without tunnel" + (f"; {path.said}" if path.said else ""),
            f"is it up? `ip route get {target.address}`, `ip neigh show {target.address}`; until it is back: `lb "
            "drain "
            f"backend {target.name}`",
        )
    if path.said is not None and "protocol unreachable" in path.said:
        return fault(
            "no_agent",
            f"{where} does not take packets out of tunnels: {path.said}",
            f"start lb-agent on {target.address}: `systemctl start lb-agent`; `lb doctor --config AGENT.toml` "
            "there says "
            "more",
        )
    if path.said is not None:
        return fault(
            "protocol_4",
            f"IP-in-IP (protocol 4) from {source} to {where} is refused on the way: {path.said}",
            "allow protocol 4 (not TCP port 4) from MUXes to hosts in that machine's firewall",
        )
    if path.direct is WayAnswer.SILENT:
        return fault(
            "host_firewall",
            f"TCP port {target.inside} of the host {where} answers neither in a tunnel nor beside it, and the host "
            "answers ping: a packet filter drops it there",
            f"on {target.address}: `lb doctor --config AGENT.toml` names the rule and what lets it in",
        )
    if takes_others:
        return fault(
            "host_silent",
            f"nothing comes back for {target.vip}:{target.port} from the host {where}, which answers for other "
            "services through its tunnel: it is not the way, but the host (its packet filter, its routes, the VIP on "
            "lo, lb-agent's table)",
            f"on {target.address}: `lb doctor --config AGENT.toml` says which",
        )
    return fault(
        "protocol_4",
        f"IP-in-IP (protocol 4) from {source} to {where} is dropped without a word: plain packets arrive, those "
        "in a tunnel "
        "do not",
        "allow protocol 4 from MUXes to hosts in every firewall and security group between: `nft list ruleset`, "
        "`iptables "
        f"-S`; on {target.address} `tcpdump -ni any ip proto 4` tells where they get lost, and `lb doctor --config "
        f"AGENT.toml` whether {source} is among its MUXes. If they arrive: allow answers with a VIP as source",
    )


def _too_small(path: Path, where: str) -> Finding:
    """Small ones pass, full ones do not."""
    passes = path.said_mtu or path.largest
    only = f"; up to {passes} bytes arrive" if passes else ""
    whose = f" ({path.said})" if path.said else ""
    lower = f"mtu = {passes}" if passes else "a smaller mtu"
    return fault(
        "mtu_path",
        f"packets of {path.mtu} bytes do not reach {where}{only}{whose}: connections open, and large transfers hang",
        f"raise the MTU of every link between to {path.mtu} (`ip link set dev INTERFACE mtu {path.mtu}`; "
        "`tracepath -n "
        f"{path.target.address}` shows where), or set {lower} in [mux] of every MUX and [agent] of every host",
        cause="mtu_small",
    )


def _too_small_back(path: Path, where: str) -> Finding:
    """Full ones arrive, and full answers do not come back."""
    passes = path.said_mtu or path.largest
    return fault(
        "mtu_path",
        f"packets of {path.mtu} bytes reach {where}, and answers of that size do not come back; up to {passes} bytes "
        "do: a link on the way from the host to this MUX is smaller, and clients behind it see transfers hang",
        f"raise its MTU to {path.mtu} (`ip link set dev INTERFACE mtu {path.mtu}`; on {path.target.address} `tracepath "
        f"-n` to this MUX shows where), or set mtu = {passes} in [agent] of every host",
        cause="mtu_small_back",
    )


def check_datagrams(found: Sequence[Datagram]) -> Iterator[Finding]:
    """Clients throw away what comes from another address than they asked; nothing is said of who did not answer."""
    wrong: dict[IPv4Address, list[WayTarget]] = {}
    for datagram in found:
        target = datagram.target
        if datagram.answered_by == target.vip:
            yield ok("path", f"{target.vip}:{target.port} answers through the tunnel to {target.address}, over UDP")
        elif datagram.answered_by is not None:
            wrong.setdefault(datagram.answered_by, []).append(target)
    for address, targets_ in wrong.items():
        first = targets_[0]
        yield fault(
            "udp_answer",
            f"{', '.join(target.name for target in targets_[:4])}: the server on {address} takes what comes for "
            f"{first.vip}:{first.port} and answers from {address}: clients throw that away",
            f"`port = {first.port}` in the backend and `lb apply`, so that packets are translated; or have it listen "
            f"on {first.vip} itself",
            cause="udp_answer_source",
            about=sorted(f"backend {target.name}" for target in targets_),
        )


def check_probes(rows: Sequence[Row]) -> Iterator[Finding]:
    """Where no packet of our own may be sent: what the daemon's own tunnel probes found last."""
    down: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        label, reason = f"{row.get('service')}/{row.get('name')}", str(row.get("reason"))
        if row.get("health") == "down":
            down.setdefault((str(row.get("address")), reason), []).append(label)
        elif row.get("health") == "up":
            yield ok("backend", f"{label}: {reason}")
    for (address, reason), labels in down.items():
        about = [name for label in labels for name in _about(label)]
        yield fault("backend", f"{few(labels)} at {address}: {reason}", _advice(reason, labels[0]), about=about)
    untold = [f"{row.get('service')}/{row.get('name')}" for row in rows if row.get("health") not in ("up", "down")]
    if untold:
        yield unknown(
            "path",
            f"whether packets reach {few(untold)} is not known: there is no TCP over IPv4 to be tried, and no probe "
            "through the "
            "tunnel",
            "give the service a probe with request and expect; see docs/health.md",
        )


def check_unprobed(rows: Sequence[Row]) -> Iterator[Finding]:
    """Probes that this machine cannot make, for a reason of its own."""
    reasons = {
        str(row["reason"]).removeprefix("not probed: ")
        for row in rows
        if row.get("health") == "unknown" and "rp_filter" in str(row.get("reason"))
    }
    for reason in sorted(reasons):
        setting = next((word for word in reason.split() if word.endswith(".rp_filter")), "net.ipv4.conf.all.rp_filter")
        yield warning(
            "probes_off", f"tunnel probes are off: {reason}", f"`sysctl -w {setting}=2`, then SIGHUP to lb-mux"
        )


def check_unreachable(status: Row) -> Iterator[Finding]:
    """Backends without a next hop."""
    found: Any = status.get("unreachable")
    for address, reason in sorted(found.items()) if isinstance(found, dict) else ():
        yield fault(
            "no_next_hop",
            f"no packet can leave for {address}: {reason}",
            f"`ip route get {address}` must name an interface, and `ip neigh show` a MAC; is the host up?",
        )


def _advice(reason: str, label: str) -> str:
    if "protocol unreachable" in reason:
        return "start lb-agent there: `systemctl start lb-agent`"
    if "timed out" in reason:
        return "run `lb doctor` as root: it finds out whether host, protocol 4 or agent is missing"
    return f"look at the process there; meanwhile `lb drain backend {label}`"
