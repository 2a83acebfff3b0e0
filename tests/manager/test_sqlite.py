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
from pathlib import Path
from typing import Any

import pytest

from manager.sqlite import FILE, SqliteStore
from manager.store import ConflictError, NodeRecord, Store, StoreError
from manager.tokens import Certificate, Token


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
    with sqlite3.connect(tmp_path / FILE) as database:
        for statement in ("UPDATE audit SET who = 'bob'", "DELETE FROM audit"):
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                database.execute(statement)
    database.close()


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
        await store.remember({"set": {"granted": {"203.0.113.10/32": ["mux1"]}}, "remove": {}})
        await store.save_node(node)
        await store.save_node(NodeRecord("agent", "host1", None, None, 1.0, 2.0))
        await store.forget_node("agent", "host1")
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
        spent = await asyncio.gather(*(s.spend_token("ab", 5.0, "mux:mux1") for s in (store, other, store, other)))
        assert sorted(spent) == [False, False, False, True]
        found = await store.token("ab")
        assert found is not None
        assert (found.used_at, found.used_by) == (5.0, "mux:mux1")


async def test_certificates_are_listed_until_they_expire_and_revoked_once(tmp_path: Path) -> None:
    later = time.time() + 1000
    async with opened(tmp_path) as store:
        await store.add_certificate(Certificate("1", "mux", "mux1", 1.0, later))
        await store.add_certificate(Certificate("2", "mux", "mux2", 1.0, 2.0))
        await store.revoke(["1"], 7.0, "lost")
        await store.revoke(["1"], 8.0, "again")
        assert await store.certificates() == [Certificate("1", "mux", "mux1", 1.0, later, 7.0, "lost")]


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
            time.sleep(rng.uniform(0.002, 0.06))  # the moment is what is random
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        word = last_word(reader)
        os.close(reader)
        if word is not None:
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
