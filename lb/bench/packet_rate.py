# SPDX-License-Identifier: Apache-2.0
"""Measures packet I/O: a real ``lb-mux`` between two network namespaces, a generator before it and a sink behind it.

Called by ``lb bench io`` and ``lb bench all``. The path is generator - veth - MUX - veth - sink; the generator (C, in
a thread of ours) has one core, ``lb-mux`` another. Runs that go as fast as they can alternate with runs at half of
that rate: the first give packets per second and CPU per packet, the second what is lost when there is room. A
:class:`RateStage` owns namespaces, process and directory; other ways than ours stand in for the MUX in
:mod:`lb.bench.compare.comparison`.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import statistics
import struct
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any, TypeVar

from lb.bench.testbed import netns
from lb.bench.testbed.daemons import (
    NICE,
    MuxDaemon,
    Stage,
    add_namespace,
    ended_by_signals,
    first_in_line,
    load_rules,
    needs,
    ticks,
)
from lb.bench.testbed.machine import commit_name, cpu_name
from lb.dataplane import Generator, GeneratorKind, Sent
from lb.errors import DataplaneError, IoError
from lb.model import Backend, IoMode, MuxSettings, PortRange, Protocol, Service

T = TypeVar("T")

#: Runs of each kind; their median counts.
RUNS = 5
#: Shortest run that says anything, seconds.
RUN_MIN = 0.1
FLOWS = 1024
#: 64 bytes on the wire, with the frame check sequence.
FRAME_BYTES = 60
#: The MUX learns the flows, and the generator how many packets it makes at once; seconds.
WARM_UP = 0.5
#: Before and after the window of a run at full speed, as a part of it.
MARGIN = 0.2
#: Nothing arrived for so long: the last packet has arrived, seconds.
QUIET = 0.1

_PROGRAMS = {"ip": "iproute2", "setpriv": "util-linux", "taskset": "util-linux"}

_CLIENT, _MUX_IN, _MUX_OUT, _HOST = "10.0.1.1", "10.0.1.11", "10.0.2.11", "10.0.2.21"
_CLIENT_MAC, _MUX_IN_MAC, _MUX_OUT_MAC = (f"02:00:00:00:00:{number:02x}" for number in (1, 2, 3))
#: Of nobody: the sink's interface counts the frames, and its kernel drops them at once as somebody else's.
_HOST_MAC = "02:00:00:00:00:ff"
_VIP, _PORT = "198.18.0.1", 53
_IN, _OUT = "lbin", "lbout"
_SIOCETHTOOL, _ETHTOOL_SGRO = 0x8946, 0x2C


@dataclass(frozen=True, slots=True)
class IoRun:
    """A run at full speed, and the one at half of it that followed."""

    mpps: float  #: forwarded, million packets per second
    offered: float  #: what the generator sent meanwhile, the same unit
    ns_per_packet: float  #: CPU time of lb-mux for a forwarded packet, the sink's receive side included
    busy: float  #: part of its core that lb-mux took
    steal: float  #: part of the two cores that the hypervisor took
    paced_mpps: float  #: the rate of the second run
    loss: float  #: part of its packets that did not arrive
    paced_steal: float


@dataclass(frozen=True, slots=True)
class IoBench:
    """The answer of ``lb bench io``; the names are a contract."""

    mpps: float  #: median of the runs
    ns_per_packet: float
    loss: float
    steal: float
    runs: list[float]  #: million packets per second of each
    mode: str
    cpu: str
    commit: str
    io: str
    source: str  #: what made the packets at full speed
    noise: float  #: spread of the runs, as a part of the median
    cores: list[int]  #: of generator and MUX; the MUX's first, where it has several workers
    workers: int
    details: list[IoRun]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def bench_io(*, io: IoMode, seconds: float, workers: int = 1) -> IoBench:
    """Measures for so long, half of it at full speed; needs root.

    Where there are too few CPUs for generator and workers, the last worker has the generator's beside it.
    """
    needs("lb bench io", _PROGRAMS)
    netns.reap()
    cores = two_cores()
    window = max(seconds / (2 * RUNS), RUN_MIN)
    with ended_by_signals(), first_in_line(), MuxStage(io, cores, workers) as stage:
        stage.warm_up()
        runs: list[IoRun] = []
        for _ in range(RUNS):
            runs.append(one_run(stage, window, [run.mpps for run in runs]))
        mode, source = stage.mode(), stage.source
    rates = [run.mpps for run in runs]
    mpps = statistics.median(rates)
    return IoBench(
        mpps=mpps,
        ns_per_packet=statistics.median(run.ns_per_packet for run in runs),
        loss=statistics.median(run.loss for run in runs),
        steal=round(statistics.mean([*(run.steal for run in runs), *(run.paced_steal for run in runs)]), 4),
        runs=rates,
        mode=mode,
        cpu=cpu_name(),
        commit=commit_name(),
        io=io.value,
        source=source,
        noise=round((max(rates) - min(rates)) / mpps, 4) if mpps else 0.0,
        cores=list(cores),
        workers=workers,
        details=runs,
    )


# ---- one measurement ----


@dataclass(frozen=True, slots=True)
class _Moment:
    """Counters, and when they were read."""

    at: int  #: ns
    arrived: int
    cpu: int  #: ns that lb-mux has used
    ticks: int
    stolen: int

    def steal_until(self, later: _Moment) -> float:
        return (later.stolen - self.stolen) / max(later.ticks - self.ticks, 1)


def one_run(stage: RateStage, window: float, rates: list[float]) -> IoRun:
    margin = window * MARGIN
    sending = stage.send(window + 2 * margin)
    time.sleep(margin)
    first = stage.moment()
    time.sleep(window)
    last = stage.moment()
    sent = sending.result()
    stage.settle()
    elapsed, arrived = last.at - first.at, last.arrived - first.arrived
    if not arrived:
        raise IoError(f"no packet came through (the generator sent {sent.sent:,}); {stage.last_words()}")
    mpps = round(arrived * 1e3 / elapsed, 4)
    rate = statistics.median([*rates, mpps]) / 2
    paced, loss, paced_steal = _paced_run(stage, window, rate * 1e6)
    return IoRun(
        mpps=mpps,
        offered=round(sent.sent / sent.seconds / 1e6, 4),
        ns_per_packet=round((last.cpu - first.cpu) / arrived, 1),
        busy=round((last.cpu - first.cpu) / elapsed, 3),
        steal=round(first.steal_until(last), 4),
        paced_mpps=round(paced.sent / paced.seconds / 1e6, 4),
        loss=loss,
        paced_steal=round(paced_steal, 4),
    )


def _paced_run(stage: RateStage, window: float, rate: float) -> tuple[Sent, float, float]:
    """What was sent, the part that was lost, and what the hypervisor took."""
    first = stage.moment()
    sent = stage.send_steadily(window, rate).result()
    stage.settle()
    last = stage.moment()
    lost = sent.sent - (last.arrived - first.arrived)
    return sent, round(max(lost, 0) / sent.sent, 6), first.steal_until(last)


def two_cores() -> tuple[int, int]:
    """For generator and MUX: not two halves of one core, where there is a choice."""
    allowed = sorted(os.sched_getaffinity(0))
    first = allowed[0]
    others = [cpu for cpu in allowed if cpu not in _siblings(first)] or allowed[1:]
    return first, others[0] if others else first


def _cpus_of_workers(cores: tuple[int, int], workers: int) -> list[int]:
    """The MUX's core, then others, and that of the generator at last."""
    generator, mux = cores
    others = [cpu for cpu in sorted(os.sched_getaffinity(0)) if cpu not in cores]
    return [mux, *others, generator][:workers] if generator != mux else [mux]


