# SPDX-License-Identifier: Apache-2.0
"""What takes the outer header off on a backend's host: the tc program, and the same in C over a raw socket."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_network
from pathlib import Path

from lb.dataplane.binding import Cdata, Closable, c, check, ffi, make, text
from lb.dataplane.io import Io
from lb.dataplane.pipeline import Offload, load
from lb.dataplane.worker import Worker
from lb.errors import DataplaneError
from lb.model import GUE_PORT, Address, Network

_TAG_BYTES = 8
_VERIFIER_LOG_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class HostReason:
    """What can become of a tunnel packet on a backend's host."""

    name: str
    drops: bool
    help: str


HOST_REASONS: tuple[HostReason, ...] = tuple(
    HostReason(text(c.host_reason_name(i)), bool(c.host_reason_drops(i)), text(c.host_reason_sentence(i)))
    for i in range(c.host_reason_count())
)


def _mapped(address: Address) -> bytes:
    """16 bytes, IPv4 as ``::ffff:a.b.c.d``."""
    return address.packed if address.version == 6 else bytes(10) + b"\xff\xff" + address.packed


def host_prefixes(networks: Iterable[Network | Address]) -> tuple[Cdata, int]:
    """An array of ``struct host_prefix``, and how many are in it."""
    pairs = set()
    for network in networks:
        plain = ip_network(network)
        pairs.add((_mapped(plain.network_address), plain.prefixlen + (96 if plain.version == 4 else 0)))
    array = ffi.new("struct host_prefix[]", max(len(pairs), 1))
    for item, (address, length) in zip(array, sorted(pairs), strict=False):
        item.address = address
        item.length = length
    return array, len(pairs)


def _network_of(prefix: Cdata) -> Network:
    packed = bytes(prefix.address)
    if packed.startswith(bytes(10) + b"\xff\xff") and prefix.length >= 96:
        return IPv4Network((packed[12:], prefix.length - 96))
    return IPv6Network((packed, prefix.length))


def _host_counts(counts: Cdata) -> dict[str, int]:
    return {reason.name: int(counts[number]) for number, reason in enumerate(HOST_REASONS)}


class DecapProgram(Closable):
    """The tc program of a host agent with its maps; loaded, or found behind an attached filter."""

    def __init__(self, handle: Cdata) -> None:
        self._c = handle

    @classmethod
    def load(
        cls,
        *,
        address: IPv4Address | None,
        address6: Address | None,
        link_header: int,
        muxes: Iterable[Address],
        vips: Iterable[Network],
        gue_port: int = GUE_PORT,
        inherit: DecapProgram | None = None,
    ) -> DecapProgram:
        """Loads it, maps filled, counters those of ``inherit``; the kernel's words are in the error. ``gue_port`` 0:
        no tunnels over UDP."""
        settings = ffi.new("struct decap_settings *")
        settings.gue_port = gue_port
        if address is not None:
            settings.address = _mapped(address)
        if address6 is not None:
            settings.address6 = address6.packed
        settings.link_header = link_header
        log = ffi.new("char[]", _VERIFIER_LOG_BYTES)
        out = ffi.new("struct decap **")
        old = inherit._c if inherit is not None else ffi.NULL
        status = c.decap_load(settings, old, log, _VERIFIER_LOG_BYTES, out)
        if status < 0:
            raise DataplaneError(bpf_refusal(status, ffi.string(log).decode(errors="replace")))
        program = cls(ffi.gc(out[0], c.decap_destroy))
        program._fill(muxes, vips)
        return program

    @staticmethod
    def crosses() -> bool:
        """Whether this kernel can take packets out of tunnels of the other family."""
        return bool(c.decap_crosses())

    @classmethod
    def open(cls, program_id: int) -> DecapProgram:
        """The program with this number, if it is one of ours."""
        what = f"Cannot open BPF program {program_id}"
        return cls(make("decap", c.decap_destroy, what, lambda out: c.decap_open(program_id, out)))

    def _fill(self, muxes: Iterable[Address], vips: Iterable[Network]) -> None:
        array, count = host_prefixes(muxes)
        for index in range(count):
            check(c.decap_add_mux(self._c, array[index].address), f"Cannot add MUX {index + 1} of {count}")
        array, count = host_prefixes(vips)
        for index in range(count):
            what = f"Cannot add VIP {index + 1} of {count}"
            check(c.decap_add_vip(self._c, ffi.addressof(array, index)), what)

    @property
    def fd(self) -> int:
        """For attaching; stays this object's."""
        return int(c.decap_program_fd(self._c))

    @property
    def number(self) -> int | None:
        """By which the kernel names it; None where it does not tell. Needs no rights."""
        try:
            lines = Path(f"/proc/self/fdinfo/{self.fd}").read_text().splitlines()
        except OSError:
            return None
        return next((int(line.split()[1]) for line in lines if line.startswith("prog_id:")), None)

    @property
    def tag(self) -> bytes:
        """The kernel's digest of the instructions."""
        tag = ffi.new("uint8_t[]", _TAG_BYTES)
        c.decap_tag(self._c, tag)
        return bytes(tag)

    def muxes(self) -> frozenset[Network]:
        return self._prefixes(c.decap_muxes)

    def vips(self) -> frozenset[Network]:
        return self._prefixes(c.decap_vips)

    def _prefixes(self, read: Callable[[Cdata, Cdata, int], int]) -> frozenset[Network]:
        count = check(read(self._c, ffi.NULL, 0), "Cannot read a BPF map")
        array = ffi.new("struct host_prefix[]", max(count, 1))
        count = min(check(read(self._c, array, count), "Cannot read a BPF map"), count)
        return frozenset(_network_of(array[index]) for index in range(count))

    def counters(self) -> dict[str, int]:
        """Packets by reason, since the first program of this host."""
        counts = ffi.new("uint64_t[]", len(HOST_REASONS))
        check(c.decap_counters(self._c, counts), "Cannot read the BPF counters")
        return _host_counts(counts)

    def test(self, frame: bytes) -> bytes | None:
        """What the program makes of an Ethernet frame: the frame that goes on, or None for a drop."""
        out = ffi.new("uint8_t[]", len(frame) + 256)
        length = ffi.new("uint32_t *", len(out))
        verdict = ffi.new("uint32_t *")
        check(c.decap_test(self._c, frame, len(frame), out, length, verdict), "Cannot test the BPF program")
        return None if verdict[0] else bytes(ffi.buffer(out, length[0]))

    def close(self) -> None:
        """Lets go of it; a filter that uses it keeps the program alive."""
        super().close()


