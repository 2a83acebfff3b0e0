# SPDX-License-Identifier: Apache-2.0
"""The quick way through plain TOML gives what the standard library's parser gives, and refuses what that refuses."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lb.config import toml
from lb.errors import ConfigError

ROOT = Path(__file__).parents[3]
FILES = sorted([*(ROOT / "deploy").glob("*.toml"), *(Path(__file__).parent / "cases").glob("*.toml")])

KEYS = ["name", "vip", "port", "a.b", '"quoted"', "ä", "", "service", "probe", "backend"]
VALUES = [
    *('"web"', '""', '"', '"a" # b', '"a\\n"', '"a"b"', '"""', '"""a"""', "'a'", '"ä"', '"\t"', '"#"', '" = "'),
    *("80", "0", "007", "-1", "+1", "1_000", "1.5", "0x1f", "9" * 16, "9" * 5000, "true", "1979-05-27", "²"),
    *("[1, 2]", "[", "[1,", "]", "{a = 1}", '{ type = "tcp", port = 80 }', "[{a = 1}]", "{", "", "# no", "nan"),
]
HEADERS = [
    *("[[service]]", "[[service.backend]]", "[service.probe]", "[service]", "[mux]", "[mux.idle]", "[[mux.idle]]"),
    *("[[a.b.c]]", "[a.b]", "[ service ]", "[[service]", "[service]]", "[]", '["service"]', "[[service]] # here"),
]
LINES = st.one_of(
    st.sampled_from(HEADERS),
    st.tuples(st.sampled_from(KEYS), st.sampled_from([" = ", "=", "  =\t", " "]), st.sampled_from(VALUES)).map("".join),
    st.sampled_from(["", "# text", "  ", "\x00", "\r", "# \x07", "x", "]", '"""', "\u2028"]),
)
DOCUMENTS = st.tuples(st.lists(LINES, max_size=12), st.sampled_from(["\n", "\r\n", "\n  "])).map(
    lambda found: found[1].join(found[0])
)


def outcome(loads: Any, text: str) -> tuple[str, Any]:
    try:
        return "value", repr(loads(text))  # tells 1 from True, and nan is nan
    except (ValueError, RecursionError) as error:
        return "error", (type(error), str(error) if isinstance(error, ValueError) else "")


@given(DOCUMENTS)
@example('service = [{name = "a"}]\n[[service.backend]]\nname = "x"')
@example('[[service]]\nbackend = [{name = "a"}]\n[[service.backend]]\nname = "x"')
@example("mux = {a = 1}\n[mux.idle]\ntcp = 1")
@example('[[service]]\nprobe = {type = "tcp"}\n[service.probe]\nport = 1')
@example('[service.probe]\ntype = "tcp"\n[[service]]\nname = "a"')
@example('[[service]]\nname = "a"\nname = "b"')
def test_the_quick_way_and_the_standard_library_agree(text: str) -> None:
    assert outcome(toml.loads, text) == outcome(tomllib.loads, text)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_shipped_files_and_cases_read_the_same(path: Path) -> None:
    text = path.read_text(errors="replace")
    assert outcome(toml.loads, text) == outcome(tomllib.loads, text)


def test_what_export_writes_takes_the_quick_way(monkeypatch: pytest.MonkeyPatch) -> None:
    backends = [{"name": f"web-{n}", "address": f"10.0.3.{n}", "weight": n} for n in range(1, 4)]
    probe = {"type": "http", "path": "/healthz"}
    service = {"name": "web", "vip": "203.0.113.1", "protocol": "tcp", "port": 80, "probe": probe, "backend": backends}
    text = toml.format_tables([service, {**service, "name": "shop"}])
    monkeypatch.setattr(toml.tomllib, "loads", lambda _: pytest.fail("it was not as plain as it should be"))
    assert toml.loads(text) == {"service": [service, {**service, "name": "shop"}]}


def test_of_a_plain_file_only_the_odd_line_is_the_librarys(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    whole = tomllib.loads
    monkeypatch.setattr(toml.tomllib, "loads", lambda text: (asked.append(text), whole(text))[1])
    assert toml.loads('[[service]]\nname = "a" # the first\nport = 80') == {"service": [{"name": "a", "port": 80}]}
    assert asked == ['value = "a" # the first']


def test_a_key_without_end_is_refused_before_it_takes_all_memory() -> None:
    with pytest.raises(ValueError, match="Too many dots \\(at line 2, column 1\\)"):
        toml.loads("a = 1\n" + ".".join("a" * 100_000) + " = 1\n")
    with pytest.raises(ConfigError, match="no line of ours has more"):
        toml.service_tables("[" + "a." * 1000 + "a]\n")
