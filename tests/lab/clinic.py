# SPDX-License-Identifier: Apache-2.0
"""A fleet that falls ill, for the labs of ``lb doctor``: the doctor is asked as an operator would, and obeyed.

:class:`Clinic` is a :class:`~tests.lab.fleet.Fleet` with small disks and a router that wants a password of mux2.
"""

from __future__ import annotations

import json
import os
import re
import ssl
import subprocess
import textwrap
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lb.model import BgpSettings, Probe, ProbeType
from tests.lab import netns
from tests.lab.fleet import UP, Fleet
from tests.lab.netns import LabError
from tests.lab.pace import allowed
from tests.lab.process import Process, in_namespace, wait_for
from tests.lab.routers import Neighbour, Routers
from tests.lab.topology import PROGRAMS, Node

PROBE = Probe(ProbeType.TCP, interval=0.5, timeout=0.5, rise=1, fall=2)
#: Until the doctor sees what a daemon or the manager learns by and by, seconds.
PATIENCE = 20.0
#: Who announces a VIP is told at once, and that it is one MUX alone once that has lasted three seconds, with others of
#: the kind: an event of it may come this late, seconds.
LASTED = 8.0

Finding = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Expected:
    """One cause, as the doctor must name it."""

    check: str
    words: tuple[str, ...]
    cause: str | None = None
    severity: str = "fault"

    def means(self, found: Finding) -> bool:
        return (
            (found["check"], found["severity"]) == (self.check, self.severity)
            and (self.cause is None or found["cause"] == self.cause)
            and all(word in found["what"] for word in self.words)
        )


@dataclass(frozen=True, slots=True)
class Truth:
    """What must be told of a service, of one of its backends or of a node, wherever an operator looks."""

    of: str  #: ``service web``, ``backend web/web-host1``, ``mux mux1`` or ``agent host1``
    is_so: Callable[[Mapping[str, Any]], bool]  #: of the row of ``lb get``
    event: str  #: a part of the text of an event
    on_page: Callable[[Mapping[str, Any]], bool] | None = (
        None  #: of the service's or node's row there, where that is another test
    )

    def missing(self, rows: Mapping[str, Sequence[Mapping[str, Any]]], page: Mapping[str, Any]) -> list[str]:
        """Where it is not told."""
        found = []
        kind, _, name = self.of.partition(" ")
        service, _, backend = name.partition("/")
        row = next(
            row
            for row in rows[_TABLES[kind]]
            if row["name"] == (backend or name) and (not backend or row["service"] == service)
        )
        if not self.is_so(row):
            found.append(f"lb get: {row}")
        shown = next(
            row for row in page[_ON_PAGE.get(kind, "services")] if row["name"] == (service if backend else name)
        )
        if not (self.on_page or self.is_so)(shown):
            found.append(f"page: {shown}")
        for where, events in (("lb get events", rows["events"]), ("page", page["events"])):
            if not any(self.event in f"{event['subject']} {event['text']}" for event in events):
                found.append(f"{where}: no event with {self.event!r}")
        return found


_TABLES = {"service": "services", "backend": "backends", "mux": "muxes", "agent": "agents"}
_ON_PAGE = {"mux": "muxes", "agent": "hosts"}


def is_ill(service: str, backend: str) -> Truth:
    """A backend, wherever one looks."""

    def shown(row: Mapping[str, Any]) -> bool:
        return bool(row["healthy"] < row["backends"])

    of = f"backend {service}/{backend}"
    return Truth(of, lambda row: row["state"] in ("down", "panic"), f"{of} up → ", shown)


def is_away(node: str) -> Truth:
    """A node, by its kind and name."""
    return Truth(node, lambda row: row["state"] in ("away", "gone"), f"{node} is not connected any more")


def announced_by(mux: str, service: str) -> Truth:
    """By this MUX alone."""
    return Truth(f"service {service}", lambda row: row["announced_by"] == [mux], f"announced by {mux} alone")


def serves_nobody(service: str, why: str) -> Truth:
    of = f"service {service}"
    return Truth(of, lambda row: row["state"] == "down" and why in str(row["note"]), f"{of} {why}")


@dataclass(frozen=True, slots=True)
class Row:
    """One fault, what was said of it, and what to do."""

    fault: str
    what: str
    remedy: str


