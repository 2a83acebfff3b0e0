# SPDX-License-Identifier: Apache-2.0
"""Asks one backend once, and says in words how it went: TCP connect, HTTP, UDP, or a command. On asyncio.

:func:`ask` is all that :mod:`lb.probe.scheduler` needs. Every check ends within its timeout and reads a bounded
amount. Where packets go is not decided here: :class:`Sockets` makes the sockets, plain ones for an agent
(:class:`PlainSockets`), ones that lead through a tunnel for a MUX. What comes from a backend is quoted in reasons
only cut short and made printable.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import signal
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from lb.model import Address, Probe, ProbeType
from lb.probe.state import ProbeAnswer

T = TypeVar("T")

#: An answer is read no further than this, bytes.
READ_MAX = 64 * 1024
#: Of what a command prints, only so much is kept, bytes.
OUTPUT_MAX = 4096
#: Characters of somebody else's text in a reason.
QUOTE_MAX = 60

_STATUS_LINE = re.compile(rb"HTTP/[0-9]\.[0-9] ([1-5][0-9]{2})\b")
#: Closing sends a reset: a probe needs no orderly end, and must not leave thousands of ports in TIME_WAIT.
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Sockets(Protocol):
    """Makes the sockets of one probe."""

    def open(self, kind: socket.SocketKind) -> AbstractContextManager[socket.socket]:
        """A non-blocking socket, closed on leaving. Raises OSError."""


class PlainSockets:
    """As the kernel makes them. ``source``: ask from this address of the host, and nobody beyond it."""

    def __init__(self, address: Address, source: Address | None = None) -> None:
        self._family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        self._source = source

    @contextlib.contextmanager
    def open(self, kind: socket.SocketKind) -> Iterator[socket.socket]:
        with socket.socket(self._family, kind | socket.SOCK_NONBLOCK) as opened:
            if self._source is not None:
                opened.setsockopt(socket.SOL_SOCKET, socket.SO_DONTROUTE, 1)
                opened.bind((str(self._source), 0))
            yield opened


@dataclass(frozen=True, slots=True)
class RunAs:
    """The user that a command runs as."""

    name: str
    uid: int
    gid: int


class FailedError(Exception):
    """The probe failed; the message is the reason, in words. ``cause``: what the system said, if it was that."""

    def __init__(self, reason: str, cause: OSError | None = None) -> None:
        super().__init__(reason)
        self.cause = cause


class ProbeNotMadeError(FailedError):
    """The probe could not be made, for a want of this machine's own: it says nothing of the backend."""


#: What the system says when this machine is short of something, or does not let us, before anybody else is asked.
OWN_WANTS = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL, errno.EPERM, errno.ENETDOWN}
)


async def ask(probe: Probe, address: Address, port: int, sockets: Sockets, run_as: RunAs | None = None) -> ProbeAnswer:
    """Whether the backend did as the probe expects, and the reason in words. ``run_as``: whom a command runs as, if not
    as this process."""
    deadline = asyncio.get_running_loop().time() + probe.timeout
    try:
        if probe.type is ProbeType.COMMAND:
            return ProbeAnswer(True, await _command(probe, address, port, run_as))
        return ProbeAnswer(True, await _ASKS[probe.type](_Conversation(probe, address, port, sockets, deadline)))
    except ProbeNotMadeError as failure:
        return ProbeAnswer(False, str(failure), made=False)
    except FailedError as failure:
        refused = isinstance(failure.cause, ConnectionRefusedError)
        return ProbeAnswer(False, str(failure), silent=isinstance(failure.cause, TimeoutError), refused=refused)


class _Conversation:
    """One probe with a socket: its steps share a deadline, and each names itself when it is not done in time."""

    def __init__(self, probe: Probe, address: Address, port: int, sockets: Sockets, deadline: float) -> None:
        self.probe = probe
        self.address = address
        self.port = port
        self._sockets = sockets
        self._deadline = deadline
        self._loop = asyncio.get_running_loop()

    @property
    def patience(self) -> str:
        return f"{self.probe.timeout:g} s"

    @contextlib.asynccontextmanager
    async def connected(self, kind: socket.SocketKind) -> AsyncIterator[socket.socket]:
        with contextlib.ExitStack() as opened:
            try:
                sock = opened.enter_context(self._sockets.open(kind))
                if kind is socket.SOCK_STREAM:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            except OSError as error:
                raise ProbeNotMadeError(f"no socket for the probe: {_words(error)}") from None
            await self.within(
                self._loop.sock_connect(sock, (str(self.address), self.port)),
                f"connect timed out after {self.patience}",
            )
            yield sock

    async def within(self, step: Awaitable[T], late: str) -> T:
        try:
            async with asyncio.timeout_at(self._deadline):
                return await step
        except TimeoutError as error:
            raise FailedError(late, error) from None
        except OSError as error:
            if error.errno in OWN_WANTS:
                raise ProbeNotMadeError(f"this machine does not send the probe: {_words(error)}") from None
            raise FailedError(_words(error), error) from None

    async def send(self, sock: socket.socket, data: bytes) -> None:
        await self.within(self._loop.sock_sendall(sock, data), f"could not send within {self.patience}")

    async def read_until(
        self, sock: socket.socket, enough: Callable[[bytes], bool], late: Callable[[bytes], str]
    ) -> bytes:
        """What came until it was enough, the end, or too much."""
        data = b""
        while not enough(data) and len(data) < READ_MAX:
            piece = await self.within(self._loop.sock_recv(sock, READ_MAX - len(data)), late(data))
            if not piece:
                break
            data += piece
        return data


