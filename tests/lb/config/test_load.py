# SPDX-License-Identifier: Apache-2.0
"""Configuration files: each case on disk beside what it prints as (``.ok``) or its mistakes (``.err``).

``REWRITE=1 pytest tests/lb/config/test_load.py`` writes the expected files anew, for review with git diff.
"""

from __future__ import annotations

import json
import os
import string
import time
import tomllib
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lb.config.load
from lb.cli.main import run
from lb.config.load import (
    Kind,
    load_agent,
    load_any,
    load_manager,
    load_mux,
    load_services,
    parse,
    parse_manager_url,
    parse_service_tables,
    service_table,
)
from lb.config.render import format_config
from lb.errors import ConfigError
from lb.model import (
    AgentConfig,
    Announce,
    AnnouncePolicy,
    Backend,
    BackendState,
    HashMode,
    Idle,
    IoMode,
    MuxConfig,
    MuxSettings,
    PortRange,
    Probe,
    ProbeType,
    Protocol,
    Service,
)
from manager.desired.state import Desired, Rules, apply_tables

HERE = Path(__file__).parent / "cases"
DEPLOY = Path(__file__).parents[3] / "deploy"
CASES = sorted(HERE.glob("*.toml"))
SHIPPED = sorted(DEPLOY.glob("*.toml"))

MUX = '[mux]\nname = "m"\naddress = "10.0.1.11"\ninterface = "eth0"\nseed = "00112233445566778899aabbccddeeff"\n'
SERVICE = '[[service]]\nname = "s"\nvip = "203.0.113.1"\nprotocol = "tcp"\nport = 80\n'


def outcome(path: Path) -> tuple[str, str]:
    """Which expected file a case has, and what is in it."""
    try:
        config = load_any(path)
    except ConfigError as error:
        return ".err", "".join(line + "\n" for line in error.lines)
    return ".ok", format_config(config)


def test_there_are_cases() -> None:
    assert len(CASES) >= 20
    assert len(SHIPPED) >= 3


