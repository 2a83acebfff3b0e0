# SPDX-License-Identifier: Apache-2.0
"""The process that ExaBGP starts: passes commands from ``lb-mux`` on, and takes everything back when nobody vouches.

Run as a program by ExaBGP, with the standard library alone (``python -I -S helper.py SOCKET TTL_MS``). ExaBGP reads
commands from our stdout and answers on our stdin, where it blocks, and with it every session, as soon as we do not
read; so stdin is drained whatever happens. ``lb-mux`` is reached by two connections to an abstract UNIX socket:

    talk   lines of JSON   lb-mux -> us   {"id": 7, "lines": [...]}
                           us -> lb-mux   {"hello": PID}, {"id": 7, "results": [true, ...]}, {"id": 7, "refused": why}
                                          {"event": {...}} from ExaBGP, {"expired": why} once everything was taken back
    beat   single bytes    lb-mux -> us   the data plane lives

A line is a comment, or announces or withdraws prefixes towards one peer (:func:`lb.bgp.routes.plan` makes them). What
was passed on may be announced until ExaBGP has taken its withdrawal, whatever it answered: all of that is taken back
when no beat came for TTL_MS, and when ``lb-mux`` is gone. One batch is outstanding at a time; ExaBGP answers each line,
in order, with ``done`` or ``error``. End of stdin means that ExaBGP is gone, and is our end as well.
"""

from __future__ import annotations

import json
import os
import selectors
import socket
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

#: Events that ``lb-mux`` does not take are dropped beyond this, bytes.
BACKLOG_MAX = 4 * 1024 * 1024
#: Without an answer from ExaBGP a batch can wait for ever; the owner's own deadline ends that.
READ = 65536
#: Prefixes in one line that takes them back.
BATCH = 50
#: For its attributes, as in lb.bgp.routes.
WITHDRAWN4, WITHDRAWN6 = "next-hop self", "next-hop ::"


class HelperLine(NamedTuple):
    """A line that announces or withdraws."""

    announces: bool
    peer: str
    prefixes: list[str]


def parse(line: str) -> HelperLine | None:
    """``neighbor PEER announce|withdraw attributes ... nlri PREFIX ...``; None for a comment; else ValueError."""
    if not line.isprintable() or not line.isascii():
        raise ValueError(line)
    if line.startswith("#"):
        return None
    head, _, prefixes = line.partition(" nlri ")
    neighbor, peer, verb, attributes, *_ = head.split(" ")
    if neighbor != "neighbor" or verb not in ("announce", "withdraw") or attributes != "attributes" or not prefixes:
        raise ValueError(line)
    return HelperLine(verb == "announce", peer, prefixes.split(" "))


class AnnouncedPrefixes:
    """What may be announced: each prefix towards each peer, with the number of the last line that announced it."""

    def __init__(self) -> None:
        self._lines = 0
        self._by_peer: dict[str, dict[str, int]] = {}

    def passed(self, command: HelperLine | None) -> int:
        """A line goes to ExaBGP; its number."""
        self._lines += 1
        if command is not None and command.announces:
            prefixes = self._by_peer.setdefault(command.peer, {})
            prefixes.update(dict.fromkeys(command.prefixes, self._lines))
        return self._lines

    def taken(self, command: HelperLine | None, number: int) -> None:
        """ExaBGP did as the line with this number says."""
        if command is None or command.announces:
            return
        prefixes = self._by_peer.get(command.peer, {})
        for prefix in command.prefixes:
            if prefixes.get(prefix, number) < number:
                del prefixes[prefix]

    def forget(self) -> None:
        """Everything is taken back."""
        self._by_peer.clear()

    def undo(self) -> Iterator[str]:
        """The lines that take back everything. One family a line, for ExaBGP takes a line's from its last prefix."""
        for peer, prefixes in self._by_peer.items():
            for six, attributes in ((False, WITHDRAWN4), (True, WITHDRAWN6)):
                of_kind = [prefix for prefix in prefixes if (":" in prefix) is six]
                for start in range(0, len(of_kind), BATCH):
                    part = " ".join(of_kind[start : start + BATCH])
                    yield f"neighbor {peer} withdraw attributes {attributes} nlri {part}"


