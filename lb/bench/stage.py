# SPDX-License-Identifier: Apache-2.0
"""What benchmarks between network namespaces have in common: the namespaces, our daemons in them, and a clean end.

Used by :mod:`lb.bench.packet_rate` and :mod:`lb.bench.latency`. A :class:`Daemon` belongs to whoever started it; all
of this is called from one thread.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lb import netns
from lb.control import request
from lb.errors import ControlError, FeatureError, IoError, PrivilegeError, RequestError
from lb.model import IoMode
from lb.privileges import Capability, missing

READY_TIMEOUT = 20.0
STOP_TIMEOUT = 10.0

_NEEDED = (Capability.NET_ADMIN, Capability.NET_RAW, Capability.SYS_ADMIN)


def check(io: IoMode, command: str, programs: Mapping[str, str]) -> None:
    """Raises what stands in the way of a command, before anything is made. ``programs``: what it runs, each
    with the package that brings it."""
    if io is IoMode.XDP:
        raise RequestError('AF_XDP ("xdp") is not available in this version; measure "packet" or "tun"')
    if missing(_NEEDED):
        raise PrivilegeError(f"{command} makes network namespaces of its own, which needs root: run it with sudo")
    for program, package in programs.items():
        if shutil.which(program) is None:
            raise FeatureError(f"{program} is not installed: install the package {package}")


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end us as Ctrl-C does, so that everything is removed."""
    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, signal.default_int_handler) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def add_namespace(name: str, resources: contextlib.ExitStack) -> None:
    """A new one, which goes when the resources are closed. Nothing in it moves by itself, and packets from a made-up
    source are no offence."""
    resources.callback(_delete, name)
    netns.ip("netns", "add", name)
    settings: dict[str, int | str] = {"ipv4/conf/all/rp_filter": 0, "ipv4/conf/default/rp_filter": 0}
    if Path("/proc/sys/net/ipv6").exists():
        settings |= {"ipv6/conf/all/disable_ipv6": 1, "ipv6/conf/default/disable_ipv6": 1}
    netns.sysctl(name, settings)


def _delete(namespace: str) -> None:
    with contextlib.suppress(IoError):  # it was never made
        netns.ip("netns", "del", namespace)


def wait(question: Callable[[], bool], what: str, seconds: float = READY_TIMEOUT) -> None:
    """Asks until the answer is yes; :class:`IoError` when that takes too long."""
    deadline = time.monotonic() + seconds
    while not question():
        if time.monotonic() > deadline:
            raise IoError(f"waited {seconds:g} s for {what}")
        time.sleep(0.02)


def ticks(cpus: Iterable[int]) -> tuple[int, int]:
    """All and stolen time of these CPUs, in ticks."""
    total = stolen = 0
    names = {f"cpu{cpu}" for cpu in cpus}
    for line in Path("/proc/stat").read_text().splitlines():
        name, *words = line.split()
        if name in names:
            fields = [int(word) for word in words[:8]]  # what guests had is in the first two already
            total += sum(fields)
            stolen += fields[7]
    return total, stolen


class Daemon:
    """A Python module that runs as a program in a namespace, and ends with us even if we are killed."""

    def __init__(
        self, namespace: str, module: str, arguments: Iterable[str | Path], log: Path, prefix: Iterable[str] = ()
    ) -> None:
        self._module = module
        self._log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [
                    *("ip", "netns", "exec", namespace, "setpriv", "--pdeathsig", "TERM", *prefix),
                    *(sys.executable, "-P", "-m", module, *arguments),
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def row(self, socket: Path, what: str) -> dict[str, Any]:
        """The row that ``lb get`` shows of it; empty while its socket is not there."""
        self.check()
        try:
            found: dict[str, Any] = request(socket, {"op": "get", "what": what})[0]
        except ControlError:
            return {}
        return found

    def check(self) -> None:
        """:class:`IoError` once it has ended."""
        if self.process.poll() is not None:
            raise IoError(f"{self._module} ended with {self.process.returncode}; {self.last_words()}")

    def last_words(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return f"its last line was: {lines[-1]}" if lines else "it said nothing"

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
