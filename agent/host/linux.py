# SPDX-License-Identifier: Apache-2.0
"""The real host: netlink by pyroute2, settings below ``/proc/sys/net``, nftables by ``nft -f -``.

Used by :mod:`agent.agent`, always in a helper thread (pyroute2's plain calls and a running event loop exclude each
other), within a ``with`` block that owns the netlink socket. Knows nothing of services; see
:mod:`agent.host.interface`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import subprocess
from collections.abc import Callable, Collection, Iterator, Mapping
from ipaddress import IPv4Address, IPv4Network, ip_address, ip_network
from pathlib import Path
from typing import Any

from agent.host.conntrack import ConntrackEntry, ConntrackSocket, FlowTarget
from agent.host.interface import HostLink, Ingress, Loopback
from agent.rules import nftables_table as nat
from agent.rules import stray_packets as fence
from agent.rules.foreign_filters import Stranger
from agent.rules.stray_packets import Fence
from agent.rules.vips import LABEL, ROUTE_PROTOCOL
from lb.daemon.kernel import nftables
from lb.daemon.kernel.routes import RoutesOf, parse
from lb.daemon.kernel.rtnetlink import IPRoute, NetlinkError
from lb.daemon.kernel.watch import OwnMarks
from lb.errors import FeatureError, IoError, PrivilegeError, VipmuxError
from lb.model import Address, Network

#: Our place among an interface's ingress filters.
FILTER_NAME = "vipmux_decap"
FILTER_PRIORITY = 0x4C42  # "LB"
FILTER_HANDLE = 1

#: Of our local routes, so that one that the operator has for the same prefix is no obstacle, and stays.
LOCAL_METRIC = 0x4C42

#: A device that decapsulated packets come from needs some address for a loose reverse path filter to let them in.
DEVICE_ADDRESS = "169.254.76.66"

_CLSACT_INGRESS = 0xFFFFFFF2
_CLSACT_EGRESS = 0xFFFFFFF3
_ETH_P_ALL = 0x0003
_ARPHRD_HEADER = {1: 14, 772: 14, 65534: 0, 519: 0, 512: 0}  # Ethernet, loopback, none, raw IP, PPP
_TCA_BPF_ID = 11  # not among the attributes that pyroute2 knows
_LOOPBACK = 1
_RT_SCOPE_HOST = 254
_RT_TABLE_MAIN = 254
_RT_TABLE_LOCAL = 255
_RTN_UNICAST = 1
_RTN_LOCAL = 2
_RTN_BLACKHOLE = 6
RTPROT_KERNEL = 2
_IFF_UP = 1
_FAMILIES = (socket.AF_INET, socket.AF_INET6)
_NFT_SECONDS = 60.0
_SYSCTLS = Path("/proc/sys/net")


class LinuxHost:
    """This machine, or the network namespace that the process is in."""

    def __init__(self, own: OwnMarks | None = None) -> None:
        """``own`` hears by what changes of ours are known."""
        self._own = own if own is not None else OwnMarks()

    def __enter__(self) -> LinuxHost:
        self._opened: Any = None  # settings alone need no socket
        return self

    @property
    def _ip(self) -> Any:
        if self._opened is None:
            with _saying("open a netlink socket"):
                self._opened = IPRoute()
                list(self._opened.get_links(index=_LOOPBACK))  # it has its port with the first question
                self._own.ports |= {self._opened.asyncore.socket.getsockname()[0]} - {0}  # 0 is the kernel itself
        return self._opened

    def __exit__(self, *exception: object) -> None:
        if self._opened is not None:
            self._opened.close()

    # --- looking -------------------------------------------------------------------------------------------------

    def link(self, name: str) -> HostLink | None:
        with _saying(f"look at interface {name}"):
            try:
                found = list(self._ip.get_links(ifname=name))
            except NetlinkError as error:
                if error.code == errno.ENODEV:
                    return None
                raise
            if not found:
                return None
            index = found[0]["index"]
            addresses = frozenset(_address(message) for message in self._ip.get_addr(index=index))
            return HostLink(index, _ARPHRD_HEADER.get(found[0]["ifi_type"]), addresses)

    def loopback(self) -> Loopback:
        with _saying("look at the addresses of lo"):
            found = [
                (message.get_attr("IFA_LABEL"), _address(message)) for message in self._ip.get_addr(index=_LOOPBACK)
            ]
        ours: set[IPv4Address] = set()
        others: set[IPv4Address] = set()
        for label, address in found:
            if isinstance(address, IPv4Address):
                (ours if label == LABEL else others).add(address)
        return Loopback(
            frozenset(ours), frozenset(others), frozenset(ours - self._kernels_local()) if ours else frozenset()
        )

    def _kernels_local(self) -> set[IPv4Address]:
        """Addresses with the local route that the kernel makes for each."""
        routes = RoutesOf(RTPROT_KERNEL)
        try:
            return {
                route.network.network_address
                for route in parse(routes.dump())
                if route.table == _RT_TABLE_LOCAL and route.kind == _RTN_LOCAL
                if isinstance(route.network, IPv4Network) and route.network.prefixlen == 32
            }
        finally:
            routes.close()

    def local_routes(self) -> frozenset[Network]:
        with _saying("look at the local routes"):
            routes = [
                route
                for family in _FAMILIES
                for route in self._ip.get_routes(family=family, table=_RT_TABLE_LOCAL, proto=ROUTE_PROTOCOL)
            ]
        return frozenset(
            ip_network(f"{route.get_attr('RTA_DST')}/{route['dst_len']}")
            for route in routes
            if route["proto"] == ROUTE_PROTOCOL and route["type"] == _RTN_LOCAL
        )

    def route_interfaces(self) -> frozenset[str]:
        """Interfaces that IPv4 routes of the main table leave by."""
        with _saying("look at the routes"):
            indices = {
                index
                for route in self._ip.get_routes(family=2, table=_RT_TABLE_MAIN)
                if route["type"] == _RTN_UNICAST
                for index in _route_links(route)
            }
            names = {message["index"]: message.get_attr("IFLA_IFNAME") for message in self._ip.get_links()}
        return frozenset(names[index] for index in indices if index in names and index != _LOOPBACK)

    def sysctls(self, names: Collection[str]) -> Mapping[str, int]:
        found = {}
        for name in names:
            with contextlib.suppress(FileNotFoundError, ValueError):
                found[name] = int((_SYSCTLS / name).read_text())
        return found

    def ingress(self, interface: str) -> Ingress:
        link = self.link(interface)
        if link is None:
            return Ingress()
        with _saying(f"look at the filters of {interface}"):
            if not self._has_clsact(link.index):
                return Ingress()
            ours = Ingress(qdisc=True)
            others = any(True for _ in self._filters(link.index, _CLSACT_EGRESS))
            ahead: set[Stranger] = set()
            for message in self._filters(link.index, _CLSACT_INGRESS):
                if message["info"] >> 16 != FILTER_PRIORITY:
                    others = True
                    if message["info"] >> 16 < FILTER_PRIORITY:
                        ahead.add(_stranger(message))
                else:
                    ours = Ingress(qdisc=True, place_taken=True, program=_program(message) or ours.program)
        return Ingress(ours.qdisc, ours.place_taken, ours.program, others, tuple(sorted(ahead)))

    def rules(self) -> str | None:
        done = self._nft(["--stateless", "list", "table", "inet", nat.TABLE], None)
        if done.returncode == 0:
            return done.stdout
        said = (done.stderr.strip().splitlines() or ["it did not say why"])[0]
        if nftables.ABSENT in said or "not supported" in said:  # no such table, or no nftables in this kernel at all
            return None
        if "Operation not permitted" in said:
            raise PrivilegeError("nft may not list rules: needs CAP_NET_ADMIN; start lb-agent as root")
        raise IoError(f"nft cannot list the table inet {nat.TABLE}: {said}")

    def rules_generation(self) -> int | None:
        try:
            return nftables.generation()
        except IoError:
            return None

    def receives_on(self, name: str) -> bool:
        with _saying(f"look at the device {name}"):
            try:
                found = list(self._ip.get_links(ifname=name))
            except NetlinkError as error:
                if error.code == errno.ENODEV:
                    return False
                raise
            if not found or not found[0]["flags"] & _IFF_UP:
                return False
            addresses = {
                _address(message) for message in self._ip.get_addr(index=found[0]["index"], family=socket.AF_INET)
            }
        return ip_address(DEVICE_ADDRESS) in addresses

    def fence(self) -> Fence:
        with _saying("look at the routing rules"):
            rules = {
                (4 if family == socket.AF_INET else 6, rule.get_attr("FRA_IIFNAME"))
                for family in _FAMILIES
                for rule in self._rules_of(family)
                if (rule.get_attr("FRA_PROTOCOL"), rule.get_attr("FRA_TABLE")) == (ROUTE_PROTOCOL, fence.TABLE)
            }
            routes = [
                route
                for family in _FAMILIES
                for route in self._ip.get_routes(family=family, table=fence.TABLE)
                if route["proto"] == ROUTE_PROTOCOL and route["type"] == _RTN_BLACKHOLE
            ]
        networks = (ip_network(f"{route.get_attr('RTA_DST')}/{route['dst_len']}") for route in routes)
        return Fence(frozenset(rules), frozenset(networks))

    def _rules_of(self, family: int) -> list[Any]:
        """None where this kernel does not have the family (``ipv6.disable=1``)."""
        try:
            return list(self._ip.get_rules(family=family))
        except NetlinkError as error:
            if error.code == errno.EAFNOSUPPORT:
                return []
            raise

    def _has_clsact(self, index: int) -> bool:
        return any(qdisc.get_attr("TCA_KIND") == "clsact" for qdisc in self._ip.get_qdiscs(index=index))

    def _filters(self, index: int, parent: int) -> Iterator[Any]:
        """Real filters only: the kernel lists each classifier once more, without a handle."""
        return (message for message in self._ip.get_filters(index=index, parent=parent) if message["handle"])

    # --- changing ------------------------------------------------------------------------------------------------

    def set_sysctl(self, name: str, value: int) -> None:
        try:
            (_SYSCTLS / name).write_text(str(value))
        except PermissionError:
            raise PrivilegeError(f"cannot set net/{name}: needs CAP_NET_ADMIN; start lb-agent as root") from None
        except FileNotFoundError:
            return  # its interface is gone, and the setting with it
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise IoError(
                f"cannot set net/{name} to {value}: {reason}; is /proc/sys writable here? In a container, set it "
                "from outside"
            ) from None

    def run_rules(self, text: str) -> None:
        done = self._nft(["-f", "-"], text)
        if done.returncode == 0:
            return
        said = (done.stderr.strip().splitlines() or ["it did not say why"])[0]
        if "Operation not permitted" in said:
            raise PrivilegeError("nft may not change rules: needs CAP_NET_ADMIN; start lb-agent as root")
        if "No such file or directory" in said or "not supported" in said:
            raise FeatureError(
                f"this kernel lacks a part of nftables that table {nat.TABLE} needs ({said}): load the nf_tables, "
                "nft_ct and nft_nat modules, or use a kernel that has them"
            )
        raise IoError(f"nft refused table {nat.TABLE}: {said}")

    def add_vip(self, address: IPv4Address) -> None:
        with _saying(f"add {address} to lo"):
            self._ip.addr("add", index=_LOOPBACK, address=str(address), prefixlen=32, label=LABEL, scope=_RT_SCOPE_HOST)
            self._ip.link("set", index=_LOOPBACK, state="up")

    def remove_vip(self, address: IPv4Address) -> None:
        with _saying(f"remove {address} from lo"), _absent_is_fine():
            self._ip.addr("del", index=_LOOPBACK, address=str(address), prefixlen=32, label=LABEL)

    def add_route(self, prefix: Network) -> None:
        with _saying(f"add the local route for {prefix}"):
            self._ip.route("add", **_local_route(prefix), priority=LOCAL_METRIC)
            self._ip.link("set", index=_LOOPBACK, state="up")

    def remove_route(self, prefix: Network) -> None:
        with _saying(f"remove the local route for {prefix}"), _absent_is_fine():
            self._ip.route("del", **_local_route(prefix))

    def add_fence_rule(self, version: int, interface: str) -> None:
        with _saying(f"add the routing rule for {interface}"):
            self._ip.rule("add", **_fence_rule(version, interface))

    def remove_fence_rule(self, version: int, interface: str) -> None:
        with _saying(f"remove the routing rule for {interface}"), _absent_is_fine():
            self._ip.rule("del", **_fence_rule(version, interface))

    def add_fence_route(self, prefix: Network) -> None:
        with _saying(f"add the blackhole for {prefix}"):
            self._ip.route("add", **_fence_route(prefix))

    def remove_fence_route(self, prefix: Network) -> None:
        with _saying(f"remove the blackhole for {prefix}"), _absent_is_fine():
            self._ip.route("del", **_fence_route(prefix))

    def forget_flows(self, places: Collection[FlowTarget], stale: Callable[[ConntrackEntry], bool]) -> int:
        with ConntrackSocket() as conntrack:
            return conntrack.forget([flow for flow in conntrack.flows(places) if stale(flow)])

    def add_qdisc(self, interface: str) -> None:
        with _saying(f"add a clsact qdisc to {interface}"):
            self._ip.tc("add", "clsact", self._index(interface))

    def remove_qdisc(self, interface: str) -> None:
        link = self.link(interface)
        if link is not None:
            with _saying(f"remove the clsact qdisc of {interface}"), _absent_is_fine():
                self._ip.tc("del", "clsact", link.index)

    def attach(self, interface: str, program_fd: int) -> None:
        """In the place of our earlier program, with no packet in between that meets neither."""
        with _saying(f"attach a BPF filter to {interface}"):
            self._ip.tc(
                "replace-filter",
                "bpf",
                self._index(interface),
                FILTER_HANDLE,
                fd=program_fd,
                name=FILTER_NAME,
                parent=_CLSACT_INGRESS,
                prio=FILTER_PRIORITY,
                protocol=_ETH_P_ALL,
                direct_action=True,
            )

    def detach(self, interface: str) -> None:
        """Whatever stands in our place."""
        link = self.link(interface)
        if link is None:
            return
        with _saying(f"remove the BPF filter of {interface}"), _absent_is_fine():
            places = {
                message["info"] & 0xFFFF
                for message in self._ip.get_filters(index=link.index, parent=_CLSACT_INGRESS)
                if message["info"] >> 16 == FILTER_PRIORITY
            }
            for protocol in places:  # without a handle: all filters of the priority
                self._ip.tc(
                    "del-filter", index=link.index, info=FILTER_PRIORITY << 16 | protocol, parent=_CLSACT_INGRESS
                )

    def add_ipip(self, name: str, local: IPv4Address) -> None:
        with _saying(f"create the ipip device {name}"):
            try:
                self._ip.link("add", ifname=name, kind="ipip", ipip_local=str(local))
            except NetlinkError as error:
                if error.code == errno.EOPNOTSUPP:
                    raise FeatureError(
                        "this kernel has no ipip module: load it (modprobe ipip), or set decap to auto, bpf or tun"
                    ) from None
                if error.code != errno.EEXIST:
                    raise

    def remove_link(self, name: str) -> None:
        link = self.link(name)
        if link is not None:
            with _saying(f"remove the device {name}"), _absent_is_fine():
                self._ip.link("del", index=link.index)

    def receive_on(self, name: str, *, ipv6: bool = False) -> None:
        with _saying(f"bring up the device {name}"):
            index = self._index(name)
            self.set_sysctl(f"ipv4/conf/{name}/rp_filter", 2)
            with contextlib.suppress(FileNotFoundError):
                (_SYSCTLS / f"ipv6/conf/{name}/addr_gen_mode").write_text("1")  # no address of its own
                (_SYSCTLS / f"ipv6/conf/{name}/disable_ipv6").write_text("0" if ipv6 else "1")
            self._ip.addr("replace", index=index, address=DEVICE_ADDRESS, prefixlen=32, scope=_RT_SCOPE_HOST)
            self._ip.link("set", index=index, state="up")

    def _nft(self, arguments: list[str], text: str | None) -> subprocess.CompletedProcess[str]:
        pipe = subprocess.PIPE
        try:
            with subprocess.Popen(
                ["nft", *arguments], stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=nftables.environment()
            ) as process:
                self._own.processes.add(process.pid)
                try:
                    output, errors = process.communicate(text or "", timeout=_NFT_SECONDS)
                except subprocess.TimeoutExpired:
                    process.kill()
                    raise IoError(f"nft did not answer within {_NFT_SECONDS:g} s") from None
        except FileNotFoundError:
            raise FeatureError("nft is not installed: install the package nftables") from None
        except OSError as error:
            raise nftables.not_started(error) from None
        return subprocess.CompletedProcess(["nft", *arguments], process.returncode, output, errors)

    def _index(self, name: str) -> int:
        link = self.link(name)
        if link is None:
            raise IoError(f"interface {name} does not exist")
        return link.index


@contextlib.contextmanager
def _saying(what: str) -> Iterator[None]:
    """Turns what the kernel refuses into a sentence."""
    try:
        yield
    except VipmuxError:
        raise
    except PermissionError:
        raise PrivilegeError(f"cannot {what}: not permitted; start lb-agent as root") from None
    except NetlinkError as error:
        if error.code == errno.EPERM:
            raise PrivilegeError(f"cannot {what}: needs CAP_NET_ADMIN; start lb-agent as root") from None
        raise IoError(f"cannot {what}: {os.strerror(error.code).lower()}") from None
    except OSError as error:
        raise IoError(f"cannot {what}: {(error.strerror or str(error)).lower()}") from None


@contextlib.contextmanager
def _absent_is_fine() -> Iterator[None]:
    try:
        yield
    except NetlinkError as error:
        if error.code not in (errno.ENOENT, errno.ESRCH, errno.EADDRNOTAVAIL, errno.ENODEV, errno.EINVAL):
            raise


def _address(message: Any) -> Address:
    return ip_address(message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS"))


def _route_links(route: Any) -> Iterator[int]:
    single = route.get_attr("RTA_OIF")
    if single is not None:
        yield single
    for hop in route.get_attr("RTA_MULTIPATH") or ():
        yield hop["oif"]


def _local_route(prefix: Network) -> dict[str, Any]:
    return {
        "dst": str(prefix),
        "oif": _LOOPBACK,
        "type": "local",
        "table": _RT_TABLE_LOCAL,
        "proto": ROUTE_PROTOCOL,
        **({"scope": _RT_SCOPE_HOST} if prefix.version == 4 else {}),
    }


def _fence_rule(version: int, interface: str) -> dict[str, Any]:
    return {
        "family": socket.AF_INET if version == 4 else socket.AF_INET6,
        "priority": fence.PRIORITY,
        "iifname": interface,
        "table": fence.TABLE,
        "protocol": ROUTE_PROTOCOL,
        "action": "to_tbl",
    }


def _fence_route(prefix: Network) -> dict[str, Any]:
    return {
        "family": socket.AF_INET if prefix.version == 4 else socket.AF_INET6,
        "dst": str(prefix),
        "type": "blackhole",
        "table": fence.TABLE,
        "proto": ROUTE_PROTOCOL,
    }


def _stranger(message: Any) -> Stranger:
    kind, options = str(message.get_attr("TCA_KIND")), message.get_attr("TCA_OPTIONS")
    name = options.get_attr("TCA_BPF_NAME") if kind == "bpf" and options is not None else None
    return Stranger(message["info"] >> 16, kind, str(name or ""))


def _program(message: Any) -> int | None:
    """The BPF program of a filter that has our name."""
    options = message.get_attr("TCA_OPTIONS")
    if message.get_attr("TCA_KIND") != "bpf" or options is None:
        return None
    if options.get_attr("TCA_BPF_NAME") != FILTER_NAME:
        return None
    for _, value in options["attrs"]:
        if isinstance(value, dict) and value.get("header", {}).get("type") == _TCA_BPF_ID:
            number: int = struct.unpack_from("=I", value.data, value.offset + 4)[0]  # type: ignore[attr-defined]
            return number
    return None
