# SPDX-License-Identifier: Apache-2.0
"""The store in one SQLite file: ``<state_dir>/manager.db``, in WAL mode, synchronised to disk at every commit.

All statements run in one thread of the store's own, one transaction at a time, so the event loop never waits for the
disk. Other processes (``lb-manager token`` and friends) may use the file at the same time; SQLite's locks see to that.
The audit is append-only: the database itself refuses to change or delete a line of it. Each line keeps what it changed
and what was there before, so that any earlier version can be had back by going from the present one line at a time.

A file of an earlier form is brought up to date when it is opened, in one transaction; see :data:`MIGRATIONS`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import secrets
import sqlite3
import time
from collections.abc import Callable, Collection, Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import astuple
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import msgspec

from manager.store.interface import (
    AuditRecord,
    ConflictError,
    Entries,
    Event,
    NodeRecord,
    Stored,
    StoreError,
    SupersededError,
    VersionLine,
)
from manager.store.lineage import TERM_MAX, Marks, StoreStanding, lost
from manager.trust import tokens
from manager.trust.tokens import HERE, Certificate, Deed, JoinRefusal, Token

FILE = "manager.db"
#: Beside it: how far it has come.
WITNESS = "history"
#: Of so many terms it is known how they ended.
ENDS_KEPT = 1000
#: How long to wait for another process that writes, seconds.
BUSY_TIMEOUT = 5.0

#: Form 1, from which every file begins; :data:`MIGRATIONS` does the rest, for new files as well.
SCHEMA = """
CREATE TABLE counter (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO counter VALUES ('version', 0), ('term', 0);
CREATE TABLE desired (section TEXT, key TEXT, value TEXT NOT NULL, PRIMARY KEY (section, key)) WITHOUT ROWID;
CREATE TABLE memory (section TEXT, key TEXT, value TEXT NOT NULL, PRIMARY KEY (section, key)) WITHOUT ROWID;
CREATE TABLE audit (version INTEGER PRIMARY KEY, at REAL NOT NULL, who TEXT NOT NULL, what TEXT NOT NULL,
                    change TEXT NOT NULL);
CREATE TRIGGER audit_is_never_changed BEFORE UPDATE ON audit BEGIN SELECT RAISE(ABORT, 'the audit is append-only'); END;
CREATE TRIGGER audit_is_never_deleted BEFORE DELETE ON audit BEGIN SELECT RAISE(ABORT, 'the audit is append-only'); END;
CREATE TABLE node (kind TEXT, name TEXT, address TEXT, address6 TEXT, first_seen REAL, last_seen REAL, version TEXT,
                   PRIMARY KEY (kind, name)) WITHOUT ROWID;
CREATE TABLE token (digest TEXT PRIMARY KEY, kind TEXT, name TEXT, made_by TEXT, made_at REAL, expires REAL,
                    used_at REAL, used_by TEXT) WITHOUT ROWID;
CREATE TABLE certificate (serial TEXT PRIMARY KEY, kind TEXT, name TEXT, made_at REAL, expires REAL, revoked_at REAL,
                          revoked_why TEXT) WITHOUT ROWID;
"""

#: Of the audit; put aside while a migration fills a new column of old lines.
_NO_UPDATE = """
CREATE TRIGGER audit_is_never_changed BEFORE UPDATE ON audit BEGIN SELECT RAISE(ABORT, 'the audit is append-only'); END;
"""

#: Expired certificates and tokens that one transaction deletes.
_FORGOTTEN_AT_ONCE = 1000

P = ParamSpec("P")
T = TypeVar("T")


def _in_thread(
    method: Callable[Concatenate[SqliteStore, P], T],
) -> Callable[Concatenate[SqliteStore, P], Coroutine[Any, Any, T]]:
    """A method that runs in the store's thread, and is waited for in the event loop."""

    @functools.wraps(method)
    async def asked(self: SqliteStore, /, *arguments: P.args, **named: P.kwargs) -> T:
        return await self._run(functools.partial(method, self, *arguments, **named))

    return asked


class SqliteStore:
    """A :class:`manager.store.interface.Store`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._database: sqlite3.Connection | None = None
        self._term: int | None = None  #: that we lead by; None: we do not, as a command that only looks after tokens
        self._witnessed: Marks | None = None  #: what the file beside it said when it was opened
        self._ends: Mapping[int, int] = {}  #: of the terms before ours
        self._revocations = 0  #: times that this process revoked something
        self._revoked_last: tuple[object, dict[str, str]] = (None, {})

    @classmethod
    async def open(cls, state_dir: Path) -> SqliteStore:
        """Opens the file, or makes it."""
        store = cls(state_dir / FILE)
        try:
            await store._run(store._open)
        except BaseException:
            store._thread.shutdown(wait=False)
            raise
        return store

    async def close(self) -> None:
        if self._database is not None:
            await self._run(self._database.close)
        self._thread.shutdown()

    async def _run(self, work: Callable[[], T]) -> T:
        """In the store's thread. What was begun there is finished, even if the caller is cancelled."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._guarded, work)

    def _guarded(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except (sqlite3.OperationalError, OSError) as error:
            raise StoreError(f"{self._path}: {error}; is the disk full, or the file another user's?") from None
        except (sqlite3.Error, msgspec.DecodeError, KeyError, TypeError) as error:
            reason = str(error) if isinstance(error, sqlite3.Error) else f"it holds what is none of ours: {error}"
            raise StoreError(f"{self._path} is damaged: {reason}; restore it from a backup") from None

    def _open(self) -> None:
        before = os.umask(0o077)  # tokens' hashes and who did what are the manager's alone
        try:
            database = sqlite3.connect(self._path, timeout=BUSY_TIMEOUT, isolation_level=None, check_same_thread=False)
        finally:
            os.umask(before)
        try:
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = FULL")
            self._database = database
            self._witnessed = self._read_witness()
            with self._transaction():
                self._bring_up_to_date(database)
        except BaseException:
            database.close()
            self._database = None
            raise

    def _bring_up_to_date(self, database: sqlite3.Connection) -> None:
        found = database.execute("PRAGMA user_version").fetchone()[0]
        if found > FORM:
            raise StoreError(f"{self._path} is of form {found}; this version of lb-manager reads form {FORM}")
        if found == FORM:
            return
        if found == 0:
            for statement in _statements(SCHEMA):
                database.execute(statement)
            found = 1
        for migrate in MIGRATIONS[found - 1 :]:
            migrate(database)
        database.execute(f"PRAGMA user_version = {FORM}")

    @property
    def _db(self) -> sqlite3.Connection:
        if self._database is None:
            raise StoreError(f"{self._path} is closed")
        return self._database

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing, and on the disk at its end."""
        database = self._db
        database.execute("BEGIN IMMEDIATE")
        try:
            yield database
            database.execute("COMMIT")
        except BaseException:
            if database.in_transaction:  # a full disk may have ended it already, and that is what is to be told
                database.execute("ROLLBACK")
            raise

    @contextmanager
    def _leading(self) -> Iterator[sqlite3.Connection]:
        """A transaction of the manager that leads: one whose term another has succeeded writes nothing."""
        with self._transaction() as database:
            term = self._counter("term")
            if self._term is not None and term != self._term:
                raise SupersededError(
                    f"{self._path} is of term {term} by now, and this lb-manager of term {self._term}: it was taken "
                    "over, or another one uses it; restart lb-manager if this is the one that is to lead"
                )
            yield database

    # -- desired state ------------------------------------------------------------------------------------------

    @_in_thread
    def load(self) -> Stored:
        with self._transaction():
            return Stored(self._counter("version"), self._entries("desired"))

    @_in_thread
    def commit(self, expected: int, change: Mapping[str, Any], who: str, what: str, at: float, *, why: str = "") -> int:
        with self._leading() as database:
            version = self._counter("version")
            if version != expected:
                raise ConflictError(f"the desired state is at version {version} by now, not at {expected}")
            undo = _undo(change, self._before(change))
            self._write("desired", change)
            database.execute("UPDATE counter SET value = ? WHERE name = 'version'", (version + 1,))
            self._turn_page()
            row = (version + 1, at, who, what, _text(change), why, _text(undo))
            database.execute(
                "INSERT INTO audit (version, at, who, what, change, why, undo) VALUES (?, ?, ?, ?, ?, ?, ?)", row
            )
        self._witness()
        return version + 1

    def _before(self, change: Mapping[str, Any]) -> Entries:
        """What is there now of all that a change touches."""
        found: Entries = {}
        for section, key in _touched(change):
            row = self._db.execute("SELECT value FROM desired WHERE section = ? AND key = ?", (section, key)).fetchone()
            if row is not None:
                found.setdefault(section, {})[key] = msgspec.json.decode(row[0])
        return found

    @_in_thread
    def audit(self, limit: int, most: int = 2**62) -> list[AuditRecord]:
        versions = "SELECT version, at, who, what, why, length(change), 0 FROM audit ORDER BY version DESC LIMIT :most"
        deeds = "SELECT version, at, who, what, why, 0, id FROM deed ORDER BY id DESC LIMIT :most"
        both = f"SELECT * FROM ({versions}) UNION ALL SELECT * FROM ({deeds}) ORDER BY 1 DESC, 7 DESC LIMIT :most"  # noqa: S608
        found = []
        for version, at, who, what, why, size, deed in self._db.execute(both, {"most": limit}).fetchall():
            most -= size
            change: Any = {} if deed else None
            if most >= 0 and not deed:
                row = self._db.execute("SELECT change FROM audit WHERE version = ?", (version,)).fetchone()
                change = msgspec.json.decode(row[0])
            found.append(AuditRecord(version, at, who, what, change, why))
        return found

    @_in_thread
    def touched(self, limit: int) -> list[tuple[int, frozenset[str], int | None]]:
        """SQLite looks into the change by itself: of a large one all but the names of sections would be thrown away."""
        rows = self._db.execute(
            "SELECT version, (SELECT group_concat(key) FROM (SELECT key FROM json_each(change, '$.set') UNION "
            "SELECT key FROM json_each(change, '$.remove'))), json_extract(change, '$.remove.pending[0]') FROM audit "
            "ORDER BY version DESC LIMIT ?",
            (limit,),
        )
        return [
            (version, frozenset((sections or "").split(",")), None if ended is None else int(ended))
            for version, sections, ended in rows
        ]

    @_in_thread
    def history(self, limit: int) -> list[VersionLine]:
        rows = self._db.execute(
            "SELECT version, at, who, what, why FROM audit ORDER BY version DESC LIMIT ?", (limit,)
        ).fetchall()
        return [VersionLine(*row) for row in rows]

    @_in_thread
    def undo(self, after: int, last: int) -> dict[str, Any]:
        rows = self._db.execute(
            "SELECT undo FROM audit WHERE version > ? AND version <= ? ORDER BY version DESC", (after, last)
        )
        return _joined(msgspec.json.decode(row[0]) for row in rows)

    # -- memory -------------------------------------------------------------------------------------------------

    @_in_thread
    def memory(self) -> Entries:
        return self._entries("memory")

    @_in_thread
    def keep(self, memory: Mapping[str, Any], nodes: Sequence[NodeRecord], events: Sequence[Event], most: int) -> None:
        with self._leading() as database:
            self._write("memory", memory)
            database.executemany("INSERT OR REPLACE INTO node VALUES (?, ?, ?, ?, ?, ?, ?)", map(astuple, nodes))
            if events:
                database.executemany("INSERT OR REPLACE INTO event VALUES (?, ?, ?, ?, ?)", map(astuple, events))
                database.execute("DELETE FROM event WHERE id <= (SELECT max(id) FROM event) - ?", (most,))

    # -- nodes and terms ----------------------------------------------------------------------------------------

    @_in_thread
    def nodes(self) -> list[NodeRecord]:
        return [NodeRecord(*row) for row in self._db.execute("SELECT * FROM node")]

    @_in_thread
    def forget_node(self, kind: str, name: str, deed: Deed) -> None:
        with self._transaction() as database:
            database.execute("DELETE FROM node WHERE kind = ? AND name = ?", (kind, name))
            self._note(deed)

    @_in_thread
    def events(self) -> list[Event]:
        rows = self._db.execute("SELECT id, at, subject, text, bad FROM event ORDER BY id")
        return [Event(id_, at, subject, text, bool(bad)) for id_, at, subject, text, bad in rows]

    @_in_thread
    def next_term(self) -> int:
        with self._transaction() as database:
            last = self._counter("term")
            database.execute("INSERT OR REPLACE INTO ended VALUES (?, ?)", (last, self._counter("revision")))
            database.execute("DELETE FROM ended WHERE term <= ?", (last - ENDS_KEPT,))
            ends = dict(database.execute("SELECT term, revision FROM ended").fetchall())
            term = last + 1
            database.execute("UPDATE counter SET value = ? WHERE name = 'term'", (term,))
        self._term, self._ends = term, ends
        self._witness()
        return term

    # -- which history this is (manager.store.lineage) ----------------------------------------------------------------

    @_in_thread
    def standing(self) -> StoreStanding:
        return self._standing()

    def _standing(self) -> StoreStanding:
        lineage = self._db.execute("SELECT value FROM mark WHERE name = 'lineage'").fetchone()[0]
        term, revision, floor = (self._counter(name) for name in ("term", "revision", "floor"))
        return StoreStanding(term, str(lineage), revision, floor, self._witnessed, self._ends)

    def _turn_page(self) -> None:
        """Something changed that nobody may forget; within a transaction."""
        self._db.execute("UPDATE counter SET value = value + 1 WHERE name = 'revision'")

    @_in_thread
    def take_over(self, above: int) -> int:
        with self._transaction() as database:
            row = database.execute("SELECT value FROM memory WHERE section = 'behind' AND key = 'nodes'").fetchone()
            known = int(msgspec.json.decode(row[0]).get("term", 0)) if row is not None else 0
            witnessed = self._witnessed.term if self._witnessed is not None else 0
            # Whatever anybody said: a term that messages cannot carry would be the last.
            term = max(self._counter("term"), *(min(said, TERM_MAX) for said in (above, known, witnessed))) + 1
            database.execute("UPDATE counter SET value = ? WHERE name IN ('term', 'floor')", (term,))
            database.execute("UPDATE mark SET value = ? WHERE name = 'lineage'", (secrets.token_hex(16),))
            database.execute("DELETE FROM memory WHERE section = 'behind'")
            self._note(tokens.taken_over(term, time.time()))
        self._witnessed = None
        self._witness()
        return term

    @property
    def _witness_file(self) -> Path:
        return self._path.with_name(WITNESS)

    def _read_witness(self) -> Marks | None:
        try:
            found = msgspec.json.decode(self._witness_file.read_bytes())
            return Marks(int(found["term"]), 0, str(found["lineage"]), int(found["revision"]))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, OverflowError):
            return None  # it is a second witness; the database and the nodes are the first

    def _witness(self) -> None:
        """Says beside the database how far it has come, so that a database that is lost is missed. After the fact, and
        not synchronised: it can be behind, and never ahead."""
        if self._witnessed is not None and lost(self._standing()) is not None:
            return  # what it says must not be forgotten before somebody has taken over
        ours = self._standing()
        text = msgspec.json.encode({"lineage": ours.lineage, "revision": ours.revision, "term": ours.term})
        with contextlib.suppress(OSError):
            fresh = self._witness_file.with_suffix(".new")
            with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
                file.write(text + b"\n")
            fresh.replace(self._witness_file)

    # -- trust --------------------------------------------------------------------------------------------------

    @_in_thread
    def add_token(self, token: Token) -> None:
        with self._transaction() as database:
            database.execute("INSERT INTO token VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", astuple(token))
            self._note(tokens.made(token))

    def _note(self, deed: Deed) -> None:
        """A line of the audit; within the transaction of what it tells."""
        values = (self._counter("version"), deed.at, deed.who, deed.what, deed.why)
        self._db.execute("INSERT INTO deed (version, at, who, what, why) VALUES (?, ?, ?, ?, ?)", values)

    @_in_thread
    def token(self, digest: str) -> Token | None:
        return self._token(digest)

    def _token(self, digest: str) -> Token | None:
        row = self._db.execute("SELECT * FROM token WHERE digest = ?", (digest,)).fetchone()
        return Token(*row) if row else None

    @_in_thread
    def all_tokens(self) -> list[Token]:
        rows = self._db.execute("SELECT * FROM token WHERE expires > ?", (time.time(),))
        return [Token(*row) for row in rows]

    @_in_thread
    def end_tokens(self, digests: Collection[str], at: float, who: str = HERE) -> None:
        with self._transaction() as database:
            for token in filter(None, map(self._token, digests)):
                end = "UPDATE token SET expires = min(expires, ?), joined = NULL WHERE digest = ?"
                database.execute(end, (at, token.digest))
                self._note(tokens.ended(token, at, who))

    @_in_thread
    def join(self, digest: str, certificate: Certificate, pem: str, *, replaces: bool) -> JoinRefusal | None:
        at, node = certificate.made_at, certificate.common_name
        valid = "kind = ? AND name = ? AND revoked_at IS NULL AND expires > ?"
        values = (certificate.kind, certificate.name, at)
        with self._transaction() as database:
            token = self._token(digest)
            if token is None or token.used_at is not None or token.expires <= at:
                return JoinRefusal.USED
            if database.execute(f"SELECT 1 FROM certificate WHERE {valid}", values).fetchone() is not None:  # noqa: S608
                if not replaces:
                    return JoinRefusal.THERE
                self._turn_page()
                self._revocations += 1
                revoke = f"UPDATE certificate SET revoked_at = ?, revoked_why = ? WHERE {valid}"  # noqa: S608  ours
                database.execute(revoke, (at, f"{certificate.name} joined anew", *values))
            spend = "UPDATE token SET used_at = ?, used_by = ?, joined = ? WHERE digest = ?"
            database.execute(spend, (at, node, pem, digest))
            database.execute("INSERT INTO certificate VALUES (?, ?, ?, ?, ?, ?, ?)", astuple(certificate))
            self._note(tokens.joined(token, certificate))
        self._witness()
        return None

    @_in_thread
    def add_certificate(self, certificate: Certificate, renews: str | None = None, made_by: str | None = None) -> bool:
        with self._transaction() as database:
            gone = "SELECT 1 FROM certificate WHERE serial = ? AND revoked_at IS NOT NULL"
            if renews is not None and database.execute(gone, (renews,)).fetchone() is not None:
                return False
            database.execute("INSERT INTO certificate VALUES (?, ?, ?, ?, ?, ?, ?)", astuple(certificate))
            if made_by is not None:
                self._note(tokens.signed(certificate, made_by))
        return True

    @_in_thread
    def certificates(self) -> list[Certificate]:
        rows = self._db.execute("SELECT * FROM certificate WHERE expires > ?", (time.time(),))
        return [Certificate(*row) for row in rows]

    @_in_thread
    def revoked(self) -> dict[str, str]:
        """Read again only where a command has written to the file since, or this process has revoked something."""
        seen = self._db.execute("PRAGMA data_version").fetchone()[0], self._revocations
        if self._revoked_last[0] != seen:
            self._revoked_last = seen, self._read_revoked()
        return self._revoked_last[1]

    def _read_revoked(self) -> dict[str, str]:
        said = "SELECT serial, coalesce(revoked_why, 'no reason was given') FROM certificate"
        return dict(self._db.execute(f"{said} WHERE revoked_at IS NOT NULL AND expires > ?", (time.time(),)).fetchall())

    @_in_thread
    def revoke(self, serials: Collection[str], at: float, why: str, who: str = HERE) -> None:
        valid = "SELECT * FROM certificate WHERE serial = ? AND revoked_at IS NULL"
        self._revocations += 1
        with self._transaction() as database:
            self._turn_page()
            for serial in serials:
                for row in database.execute(valid, (serial,)).fetchall():
                    database.execute(
                        "UPDATE certificate SET revoked_at = ?, revoked_why = ? WHERE serial = ?", (at, why, serial)
                    )
                    self._note(tokens.revoked(Certificate(*row), at, who, why))
        self._witness()

    async def forget_expired(self, before: float) -> int:
        total = 0
        while (number := await self._forget_some(before)) > 0:
            total += number
        return total

    @_in_thread
    def _forget_some(self, before: float) -> int:
        """Some of them, so that whoever waits for the store waits for no more."""
        forgotten = 0
        for table, key in (("certificate", "serial"), ("token", "digest")):
            some = f"SELECT {key} FROM {table} WHERE expires < ? LIMIT {_FORGOTTEN_AT_ONCE}"  # noqa: S608  ours
            with self._transaction() as database:
                forgotten += database.execute(f"DELETE FROM {table} WHERE {key} IN ({some})", (before,)).rowcount  # noqa: S608
        return forgotten

    # -- what all of them use -----------------------------------------------------------------------------------

    def _counter(self, name: str) -> int:
        return int(self._db.execute("SELECT value FROM counter WHERE name = ?", (name,)).fetchone()[0])

    def _entries(self, table: str) -> Entries:
        entries: Entries = {}
        for section, key, value in self._db.execute(f"SELECT section, key, value FROM {table}"):  # noqa: S608  ours
            entries.setdefault(section, {})[key] = msgspec.json.decode(value)
        return entries

    def _write(self, table: str, change: Mapping[str, Any]) -> None:
        removed = [(section, key) for section, keys in change.get("remove", {}).items() for key in keys]
        changed = [
            (section, key, _text(value))
            for section, entries in change.get("set", {}).items()
            for key, value in entries.items()
        ]
        self._db.executemany(f"DELETE FROM {table} WHERE section = ? AND key = ?", removed)  # noqa: S608  ours
        self._db.executemany(f"INSERT OR REPLACE INTO {table} VALUES (?, ?, ?)", changed)  # noqa: S608  ours


def _statements(script: str) -> Iterator[str]:
    """One by one, for executescript() would commit in between."""
    statement = ""
    for line in script.splitlines():
        statement += line + "\n"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def _text(value: Any) -> str:
    return msgspec.json.encode(value).decode()


# --- changes as values -----------------------------------------------------------------------------------------------


def _touched(change: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Section and key of everything that a change sets or removes."""
    for kind in ("set", "remove"):
        for section, keys in change.get(kind, {}).items():
            yield from ((section, key) for key in keys)


def _undo(change: Mapping[str, Any], before: Entries) -> dict[str, Any]:
    """What takes a change back, where ``before`` is what was there of all that it touches."""
    removed: dict[str, list[str]] = {}
    for section, key in _touched(change):
        if key not in before.get(section, {}):
            removed.setdefault(section, []).append(key)
    return {"set": before, "remove": removed}


def _joined(changes: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """One change that does what several do, one after the other."""
    total: dict[tuple[str, str], Any] = {}
    nothing = object()
    for change in changes:
        total.update(dict.fromkeys(_touched({"remove": change.get("remove", {})}), nothing))
        for section, entries in change.get("set", {}).items():
            total.update(((section, key), value) for key, value in entries.items())
    joined: dict[str, Any] = {"set": {}, "remove": {}}
    for (section, key), value in total.items():
        if value is nothing:
            joined["remove"].setdefault(section, []).append(key)
        else:
            joined["set"].setdefault(section, {})[key] = value
    return joined


# --- files of earlier forms ------------------------------------------------------------------------------------------


def _keep_what_was_before(database: sqlite3.Connection) -> None:
    """Form 2: each line of the audit has why it was done, and what takes it back. Of old lines the latter follows from
    the audit itself, which begins with the first version."""
    database.execute("DROP TRIGGER audit_is_never_changed")
    database.execute("ALTER TABLE audit ADD COLUMN why TEXT NOT NULL DEFAULT ''")
    database.execute("ALTER TABLE audit ADD COLUMN undo TEXT NOT NULL DEFAULT '{}'")
    state: Entries = {}
    for (version,) in database.execute("SELECT version FROM audit ORDER BY version").fetchall():
        row = database.execute("SELECT change FROM audit WHERE version = ?", (version,)).fetchone()
        change = msgspec.json.decode(row[0])
        before: Entries = {}
        for section, key in _touched(change):
            if key in state.get(section, {}):
                before.setdefault(section, {})[key] = state[section][key]
        database.execute("UPDATE audit SET undo = ? WHERE version = ?", (_text(_undo(change, before)), version))
        for section, keys in change.get("remove", {}).items():
            for key in keys:
                state.get(section, {}).pop(key, None)
        for section, entries in change.get("set", {}).items():
            state.setdefault(section, {}).update(entries)
    for statement in _statements(_NO_UPDATE):
        database.execute(statement)


def _keep_events(database: sqlite3.Connection) -> None:
    """Form 3: what happened lasts."""
    database.execute(
        "CREATE TABLE event (id INTEGER PRIMARY KEY, at REAL NOT NULL, subject TEXT NOT NULL, text TEXT NOT NULL, "
        "bad INTEGER NOT NULL)"
    )


def _mark_history(database: sqlite3.Connection) -> None:
    """Form 4: which history this is, and how far it has come; see manager.store.lineage."""
    database.execute("CREATE TABLE mark (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID")
    database.execute("INSERT INTO mark VALUES ('lineage', ?)", (secrets.token_hex(16),))
    database.execute("INSERT INTO counter SELECT 'revision', value FROM counter WHERE name = 'version'")
    database.execute("INSERT INTO counter VALUES ('floor', 0)")


def _mark_ends(database: sqlite3.Connection) -> None:
    """Form 5: with which revision each term ended; see manager.store.lineage."""
    database.execute("CREATE TABLE ended (term INTEGER PRIMARY KEY, revision INTEGER NOT NULL)")


def _keep_deeds(database: sqlite3.Connection) -> None:
    """Form 6: lines of the audit that make no version, each with the version that there was."""
    database.execute(
        "CREATE TABLE deed (id INTEGER PRIMARY KEY, version INTEGER NOT NULL, at REAL NOT NULL, who TEXT NOT NULL, "
        "what TEXT NOT NULL, why TEXT NOT NULL)"
    )
    for verb, words in (("UPDATE", "changed"), ("DELETE", "deleted")):
        database.execute(
            f"CREATE TRIGGER deed_is_never_{words} BEFORE {verb} ON deed "
            "BEGIN SELECT RAISE(ABORT, 'the audit is append-only'); END"
        )


def _keep_what_was_given(database: sqlite3.Connection) -> None:
    """Form 7: a token keeps the certificate that was given for it. And of what is asked for at each join, and each
    second, there is an index, for certificates are as many as ever were made."""
    database.execute("ALTER TABLE token ADD COLUMN joined TEXT")
    database.execute("CREATE INDEX certificate_whose ON certificate (kind, name)")
    database.execute("CREATE INDEX certificate_revoked ON certificate (expires) WHERE revoked_at IS NOT NULL")


#: What makes form 2 of form 1, 3 of 2, and so on.
MIGRATIONS: tuple[Callable[[sqlite3.Connection], None], ...] = (
    _keep_what_was_before,
    _keep_events,
    _mark_history,
    _mark_ends,
    _keep_deeds,
    _keep_what_was_given,
)
#: The form that this version writes.
FORM = 1 + len(MIGRATIONS)
