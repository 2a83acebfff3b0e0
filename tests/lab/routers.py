# SPDX-License-Identifier: Apache-2.0
"""Real routers for the lab: BIRD or FRR in a namespace, with the kernel's routes watched as they change.

Called by :mod:`tests.lab.topology` and the tests of BGP. A :class:`Router` owns its daemons; a :class:`RouteWatch`
owns one ``ip monitor``. What counts as announced or withdrawn is the kernel's routing table, with the moment at which
the kernel said so. :class:`Announcements` is what stands where static labs have their guardian.
"""

from __future__ import annotations

import contextlib
import enum
import json
import os
import pwd
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.lab import netns
from tests.lab.guardian import Event
from tests.lab.netns import LabError
from tests.lab.process import Process, in_namespace, wait_for

ROUTER_ASN = 65000
MUX_ASN = 65001
HOLD = 3
#: What routers take from MUXes: prefix, and the lengths allowed in it.
ACCEPTED4 = (("203.0.113.0/24", 24, 32), ("198.51.100.0/24", 24, 32), ("198.18.0.0/15", 24, 32))
ACCEPTED6 = (("2001:db8::/32", 64, 128),)
FRR_DAEMONS = Path("/usr/lib/frr")
FRR_RUN = Path("/var/run/frr")


class Routers(enum.Enum):
    """How VIPs get to the router of a lab."""

    STATIC = "static"  #: the guardian sets routes: no BGP anywhere
    BIRD = "bird"
    FRR = "frr"


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A MUX as its router is configured for it."""

    name: str
    address: str
    asn: int = MUX_ASN
    password: str | None = None
    gtsm: bool = False
    bfd: bool = False  #: BIRD only


# --- routers -----------------------------------------------------------------------------------------------------


@dataclass
class Router:
    """One BGP router; subclasses know how to run it."""

    namespace: str
    directory: Path
    address: str
    address6: str | None = None
    asn: int = ROUTER_ASN
    processes: list[Process] = field(default_factory=list)

    def start(self, neighbours: Sequence[Neighbour]) -> None:
        """Returns when it listens."""
        raise NotImplementedError

    def stop(self) -> None:
        for process in reversed(self.processes):
            process.kill()
        self.processes.clear()

    def sessions(self) -> dict[str, bool]:
        """By address of the neighbour: whether the session is established."""
        raise NotImplementedError

    def _run(self, name: str, argv: Sequence[str | Path]) -> Process:
        process = Process(f"{name} in {self.namespace}", self.namespace, argv, self.directory / f"{name}.log")
        self.processes.append(process)
        return process

    def _ask(self, argv: Sequence[str | Path]) -> str:
        done = subprocess.run(
            in_namespace(self.namespace, argv), capture_output=True, text=True, check=False, timeout=10
        )
        return done.stdout


class Bird(Router):
    """BIRD 2."""

    def start(self, neighbours: Sequence[Neighbour]) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        config = self.directory / "bird.conf"
        config.write_text(self.config(neighbours))
        control = self.directory / "bird.ctl"
        control.unlink(missing_ok=True)
        process = self._run("bird", ["bird", "-f", "-c", config, "-s", control, "-P", self.directory / "bird.pid"])
        process.wait_output("<INFO> Started")

    def config(self, neighbours: Sequence[Neighbour]) -> str:
        lines = [
            "log stderr all;",
            f"router id {self.address};",
            "protocol device { scan time 10; }",
            "protocol direct { ipv4; ipv6; }",
        ]
        for version, accepted in ((4, ACCEPTED4), (6, ACCEPTED6)):
            prefixes = ", ".join(f"{prefix}{{{low},{high}}}" for prefix, low, high in accepted)
            lines += [
                f"protocol kernel k{version} {{ ipv{version} {{ export where source = RTS_BGP; import none; }};"
                " merge paths on limit 16; }",
                f"filter vips{version} {{ if ! (net ~ [ {prefixes} ]) then reject;",
                # RFC 8326 for receivers: BIRD does not do it by itself.
                "  if (65535, 0) ~ bgp_community then bgp_local_pref = 0;",
                "  accept; }",
            ]
        if any(neighbour.bfd for neighbour in neighbours):
            lines.append('protocol bfd { interface "*" { interval 80 ms; multiplier 3; }; }')
        for number, neighbour in enumerate(neighbours):
            lines += self._neighbour(number, neighbour)
        return "\n".join(lines) + "\n"

    def _neighbour(self, number: int, neighbour: Neighbour) -> list[str]:
        own = self.address6 if ":" in neighbour.address else self.address
        return [
            f"protocol bgp n{number} {{",
            f"  local {own} as {self.asn};",
            f"  neighbor {neighbour.address} as {neighbour.asn};",
            f"  passive on; hold time {HOLD}; keepalive time 1;",
            "  connect delay time 1; error wait time 1,1;",  # it would wait for minutes
            *([f'  password "{neighbour.password}";'] if neighbour.password else []),
            *(["  ttl security on;"] if neighbour.gtsm else []),
            *(["  bfd on;"] if neighbour.bfd else []),
            "  ipv4 { import filter vips4; export none; };",
            "  ipv6 { import filter vips6; export none; };",
            "}",
        ]

    def sessions(self) -> dict[str, bool]:
        text = self._ask(["birdc", "-s", self.directory / "bird.ctl", "show", "protocols", "all"])
        found: dict[str, bool] = {}
        for block in re.split(r"\n(?=\S)", text):
            address = re.search(r"Neighbor address:\s+(\S+)", block)
            if address:
                found[address[1]] = "BGP state:          Established" in block
        return found

    def path(self, vip: str) -> str:
        """All that BIRD knows of a route."""
        return self._ask(["birdc", "-s", self.directory / "bird.ctl", "show", "route", "all", vip])


class Frr(Router):
    """FRR: zebra and bgpd."""

    def start(self, neighbours: Sequence[Neighbour]) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self.directory.chmod(0o755)
        self._own(self.run_directory)
        zebra, bgpd = self.directory / "zebra.conf", self.directory / "bgpd.conf"
        zebra.write_text("hostname lab\nlog stdout informational\nzebra nexthop-group keep 1\n")
        bgpd.write_text(self.config(neighbours))
        for path in (zebra, bgpd):
            shutil.chown(path, "frr", "frr")
        self._daemon("zebra", zebra, "-s", "9000000")
        wait_for((self.run_directory / "zserv.api").exists, "zebra")
        self._daemon("bgpd", bgpd)
        wait_for((self.run_directory / "bgpd.vty").exists, "bgpd")
        wait_for(lambda: self.sessions().keys() >= {n.address for n in neighbours}, "bgpd to know its neighbours")

    @property
    def run_directory(self) -> Path:
        return FRR_RUN / self.namespace

    @staticmethod
    def _own(directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        account = pwd.getpwnam("frr")
        for path in (directory.parent, directory):
            os.chown(path, account.pw_uid, account.pw_gid)

    def _daemon(self, name: str, config: Path, *arguments: str) -> None:
        pid = self.run_directory / f"{name}.pid"
        argv: list[str | Path] = [
            FRR_DAEMONS / name,
            "-N",
            self.namespace,
            "-f",
            config,
            "-i",
            pid,
            "-P",
            "0",
            *arguments,
        ]
        self._run(name, argv)

    def stop(self) -> None:
        super().stop()
        shutil.rmtree(self.run_directory, ignore_errors=True)

    def config(self, neighbours: Sequence[Neighbour]) -> str:
        lines = ["hostname lab", "log stdout informational", "bgp route-map delay-timer 0"]
        for version, accepted in (("ip", ACCEPTED4), ("ipv6", ACCEPTED6)):
            for number, (prefix, low, high) in enumerate(accepted, 1):
                longer = f" ge {low}" if low > int(prefix.rpartition("/")[2]) else ""
                lines.append(f"{version} prefix-list VIPS{version} seq {number} permit {prefix}{longer} le {high}")
        lines += [
            f"router bgp {self.asn}",
            f" bgp router-id {self.address}",
            " no bgp default ipv4-unicast",
            " no bgp ebgp-requires-policy",
            " no bgp network import-check",
            " bgp bestpath as-path multipath-relax",
            f" timers bgp 1 {HOLD}",
        ]
        for neighbour in neighbours:
            address = neighbour.address
            lines += [
                f" neighbor {address} remote-as {neighbour.asn}",
                f" neighbor {address} passive",
                f" neighbor {address} advertisement-interval 0",
                *([f" neighbor {address} password {neighbour.password}"] if neighbour.password else []),
                *([f" neighbor {address} ttl-security hops 1"] if neighbour.gtsm else []),
            ]
        for family, version in (("ipv4", "ip"), ("ipv6", "ipv6")):
            lines.append(f" address-family {family} unicast")
            for neighbour in neighbours:
                lines.append(f"  neighbor {neighbour.address} activate")
                lines.append(f"  neighbor {neighbour.address} prefix-list VIPS{version} in")
            lines += ["  maximum-paths 16", " exit-address-family"]
        return "\n".join(lines) + "\n"

    def sessions(self) -> dict[str, bool]:
        with contextlib.suppress(ValueError):
            peers = json.loads(self.vtysh("show bgp neighbors json") or "{}")
            return {name: peer.get("bgpState") == "Established" for name, peer in peers.items() if "bgpState" in peer}
        return {}

    def vtysh(self, command: str) -> str:
        return self._ask(["vtysh", "-N", self.namespace, "-c", command])

    def path(self, vip: str) -> str:
        """All that bgpd knows of a route."""
        return self.vtysh(f"show bgp {'ipv6' if ':' in vip else 'ipv4'} unicast {vip}")


KINDS: dict[Routers, type[Bird] | type[Frr]] = {Routers.BIRD: Bird, Routers.FRR: Frr}


def missing(routers: Routers) -> str | None:
    """What is not installed, in words."""
    if routers is Routers.BIRD and not shutil.which("bird", path=os.environ.get("PATH", "") + ":/usr/sbin"):
        return "install bird2"
    if routers is Routers.FRR and not (FRR_DAEMONS / "bgpd").exists():
        return "install frr"
    return None


# --- the kernel's routes -----------------------------------------------------------------------------------------

Hops = frozenset[str]


@dataclass(frozen=True, slots=True)
class Change:
    """A route as it was from this moment (monotonic seconds) on."""

    at: float
    vip: str
    hops: Hops


class RouteWatch:
    """The routes by BGP in one namespace, and when each changed."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._guard = threading.Lock()
        self._routes: dict[str, Hops] = {}
        self.changes: list[Change] = []
        self._monitor = subprocess.Popen(
            in_namespace(namespace, ["ip", "-o", "monitor", "route"]),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._thread = threading.Thread(target=self._follow, name="route watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._monitor.kill()
        self._monitor.wait()
        self._thread.join()
        if self._monitor.stdout is not None:
            self._monitor.stdout.close()

    def hops(self, vip: str) -> Hops:
        """The next hops of a VIP, by the kernel's table at this moment."""
        version = "-6" if ":" in vip else "-4"
        rows = json.loads(netns.ip("-n", self._namespace, version, "-j", "route", "show", vip) or "[]")
        found: set[str] = set()
        for row in rows:
            found |= {hop["gateway"] for hop in row.get("nexthops", [row]) if "gateway" in hop}
        return frozenset(found)

    def settled(self, vip: str, hops: Hops) -> bool:
        """Whether these are its hops, and what led there was heard: no change of before is taken for a later one."""
        with self._guard:
            heard = self._routes.get(vip, frozenset())
        return self.hops(vip) == hops and (heard == hops or ":" in vip)  # of IPv6 routes hops are told one by one

    def count(self) -> int:
        """How many routes BGP has brought, by the kernel's table."""
        total = 0
        for version in ("-4", "-6"):
            rows = json.loads(netns.ip("-n", self._namespace, version, "-j", "route", "show") or "[]")
            total += sum(1 for row in rows if row.get("protocol") in ("bird", "bgp"))
        return total

    def changed(self, vip: str, question: Callable[[Hops], bool], since: float) -> float | None:
        """The first moment after ``since`` at which the VIP's hops were as asked; None if they have not been."""
        with self._guard:
            return next((c.at for c in self.changes if c.vip == vip and c.at >= since and question(c.hops)), None)

    def _follow(self) -> None:
        assert self._monitor.stdout is not None
        for line in self._monitor.stdout:
            now = time.monotonic()
            deleted = line.startswith("Deleted ")
            words = line.removeprefix("Deleted ").split()
            if not words or words[0] in ("local", "broadcast", "multicast", "unreachable", "anycast"):
                continue
            vip = words[0].removesuffix("/32").removesuffix("/128")
            gone = frozenset(re.findall(r"via (?:inet6 )?(\S+)", line))
            with self._guard:
                before = self._routes.get(vip, frozenset())
                # IPv6 multipath routes lose their hops one by one; IPv4's are replaced whole.
                hops = before - gone if deleted and ":" in vip and gone < before else frozenset() if deleted else gone
                self._routes[vip] = hops
                self.changes.append(Change(now, vip, hops))


class Announcements:
    """The place of the guardian in labs with BGP: MUXes announce and withdraw by themselves, this only watches."""

    def __init__(self, watch: RouteWatch) -> None:
        self.events: list[Event] = []
        self._watch = watch
        self._vips: tuple[str, ...] = ()
        self._addresses: dict[str, str] = {}

    def serve(self, vips: tuple[str, ...]) -> None:
        """Which VIPs are waited for and looked at."""
        self._vips = tuple(vip.removesuffix("/32").removesuffix("/128") for vip in vips)

    def announce(self, mux: str, address: str, pid: int) -> None:
        """Waits until the MUX's routes are there."""
        del pid
        self._addresses[mux] = address
        for vip in self._vips:
            wait_for(lambda vip=vip: address in self._watch.hops(vip), f"the route to {vip} by {mux}", 15)  # type: ignore[misc]
        self.events.append(Event(time.monotonic(), mux, "announced", "its routes are in the kernel"))

    def withdraw(self, mux: str, why: str = "a planned stop") -> None:
        """Nothing: a MUX that stops withdraws first."""

    def blind(self) -> contextlib.AbstractContextManager[None]:
        """Cannot be had here: a dead process closes its connections, and routers notice."""
        raise LabError("deaths cannot go unnoticed in a lab with BGP; use a static one")

    def withdrawn_at(self, mux: str, since: float) -> float | None:
        """When the last VIP's route had lost this MUX."""
        return withdrawn_at(self._watch, self._vips, self._addresses[mux], since)

    def close(self) -> None:
        self._watch.close()


def withdrawn_at(watch: RouteWatch, vips: Collection[str], address: str, since: float) -> float | None:
    """When the last of these VIPs had lost the hop; None while one still has it."""
    moments = [watch.changed(vip, lambda hops: address not in hops, since) for vip in vips]
    return max((at for at in moments if at is not None), default=None) if None not in moments else None