class Batch(NamedTuple):
    """Lines that ExaBGP has still to answer."""

    id: int | None  #: None: our own
    lines: list[tuple[HelperLine | None, int]]  #: what each says, and its number


class Helper:
    """All decisions, without any file: bytes and times in, bytes out."""

    def __init__(self, ttl: float, now: float) -> None:
        self.to_exabgp = bytearray()
        self.to_mux = bytearray()
        self._ttl = ttl
        self._beat = now
        self._expired = True  # until the first beat nothing is announced, and nothing may be
        self._told = AnnouncedPrefixes()
        self._waiting: deque[Batch] = deque()
        self._results: list[bool] = []
        self._answers = b""
        self._orders = b""
        self.say({"hello": os.getpid()})

    # -- from lb-mux --------------------------------------------------------------------------------------------

    def beat(self, now: float) -> None:
        """The data plane lives."""
        self._beat = now
        self._expired = False

    def ordered(self, data: bytes) -> None:
        """Bytes of the talk connection."""
        *lines, self._orders = (self._orders + data).split(b"\n")
        for line in lines:
            if line.strip():
                self._order(line)

    def _order(self, line: bytes) -> None:
        try:
            order = json.loads(line)
            number, lines = order["id"], order["lines"]
        except (ValueError, TypeError, KeyError):
            self.say({"error": "an order must have id and lines"})
            return
        try:
            commands = [parse(text) for text in lines]
        except (ValueError, TypeError, AttributeError):
            self.say({"id": number, "refused": "a line neither announces nor withdraws"})
            return
        if self._expired:
            self.say({"id": number, "refused": "no heartbeat from the data plane"})
        elif self._waiting:
            self.say({"id": number, "refused": "another batch is outstanding"})
        elif lines:
            self._send(number, lines, commands)
        else:
            self.say({"id": number, "results": []})

    def gone(self) -> None:
        """The talk connection ended: nobody answers for what is announced any more."""
        self._take_back("lb-mux has ended")

    # -- from the clock -----------------------------------------------------------------------------------------

    def ticked(self, now: float) -> None:
        if not self._expired and now - self._beat > self._ttl:
            self._take_back(f"no heartbeat from the data plane for {self._ttl:g} s")

    def patience(self, now: float) -> float | None:
        """How long nothing needs to happen, seconds."""
        return None if self._expired else max(self._beat + self._ttl - now, 0.0) + 0.001

    def _take_back(self, why: str) -> None:
        self._expired = True
        if undo := list(self._told.undo()):
            self._told.forget()
            self._send(None, undo, map(parse, undo))
        self.say({"expired": why})

    # -- from and to ExaBGP -------------------------------------------------------------------------------------

    def _send(self, number: int | None, lines: list[str], commands: Iterable[HelperLine | None]) -> None:
        self._waiting.append(Batch(number, [(command, self._told.passed(command)) for command in commands]))
        self.to_exabgp += "".join(line + "\n" for line in lines).encode()

    def answered(self, data: bytes) -> None:
        """Bytes from ExaBGP: answers in order, and events as JSON, with empty lines between them."""
        *lines, self._answers = (self._answers + data).split(b"\n")
        for line in lines:
            word = line.strip()
            if word in (b"done", b"error"):
                self._answer(word == b"done")
            elif word.startswith(b"{"):
                self._event(word)

    def _answer(self, good: bool) -> None:
        if not self._waiting:
            return
        batch = self._waiting[0]
        if good:
            self._told.taken(*batch.lines[len(self._results)])
        self._results.append(good)
        if len(self._results) < len(batch.lines):
            return
        if batch.id is not None:
            self.say({"id": batch.id, "results": self._results})
        self._waiting.popleft()
        self._results = []

    def _event(self, line: bytes) -> None:
        try:
            event = json.loads(line)
        except ValueError:
            return
        if len(self.to_mux) < BACKLOG_MAX:
            self.say({"event": event})

    def say(self, what: dict[str, Any]) -> None:
        self.to_mux += json.dumps(what).encode() + b"\n"


