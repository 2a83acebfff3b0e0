# SPDX-License-Identifier: Apache-2.0
"""Steady UDP load through the lab, in numbered windows, with every packet and every flow accounted for.

Called by the tests. The sender and the sinks are ``tools/udp.c``, compiled into the lab's directory.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.lab.netns import LabError
from tests.lab.process import Process
from tests.lab.topology import CLIENT, Lab

SOURCE = Path(__file__).parent / "tools" / "udp.c"


@dataclass(frozen=True, slots=True)
class Account:
    """What was sent and what arrived, by window."""

    sent: tuple[int, ...]
    received: tuple[int, ...]
    socket_drops: int  #: lost at a backend's own socket, which is no fault of the path
    flows_on_two_hosts: int  #: flows that were re-hashed while they lived

    def lost(self, window: int) -> int:
        return self.sent[window] - self.received[window]


class UdpLoad:
    """UDP from the client to ``vip:port``, counted on every host."""

    def __init__(
        self, lab: Lab, vip: str, port: int, *, flows: int, pps: int, windows: int, window_ms: int = 1000
    ) -> None:
        self._lab = lab
        self._windows = windows
        self._seconds = windows * window_ms / 1000
        tool = lab.directory / "udp"
        if not tool.exists():
            subprocess.run(["gcc", "-O2", "-Wall", "-Werror", "-o", tool, SOURCE], check=True)
        self._sinks = [
            Process(
                f"udp sink on {host.name}", host.namespace, [tool, "sink", str(port), str(flows), str(windows)],
                host.directory / "sink.log",
            )
            for host in lab.hosts
        ]  # fmt: skip
        for process in self._sinks:
            process.wait_output("^listening")
        numbers = map(str, (port, flows, pps, windows, window_ms))
        argv: list[str | Path] = ["nice", "-n", "-15", tool, "send", str(CLIENT), vip, *numbers]
        self._sender = Process("udp sender", lab.client, argv, lab.directory / "sender.log")

    def windows(self) -> Iterator[int]:
        """The number of each window, as it begins."""
        for number in range(self._windows):
            self._sender.wait_output(rf"^window {number}$", self._seconds + 10)
            yield number

    def account(self) -> Account:
        """Waits for the end, then counts."""
        code = self._sender.wait(self._seconds + 20)
        if code:
            raise LabError(f"the udp sender ended with {code}: {self._sender.output()}")
        sent = tuple(map(int, self._sender.wait_output(r"^sent (.*)$")[1].split()))
        outputs = []
        for sink in self._sinks:
            sink.stop()
            outputs.append(sink.output())
        received = [tuple(map(int, _line("received", output).split())) for output in outputs]
        seen = [int.from_bytes(bytes.fromhex(_line("flows", output)), "little") for output in outputs]
        twice = 0
        for first in range(len(seen)):
            for second in range(first):
                twice |= seen[first] & seen[second]
        return Account(
            sent,
            tuple(map(sum, zip(*received, strict=True))),
            sum(int(_line("drops", output)) for output in outputs),
            twice.bit_count(),
        )

    def close(self) -> None:
        for process in [self._sender, *self._sinks]:
            if process.running:
                process.kill()


def _line(word: str, output: str) -> str:
    found = re.search(rf"^{word} (.*)$", output, re.MULTILINE)
    if not found:
        raise LabError(f"the udp sink did not print its {word}: {output}")
    return found[1]
