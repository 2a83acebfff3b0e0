# SPDX-License-Identifier: Apache-2.0
"""What a daemon begins with, and how states become services."""

from __future__ import annotations

import asyncio
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from lb.errors import AccessError, ConfigError, IoError, RequestError
from lb.model import MuxSettings, Service
from lb.node.cache import Cache, Cached
from lb.node.follower import Follower, ServiceTables
from lb.node.messages import NodeState, apply, digest

TOKEN = "lb1." + "x" * 32 + "." + "0" * 64


def settings(state_dir: str = "/nowhere") -> MuxSettings:
    return MuxSettings("mux1", IPv4Address("10.0.1.11"), bytes(16), "eth0", state_dir=state_dir)


def table(name: str, last: int = 10, **keys: Any) -> dict[str, Any]:
    return {"name": name, "vip": f"203.0.113.{last}", "protocol": "tcp", "port": 80, **keys}


STATE: NodeState = {"services": {"web": table("web"), "dns": table("dns", 53)}}


def test_only_tables_that_changed_are_read_again() -> None:
    tables = ServiceTables(settings())
    before = {service.name: service for service in tables.parse(STATE["services"])}
    changed = apply(STATE, {"set": {"services": {"dns": table("dns", 54)}}})
    after = {service.name: service for service in tables.parse(changed["services"])}
    assert after["web"] is before["web"]
    assert str(after["dns"].vip) == "203.0.113.54/32"
    assert [service.name for service in tables.parse({"dns": changed["services"]["dns"]})] == ["dns"]


def test_a_mistake_leaves_what_is_known_as_it_was() -> None:
    tables = ServiceTables(settings())
    before = tables.parse(STATE["services"])
    with pytest.raises(ConfigError, match="port"):
        tables.parse({**STATE["services"], "bad": table("bad", 99, port="x")})
    assert tables.parse(STATE["services"]) == before


def test_services_are_checked_as_those_of_the_nodes_own_file() -> None:
    with pytest.raises(ConfigError, match="is the MUX's own address"):
        ServiceTables(settings()).parse({"s": {**table("s"), "vip": "10.0.1.11"}})


def test_a_retiring_service_goes_by_its_key() -> None:
    services = ServiceTables(settings()).parse({"web": table("web"), "web~2": table("web", 11)})
    assert [service.name for service in services] == ["web", "web~2"]


class Node:
    """A daemon that takes what it is given."""

    def __init__(self, directory: Path, token: str | None = None) -> None:
        self.taken: list[tuple[Service, ...]] = []
        self.error: Exception | None = None
        self.follower = Follower("https://127.0.0.1:1", token, "mux", settings(str(directory)), self._take)

    async def _take(self, state: NodeState, services: tuple[Service, ...]) -> None:
        if self.error is not None:
            raise self.error
        self.taken.append(services)


def begin(directory: Path, token: str | None = None) -> tuple[NodeState, tuple[Service, ...]]:
    async def main() -> tuple[NodeState, tuple[Service, ...]]:
        return await Node(directory, token).follower.begin()

    return asyncio.run(main())


def keep(directory: Path, state: NodeState) -> None:
    Cache(directory / "node", "mux:mux1").save(Cached(3, 41, digest(state), state))


def test_a_node_begins_with_its_last_good_state_and_asks_nobody(tmp_path: Path) -> None:
    keep(tmp_path, STATE)
    with capture_logs() as logs:
        state, services = begin(tmp_path, TOKEN)
    assert state == STATE
    assert [service.name for service in services] == ["web", "dns"]
    assert [line["event"] for line in logs] == ["last good state"]


def test_a_state_that_is_not_right_here_is_said_and_not_used(tmp_path: Path) -> None:
    keep(tmp_path, {"services": {"s": {**table("s"), "vip": "10.0.1.11"}}})
    with capture_logs() as logs:
        assert begin(tmp_path, TOKEN) == ({}, ())
    assert logs[0]["event"] == "cached state not used"
    assert "the MUX's own address" in logs[0]["reason"]


def test_with_neither_certificate_token_nor_state_a_node_says_what_it_needs(tmp_path: Path) -> None:
    with pytest.raises(AccessError, match="make a token with `lb-manager token`"):
        begin(tmp_path)


def test_with_a_state_a_node_serves_even_without_certificate_and_token(tmp_path: Path) -> None:
    keep(tmp_path, STATE)
    with capture_logs() as logs:
        state, _ = begin(tmp_path)
    assert state == STATE
    assert "no certificate" in [line["event"] for line in logs]


def test_a_manager_that_does_not_answer_is_no_reason_not_to_start(tmp_path: Path) -> None:
    with capture_logs() as logs:
        assert begin(tmp_path, TOKEN) == ({}, ())
    assert "not joined yet" in [line["event"] for line in logs]


def test_what_is_no_token_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="it must look like"):
        Node(tmp_path, "secret")


def test_what_the_daemon_refuses_becomes_the_reason_for_the_manager(tmp_path: Path) -> None:
    async def main() -> None:
        node = Node(tmp_path)
        assert await node.follower._apply(STATE) is None
        node.error = IoError("interface eth0 is gone")
        assert await node.follower._apply(STATE) == "interface eth0 is gone"
        assert await node.follower._apply({"services": {"bad": 7}}) is not None
        assert len(node.taken) == 1

    asyncio.run(main())


def test_hello_says_who_and_where(tmp_path: Path) -> None:
    async def main() -> None:
        assert Node(tmp_path).follower._hello() == {"name": "mux1", "address": "10.0.1.11", "address6": None}

    asyncio.run(main())


def test_a_state_that_could_not_be_begun_with_is_asked_for_anew(tmp_path: Path) -> None:
    async def main() -> None:
        keep(tmp_path, STATE)
        node = Node(tmp_path)
        await node.follower.begin()
        assert node.follower.client._hello(whole=False).digest == digest(STATE)
        node.follower.not_begun("203.0.113.10 is local here")
        assert node.follower.client._hello(whole=False).generation == 0
        assert node.follower.client.term == 3

    with capture_logs():
        asyncio.run(main())
