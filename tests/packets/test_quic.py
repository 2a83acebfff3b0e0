# SPDX-License-Identifier: Apache-2.0
"""Connection ids and the flow table: clients that move, MUXes that know nothing, keys that change; and any sequence of
packets beside the model."""

from __future__ import annotations

import random
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from lb.dataplane import BURST_MAX, LinkHeader, Pipeline, Result
from lb.dataplane.compile.compiler import Compiler, Forwarding
from lb.dataplane.compile.quic_keys import QuicKeys
from lb.errors import DataplaneError
from lb.model import Backend, BackendState, PortRange, Protocol, QuicIds, Service
from lb.quic_ids import ConnectionIds, server_id_of
from tests.model.mux import Mux
from tests.packets.build import ipv4, udp
from tests.packets.quic import REST, long_header, short_header
from tests.packets.world import SETTINGS

UP, DRAIN, DOWN = BackendState
VIP = "203.0.113.10"
NAMES = [f"h3-{n}" for n in range(8)]
BACKENDS = tuple(Backend(name, ip_address(f"10.0.3.{n}")) for n, name in enumerate(NAMES, 1))


@pytest.fixture
def keys(tmp_path: Path) -> list[str]:
    """Files of two keys."""
    paths = [tmp_path / "old.key", tmp_path / "new.key"]
    for n, path in enumerate(paths):
        path.write_text(bytes([n] * 16).hex())
        path.chmod(0o600)
    return [str(path) for path in paths]


def h3(*backends: Backend, quic: tuple[QuicIds, ...]) -> Service:
    return Service("h3", ip_network(VIP), Protocol.UDP, PortRange(443, 443), backends, quic=quic)


class Muxes:
    """One that sees everything, and what others would say that saw nothing."""

    def __init__(self, service: Service, flows: int = SETTINGS.flows) -> None:
        self.compiler = Compiler(SETTINGS)
        self.flows = flows
        self.pipeline = Pipeline(flows, LinkHeader.NONE)
        self.now = 0
        self.publish(service)

    def publish(self, service: Service) -> None:
        self.forwarding: Forwarding = self.compiler.compile([service])
        self.snapshot = self.forwarding.offline_snapshot()

    def tells(self, datagram: bytes, port: int = 1, pipeline: Pipeline | None = None) -> tuple[str | None, str | None]:
        """Backend and flow."""
        packet = ipv4(udp(datagram, sport=port, dport=443), to=VIP)
        result: Result
        (result,) = (pipeline or self.pipeline).process(self.snapshot, [(packet, len(packet), self.now)])
        return self.forwarding.names(result.service_id, result.backend)[1], result.flow

    def stranger(self, datagram: bytes, port: int = 1) -> str | None:
        return self.tells(datagram, port, Pipeline(self.flows, LinkHeader.NONE))[0]


def ids(name: str, number: int = 0, key: bytes | None = bytes(16)) -> ConnectionIds:
    return ConnectionIds(number, server_id_of(name), key=key)


def other_than(muxes: Muxes, name: str) -> int:
    """A port of which new flows go elsewhere."""
    return next(port for port in range(1, 1000) if muxes.stranger(b"", port) != name)


@pytest.mark.parametrize("flows", [SETTINGS.flows, 0])
def test_a_client_that_moves_stays_with_its_backend_on_any_mux(keys: list[str], flows: int) -> None:
    muxes = Muxes(h3(*BACKENDS, quic=(QuicIds(0, keys[0]),)), flows)
    homes = set()
    for port in range(1, 40):
        home, _ = muxes.tells(long_header(b"\xff" + random.Random(port).randbytes(7)), port)  # of the client's own
        assert home is not None
        homes.add(home)
        own = ids(home)
        assert muxes.tells(short_header(own.mint()), port)[0] == home
        for moved in range(1000, 1005):
            assert muxes.tells(short_header(own.mint()), moved + 10 * port)[0] == home
            assert muxes.stranger(short_header(own.mint()), moved + 10 * port) == home
            assert muxes.stranger(long_header(own.mint()), moved + 10 * port) == home
    assert len(homes) > 4


