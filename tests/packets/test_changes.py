# SPDX-License-Identifier: Apache-2.0
"""What remembered flows do when their backend drains, goes down, leaves, loses its weight, or they are silent."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from lb.dataplane import FLOW_CLASSES, Hop, LinkHeader, Pipeline, Result, Snapshot
from lb.dataplane.compile.compiler import Compiler, Forwarding
from lb.model import Backend, BackendState, Idle, MuxSettings, PortRange, Protocol, Service
from tests.packets.build import CLIENT, icmp, ipv4, tcp, udp
from tests.packets.world import SETTINGS

SECOND = 1_000_000_000
UP, DRAIN, DOWN = BackendState
A, B, C = (Backend(name, ip_address(f"10.0.3.{n}")) for n, name in enumerate("abc", 1))


def web(*backends: Backend) -> Service:
    return Service("web", ip_network("203.0.113.10"), Protocol.TCP, PortRange(80, 80), backends)


def dns(*backends: Backend) -> Service:
    return Service("dns", ip_network("203.0.113.10"), Protocol.UDP, PortRange(53, 53), backends)


class Story:
    """A MUX of two services with the same backends, and a clock in seconds."""

    def __init__(self, *backends: Backend, settings: MuxSettings = SETTINGS) -> None:
        self.compiler = Compiler(settings)
        self.pipeline = Pipeline(settings.flows, LinkHeader.NONE)
        self.now = 0.0
        self.forwarding: Forwarding
        self.snapshot: Snapshot
        self.publish(*backends)

    def publish(self, *backends: Backend) -> None:
        self.forwarding = self.compiler.compile([web(*backends), dns(*backends)])
        self.snapshot = self.forwarding.offline_snapshot()

    def send(self, packet: bytes) -> Result:
        (result,) = self.pipeline.process(self.snapshot, [(packet, len(packet), int(self.now * SECOND))])
        assert self.pipeline.check() is None
        return result

    def tells(self, packet: bytes) -> tuple[str | None, str | None]:
        """Backend and flow."""
        result = self.send(packet)
        return self.forwarding.names(result.service_id, result.backend)[1], result.flow

    def syn(self, port: int = 1) -> tuple[str | None, str | None]:
        return self.tells(ipv4(tcp("S", sport=port)))

    def ack(self, port: int = 1) -> tuple[str | None, str | None]:
        return self.tells(ipv4(tcp("A", b"data", sport=port)))

    def ask(self, port: int = 1) -> tuple[str | None, str | None]:
        return self.tells(ipv4(udp(sport=port)))

    def flow_class(self) -> str:
        live = self.pipeline.counters().flows.live
        assert sum(live) == 1
        return FLOW_CLASSES[live.index(1)]

    def tick(self) -> None:
        """Into the next tick of the flow table's clock."""
        self.now += 0.27


def established(story: Story, port: int = 1) -> None:
    """As far as in a later tick."""
    story.syn(port)
    story.ack(port)
    story.tick()
    story.ack(port)


def test_a_flow_is_new_then_known() -> None:
    story = Story(A)
    assert story.syn() == ("a", "new")
    assert story.flow_class() == "tcp_untrusted"
    story.tick()
    assert story.syn() == ("a", "known")
    assert story.flow_class() == "tcp_untrusted"
    story.tick()
    assert story.ack() == ("a", "known")
    assert story.flow_class() == "tcp_trusted"


def test_a_flow_that_begins_in_the_middle_is_trusted_with_a_packet_in_a_later_tick() -> None:
    story = Story(A)
    assert story.ack() == ("a", "new")
    assert story.flow_class() == "tcp_untrusted"
    for _ in range(3):
        assert story.ack() == ("a", "known")
        assert story.flow_class() == "tcp_young"
    story.tick()
    assert story.ack() == ("a", "known")
    assert story.flow_class() == "tcp_trusted"


def test_a_udp_flow_is_trusted_with_a_packet_in_a_later_tick() -> None:
    story = Story(A)
    assert story.ask() == ("a", "new")
    assert story.flow_class() == "udp_untrusted"
    assert story.ask() == ("a", "known")
    assert story.flow_class() == "udp_young"
    story.tick()
    assert story.ask() == ("a", "known")
    assert story.flow_class() == "udp_trusted"


def test_a_conversation_that_ends_is_remembered_as_long_as_any() -> None:
    story = Story(A)
    established(story)
    for flags in ("FA", "A", "R", "A"):
        assert story.tells(ipv4(tcp(flags, sport=1))) == ("a", "known")
        assert story.flow_class() == "tcp_trusted_ended"
    story.now += 890
    assert story.tells(ipv4(tcp("A", sport=1))) == ("a", "known")
    assert story.ack() == ("a", "known"), "data: it goes on after all"
    assert story.flow_class() == "tcp_trusted"


def test_a_conversation_of_a_moment_ends_young() -> None:
    story = Story(A)
    story.syn()
    story.ack()
    assert story.tells(ipv4(tcp("FA", sport=1))) == ("a", "known")
    assert story.flow_class() == "tcp_young_ended"
    story.tick()
    assert story.syn() == ("a", "known")
    assert story.flow_class() == "tcp_young", "the same ports again"