# --- TCP -------------------------------------------------------------------------------------------------------------


async def _tcp(talk: _Conversation) -> str:
    probe = talk.probe
    async with talk.connected(socket.SOCK_STREAM) as sock:
        if probe.request is not None:
            await talk.send(sock, probe.request.encode())
        if probe.expect is None:
            return "TCP connects"
        expected = probe.expect.encode()

        def late(got: bytes) -> str:
            return _unexpected(got, probe.expect) if got else f"connects, but no answer within {talk.patience}"

        answer = await talk.read_until(sock, lambda data: expected in data, late)
    if expected not in answer:
        raise FailedError(_unexpected(answer, probe.expect) if answer else "connection closed without an answer")
    return "TCP answers as expected"


# --- HTTP ------------------------------------------------------------------------------------------------------------


async def _http(talk: _Conversation) -> str:
    """One GET. HTTP/1.1, for some servers refuse less; the end of the connection is the end of the answer."""
    probe = talk.probe
    expected = None if probe.expect is None else probe.expect.encode()
    host = str(talk.address) if talk.address.version == 4 else f"[{talk.address}]"
    host = host if talk.port == 80 else f"{host}:{talk.port}"
    head = f"GET {probe.path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: vipmux-probe\r\nAccept: */*\r\n"

    def enough(data: bytes) -> bool:
        if b"\n" not in data:
            return False
        status = _status(data)
        return status is None or _refused(probe, status) or expected is None or expected in _body(data)

    async with talk.connected(socket.SOCK_STREAM) as sock:
        await talk.send(sock, f"{head}Connection: close\r\n\r\n".encode())
        late = f"connects, but no whole HTTP answer within {talk.patience}"
        answer = await talk.read_until(sock, enough, lambda _: late)
    if not answer:
        raise FailedError("connection closed without an answer")
    status = _status(answer)
    if status is None:
        raise FailedError(f"the answer is not HTTP: {_quote(answer)}")
    if _refused(probe, status):
        raise FailedError(f"HTTP {status}")
    if expected is not None and expected not in _body(answer):
        raise FailedError(f"HTTP {status}, but the answer does not contain {_quote(expected)}")
    return f"HTTP {status}"


def _status(answer: bytes) -> int | None:
    found = _STATUS_LINE.match(answer)
    return int(found[1]) if found else None


def _refused(probe: Probe, status: int) -> bool:
    return not probe.status[0] <= status <= probe.status[1]


def _body(answer: bytes) -> bytes:
    """Without the headers, and out of its chunks."""
    headers, _, body = answer.partition(b"\r\n\r\n")
    if not re.search(rb"\r\ntransfer-encoding:[^\r]*chunked", headers, re.IGNORECASE):
        return body
    whole = b""
    while found := re.match(rb"([0-9A-Fa-f]{1,8})[^\r\n]*\r\n", body):
        size, start = int(found[1], 16), found.end()
        whole += body[start : start + size]
        body = body[start + size + 2 :]
        if not size:
            break
    return whole


# --- UDP -------------------------------------------------------------------------------------------------------------


async def _udp(talk: _Conversation) -> str:
    """No answer is a failure only where one is expected; that nobody listens (ICMP) always is."""
    probe = talk.probe
    async with talk.connected(socket.SOCK_DGRAM) as sock:
        try:
            await talk.send(sock, (probe.request or "").encode())
            answer = await talk.within(
                asyncio.get_running_loop().sock_recv(sock, READ_MAX), f"no answer within {talk.patience}"
            )
        except FailedError as failure:
            if isinstance(failure.cause, ConnectionRefusedError):
                raise FailedError("nobody listens: ICMP port unreachable") from None
            if probe.expect is None and isinstance(failure.cause, TimeoutError):
                return "no answer, and none is expected"
            raise
    if probe.expect is not None and probe.expect.encode() not in answer:
        raise FailedError(_unexpected(answer, probe.expect))
    return "UDP answers" if probe.expect is None else "UDP answers as expected"