def test_keys_change_one_configuration_after_the_other(keys: list[str]) -> None:
    old, new = QuicIds(0, keys[0]), QuicIds(5, keys[1], server_id_bytes=6, nonce_bytes=4)
    was, now = ids("h3-2").mint(), ConnectionIds(5, server_id_of("h3-2", 6), nonce_bytes=4, key=bytes([1] * 16)).mint()
    muxes = Muxes(h3(*BACKENDS, quic=(old,)))
    port = other_than(muxes, "h3-2")
    for quic, read in (((old,), (True, False)), ((old, new), (True, True)), ((new,), (False, True))):
        muxes.publish(h3(*BACKENDS, quic=quic))
        found = tuple(muxes.stranger(short_header(one), port) == "h3-2" for one in (was, now))
        assert found == read


def test_what_an_id_names_is_remembered_for_what_says_less(keys: list[str]) -> None:
    muxes = Muxes(h3(*BACKENDS, quic=(QuicIds(0, keys[0]),)))
    port = other_than(muxes, "h3-3")
    assert muxes.tells(short_header(ids("h3-3").mint()), port) == ("h3-3", "new")
    assert muxes.tells(short_header(ids("h3-3").mint()), port) == ("h3-3", "known")
    assert muxes.tells(b"", port) == ("h3-3", "known")


def test_an_id_takes_no_flow_from_a_backend_that_serves_on(keys: list[str]) -> None:
    muxes = Muxes(h3(*BACKENDS, quic=(QuicIds(0, keys[0]),)))
    port = other_than(muxes, "h3-3")
    home, _ = muxes.tells(b"", port)
    assert muxes.tells(short_header(ids("h3-3").mint()), port) == ("h3-3", "untracked")
    assert muxes.tells(b"", port) == (home, "known")
    down = tuple(replace(one, state=DOWN) if one.name == home else one for one in BACKENDS)
    muxes.publish(h3(*down, quic=(QuicIds(0, keys[0]),)))
    assert muxes.tells(short_header(ids("h3-3").mint()), port) == ("h3-3", "new")
    assert muxes.tells(b"", port) == ("h3-3", "known")


def test_a_backend_that_drains_keeps_its_own_and_gets_nothing_new(keys: list[str]) -> None:
    quic = (QuicIds(0, keys[0]),)
    muxes = Muxes(h3(*BACKENDS, quic=quic))
    port = next(port for port in range(1, 1000) if muxes.stranger(b"", port) == "h3-1")
    muxes.tells(b"", port)
    muxes.publish(h3(*(replace(one, state=DRAIN) if one.name == "h3-1" else one for one in BACKENDS), quic=quic))
    for moved in (port, 2000, 3000):
        assert muxes.tells(short_header(ids("h3-1").mint()), moved)[0] == "h3-1"
        assert muxes.tells(short_header(ids("h3-1").mint()), moved) == ("h3-1", "known")
    assert muxes.stranger(b"", port) != "h3-1"
    assert muxes.tells(b"", port)[0] != "h3-1"  # of UDP that does not say whose it is


def test_who_comes_in_the_place_of_one_that_drains_has_its_id(keys: list[str]) -> None:
    leaves = Backend("gone", ip_address("10.0.3.77"), state=DRAIN, server_id="0000000a")
    comes = Backend("here", ip_address("10.0.3.78"), server_id="0000000a")
    muxes = Muxes(h3(leaves, comes, quic=(QuicIds(0, keys[0]),)))
    own = ConnectionIds(0, bytes.fromhex("0000000a"), key=bytes(16))
    assert muxes.stranger(short_header(own.mint())) == "here"