def _siblings(cpu: int) -> set[int]:
    """CPUs that share a core with this one, itself included."""
    try:
        text = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text()
    except OSError:
        return {cpu}
    found: set[int] = set()
    for part in text.strip().split(","):
        start, _, end = part.partition("-")
        found.update(range(int(start), int(end or start) + 1))
    return found


# ---- the stage ----


class RateStage(Stage):
    """Generator, what is measured, and sink, each in a namespace of its own, with all that runs in them. A subclass
    puts what is measured into the one in the middle."""

    def __init__(self, cores: tuple[int, int], queues: int = 1) -> None:
        """``queues``: of the interface that packets come in by."""
        super().__init__()
        self._queues = queues
        self._generator_ns, self._middle, self._sink_ns = map(self._space, ("gen", "mux", "sink"))
        self._cores = cores

    # -- set-up -------------------------------------------------------------------------------------------------

    def _build(self) -> None:
        for name in (self._generator_ns, self._middle, self._sink_ns):
            add_namespace(name, self._resources)
        self._wire()
        self._arrivals = self._resources.enter_context(netns.inside(self._sink_ns, open_counters))
        self._thread = self._resources.enter_context(
            ThreadPoolExecutor(1, "generator", initializer=settle_thread, initargs=(self._generator_ns, self._cores[0]))
        )
        self._steady = self._open_generator(GeneratorKind.SOCKET)
        self._fastest, self.source = self._open_fastest()
        self._start()

    def _wire(self) -> None:
        mux, sink = self._middle, self._sink_ns
        queues = f"numtxqueues {self._queues} numrxqueues {self._queues}"
        netns.batch(
            [
                f"link add name {_OUT} address {_CLIENT_MAC} {queues} type veth"
                f" peer name {_IN} address {_MUX_IN_MAC} {queues} netns {mux}",
                f"address add {_CLIENT}/24 dev {_OUT}",
                f"link set dev {_OUT} up",
            ],
            self._generator_ns,
        )
        netns.batch(
            [
                f"link add name {_OUT} address {_MUX_OUT_MAC} type veth peer name {_IN} netns {sink}",
                f"address add {_MUX_IN}/24 dev {_IN}",
                f"address add {_MUX_OUT}/24 dev {_OUT}",
                *(f"link set dev {device} up" for device in ("lo", _IN, _OUT)),
                f"neighbour replace {_HOST} lladdr {_HOST_MAC} dev {_OUT} nud permanent",
            ],
            mux,
        )
        netns.batch([f"link set dev {_IN} up"], sink)

    def _open_generator(self, kind: GeneratorKind) -> Generator:
        generator = self._thread.submit(Generator, _OUT, _frame(), FLOWS, kind).result()
        self._resources.callback(generator.close)
        return generator

    def _open_fastest(self) -> tuple[Generator, str]:
        """The generator for full speed, and what it is."""
        try:
            netns.inside(self._middle, lambda: merge_received(_IN))  # or the link takes no frames of the kernel's
            return self._open_generator(GeneratorKind.LIVE), "frames made by the kernel (XDP)"
        except (DataplaneError, OSError) as error:
            reason = str(error).rstrip(".")
            return self._steady, f"a socket, which may be the limit; the kernel does not make frames: {reason}"

    def _start(self) -> None:
        """Packets to the VIP go to the sink from now on."""
        raise NotImplementedError

    # -- questions ----------------------------------------------------------------------------------------------

    def mode(self) -> str:
        """What is measured, in words."""
        raise NotImplementedError

    def last_words(self) -> str:
        """What it has to say when no packet comes through."""
        raise NotImplementedError

    #: Whether it has a process whose time can be told.
    measures_cpu = False

    def _cpu_ns(self) -> int:
        """CPU time that it has used; 0 where the kernel's part is nobody's."""
        return 0

    def moment(self) -> _Moment:
        total, stolen = ticks(self._cores)
        return _Moment(time.monotonic_ns(), self._arrived(), self._cpu_ns(), total, stolen)

    def _arrived(self) -> int:
        """Packets that came to the sink."""
        self._arrivals.seek(0)
        for line in self._arrivals.read().decode().splitlines():
            name, _, words = line.partition(":")
            if name.strip() == _IN:
                return int(words.split()[1])
        raise IoError("the sink's interface is gone")

    # -- acts ---------------------------------------------------------------------------------------------------

    def warm_up(self) -> None:
        self.send(WARM_UP).result()
        self.settle()

    def send(self, seconds: float) -> Future[Sent]:
        """As fast as it goes."""
        return self._thread.submit(self._fastest.run, seconds)

    def send_steadily(self, seconds: float, rate: float) -> Future[Sent]:
        return self._thread.submit(self._steady.run, seconds, rate)

    def settle(self) -> None:
        """Returns when all that was sent has arrived or is lost."""
        seen, since = self._arrived(), time.monotonic()
        while time.monotonic() - since < QUIET:
            time.sleep(QUIET / 10)
            now = self._arrived()
            if now != seen:
                seen, since = now, time.monotonic()


