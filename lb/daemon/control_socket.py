# SPDX-License-Identifier: Apache-2.0
"""The local UNIX socket of the daemons: one JSON object a line asks, one a line answers.

``lb-mux`` and ``lb-agent`` run a :class:`ControlServer` with one handler for each ``op``; ``lb get|lookup|top
--local`` and tests call :func:`request`. The socket is the owner's alone (mode 0600); whoever may open it is
trusted, but what they send is bounded and checked all the same. The server owns the socket's file.

    {"op": "get", "what": "services"}      ->  {"ok": true, "data": [...]}
    {"op": "dance"}                        ->  {"ok": false, "error": "unknown op 'dance': ..."}
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import socket
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from lb.daemon.log import get_logger
from lb.errors import ControlError, VipmuxError

#: Longest request, bytes; far more than any of ours.
REQUEST_MAX = 64 * 1024
#: Open connections; one more ends the one that has been silent longest.
CONNECTIONS_MAX = 128
#: Questions answered at once; more wait.
ANSWERS_MAX = 32
#: A connection that asks nothing for so long is closed, seconds.
IDLE_TIMEOUT = 60.0
#: A socket's name must fit into ``struct sockaddr_un``.
PATH_MAX = 107

log = get_logger()

Request = dict[str, Any]
#: Returns what becomes ``data``, or an awaitable of it; raises VipmuxError with a sentence for the asker.
Handler = Callable[[Request], Any]


class ControlServer:
    """Answers requests on a UNIX socket until closed."""

    def __init__(self, path: str | Path, handlers: Mapping[str, Handler]) -> None:
        self._path = Path(path)
        self._handlers = dict(handlers)
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._slots = asyncio.Semaphore(ANSWERS_MAX)
        self._silent: dict[asyncio.Task[None], None] = {}  # those that ask nothing just now, the longest first

    async def start(self) -> None:
        """Takes the place of a socket that a dead process left behind, never that of a living one."""
        listener = _listen(self._path)
        self._server = await asyncio.start_unix_server(self._connected, sock=listener, limit=REQUEST_MAX)

    async def close(self) -> None:
        """Stops listening, ends open connections and removes the file."""
        if self._server is None:
            return
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._server = None
        self._path.unlink(missing_ok=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  asyncio runs connections as tasks
        if len(self._tasks) >= CONNECTIONS_MAX and self._silent:
            longest = next(iter(self._silent))
            del self._silent[longest]
            longest.cancel()
        self._tasks.add(task)
        try:
            await self._serve(task, reader, writer)
        except (ConnectionError, TimeoutError, asyncio.CancelledError):
            pass  # the asker went away, or we are closing
        finally:
            self._tasks.discard(task)
            self._silent.pop(task, None)
            writer.close()

    async def _serve(
        self, task: asyncio.Task[None], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while True:
            self._silent[task] = None
            try:
                async with asyncio.timeout(IDLE_TIMEOUT):
                    line = await reader.readline()
            except ValueError:  # longer than the limit: nothing after it can be told apart
                await _reply(writer, {"ok": False, "error": f"a request must fit into {REQUEST_MAX} bytes"})
                return
            if not line:
                return
            self._silent.pop(task, None)
            if line.strip():
                async with self._slots:
                    await _reply(writer, await self._answer(line))

    async def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            asked = _parse(line)
            data = self._handler(asked)(asked)
            if inspect.isawaitable(data):
                data = await data
        except VipmuxError as error:
            return {"ok": False, "error": str(error)}
        except Exception as error:  # the daemon's work does not hang on what somebody asks
            log.error("question not answered", asked=line[:200].decode(errors="replace"), exc_info=error)
            what = " ".join(str(error).split())[:200]
            return {
                "ok": False,
                "error": f"the daemon could not answer, which is a fault of its own: {type(error).__name__}: {what}; "
                "its log has more",
            }
        return {"ok": True, "data": data}

    def _handler(self, asked: Request) -> Handler:
        op = asked.get("op")
        if not isinstance(op, str) or op not in self._handlers:
            raise ControlError(f"unknown op {op!r}: this daemon knows {', '.join(sorted(self._handlers))}")
        return self._handlers[op]


def request(path: str | Path, asked: Request, *, timeout: float = 5.0) -> Any:
    """Asks a daemon once and returns the ``data`` of its answer; raises ControlError otherwise."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout)
        try:
            connection.connect(str(path))
            connection.sendall(msgspec.json.encode(asked) + b"\n")
            with connection.makefile("rb") as answers:
                line = answers.readline()
        except TimeoutError:
            raise ControlError(f"{path}: no answer within {timeout:g} s") from None
        except OSError as error:
            raise ControlError(
                f"{path}: {(error.strerror or str(error)).lower()}; is the daemon running, and may this user ask it?"
            ) from None
    return _data(path, line)


def _data(path: str | Path, line: bytes) -> Any:
    try:
        answer = msgspec.json.decode(line)
        if answer["ok"]:
            return answer["data"]
        error = str(answer["error"])
    except (ValueError, KeyError, TypeError):
        raise ControlError(f"{path}: the daemon closed the connection without an answer") from None
    raise ControlError(error)


def _parse(line: bytes) -> Request:
    try:
        asked = msgspec.json.decode(line)
    except (ValueError, RecursionError):
        raise ControlError("a request must be one JSON object on one line") from None
    if not isinstance(asked, dict):
        raise ControlError("a request must be one JSON object on one line")
    return asked


async def _reply(writer: asyncio.StreamWriter, answer: dict[str, Any]) -> None:
    writer.write(msgspec.json.encode(answer) + b"\n")
    async with asyncio.timeout(IDLE_TIMEOUT):
        await writer.drain()


def _listen(path: Path) -> socket.socket:
    if len(os.fsencode(path)) > PATH_MAX:
        raise ControlError(f"{path}: a socket's name has at most {PATH_MAX} bytes; choose a shorter state_dir")
    _remove_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)  # so the file is the owner's from its first instant
    try:
        listener.bind(str(path))
    except OSError as error:
        listener.close()
        raise ControlError(f"{path}: cannot listen: {(error.strerror or str(error)).lower()}") from None
    finally:
        os.umask(before)
    return listener


def _set_aside(path: Path) -> None:
    """Whatever it is, it is no reason for a daemon not to work."""
    aside = path.with_name(path.name + ".aside")
    try:
        path.replace(aside)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ControlError(f"{path}: is in the way, is not a socket and cannot be moved: {reason}; remove it") from None
    log.warning("set aside", file=str(path), now=str(aside), reason="it stood where the local socket belongs")


def _remove_stale(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except OSError:
        return  # nothing there, or bind() will say why not
    if not stat.S_ISSOCK(mode):
        _set_aside(path)
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
            return
        except OSError:
            pass  # somebody listens, too busy to answer
    raise ControlError(f"{path}: another process serves this socket; stop it first, or choose another state_dir")
