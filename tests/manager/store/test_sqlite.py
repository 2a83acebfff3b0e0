# SPDX-License-Identifier: Apache-2.0
"""The SQLite store: what it gave, it keeps; what it did not give, is not half there."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sqlite3
import stat
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lb.node.messages import apply
from manager.store.interface import ConflictError, NodeRecord, Store, StoreError, SupersededError, VersionLine
from manager.store.sqlite import FILE, SCHEMA, SqliteStore
from manager.trust import tokens
from manager.trust.tokens import Certificate, Deed, JoinRefusal, Token


@asynccontextmanager
async def opened(directory: Path) -> AsyncIterator[Store]:
    store = await SqliteStore.open(directory)
    try:
        yield store
    finally:
        await store.close()


def setting(**entries: Any) -> dict[str, Any]:
    return {"set": {"services": entries}, "remove": {}}


async def test_a_change_is_there_after_opening_again(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        assert (await store.load()).version == 0
        assert await store.commit(0, setting(web={"a": 1}, dns={"b": "ü"}), "alice", "two services", 5.0) == 1
        assert await store.commit(1, {"set": {}, "remove": {"services": ["web"]}}, "bob", "one less", 6.0) == 2
    async with opened(tmp_path) as store:
        stored = await store.load()
        assert (stored.version, stored.entries) == (2, {"services": {"dns": {"b": "ü"}}})
        lines = await store.audit(10)
        assert [(line.version, line.at, line.who, line.what) for line in lines] == [
            (2, 6.0, "bob", "one less"),
            (1, 5.0, "alice", "two services"),
        ]
        assert lines[1].change == setting(web={"a": 1}, dns={"b": "ü"})


async def test_of_two_changes_of_one_version_only_the_first_is_made(tmp_path: Path) -> None:
    async with opened(tmp_path) as store, opened(tmp_path) as other:
        await store.commit(0, setting(a=1), "alice", "first", 1.0)
        with pytest.raises(ConflictError, match="at version 1 by now, not at 0"):
            await other.commit(0, setting(a=2), "bob", "second", 2.0)
        assert (await other.load()).entries == {"services": {"a": 1}}
        assert len(await other.audit(10)) == 1


async def test_nothing_can_change_the_audit(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.commit(0, setting(a=1), "alice", "first", 1.0)
    refuses_to_change_its_audit(tmp_path)


def refuses_to_change_its_audit(directory: Path) -> None:
    with sqlite3.connect(directory / FILE) as database:
        for statement in ("UPDATE audit SET who = 'bob'", "DELETE FROM audit"):
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                database.execute(statement)
    database.close()


async def test_who_lets_whom_take_part_is_a_line_of_the_audit_between_the_changes(tmp_path: Path) -> None:
    token, secret = tokens.make("admin", "bob", 60, "operator:ada", 2.0)
    node, _ = tokens.make("mux", None, 900, "operator:bob", time.time())
    joined = Certificate("AB", "mux", "mux1", time.time(), time.time() + 86400)
    async with opened(tmp_path) as store:
        await store.commit(0, setting(a=1), "alice", "first", 1.0)
        await store.add_token(token)
        await store.commit(1, setting(a=2), "alice", "second", 3.0)
        await store.add_token(node)
        await store.join(node.digest, joined, "PEM", replaces=False)
        await store.revoke(["AB", "AB"], 5.0, "sold", "operator:ada")
        await store.revoke(["AB"], 6.0, "again", "operator:ada")
        await store.end_tokens([token.digest], 7.0, "operator:ada")
        lines = [(line.version, line.who, line.what, line.why) for line in await store.audit(10)]
        assert lines == [
            (2, "operator:ada", f"token {token.id} of admin bob revoked", ""),
            (2, "operator:ada", "certificate AB of mux mux1 revoked", "sold"),
            (2, "mux:mux1", f"joined with token {node.id}, made by operator:bob", ""),
            (2, "operator:bob", f"token {node.id} made for mux of any name to join once, for 900 s", ""),
            (2, "alice", "second", ""),
            (1, "operator:ada", f"token {token.id} made for operator bob to ask as admin, for 60 s", ""),
            (1, "alice", "first", ""),
        ]
        assert secret not in repr(lines)
        assert [line.what for line in await store.audit(5)] == [what for _, _, what, _ in lines[:5]]
        assert [line.change for line in await store.audit(7, -1)] == [{}, {}, {}, {}, None, {}, None]
        assert [line.version for line in await store.history(10)] == [2, 1]  # those are of services alone
    with sqlite3.connect(tmp_path / FILE) as database:
        for statement in ("UPDATE deed SET who = 'bob'", "DELETE FROM deed"):
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                database.execute(statement)
    database.close()


async def test_a_token_without_its_line_is_none(tmp_path: Path) -> None:
    token, _ = tokens.make("mux", None, 900, "operator:bob", time.time())
    async with opened(tmp_path) as store:
        with sqlite3.connect(tmp_path / FILE) as database:
            database.execute("DROP TABLE deed")
        database.close()
        with pytest.raises(StoreError):
            await store.add_token(token)
        assert await store.token(token.digest) is None


async def test_the_file_is_its_owners_alone_and_synchronised(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.commit(0, setting(a=1), "alice", "first", 1.0)
        for name in os.listdir(tmp_path):
            assert stat.S_IMODE(os.stat(tmp_path / name).st_mode) == 0o600, name
        assert isinstance(store, SqliteStore)
        assert store._db.execute("PRAGMA synchronous").fetchone() == (2,)
        assert store._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


async def test_memory_nodes_and_terms_last(tmp_path: Path) -> None:
    node = NodeRecord("mux", "mux1", "10.0.1.11", None, 1.0, 2.0, "0.1.0")
    async with opened(tmp_path) as store:
        granted = {"set": {"granted": {"203.0.113.10/32": ["mux1"]}}, "remove": {}}
        await store.keep(granted, [node, NodeRecord("agent", "host1", None, None, 1.0, 2.0)], [], 5)
        await store.forget_node("agent", "host1", Deed(9.0, "operator:ada", "agent host1 forgotten"))
        assert [(line.who, line.what) for line in await store.audit(1)] == [("operator:ada", "agent host1 forgotten")]
        assert [await store.next_term(), await store.next_term()] == [1, 2]
    async with opened(tmp_path) as store:
        assert await store.memory() == {"granted": {"203.0.113.10/32": ["mux1"]}}
        assert await store.nodes() == [node]
        assert await store.next_term() == 3


async def test_a_token_is_spent_once(tmp_path: Path) -> None:
    token = Token("ab", "mux", "mux1", "alice", 1.0, 99.0)
    async with opened(tmp_path) as store, opened(tmp_path) as other:
        await store.add_token(token)
        assert await other.token("ab") == token
        assert await other.token("cd") is None
        signed = [Certificate(str(number), "mux", "mux1", 5.0, 99.0) for number in range(4)]
        stores = (store, other, store, other)
        spent = await asyncio.gather(
            *(s.join("ab", c, f"PEM {c.serial}", replaces=True) for s, c in zip(stores, signed, strict=True))
        )
        assert spent.count(None) == 1
        assert spent.count(JoinRefusal.USED) == 3
        found = await store.token("ab")
        assert found is not None
        assert (found.used_at, found.used_by) == (5.0, "mux:mux1")
        assert found.joined == f"PEM {signed[spent.index(None)].serial}"
        await store.end_tokens(["ab"], 6.0)
        assert (await store.token("ab")) == replace(found, expires=6.0, joined=None)


async def test_certificates_are_listed_until_they_expire_and_revoked_once(tmp_path: Path) -> None:
    later = time.time() + 1000
    async with opened(tmp_path) as store:
        await store.add_certificate(Certificate("1", "mux", "mux1", 1.0, later))
        await store.add_certificate(Certificate("2", "mux", "mux2", 1.0, 2.0))
        await store.revoke(["1"], 7.0, "lost")
        await store.revoke(["1"], 8.0, "again")
        assert await store.certificates() == [Certificate("1", "mux", "mux1", 1.0, later, 7.0, "lost")]
        assert await store.revoked() == {"1": "lost"}


async def test_revocations_are_read_again_only_where_somebody_wrote(tmp_path: Path) -> None:
    later = time.time() + 1000
    async with opened(tmp_path) as store, opened(tmp_path) as command:
        await store.add_certificate(Certificate("1", "mux", "mux1", 1.0, later))
        await store.add_certificate(Certificate("2", "mux", "mux2", 1.0, later))
        assert await store.revoked() == {}
        read: list[str] = []
        store._db.set_trace_callback(lambda text: read.append(text) if "FROM certificate" in text else None)
        for _ in range(5):
            assert await store.revoked() == {}
        assert not read
        await command.revoke(["1"], 7.0, "lost")
        assert await store.revoked() == {"1": "lost"}
        await store.revoke(["2"], 8.0, "sold")
        assert await store.revoked() == {"1": "lost", "2": "sold"}
        read.clear()
        assert await store.revoked() == {"1": "lost", "2": "sold"}
        assert not read


async def test_what_expired_long_ago_is_forgotten_and_no_revocation_that_matters(tmp_path: Path) -> None:
    now = time.time()
    async with opened(tmp_path) as store:
        for number in range(2500):
            store._db.execute(
                "INSERT INTO certificate VALUES (?, 'mux', 'mux1', 1, ?, NULL, NULL)", (f"old{number}", now - 50)
            )
        await store.add_certificate(Certificate("late", "mux", "mux2", 1.0, now - 5))
        await store.add_certificate(Certificate("good", "mux", "mux3", 1.0, now + 1000))
        await store.revoke(["old7", "late", "good"], now - 100, "lost")
        await store.add_token(Token("ab", "mux", None, "ada", now - 100, now - 50))
        await store.add_token(Token("cd", "mux", None, "ada", now - 100, now + 50))
        assert await store.forget_expired(now - 10) == 2501
        assert [row[0] for row in store._db.execute("SELECT serial FROM certificate ORDER BY serial")] == [
            "good",
            "late",
        ]
        assert await store.revoked() == {"good": "lost"}
        assert [token.digest for token in await store.all_tokens()] == ["cd"]
        assert await store.token("ab") is None
        assert await store.forget_expired(now - 10) == 0
        whys = [line.what for line in await store.audit(100)]
        assert any("old7" in what for what in whys)


async def test_what_is_no_database_is_said_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("this is not a database at all, but it is long enough" * 100)
    with pytest.raises(StoreError, match="file is not a database"):
        await SqliteStore.open(tmp_path)
    with pytest.raises(StoreError, match="unable to open"):
        await SqliteStore.open(tmp_path / "none")


async def test_a_store_of_a_later_version_is_left_alone(tmp_path: Path) -> None:
    async with opened(tmp_path):
        pass
    with sqlite3.connect(tmp_path / FILE) as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(StoreError, match="is of form 99"):
        await SqliteStore.open(tmp_path)


# --- what was before -------------------------------------------------------------------------------------------------

Changes = list[dict[str, Any]]
SECTIONS = st.sampled_from(["services", "drains"])
KEYS = st.sampled_from(["a", "b", "c"])
CHANGES = st.lists(
    st.fixed_dictionaries(
        {
            "set": st.dictionaries(SECTIONS, st.dictionaries(KEYS, st.integers(0, 9), max_size=2), max_size=2),
            "remove": st.dictionaries(SECTIONS, st.lists(st.sampled_from(["c", "d"]), max_size=2), max_size=2),
        }
    ).filter(lambda change: not any({*change["set"].get(s, {})} & {*keys} for s, keys in change["remove"].items())),
    max_size=6,
)


async def commit_all(store: Store, changes: Changes) -> list[dict[str, Any]]:
    """Returns the desired state at every version, from 0."""
    states = [{}]
    for version, change in enumerate(changes):
        await store.commit(version, change, "alice", "a change", 1.0)
        states.append((await store.load()).entries)
    return states


def without_empty(entries: dict[str, Any]) -> dict[str, Any]:
    return {section: found for section, found in entries.items() if found}


@given(CHANGES)
@settings(max_examples=40, deadline=None)
def test_any_earlier_version_can_be_had_back(changes: Changes) -> None:
    async def run() -> None:
        with TemporaryDirectory() as directory:
            async with opened(Path(directory)) as store:
                states = await commit_all(store, changes)
                for version, state in enumerate(states):
                    undo = await store.undo(version, len(changes))
                    assert without_empty(apply(states[-1], undo)) == without_empty(state)

    asyncio.run(run())


async def test_one_version_alone_is_taken_back_and_those_after_it_stay(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        states = await commit_all(store, [setting(a=1, b=1), setting(a=2, c=2), setting(b=3)])
        assert apply(states[-1], await store.undo(1, 2)) == {"services": {"a": 1, "b": 3}}


async def test_why_a_change_was_made_is_kept(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.commit(0, setting(a=1), "alice", "one service", 5.0, why="für die Messe")
        await store.commit(1, setting(a=2), "bob", "it changed", 6.0)
        assert [record.why for record in await store.audit(10)] == ["", "für die Messe"]
        assert await store.history(1) == [VersionLine(2, 6.0, "bob", "it changed", "")]
        assert [line.version for line in await store.history(10)] == [2, 1]


#: As the first version of lb-manager made it, and what it wrote of three changes.
FORM_1 = """
INSERT INTO audit VALUES (1, 5.0, 'alice', 'one', '{"set": {"services": {"a": 1, "b": 1}}, "remove": {}}');
INSERT INTO audit VALUES (2, 6.0, 'bob', 'two', '{"set": {"services": {"a": 2}}, "remove": {"services": ["b"]}}');
INSERT INTO audit VALUES (3, 7.0, 'bob', 'three', '{"set": {"drains": {"a/x": {"who": "bob", "at": 7.0}}}}');
INSERT INTO desired VALUES ('services', 'a', '2'), ('drains', 'a/x', '{"who": "bob", "at": 7.0}');
UPDATE counter SET value = 3 WHERE name = 'version';
PRAGMA user_version = 1;
"""


async def test_a_file_of_the_first_form_goes_on_with_its_whole_history(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / FILE) as database:
        database.executescript(SCHEMA + FORM_1)
    database.close()
    for _ in range(2):  # the second time it is of the latest form
        async with opened(tmp_path) as store:
            assert (await store.load()).version >= 3
            assert await store.undo(2, 3) == {"set": {}, "remove": {"drains": ["a/x"]}}
            assert apply((await store.load()).entries, await store.undo(1, 3))["services"] == {"a": 1, "b": 1}
            assert without_empty(apply((await store.load()).entries, await store.undo(0, 3))) == {}
            assert [record.who for record in await store.audit(3)] == ["bob", "bob", "alice"]
    async with opened(tmp_path) as store:
        assert await store.commit(3, setting(a=3), "carol", "four", 8.0, why="because") == 4
    refuses_to_change_its_audit(tmp_path)


# --- killed at any moment --------------------------------------------------------------------------------------------

KILLS = 200


def commit_until_killed(directory: Path, acknowledge: int) -> None:
    """A child's life: applies without an end; each number is told once it is promised to last."""

    async def apply() -> None:
        store = await SqliteStore.open(directory)
        version = (await store.load()).version
        while True:
            padding = "x" * random.randrange(0, 20_000)  # several pages, so that there is a half to be left behind
            change = setting(one=version + 1, padding=padding, other=version + 1)
            version = await store.commit(version, change, "child", f"change {version + 1}", time.time())
            os.write(acknowledge, f"{version}\n".encode())

    asyncio.run(apply())


