# SPDX-License-Identifier: Apache-2.0
"""The ExaBGP process beside a MUX: started, connected to, watched, ended, and started again.

:class:`Sidecar` owns the process, the two connections of its helper (:mod:`lb.bgp.helper`) and nothing of what is
announced; :mod:`lb.bgp.speaker` is its only user. What must never happen is a route that nobody stands behind:

- ``lb-mux`` dies: the kernel kills ExaBGP (:mod:`lb.bgp.launch`), routers see the connection close;
- the helper dies: ExaBGP would go on announcing, so it is killed here, and started again;
- ExaBGP dies: its sessions died with it; it is started again;
- the data plane dies: no more :meth:`Sidecar.beat`, and the helper takes everything back.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import secrets
import signal
import socket
import struct
import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from lb.bgp import helper as helper_module
from lb.bgp.exabgp_config import ENVIRONMENT, exabgp_config
from lb.bgp.routes import Speaks, is_safe
from lb.daemon.log import get_logger
from lb.daemon.supervise import describe, unwrap
from lb.errors import VipmuxError

#: The helper takes everything back when the data plane was silent for so long, seconds.
HEARTBEAT_TTL = 1.0
#: How long ExaBGP may take to start its helper, seconds; a busy machine needs one or two.
START_TIMEOUT = 20.0
#: How long ExaBGP may take to answer a batch, seconds; then it is stuck, and killed.
ANSWER_TIMEOUT = 30.0
#: Pauses between starts, seconds: the first is short because routes are missing meanwhile.
BACKOFF = (0.05, 0.2, 0.5, 1.0, 2.0, 5.0)
#: After so long the next failure counts as a first one again, seconds.
STEADY = 30.0
#: Of an ExaBGP that dies at each start the first deaths are said, then one in so many: about one in two minutes.
SAID, SAID_OF = len(BACKOFF), 20
#: Accounts that ExaBGP runs as, the first that exists.
USERS = ("lb-bgp", "nobody")
#: An answer of the helper to the largest batch, with room.
LINE_MAX = 4 * 1024 * 1024
_LOG_LINES = 20
_PYTHON = Path(sys.executable).resolve()
_HERE = Path(__file__).parent

log = get_logger()


class SidecarGone(Exception):  # noqa: N818  not an error: it comes back by itself
    """ExaBGP or its helper ended while something was asked of it."""


class OrderRefused(Exception):  # noqa: N818  not an error either: it may be asked again
    """The helper did not pass an order on, and says why: usually that the data plane is silent."""


@dataclass(frozen=True, slots=True)
class Account:
    """Who ExaBGP runs as; ``uid`` None: as ourselves, without capabilities."""

    name: str
    uid: int | None
    gid: int | None
    reason: str


@dataclass(slots=True)
class SidecarListener:
    """What a :class:`Sidecar` tells of; all called from the event loop."""

    up: Callable[[], None]  #: commands can be sent; nothing is announced yet
    down: Callable[[str], None]  #: nothing is announced any more, and why
    expired: Callable[[str], None]  #: the helper took everything back, and why
    event: Callable[[dict[str, Any]], None]  #: from ExaBGP


class Sidecar:
    """ExaBGP for one MUX; :meth:`run` until cancelled."""

    def __init__(self, speaks: Speaks, account: Account, listener: SidecarListener) -> None:
        self._speaks = speaks
        self._account = account
        self._listener = listener
        self._link: _Link | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._tail: deque[str] = deque(maxlen=_LOG_LINES)
        self._failures = 0  # one soon after the other

    @property
    def pid(self) -> int | None:
        """ExaBGP's, while it runs."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    def beat(self) -> None:
        """The data plane lives. From any thread; never waits."""
        link = self._link
        if link is not None:
            link.send_beat()

    async def send(self, lines: Sequence[str], patience: float = ANSWER_TIMEOUT) -> list[bool]:
        """Has ExaBGP take these lines; for each, whether it did. Raises SidecarGone or OrderRefused.

        The helper keeps what they announce, so that it can take all of it back. One call at a time. An ExaBGP that does
        not answer within ``patience`` is killed: its sessions must not outlive its mind.
        """
        if not is_safe(lines):
            raise AssertionError("a command for ExaBGP holds what no command of ours can hold")
        link = self._link
        if link is None:
            raise SidecarGone
        try:
            async with asyncio.timeout(patience):
                results: list[bool] = await link.send(lines)
        except TimeoutError:
            log.error("ExaBGP does not answer", reason=f"no answer for {patience:g} s; it is started anew")
            self._kill()
            raise SidecarGone from None
        return results

    def restart(self) -> None:
        """Ends ExaBGP; a new one begins at once, and with it what waits ever longer between attempts to connect."""
        self._kill()

    def begin_anew(self, speaks: Speaks) -> None:
        """As :meth:`restart`, with other settings for the new one."""
        self._speaks = speaks
        self._kill()

    async def run(self) -> None:
        """Keeps ExaBGP running; the caller's cancellation kills it."""
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            why = await self._live()
            self._failures = 1 if loop.time() - began > STEADY else self._failures + 1
            pause = BACKOFF[min(self._failures, len(BACKOFF)) - 1]
            if self._worth_saying():
                log.error("ExaBGP ended", reason=why, again_in=pause, times_in_a_row=self._failures)
            await asyncio.sleep(pause)

    def _worth_saying(self) -> bool:
        """An ExaBGP that dies at each start for a night must not fill the log."""
        return self._failures <= SAID or self._failures % SAID_OF == 0

    # -- one life -----------------------------------------------------------------------------------------------

    async def _live(self) -> str:
        """Starts ExaBGP and returns when it must be started again, with the reason. Whatever goes wrong is a reason: no
        descriptor, no process, an error of ours; the MUX forwards all the same."""
        why = "it was asked to"
        self._tail.clear()
        self._process = None
        try:
            why = await self._from_start_to_end()
        except Exception as error:
            why = describe(error)
            if not isinstance(unwrap(error), OSError | VipmuxError):
                log.error("error beside ExaBGP", reason=why, exc_info=error)
        finally:
            self._kill()
            self._listener.down(why)
            await self._reap()
        return why

    async def _reap(self) -> None:
        if self._process is not None:
            await asyncio.shield(self._process.wait())

    async def _from_start_to_end(self) -> str:
        name = f"vipmux-bgp-{secrets.token_hex(16)}"
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as listener:
            listener.bind("\0" + name)
            listener.listen(4)
            self._process = process = await self._start(name)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._read_log(process))
                ended = tasks.create_task(self._ended(process))
                talking = tasks.create_task(self._talk(listener, process.pid))
                done, _ = await asyncio.wait({ended, talking}, return_when=asyncio.FIRST_COMPLETED)
                # The helper follows ExaBGP at once, and may be noticed first.
                why = talking.result() if ended not in done and not _dead(process.pid) else ""
                self._kill()
                talking.cancel()
                return why or await ended

    async def _start(self, name: str) -> asyncio.subprocess.Process:
        me = Path(helper_module.__file__)
        command = [sys.executable, "-I", "-S", str(me), name, str(int(HEARTBEAT_TTL * 1000))]
        text = exabgp_config(self._speaks, command)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "lb.bgp.launch", str(os.getpid())),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=environment(self._account.name),
            cwd="/",
            start_new_session=True,
            **_as_user(self._account),
        )
        assert process.stdin is not None  # noqa: S101  asked for above
        with contextlib.suppress(ConnectionError):
            process.stdin.write(text.encode())
            await process.stdin.drain()
        process.stdin.close()
        return process

    async def _ended(self, process: asyncio.subprocess.Process) -> str:
        code = await process.wait()
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        last = " / ".join([line for line in self._tail if line][-3:])
        return f"{how}; it last said: {last}" if last and code > 0 else how

    def _kill(self) -> None:
        if self._link is not None:
            self._link.kill()
            self._link = None
        pid = self.pid
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)

    async def _read_log(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None  # noqa: S101  asked for above
        while True:
            try:
                line = await process.stdout.readline()
            except ValueError:  # longer than the stream's limit; it was dropped
                continue
            if not line:
                return
            text = "".join(c if c.isprintable() else " " for c in line.decode(errors="replace")).strip()
            self._tail.append(text)
            said = text.partition(" ")[2].strip()  # after the name of its part that speaks
            if said.startswith(_WORTH_TELLING):
                log.warning("ExaBGP says", line=said[:300])

    # -- the helper ---------------------------------------------------------------------------------------------

    async def _talk(self, listener: socket.socket, exabgp: int) -> str:
        """Takes the helper's connections and listens to it until it ends."""
        try:
            async with asyncio.timeout(START_TIMEOUT):
                link = await _accept(listener, exabgp)
        except TimeoutError:
            return f"its helper did not start within {START_TIMEOUT:g} s"
        try:
            self._link = link
            if self._worth_saying():
                log.info("ExaBGP runs", pid=exabgp, user=self._account.name, helper=link.pid)
            self._listener.up()
            await link.listen(self._listener)
        finally:
            if self._link is link:
                self._link = None
            link.close()
        return "its helper ended"


#: Beginnings of ExaBGP's lines that an operator should see; what befalls sessions is in its events.
_WORTH_TELLING = ("could not", "can not", "command could not", "invalid", "issue", "the route family", "ExaBGP lost")


class _Link:
    """The two connections of one helper."""

    def __init__(self, pid: int, beat: socket.socket, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self.pid = pid
        self._pidfd = os.pidfd_open(pid)
        self._beat = beat
        self._reader = reader
        self._writer = writer
        self._number = 0
        self._answer: asyncio.Future[list[bool]] | None = None

    def send_beat(self) -> None:
        with contextlib.suppress(OSError):  # full: it has enough to read; closed: the listener knows
            self._beat.send(b".", socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)

    async def send(self, lines: Sequence[str]) -> list[bool]:
        """As :meth:`Sidecar.send`."""
        self._number += 1
        answer: asyncio.Future[list[bool]] = asyncio.get_running_loop().create_future()
        self._answer = answer
        order = {"id": self._number, "lines": list(lines)}
        try:
            self._writer.write(msgspec.json.encode(order) + b"\n")
            await self._writer.drain()
        except OSError:
            raise SidecarGone from None
        try:
            return await answer
        finally:
            self._answer = None

    async def listen(self, listener: SidecarListener) -> None:
        """Until the helper is gone."""
        try:
            while line := await self._reader.readline():
                self._heard(msgspec.json.decode(line), listener)
        except (OSError, ValueError):
            return

    def _heard(self, said: dict[str, Any], listener: SidecarListener) -> None:
        if "event" in said:
            listener.event(said["event"])
        elif "expired" in said:
            self._give_up()
            listener.expired(str(said["expired"]))
        elif said.get("id") == self._number and self._answer is not None and not self._answer.done():
            if "results" in said:
                self._answer.set_result([bool(result) for result in said["results"]])
            else:
                self._answer.set_exception(OrderRefused(str(said.get("refused"))))
        elif "error" in said:
            log.error("ExaBGP's helper refuses an order", reason=said["error"])

    def _give_up(self) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(SidecarGone())

    def kill(self) -> None:
        """It ends by itself when ExaBGP does, unless it hangs."""
        with contextlib.suppress(OSError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        self._give_up()

    def close(self) -> None:
        self._give_up()
        self._beat.close()
        self._writer.close()
        os.close(self._pidfd)
        self._pidfd = -1


async def _accept(listener: socket.socket, exabgp: int) -> _Link:
    """The helper's two connections; strangers that found the socket are sent away."""
    loop = asyncio.get_running_loop()
    found: dict[str, tuple[socket.socket, int]] = {}
    try:
        while len(found) < len(_ROLES):
            connection, _ = await loop.sock_accept(listener)
            pid = _peer_pid(connection)
            role = await _role(connection) if _parent(pid) == exabgp else None
            if role is None or role in found:
                connection.close()
            else:
                found[role] = (connection, pid)
    except BaseException:
        for connection, _ in found.values():
            connection.close()
        raise
    talk, pid = found["talk"]
    reader, writer = await asyncio.open_connection(sock=talk, limit=LINE_MAX)
    return _Link(pid, found["beat"][0], reader, writer)


_ROLES = frozenset({"talk", "beat"})


async def _role(connection: socket.socket) -> str | None:
    """What the connection is for: its first line, byte by byte so that nothing after it is lost."""
    loop = asyncio.get_running_loop()
    connection.setblocking(False)
    line = b""
    while len(line) < 8 and not line.endswith(b"\n"):
        more = await loop.sock_recv(connection, 1)
        if not more:
            return None
        line += more
    role = line.decode(errors="replace").strip()
    return role if role in _ROLES else None


def _peer_pid(connection: socket.socket) -> int:
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid: int = struct.unpack("3i", raw)[0]
    return pid


def _parent(pid: int) -> int:
    return int(_stat(pid)[1])


def _dead(pid: int) -> bool:
    return _stat(pid)[0] in ("Z", "X")


def _stat(pid: int) -> tuple[str, str]:
    """A process's state and parent."""
    try:
        state, parent, *_ = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return "X", "0"
    return state, parent


# -- who ExaBGP runs as -------------------------------------------------------------------------------------------


def environment(user: str) -> dict[str, str]:
    """Nothing of ours but what a program needs to start."""
    kept = {key: os.environ[key] for key in ("PATH", "LANG", "LC_ALL", "PYTHONPATH") if key in os.environ}
    return {**kept, **ENVIRONMENT, "exabgp_daemon_user": user, "PYTHONDONTWRITEBYTECODE": "1"}


def _as_user(account: Account) -> dict[str, Any]:
    if account.uid is None:
        return {}
    return {"user": account.uid, "group": account.gid, "extra_groups": []}


async def choose_account() -> Account:
    """An account without rights if we may become it and it can read this program; else ourselves, and why."""
    own = pwd.getpwuid(os.geteuid()).pw_name
    if os.geteuid():
        return Account(own, None, None, "lb-mux is not root itself")
    for name in USERS:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        account = Account(name, entry.pw_uid, entry.pw_gid, "an account without rights")
        if await _can_run(account):
            return account
        return Account(own, None, None, f"{name} may not run {_PYTHON}, or not read {_HERE}")
    return Account(own, None, None, f"there is no account named {' or '.join(USERS)}")


async def _can_run(account: Account) -> bool:
    """Whether the account can import what it will run."""
    try:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", "import lb.bgp.launch, exabgp"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            env=environment(account.name),
            cwd="/",
            **_as_user(account),
        )
    except OSError:
        return False
    return await process.wait() == 0