def bpf_refusal(status: int, log: str) -> str:
    """The kernel's reason, and the verifier's last words where it had any."""
    reason = {
        errno.EPERM: "not permitted (it needs CAP_BPF and CAP_NET_ADMIN, and a kernel that is not locked down)",
        errno.ENOSYS: "this kernel has no bpf(2)",
        errno.ENOTSUP: "this kernel's helper cannot take an outer header off",
    }.get(-status, os.strerror(-status).lower())
    lines = [line for line in log.splitlines() if line and not line.startswith("processed ")]
    return f"{reason}; the verifier says: {lines[-1]}" if lines else reason


class HostPipeline:
    """Decapsulation in userspace; the rules may change while a worker runs it."""

    def __init__(self, muxes: Iterable[Address], vips: Iterable[Network]) -> None:
        rules = _host_rules(muxes, vips)
        self._c = make("host", c.host_destroy, "Cannot make a host pipeline", lambda out: c.host_create(rules, out))

    @property
    def pipeline_pointer(self) -> Cdata:
        """For a :class:`~lb.dataplane.worker.Worker`."""
        return c.host_pipeline(self._c)

    def publish(self, muxes: Iterable[Address], vips: Iterable[Network]) -> None:
        """Rules for all later bursts."""
        c.host_publish(self._c, _host_rules(muxes, vips))

    def process(self, packets: Iterable[bytes], offload: Offload | None = None) -> list[bytes]:
        """Runs packets (outer IP header first) through the pipeline, in memory; returns the inner ones that go on.

        ``offload``: what a driver tells of each of them.
        """
        io = make("io", c.io_close, "Cannot make buffers", lambda out: c.io_memory_open(0, out))
        item = ffi.new("struct memory_sent *")
        sent: list[bytes] = []
        for packet in packets:
            load(io, packet, len(packet), offload)
            check(c.host_run_once(self._c, io), "Cannot run the host pipeline")
            for index in range(c.io_memory_sent_count(io)):
                c.io_memory_sent(io, index, item)
                sent.append(bytes(ffi.buffer(item.data, item.len)))
        return sent

    def counters(self) -> dict[str, int]:
        """Packets by reason."""
        counts = ffi.new("uint64_t[]", len(HOST_REASONS))
        c.host_counters(self._c, counts)
        return _host_counts(counts)


class _RawIo(Io):
    """Sockets for each kind of tunnel, and a TUN device."""

    def __init__(self, address: IPv4Address | None, address6: Address | None, gue_port: int, device: str) -> None:
        own = " and ".join(str(one) for one in (address, address6) if one is not None)
        what = f"Cannot open sockets for tunnels to {own} (UDP port {gue_port}) and the TUN device {device}"
        four, six = (ffi.NULL if one is None else one.packed for one in (address, address6))
        self._c = make("io", c.io_close, what, lambda out: c.raw_io_open(four, six, gue_port, device.encode(), out))


class RawTunnel:
    """Raw socket, TUN device and the worker between them; runs a :class:`HostPipeline` until closed."""

    def __init__(
        self,
        pipeline: HostPipeline,
        address: IPv4Address | None,
        device: str,
        address6: Address | None = None,
        gue_port: int = GUE_PORT,
    ) -> None:
        self._pipeline = pipeline
        self._io = _RawIo(address, address6, gue_port, device)
        self._worker: Worker | None = None

    def start(self) -> None:
        self._worker = Worker(self._pipeline, self._io)
        self._worker.start()

    def bursts(self) -> int | None:
        """The worker's turns so far: its heartbeat; None before it started and after it was closed."""
        return self._worker.counters().bursts if self._worker is not None else None

    def close(self) -> None:
        """Stops the worker; the TUN device ends with the I/O."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None
        self._io.close()


def _host_rules(muxes: Iterable[Address], vips: Iterable[Network]) -> Cdata:
    out = ffi.new("struct host_rules **")
    trusted, trusted_count = host_prefixes(muxes)
    served, served_count = host_prefixes(vips)
    check(c.host_rules_create(trusted, trusted_count, served, served_count, out), "Cannot make the host's rules")
    return out[0]
