# SPDX-License-Identifier: Apache-2.0
"""Which probe each backend on the host gets, and what is reported of it; real probes on loopback."""

from __future__ import annotations

import asyncio
import os
import pwd
from collections.abc import Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from agent.probes import FORBIDDEN, LocalCheck, LocalProbes, checks, command_user
from lb.errors import ConfigError
from lb.model import Probe, ProbeType, Service
from lb.node.messages import HealthReport
from lb.probe.checkers import PlainSockets, RunAs, ask
from lb.probe.results import NotProbed
from lb.probe.state import ProbeAnswer, ProbeHealth
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
        pytest.param(
            service("s", VIP, 80),
            LocalCheck(Probe(ProbeType.TCP), IPv4Address(VIP), 80, HOST),
            id="TCP connect by default",
        ),
        pytest.param(
            service("s", "203.0.113.128/25", 80),
            LocalCheck(Probe(ProbeType.TCP), IPv4Address("203.0.113.128"), 80, HOST),
            id="an address of the prefix",
        ),
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
            service("s", "2001:db8::10/128", 80),
            LocalCheck(Probe(ProbeType.TCP), IPv6Address("2001:db8::10"), 80, HOST6),
            id="IPv6 as well",
        ),
    ],
)
def test_checks(given: Service, check: LocalCheck | NotProbed) -> None:
    assert checks(config(given, address6=HOST6, command_probes=True)) == {("s", "s-1"): check}


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
        async with asyncio.timeout(30):
            while not self.reports:
                self._news.clear()
                await self._news.wait()
        return self.reports.pop(0)


def here(name: str, port: int, **probe: float) -> Service:
    fast = Probe(ProbeType.TCP, interval=0.1, timeout=0.1, **probe)  # type: ignore[arg-type]
    return probed(service(name, VIP, port, to=port, address="127.0.0.1"), fast)


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
        assert told.probes.known()["web", "web-1"].health is ProbeHealth.DOWN
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


def at(address: str, port: int, protocol: str = "tcp", **probe: str) -> Service:
    """Not translated, at a VIP that this machine has."""
    fast = Probe(ProbeType(protocol), interval=0.3, timeout=0.2, fall=1, **probe)  # type: ignore[arg-type]
    return probed(service("s", address, port, address="127.0.0.1", protocol=protocol), fast)


def test_a_process_that_does_not_listen_on_the_vip_is_down_with_advice() -> None:
    async def story() -> None:
        told = Told()
        async with tcp(says(b"")) as port:
            told.probes.update(config(at("127.0.0.9", port), address=LOOPBACK))
            report = await told.next()
        await told.probes.close()
        assert not report.up
        assert report.reason == (
            f"connection refused at the VIP 127.0.0.9, but well at 127.0.0.1:{port}: give the backend `port = {port}`, "
            "so that packets are translated to there"
        )

    asyncio.run(story())


def test_a_udp_server_that_answers_from_another_address_than_the_vip_is_down_with_advice() -> None:
    """As one does that listens on all addresses, and sends without saying from which."""

    class Wrong(asyncio.DatagramProtocol):
        def __init__(self, answers: asyncio.DatagramTransport | None = None) -> None:
            self.answers = answers

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = transport

        def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
            (self.answers or self.transport).sendto(b"pong", addr)  # type: ignore[attr-defined]

    async def story() -> None:
        loop = asyncio.get_running_loop()
        own, _ = await loop.create_datagram_endpoint(Wrong, local_addr=("127.0.0.1", 0))
        port = own.get_extra_info("sockname")[1]
        vip, _ = await loop.create_datagram_endpoint(lambda: Wrong(own), local_addr=("127.0.0.9", port))
        told = Told()
        told.probes.update(config(at("127.0.0.9", port, "udp", request="ping", expect="pong"), address=LOOPBACK))
        report = await told.next()
        await told.probes.close()
        own.close()
        vip.close()
        assert not report.up
        assert f"give the backend `port = {port}`" in report.reason

    asyncio.run(story())


def test_a_vip_that_is_no_address_of_this_host_is_said_to_be_none() -> None:
    async def story() -> None:
        told = Told()
        told.probes.update(config(at(VIP, 80), address=LOOPBACK))
        report = await told.next()
        await told.probes.close()
        assert (report.up, report.reason) == (False, f"the VIP {VIP} is no address of this host now")

    asyncio.run(story())


# --- commands --------------------------------------------------------------------------------------------------------

COMMAND = probed(service("s", VIP, 80), Probe(ProbeType.COMMAND, command=("id", "-u")))


ALLOWED = config(command_probes=True)


