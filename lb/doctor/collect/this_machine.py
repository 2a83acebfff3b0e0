# SPDX-License-Identifier: Apache-2.0
"""Looks at this machine: /proc, ioctl, netlink, nft, files, the daemon's socket. Reads only, and judges nothing.

Plain calls, no event loop (pyroute2's plain calls and a running loop exclude each other). What may not be seen comes
back as None or with an error in words; only a mistake of ours raises.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import shutil
import socket
import stat
import struct
import subprocess
import time
from collections.abc import Iterable, Iterator
from email.utils import parsedate_to_datetime
from ipaddress import IPv4Address, ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lb.config import toml
from lb.daemon.control_socket import request
from lb.daemon.process.privileges import effective
from lb.doctor.model.facts import (
    CertificateFile,
    Clock,
    DaemonSeen,
    Disk,
    Interface,
    Kernel,
    Network,
    NftTable,
    Private,
    Rights,
    Role,
    Row,
    Twin,
)
from lb.errors import ConfigError, ControlError
from lb.model import Address

#: Until a manager that does not answer is given up, seconds.
MANAGER_TIMEOUT = 3.0
NFT_TIMEOUT = 10.0
#: Of a state directory so many files are looked at.
PRIVATE_MAX = 200
#: Tables of ours begin with this.
TABLE_PREFIX = "vipmux_"
#: Settings that matter, by the name of the interface they may be of.
SETTINGS = ("rp_filter", "arp_ignore", "arp_announce")

_SYSCTLS = Path("/proc/sys/net")
_SIOCGIFFLAGS, _SIOCGIFMTU, _SIOCETHTOOL = 0x8913, 0x8921, 0x8946
_ETHTOOL_GFLAGS, _FLAG_LRO = 0x25, 1 << 15
_IFF_UP, _IFF_RUNNING = 0x1, 0x40
_LOOPBACK = 1
_RT_TABLE_MAIN, _RT_TABLE_LOCAL = 254, 255
_STA_UNSYNC = 0x40


# --- the machine -----------------------------------------------------------------------------------------------------


def rights() -> Rights:
    return Rights(os.geteuid() == 0, effective())


def kernel() -> Kernel:
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC))
        tun = None
    except OSError as error:
        tun = _reason(error)
    path = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"
    return Kernel(os.uname().release, shutil.which("nft", path=path) is not None, tun)


def disk(directory: str) -> Disk:
    """The filesystem of the directory, or of where it will be made."""
    path = Path(directory)
    while not path.exists() and path != path.parent:
        path = path.parent
    try:
        found = os.statvfs(path)
    except OSError as error:
        return Disk(directory, error=_reason(error))
    return Disk(
        directory,
        found.f_bavail * found.f_frsize,
        found.f_blocks * found.f_frsize,
        found.f_favail,
        found.f_files,
        bool(found.f_flag & os.ST_RDONLY),
    )


def private(path: Path) -> Private | None:
    """A file or directory as it lies there, no link followed; None: it is not there, or may not be seen."""
    try:
        found = path.lstat()
        link = str(path.readlink()) if path.is_symlink() else None
    except OSError:
        return None
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode) or link is not None):
        return None  # sockets have rights of their own
    return Private(str(path), found.st_uid, found.st_mode & 0o7777, link)


def private_in(directory: Path) -> list[Private]:
    """A state directory and what lies in it, two levels deep."""
    paths = [directory]
    try:
        for entry in sorted(directory.iterdir()):
            paths += [entry, *(sorted(entry.iterdir()) if entry.is_dir() and not entry.is_symlink() else ())]
    except OSError:
        pass  # what is seen is told
    return [found for path in paths[:PRIVATE_MAX] if (found := private(path)) is not None]


def user_of(pid: int | None) -> int:
    """Whom a process runs as; of none, whoever asks."""
    try:
        return Path(f"/proc/{pid}").stat().st_uid if pid else os.geteuid()
    except OSError:
        return os.geteuid()


def certificate(file: Path) -> CertificateFile:
    """The first certificate in a PEM file."""
    from cryptography import x509  # noqa: PLC0415  slow to import
    from cryptography.x509.oid import NameOID  # noqa: PLC0415

    try:
        data = file.read_bytes()
    except FileNotFoundError:
        return CertificateFile(str(file), missing=True)
    except OSError as error:
        return CertificateFile(str(file), error=_reason(error))
    try:
        found = x509.load_pem_x509_certificate(data)
        names = found.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    except ValueError:
        return CertificateFile(str(file), error="is damaged")
    owner = str(names[0].value) if names else None
    return CertificateFile(
        str(file), owner, found.not_valid_before_utc.timestamp(), found.not_valid_after_utc.timestamp()
    )


def clock(manager: str | None) -> Clock:
    """Compared with the Date that the manager answers with. It is public, so its certificate is not looked at: one that
    a wrong clock refuses must not keep that clock from being found."""
    synchronised = _synchronised()
    if manager is None:
        return Clock(time.time(), synchronised)
    try:
        ahead = _ahead_of(manager)
    except (OSError, ValueError) as error:
        return Clock(time.time(), synchronised, None, manager, _reason(error))
    return Clock(time.time(), synchronised, ahead, manager)


def _ahead_of(manager: str) -> float:
    from http.client import HTTPException, HTTPSConnection  # noqa: PLC0415  20 ms

    from lb.node.identity import unverified_context  # noqa: PLC0415

    parts = urlsplit(manager)
    connection = HTTPSConnection(
        parts.hostname or "", parts.port or 9740, timeout=MANAGER_TIMEOUT, context=unverified_context()
    )
    try:
        connection.request("GET", "/v1/ca")
        date = connection.getresponse().getheader("Date")
        now = time.time()
    except HTTPException as error:
        raise ValueError(f"it answers with what is not HTTP ({type(error).__name__})") from None
    finally:
        connection.close()
    if date is None:
        raise ValueError("its answer has no Date")
    ahead = now - (parsedate_to_datetime(date).timestamp() + 0.5)  # whole seconds, cut off
    return 0.0 if abs(ahead) <= 1.0 else ahead


def _synchronised() -> bool | None:
    """adjtimex(2), which anybody may ask."""
    timex = ctypes.create_string_buffer(256)
    if ctypes.CDLL(None, use_errno=True).adjtimex(timex) < 0:
        return None
    status: int = struct.unpack_from("@i", timex, struct.calcsize("@Illll"))[0]  # after modes and four longs
    return not status & _STA_UNSYNC


# --- the daemon ------------------------------------------------------------------------------------------------------


def daemon(role: Role, state_dir: str) -> DaemonSeen:
    """Asks it for all that it says of itself."""
    path = Path(state_dir) / f"{role.value}.sock"
    try:
        pid = _listener_of(path)
    except PermissionError:
        return DaemonSeen(str(path), answers=False, error=f"{path}: permission denied", may_ask=False)
    except OSError as error:
        known = {errno.ENOENT: "is not there", errno.ECONNREFUSED: "nobody listens"}
        why = known.get(error.errno or 0, _reason(error))
        return DaemonSeen(str(path), answers=False, error=f"{path}: {why}")
    capabilities = _capabilities(pid)
    rows: dict[str, list[Row]] = {}
    try:
        for what in ("status", "services", "backends", *(("peers",) if role is Role.MUX else ())):
            found = request(path, {"op": "get", "what": what})
            rows[what] = [row for row in found if isinstance(row, dict)] if isinstance(found, list) else []
    except ControlError as error:
        return DaemonSeen(str(path), answers=bool(pid), error=str(error), pid=pid, capabilities=capabilities)
    status = rows["status"][0] if rows["status"] else {}
    services, backends, peers = (tuple(rows.get(what, ())) for what in ("services", "backends", "peers"))
    return DaemonSeen(str(path), True, None, True, pid, capabilities, status, services, backends, peers)


def _listener_of(path: Path) -> int | None:
    """The process behind a socket; raises OSError where there is none."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(2.0)
        connection.connect(str(path))
        pid: int = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
    return pid or None