def last_word(reader: int) -> int | None:
    """The last version that the dead child was promised."""
    data = b""
    while piece := os.read(reader, 65536):
        data += piece
    lines = data.decode().split("\n")[:-1]
    return int(lines[-1]) if lines else None


def test_killed_200_times_while_applying_nothing_acknowledged_is_lost_and_nothing_is_half_there(tmp_path: Path) -> None:
    rng = random.Random(1)
    promised = killed_at_work = 0
    patience = 1.0  # a busy machine is given longer to begin, so that about every second kill finds it at work
    for _ in range(KILLS):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.close(reader)
                commit_until_killed(tmp_path, writer)
            finally:
                os._exit(1)
        os.close(writer)
        try:
            time.sleep(rng.uniform(0.002, 0.06 * patience))  # the moment is what is random
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        word = last_word(reader)
        os.close(reader)
        if word is None:
            patience = min(patience * 1.1, 10)
        else:
            patience = max(patience / 1.1, 1)
            killed_at_work += 1
            promised = word
        if not (tmp_path / FILE).exists():
            continue
        version, one, other, audit = asyncio.run(found(tmp_path))
        assert version >= promised, "an acknowledged change was lost"
        assert one == other == version, "half a change is there"
        assert audit == list(range(version, 0, -1)), "desired state and audit tell different stories"
        promised = version
    assert killed_at_work > KILLS / 4
    assert promised > KILLS / 4


