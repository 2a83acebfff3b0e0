# SPDX-License-Identifier: Apache-2.0
"""The cached state: whatever was saved is there after a crash at any byte, and damage is told from it."""

from __future__ import annotations

import json
import os
import stat
import threading
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from lb.errors import IoError
from lb.node import cache as caching
from lb.node.cache import Cache, Cached
from lb.node.messages import NodeState, diff, digest


def state(number: int) -> NodeState:
    return {"services": {"web": {"vip": "203.0.113.10", "n": number}, f"s{number}": {"é": 1}}}


def cached(number: int) -> Cached:
    return Cached(3, number, digest(state(number)), state(number))


def filled(directory: Path, count: int) -> Cache:
    """One whole state, then changes."""
    cache = Cache(directory, "mux:mux1")
    cache.save(cached(0))
    for number in range(1, count):
        cache.save(cached(number), diff(state(number - 1), state(number)))
    return cache


def loaded(directory: Path, node: str = "mux:mux1") -> tuple[Cached | None, list[Any]]:
    with capture_logs() as logs:
        return Cache(directory, node).load(), [dict(line) for line in logs]


def test_without_a_file_there_is_no_state(tmp_path: Path) -> None:
    assert loaded(tmp_path / "node") == (None, [])


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    filled(tmp_path / "node", 5)
    assert loaded(tmp_path / "node") == (cached(4), [])
    assert stat.S_IMODE((tmp_path / "node" / "state").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "node" / "changes").stat().st_mode) == 0o600


def test_a_change_writes_the_change_and_not_the_state(tmp_path: Path) -> None:
    filled(tmp_path, 1)
    before = (tmp_path / "state").stat().st_mtime_ns
    filled_size = (tmp_path / "changes").stat().st_size
    cache = Cache(tmp_path, "mux:mux1")
    cache.load()
    cache.save(cached(1), diff(state(0), state(1)))
    assert (tmp_path / "state").stat().st_mtime_ns == before
    assert (tmp_path / "changes").stat().st_size > filled_size
    assert loaded(tmp_path) == (cached(1), [])


def test_a_crash_at_any_byte_of_a_change_leaves_the_state_before_it(tmp_path: Path) -> None:
    filled(tmp_path, 3)
    whole = (tmp_path / "changes").read_bytes()
    records = [0, *(at for at in range(len(whole)) if whole[at : at + 1] == b"\n")]
    for size in {
        *range(records[1] + 1, len(whole), 13),
        *(at for at in records[2:]),
        *(at + 1 for at in records[2:-1]),
    }:
        (tmp_path / "changes").write_bytes(whole[:size])
        complete = sum(1 for at in records[2:] if at <= size)
        assert loaded(tmp_path) == (cached(complete), []), size
        # and it goes on from there
        cache = Cache(tmp_path, "mux:mux1")
        cache.load()
        cache.save(cached(9), diff(state(complete), state(9)))
        assert loaded(tmp_path) == (cached(9), []), size
        filled(tmp_path, 3)


def test_a_crash_between_state_and_changes_does_not_mix_them(tmp_path: Path) -> None:
    filled(tmp_path, 3)
    old_changes = (tmp_path / "changes").read_bytes()
    Cache(tmp_path, "mux:mux1").save(cached(7))
    (tmp_path / "changes").write_bytes(old_changes)
    assert loaded(tmp_path) == (cached(7), [])


def test_changes_that_are_gone_are_noticed_and_said(tmp_path: Path) -> None:
    filled(tmp_path, 3)
    (tmp_path / "changes").unlink()
    cache = Cache(tmp_path, "mux:mux1")
    with capture_logs() as logs:
        assert cache.load() == cached(0), "what is left"
    assert [(line["event"], line["file"]) for line in logs] == [("cached state incomplete", str(tmp_path / "changes"))]
    assert cache.incomplete is not None
    # and it goes on from there
    cache.save(cached(9), diff(state(0), state(9)))
    again = Cache(tmp_path, "mux:mux1")
    assert (again.load(), again.incomplete) == (cached(9), None)


@pytest.mark.parametrize("record", [1, 2, 3])
def test_a_record_that_is_damaged_or_missing_is_noticed_and_said(tmp_path: Path, record: int) -> None:
    filled(tmp_path, 4)
    lines = (tmp_path / "changes").read_bytes().split(b"\n")
    damaged = [*lines]
    damaged[record] = damaged[record].replace(b"203.0.113.10", b"203.0.113.66")
    (tmp_path / "changes").write_bytes(b"\n".join(damaged))
    found, logs = loaded(tmp_path)
    assert found == cached(record - 1)
    assert [line["event"] for line in logs] == ["cached state incomplete"]
    assert f"record {record}" in logs[0]["reason"]
    if record < 3:
        (tmp_path / "changes").write_bytes(b"\n".join(lines[:record] + lines[record + 1 :]))
        found, logs = loaded(tmp_path)
        assert found == cached(record - 1)
        assert [line["event"] for line in logs] == ["cached state incomplete"]


