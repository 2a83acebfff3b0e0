# SPDX-License-Identifier: Apache-2.0
"""What the MUX answers, how often, and that nobody makes it send more than it was told."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from lb.dataplane import Answers, LinkHeader, Pipeline
from lb.dataplane.compile.compiler import Compiler
from lb.model import Unserved
from tests.model.icmp import AT_ONCE
from tests.model.mux import Mux, Options
from tests.packets.build import Segment, icmp, ipv4, ipv6, ping, tcp, udp
from tests.packets.world import FIRST_ID, SERVICES, SETTINGS

SNAPSHOT = Compiler(SETTINGS).compile(SERVICES).offline_snapshot()
SECOND, MILLISECOND = 1_000_000_000, 1 << 20

PING, EXPIRED, CLOSED = ipv4(ping()), ipv4(tcp(), ttl=1), ipv4(udp(dport=9))


def pipeline(per_second: int, unserved: Unserved = Unserved.RESET) -> Pipeline:
    answers = Answers.of(replace(SETTINGS, answers=per_second, unserved=unserved))
    return Pipeline(SETTINGS.flows, LinkHeader.NONE, first_id=FIRST_ID, answers=answers)


def reasons(pipe: Pipeline, packets: list[bytes], now: int) -> Counter[str]:
    return Counter(result.reason for result in pipe.process(SNAPSHOT, [(p, len(p), now) for p in packets]))


def test_after_a_pause_so_many_are_answered_at_once_and_no_more() -> None:
    pipe = pipeline(10)
    assert reasons(pipe, [PING] * 200, SECOND) == {"echo": AT_ONCE, "answer_limited": 200 - AT_ONCE}
    assert reasons(pipe, [PING] * 200, 60 * SECOND) == {"echo": AT_ONCE, "answer_limited": 200 - AT_ONCE}


def test_under_a_flood_the_rate_is_what_was_told() -> None:
    pipe, answered = pipeline(100), 0
    for n in range(10_000):
        answered += reasons(pipe, [PING], 5 * SECOND + n * MILLISECOND)["echo"]
    seconds = 10_000 * MILLISECOND / SECOND
    assert AT_ONCE + 100 * seconds - 2 <= answered <= AT_ONCE + 100 * seconds + 2


def test_a_flood_of_pings_takes_no_answer_from_others() -> None:
    pipe = pipeline(10)
    reasons(pipe, [PING] * 200, SECOND)
    assert reasons(pipe, [EXPIRED, CLOSED], SECOND) == {"time_exceeded": 1, "unreachable": 1}


def test_what_is_not_answered_takes_nothing_of_the_rate() -> None:
    pipe = pipeline(10)
    error = ipv4(icmp(3, 4, 0, EXPIRED[:28]), ttl=1)
    assert reasons(pipe, [error, ipv4(tcp("R", dport=9), to="203.0.113.200")] * 100, SECOND).keys() == {
        "icmp_stranger",
        "no_service",
    }
    assert reasons(pipe, [EXPIRED] * AT_ONCE, SECOND) == {"time_exceeded": AT_ONCE}


LONG, LONG6 = ipv4(tcp("A", bytes(1460))), ipv6(tcp("A", bytes(1440)))


def test_of_what_does_not_fit_who_may_not_be_cut_is_told_and_at_a_rate_of_its_own() -> None:
    pipe = pipeline(10)
    reasons(pipe, [PING, EXPIRED, CLOSED] * 100, SECOND)
    assert reasons(pipe, [LONG, LONG6] * AT_ONCE, SECOND) == {"frag_needed": AT_ONCE, "answer_limited": AT_ONCE}
    pipe = pipeline(1000)
    quiet = [ipv4(tcp("A", bytes(1460)), df=False), ipv4(icmp(3, 4, 0, ipv4(tcp())[:28] + bytes(1450)))]
    assert reasons(pipe, quiet, SECOND).keys() <= {"forwarded", "too_big", "icmp_stranger"}  # in fragments
    pipe.answer(0)
    assert reasons(pipe, [LONG, LONG6], SECOND) == {"too_big": 2}


def test_nobody_is_told_that_less_than_1280_would_fit_in_ipv6() -> None:
    """Nobody would believe it (RFC 8201, 4)."""
    told = [replace(service, mtu=1300) for service in SERVICES]
    snapshot = Compiler(SETTINGS).compile(told).offline_snapshot()
    long = ipv4(tcp("A", bytes(1250))), ipv6(tcp("A", bytes(1230)))
    packets = [(packet, len(packet), SECOND) for packet in long]
    four, six = (result.out[0] for result in pipeline(1000).process(snapshot, packets))
    assert int.from_bytes(four[26:28]) == 1300 - 20
    assert int.from_bytes(six[44:48]) == 1280


def test_the_rate_may_change_and_end() -> None:
    pipe = pipeline(10)
    pipe.answer(0)
    assert reasons(pipe, [PING, EXPIRED, CLOSED], SECOND) == {"icmp": 1, "ttl_expired": 1, "no_service": 1}
    pipe.answer(1)
    assert reasons(pipe, [PING, EXPIRED, CLOSED], SECOND) == {"echo": 1, "time_exceeded": 1, "unreachable": 1}


def test_without_an_address_of_its_own_the_mux_says_nothing_of_ttl() -> None:
    pipe = Pipeline(0, LinkHeader.NONE, answers=Answers(1000, addresses=(SETTINGS.address,)))
    assert reasons(pipe, [EXPIRED, ipv6(tcp(), hops=1)], SECOND) == {"time_exceeded": 1, "ttl_expired": 1}


def test_workers_share_the_rate() -> None:
    shares = [Answers.of(replace(SETTINGS, answers=1000), workers).per_second for workers in (1, 3, 64)]
    assert shares == [1000, 334, 16]


SMALLEST = [
    (tcp(), 28),  # an IP header and that of ICMP before all of it, which the RFCs ask for
    (udp(b""), 28),
    (udp(bytes(1400)), 28),
]


@pytest.mark.parametrize(("segment", "more"), SMALLEST)
def test_an_answer_is_hardly_larger_than_what_caused_it(segment: Segment, more: int) -> None:
    """The header of the answer, and no byte more; a reply or a reset is never larger."""
    pipe = pipeline(1000, Unserved.UNREACHABLE)
    for packet, extra in (
        (ipv4(segment, ttl=1), more),
        (ipv6(segment, hops=1), more + 20),
        (ipv4(segment, to="203.0.113.201"), more),
        (LONG, 0),
        (LONG6, 0),
        (PING, 0),
        (ipv6(ping(six=True)), 0),
    ):
        for result in pipe.process(SNAPSHOT, [(packet, len(packet), SECOND)]):
            assert sum(map(len, result.out)) <= len(packet) + extra, result.reason
    reset = pipeline(1000).process(SNAPSHOT, [(ipv4(tcp(dport=9), to="203.0.113.200"), 40, SECOND)])
    assert [len(out) for out in reset[0].out] == [40]


def test_the_model_counts_answers_alike() -> None:
    settings = replace(SETTINGS, answers=7, unserved=Unserved.UNREACHABLE)
    model, pipe = Mux(settings, Options(first_id=FIRST_ID, answers=True)), pipeline(7, Unserved.UNREACHABLE)
    model.publish(SERVICES)
    packets = [PING, EXPIRED, CLOSED, PING, ipv6(tcp(), hops=0), ipv6(ping(six=True))]
    for n in range(2_000):
        packet, now = packets[n % len(packets)], SECOND + n * n * 9_000
        (result,) = pipe.process(SNAPSHOT, [(packet, len(packet), now)])
        expected = model.process(packet, len(packet), now)
        assert (result.reason, result.out) == (expected.reason, expected.out), n
    assert pipe.counters().received == sum(pipe.counters().reasons) == 2_000