# --- command ---------------------------------------------------------------------------------------------------------


async def _command(probe: Probe, address: Address, port: int, run_as: RunAs | None) -> str:
    """Runs without a shell, in a process group of its own, which is killed when time is up."""
    who: dict[str, Any] = {}
    if run_as is not None:
        who = {"user": run_as.uid, "group": run_as.gid, "extra_groups": []}
    try:
        read_end, write_end = os.pipe()
    except OSError as error:
        raise ProbeNotMadeError(f"no pipe for the command: {_words(error)}") from None
    output = _Output(read_end)
    try:
        try:
            process = await asyncio.create_subprocess_exec(
                *probe.command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=write_end,
                stderr=write_end,
                start_new_session=True,
                cwd="/",
                **who,
                env={
                    "PATH": os.environ.get("PATH", os.defpath),
                    "LB_PROBE_ADDRESS": str(address),
                    "LB_PROBE_PORT": str(port),
                },
            )
        except OSError as error:
            if run_as is not None and error.errno == errno.EPERM:
                raise ProbeNotMadeError(
                    f"lb-agent may not run commands as {run_as.name}: it needs CAP_SETUID, CAP_SETGID and CAP_KILL"
                ) from None
            if error.errno in OWN_WANTS - {errno.EPERM} or error.errno == errno.EAGAIN:
                raise ProbeNotMadeError(f"no process for the command: {_words(error)}") from None
            raise FailedError(f"cannot run {_quote(probe.command[0].encode())}: {_words(error)}") from None
        finally:
            os.close(write_end)
        code = await _ended(process, within=probe.timeout)
    finally:
        output.close()
    if code is None:
        raise FailedError(f"the command ran longer than {probe.timeout:g} s and was killed")
    if code != 0:
        how = f"exit code {code}" if code > 0 else f"the command was ended by signal {-code}"
        raise FailedError(f"{how}: {_quote(output.first_line)}" if output.first_line else how)
    return "exit code 0"


async def _ended(process: asyncio.subprocess.Process, within: float) -> int | None:
    """Its exit code; None: it had to be killed. What it left running of its group is ended as well."""
    try:
        async with asyncio.timeout(within):
            return await process.wait()
    except TimeoutError:
        return None
    finally:
        killed = _killed(process.pid)
        if process.returncode is None and killed:
            await process.wait()


def _killed(group: int) -> bool:
    """False where it may not be: it runs as another user, and CAP_KILL is missing. Then nobody waits for its end."""
    try:
        os.killpg(group, signal.SIGKILL)
    except PermissionError:
        return False
    except ProcessLookupError:
        pass
    return True


class _Output:
    """Reads all that a command prints, so that it never waits for us, and keeps the beginning.

    A pipe of our own: asyncio's would have us wait for whatever child still holds its other end.
    """

    def __init__(self, read_end: int) -> None:
        self._fd = read_end
        self._kept = b""
        os.set_blocking(read_end, False)
        asyncio.get_running_loop().add_reader(read_end, self._read)

    @property
    def first_line(self) -> bytes:
        return self._kept.strip().partition(b"\n")[0]

    def close(self) -> None:
        self._read()
        asyncio.get_running_loop().remove_reader(self._fd)
        os.close(self._fd)

    def _read(self) -> None:
        try:
            data = os.read(self._fd, READ_MAX)
        except OSError:  # nothing there now
            return
        self._kept += data[: OUTPUT_MAX - len(self._kept)]
        if not data:
            asyncio.get_running_loop().remove_reader(self._fd)


_ASKS: dict[ProbeType, Callable[[_Conversation], Awaitable[str]]] = {
    ProbeType.TCP: _tcp,
    ProbeType.HTTP: _http,
    ProbeType.UDP: _udp,
}


# --- words -----------------------------------------------------------------------------------------------------------


def _words(error: OSError) -> str:
    """Not the error's own text: asyncio puts address and port into it."""
    return os.strerror(error.errno).lower() if error.errno else str(error)


def _unexpected(answer: bytes, expected: str | None) -> str:
    return f"the answer {_quote(answer)} does not contain {_quote((expected or '').encode())}"


def _quote(data: bytes) -> str:
    text = data.decode(errors="replace")
    short = text if len(text) <= QUOTE_MAX else text[: QUOTE_MAX - 3] + "..."
    return '"' + "".join(char if char.isprintable() else "?" for char in short) + '"'
