# SPDX-License-Identifier: Apache-2.0
"""What benchmarks between network namespaces have in common: the namespaces, our daemons in them, and a clean end.

A :class:`Stage` owns namespaces, programs and a directory; all of it is gone when it is left, and what a killed run
left behind the next one removes (:func:`lb.bench.testbed.netns.reap`). All of this is called from one thread.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from lb.bench.testbed import netns
from lb.config.render import format_config
from lb.daemon.control_socket import request
from lb.daemon.process.privileges import Capability, missing
from lb.errors import ControlError, FeatureError, IoError, PrivilegeError
from lb.model import BgpSettings, MuxConfig, MuxSettings, Service

ProgramT = TypeVar("ProgramT", bound="BenchProgram")

#: Of what is measured, before all else on the machine.
NICE = -20
READY_TIMEOUT = 20.0
STOP_TIMEOUT = 10.0

_NEEDED = (Capability.NET_ADMIN, Capability.NET_RAW, Capability.SYS_ADMIN)


def needs(command: str, programs: Mapping[str, str]) -> None:
    """Raises what stands in the way of a command, before anything is made. ``programs``: what it runs, each
    with the package that brings it."""
    if missing(_NEEDED):
        raise PrivilegeError(f"{command} makes network namespaces of its own, which needs root: run it with sudo")
    for program, package in programs.items():
        if shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin") is None:
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


@contextlib.contextmanager
def first_in_line(nice: int = NICE) -> Iterator[None]:
    """Where the kernel shares the CPU among sessions first, ``nice`` counts only within one: lifts our session."""
    try:
        before = Path("/proc/self/autogroup").read_text().split()[-1]
    except (OSError, IndexError):
        yield
        return
    lift_session(os.getpid(), nice)
    try:
        yield
    finally:
        lift_session(os.getpid(), int(before))


def lift_session(pid: int, nice: int = NICE) -> None:
    """That of a process; what it starts in a session of its own is as before."""
    with contextlib.suppress(OSError):  # sessions count for nothing here
        Path(f"/proc/{pid}/autogroup").write_text(str(nice))


@contextlib.contextmanager
def real_time() -> Iterator[None]:
    """This thread, and all that it starts, run whenever they can: what else there is on the machine only when none of
    them does, or in the twentieth of each second that the kernel keeps for it. Among themselves they are equal."""
    policy, before = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except OSError as error:
        raise PrivilegeError(
            f"no real-time priority for the benchmark (CAP_SYS_NICE, or a container): {error}"
        ) from error
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, before)


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


def load_rules(namespace: str, rules: str) -> None:
    """A ruleset of nft into the namespace."""
    command = ["ip", "netns", "exec", namespace, "nft", "-f", "-"]
    done = subprocess.run(command, input=rules, capture_output=True, text=True, check=False)
    if done.returncode:
        raise IoError(f"nft: {done.stderr.strip()}")


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


_CPUCLOCK_SCHED = 2


class BenchProgram:
    """A program in a namespace, which ends with us even if we are killed; what it prints goes to a file."""

    def __init__(self, namespace: str, name: str, command: Iterable[str | Path], log: Path) -> None:
        self.name = name
        self._log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [*("ip", "netns", "exec", namespace, "setpriv", "--pdeathsig", "TERM"), *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def check(self) -> None:
        """:class:`IoError` once it has ended."""
        if self.process.poll() is not None:
            raise IoError(f"{self.name} ended with {self.process.returncode}; {self.last_words()}")

    def last_words(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return f"its last line was: {lines[-1]}" if lines else "it said nothing"

    def cpu_ns(self) -> int:
        """CPU time that it has used, all its threads."""
        return time.clock_gettime_ns(~self.process.pid << 3 | _CPUCLOCK_SCHED)

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class BenchDaemon(BenchProgram):
    """One of ours, by its Python module."""

    def __init__(
        self, namespace: str, module: str, arguments: Iterable[str | Path], log: Path, prefix: Iterable[str] = ()
    ) -> None:
        super().__init__(namespace, module, [*prefix, sys.executable, "-P", "-m", module, *arguments], log)

    def row(self, socket: Path, what: str) -> dict[str, Any]:
        """The row that ``lb get`` shows of it; empty while its socket is not there."""
        self.check()
        try:
            found: dict[str, Any] = request(socket, {"op": "get", "what": what})[0]
        except ControlError:
            return {}
        return found


class MuxDaemon(BenchDaemon):
    """A real ``lb-mux``, on a file of its own beside its state directory."""

    def __init__(
        self,
        namespace: str,
        settings: MuxSettings,
        services: Iterable[Service],
        *,
        bgp: BgpSettings | None = None,
        prefix: Iterable[str] = (),
    ) -> None:
        state = Path(settings.state_dir)
        path = state.with_suffix(".toml")
        path.write_text(format_config(MuxConfig(settings, tuple(services), bgp=bgp)))
        super().__init__(namespace, "lb.mux.daemon", ["--config", path], state.with_suffix(".log"), prefix)
        lift_session(self.process.pid)
        self._socket = state / "mux.sock"

    def wait_ready(self) -> None:
        wait(lambda: self.status().get("state") == "ready", "lb-mux to be ready")

    def status(self) -> dict[str, Any]:
        """What ``lb get muxes`` shows of it; empty while it is not there."""
        return self.row(self._socket, "muxes")

    @property
    def mode(self) -> str:
        """The I/O mode obtained, in words."""
        return str(self.status()["mode"])

    def log(self) -> str:
        return self._log.read_text(errors="replace")


def memory_directory(prefix: str) -> tempfile.TemporaryDirectory[str]:
    """A directory in memory, where the machine has such a place: no disk takes part in what is measured."""
    place = str(netns.MEMORY) if netns.MEMORY.is_dir() else None
    return tempfile.TemporaryDirectory(prefix=prefix, dir=place, ignore_cleanup_errors=True)


class Stage:
    """What a benchmark plays on. A subclass says in ``_build`` what stands on it, and gives what must end with it to
    ``_resources``; last in is first out."""

    def __init__(self) -> None:
        self._prefix = netns.unique_prefix()
        self._resources = contextlib.ExitStack()
        self.directory = Path(
            self._resources.enter_context(tempfile.TemporaryDirectory(prefix=self._prefix, ignore_cleanup_errors=True))
        )

    def __enter__(self) -> Self:
        try:
            self._build()
        except BaseException:
            self._resources.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._resources.close()

    def _build(self) -> None:
        raise NotImplementedError

    def _space(self, role: str) -> str:
        """The name of its namespace."""
        return f"{self._prefix}-{role}"

    def _keep(self, program: ProgramT) -> ProgramT:
        """Stops it in the end."""
        self._resources.callback(program.stop)
        return program