class Clinic(Fleet):
    """A fleet with a router that wants a password of mux2, and a small disk for host3."""

    password = "right"  # noqa: S105

    def __init__(self) -> None:
        super().__init__(Routers.BIRD)
        self.seen: list[Row] = []

    def neighbours(self) -> list[Neighbour]:
        return [Neighbour(mux.name, str(mux.address), password=self._password_of(mux)) for mux in self.muxes]

    def _password_of(self, mux: Node) -> str | None:
        return self.password if mux.name == "mux2" else None

    def bgp_settings(self, mux: Node) -> BgpSettings | None:
        settings = super().bgp_settings(mux)
        assert settings is not None
        return replace(settings, peers=tuple(replace(p, password=self._password_of(mux)) for p in settings.peers))

    def _build(self) -> None:
        super()._build()
        for node, size in self._small_disks:
            node.state_dir.mkdir(parents=True, exist_ok=True)
            options = f"size={size},mode=700"
            subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", node.state_dir], check=True)

    def _remove(self) -> None:
        for node, _ in self._small_disks:
            subprocess.run(["umount", "-l", node.state_dir], check=False, capture_output=True)
        super()._remove()

    @property
    def _small_disks(self) -> list[tuple[Node, str]]:
        return [(self.hosts[2], "2m"), (self.manager, "64m")]

    # The doctor.

    def doctor(
        self,
        node: Node,
        *,
        env: Mapping[str, str] | None = None,
        through: Sequence[str] = (),
        config: Path | None = None,
    ) -> dict[str, Any]:
        """What it says on that machine; on the manager's, of the whole fleet as well."""
        environment = dict(self.environment if node is self.manager else os.environ) | dict(env or {})
        argv = [*through, str(PROGRAMS / "lb"), "doctor", "--config", str(config or node.config), "-o", "json"]
        done = subprocess.run(
            in_namespace(node.namespace, argv),
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            env=environment,
        )
        if done.returncode not in (0, 1):
            raise LabError(f"lb doctor on {node.name}: {done.stderr}")
        said: dict[str, Any] = json.loads(done.stdout)
        assert done.returncode == (said["faults"] > 0)
        return said

    def finds(self, node: Node, check: str, *words: str, **how: Any) -> Finding:
        """The fault, which it must name on that machine sooner or later, and nothing else that is wrong."""
        (found,) = self._comes_to_find(node, (Expected(check, words),), **how)
        return found

    def fleet_finds(self, *expected: Expected) -> list[Finding]:
        """What the fleet's doctor must come to say: of each cause one finding, and nothing else that is wrong."""
        return self._comes_to_find(self.manager, expected)

    def _comes_to_find(self, node: Node, expected: Sequence[Expected], **how: Any) -> list[Finding]:
        said: dict[str, Any] = {}
        settled: list[Finding] = []

        def look() -> bool:
            if said:
                time.sleep(0.5)  # what it did not see, daemons have yet to learn; asking costs them their time
            said.update(self.doctor(node, **how))
            wrong = _wrong(said)
            matches = [[found for found in wrong if one.means(found)] for one in expected]
            if len(wrong) != len(expected) or any(len(found) != 1 for found in matches):
                return False
            settled[:] = [found[0] for found in matches]
            return True

        try:
            wait_for(look, f"lb doctor on {node.name} to find just {expected}", allowed(PATIENCE))
        except LabError as error:
            everything = [f"{f['severity']} {f['check']} ({f['cause']}): {f['what']}" for f in _wrong(said)]
            raise AssertionError(f"{error}; it found {everything}") from None
        for finding in settled:
            assert finding["remedy"]
        return settled

    def well(self, *nodes: Node) -> list[dict[str, Any]]:
        """No fault anywhere, as soon as everybody has heard that it is over; what it says then."""

        wait_for(self._settled, "the fleet to be as it was", allowed(PATIENCE))

        def ask(node: Node) -> dict[str, Any]:
            said: dict[str, Any] = {}

            def look() -> bool:
                if said:
                    time.sleep(1)
                said.update(self.doctor(node))
                return not said["faults"]

            try:
                wait_for(look, f"no fault on {node.name}", allowed(PATIENCE))
            except LabError as error:
                raise AssertionError(f"{error}; it found {faults(said)}") from None
            return said

        with ThreadPoolExecutor(3) as asking:
            return list(asking.map(ask, nodes))

    def _settled(self) -> bool:
        """By the manager's word, which costs less than the doctor's."""
        sessions = [peer["state"] for row in self.ask("muxes") for peer in row["peers"]]
        services = [row["state"] for row in self.ask("services")]
        settled = len(sessions) == len(self.muxes) and set(sessions) == {"established"} and set(services) == {"up"}
        if not settled or self.connected() < len(self.nodes):
            time.sleep(0.2)
            return False
        return True

    def note(self, fault: str, finding: Finding) -> None:
        self.seen.append(Row(fault, finding["what"], finding["remedy"]))

    def do(self, node: Node, finding: Finding) -> None:
        """The first command that the remedy names, as it stands there."""
        self.in_node(node, *command(finding).split())

    # The whole fleet.

    def page(self) -> dict[str, Any]:
        """What the web page reads."""
        context = ssl.create_default_context(cafile=self.environment["LB_CA"])
        context.check_hostname = False

        def read() -> dict[str, Any]:
            with urllib.request.urlopen("https://10.0.1.9:9744/v1/page", timeout=10, context=context) as answer:
                whole: dict[str, Any] = json.load(answer)
                return whole

        return netns.inside(self.manager.namespace, read)

    def last_event(self) -> int:
        """The number of the newest."""
        return max((event["id"] for event in self.ask("events")), default=0)

    def all_say(self, after: int, *truths: Truth, seconds: float = 5.0) -> None:
        """``lb get``, the page and the events ``after`` this one tell the same of each within five seconds; more where
        what is told has to come about first."""

        def untold() -> list[str]:
            rows = {what: self.ask(what) for what in ("events", *_TABLES.values())}
            page = self.page()
            for said in (rows, page):
                said["events"] = [event for event in said["events"] if event["id"] > after]
            return [told for one in truths for told in one.missing(rows, page)]

        missing: list[str] = []

        def look() -> bool:
            missing[:] = untold()
            if missing:
                time.sleep(0.1)
            return not missing

        try:
            wait_for(look, "lb get, page and events to tell the truth", allowed(seconds))
        except LabError as error:
            raise AssertionError(f"{error}: {missing}") from None

    def all_is_said_to_be_well(self, after: int) -> None:
        """What nobody but the doctor can see: ``lb get``, page and events ``after`` this one tell of nothing."""
        assert {row["state"] for row in self.ask("services")} == {"up"}
        assert {row["state"] for what in ("muxes", "agents") for row in self.ask(what)} == {"ready"}
        assert self.page()["summary"]["problems"] == []
        assert [event for event in self.ask("events") if event["id"] > after and event["bad"]] == []

    # The machines.

    def in_node(self, node: Node | str, *argv: str | Path, stdin: str | None = None) -> str:
        namespace = node if isinstance(node, str) else node.namespace
        done = subprocess.run(in_namespace(namespace, argv), input=stdin, capture_output=True, text=True, check=False)
        if done.returncode:
            raise LabError(f"{' '.join(map(str, argv))}: {done.stderr}")
        return done.stdout

    def stop(self, node: Node) -> None:
        kind = "mux" if node in self.muxes else "agent"
        assert node.processes[kind].stop() == 0

    def start_daemon(self, node: Node, *arguments: str, env: Mapping[str, str] | None = None) -> Process:
        kind = "mux" if node in self.muxes else "agent"
        argv: list[str | Path] = [PROGRAMS / f"lb-{kind}", "--config", node.config, *arguments]
        process = Process(f"lb-{kind} on {node.name}", node.namespace, argv, node.directory / f"lb-{kind}.log", env)
        node.processes[kind] = process
        process.wait_output(UP, 30)
        return process


def command(finding: Finding, number: int = 0) -> str:
    """The command that the remedy names, as it stands there."""
    found: list[str] = re.findall(r"`([^`]+)`", finding["remedy"])
    return found[number]


def _wrong(said: Mapping[str, Any]) -> list[Finding]:
    """Faults and warnings; not of this machine's own clock, which is as it is."""
    found = said.get("findings", ())
    return [one for one in found if one["severity"] in ("fault", "warning") and one["check"] != "ntp"]


def faults(said: Mapping[str, Any]) -> list[str]:
    return [f"{f['check']}: {f['what']}" for f in said.get("findings", ()) if f["severity"] == "fault"]


def table(rows: Sequence[Row]) -> str:
    """Fault, sentence, remedy."""
    lines = ["", f"{len(rows)} faults, what lb doctor says of each, and what to do", ""]
    for row in rows:
        lines.append(row.fault)
        for label, text in (("  says: ", row.what), ("  do:   ", row.remedy)):
            lines += textwrap.wrap(text, 110, initial_indent=label, subsequent_indent=" " * 8, break_on_hyphens=False)
    return "\n".join(lines)