@pytest.mark.parametrize("path", [*CASES, *SHIPPED], ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_case_prints_or_fails_as_expected(path: Path) -> None:
    suffix, text = outcome(path)
    stem = HERE / (path.stem if path in CASES else f"deploy-{path.stem}")
    if os.environ.get("REWRITE"):
        for other in (".ok", ".err"):
            stem.with_suffix(other).unlink(missing_ok=True)
        stem.with_suffix(suffix).write_text(text)
    expected = stem.with_suffix(suffix)
    assert expected.exists(), f"{path.name} now ends as {suffix}:\n{text}"
    assert text == expected.read_text()


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_example_is_right(path: Path) -> None:
    load_any(path)


@pytest.mark.parametrize("path", [*CASES, *SHIPPED], ids=lambda path: path.stem)
def test_what_is_printed_parses_to_the_same_value(path: Path) -> None:
    try:
        config = load_any(path)
    except ConfigError:
        return
    printed = format_config(config)
    assert parse(printed) == config
    assert format_config(parse(printed)) == printed


def test_a_file_with_ten_mistakes_lists_ten() -> None:
    with pytest.raises(ConfigError) as error:
        load_mux(HERE / "ten_mistakes.toml")
    assert len(error.value.mistakes) == 10
    assert all(path for path, _ in error.value.mistakes)


def test_every_mistake_is_one_line() -> None:
    for path in CASES:
        suffix, text = outcome(path)
        if suffix == ".err":
            assert all(line.isprintable() for line in text.splitlines())
            assert text.count("\n") == len(text.splitlines())


def mistakes(text: str, kind: Kind = Kind.ANY) -> list[str]:
    with pytest.raises(ConfigError) as error:
        parse(text, kind)
    return error.value.lines


def test_missing_file_is_one_sentence(tmp_path: Path) -> None:
    for path in (tmp_path / "none.toml", tmp_path, Path("a\0b")):
        with pytest.raises(ConfigError) as error:
            load_any(path)
        assert len(error.value.lines) == 1


def test_each_program_takes_only_its_own_file(tmp_path: Path) -> None:
    assert mistakes(SERVICE, Kind.MUX) == ["mux: is missing; a MUX's file has a table [mux]"]
    assert mistakes(SERVICE, Kind.AGENT) == ["agent: is missing; a host agent's file has a table [agent]"]
    assert mistakes(MUX, Kind.SERVICES) == ["mux: has no place in this file"]
    for name, text in (("mux", MUX), ("services", SERVICE)):
        (tmp_path / name).write_text(text)
    assert load_services(tmp_path / "services")[0].name == "s"
    assert isinstance(load_mux(tmp_path / "mux"), MuxConfig)
    with pytest.raises(ConfigError):
        load_agent(tmp_path / "mux")


AGENT = '[agent]\nname = "h"\naddress = "10.0.3.21"\ninterface = "eth0"\nmuxes = ["10.0.1.11"]\n'
MANAGER = '[manager]\nname = "m"\nvip_prefixes = ["203.0.113.0/24"]\n'
BGP = '[bgp]\nasn = 65001\n[[bgp.peer]]\nname = "r"\naddress = "10.0.1.1"\nasn = 65000\n'
HERE_TRANSLATED = '[[service.backend]]\nname = "b"\naddress = "10.0.3.21"\nport = 8080\n'
#: Files that a daemon does not start with: one mistake of each kind in each.
ODD = {
    load_mux: [
        MUX + 'encap = "gre"\n',
        MUX + 'io = "tun"\nbusy_poll = true\n',
        MUX + "workers = 1000\n",
        MUX + "mtu = 68\n",
        MUX + 'metrics = "127.0.0.1:99999"\n',
        MUX + '[manager]\nurl = "http://10.0.1.9:9740"\n',
        MUX + '[manager]\nurl = "https://10.0.1.9:9740"\n' + SERVICE,
        MUX + BGP.replace("10.0.1.1", "10.0.1.11"),
        MUX + BGP + f'password = "{"x" * 100}"\n',
        MUX + SERVICE.replace("203.0.113.1", "10.0.1.11"),
        MUX + SERVICE + '[[service.backend]]\nname = "b"\naddress = "2001:db8::1"\n',
        MUX + SERVICE + '[service.announce]\ncommunities = ["99999:1"]\n',
    ],
    load_agent: [
        AGENT.replace('"10.0.1.11"', ""),
        AGENT.replace("10.0.3.21", "0.0.0.0"),
        AGENT.replace("10.0.3.21", "127.0.0.1"),
        AGENT + "mtu = 100\n",
        AGENT + 'decap = "gre"\n',
        AGENT + 'metrics = "9742"\n',
        AGENT + 'command_user = ""\n',
        AGENT + SERVICE.replace("203.0.113.1", "10.0.3.21"),
        AGENT + SERVICE + '[service.probe]\ntype = "tcp"\ninterval = 1.0\ntimeout = 2.0\n',
        AGENT + SERVICE + '[service.probe]\ntype = "http"\npath = "/a b"\n',
        AGENT
        + SERVICE.replace("80", '"80-90"')
        + '[[service.backend]]\nname = "b"\naddress = "10.0.3.21"\nport = 8080\n',
    ],
    load_manager: [
        MANAGER + 'listen = "9740"\n',
        MANAGER + 'listen = "m1.example.net:9740"\n',
        MANAGER + 'metrics = "0.0.0.0:9740"\n',
        MANAGER + 'web = "10.0.1.9:9740"\n',
        MANAGER + 'web = "127.0.0.1:9743"\n',
        MANAGER + "withdraw_cap = 1.5\n",
        MANAGER + "hold = -1\n",
        MANAGER + "node_lifetime = 1\n",
        MANAGER.replace('"203.0.113.0/24"', ""),
        MANAGER.replace("203.0.113.0/24", "203.0.113.1/24"),
        MANAGER + SERVICE,
    ],
}


@pytest.mark.parametrize(
    ("load", "text"), [(load, text) for load, texts in ODD.items() for text in texts], ids=range(34)
)
def test_what_a_daemon_refuses_at_its_start_is_refused_by_check_in_the_same_words(
    load: Callable[[Path], object], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "file.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as refused:
        load(path)
    assert refused.value.mistakes
    assert run(["check", str(path)]) == 2
    assert capsys.readouterr().out.splitlines() == refused.value.lines


PAIR = [
    "port = 80\n[service.announce]\nmed = 5\n",
    "port = 81\n[service.announce]\nmed = 6\n",
]
ODD_SERVICES = [
    [SERVICE, SERVICE],
    [SERVICE, SERVICE.replace('"s"', '"t"')],
    [SERVICE.replace("port = 80\n", part).replace('"s"', f'"{i}"') for i, part in enumerate(PAIR)],
    [SERVICE + "slots = 100\n"],
    [SERVICE + "panic = 1.5\n"],
    [SERVICE + "idle = 0\n"],
    [SERVICE + '[service.announce]\npolicy = "min-healthy"\n'],
    [SERVICE + '[service.announce]\npolicy = "min-healthy"\nn = 5\n'],
    [SERVICE + '[[service.backend]]\nname = "b"\naddress = "203.0.113.1"\n'],
    [
        SERVICE.replace("203.0.113.1", "2001:db8::1")
        + 'mtu = 1290\n[[service.backend]]\nname = "b"\naddress = "10.0.3.21"\n'
    ],
    [SERVICE + "".join(f'[[service.backend]]\nname = "{n}"\naddress = "10.0.3.1"\nport = {n}\n' for n in (80, 81))],
]


@pytest.mark.parametrize("text", ["".join(parts) for parts in ODD_SERVICES], ids=range(len(ODD_SERVICES)))
def test_what_a_manager_refuses_to_apply_is_refused_by_check_in_the_same_words(text: str) -> None:
    """But for what only it knows: its prefixes, its nodes, and the services that are there."""
    everywhere = Rules((ip_network("0.0.0.0/0"), ip_network("::/0")))
    with pytest.raises(ConfigError) as checked:
        parse(text)
    with pytest.raises(ConfigError) as applied:
        apply_tables(Desired(), tomllib.loads(text)["service"], everywhere)
    assert checked.value.lines == applied.value.lines


def test_offline_tools_need_no_interface(tmp_path: Path) -> None:
    path = tmp_path / "mux.toml"
    path.write_text(MUX.replace('interface = "eth0"\n', ""))
    assert load_mux(path, offline=True).mux.interface == ""
    with pytest.raises(ConfigError, match=r"mux\.interface: is missing"):
        load_mux(path)


def test_a_wrong_key_of_mux_hides_no_check_of_services() -> None:
    text = MUX.replace("0011", "xx11", 1) + SERVICE.replace("203.0.113.1", "10.0.1.11")
    assert [line.split(":")[0] for line in mistakes(text)] == ["mux.seed", "service[0].vip"]


def test_too_many_services_or_backends_are_refused() -> None:
    many = "\n".join(f'[[service.backend]]\nname = "{i}"\naddress = "10.1.{i >> 8}.{i & 255}"' for i in range(4096))
    assert mistakes(SERVICE + many) == ['service[0].backend: must be at most 4095 backends, not 4096 (service "s")']
    services = [
        SERVICE.replace('"s"', f'"s{i}"').replace("203.0.113.1", f"203.0.{i >> 8}.{i & 255}") for i in range(32768)
    ]
    assert mistakes("".join(services)) == ["service: must be at most 32767 services"]


@pytest.mark.parametrize("path", [*CASES, *SHIPPED], ids=lambda path: path.stem)
def test_reading_in_pieces_gives_the_same(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = outcome(path)
    monkeypatch.setattr(lb.config.load, "_PIECES_FROM", 0)
    monkeypatch.setattr(lb.config.load, "_PIECE", 1)
    assert outcome(path) == whole


def test_a_table_after_the_services_is_read_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lb.config.load, "_PIECES_FROM", 0)
    assert parse(SERVICE + MUX) == parse(MUX + SERVICE)
    twice = MUX + SERVICE + MUX
    assert mistakes(twice)[0].startswith("line 11: is not TOML")
    for services in ("service = []\n", "[service]\n"):
        assert "line" in mistakes(services + SERVICE)[0]


def test_ten_thousand_services_of_ten_backends_are_read_in_seconds() -> None:
    parts = [MUX.replace("10.0.1.11", "192.168.0.1")]
    for s in range(10_000):
        parts.append(SERVICE.replace('"s"', f'"s{s}"').replace("203.0.113.1", f"203.0.{s >> 8}.{s & 255}"))
        parts += [f'[[service.backend]]\nname = "s{s}-{b}"\naddress = "10.{b}.{s >> 8}.{s & 255}"\n' for b in range(10)]
    text = "\n".join(parts)
    start = time.process_time()
    config = parse(text)
    assert time.process_time() - start < 15  # 3 s on an idle machine
    assert isinstance(config, MuxConfig)
    assert len(config.services) == 10_000


# --- properties ------------------------------------------------------------------------------------------------------

names = st.text(
    st.characters(exclude_categories=["Cs", "Cc", "Cf", "Zl", "Zp", "Zs", "Co", "Cn"]), min_size=1, max_size=20
)
seconds = st.floats(0.1, 5, allow_nan=False)
probes = st.one_of(
    st.builds(
        Probe,
        st.just(ProbeType.HTTP),
        port=st.none() | st.integers(1, 65535),
        path=st.text(string.ascii_letters + string.digits + "?&=%-", max_size=10).map("/".__add__),
        status=st.sampled_from([(200, 200), (200, 299), (204, 503)]),
        expect=st.none() | st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20),
        interval=st.floats(5, 300),
        timeout=seconds,
        rise=st.integers(1, 100),
        fall=st.integers(1, 100),
    ),
    st.builds(Probe, st.just(ProbeType.COMMAND), command=st.lists(names, min_size=1, max_size=3).map(tuple)),
    st.builds(Probe, st.just(ProbeType.UDP), request=st.none() | names, expect=st.none() | names),
)
announces = st.builds(
    Announce,
    policy=st.sampled_from([AnnouncePolicy.ALWAYS, AnnouncePolicy.ANY_BACKEND]),
    communities=st.lists(st.sampled_from(["65000:1", "0:0", "4200000000:1:2"]), max_size=2).map(tuple),
    med=st.none() | st.integers(0, 2**32 - 1),
    prepend=st.integers(0, 16),
)


@st.composite
def services_of(draw: st.DrawFn) -> tuple[Service, ...]:
    """Services that do not tie, as each has a VIP of its own."""
    services = []
    for i, name in enumerate(draw(st.lists(names, max_size=4, unique=True))):
        six = draw(st.booleans())
        ports = draw(st.sampled_from([PortRange(80, 80), PortRange(8000, 8099), PortRange(0, 65535)]))
        backend_names = draw(st.lists(names, max_size=5, unique=True))
        backends = tuple(
            Backend(
                backend_name,
                IPv6Address(f"2001:db8:1::{j + 1}") if six else IPv4Address(f"10.0.0.{j + 1}"),
                draw(st.none() | st.integers(1, 65535)) if ports.exact else None,
                draw(st.integers(0, 1000)),
                draw(st.sampled_from(BackendState)),
            )
            for j, backend_name in enumerate(backend_names)
        )
        services.append(
            Service(
                name,
                IPv6Network(f"2001:db8:{i + 100}::/64") if six else IPv4Network(f"203.0.113.{i}"),
                draw(st.sampled_from(Protocol)),
                ports,
                backends,
                slots=draw(st.none() | st.sampled_from([7, 4093, 65537])),
                hash=draw(st.sampled_from(HashMode)),
                mtu=draw(st.none() | st.integers(1280, 9216)),
                idle=draw(st.none() | st.integers(1, 14_400)),
                slow_start=draw(st.none() | st.floats(1, 3600)),
                probe=draw(st.none() | probes),
                announce=draw(st.none() | announces),
            )
        )
    return tuple(services)


muxes = st.builds(
    MuxSettings,
    name=names,
    address=st.just(IPv4Address("10.0.1.11")),
    address6=st.just(IPv6Address("2001:db8::11")),
    seed=st.binary(min_size=16, max_size=16),
    interface=st.sampled_from(["eth0", "bond0.100", 'a"b']),
    io=st.sampled_from(IoMode),
    workers=st.integers(1, 64),
    flows=st.integers(1, 100_000_000),
    mtu=st.integers(1280, 9216),
    metrics=st.sampled_from(["127.0.0.1:9741", "[::1]:0"]),
    idle=st.builds(Idle, st.integers(1, 14_400), st.integers(1, 14_400), st.integers(1, 14_400)),
)


@settings(max_examples=150, deadline=None)
@given(st.one_of(services_of(), st.builds(MuxConfig, muxes, services_of())))
def test_any_configuration_survives_printing_and_parsing(config: MuxConfig | tuple[Service, ...]) -> None:
    assert parse(format_config(config)) == config


toml_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
).map(lambda value: '"x"' if value is None else _toml(value))