def _capabilities(pid: int | None) -> int | None:
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("CapEff:"):
                return int(line.split()[1], 16)
    except OSError:
        pass
    return None


def twins(role: Role) -> list[Twin]:
    """Running daemons of this kind in our network namespace, with the names in their files."""
    found = []
    own = _namespace("thread-self")
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        config = _config_of(entry, role.program)
        if config is not None and _namespace(entry.name) == own:
            table = _table_in(config, role)
            name, interface = (table.get(key) for key in ("name", "interface"))
            found.append(
                Twin(
                    int(entry.name),
                    str(config),
                    name if isinstance(name, str) else None,
                    interface if isinstance(interface, str) else None,
                )
            )
    return sorted(found, key=lambda twin: twin.pid)


def _config_of(process: Path, program: str) -> Path | None:
    """The file that a process was started with, if it is this program."""
    try:
        words = [word.decode(errors="replace") for word in (process / "cmdline").read_bytes().split(b"\0")]
        place = next((number for number, word in enumerate(words[:3]) if Path(word).name == program), None)
        if place is None:
            return None
        for number, word in enumerate(words[place:], place):
            if word == "--config" and number + 1 < len(words):
                return _from_there(process, words[number + 1])
            if word.startswith("--config="):
                return _from_there(process, word.removeprefix("--config="))
    except OSError:
        pass  # it ended meanwhile, or is somebody else's
    return None


