# SPDX-License-Identifier: Apache-2.0
"""Flow tables that outlive their process: the next one goes on with them, whatever was changed meanwhile.

Every flow here is one that its backends have left behind: only its entry says where it goes.
"""

from __future__ import annotations

import resource
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lb.dataplane import LinkHeader
from lb.dataplane.compile.compiler import Compiler
from lb.model import MuxSettings, Service
from lb.mux.workers.engine import Engine
from lb.mux.workers.kept_flows import KEPT_SECONDS, MEMORY, KeptFlows, directory_of, remove_orphans
from tests.lb.mux.workers.test_flow_sync import CLIENTS, DRAIN, UP
from tests.native.test_flow_table_scan import services
from tests.native.test_pipeline import SMALL
from tests.packets.build import ipv4, tcp

SECOND = 10**9
#: Where the layout's number is in the last page of a file; see struct title in native/flow/kept_table.c.
LAYOUT_AT = 24


@pytest.fixture
def state_dir(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    shutil.rmtree(directory_of(tmp_path), ignore_errors=True)


class Process:
    """An engine as one process has it; its pipelines are fed by hand. Nothing is done when it dies."""

    def __init__(
        self,
        state_dir: Path,
        told: tuple[Service, ...],
        settings: MuxSettings = SMALL,
        *,
        workers: int = 1,
        at: float = 0,
    ) -> None:
        """``at``: when it is and stays, by the clock that all processes have in common."""
        self.settings = replace(settings, flows=1000, workers=workers)
        self.compiler = Compiler(self.settings)
        kept = KeptFlows.open(state_dir, self.settings.seed)
        assert kept is not None
        kept._clock = lambda: at
        kept._clock = lambda: at
        self.kept = kept
        self.elders = kept.begin(self.compiler)
        forwarding = self.compiler.compile(told)
        self.engine = Engine(self.settings, LinkHeader.NONE, forwarding, kept=kept, elders=self.elders)
        self.compiler.follow(self.engine)
        self.now = 0
        self.engine._now = lambda: self.now  # type: ignore[method-assign]
        self.engine.resize(workers)  # as the first worker's start does

    def publish(self, told: tuple[Service, ...]) -> None:
        self.engine.publish(self.compiler.compile(told), {})

    def went(self, flags: str, now: float, clients: Iterable[int] = CLIENTS, worker: int = 0) -> list[str | None]:
        """Where the packets of these clients go; ``now`` in seconds."""
        self.now = int(now * SECOND)
        rows = [(packet := ipv4(tcp(flags, sport=client)), len(packet), self.now) for client in clients]
        found = self.engine._pipelines[worker].process(self.engine.forwarding.offline_snapshot(), rows)
        return [self.engine.forwarding.names(result.service_id, result.backend)[1] for result in found]

    def live(self) -> int:
        return self.engine._live()

    def files(self) -> list[str]:
        return sorted(path.name for path in self.kept.directory.glob("table-*"))


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """What the log has since it was asked last."""
    return "".join(capsys.readouterr())


def known(process: Process, now: float = 1) -> list[str | None]:
    """Flows that Maglev would now send elsewhere in part, and where they go."""
    went = process.went("S", now)
    assert process.went("A", now + 1) == went
    process.publish(services(UP, UP, UP, UP))
    return went


@pytest.mark.parametrize("workers", [1, 3], ids=["as many workers", "more workers"])
@pytest.mark.parametrize("inherited", [False, True], ids=["at once", "when all was taken over"])
def test_who_is_killed_goes_on_with_what_it_knew(state_dir: Path, workers: int, inherited: bool) -> None:
    first = Process(state_dir, services(UP, UP))
    went = known(first)
    again = Process(state_dir, services(UP, UP, UP, UP), workers=workers)
    assert len(again.elders) == 1
    if inherited:
        again.now = 3 * SECOND
        assert again.engine.inherit() == len(went)
        assert again.live() == len(went)
        assert len(again.files()) == workers, "what the first left is removed"
        assert (again.engine._strange_until is None) == (workers == 1), "who is alone need not ask, nor be asked"
    for worker in range(workers):
        clients = [client for client in CLIENTS if client % workers == worker]
        assert again.went("A", 4, clients, worker) == [went[client - 1] for client in clients]
    assert again.went("S", 5, range(5000, 5400)) == Process(state_dir, services(UP, UP, UP, UP)).went(
        "S", 5, range(5000, 5400)
    )


def test_who_dies_again_before_it_took_all_over_still_leaves_all(state_dir: Path) -> None:
    went = known(Process(state_dir, services(UP, UP)))
    second = Process(state_dir, services(UP, UP, UP, UP))
    half = CLIENTS[: len(CLIENTS) // 2]
    assert second.went("A", 3, half) == went[: len(half)]
    third = Process(state_dir, services(UP, UP, UP, UP))
    assert len(third.elders) == 2
    third.now = 4 * SECOND
    third.engine.inherit()
    assert third.went("A", 4) == went


def test_who_left_meanwhile_comes_back_to_the_number_that_it_had(state_dir: Path) -> None:
    """Else entries of before would mean somebody else."""
    went = known(Process(state_dir, services(UP, UP)))
    gone = tuple(replace(service, backends=service.backends[2:]) for service in services(UP, UP, UP, UP))
    second = Process(state_dir, gone)
    assert set(second.went("S", 3, range(5000, 5400))) <= {b.name for service in gone for b in service.backends}
    second.publish(services(UP, UP, UP, UP))
    assert second.went("A", 4) == went


def test_what_changes_after_a_restart_is_known_to_the_next(state_dir: Path) -> None:
    known(Process(state_dir, services(UP, UP)))
    second = Process(state_dir, services(UP, UP, UP, UP))
    second.publish(services(UP, UP, UP, UP, UP))
    went = second.went("S", 5, range(5000, 5400))
    second.went("A", 6, range(5000, 5400))
    second.publish(services(DRAIN, DRAIN, DRAIN, DRAIN, DRAIN, UP))
    third = Process(state_dir, services(DRAIN, DRAIN, DRAIN, DRAIN, DRAIN, UP))
    assert third.went("A", 7, range(5000, 5400)) == went


def test_another_seed_or_layout_or_half_a_file_is_refused_by_name(
    state_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known(Process(state_dir, services(UP, UP)))
    assert not Process(state_dir, services(UP, UP), replace(SMALL, seed=bytes(16))).elders
    assert "the pool's seed is another one now" in said(capsys)
    for mend, reason in ((_other_layout, "another version made it"), (_cut, "it is not whole")):
        first = Process(state_dir, services(UP, UP), replace(SMALL, seed=bytes(16)))
        for name in first.files():
            mend(first.kept.directory / name)
        again = Process(state_dir, services(UP, UP), replace(SMALL, seed=bytes(16)))
        assert not again.elders
        assert reason in said(capsys)
        assert again.went("S", 1) == again.went("A", 2), "and it serves"


def _other_layout(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(path.stat().st_size - 4096 + LAYOUT_AT)
        file.write(b"\xff")


def _cut(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 8192)


def test_who_was_away_for_long_forgets_for_others_know_better(
    state_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known(Process(state_dir, services(UP, UP), at=1000))
    assert len(Process(state_dir, services(UP, UP), at=1000 + KEPT_SECONDS).elders) == 1
    late = Process(state_dir, services(UP, UP), at=1001 + 2 * KEPT_SECONDS)
    assert not late.elders
    assert len(late.files()) == 1
    assert "kept flows are too old" in said(capsys)
    late.kept._clock = lambda: 5000
    late.engine.tend()
    assert len(Process(state_dir, services(UP, UP), at=5001).elders) == 1, "who lives says so"
    (late.kept.directory / "beat").write_bytes(b"")
    assert not Process(state_dir, services(UP, UP), at=5002).elders


def test_tables_without_their_numbers_are_not_believed(state_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for spoil in (lambda path: path.unlink(), lambda path: path.write_text("nonsense\n")):
        first = Process(state_dir, services(UP, UP))
        spoil(first.kept.directory / "numbers")
        again = Process(state_dir, services(UP, UP))
        assert not again.elders
        assert "kept flows refused" in said(capsys)


def test_a_directory_of_somebody_else_is_not_used(state_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = directory_of(state_dir)
    directory.mkdir(mode=0o777)
    directory.chmod(0o777)
    assert KeptFlows.open(state_dir, SMALL.seed) is None
    assert "can be written by others" in said(capsys)


def test_a_link_to_elsewhere_is_not_followed(state_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    elsewhere = state_dir / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    directory_of(state_dir).symlink_to(elsewhere)
    try:
        assert KeptFlows.open(state_dir, SMALL.seed) is None
    finally:
        directory_of(state_dir).unlink()
    assert "is a symbolic link" in said(capsys)
    assert not list(elsewhere.iterdir())


def test_memory_that_is_full_is_no_reason_not_to_forward(state_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, before[1]))
    try:
        process = Process(state_dir, services(UP, UP))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "a restart forgets them" in (text := said(capsys))
    assert "large" in text
    assert process.went("S", 1) == process.went("A", 2)
    assert process.files() == []
    assert not Process(state_dir, services(UP, UP)).elders


def test_what_belongs_to_no_state_directory_any_more_is_removed(tmp_path: Path) -> None:
    memory, mine, gone = tmp_path / "shm", tmp_path / "mine", tmp_path / "gone"
    for directory in (memory, mine, gone):
        directory.mkdir()
    for state_dir in (mine, gone):
        assert KeptFlows.open(state_dir, SMALL.seed, memory) is not None
    gone.rmdir()
    remove_orphans(memory)
    assert [path.name for path in memory.iterdir()] == [directory_of(mine, memory).name]


def test_the_kernel_gives_such_memory() -> None:
    assert MEMORY.is_dir()
