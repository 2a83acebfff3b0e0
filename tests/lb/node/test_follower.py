# SPDX-License-Identifier: Apache-2.0
"""What a daemon begins with, and how states become services."""

from __future__ import annotations

import asyncio
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from lb.errors import AccessError, IoError, RequestError
from lb.model import MuxSettings, Service
from lb.model.service_diff import ServiceDiff
from lb.node.cache import Cache, Cached
from lb.node.follower import Follower, ServiceTables
from lb.node.messages import NodeState, apply, diff, digest, keys_of

TOKEN = "lb1." + "x" * 32 + "." + "0" * 64


def settings(state_dir: str = "/nowhere") -> MuxSettings:
    return MuxSettings("mux1", IPv4Address("10.0.1.11"), bytes(16), "eth0", state_dir=state_dir)


def table(name: str, last: int = 10, **keys: Any) -> dict[str, Any]:
    return {"name": name, "vip": f"203.0.113.{last}", "protocol": "tcp", "port": 80, **keys}


STATE: NodeState = {"services": {"web": table("web"), "dns": table("dns", 53)}}


def follow(tables: ServiceTables, before: NodeState, after: NodeState) -> ServiceDiff:
    """The next state, taken."""
    names = keys_of(diff(before, after)).get("services", ())
    reading = tables.read(after.get("services", {}), names)
    tables.take(reading)
    return reading.change


def test_only_tables_that_changed_are_read_again() -> None:
    tables = ServiceTables(settings())
    before = {service.name: service for service in follow(tables, {}, STATE).services}
    changed = apply(STATE, {"set": {"services": {"dns": table("dns", 54)}}})
    change = follow(tables, STATE, changed)
    after = {service.name: service for service in change.services}
    assert after["web"] is before["web"]
    assert str(after["dns"].vip) == "203.0.113.54/32"
    assert (change.gone, change.come) == ((before["dns"],), (after["dns"],))
    without = {"services": {"dns": changed["services"]["dns"]}}
    assert follow(tables, changed, without).services == (after["dns"],)


def test_a_state_without_news_of_services_has_the_very_same() -> None:
    tables = ServiceTables(settings())
    services = follow(tables, {}, STATE).services
    change = follow(tables, STATE, {**STATE, "options": {"drain": True}})
    assert change.services is change.before is services


NAMES = st.dictionaries(st.sampled_from("abcde"), st.integers(1, 4))


@given(st.lists(NAMES, min_size=1, max_size=6))
def test_services_after_any_changes_are_those_of_the_whole_state(steps: list[dict[str, int]]) -> None:
    tables = ServiceTables(settings())
    state: NodeState = {}
    live: tuple[Service, ...] = ()
    for step in steps:
        after = {"services": {name: table(name, 10 + ord(name), mtu=1400 + n) for name, n in step.items()}}
        change = follow(tables, state, after)
        whole = ServiceTables(settings()).read(after["services"]).change
        assert set(change.services) == set(whole.services)
        assert set(change.services) == (set(live) - set(change.gone)) | set(change.come)
        assert change.before is live
        state, live = after, change.services


def test_a_table_that_is_wrong_here_is_left_out_alone_until_it_is_right() -> None:
    tables = ServiceTables(settings())
    follow(tables, {}, STATE)
    wrong: NodeState = {"services": {**STATE["services"], "bad": table("bad", 99, port="x"), "ntp": table("ntp", 123)}}
    change = follow(tables, STATE, wrong)
    assert [service.name for service in change.come] == ["ntp"]
    assert tables.left_out.keys() == {"bad"}
    assert "port" in tables.left_out["bad"]
    # Another change, and it is still wrong: nothing comes of it, and it is not forgotten.
    other = apply(wrong, {"set": {"services": {"dns": table("dns", 54)}}})
    assert [service.name for service in follow(tables, wrong, other).come] == ["dns"]
    assert tables.left_out.keys() == {"bad"}
    right = apply(other, {"set": {"services": {"bad": table("bad", 99)}}})
    assert [service.name for service in follow(tables, other, right).come] == ["bad"]
    assert tables.left_out == {}