def test_a_syn_never_moves_a_flow_whose_backend_is_up() -> None:
    story = Story(A)
    established(story)
    story.publish(replace(A, weight=0), B)
    assert story.syn() == ("a", "known")
    assert story.flow_class() == "tcp_trusted"


@pytest.mark.parametrize("flags", ["FA", "R", "RA", "SA", "SF", "SR", ""])
def test_only_a_plain_syn_opens_a_connection(flags: str) -> None:
    story = Story(A)
    established(story)
    story.publish(replace(A, state=DRAIN), B)
    assert story.tells(ipv4(tcp(flags, sport=1))) == ("a", "known")


@pytest.mark.parametrize("flags", ["S", "SE", "SEC", "SP", "SU"])
def test_a_syn_on_a_draining_backends_flow_is_a_new_connection(flags: str) -> None:
    story = Story(A)
    established(story)
    story.publish(replace(A, state=DRAIN), B)
    assert story.ack() == ("a", "known")
    assert story.tells(ipv4(tcp(flags, sport=1))) == ("b", "new")
    assert story.flow_class() == "tcp_untrusted"
    assert story.ack() == ("b", "known")


def test_a_draining_backend_keeps_its_tcp_flows_and_takes_no_new_one() -> None:
    story = Story(A)
    for port in range(50):
        established(story, port)
    story.publish(replace(A, state=DRAIN), B)
    assert {story.ack(port) for port in range(50)} == {("a", "known")}
    assert {story.syn(port) for port in range(50, 100)} == {("b", "new")}


def test_a_draining_backend_loses_its_udp_flows_at_once() -> None:
    story = Story(A)
    story.ask()
    story.publish(replace(A, state=DRAIN), B)
    assert story.ask() == ("b", "new")
    assert story.ask() == ("b", "known")


@pytest.mark.parametrize("state", [DRAIN, DOWN])
def test_a_trusted_udp_flow_moves_within_the_tick_of_its_last_packet(state: BackendState) -> None:
    story = Story(A)
    story.ask()
    story.tick()
    assert story.ask() == ("a", "known")
    assert story.flow_class() == "udp_trusted"
    story.publish(replace(A, state=state), B)
    assert story.ask() == ("b", "new")


def test_udp_flows_of_a_draining_backend_stay_where_nobody_else_takes_them() -> None:
    story = Story(A)
    story.ask()
    story.publish(replace(A, state=DRAIN))
    assert story.ask() == ("a", "known")
    assert story.send(ipv4(udp(sport=2))).reason == "no_backend"


def test_a_syn_that_nobody_takes_leaves_the_draining_flow_as_it_is() -> None:
    story = Story(A)
    established(story)
    story.publish(replace(A, state=DRAIN))
    assert story.send(ipv4(tcp("S", sport=1))).reason == "no_backend"
    assert story.ack() == ("a", "known")


@pytest.mark.parametrize("change", [(replace(A, state=DOWN), B), (B,)], ids=["down", "gone"])
def test_flows_of_a_backend_that_is_down_or_gone_are_chosen_anew(change: tuple[Backend, ...]) -> None:
    story = Story(A)
    established(story)
    story.ask()
    story.publish(*change)
    assert story.ack() == ("b", "new")
    assert story.ack() == ("b", "known")
    assert story.ask() == ("b", "new")


@pytest.mark.parametrize("change", [(replace(A, state=DOWN),), ()], ids=["down", "gone"])
def test_flows_without_any_backend_left_are_dropped(change: tuple[Backend, ...]) -> None:
    story = Story(A)
    established(story)
    story.publish(*change)
    result = story.send(ipv4(tcp("A", sport=1)))
    assert (result.reason, result.flow, result.backend) == ("no_backend", None, None)


def test_a_backend_that_comes_back_finds_the_flows_that_were_silent_meanwhile() -> None:
    story = Story(A)
    established(story)
    story.publish(replace(A, state=DOWN), B)
    story.publish(A, B)
    assert story.ack() == ("a", "known")


def test_weight_zero_keeps_flows_and_takes_no_new_one() -> None:
    story = Story(A)
    for port in range(50):
        established(story, port)
        story.ask(port)
    story.publish(replace(A, weight=0), B)
    assert {story.ack(port) for port in range(50)} == {("a", "known")}
    assert {story.ask(port) for port in range(50)} == {("a", "known")}
    assert {story.syn(port) for port in range(50, 100)} == {("b", "new")}


def test_a_new_backend_moves_no_known_flow() -> None:
    story = Story(A, B)
    first = {}
    for port in range(200):
        first[port] = story.syn(port)[0]
        story.ack(port)
    story.publish(A, B, C)
    assert {port: story.ack(port)[0] for port in range(200)} == first
    assert "c" in {story.syn(port)[0] for port in range(200, 300)}


def test_removing_one_backend_moves_no_flow_of_the_others() -> None:
    backends = [Backend(f"web-{i}", ip_address(f"10.0.4.{i}")) for i in range(1, 11)]
    story = Story(*backends)
    first = {}
    for port in range(1000):
        first[port] = story.syn(port)[0]
        story.ack(port)
    story.publish(*backends[1:])
    for port in range(1000):
        backend, flow = story.ack(port)
        assert (backend, flow) == (first[port], "known") if first[port] != "web-1" else flow == "new"