async def found(directory: Path) -> tuple[int, int, int, list[int]]:
    async with opened(directory) as store:
        stored = await store.load()
        services = stored.entries.get("services", {"one": 0, "other": 0})
        return stored.version, services["one"], services["other"], [line.version for line in await store.audit(10**6)]


# --- a disk that is full, and another who leads ----------------------------------------------------------------------


async def test_a_full_disk_is_what_is_said_and_the_store_goes_on(tmp_path: Path) -> None:
    """SQLite ends the transaction by itself then, and has nothing left to take back."""
    store = await SqliteStore.open(tmp_path)
    try:
        await store.commit(0, {"set": {"services": {"web": {}}}}, "alice", "created", 1.0)
        pages = store._db.execute("PRAGMA page_count").fetchone()[0]
        store._db.execute(f"PRAGMA max_page_count = {pages + 1}")
        large = {"set": {"services": {f"s{n}": {"text": "x" * 5000} for n in range(200)}}}
        with pytest.raises(StoreError, match="database or disk is full"):
            await store.commit(1, large, "alice", "created", 2.0)
        store._db.execute("PRAGMA max_page_count = 1000000")
        assert (await store.load()).version == 1
        assert await store.commit(1, large, "alice", "created", 3.0) == 2
    finally:
        await store.close()


