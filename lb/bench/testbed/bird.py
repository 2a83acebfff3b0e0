# SPDX-License-Identifier: Apache-2.0
"""The routers of ``lb bench control`` and ``lb bench overload``: BIRD 2, with a BGP session to every MUX.

Each is in a namespace of its own; whoever uses one makes namespace and process. What counts as announced is what BIRD
says of each session, prefix by prefix; nothing is written to a kernel, whose routes nobody would ask for.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Collection, Mapping
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from lb.errors import IoError
from lb.model import BgpFamily, BgpPeer, BgpSettings

ROUTER_ASN, MUX_ASN = 65000, 65001
#: By name: a MUX has two peers.
ROUTERS = {"router1": "10.0.1.3", "router2": "10.0.1.4"}
#: Longer than anything here keeps a process waiting: what is measured is no failure, seconds.
HOLD = 90
ABSENT = "bird is not installed (package bird2): the MUXes ran without BGP"

_TIMEOUT = 30.0


def programs() -> tuple[str, str] | None:
    """``bird`` and ``birdc``, which Debian puts where only root looks; None: they are not installed."""
    path = os.environ.get("PATH", "") + ":/usr/sbin"
    bird, birdc = shutil.which("bird", path=path), shutil.which("birdc", path=path)
    return (bird, birdc) if bird is not None and birdc is not None else None


def bgp_settings(names: Collection[str] = tuple(ROUTERS), hold: int = HOLD) -> BgpSettings:
    """Of each MUX. Its stop is no part of the measurement, so it waits for nobody."""
    peers = (BgpPeer(name, IPv4Address(ROUTERS[name]), ROUTER_ASN, (BgpFamily.IPV4,)) for name in names)
    return BgpSettings(MUX_ASN, tuple(peers), hold=hold, shutdown=0.0)


class Router:
    """One BIRD: what it is told and asked. ``muxes``: addresses by name."""

    def __init__(
        self, name: str, directory: Path, muxes: Mapping[str, str], vips: IPv4Network, hold: int = HOLD
    ) -> None:
        found = programs()
        if found is None:
            raise IoError(ABSENT)
        self._bird, self._birdc = found
        self.name = name
        self._directory = directory
        self._muxes = muxes
        self._vips = vips
        self._hold = hold

    def command(self) -> list[str | Path]:
        """What runs in the router's namespace."""
        config = self._file("conf")
        config.write_text(self.config())
        return [self._bird, "-f", "-c", config, "-s", self._file("ctl"), "-P", self._file("pid")]

    def _file(self, kind: str) -> Path:
        return self._directory / f"{self.name}.{kind}"

    def config(self) -> str:
        own = ROUTERS[self.name]
        lines = [
            "log stderr all;",
            f"router id {own};",
            "protocol device { scan time 10; }",
            "protocol direct { ipv4; }",  # next hops are on its link
            f"filter vips {{ if net ~ [ {self._vips}{{24,32}} ] then accept; reject; }}",
        ]
        for mux, address in self._muxes.items():
            lines += [
                f"protocol bgp {mux} {{",
                f"  local {own} as {ROUTER_ASN};",
                f"  neighbor {address} as {MUX_ASN};",
                f"  passive on; hold time {self._hold};",
                "  ipv4 { import filter vips; export none; };",
                "}",
            ]
        return "\n".join(lines) + "\n"

    # -- what it says -------------------------------------------------------------------------------------------

    def version(self) -> str:
        """``BIRD 2.0.12``."""
        return self._ask("show status").splitlines()[1].strip()

    def count(self) -> int:
        """Routes by BGP, of all MUXes."""
        found = re.search(r"(\d+) of \d+ routes", self._ask("show route count where source = RTS_BGP"))
        return int(found[1]) if found else 0

    def differences(self, vips: Collection[str]) -> dict[str, int]:
        """By MUX, where it has not exactly these prefixes: how many are missing, or too many."""
        wanted = set(vips)
        return {mux: len(wanted ^ has) for mux, has in self.vips().items() if has != wanted}

    def vips(self) -> dict[str, set[str]]:
        """The prefixes that it has by each MUX."""
        return {
            mux: set(re.findall(r"^(\S+/\d+)\s", self._ask(f"show route protocol {mux}"), re.MULTILINE))
            for mux in self._muxes
        }

    def updates(self) -> int:
        """Announcements and withdrawals that came so far, prefix by prefix."""
        text = self._ask("show protocols all")
        return sum(int(number) for number in re.findall(r"Import (?:updates|withdraws):\s+(\d+)", text))

    def _ask(self, what: str) -> str:
        argv: list[str | Path] = [self._birdc, "-s", self._file("ctl"), *what.split()]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=_TIMEOUT)
        if done.returncode:
            raise IoError(f"birdc {what}: {(done.stderr or done.stdout).strip()}")
        return done.stdout
