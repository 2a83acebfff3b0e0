# SPDX-License-Identifier: Apache-2.0
"""Numbers in a file: what was noted is read, and who begins with it lends the same."""

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lb.dataplane.compile.compiler import Compiler
from lb.dataplane.compile.kept_numbers import KeptService, NumbersFile, line_of, read_lines
from lb.dataplane.compile.numbers import Place, ServiceKey, ServiceNumbers
from lb.model import PortRange, Protocol
from tests.lb.mux.workers.test_flow_sync import UP
from tests.native.test_flow_table_scan import services
from tests.native.test_pipeline import SMALL

_PLACES = st.one_of(
    st.ip_addresses(v=4), st.ip_addresses(v=6), st.tuples(st.ip_addresses(v=4), st.text(min_size=1, max_size=5))
)
_KEYS = st.builds(
    ServiceKey,
    st.sampled_from([ip_network("192.0.2.1/32"), ip_network("2001:db8::/64"), ip_network("192.0.2.2/32")]),
    st.sampled_from(Protocol),
    st.sampled_from([PortRange(80, 80), PortRange(1, 65535)]),
)
_NOTES = st.lists(st.tuples(_KEYS, st.integers(0, 3), st.dictionaries(_PLACES, st.integers(0, 4094), max_size=4)))


@given(_NOTES)
def test_the_last_line_of_a_service_and_of_an_id_is_what_counts(
    notes: list[tuple[ServiceKey, int, dict[Place, int]]],
) -> None:
    text, expected = "", dict[int, KeptService]()
    for key, number, backends in notes:
        text += line_of(key, ServiceNumbers(number, backends))
        expected = {n: kept for n, kept in expected.items() if kept.key != key and n != number}
        expected[number] = KeptService(key, number, backends)
    assert {kept.id: kept for kept in read_lines(text)} == expected
    assert {kept.id: kept for kept in read_lines(text + '[7,"192.0')} == expected, "a line that was cut is none"


@pytest.mark.parametrize(
    "line", ["nonsense", "[]", "null", '[1,"no","tcp",[1,2],[]]', '[1,"192.0.2.1/32","tcp",[1],[]]']
)
def test_what_is_no_line_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match="is no line of numbers"):
        read_lines(line + "\n")


def numbers_of(compiler: Compiler) -> dict[ServiceKey, tuple[int, dict[Place, int]]]:
    return {key: (numbers.id, dict(numbers.backends)) for key, numbers in compiler._numbers.lent()}


def test_who_goes_on_lends_what_was_lent(tmp_path: Path) -> None:
    said: list[str] = []
    before = Compiler(SMALL)
    before.keep(NumbersFile(tmp_path / "numbers", said.append), [])
    told = services(UP, UP, UP)
    for state in (told, told[::-1], told[1:], services(UP, UP, UP, UP)):
        before.compile(state)
    after = Compiler(SMALL)
    after.keep(file := NumbersFile(tmp_path / "numbers", said.append), file_load(tmp_path))
    assert numbers_of(after) == numbers_of(before)
    after.compile(services(UP, UP, UP, UP)[::-1])
    assert numbers_of(after) == numbers_of(before)
    assert {kept.key: (kept.id, kept.backends) for kept in file.load()} == numbers_of(after)
    assert not said


def file_load(directory: Path) -> list[KeptService]:
    return NumbersFile(directory / "numbers", str).load()


def test_a_file_that_grows_is_written_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lb.dataplane.compile.kept_numbers._GROWN_BYTES", 0)
    compiler = Compiler(SMALL)
    file = NumbersFile(tmp_path / "numbers", str)
    compiler.keep(file, [])
    for turn in range(60):
        compiler.compile(services(*[UP] * (turn % 5 + 1)))
        assert {kept.key: (kept.id, kept.backends) for kept in file.load()} == numbers_of(compiler)
    assert (tmp_path / "numbers").stat().st_size < 20_000


def test_a_file_that_cannot_be_written_is_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    file = NumbersFile(tmp_path / "numbers", said.append)
    compiler = Compiler(SMALL)
    compiler.keep(file, [])
    monkeypatch.setattr("os.write", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    compiler.compile(services(UP))
    assert said == ["no space left on device"]
    assert not (tmp_path / "numbers").exists()
    compiler.compile(services(UP, UP))