def _from_there(process: Path, name: str) -> Path:
    """Where a process is tells only who has all of its rights."""
    path = Path(name)
    return path if path.is_absolute() else Path(os.readlink(process / "cwd")) / path


def _table_in(config: Path, role: Role) -> Row:
    try:
        table = toml.read(config).get(role.value)
    except ConfigError:
        return {}
    return table if isinstance(table, dict) else {}


def _namespace(pid: str) -> int | None:
    """A number of a process's network namespace. ``ns/net`` tells it only to who has all the rights that the process
    has, which a daemon's own doctor need not; this directory is the namespace's as well, and anybody may look at it."""
    try:
        return Path(f"/proc/{pid}/net/stat").stat().st_ino
    except OSError:
        return None


# --- the network -----------------------------------------------------------------------------------------------------


def network(interface: str, *, filters: tuple[int, str] | None = None) -> Network:
    """``filters``: priority and name of a BPF filter to be looked for at the interface's ingress."""
    from pyroute2 import IPRoute  # noqa: PLC0415  slow to import

    with IPRoute() as netlink:
        names = {link["index"]: str(link.get_attr("IFLA_IFNAME")) for link in netlink.get_links()}
        addresses: dict[Address, str] = {}
        labels: set[IPv4Address] = set()
        for message in netlink.get_addr():
            address = ip_address(message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS"))
            addresses[address] = names.get(message["index"], "?")
            if message["index"] == _LOOPBACK and isinstance(address, IPv4Address) and not address.is_loopback:
                labels.add(address)
        ways = list(_ways(netlink, names))
        found, ahead = _filters(netlink, interface, names, filters) if filters else (None, ())
        local_rule = any(rule.get_attr("FRA_TABLE") == _RT_TABLE_LOCAL for rule in netlink.get_rules(family=2))
    default = next((by for prefix, by in ways if prefix is None), None)
    others = frozenset(by for _, by in ways if by not in (interface, "lo"))
    return Network(
        link(interface), addresses, frozenset(labels), default, others, sysctls(interface), found, ahead, local_rule
    )


def _ways(netlink: Any, names: dict[int, str]) -> Iterator[tuple[str | None, str]]:
    """Prefix (None: the default route) and interface of the main table's IPv4 routes."""
    routes = netlink.get_routes(family=socket.AF_INET, table=_RT_TABLE_MAIN)
    for route in sorted(routes, key=lambda route: route.get_attr("RTA_PRIORITY") or 0):
        if route["type"] != 1:  # unicast
            continue
        hops = [route.get_attr("RTA_OIF"), *(hop["oif"] for hop in route.get_attr("RTA_MULTIPATH") or ())]
        for index in hops:
            if index in names:
                yield route.get_attr("RTA_DST"), names[index]


def _filters(
    netlink: Any, interface: str, names: dict[int, str], wanted: tuple[int, str]
) -> tuple[bool | None, tuple[int, ...]]:
    """Whether the wanted one is there, and the priorities of those before its place."""
    index = next((number for number, name in names.items() if name == interface), None)
    if index is None:
        return None, ()
    priority, name = wanted
    there, ahead = False, set()
    try:
        for message in netlink.get_filters(index=index, parent=0xFFFFFFF2):  # clsact's ingress
            options, place = message.get_attr("TCA_OPTIONS"), message["info"] >> 16
            if place < priority and message["handle"]:
                ahead.add(place)
            there |= place == priority and options is not None and options.get_attr("TCA_BPF_NAME") == name
    except Exception as error:  # pyroute2 has no common base for "no such qdisc" and "not permitted"
        return None if getattr(error, "code", None) == errno.EPERM else False, ()
    return there, tuple(sorted(ahead))


def sysctls(interface: str) -> dict[str, int]:
    return values(f"ipv4/conf/{name}/{key}" for name in ("all", interface) for key in SETTINGS)


def values(names: Iterable[str]) -> dict[str, int]:
    """By path below /proc/sys/net; without those that are not there."""
    found = {}
    for name in names:
        try:
            found[name] = int((_SYSCTLS / name).read_text())
        except (OSError, ValueError):
            continue
    return found


def link(name: str) -> Interface:
    """By ioctl, which knows our network namespace wherever /sys is mounted from."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        try:
            flags = _ioctl(asked, _SIOCGIFFLAGS, name, "@H")
            mtu = _ioctl(asked, _SIOCGIFMTU, name, "@i")
        except OSError:
            return Interface(name, exists=False)
        return Interface(name, True, bool(flags & _IFF_UP), bool(flags & _IFF_RUNNING), mtu, _lro(asked, name))


def _ioctl(asked: socket.socket, number: int, name: str, form: str) -> int:
    answer = fcntl.ioctl(asked, number, struct.pack("16s24x", name.encode()[:15]))
    value: int = struct.unpack_from(form, answer, 16)[0]
    return value


def _lro(asked: socket.socket, name: str) -> bool | None:
    value = ctypes.create_string_buffer(struct.pack("@II", _ETHTOOL_GFLAGS, 0), 8)
    try:
        fcntl.ioctl(asked, _SIOCETHTOOL, struct.pack("@16sP16x", name.encode()[:15], ctypes.addressof(value)))
    except OSError as error:
        return False if error.errno == errno.EOPNOTSUPP else None
    return bool(struct.unpack_from("@I", value, 4)[0] & _FLAG_LRO)


# --- nftables --------------------------------------------------------------------------------------------------------


def tables() -> list[NftTable] | None:
    """Those of ours, of whatever age; None where they may not be looked at."""
    listed = _nft("list", "tables")
    if listed is None:
        return None
    found = []
    for item in listed:
        table = item.get("table")
        if isinstance(table, dict) and str(table.get("name")).startswith(TABLE_PREFIX):
            found.append(_table(str(table.get("family")), str(table.get("name"))))
    return found


def _table(family: str, name: str) -> NftTable:
    if family not in ("inet", "netdev"):
        return NftTable(family, name)
    addresses: set[str] = set()
    for item in _nft("list", "table", family, name) or []:
        held = item.get("set")
        if isinstance(held, dict) and str(held.get("name")).startswith("vips"):
            addresses |= set(_elements(held.get("elem") or []))
    return NftTable(family, name, frozenset(addresses))


def _elements(elements: Iterable[Any]) -> Iterator[str]:
    for element in elements:
        if isinstance(element, str):
            yield element
        elif isinstance(element, dict) and isinstance(element.get("prefix"), dict):
            yield f"{element['prefix'].get('addr')}/{element['prefix'].get('len')}"
        elif isinstance(element, dict) and isinstance(element.get("range"), list):
            yield "-".join(map(str, element["range"]))


def _nft(*arguments: str) -> list[dict[str, Any]] | None:
    try:
        done = subprocess.run(
            ["nft", "-j", *arguments], capture_output=True, text=True, check=False, timeout=NFT_TIMEOUT
        )
        if done.returncode:
            return None
        items = json.loads(done.stdout).get("nftables", [])
    except (OSError, ValueError, AttributeError, subprocess.TimeoutExpired):
        return None
    return [item for item in items if isinstance(item, dict)]


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {MANAGER_TIMEOUT:g} s"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return text.lower() or type(error).__name__
