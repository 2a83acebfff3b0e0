# SPDX-License-Identifier: Apache-2.0
"""A host in memory, for unit tests: does what :class:`agent.host.linux.LinuxHost` does, to a few dictionaries.

It is strict where the kernel is: adding what is there already is an error. ``calls`` lists every change in order.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from ipaddress import IPv4Address

from agent.host.conntrack import ConntrackEntry, FlowTarget, holds
from agent.host.interface import HostLink, Ingress, Loopback
from agent.rules.stray_packets import Fence
from lb.errors import FeatureError, IoError
from lb.model import Network


class FakeHost:
    """State is public: tests set it up and look at it."""

    def __init__(self) -> None:
        self.links: dict[str, HostLink] = {"eth0": HostLink(2, 14, frozenset({IPv4Address("10.0.3.21")}))}
        self.addresses: dict[IPv4Address, bool] = {IPv4Address("127.0.0.1"): False}  #: on lo; whether it is ours
        self.routes: set[Network] = set()
        self.leaving_by: set[str] = {"eth0"}
        self.settings: dict[str, int] = {
            "ipv4/conf/all/arp_ignore": 0,
            "ipv4/conf/all/arp_announce": 0,
            "ipv4/conf/all/rp_filter": 0,
            "ipv4/conf/eth0/rp_filter": 0,
            "netfilter/nf_conntrack_tcp_be_liberal": 0,
        }
        self.filters: dict[str, Ingress] = {}
        self.table: str | None = None
        self.generation = 1
        self.devices: set[str] = set()
        self.unrouted: set[IPv4Address] = set()
        self.fence_rules: set[tuple[int, str]] = set()
        self.fence_routes: set[Network] = set()
        self.flows: list[ConntrackEntry] = []
        self.nft_installed = True
        self.calls: list[str] = []

    def __enter__(self) -> FakeHost:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def link(self, name: str) -> HostLink | None:
        return self.links.get(name)

    def loopback(self) -> Loopback:
        ours = frozenset(address for address, mine in self.addresses.items() if mine)
        return Loopback(ours, frozenset(self.addresses) - ours, frozenset(self.unrouted))

    def local_routes(self) -> frozenset[Network]:
        return frozenset(self.routes)

    def route_interfaces(self) -> frozenset[str]:
        return frozenset(self.leaving_by)

    def sysctls(self, names: Collection[str]) -> Mapping[str, int]:
        return {name: self.settings[name] for name in names if name in self.settings}

    def ingress(self, interface: str) -> Ingress:
        return self.filters.get(interface, Ingress())

    def rules(self) -> str | None:
        if not self.nft_installed:
            raise FeatureError("nft is not installed: install the package nftables")
        return self.table

    def rules_generation(self) -> int | None:
        return self.generation

    def receives_on(self, name: str) -> bool:
        return name in self.devices

    def fence(self) -> Fence:
        return Fence(frozenset(self.fence_rules), frozenset(self.fence_routes))

    def add_fence_rule(self, version: int, interface: str) -> None:
        self.calls.append(f"rule {version} {interface}")
        self.fence_rules.add((version, interface))

    def remove_fence_rule(self, version: int, interface: str) -> None:
        self.calls.append(f"no rule {version} {interface}")
        self.fence_rules.discard((version, interface))

    def add_fence_route(self, prefix: Network) -> None:
        self.calls.append(f"blackhole {prefix}")
        if prefix in self.fence_routes:
            raise IoError(f"cannot add the blackhole for {prefix}: file exists")
        self.fence_routes.add(prefix)

    def remove_fence_route(self, prefix: Network) -> None:
        self.calls.append(f"no blackhole {prefix}")
        self.fence_routes.discard(prefix)

    def forget_flows(self, places: Collection[FlowTarget], stale: Callable[[ConntrackEntry], bool]) -> int:
        gone = [flow for flow in self.flows if any(holds(place, flow) for place in places) and stale(flow)]
        self.flows = [flow for flow in self.flows if flow not in gone]
        self.calls += [f"forget {len(gone)}"] * bool(gone)
        return len(gone)

    def set_sysctl(self, name: str, value: int) -> None:
        self.calls.append(f"sysctl {name}={value}")
        self.settings[name] = value

    def run_rules(self, text: str) -> None:
        self.calls.append("rules")
        self.table = text if "chain" in text else None
        self.generation += 1

    def add_vip(self, address: IPv4Address) -> None:
        self.calls.append(f"add {address}")
        if address in self.addresses:
            raise IoError(f"cannot add {address} to lo: file exists")
        self.addresses[address] = True

    def remove_vip(self, address: IPv4Address) -> None:
        self.calls.append(f"remove {address}")
        self.addresses.pop(address, None)
        self.unrouted.discard(address)

    def add_route(self, prefix: Network) -> None:
        self.calls.append(f"add {prefix}")
        if prefix in self.routes:
            raise IoError(f"cannot add the local route for {prefix}: file exists")
        self.routes.add(prefix)

    def remove_route(self, prefix: Network) -> None:
        self.calls.append(f"remove {prefix}")
        self.routes.discard(prefix)

    def add_qdisc(self, interface: str) -> None:
        self.calls.append(f"qdisc {interface}")
        self.filters[interface] = Ingress(qdisc=True)

    def remove_qdisc(self, interface: str) -> None:
        self.calls.append(f"no qdisc {interface}")
        self.filters.pop(interface, None)

    def attach(self, interface: str, program_fd: int) -> None:
        self.calls.append(f"attach {interface}")
        self.filters[interface] = replace(self.ingress(interface), qdisc=True, place_taken=True, program=program_fd)

    def detach(self, interface: str) -> None:
        self.calls.append(f"detach {interface}")
        self.filters[interface] = Ingress(qdisc=self.ingress(interface).qdisc)

    def add_ipip(self, name: str, local: IPv4Address) -> None:
        self.calls.append(f"link {name} {local}")
        self.links[name] = HostLink(9, 0, frozenset())

    def remove_link(self, name: str) -> None:
        self.calls.append(f"no link {name}")
        self.links.pop(name, None)
        self.devices.discard(name)

    def receive_on(self, name: str, *, ipv6: bool = False) -> None:
        self.calls.append(f"up {name}")
        self.devices.add(name)
