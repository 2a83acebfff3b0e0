# SPDX-License-Identifier: Apache-2.0
"""What is TOML is read as the standard library reads it; what is none is refused in words, with its line."""

from __future__ import annotations

import contextlib
import re
import tomllib
from pathlib import Path

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


def ours(text: str) -> str | None:
    """The value, which tells 1 from True, and nan is nan; None for what is refused."""
    try:
        return repr(toml.loads(text))
    except ConfigError as error:
        ((where, what),) = error.mistakes
        assert re.fullmatch(r"line \d+|file", where)
        assert what.startswith("is not TOML")
        assert what.isprintable()
        return None


@given(DOCUMENTS)
@example('service = [{name = "a"}]\n[[service.backend]]\nname = "x"')
@example('[[service]]\nbackend = [{name = "a"}]\n[[service.backend]]\nname = "x"')
@example("mux = {a = 1}\n[mux.idle]\ntcp = 1")
@example('[[service]]\nprobe = {type = "tcp"}\n[service.probe]\nport = 1')
@example('[service.probe]\ntype = "tcp"\n[[service]]\nname = "a"')
@example('[[service]]\nname = "a"\nname = "b"')
def test_what_the_standard_library_reads_is_read_the_same(text: str) -> None:
    text = text.replace("\r\n", "\n")  # within a string each may keep or change it (TOML 1.0, "String")
    found = ours(text)
    with contextlib.suppress(ValueError, RecursionError):
        assert found == repr(tomllib.loads(text))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_shipped_files_and_cases_read_the_same(path: Path) -> None:
    text = path.read_text(errors="replace")
    found = ours(text)
    with contextlib.suppress(ValueError, RecursionError):
        assert found == repr(tomllib.loads(text))


@given(st.text(max_size=20) | st.binary(max_size=20).map(lambda data: data.decode(errors="replace")))
def test_any_text_is_toml_or_refused_in_words(text: str) -> None:
    ours(text)


@pytest.mark.parametrize(
    "text",
    [
        "a = 1\n" + ".".join("a" * 100_000) + " = 1\n",
        "[" + "a." * 100_000 + "a]\n",
        "x = " + "[" * 100_000,
        "x = " + "{a = " * 100_000,
        "x = " + "9" * 100_000,
    ],
    ids=["key", "header", "arrays", "tables", "number"],
)
def test_what_is_without_end_is_refused_before_it_takes_all_memory(text: str) -> None:
    assert ours(text) is None


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("a = 1\nb = \n", "line 2: is not TOML at column 5: "),
        ("a = 1\n\na = 2", "line 3: is not TOML at column 1: duplicate key"),
        ('[mux]\nname = "a\n', "line 2: is not TOML at column 10: "),
    ],
)
def test_a_mistake_of_syntax_is_told_with_its_place(text: str, where: str) -> None:
    with pytest.raises(ConfigError) as error:
        toml.loads(text, "mux.toml")
    assert str(error.value).startswith(f"mux.toml: {where}")


def test_the_pieces_are_the_text_cut_above_each_service() -> None:
    text = '# head\n[mux]\n[[service]]\nname = "a"\n [[service]]\n[[service]] # b\n[[service.backend]]\n'
    assert toml.cut(text) == (
        "\n# head\n[mux]\n",
        ['[[service]]\nname = "a"\n [[service]]\n', "[[service]] # b\n[[service.backend]]\n"],
    )
    assert toml.cut("[mux]\n") == ("\n[mux]\n", [])
    assert toml.cut('a = """\n[[service]]\n"""') is None


def test_what_export_writes_is_read_back() -> None:
    backends = [{"name": f"web-{n}", "address": f"10.0.3.{n}", "weight": n} for n in range(1, 4)]
    probe = {"type": "http", "path": "/healthz"}
    service = {"name": "web", "vip": "203.0.113.1", "protocol": "tcp", "port": 80, "probe": probe, "backend": backends}
    tables, mistakes = toml.service_tables(toml.format_tables([service, {**service, "name": "shop"}]))
    assert (tables, mistakes) == ([service, {**service, "name": "shop"}], [])