async def test_a_term_that_was_succeeded_writes_nothing(tmp_path: Path) -> None:
    old, new = await SqliteStore.open(tmp_path), await SqliteStore.open(tmp_path)
    try:
        await old.next_term()
        await old.commit(0, {"set": {"services": {"web": {}}}}, "alice", "created", 1.0)
        await new.next_term()
        with pytest.raises(SupersededError, match="is of term 2 by now, and this lb-manager of term 1"):
            await old.commit(1, {"set": {"services": {"web": {"port": 1}}}}, "alice", "changed", 2.0)
        with pytest.raises(SupersededError):
            await old.keep({"set": {"granted": {"203.0.113.10/32": ["mux1"]}}}, [], [], 5)
        assert await new.memory() == {}
        assert (await new.load()).version == 1
    finally:
        await old.close()
        await new.close()


async def test_of_a_long_audit_the_latest_changes_are_whole_and_the_rest_is_left_out(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path)
    try:
        for version in range(5):
            await store.commit(version, {"set": {"services": {"web": {"text": "x" * 1000}}}}, "alice", "changed", 1.0)
        lines = await store.audit(5, 2500)
        assert [line.version for line in lines] == [5, 4, 3, 2, 1]
        assert [line.change is not None for line in lines] == [True, True, False, False, False]
        assert await store.touched(2) == [(5, frozenset({"services"}), None), (4, frozenset({"services"}), None)]
    finally:
        await store.close()