def test_a_key_that_cannot_be_had_is_told_and_its_ids_are_balanced(keys: list[str]) -> None:
    told: list[str] = []
    service = h3(*BACKENDS, quic=(QuicIds(0, keys[0]), QuicIds(1, "/nowhere/h3.key")))
    compiler = Compiler(SETTINGS, QuicKeys(told.append))
    muxes = Muxes(h3(*BACKENDS, quic=()))
    muxes.compiler = compiler
    muxes.publish(service)
    assert told == [
        "Key file /nowhere/h3.key of connection ids 1 of service h3 cannot be read: No such file or directory; "
        "they are balanced like other UDP."
    ]
    assert muxes.stranger(short_header(ids("h3-2").mint())) == "h3-2"
    port = other_than(muxes, "h3-2")
    assert muxes.stranger(short_header(ids("h3-2", 1).mint()), port) != "h3-2"
    Path(keys[0]).unlink()
    muxes.publish(replace(service, mtu=1400))
    assert "the key that it held before goes on" in told[1]
    assert muxes.stranger(short_header(ids("h3-2").mint())) == "h3-2"
    with pytest.raises(DataplaneError, match="cannot be read"):
        Compiler(SETTINGS).compile([service])


def test_a_service_without_ids_beside_one_with_them_looks_at_none(keys: list[str]) -> None:
    service = h3(*BACKENDS, quic=(QuicIds(0, keys[0]),))
    bare = replace(service, name="bare", vip=ip_network("203.0.113.11"), quic=())
    forwarding = Compiler(SETTINGS).compile([service, bare])
    datagram = short_header(ids("h3-2").mint())
    packets = [ipv4(udp(datagram, sport=port, dport=443), to="203.0.113.11") for port in range(1, 33)]
    results = Pipeline(1000, LinkHeader.NONE).process(forwarding.offline_snapshot(), [(p, len(p), 0) for p in packets])
    found = {forwarding.names(result.service_id, result.backend)[1] for result in results}
    assert len(found) > 3


def some_states(chance: random.Random) -> tuple[Backend, ...]:
    return tuple(replace(one, state=chance.choice((UP, UP, DRAIN, DOWN))) for one in BACKENDS[:4])


def some_datagram(chance: random.Random) -> bytes:
    """Of a backend, in one of two configurations, or of nobody."""
    number = chance.choice((0, 1))
    own = ConnectionIds(number, server_id_of(chance.choice(NAMES)), key=bytes([number] * 16))
    connection_id = chance.choice((own.mint(), own.mint(), chance.randbytes(8), b""))
    datagram = chance.choice((short_header, long_header))(connection_id)
    return chance.choice((datagram, datagram, REST, b"\x05" + REST))


@pytest.mark.parametrize("burst", [1, BURST_MAX])
@pytest.mark.parametrize("seed", range(4))
def test_any_sequence_ends_as_in_the_model(keys: list[str], seed: int, burst: int) -> None:
    chance = random.Random(seed)
    quic = (QuicIds(0, keys[0]), QuicIds(1, keys[1]))
    muxes, model = Muxes(h3(*BACKENDS[:4], quic=quic)), Mux(SETTINGS)
    now, seen = 0, set()
    for _ in range(30):
        service = h3(*some_states(chance), quic=quic)
        muxes.publish(service)
        model.publish([service])
        packets = [
            ipv4(udp(some_datagram(chance), sport=chance.randint(1, 40), dport=443), to=VIP) for _ in range(BURST_MAX)
        ]
        expected = [model.process(packet, len(packet), now) for packet in packets]
        results: list[Result] = []
        for first in range(0, len(packets), burst):
            some = packets[first : first + burst]
            results += muxes.pipeline.process(muxes.snapshot, [(p, len(p), now) for p in some])
        for result, wanted in zip(results, expected, strict=True):
            backend = muxes.forwarding.names(result.service_id, result.backend)[1]
            assert (result.reason, backend, result.flow) == (wanted.reason, wanted.backend, wanted.flow)
            assert result.out == wanted.out
            seen.add(result.flow)
        assert muxes.pipeline.check() is None
        now += chance.choice((0, 300_000_000, 61_000_000_000))
    assert {"new", "known", "untracked"} <= seen