class MuxStage(RateStage):
    """A real ``lb-mux`` in the middle."""

    measures_cpu = True

    def __init__(self, io: IoMode, cores: tuple[int, int], workers: int = 1) -> None:
        super().__init__(cores, workers if io is IoMode.XDP else 1)
        self._settings = MuxSettings(
            name="bench",
            address=IPv4Address(_MUX_OUT),
            seed=bytes(range(16)),
            interface=_IN,
            io=io,
            workers=workers,
            state_dir=str(self.directory / "state"),
        )

    def _start(self) -> None:
        cpus = ",".join(map(str, _cpus_of_workers(self._cores, self._settings.workers)))
        prefix = ("taskset", "-c", cpus, "nice", "-n", str(NICE))
        self._mux = self._keep(MuxDaemon(self._middle, self._settings, (_service(),), prefix=prefix))
        self._mux.wait_ready()

    def mode(self) -> str:
        return self._mux.mode

    def last_words(self) -> str:
        return self._mux.last_words()

    def _cpu_ns(self) -> int:
        return self._mux.cpu_ns()


class KernelStage(RateStage):
    """The kernel forwards, behind ``rules`` of nft; on the generator's core, where a veth's softirq is."""

    def __init__(self, cores: tuple[int, int], rules: str, words: str) -> None:
        super().__init__(cores)
        self._rules = rules
        self._words = words

    def _start(self) -> None:
        netns.sysctl(self._middle, {"ipv4/ip_forward": 1})
        netns.ip("-n", self._middle, "route", "add", f"{_VIP}/32", "via", _HOST)
        if self._rules:
            load_rules(self._middle, self._rules)

    def mode(self) -> str:
        return self._words

    def last_words(self) -> str:
        return "the kernel forwards nothing"


