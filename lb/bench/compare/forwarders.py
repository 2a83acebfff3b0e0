# SPDX-License-Identifier: Apache-2.0
"""The ways that ``lb bench peers`` compares: what each needs, and how it is set up on a load balancer of its own.

A :class:`Way` is a value; :func:`ways` lists them, vipmux once for each of its I/O modes. :class:`WayPlace` is what a
way finds when it is set up by :mod:`lb.bench.compare.networks`: a namespace with one interface, a VIP that the router
sends there, and a backend. Rules and configurations are pure text, made here.
"""

from __future__ import annotations

import enum
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lb.model import IoMode

#: nginx loads "stream" from here where it is a module of its own.
_STREAM_MODULES = tuple(
    Path(directory) / "ngx_stream_module.so" for directory in ("/usr/lib/nginx/modules", "/usr/lib64/nginx/modules")
)


class Return(enum.Enum):
    """How answers come back."""

    STRAIGHT = "straight from host to client"
    THROUGH = "through the load balancer"


@dataclass(frozen=True, slots=True)
class WayPlace:
    """Of a way; addresses as text."""

    namespace: str
    directory: Path
    vip: str
    own: str  #: of the load balancer
    backend: str


@dataclass(frozen=True, slots=True)
class Way:
    """``program``: what runs in the load balancer's namespace, beside ``rules`` of nft and ``commands``. None of them:
    the kernel forwards."""

    name: str
    words: str
    back: Return
    rules: Callable[[str, str], str] | None = None  #: of VIP and backend
    program: Callable[[WayPlace], list[str | Path]] | None = None
    commands: Callable[[WayPlace], list[list[str]]] | None = None
    io: IoMode | None = None  #: vipmux in this mode
    missing: Callable[[], str | None] = lambda: None
    local: bool = False  #: the VIP is an address of the load balancer

    @property
    def forwards(self) -> bool:
        """Whether it forwards any packet, and not connections that it ends itself."""
        return self.io is not None or (self.program is None and self.commands is None)


DIRECT = "direct"


def ways() -> list[Way]:
    """All but the direct one, in the order of the table."""
    straight, through = Return.STRAIGHT, Return.THROUGH
    return [
        Way("kernel", "Linux forwards, nothing is changed", straight),
        Way("nft-stateless", "nftables rewrites addresses, no connections", through, _stateless, missing=_no_nft),
        Way("nft-dnat", "nftables DNAT with connection tracking", through, _dnat, missing=_no_nft),
        Way("ipvs", "IPVS, masquerading, source hashing", through, commands=_ipvs, missing=_no_ipvs, local=True),
        Way("haproxy", "HAProxy, mode tcp, 1 thread", through, program=_haproxy, missing=_no_haproxy, local=True),
        Way("nginx", "nginx stream, 1 worker", through, program=_nginx, missing=_no_stream, local=True),
        *(
            Way(f"vipmux-{io.value}", f'vipmux, io = "{io.value}"', straight, io=io)
            for io in IoMode
            if io is not IoMode.AUTO
        ),
    ]


# ---- rules and configurations ----


def _stateless(vip: str, backend: str) -> str:
    return f"""
table ip bench {{
    chain there {{
        type filter hook prerouting priority raw;
        ip daddr {vip} ip daddr set {backend}
        ip saddr {backend} ip saddr set {vip}
    }}
}}
"""


def _dnat(vip: str, backend: str) -> str:
    return f"""
table ip bench {{
    chain there {{
        type nat hook prerouting priority dstnat;
        ip daddr {vip} dnat to {backend}
    }}
}}
"""


def _ipvs(place: WayPlace) -> list[list[str]]:
    service = f"{place.vip}:80"
    return [
        ["ipvsadm", "-A", "-t", service, "-s", "sh"],
        ["ipvsadm", "-a", "-t", service, "-r", place.backend, "-m"],
    ]


def _haproxy(place: WayPlace) -> list[str | Path]:
    path = place.directory / "haproxy.cfg"
    path.write_text(f"""
global
    nbthread 1
    maxconn 4096
defaults
    mode tcp
    timeout connect 5s
    timeout client 600s
    timeout server 600s
listen bench
    bind {place.vip}:80
    server host {place.backend}:80
""")
    return ["haproxy", "-db", "-f", path]


def _nginx(place: WayPlace) -> list[str | Path]:
    path = place.directory / "nginx.conf"
    load = "".join(f"load_module {module};\n" for module in _STREAM_MODULES if module.exists())
    path.write_text(f"""
{load}daemon off;
master_process off;
pid {place.directory}/nginx.pid;
error_log {place.directory}/nginx-error.log;
events {{ worker_connections 4096; }}
stream {{
    server {{
        listen {place.vip}:80 backlog=4096;
        proxy_pass {place.backend}:80;
        tcp_nodelay on;
    }}
}}
""")
    return ["nginx", "-e", place.directory / "nginx-error.log", "-c", path]


# ---- what is not here ----


def find(program: str) -> str | None:
    """Debian puts some where only root looks."""
    return shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


def _without(program: str, package: str) -> str | None:
    return None if find(program) else f"{program} is not installed (package {package})"


def _no_nft() -> str | None:
    return _without("nft", "nftables")


def _no_haproxy() -> str | None:
    return _without("haproxy", "haproxy")


def _no_stream() -> str | None:
    absent = _without("nginx", "nginx")
    if absent:
        return absent
    built = subprocess.run([find("nginx") or "nginx", "-V"], capture_output=True, text=True, check=False).stderr
    if "--with-stream " in built + " " or any(module.exists() for module in _STREAM_MODULES):
        return None
    return "this nginx has no stream module (package libnginx-mod-stream)"


def _no_ipvs() -> str | None:
    absent = _without("ipvsadm", "ipvsadm")
    asked = (
        None if absent else subprocess.run([find("ipvsadm") or "ipvsadm", "-L", "-n"], capture_output=True, check=False)
    )
    if asked is None or asked.returncode:
        kernel = "" if Path("/proc/net/ip_vs").exists() else "this kernel has no IPVS (module ip_vs)"
        return "; ".join(filter(None, (kernel, absent))) or "ipvsadm finds no IPVS"
    return None