def _toml(value: object) -> str:
    if isinstance(value, list):
        return "[" + ", ".join('"n"' if item is None else _toml(item) for item in value) + "]"
    if isinstance(value, str):
        return '"' + "".join(f"\\U{ord(c):08x}" for c in value) + '"'
    return str(value).lower()


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(path.name for path in SHIPPED)), st.integers(0, 200), toml_values)
def test_any_value_in_any_place_is_taken_or_refused_with_its_path(file: str, place: int, value: str) -> None:
    path = next(shipped for shipped in SHIPPED if shipped.name == file)
    lines = path.read_text().splitlines()
    assignments = [i for i, line in enumerate(lines) if " = " in line and not line.startswith("#")]
    i = assignments[place % len(assignments)]
    lines[i] = lines[i].split(" = ")[0] + " = " + value
    try:
        config = parse("\n".join(lines))
    except ConfigError as error:
        assert all(line.isprintable() for line in error.lines)  # noqa: PT017
    else:
        assert parse(format_config(config)) == config


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_make_it_crash(data: bytes) -> None:
    try:
        assert isinstance(parse(data.decode(errors="replace")), MuxConfig | AgentConfig | tuple)
    except ConfigError as error:
        assert error.lines  # noqa: PT017


def test_services_in_plain_values_are_the_same_services() -> None:
    services = load_services(DEPLOY / "services.toml")
    plain = json.loads(json.dumps([service_table(service) for service in services]))
    assert parse_service_tables(plain) == services