def test_command_runs_as_nobody_unless_the_agents_own_file_says_otherwise() -> None:
    nobody = pwd.getpwnam("nobody")
    assert command_user(ALLOWED.agent, lambda: 0) == RunAs("nobody", nobody.pw_uid, nobody.pw_gid)
    assert command_user(config(command_user="root", command_probes=True).agent, lambda: 0) is None
    assert command_user(ALLOWED.agent, lambda: 1000) is None  # it is nobody special anyway


def test_unknown_user_of_commands_is_a_mistake_of_the_file() -> None:
    with pytest.raises(ConfigError, match=r'agent.command_user: there is no user "checker" on this host'):
        command_user(config(command_user="checker", command_probes=True).agent, lambda: 0)


@pytest.mark.parametrize("settings", [{}, {"command_probes": False}])
def test_commands_are_run_only_where_the_agents_own_file_allows_them(settings: dict[str, bool]) -> None:
    """A TCP port is asked instead, in the same time; of anything else it is said why nobody asks."""
    timing = Probe(ProbeType.COMMAND, command=("id", "-u"), interval=7.0, fall=5)
    found = checks(
        config(
            replace(COMMAND, probe=timing),
            probed(service("any", VIP, ANY_PORT), COMMAND.probe),
            probed(service("udp", VIP, 53, protocol="udp"), COMMAND.probe),
            **settings,
        )
    )
    plain = Probe(ProbeType.TCP, interval=7.0, fall=5)
    assert found == {
        ("s", "s-1"): LocalCheck(plain, IPv4Address(VIP), 80, HOST, instead=FORBIDDEN),
        ("any", "any-1"): NotProbed(f"not probed: {FORBIDDEN}"),
        ("udp", "udp-1"): NotProbed(f"not probed: {FORBIDDEN}"),
    }


def test_where_no_command_is_run_the_server_is_asked_and_it_is_said_once(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    probe = Probe(ProbeType.COMMAND, command=("touch", str(ran)), interval=0.1, timeout=0.1, rise=1, fall=2)

    async def story() -> None:
        told = Told()
        async with tcp(says(b"")) as port:
            given = config(replace(here("s", port), probe=probe), address=LOOPBACK)
            with capture_logs() as logs:
                told.probes.update(given)
                told.probes.update(given)
            assert [line["reason"] for line in logs if line["event"] == "commands not run"] == [FORBIDDEN]
            up = await told.next()
            assert (up.up, up.reason) == (True, f"TCP connects; {FORBIDDEN}")
        down = await told.next()
        assert (down.up, down.reason) == (False, f"connection refused; {FORBIDDEN}")
        await told.probes.close()

    asyncio.run(story())
    assert not ran.exists()


def test_where_nobody_wants_a_command_nothing_is_said_of_them() -> None:
    async def story() -> None:
        probes = LocalProbes()
        with capture_logs() as logs:
            probes.update(config(probed(service("t", VIP, 81), None), replace(COMMAND, name="elsewhere", backends=())))
        assert [line["event"] for line in logs if line["log_level"] == "error"] == []
        await probes.close()

    asyncio.run(story())


def test_a_user_of_commands_who_is_gone_costs_the_commands_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """States come for weeks after the file was read, and all of them would be refused for it."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)

    async def story() -> None:
        probes = LocalProbes()
        given = config(
            probed(service("s", VIP, ANY_PORT), COMMAND.probe),
            probed(service("t", VIP, 81), None),
            command_user="removed",
            command_probes=True,
        )
        with capture_logs() as logs:
            probes.update(given)
            probes.update(given)
        assert [line["event"] for line in logs if line["log_level"] == "error"] == ["commands not run"]
        assert set(probes.known()) == {("s", "s-1"), ("t", "t-1")}
        commands = next(report for report in probes.reports() if report.service == "s")
        assert commands.up
        assert 'there is no user "removed" on this host' in commands.reason
        await probes.close()

    asyncio.run(story())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_command_has_the_rights_of_its_user_and_no_others(tmp_path: Path) -> None:
    """Its groups and capabilities are gone as well, and it is killed in time all the same."""
    secret = tmp_path / "secret"
    secret.write_text("s")
    secret.chmod(0o600)
    nobody = command_user(ALLOWED.agent)
    assert nobody is not None
    script = f"cat {secret} || id -u; id -G; grep CapEff /proc/self/status; exit 1"

    async def run(script: str) -> ProbeAnswer:
        probe = Probe(ProbeType.COMMAND, command=("sh", "-c", f"exec 2>/dev/null; ({script}) | tr '\\n' ' '; exit 1"))
        return await ask(probe, HOST, 80, PlainSockets(HOST), nobody)

    answer = asyncio.run(run(script))
    assert answer.reason == f'exit code 1: "{nobody.uid} {nobody.gid} CapEff:?0000000000000000"'
    assert "longer than 1 s and was killed" in asyncio.run(run("sleep 60")).reason