def test_what_the_daemon_left_out_comes_again_with_the_next_state() -> None:
    tables = ServiceTables(settings())
    reading = tables.read(STATE["services"])
    tables.take(reading, {"web": "no room"})
    assert set(tables.taken) == {"dns"}
    again = tables.read(STATE["services"], ())
    assert [service.name for service in again.change.come] == ["web"]
    assert again.change.gone == ()
    tables.take(again)
    assert set(tables.taken) == {"dns", "web"}
    assert tables.left_out == {}


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"vip": "10.0.1.11"}, "is the MUX's own address"),
        ({"colour": "red"}, "unknown key"),
        ({"vip": "2001:db8::10", "backend": [{"name": "a", "address": "2001:db8::1"}]}, "address6"),
    ],
)
def test_services_are_checked_as_those_of_the_nodes_own_file(wrong: dict[str, Any], reason: str) -> None:
    reading = ServiceTables(settings()).read({"s": {**table("s"), **wrong}, "web": table("web", 11)})
    assert [service.name for service in reading.change.services] == ["web"]
    assert reason in reading.left_out["s"]


def test_a_retiring_service_goes_by_its_key() -> None:
    reading = ServiceTables(settings()).read({"web": table("web"), "web~2": table("web", 11)})
    assert [service.name for service in reading.change.services] == ["web", "web~2"]


class Node:
    """A daemon that takes what it is given."""

    def __init__(self, directory: Path, token: str | None = None) -> None:
        self.taken: list[ServiceDiff] = []
        self.error: Exception | None = None
        self.left_out: dict[str, str] = {}
        self.follower = Follower(
            "https://127.0.0.1:1", token, "mux", settings(str(directory)), self._take, config=directory / "mux.toml"
        )

    async def _take(self, state: NodeState, change: ServiceDiff) -> dict[str, str]:
        if self.error is not None:
            raise self.error
        self.taken.append(change)
        return self.left_out


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


def test_what_of_a_kept_state_is_not_right_here_is_said_and_left_out(tmp_path: Path) -> None:
    keep(tmp_path, {"services": {"s": {**table("s"), "vip": "10.0.1.11"}, "web": table("web")}})
    with capture_logs() as logs:
        _, services = begin(tmp_path, TOKEN)
    assert [service.name for service in services] == ["web"]
    assert (logs[0]["event"], logs[0]["what"]) == ("left out", "s")
    assert "the MUX's own address" in logs[0]["reason"]


def test_with_neither_certificate_token_nor_state_a_node_says_what_it_needs(tmp_path: Path) -> None:
    with pytest.raises(AccessError, match="it never joined, or what its state_dir held was lost") as refused:
        begin(tmp_path)
    assert str(tmp_path / "identity") in str(refused.value)
    assert "`lb-manager token --kind mux --name mux1`, and start once with --token" in str(refused.value)


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
        more = apply(STATE, {"set": {"services": {"ntp": table("ntp", 123)}}})
        assert await node.follower._apply(STATE, diff({}, STATE)) == {}
        node.error = IoError("interface eth0 is gone")
        with pytest.raises(IoError, match="interface eth0 is gone"):
            await node.follower._apply(more, diff(STATE, more))
        node.error = None
        assert await node.follower._apply(more, diff(STATE, more)) == {}
        first, last = node.taken
        assert last.before is first.services
        assert [service.name for service in last.come] == ["ntp"]

    asyncio.run(main())


def test_what_node_and_daemon_leave_out_is_told_together(tmp_path: Path) -> None:
    async def main() -> None:
        node = Node(tmp_path)
        node.left_out = {"web": "no room", "announcements/203.0.113.9": "unknown key"}
        state: NodeState = {"services": {**STATE["services"], "bad": 7}}
        left_out = await node.follower._apply(state, diff({}, state))
        assert left_out.keys() == {"web", "bad", "announcements/203.0.113.9"}
        assert node.follower._tables.left_out.keys() == {"web", "bad"}

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