async def test_joining_is_one_transaction_and_a_revoked_certificate_is_renewed_by_nobody(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path)
    try:
        now = time.time()

        def certificate(serial: str, at: float = now) -> Certificate:
            return Certificate(serial, "mux", "mux1", at, now + 3600)

        for number in range(4):
            name = "mux1" if number == 3 else None
            await store.add_token(Token(str(number), "mux", name, "operator:ada", now, now + 60))
        done = await asyncio.gather(
            *(store.join(str(number), certificate(f"A{number}"), "PEM", replaces=False) for number in range(3))
        )
        assert (done.count(None), done.count(JoinRefusal.THERE)) == (1, 2)
        (first,) = [one.serial for one in await store.certificates()]
        used = [token.used_at is not None for token in await store.all_tokens()]
        assert used.count(True) == 1  # what joined nobody still works
        assert await store.add_certificate(certificate("B"), renews=first)
        assert await store.join("3", certificate("C", now + 1), "PEM", replaces=True) is None
        assert {one.serial for one in await store.certificates() if one.revoked_at is None} == {"C"}
        assert not await store.add_certificate(certificate("D"), renews=first)
        assert await store.join("3", certificate("E"), "PEM", replaces=True) is JoinRefusal.USED
        await store.end_tokens(["0", "1", "2"], now - 1)
        assert [token.digest for token in await store.all_tokens()] == ["3"]
    finally:
        await store.close()


async def test_who_took_over_stands_in_the_audit(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path)
    try:
        term = await store.take_over(7)
        (line,) = await store.audit(9)
    finally:
        await store.close()
    assert (line.who, line.what.startswith("took over: "), f"above term {term}" in line.what) == (
        "lb-manager",
        True,
        True,
    )
