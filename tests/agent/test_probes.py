# SPDX-License-Identifier: Apache-2.0
"""Which probe each backend on the host gets, and what is reported of it; real probes on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from agent.probes import LocalCheck, LocalProbes, checks
from lb.model import Probe, ProbeType, Service
from lb.node.messages import HealthReport
from lb.probe.board import NotProbed
from lb.probe.state import Health
from tests.agent.values import ANY_PORT, HOST, HOST6, config, service
from tests.lb.probe.server import says, tcp

VIP = "203.0.113.10"
LOOPBACK = IPv4Address("127.0.0.1")
HTTP = Probe(ProbeType.HTTP, path="/healthz")


def probed(given: Service, probe: Probe | None) -> Service:
    return replace(given, probe=probe)


@pytest.mark.parametrize(
    ("given", "check"),
    [
        pytest.param(service("s", VIP, 80), LocalCheck(Probe(ProbeType.TCP), HOST, 80), id="TCP connect by default"),
        pytest.param(service("s", VIP, 80, 8080), LocalCheck(Probe(ProbeType.TCP), HOST, 8080), id="where it listens"),
        pytest.param(probed(service("s", VIP, 80, 8080), HTTP), LocalCheck(HTTP, HOST, 8080), id="the service's probe"),
        pytest.param(
            probed(service("s", VIP, 80), replace(HTTP, port=9000)),
            LocalCheck(replace(HTTP, port=9000), HOST, 9000),
            id="the probe's port",
        ),
        pytest.param(
            service("s", VIP, 53, protocol="udp"), NotProbed("not probed: a UDP service without a probe"), id="UDP"
        ),
        pytest.param(
            service("s", VIP, ANY_PORT),
            NotProbed("not probed: the service has no single port; probe.port would name one"),
            id="any port",
        ),
        pytest.param(
            probed(service("s", VIP, ANY_PORT), Probe(ProbeType.TCP, port=22)),
            LocalCheck(Probe(ProbeType.TCP, port=22), HOST, 22),
            id="any port, and a probe's",
        ),
        pytest.param(
            probed(service("s", VIP, ANY_PORT), Probe(ProbeType.COMMAND, command=("true",))),
            LocalCheck(Probe(ProbeType.COMMAND, command=("true",)), HOST, 0),
            id="a command needs no port",
        ),
        pytest.param(
            service("s", "2001:db8::10/128", 80), LocalCheck(Probe(ProbeType.TCP), HOST6, 80), id="IPv6 as well"
        ),
    ],
)
def test_checks(given: Service, check: LocalCheck | NotProbed) -> None:
    assert checks(config(given, address6=HOST6)) == {("s", "s-1"): check}


def test_backends_of_other_hosts_are_not_ours_to_probe() -> None:
    assert checks(config(service("s", VIP, 80, address="10.0.3.22"))) == {}


class Told:
    """Probes of loopback, with what they tell."""

    def __init__(self) -> None:
        self.reports: list[HealthReport] = []
        self._news = asyncio.Event()
        self.probes = LocalProbes(self._send)

    def _send(self, reports: Sequence[HealthReport]) -> None:
        self.reports += reports
        self._news.set()

    async def next(self) -> HealthReport:
        async with asyncio.timeout(10):
            while not self.reports:
                self._news.clear()
                await self._news.wait()
        return self.reports.pop(0)


def here(name: str, port: int, **probe: float) -> Service:
    fast = Probe(ProbeType.TCP, interval=0.1, timeout=0.1, **probe)  # type: ignore[arg-type]
    return probed(service(name, VIP, port, address="127.0.0.1"), fast)


def test_a_backend_that_ends_is_reported_down_with_the_reason_and_up_again() -> None:
    async def story() -> None:
        told = Told()
        async with tcp(says(b"")) as port:
            told.probes.update(config(here("web", port, rise=2, fall=2), address=LOOPBACK))
            up = await told.next()
            assert (up.service, up.backend, up.source, up.up, up.reason) == (
                "web",
                "web-1",
                "agent",
                True,
                "TCP connects",
            )
            assert up.since > 1e9
        down = await told.next()
        assert (down.up, down.reason) == (False, "connection refused")
        assert down.since >= up.since
        assert told.probes.known()["web", "web-1"].health is Health.DOWN
        await told.probes.close()

    asyncio.run(story())


def test_states_live_through_a_reload_and_new_services_of_a_known_port_are_reported_at_once() -> None:
    async def story() -> None:
        told = Told()
        async with tcp(says(b"")) as port:
            web = here("web", port)
            told.probes.update(config(web, address=LOOPBACK))
            up = await told.next()
            told.probes.update(config(web, here("shop", port), address=LOOPBACK))
            assert told.probes.known()["web", "web-1"].since == up.since
            same = await told.next()
            assert (same.service, same.up, same.since) == ("shop", True, up.since)
            told.probes.update(config(web, address=LOOPBACK))
            assert told.probes.known().keys() == {("web", "web-1")}
            assert told.reports == []
        await told.probes.close()

    asyncio.run(story())


def test_who_is_not_probed_is_reported_up_with_the_reason() -> None:
    async def story() -> None:
        told = Told()
        told.probes.update(config(service("dns", VIP, 53, protocol="udp", address="127.0.0.1"), address=LOOPBACK))
        report = await told.next()
        assert (report.up, report.reason) == (True, "not probed: a UDP service without a probe")
        assert told.probes.reports() == [report]
        await told.probes.close()

    asyncio.run(story())