def test_a_state_without_changes_yet_is_complete_whenever_it_was_cut_short(tmp_path: Path) -> None:
    """The file of changes is there before the state, so its absence always means a loss."""
    made: list[str] = []
    writing = caching.write_private

    def watched(path: Path, data: bytes) -> None:
        made.append(path.name)
        writing(path, data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(caching, "write_private", watched)
        filled(tmp_path, 1)
    assert made == ["changes", "state", "changes"]


def test_a_state_of_a_newer_version_is_read_as_far_as_this_one_can(tmp_path: Path) -> None:
    filled(tmp_path, 1)
    text = (tmp_path / "state").read_bytes().replace(b'"version":1', b'"version":2,"more":[1]')
    (tmp_path / "state").write_bytes(text)
    found, logs = loaded(tmp_path)
    assert found == cached(0)
    assert [line["event"] for line in logs] == ["cached state of a newer version"]


@pytest.mark.parametrize(
    "record",
    [b"[]", b"{}", b'{"set":1,"remove":{}}', b'{"set":{},"remove":{},"term":"x","generation":1,"digest":""}', b'"x"'],
)
def test_a_change_of_a_newer_version_is_left_out_and_said(tmp_path: Path, record: bytes) -> None:
    """Whoever goes back to an older program finds what the newer one wrote."""
    filled(tmp_path, 2)
    line = caching._checksum(record) + b" " + record + b"\n"
    (tmp_path / "changes").write_bytes((tmp_path / "changes").read_bytes() + line)
    found, logs = loaded(tmp_path)
    assert found == cached(1)
    assert [line["event"] for line in logs] == ["cached state incomplete"]
    assert "newer version" in logs[0]["reason"]


def test_the_marks_of_the_stores_history_are_kept(tmp_path: Path) -> None:
    cache = Cache(tmp_path, "mux:mux1")
    cache.save(Cached(3, 1, digest(state(0)), state(0), "a1", 7))
    assert loaded(tmp_path)[0] == Cached(3, 1, digest(state(0)), state(0), "a1", 7)
    cache.save(Cached(3, 2, digest(state(1)), state(1), "a1", 8), diff(state(0), state(1)))
    assert loaded(tmp_path)[0] == Cached(3, 2, digest(state(1)), state(1), "a1", 8)


def test_calls_from_two_threads_wait_for_one_another(tmp_path: Path) -> None:
    """Both would write ``state.new``, and the second would fail."""
    cache = Cache(tmp_path, "mux:mux1")
    failed: list[Exception] = []

    def save(number: int) -> None:
        try:
            for _ in range(20):
                cache.save(cached(number))
        except IoError as error:
            failed.append(error)

    threads = [threading.Thread(target=save, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert loaded(tmp_path)[0] in [cached(number) for number in range(4)]


def test_many_changes_are_folded_into_the_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the latest when the file is four times larger than it should be; before, in a quiet moment."""
    monkeypatch.setattr(caching, "_FOLD_FROM", 2000)
    filled(tmp_path, 200)
    assert (tmp_path / "changes").stat().st_size < 4 * 2000 + 1000
    assert loaded(tmp_path) == (cached(199), [])


def test_a_fold_is_due_before_it_must_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caching, "_FOLD_FROM", 2000)
    cache, number = Cache(tmp_path, "mux:mux1"), 0
    assert not cache.due, "there is nothing yet"
    cache.save(cached(0))
    while not cache.due:
        number += 1
        cache.save(cached(number), diff(state(number - 1), state(number)))
    whole = (tmp_path / "state").read_bytes()
    number += 1
    cache.save(cached(number), diff(state(number - 1), state(number)))
    assert (tmp_path / "state").read_bytes() == whole, "one that is in a hurry may still append"
    cache.save(cached(number))
    assert not cache.due
    assert (tmp_path / "changes").stat().st_size < 100
    assert loaded(tmp_path) == (cached(number), [])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda text: text[:-5], "its checksum is wrong"),
        (lambda text: text.replace(b"203.0.113.10", b"203.0.113.11"), "its checksum is wrong"),
        (lambda text: b"", "damaged"),
        (lambda text: b"\0" * len(text), "damaged"),
        (lambda text: text.replace(b'"version":1', b'"version":"x"'), "it does not say its version"),
    ],
)
def test_a_damaged_file_is_one_clear_line_and_no_state(tmp_path: Path, damage: Any, reason: str) -> None:
    filled(tmp_path, 1)
    (tmp_path / "state").write_bytes(damage((tmp_path / "state").read_bytes()))
    found, logs = loaded(tmp_path)
    assert found is None
    (line,) = logs
    assert line["event"] == "cached state not used"
    assert reason in line["reason"]


def test_the_state_of_another_node_is_not_used(tmp_path: Path) -> None:
    filled(tmp_path, 1)
    found, (line,) = loaded(tmp_path, "mux:mux2")
    assert found is None
    assert "of mux:mux1, not of mux:mux2" in line["reason"]


def test_a_disk_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "node").write_text("in the way")
    with pytest.raises(IoError, match="cannot be written"):
        Cache(tmp_path / "node", "mux:mux1").save(cached(1))


def test_another_authority_begins_with_terms_anew_and_the_state_stays(tmp_path: Path) -> None:
    filled(tmp_path, 3)
    Cache(tmp_path, "mux:mux1").forget_term()
    found, _ = loaded(tmp_path)
    assert found is not None
    assert (found.term, found.generation, found.state) == (0, 0, state(2))


def test_a_damaged_digest_does_not_matter_to_loading(tmp_path: Path) -> None:
    """It is compared with the manager's."""
    filled(tmp_path, 1)
    head, _, body = (tmp_path / "state").read_bytes().partition(b"\n")
    label = json.loads(head)
    label["digest"] = "0" * 64
    (tmp_path / "state").write_bytes(json.dumps(label).encode() + b"\n" + body)
    found, _ = loaded(tmp_path)
    assert found is not None
    assert os.path.exists(tmp_path / "changes")
    assert found.digest == "0" * 64