def test_a_renamed_service_keeps_its_flows() -> None:
    story = Story(A)
    established(story)
    forwarding = story.compiler.compile([replace(web(replace(A, weight=0), B), name="shop")])
    packet = ipv4(tcp("A", sport=1))
    (result,) = story.pipeline.process(forwarding.offline_snapshot(), [(packet, len(packet), 0)])
    assert forwarding.names(result.service_id, result.backend) == ("shop", "a")


# ---- silence ----


@pytest.mark.parametrize(
    ("send", "idle"),
    [("syn", 10), ("established", 900), ("ask", 60)],
)
def test_a_flow_ends_with_its_idle_timeout_not_earlier_and_not_much_later(send: str, idle: int) -> None:
    for silence, flow in ((idle - 0.001, "known"), (idle + 0.6, "new")):
        story = Story(A)
        story.now = 1000
        if send == "established":
            established(story)
        else:
            getattr(story, send)()
        story.now += silence
        assert (story.ask() if send == "ask" else story.ack()) == ("a", flow)


def test_each_packet_starts_the_silence_anew() -> None:
    story = Story(A)
    established(story)
    for _ in range(5):
        story.now += 899
        assert story.ack() == ("a", "known")


def test_a_services_own_idle_timeout_counts() -> None:
    settings = replace(SETTINGS, idle=Idle(tcp=100, tcp_untrusted=50, udp=100))
    story = Story(A, settings=settings)
    services = [replace(web(A), idle=20), dns(A)]
    story.forwarding = story.compiler.compile(services)
    story.snapshot = story.forwarding.offline_snapshot()
    established(story)
    story.now += 21
    assert story.ack() == ("a", "new")


def test_a_flow_is_not_young_again_after_the_stamps_have_wrapped() -> None:
    """16 bits of ticks are 4.9 hours; here with a packet of another flow every half hour."""
    story = Story(A, settings=replace(SETTINGS, flows=1_000_000))
    established(story)
    for _ in range(9):
        story.now += 1900
        story.ask(9)
    story.now = 65536 * (1 << 28) / SECOND + 0.1
    assert story.ack() == ("a", "new")


# ---- what is not of the packet ----


def test_a_next_hop_that_is_not_known_drops_and_is_found_later() -> None:
    story = Story(A)
    nowhere = story.forwarding.snapshot({})
    packet = ipv4(tcp())
    (result,) = story.pipeline.process(nowhere, [(packet, len(packet), 0)])
    assert (result.reason, result.flow, result.out) == ("no_next_hop", None, ())
    there = story.forwarding.snapshot({A.address: Hop(A.address, bytes(6))})
    (result,) = story.pipeline.process(there, [(packet, len(packet), 0)])
    assert result.reason == "forwarded"


def told_of(port: int) -> bytes:
    """A router's word about what the service sent to that client: as long as a router would tell."""
    sent = ipv4(tcp("A", b"answer", sport=80, dport=port), source="203.0.113.10", to=CLIENT)
    return ipv4(icmp(3, 4, 1300, sent), source="10.0.9.1", to="203.0.113.10")


@pytest.mark.parametrize("state", [UP, DRAIN, DOWN])
def test_an_error_about_a_flow_whose_backend_is_down_goes_where_the_flow_would(state: BackendState) -> None:
    story = Story(A)
    established(story)
    story.publish(replace(A, state=state), B)
    owner = story.tells(told_of(1))
    assert owner == (("b", "untracked") if state is DOWN else ("a", "known"))
    assert story.flow_class() == "tcp_trusted", "the error touched nothing"
    assert story.ack()[0] == owner[0]


def test_an_error_about_a_flow_whose_only_backend_is_down_goes_nowhere() -> None:
    story = Story(A)
    established(story)
    story.publish(replace(A, state=DOWN))
    result = story.send(told_of(1))
    assert (result.reason, result.out) == ("no_backend", ())


def test_a_packet_that_is_dropped_early_is_not_remembered() -> None:
    story = Story(A)
    for packet in (ipv4(tcp(), ttl=1), ipv4(tcp(), check=1), ipv4(tcp(dport=81))):
        assert story.send(packet).out == ()
    assert sum(story.pipeline.counters().flows.live) == 0


def test_without_a_table_every_packet_goes_where_maglev_says() -> None:
    forwarding = Compiler(SETTINGS).compile([web(A, B)])
    pipeline = Pipeline(0, LinkHeader.NONE)
    for port in range(50):
        expected = forwarding.lookup(Protocol.TCP, ip_address("192.0.2.7"), port, ip_address("203.0.113.10"), 80)
        packet = ipv4(tcp("A", sport=port))
        (result,) = pipeline.process(forwarding.offline_snapshot(), [(packet, len(packet), 0)])
        assert result.flow == "untracked"
        assert expected.backend is not None
        assert forwarding.names(result.service_id, result.backend)[1] == expected.backend.name
