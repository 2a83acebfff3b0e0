# SPDX-License-Identifier: Apache-2.0
"""Each way of asking, against real servers on loopback: what is a success, and what a failure says in words."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import socket
import sys
import time
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from lb.model import Probe, ProbeType
from lb.probe.checkers import PlainSockets, ask
from lb.probe.state import ProbeAnswer
from tests.lab.process import wait_for
from tests.lb.probe.server import Script, says, tcp, udp

HERE = IPv4Address("127.0.0.1")
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nfine!\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nfin\r\n2;x=y\r\ne!\r\n0\r\n\r\n"
BIG = b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 1_000_000 + b"fine!"


def words(answer: ProbeAnswer) -> tuple[bool, str]:
    return answer.success, answer.reason


def check(probe: Probe, port: int, address: IPv4Address = HERE) -> tuple[bool, str]:
    return words(asyncio.run(ask(probe, address, port, PlainSockets(address))))


def check_server(probe: Probe, answer: Script) -> tuple[bool, str]:
    async def run() -> tuple[bool, str]:
        async with tcp(answer) as port:
            return words(await ask(probe, HERE, port, PlainSockets(HERE)))

    return asyncio.run(run())


def check_udp(probe: Probe, reply: bytes | None) -> tuple[bool, str]:
    async def run() -> tuple[bool, str]:
        async with udp(reply) as port:
            return words(await ask(probe, HERE, port, PlainSockets(HERE)))

    return asyncio.run(run())


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port: int = held.getsockname()[1]
        return port


@pytest.fixture
def silent_port() -> Iterator[int]:
    """Its queue of connections is full, so that a SYN gets no answer."""
    with contextlib.ExitStack() as held:
        listener = held.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(3):
            waiting = held.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


# --- TCP -------------------------------------------------------------------------------------------------------------


def test_tcp_connect_is_enough() -> None:
    assert check_server(Probe(ProbeType.TCP), says(b"")) == (True, "TCP connects")


def test_tcp_refused(closed_port: int) -> None:
    assert check(Probe(ProbeType.TCP), closed_port) == (False, "connection refused")


def test_tcp_timeout_is_kept_and_said(silent_port: int) -> None:
    began = time.monotonic()
    assert check(Probe(ProbeType.TCP, timeout=0.2), silent_port) == (False, "connect timed out after 0.2 s")
    assert 0.2 <= time.monotonic() - began < 1.0


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (says(b"+PONG\r\n"), (True, "TCP answers as expected")),
        (
            says(b"-ERR\x1b[2J " + b"e" * 100),
            (False, 'the answer "-ERR?[2J ' + "e" * 48 + '..." does not contain "PONG"'),
        ),
        (says(b""), (False, "connection closed without an answer")),
        (says(b"", then_wait=True), (False, "connects, but no answer within 0.2 s")),
        (says(b"+PO", then_wait=True), (False, 'the answer "+PO" does not contain "PONG"')),
    ],
    ids=["as expected", "other", "closed", "silent", "incomplete"],
)
def test_tcp_send_and_expect(answer: Script, outcome: tuple[bool, str]) -> None:
    assert check_server(Probe(ProbeType.TCP, request="PING\r\n", expect="PONG", timeout=0.2), answer) == outcome


def test_a_probe_leaves_no_port_in_time_wait() -> None:
    def waiting(port: int) -> set[tuple[str, str]]:
        """Connections to this port in TIME_WAIT; others may have had the number a moment before."""
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        return {(row[1], row[2]) for row in rows if row[2].endswith(f":{port:04X}") and row[3] == "06"}

    async def run() -> set[tuple[str, str]]:
        async with tcp(says(b"+PONG")) as port:
            before = waiting(port)
            assert (await ask(Probe(ProbeType.TCP), HERE, port, PlainSockets(HERE))).success
        return waiting(port) - before

    assert asyncio.run(run()) == set()


# --- HTTP ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("probe", "answer", "outcome"),
    [
        ({}, says(OK), (True, "HTTP 200")),
        ({}, says(b"HTTP/1.1 204 No Content\r\n\r\n"), (True, "HTTP 204")),
        ({}, says(b"HTTP/1.1 503 Service Unavailable\r\n\r\n"), (False, "HTTP 503")),
        ({}, says(b"HTTP/1.0 302 Found\r\n\r\n"), (False, "HTTP 302")),
        ({"status": (200, 399)}, says(b"HTTP/1.0 302 Found\r\n\r\n"), (True, "HTTP 302")),
        ({"expect": "fine!"}, says(OK), (True, "HTTP 200")),
        ({"expect": "fine!"}, says(CHUNKED), (True, "HTTP 200")),
        ({"expect": "Content-Length"}, says(OK), (False, 'HTTP 200, but the answer does not contain "Content-Length"')),
        ({"expect": "fine!"}, says(BIG), (False, 'HTTP 200, but the answer does not contain "fine!"')),
        ({}, says(b"SSH-2.0-OpenSSH\r\n"), (False, 'the answer is not HTTP: "SSH-2.0-OpenSSH??"')),
        ({}, says(b""), (False, "connection closed without an answer")),
        ({}, says(b"HTTP/1.1 2", then_wait=True), (False, "connects, but no whole HTTP answer within 0.3 s")),
    ],
)
def test_http(probe: dict[str, object], answer: Script, outcome: tuple[bool, str]) -> None:
    assert check_server(Probe(ProbeType.HTTP, timeout=0.3, **probe), answer) == outcome  # type: ignore[arg-type]


def test_http_asks_for_the_path_with_a_host_and_closes() -> None:
    asked: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(OK)

    assert check_server(Probe(ProbeType.HTTP, path="/healthz?deep=1"), answer)[0]
    lines = asked[0].decode().split("\r\n")
    assert lines[0] == "GET /healthz?deep=1 HTTP/1.1"
    assert {"Connection: close", "User-Agent: vipmux-probe"} < set(lines)
    assert lines[1].startswith("Host: 127.0.0.1:")


def test_http_refused(closed_port: int) -> None:
    assert check(Probe(ProbeType.HTTP), closed_port) == (False, "connection refused")


# --- UDP -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("probe", "reply", "outcome"),
    [
        ({"request": "ping", "expect": "pong ping"}, b"pong ", (True, "UDP answers as expected")),
        ({"request": "ping", "expect": "pong"}, b"what? ", (False, 'the answer "what? ping" does not contain "pong"')),
        ({"request": "ping", "expect": "pong"}, None, (False, "no answer within 0.2 s")),
        ({"request": "ping"}, None, (True, "no answer, and none is expected")),
        ({"request": "ping"}, b"whatever", (True, "UDP answers")),
        ({}, None, (True, "no answer, and none is expected")),
    ],
)
def test_udp(probe: dict[str, str], reply: bytes | None, outcome: tuple[bool, str]) -> None:
    assert check_udp(Probe(ProbeType.UDP, timeout=0.2, **probe), reply) == outcome  # type: ignore[arg-type]


@pytest.mark.parametrize("probe", [{}, {"request": "ping"}, {"request": "ping", "expect": "pong"}])
def test_udp_port_unreachable_is_down_whatever_is_expected(probe: dict[str, str], closed_port: int) -> None:
    outcome = check(Probe(ProbeType.UDP, timeout=0.2, **probe), closed_port)  # type: ignore[arg-type]
    assert outcome == (False, "nobody listens: ICMP port unreachable")


# --- command ---------------------------------------------------------------------------------------------------------


def command(*argv: str, timeout: float = 5.0) -> tuple[bool, str]:
    return check(Probe(ProbeType.COMMAND, command=argv, interval=60, timeout=timeout), 80)


@pytest.mark.parametrize(
    ("script", "outcome"),
    [
        ("pass", (True, "exit code 0")),
        ("print('no space left\\nmore'); exit(3)", (False, 'exit code 3: "no space left"')),
        ("exit(4)", (False, "exit code 4")),
        ("import os; os.kill(os.getpid(), 9)", (False, "the command was ended by signal 9")),
        ("print('x' * 1_000_000)", (True, "exit code 0")),
        (
            "import os; e = os.environ; exit(e['LB_PROBE_ADDRESS'] + e['LB_PROBE_PORT'] != '127.0.0.180')",
            (True, "exit code 0"),
        ),
    ],
)
def test_command(script: str, outcome: tuple[bool, str]) -> None:
    assert command(sys.executable, "-c", script) == outcome


def test_command_gets_no_shell() -> None:
    assert command("/bin/echo", "$(exit 1)", ";", "exit 1") == (True, "exit code 0")


def test_command_that_does_not_exist() -> None:
    assert command("/no/such/program") == (False, 'cannot run "/no/such/program": no such file or directory')


def test_command_is_killed_in_time_with_all_its_children(tmp_path: Path) -> None:
    script = f"sleep 60 & echo $! > {tmp_path}/pid; echo waiting; wait"
    began = time.monotonic()
    outcome = command("/bin/sh", "-c", script, timeout=0.5)
    assert outcome == (False, "the command ran longer than 0.5 s and was killed")
    assert time.monotonic() - began < 3
    child = int((tmp_path / "pid").read_text())
    wait_for(lambda: not _alive(child), "the command's child to end")


def test_command_whose_child_holds_its_output_does_not_wait_for_it(tmp_path: Path) -> None:
    began = time.monotonic()
    assert command("/bin/sh", "-c", f"sleep 60 & echo $! > {tmp_path}/pid") == (True, "exit code 0")
    assert time.monotonic() - began < 3
    child = int((tmp_path / "pid").read_text())
    wait_for(lambda: not _alive(child), "what the command left running to be ended with it")


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


class Short:
    """Sockets of a machine that is short of something."""

    def __init__(self, number: int, when: str) -> None:
        self.number, self.when = number, when

    @contextlib.contextmanager
    def open(self, kind: socket.SocketKind) -> Iterator[socket.socket]:
        if self.when == "open":
            raise OSError(self.number, os.strerror(self.number))
        with socket.socket(socket.AF_INET, kind | socket.SOCK_NONBLOCK) as opened:
            yield opened


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL, errno.EADDRINUSE, errno.ENOBUFS])
@pytest.mark.parametrize("kind", [ProbeType.TCP, ProbeType.HTTP, ProbeType.UDP])
def test_without_a_socket_the_probe_is_not_made(kind: ProbeType, number: int) -> None:
    answer = asyncio.run(ask(Probe(kind), HERE, 80, Short(number, "open")))
    assert (answer.success, answer.made) == (False, False)
    assert answer.reason == f"no socket for the probe: {os.strerror(number).lower()}"


@pytest.mark.parametrize(
    ("number", "made"),
    [
        (errno.EADDRNOTAVAIL, False),  # no local port is left
        (errno.ENOBUFS, False),
        (errno.ENOMEM, False),
        (errno.EPERM, False),  # this machine's own packet filter
        (errno.ECONNREFUSED, True),
        (errno.EHOSTUNREACH, True),
    ],
)
def test_a_connection_that_this_machine_does_not_begin_says_nothing_of_the_backend(
    number: int, made: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> ProbeAnswer:
        async def refuses(*_: object) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(asyncio.get_running_loop(), "sock_connect", refuses)
        return await ask(Probe(ProbeType.TCP), HERE, 80, Short(number, "later"))

    answer = asyncio.run(main())
    assert (answer.success, answer.made) == (False, made)


def test_without_descriptors_a_command_is_not_run_and_that_is_no_news() -> None:
    async def main() -> ProbeAnswer:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) - 1, hard))
        try:
            return await ask(Probe(ProbeType.COMMAND, command=("true",)), HERE, 0, PlainSockets(HERE))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    answer = asyncio.run(main())
    assert (answer.success, answer.made) == (False, False)
    assert "too many open files" in answer.reason