def test_mistakes_in_plain_values_have_their_paths() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_service_tables([{"name": "a", "vip": "203.0.113.1", "protocol": "tcp", "port": 0}, {"name": "a", "x": 1}])
    assert [path for path, _ in caught.value.mistakes] == [
        "service[1].vip",
        "service[1].protocol",
        "service[1].port",
        "service[1].x",
        "service[1].name",
    ]


def test_the_managers_address_is_read() -> None:
    assert parse_manager_url("https://10.0.1.9") == "https://10.0.1.9:9740"
    assert parse_manager_url("https://[2001:db8::9]:1") == "https://[2001:db8::9]:1"
    assert parse_manager_url("lb.example.net") == "https://lb.example.net:9740"
    for wrong in ("http://10.0.1.9", "https://", "https://a:b", "https://a/b", "ftp://a", "", "https://u@a", "a b"):
        with pytest.raises(ConfigError, match="--manager: must be an address"):
            parse_manager_url(wrong)


def test_with_a_manager_services_come_from_it(tmp_path: Path) -> None:
    alone, both = tmp_path / "alone.toml", tmp_path / "both.toml"
    alone.write_text(MUX)
    both.write_text(MUX + SERVICE)
    assert load_mux(alone).manager is None
    assert load_mux(alone, manager="https://10.0.1.9:9740").manager == "https://10.0.1.9:9740"
    with pytest.raises(ConfigError, match="services come from the manager"):
        load_mux(both, manager="https://10.0.1.9:9740")


def test_services_of_a_manager_are_checked_as_those_of_a_file() -> None:
    mux = parse(MUX, Kind.MUX)
    assert isinstance(mux, MuxConfig)
    backend = {"name": "b", "address": "2001:db8:3::1"}
    table = {"name": "s", "vip": "2001:db8::1", "protocol": "tcp", "port": 80, "backend": [backend]}
    assert len(parse_service_tables([table])) == 1
    with pytest.raises(ConfigError, match=r"is IPv6, which needs mux\.address6"):
        parse_service_tables([table], mux.mux)
