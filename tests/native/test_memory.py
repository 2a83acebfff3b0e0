# SPDX-License-Identifier: Apache-2.0
"""How much memory a large MUX needs: in a process of its own, read from the kernel."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

#: 10,000 services of 4,093 slots with four backends each that no other service has, and a million remembered flows.
SCRIPT = """
from ipaddress import IPv4Address, ip_network
from itertools import islice

from lb.dataplane import LinkHeader, Pipeline
from lb.dataplane.compile.compiler import Compiler
from lb.model import Backend, MuxSettings, PortRange, Protocol, Service
from tests.native.test_pressure import packet

def vip(n):
    return IPv4Address("203.0.113.10") if n == 0 else IPv4Address(0x0A000000 + n)

def service(n):
    backends = tuple(Backend(f"s{n}-{i}", IPv4Address(0x0B000000 + 4 * n + i)) for i in range(4))
    return Service(f"s{n}", ip_network(vip(n)), Protocol.TCP, PortRange(80, 80), backends)

settings = MuxSettings("m", IPv4Address("10.0.1.1"), bytes(16), "eth0", slots=4093, flows=1_000_000)
forwarding = Compiler(settings).compile(service(n) for n in range(10_000))
snapshot = forwarding.offline_snapshot()
pipeline = Pipeline(settings.flows, LinkHeader.NONE)
for start in range(0, 1_000_000, 64):
    pipeline.process(snapshot, [(packet("S", flow), 40, 0) for flow in range(start, start + 64)])
assert sum(pipeline.counters().flows.live) > 990_000  # some untrusted ones made room for others
with open("/proc/self/status") as status:
    print(next(line.split()[1] for line in status if line.startswith("VmHWM:")))

# What one more worker takes beside its part of the flow table, when all services have had a packet.
from lb.dataplane import flow_table_bytes
from tests.packets.build import ipv4, tcp

def resident():
    with open("/proc/self/smaps_rollup") as rollup:
        return next(int(line.split()[1]) for line in rollup if line.startswith("Private_Dirty:"))

packets = [ipv4(tcp("S"), to=str(vip(n))) for n in range(10_000)]
before = resident()
another = Pipeline(100_000, LinkHeader.NONE)
for start in range(0, 10_000, 64):
    another.process(snapshot, [(data, 40, 0) for data in packets[start : start + 64]])
assert len(another.busy_services(10_000)) == 10_000
print(resident() - before - flow_table_bytes(100_000) // 1024)
"""


@pytest.mark.skipif("libasan" in os.environ.get("LD_PRELOAD", ""), reason="the sanitizer needs more memory itself")
def test_ten_thousand_services_and_a_million_flows_stay_under_160_mib_and_one_more_worker_takes_two() -> None:
    """Of the data plane: lb-mux needs some 80 MiB besides. The latter beside its part of the flow table."""
    found = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    most, more = map(int, found.stdout.split())
    assert most < 160 * 1024, f"{most / 1024:.0f} MiB"
    print(f"{most} KiB, {more} KiB")
    assert more < 2 * 1024, f"{more} KiB"
