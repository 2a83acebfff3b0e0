# SPDX-License-Identifier: Apache-2.0
"""The stage of ``lb bench control``: a real ``lb-manager``, real ``lb-mux``es, and simulated agents, in namespaces.

    hub: lb-manager on the bridge, 10.0.1.1        hosts: agents 10.1.0.1 and up, one process
    (lb.bench.control.simulated_nodes) mux1, mux2, ...: an lb-mux each, 10.0.1.11 and up, and a state directory each
    router1, router2: BIRD, if it is installed, 10.0.1.3 and 10.0.1.4 (lb.bench.testbed.bird)

Owned by :mod:`lb.bench.control.control_plane`. A :class:`BenchFleet` owns namespaces, processes and the directory; all
of it is gone when it is left, and what a killed run left behind the next one removes
(:func:`lb.bench.testbed.netns.reap`).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any, Protocol, TypeVar

from lb.bench.testbed import netns
from lb.bench.testbed.bird import ROUTERS, Router, bgp_settings, programs
from lb.bench.testbed.daemons import Stage, memory_directory
from lb.config.render import format_config
from lb.daemon.control_socket import request
from lb.daemon.process.privileges import Capability, missing
from lb.errors import FeatureError, IoError, PrivilegeError
from lb.model import ManagerSettings, MuxConfig, MuxSettings

T = TypeVar("T")

HUB, PORT = "10.0.1.1", 9740
HOSTS = "10.0.1.2"
VIPS = IPv4Network("198.18.0.0/15")
FIRST_VIP, FIRST_HOST = int(VIPS[0]), int(IPv4Address("10.1.0.0"))
SERVICE_PORT = 80
#: A MUX on the stream that forwards nothing and tells when it learned what.
WATCHER = "watcher"
READY = 60.0
STOP = 15.0

_PROGRAMS = {"ip": "iproute2", "nft": "nftables", "setpriv": "util-linux"}
_NEEDED = (Capability.NET_ADMIN, Capability.NET_RAW, Capability.SYS_ADMIN)


def check() -> None:
    """Raises what stands in the way, before anything is made."""
    if missing(_NEEDED):
        raise PrivilegeError("lb bench control makes network namespaces of its own, which needs root: run it with sudo")
    for program, package in _PROGRAMS.items():
        if shutil.which(program) is None:
            raise FeatureError(f"{program} is not installed: install the package {package}")


def host_address(number: int) -> str:
    """Agents are numbered from 1."""
    return str(IPv4Address(FIRST_HOST + number))


class Child:
    """A program in a namespace; what it prints goes to a file."""

    def __init__(self, namespace: str, arguments: Iterable[str | Path], log: Path, *, piped: bool = False) -> None:
        self.log = log
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [*("ip", "netns", "exec", namespace, "setpriv", "--pdeathsig", "TERM"), *map(str, arguments)],
                stdin=subprocess.PIPE if piped else subprocess.DEVNULL,
                stdout=subprocess.PIPE if piped else output,
                stderr=output,
                start_new_session=True,
                text=True,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def last_words(self) -> str:
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return f"its last line was: {lines[-1]}" if lines else "it said nothing"

    def wait_for(self, pattern: str, seconds: float = READY) -> None:
        """Until it has logged such a line."""
        deadline = time.monotonic() + seconds
        while not re.search(pattern, self.log.read_text(errors="replace")):
            if self.process.poll() is not None:
                raise IoError(f"{self.log.stem} ended with {self.process.returncode}; {self.last_words()}")
            if time.monotonic() > deadline:
                raise IoError(f"{self.log.stem} did not log /{pattern}/ within {seconds:g} s; {self.last_words()}")
            time.sleep(0.02)

    def ask(self, **order: Any) -> dict[str, Any]:
        """One order to a piped child, and its answer."""
        assert self.process.stdin is not None and self.process.stdout is not None  # noqa: S101, PT018  it is piped
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None  # noqa: S101
        line = self.process.stdout.readline()
        if not line:
            raise IoError(f"{self.log.stem} ended; {self.last_words()}")
        found: dict[str, Any] = json.loads(line)
        return found

    def stop(self) -> None:
        if self.process.stdin is not None:
            with contextlib.suppress(OSError):
                self.process.stdin.close()
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(STOP)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


class Operator(Protocol):
    """Asks a manager as ``lb`` does, whose own client this is."""

    @property
    def url(self) -> str | None: ...
    @property
    def cert(self) -> str | None: ...
    @property
    def key(self) -> str | None: ...
    @property
    def ca(self) -> str | None: ...

    def get(self, *path: str) -> Any: ...
    def post(self, *path: str, body: object = None) -> Any: ...
    def delete(self, *path: str) -> Any: ...


#: By the manager's URL, and the files of certificate, key and CA.
OperatorAt = Callable[[str, str, str, str], Operator]


class BenchFleet(Stage):
    """See the module's text."""

    def __init__(self, muxes: int, agents: int, operator_at: OperatorAt) -> None:
        super().__init__()
        self.mux_names = [f"mux{number + 1}" for number in range(muxes)]
        self.agent_names = [f"host{number + 1}" for number in range(agents)]
        self._spaces = {role: self._space(role) for role in ("hub", "hosts", *ROUTERS, *self.mux_names)}
        self.muxes: dict[str, Child] = {}
        #: Without them MUXes speak no BGP.
        self.routers: list[Router] = []
        ada = self.directory / "ada"
        files = (str(ada / "operator.pem"), str(ada / "operator.key"), str(ada / "ca.pem"))
        self.remote = operator_at(f"https://{HUB}:{PORT}", *files)

    # -- set-up -------------------------------------------------------------------------------------------------

    def _build(self) -> None:
        for name in self._spaces.values():
            self._resources.callback(_delete, name)
            netns.ip("netns", "add", name)
            settings: dict[str, int | str] = {f"ipv4/conf/{which}/rp_filter": 0 for which in ("all", "default")}
            netns.sysctl(name, {**settings, "ipv4/ip_forward": 0})
        ends = {"hosts": HOSTS, **ROUTERS} | {name: self.mux_address(name) for name in self.mux_names}
        plugs = [
            line
            for role in ends
            for line in (
                f"link add name p-{role} type veth peer name eth0 netns {self._spaces[role]}",
                f"link set p-{role} master br0 up",
            )
        ]
        bridge = [f"address add {HUB}/24 dev br0", "link set br0 up", "link set lo up"]
        netns.batch(["link add br0 type bridge", *plugs, *bridge], self._spaces["hub"])
        for role, address in ends.items():
            lines = [f"address add {address}/24 dev eth0", "link set eth0 up", "link set lo up"]
            if role == "hosts":
                lines += [f"address add {host_address(n + 1)}/32 dev lo" for n in range(len(self.agent_names))]
            elif role in self.mux_names:
                lines.append(f"route add {IPv4Address(FIRST_HOST)}/16 via {HOSTS}")
            netns.batch(lines, self._spaces[role])
        self._inside = self._resources.enter_context(
            ThreadPoolExecutor(1, "operator", initializer=netns.enter, initargs=(self._spaces["hub"],))
        )

    def serve_vips(self, vips: Iterable[str]) -> None:
        """These answer at the hosts' end of the tunnels."""
        netns.batch([f"address add {vip}/32 dev lo" for vip in vips], self._spaces["hosts"])

    def mux_address(self, name: str) -> str:
        return f"10.0.1.{11 + self.mux_names.index(name)}"

    def start_manager(self) -> None:
        """Makes the authority the first time."""
        config = self.directory / "manager.toml"
        if not config.exists():
            settings = ManagerSettings(
                "bench", (VIPS,), f"{HUB}:{PORT}", state_dir=str(self.directory / "manager"), hold=9.0
            )
            config.write_text(format_config(settings))
            arguments = ("init", "--config", config, "--operator", "ada", "--out", self.directory / "ada")
            argv = [*_python("manager.daemon"), *map(str, arguments)]
            done = subprocess.run(argv, capture_output=True, text=True, check=False)
            if done.returncode:
                raise IoError(f"lb-manager init: {done.stderr.strip()}")
        run = [*_python("manager.daemon"), "run", "--config", str(config)]
        self.manager = self._start("hub", "lb-manager", run)
        self.manager.wait_for(r"event=ready")

    def start_routers(self) -> None:
        """If BIRD is installed; before the MUXes."""
        if programs() is None:
            return
        muxes = {name: self.mux_address(name) for name in self.mux_names}
        self.routers = [Router(name, self.directory, muxes, VIPS) for name in ROUTERS]
        for router in self.routers:
            self._start(router.name, router.name, router.command()).wait_for("<INFO> Started")

    def start_mux(self, name: str, slots: int, flows: int) -> None:
        settings = MuxSettings(
            name=name,
            address=IPv4Address(self.mux_address(name)),
            seed=bytes(range(16)),
            interface="eth0",
            flows=flows,
            slots=slots,
            state_dir=str(self.directory / name),
        )
        config = self.directory / f"{name}.toml"
        bgp = bgp_settings() if self.routers else None
        config.write_text(format_config(MuxConfig(settings, bgp=bgp, manager=self.remote.url)))
        argv = [*_python("lb.mux.daemon"), "--config", str(config), "--token", self.token("mux", name)]
        self.muxes[name] = self._start(name, name, argv)

    def start_agents(self, places: list[tuple[str, str, str]]) -> None:
        """The process of all simulated nodes; none of them joins yet."""
        nodes = [("mux", WATCHER, "10.0.1.200")]
        nodes += [("agent", name, host_address(n + 1)) for n, name in enumerate(self.agent_names)]
        self.agents = self._start_nodes("agents", nodes, places, WATCHER)

    def start_joiners(self, count: int) -> list[str]:
        """Further agents, in a process of their own, on hosts of no service; none of them joins yet. Their names."""
        first = len(self.agent_names) + 1
        nodes = [("agent", f"joiner{n}", host_address(n)) for n in range(first, first + count)]
        self.joiners = self._start_nodes("joiners", nodes, [], nodes[0][1])
        return [name for _, name, _ in nodes]

    def _start_nodes(
        self, role: str, nodes: list[tuple[str, str, str]], places: list[tuple[str, str, str]], watcher: str
    ) -> Child:
        # A hundred machines would have a disk each.
        directory = self._resources.enter_context(memory_directory(self._prefix))
        spec = {
            "url": self.remote.url,
            "directory": directory,
            "port": SERVICE_PORT if role == "agents" else SERVICE_PORT + 1,
            "watcher": watcher,
            "places": places,
            "nodes": [
                {"kind": kind, "name": name, "address": address, "token": self.token(kind, name)}
                for kind, name, address in nodes
            ],
        }
        file = self.directory / f"{role}.json"
        file.write_text(json.dumps(spec))
        child = self._start("hosts", role, [*_python("lb.bench.control.simulated_nodes"), file], piped=True)
        child.answer()
        return child

    def _start(self, role: str, name: str, argv: Iterable[str | Path], *, piped: bool = False) -> Child:
        child = Child(self._spaces[role], argv, self.directory / f"{name}.log", piped=piped)
        self._resources.callback(child.stop)
        return child

    # -- the operator -------------------------------------------------------------------------------------------

    def inside(self, function: Callable[..., T], *arguments: Any, **keywords: Any) -> T:
        """Calls it in the manager's namespace; one at a time."""
        return self._inside.submit(function, *arguments, **keywords).result()

    def token(self, kind: str, name: str) -> str:
        body = {"kind": kind, "name": name, "ttl": 3600}
        return str(self.inside(self.remote.post, "tokens", body=body)["token"])

    def get(self, *path: str) -> Any:
        return self.inside(self.remote.get, *path)

    def command(self, arguments: Sequence[str]) -> float:
        """Seconds that ``lb`` takes for a command, in the fleet's directory; raises if it says that it failed."""
        argv = [*_python("lb.cli.main"), *arguments]
        keys = {"LB_MANAGER": self.remote.url, "LB_CERT": self.remote.cert, "LB_KEY": self.remote.key}
        environment = {**os.environ, **{key: str(value) for key, value in keys.items()}, "LB_CA": str(self.remote.ca)}

        def run() -> float:
            began = time.perf_counter()
            done = subprocess.run(argv, cwd=self.directory, env=environment, capture_output=True, check=False)
            took = time.perf_counter() - began
            if done.returncode not in (0, 1) or done.stderr:
                raise IoError(f"lb {' '.join(arguments)}: {done.stderr.decode(errors='replace').strip()}")
            return took

        return self.inside(run)

    def apply(self, services: list[dict[str, Any]], wait: float, **keys: Any) -> dict[str, Any]:
        answer: dict[str, Any] = self.inside(
            self.remote.post, "apply", body={"services": services, "wait": wait, **keys}
        )
        return answer

    def delete(self, service: str) -> None:
        self.inside(self.remote.delete, "services", service)

    def wait_routes(self, vips: int, seconds: float) -> None:
        """Until every router has so many by every MUX."""
        deadline, wanted = time.monotonic() + seconds, vips * len(self.mux_names)
        for router in self.routers:
            while (found := router.count()) != wanted:
                if time.monotonic() > deadline:
                    raise IoError(f"after {seconds:g} s {router.name} has {found} of {wanted} routes")
                time.sleep(0.01)

    def wait_followed(self, nodes: int, seconds: float) -> None:
        """Until so many nodes have what they should."""
        deadline = time.monotonic() + seconds
        while True:
            rows = [*self.get("muxes"), *self.get("agents")]
            behind = [f"{row['name']} is {row['state']}" for row in rows if row["state"] != "ready"]
            if len(rows) >= nodes and not behind:
                return
            if time.monotonic() > deadline:
                raise IoError(f"after {seconds:g} s {len(rows)} of {nodes} nodes are there; {', '.join(behind[:5])}")
            time.sleep(0.05)

    def local(self, mux: str, what: str) -> list[dict[str, Any]]:
        """What a MUX itself says, as ``lb get WHAT --local`` has it."""
        found: list[dict[str, Any]] = request(self.directory / mux / "mux.sock", {"op": "get", "what": what})
        return found

    def received(self, mux: str) -> int:
        """Bytes that came to a MUX so far."""
        path = Path("/sys/class/net/eth0/statistics/rx_bytes")
        done = netns.ip("netns", "exec", self._spaces[mux], "cat", str(path))
        return int(done)


def memory_of(pid: int) -> dict[str, int]:
    """Resident bytes of a process: all, its share (PSS), and what is its alone."""
    found = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, _, rest = line.partition(":")
        found[name] = int(rest.split()[0]) * 1024
    return {"rss": found["Rss"], "pss": found["Pss"], "own": found["Private_Clean"] + found["Private_Dirty"]}


def rings_of(pid: int) -> int:
    """Resident bytes that a process shares with the kernel for packets: AF_PACKET's rings."""
    found, ring = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-", line):
            ring = "socket:[" in line
        elif ring and line.startswith("Rss:"):
            found += int(line.split()[1]) * 1024
    return found


def cpu_of(pid: int) -> float:
    """Seconds of CPU that a process has used."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def exabgp_of(pid: int) -> int:
    """The ExaBGP of a MUX."""
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        if "lb.bgp.launch" in Path(f"/proc/{child}/cmdline").read_text():
            return int(child)
    raise IoError(f"process {pid} has no ExaBGP")


def _python(module: str) -> list[str]:
    return [sys.executable, "-P", "-m", module]


def _delete(namespace: str) -> None:
    with contextlib.suppress(IoError):  # it was never made
        netns.ip("netns", "del", namespace)