def connect(name: str, role: str) -> socket.socket:
    """One of the two connections to ``lb-mux``."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(5.0)
    connection.connect("\0" + name)
    connection.sendall(role.encode() + b"\n")
    connection.setblocking(False)
    return connection


class Wires:
    """The files around a :class:`Helper`, none of which is ever waited for alone."""

    def __init__(self, helper: Helper, talk: socket.socket, beat: socket.socket) -> None:
        self._helper = helper
        self._talk = talk
        self._beat = beat
        self._mux_there = True
        self._selector = selectors.DefaultSelector()
        for fd in (0, 1):
            os.set_blocking(fd, False)
        self._selector.register(0, selectors.EVENT_READ, self._read_stdin)
        self._selector.register(talk, selectors.EVENT_READ, self._read_talk)
        self._selector.register(beat, selectors.EVENT_READ, self._read_beat)
        self._over = False

    def run(self) -> None:
        """Until ExaBGP is gone."""
        while not self._over:
            self._flush()
            for key, mask in self._selector.select(self._helper.patience(time.monotonic())):
                if mask & selectors.EVENT_READ:
                    key.data()
            self._helper.ticked(time.monotonic())

    def _read_stdin(self) -> None:
        data = _read(0)
        if data == b"":
            self._over = True
        elif data:
            self._helper.answered(data)

    def _read_talk(self) -> None:
        data = _read(self._talk.fileno())
        if data:
            self._helper.ordered(data)
        elif data == b"":
            self._mux_left()

    def _read_beat(self) -> None:
        data = _read(self._beat.fileno())
        if data:
            self._helper.beat(time.monotonic())
        elif data == b"":
            self._selector.unregister(self._beat)

    def _mux_left(self) -> None:
        if self._mux_there:
            self._mux_there = False
            self._selector.unregister(self._talk)
            self._helper.gone()

    def _flush(self) -> None:
        """Writes what can be written now, and asks to be woken for the rest."""
        if not _write(1, self._helper.to_exabgp):
            self._over = True
        self._want_write(1, bool(self._helper.to_exabgp))
        if not self._mux_there:
            self._helper.to_mux.clear()
            return
        if not _write(self._talk.fileno(), self._helper.to_mux):
            self._mux_left()
            return
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._helper.to_mux else 0)
        self._selector.modify(self._talk, events, self._read_talk)

    def _want_write(self, fd: int, wanted: bool) -> None:
        registered = fd in self._selector.get_map()
        if wanted and not registered:
            self._selector.register(fd, selectors.EVENT_WRITE, None)
        elif registered and not wanted:
            self._selector.unregister(fd)


def _read(fd: int) -> bytes | None:
    """What is there; empty at the end or when the other side was killed; None when there is nothing yet."""
    try:
        return os.read(fd, READ)
    except (BlockingIOError, InterruptedError):
        return None
    except OSError:
        return b""


def _write(fd: int, data: bytearray) -> bool:
    """Takes from the data what could be written; False if nobody reads any more."""
    try:
        while data:
            del data[: os.write(fd, data[:READ])]
    except (BlockingIOError, InterruptedError):
        return True
    except OSError:
        return False
    return True


def main() -> int:
    name, ttl_ms = sys.argv[1:]
    try:
        talk, beat = connect(name, "talk"), connect(name, "beat")
    except OSError:
        return 1  # our owner is gone, or not ours: ExaBGP without a helper announces nothing
    Wires(Helper(int(ttl_ms) / 1000, time.monotonic()), talk, beat).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
