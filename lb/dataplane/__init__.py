# SPDX-License-Identifier: Apache-2.0
"""The edge between Python and the C data plane, and the only package that touches the extension.

    binding       the extension itself, and what all wrappers share
    quic          connection ids that name backends
    snapshot      what a packet's decision reads      pipeline   the MUX's packets, flow table and counters
    reasons       what can become of a packet         worker     C threads, and what is asked of them
    flow_counts   how many flows each backend has     records    flows as MUXes send them to each other
    io            AF_PACKET and TUN                   xdp        AF_XDP and its program
    bpf_programs  BPF programs of our own devices     host       decapsulation on a backend's host
    flow_news     what others are to be told of flows
    measure       benchmark and packet generator      regroup    flows between the workers of one MUX

Each class owns one C object and frees it with its last reference; what C keeps a pointer to, the Python
object keeps alive. Errno becomes :class:`~lb.errors.DataplaneError` with the operands in the message.
What comes back is plain values, never cdata. Nothing crosses here per packet, except in replay and tests.

Snapshots and everything below them are immutable and may be used from any thread; a :class:`Pipeline` belongs
to whoever runs it, and once a worker does, is only read.
"""

from lb.dataplane.bpf_programs import TunnelGsoProgram, TunSteeringProgram
from lb.dataplane.flow_counts import BackendFlows, Census, Unsynchronised, unsynchronised_flows
from lb.dataplane.flow_news import FlowLedger, FlowNews
from lb.dataplane.host import HOST_REASONS, DecapProgram, HostPipeline, HostReason, RawTunnel
from lb.dataplane.io import RING_BYTES, Io, IoStats, PacketIo, TapIo, TunIo
from lb.dataplane.measure import (
    BENCH_FRAMES,
    BENCH_SEGMENT,
    Bench,
    BenchMode,
    BenchSample,
    Fate,
    Generator,
    GeneratorKind,
    Script,
    Sent,
)
from lb.dataplane.pipeline import (
    BURST_MAX,
    FLOW_CLASSES,
    FLOW_REPORTS,
    FLOW_TIERS,
    SHED_MAX,
    VECTORS,
    Answers,
    Counters,
    FlowCounters,
    FlowEntry,
    FlowTuple,
    Fragments,
    LinkHeader,
    LookupAnswer,
    Offload,
    Pipeline,
    Result,
    ServiceCounters,
    flow_table_bytes,
    lookup,
)
from lb.dataplane.quic import IdFormat, QuicRoutes, ServerId
from lb.dataplane.reasons import REASONS, Reason, Verdict
from lb.dataplane.records import ADOPT_MAX, RECORD_BYTES, Adoption, with_age
from lb.dataplane.snapshot import (
    NO_MAC,
    BackendEntry,
    Hop,
    HopRow,
    HopTable,
    ServiceEntry,
    Snapshot,
    VipMap,
)
from lb.dataplane.worker import ASK_TIMEOUT, Runs, Worker, WorkerCounters
from lb.dataplane.xdp import XDP_FRAME_MAX, XDP_QUEUES_MAX, Redirect, XdpIo

__all__ = [
    "ADOPT_MAX",
    "ASK_TIMEOUT",
    "BENCH_FRAMES",
    "BENCH_SEGMENT",
    "BURST_MAX",
    "FLOW_CLASSES",
    "FLOW_REPORTS",
    "FLOW_TIERS",
    "HOST_REASONS",
    "NO_MAC",
    "REASONS",
    "RECORD_BYTES",
    "RING_BYTES",
    "SHED_MAX",
    "VECTORS",
    "XDP_FRAME_MAX",
    "XDP_QUEUES_MAX",
    "Adoption",
    "Answers",
    "BackendEntry",
    "BackendFlows",
    "Bench",
    "BenchMode",
    "BenchSample",
    "Census",
    "Counters",
    "DecapProgram",
    "Fate",
    "FlowCounters",
    "FlowEntry",
    "FlowLedger",
    "FlowNews",
    "FlowTuple",
    "Fragments",
    "Generator",
    "GeneratorKind",
    "Hop",
    "HopRow",
    "HopTable",
    "HostPipeline",
    "HostReason",
    "IdFormat",
    "Io",
    "IoStats",
    "LinkHeader",
    "LookupAnswer",
    "Offload",
    "PacketIo",
    "Pipeline",
    "QuicRoutes",
    "RawTunnel",
    "Reason",
    "Redirect",
    "Result",
    "Runs",
    "Script",
    "Sent",
    "ServerId",
    "ServiceCounters",
    "ServiceEntry",
    "Snapshot",
    "TapIo",
    "TunIo",
    "TunSteeringProgram",
    "TunnelGsoProgram",
    "Unsynchronised",
    "Verdict",
    "VipMap",
    "Worker",
    "WorkerCounters",
    "XdpIo",
    "flow_table_bytes",
    "lookup",
    "unsynchronised_flows",
    "with_age",
]
