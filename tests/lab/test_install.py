# SPDX-License-Identifier: Apache-2.0
"""docs/install.md, followed literally on fresh Debian 12 machines: from the test of protocol 4 to the first request.

The commands, the files and what should be seen after them are read from the page (:mod:`tests.lab.page`); machines are
whole Debians (:mod:`tests.lab.machine`) in the namespaces of a fleet, whose addresses are those of the page. Systemd is
played. What is the same on every machine is done on one, of which the others are copies. What a reader puts in the
place of the page's values stands in :data:`OTHERS`; seed and tokens are those that the page's own commands print.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from deploy.bundle import make
from tests.lab import debian, page
from tests.lab.debian import Debian, UnavailableError
from tests.lab.environments import ROOT, build_wheel
from tests.lab.fleet import Fleet
from tests.lab.machine import Machine, Shelf
from tests.lab.page import Block
from tests.lab.process import in_namespace, wait_for
from tests.lab.routers import Routers

pytestmark = pytest.mark.lab

PAGE = (ROOT / "docs" / "install.md").read_text()
BLOCKS = list(page.blocks(PAGE))

#: Which machines a block is for.
ROLES = {
    "mux": ("mux1", "mux2"),
    "host": ("host1", "host2"),
    "manager": ("manager1",),
    "router-bird": ("router",),
    "router-frr": ("router",),
}
#: What "on mux2 … are others" means.
OTHERS = {
    "mux2": {'name = "mux1"': 'name = "mux2"', '"10.0.1.11"': '"10.0.1.12"'},
    "host2": {'name = "host1"': 'name = "host2"', '"10.0.3.21"': '"10.0.3.22"'},
}
#: Most keys of all sysctl files belong to the whole machine, which is the one that the lab runs on: of ours alone those
#: that a namespace has.
FOR_NAMESPACES = {"sysctl --system": "sysctl --ignore --load /etc/sysctl.d/90-vipmux-*.conf"}
#: Every one of them has this, by the middle of the page.
BUNDLE = ("vipmux-0.2.0-bundle.tar", "vipmux-0.2.0-bundle.tar.sha256")
#: How long what should be seen may take to be true, seconds.
PATIENCE = 60.0


@dataclass(frozen=True, slots=True)
class Ground:
    """What machines stand on; ``given`` is what one carries to them."""

    fleet: Fleet
    debian: Debian
    shelf: Shelf
    given: Path

    def machine(self, name: str, image: Path | None = None) -> Machine:
        fleet = self.fleet
        spaces = {node.name: node.namespace for node in fleet.nodes}
        spaces |= {"manager1": fleet.manager.namespace, "router": fleet.router}
        return Machine(name, spaces[name], self.debian, shelf=self.shelf, given=self.given, image=image)


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    wheel = build_wheel(tmp_path_factory.mktemp("wheel"))
    given = tmp_path_factory.mktemp("install") / "given"
    try:
        fresh = debian.fresh(page.packages(PAGE))
        make(wheel, given)
    except UnavailableError as error:
        pytest.skip(str(error))
    except subprocess.CalledProcessError as error:
        pytest.skip(f"the packages of the archive cannot be had: {error.stderr.strip()[-300:]}")
    with Fleet(Routers.STATIC, muxes=2, hosts=2) as fleet:
        shelf = Shelf(fleet.directory / "shelf")
        try:
            yield Ground(fleet, fresh, shelf, given)
        finally:
            shelf.close()


@pytest.fixture(scope="module")
def installed(ground: Ground) -> Path:
    """The layer of a machine that followed what is for all of them."""
    machine = ground.machine("manager1")
    try:
        carry(machine)
        printed = ""
        for block in BLOCKS:
            if block.where == "all" and block.kind == "sh":
                printed = machine.run(block.text)
            elif block.where == "all":
                assert page.unseen(block.text, printed) is None, printed
        # What the page made links to, and does not look at.
        machine.run(
            "test -s /usr/local/share/man/man1/lb-get.1 -a -s /usr/local/share/man/man8/lb-mux.8\n"
            "bash -ec '. /usr/local/share/bash-completion/completions/lb && complete -p lb'"
        )
    finally:
        machine.stop()
    return machine.layer


def carry(machine: Machine) -> None:
    """As ``scp`` would."""
    machine.run("\n".join(f"cp /mnt/given/{name} ." for name in BUNDLE))


def together(work: Callable[[Machine], str], machines: Sequence[Machine]) -> list[str]:
    """What each of them printed."""
    with ThreadPoolExecutor(len(machines)) as threads:
        return list(threads.map(work, machines))


def test_the_test_of_protocol_4_is_seen_on_the_other_machine(ground: Ground) -> None:
    mine = [block for block in BLOCKS if block.where in ("mux1", "host1")]
    assert [(block.where, block.kind) for block in mine] == [("host1", "sh"), ("mux1", "sh"), ("host1", "text")]
    waits, sends, seen = mine
    machines = [ground.machine(name) for name in ("host1", "mux1")]
    receiver, sender = machines
    try:
        receiver.run(waits.text, background=True)
        *before, probe = sends.text.splitlines()
        sender.run("\n".join(before))
        wait_for(lambda: "listening on eth0" in receiver.said(), "tcpdump to listen", 3 * PATIENCE)
        sender.run(probe)
        printed = receiver.finished()
        assert page.unseen(seen.text, printed) is None, printed
    finally:
        for machine in machines:
            machine.stop()


@pytest.mark.parametrize("router", ["bird", "frr"])
def test_whoever_follows_the_page_has_a_first_answer(router: str, ground: Ground, installed: Path) -> None:
    reader = Reader(ground, installed, router)
    try:
        reader.follow()
        undone = reader.put_back()
    finally:
        reader.stop()
    assert reader.answers == {"host1", "host2"}
    assert undone == []


class Reader:
    """Somebody who does what the page says, block by block, after the part for all machines."""

    def __init__(self, ground: Ground, installed: Path, router: str) -> None:
        self._fleet = ground.fleet
        self._router = f"router-{router}"
        self._machines: dict[str, Machine] = {}
        self.answers: set[str] = set()
        self._seed = ""
        self._tokens: dict[str, str] = {}
        self._asked: dict[str, Callable[[], str]] = {}  # what was printed, or is when it is asked again
        try:
            self._machines["router"] = ground.machine("router")
            carry(self._machines["router"])
            for name in ("manager1", "mux1", "mux2", "host1", "host2"):
                self._machines[name] = ground.machine(name, installed)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        for machine in self._machines.values():
            machine.stop()

    def put_back(self) -> list[str]:
        """What the daemons had to put back into a kernel that nobody else changes."""
        logs = [self._machines[name].journal(f"lb-{kind}") for kind in ("mux", "agent") for name in self._machines]
        return [line for log in logs for line in log.splitlines() if 'event="put back"' in line]

    def follow(self) -> None:
        """All of it; each step must end as the page says."""
        steps = {"sh": self._command, "toml": self._file, "text": self._look}
        done = set()
        for block in BLOCKS:
            if block.where in ("all", "mux1", "host1") or block.where.startswith("router-") != (
                block.where == self._router
            ):
                continue
            steps[block.kind](block)
            done.add(block.where)
        assert done == {self._router, "manager", "mux", "host", "client"}

    def _for(self, block: Block) -> list[Machine]:
        return [self._machines[name] for name in ROLES[block.where]]

    def _values(self, machine: Machine) -> dict[str, str]:
        """What this reader puts in the place of the page's."""
        values = {**OTHERS.get(machine.name, {}), **FOR_NAMESPACES}
        if self._seed:
            values["00112233445566778899aabbccddeeff"] = self._seed
        if machine.name in self._tokens:
            values["TOKEN'"] = f"{self._tokens[machine.name]}'"
        return values

    def _command(self, block: Block) -> None:
        if block.where == "client":
            self._asked = {"client": lambda: self._ask_as_client(block.text)}
            return
        self._asked = {}

        def run(machine: Machine) -> str:
            return machine.run(page.put(block.text, self._values(machine)), background=block.goes_on)

        machines = self._for(block)
        for machine, printed in zip(machines, together(run, machines), strict=True):
            self._asked[machine.name] = self._again(machine, block, printed)
            self._remember(block.text, printed)

    @staticmethod
    def _again(machine: Machine, block: Block, printed: str) -> Callable[[], str]:
        """What it printed; of commands that only look, what they print when they are asked again."""
        looks = [line for line in block.text.splitlines() if line.startswith(("systemctl status ", "lb get "))]
        first = True

        def ask() -> str:
            nonlocal first
            if first or not looks:
                first = False
                return printed
            return printed + machine.run("\n".join(looks))

        return ask

    def _remember(self, text: str, printed: str) -> None:
        """The seed, and the tokens in the order of their commands."""
        names = re.findall(r"lb-manager token .*--name (\w+)$", text, re.M)
        if names:
            self._tokens = dict(zip(names, re.findall(r"^lb1\S+$", printed, re.M), strict=True))
            (self._seed,) = re.findall(r"^[0-9a-f]{32}$", printed, re.M)

    def _file(self, block: Block) -> None:
        assert block.path is not None
        for machine in self._for(block):
            file = machine.root / block.path.lstrip("/")
            file.write_text(page.put(block.text, self._values(machine)))

    def _look(self, block: Block) -> None:
        for name, ask in self._asked.items():
            last = ""

            def seen(ask: Callable[[], str] = ask) -> bool:
                nonlocal last
                last = ask()
                return page.unseen(block.text, last) is None

            try:
                wait_for(seen, "", PATIENCE)
            except Exception:
                pytest.fail(
                    f"{name}: {page.unseen(block.text, last)!r} is not in what it prints:\n{last}{self._logs(name)}"
                )

    def _logs(self, name: str) -> str:
        machine = self._machines.get(name)
        return "" if machine is None else f"{machine.last_words()}\n--- {name}: terminal: {machine.said()[-1000:]}"

    def _ask_as_client(self, command: str) -> str:
        """Until both hosts have answered."""
        done = subprocess.run(
            in_namespace(self._fleet.client, ["sh", "-c", command]), capture_output=True, text=True, check=False
        )
        if done.returncode == 0:
            self.answers.add(done.stdout.strip())
        return done.stdout if len(self.answers) == len(ROLES["host"]) else ""


def test_every_block_is_for_a_machine_that_there_is() -> None:
    known = {*ROLES, "all", "client", "mux1", "host1"}
    assert {block.where for block in BLOCKS} <= known
    assert shutil.which("curl") is not None  # the client's