def _service() -> Service:
    return Service(
        name="bench",
        vip=IPv4Network(_VIP),
        protocol=Protocol.UDP,
        ports=PortRange(_PORT, _PORT),
        backends=(Backend("sink", IPv4Address(_HOST)),),
    )


def rules_addresses() -> tuple[str, str]:
    """The VIP, and where its packets shall go."""
    return _VIP, _HOST


def _frame() -> bytes:
    """From the client to the VIP, as its router would hand it to the MUX."""
    return udp_frame((_CLIENT_MAC, _MUX_IN_MAC), (_CLIENT, _VIP), _PORT)


def udp_frame(macs: tuple[str, str], addresses: tuple[str, str], port: int) -> bytes:
    """Of :data:`FRAME_BYTES`; addresses are source and destination, the generator writes the source port."""
    length = FRAME_BYTES - 14
    udp = struct.pack("!HHHH", 0, port, length - 20, 0)
    packed = b"".join(IPv4Address(address).packed for address in addresses)
    header = struct.pack("!BBHHHBBH", 0x45, 0, length, 0, 0x4000, 64, 17, 0) + packed
    total: int = sum(struct.unpack("!10H", header))
    checksum = ~(total + (total >> 16)) & 0xFFFF
    ethernet = bytes.fromhex((macs[1] + macs[0]).replace(":", "")) + b"\x08\x00"
    return (ethernet + header[:10] + checksum.to_bytes(2) + header[12:] + udp).ljust(FRAME_BYTES, b"\0")


def open_counters() -> Any:
    """The interfaces' counters of the namespace that this thread is in, wherever they are read."""
    return Path("/proc/thread-self/net/dev").open("rb", buffering=0)


def merge_received(interface: str) -> None:
    """Receive offload (GRO) on, as NICs have it."""
    value = (ctypes.c_uint32 * 2)(_ETHTOOL_SGRO, 1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SIOCETHTOOL, struct.pack("16sP16x", interface.encode(), ctypes.addressof(value)))


def settle_thread(namespace: str, cpu: int) -> None:
    """Of the generator: namespace, core and priority are the thread's own."""
    netns.enter(namespace)
    os.sched_setaffinity(0, {cpu})
    os.setpriority(os.PRIO_PROCESS, 0, NICE)
