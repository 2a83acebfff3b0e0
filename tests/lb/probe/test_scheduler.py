# SPDX-License-Identifier: Apache-2.0
"""When probes run: at once, apart from one another, never twice at a time, and each for all who want it."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from structlog.testing import capture_logs

from lb.model import Probe, ProbeType
from lb.probe.scheduler import Scheduler, spread
from lb.probe.state import ProbeAnswer, ProbeHealth, Say


def probe(interval: float = 2.0, timeout: float = 1.0, **more: Any) -> Probe:
    return Probe(ProbeType.TCP, interval=interval, timeout=timeout, **more)


class Target:
    """Answers probes as told, on a loop whose clock is the test's: no test waits."""

    def __init__(self, takes: float = 0.0) -> None:
        self.takes = takes
        self.well = True
        self.silent = False
        self.made = True
        self.starts: dict[str, list[float]] = {}
        self.said: list[tuple[str, Say]] = []
        self.now, self.most = 0, 0

    async def ask(self, key: str) -> ProbeAnswer:
        self.starts.setdefault(key, []).append(asyncio.get_running_loop().time())
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await asyncio.sleep(self.takes)
        finally:
            self.now -= 1
        if not self.made:
            return ProbeAnswer(False, "no socket", made=False)
        return ProbeAnswer(self.well, "well" if self.well else "ill", self.silent)

    def say(self, key: str, say: Say) -> None:
        self.said.append((key, say))

    def scheduler(self, **more: Any) -> Scheduler[str]:
        return Scheduler(self.ask, self.say, chance=random.Random(1), wall=lambda: 1e9, **more)


class Clock(asyncio.SelectorEventLoop):
    """Time passes when nothing else is left to do."""

    def __init__(self) -> None:
        super().__init__()
        self._elapsed = 0.0

    def time(self) -> float:
        return self._elapsed

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:  # type: ignore[attr-defined]
            self._elapsed = max(self._elapsed, self._scheduled[0].when())  # type: ignore[attr-defined]
        super()._run_once()  # type: ignore[misc]


def want(probes: Scheduler[str], *keys: str, of: Probe | None = None) -> None:
    for key in keys:
        probes.want(key, of or probe())


def play(story: Callable[[], Coroutine[Any, Any, None]]) -> None:
    with asyncio.Runner(loop_factory=Clock) as runner:
        runner.run(story())


def test_first_probe_is_immediate_and_one_success_is_said() -> None:
    async def story() -> None:
        target = Target()
        probes = target.scheduler()
        want(probes, "a")
        await asyncio.sleep(0.1)
        assert target.starts == {"a": [0.0]}
        assert target.said == [("a", Say(ProbeHealth.UP, "well", changed=True))]
        assert probes.since("a") == 1e9
        await probes.close()

    play(story)


def test_interval_is_shortened_by_up_to_a_fifth_and_never_lengthened() -> None:
    async def story() -> None:
        target = Target(takes=0.5)
        probes = target.scheduler()
        want(probes, "a")
        await asyncio.sleep(400)
        starts = target.starts["a"][1:]
        gaps = [later - earlier for earlier, later in itertools.pairwise(starts)]
        assert 1.6 <= min(gaps) < 1.65
        assert 1.95 < max(gaps) <= 2.0
        await probes.close()

    play(story)


def test_probes_that_begin_together_drift_apart() -> None:
    async def story() -> None:
        target = Target()
        probes = target.scheduler()
        want(probes, *map(str, range(1000)))
        await asyncio.sleep(20)
        starts = [at for key in target.starts for at in target.starts[key] if at >= 18]
        per_tenth = [sum(1 for at in starts if n / 10 <= at - 18 < (n + 1) / 10) for n in range(20)]
        assert max(per_tenth) < 2 * 1000 / 18  # twice the mean
        await probes.close()

    play(story)


def test_a_failure_is_found_within_interval_times_fall_plus_timeout() -> None:
    async def story() -> None:
        target = Target()
        probes = target.scheduler()
        want(probes, "a", of=probe(fall=3))
        await asyncio.sleep(11)
        target.well, target.takes = False, 1.0
        await asyncio.sleep(2.0 * 3 + 1.0)
        assert probes.state("a").health is ProbeHealth.DOWN
        await probes.close()

    play(story)


@pytest.mark.parametrize("asked", [probe(), probe(0.5, 0.5, rise=2, fall=2), probe(1.0, 3.0, rise=1, fall=4)], ids=str)
@pytest.mark.parametrize("takes", [0.0, 1.0], ids=["refused", "timed out"])
def test_several_that_ask_the_same_find_a_change_within_the_spread(asked: Probe, takes: float) -> None:
    async def story() -> None:
        target = Target()
        heard: list[float] = []

        def say(key: str, said: Say) -> None:
            if said.changed:
                heard.append(asyncio.get_running_loop().time())

        probers = [Scheduler(target.ask, say, chance=random.Random(seed)) for seed in range(20)]
        for prober in probers:
            want(prober, "a", of=asked)
        for well in (False, True):
            await asyncio.sleep(61)
            heard.clear()
            target.well, target.takes = well, 0.0 if well else takes * asked.timeout
            await asyncio.sleep(61)
            assert len(heard) == len(probers)
            assert 0 < heard[-1] - heard[0] <= spread(asked)
        for prober in probers:
            await prober.close()

    play(story)


def test_a_probe_never_runs_twice_at_a_time_and_a_slow_one_delays_only_itself() -> None:
    async def story() -> None:
        target = Target(takes=5.0)
        probes = target.scheduler()
        want(probes, "slow")
        await asyncio.sleep(100)
        assert target.most == 1
        assert len(target.starts["slow"]) == 20
        await probes.close()

    play(story)


def test_how_long_the_last_one_took_is_known_of_those_that_were_made() -> None:
    async def story() -> None:
        target = Target(takes=0.25)
        probes = target.scheduler()
        assert probes.took("a") is None
        want(probes, "a")
        await asyncio.sleep(1)
        assert probes.took("a") == pytest.approx(0.25)
        target.made, target.takes = False, 0.1
        await asyncio.sleep(4)
        assert probes.took("a") == pytest.approx(0.25), "one that could not be made took nothing"
        await probes.close()

    play(story)


def test_no_more_start_than_the_rate_and_no_more_run_than_allowed() -> None:
    async def story() -> None:
        target = Target(takes=0.9)
        probes = target.scheduler(rate=100.0, at_once=50)
        want(probes, *map(str, range(500)))
        await asyncio.sleep(30)
        assert target.most == 50
        starts = sorted(at for starts in target.starts.values() for at in starts)
        assert len(starts) <= 30 * 100 + 1
        assert len(target.starts) == 500
        assert probes.overload == pytest.approx(2.5)
        await probes.close()

    play(story)


def test_what_goes_on_is_kept_what_is_dropped_ends_and_what_is_new_begins() -> None:
    async def story() -> None:
        target = Target()
        probes = target.scheduler()
        want(probes, "old", "kept")
        await asyncio.sleep(1)
        probes.drop("old")
        want(probes, "kept", "new")
        at = asyncio.get_running_loop().time()
        await asyncio.sleep(5)
        assert max(target.starts["old"]) < at
        assert target.starts["new"][0] - at < 0.01
        assert len(target.starts["kept"]) >= 3
        assert [key for key, _ in target.said] == ["old", "kept", "new"]
        assert len(probes) == 2
        assert probes.state("old").health is ProbeHealth.UNKNOWN
        await probes.close()

    play(story)


def test_silence_while_this_process_stood_still_says_nothing_of_the_backend() -> None:
    async def story() -> None:
        target = Target()
        probes = target.scheduler()
        want(probes, "a")
        await asyncio.sleep(1)
        target.well, target.silent, target.takes = False, True, 1.5  # its timeout is 1.0
        await asyncio.sleep(60)
        assert len(target.starts["a"]) > 20
        assert probes.state("a").health is ProbeHealth.UP
        target.takes = 1.0
        await asyncio.sleep(10)
        assert probes.state("a").health is ProbeHealth.DOWN
        await probes.close()

    play(story)


def test_a_programming_error_in_a_probe_is_said_and_no_news_and_others_are_asked_on() -> None:
    async def story() -> None:
        target = Target()

        async def ask(key: str) -> ProbeAnswer:
            if key == "odd":
                raise ZeroDivisionError("odd")
            return await target.ask(key)

        probes: Scheduler[str] = Scheduler(ask, target.say)
        want(probes, "odd", "a")
        await asyncio.sleep(60)
        assert probes.state("odd").health is ProbeHealth.UNKNOWN
        assert probes.unmade("odd") == "ZeroDivisionError: odd"
        assert len(target.starts["a"]) > 20
        await probes.close()

    with capture_logs() as logs:
        play(story)
    assert [line["event"] for line in logs] == ["probe failed by itself", "probes not made"]
    assert "exc_info" in logs[0]


def test_what_could_not_be_asked_is_no_news_and_is_said_once_and_counted() -> None:
    counted = []

    async def story() -> None:
        target = Target()
        probes = target.scheduler(count_unmade=lambda: counted.append(1))
        want(probes, "up", "down", "gone")
        await asyncio.sleep(1)
        target.well = False
        await asyncio.sleep(20)
        target.well = True
        await asyncio.sleep(20)
        said = len(target.said)
        target.made = False
        await asyncio.sleep(600)
        assert len(target.said) == said, "nobody is up or down for it"
        assert all(probes.state(key).health is ProbeHealth.UP for key in ("up", "down", "gone"))
        assert probes.unmade("up") == "no socket"
        probes.drop("gone")
        target.made = True
        await asyncio.sleep(10)
        assert probes.unmade("up") is None
        await probes.close()

    with capture_logs() as logs:
        play(story)
    assert [line["event"] for line in logs] == ["probes not made", "probes made again"]
    assert len(counted) > 600


def test_what_ended_the_starting_of_probes_is_raised_and_they_are_started_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def story() -> None:
        target = Target()
        probes = target.scheduler()
        until_due = probes._until_due

        async def fails() -> None:
            monkeypatch.setattr(probes, "_until_due", until_due)
            raise ZeroDivisionError

        monkeypatch.setattr(probes, "_until_due", fails)
        want(probes, "a")
        with pytest.raises(ZeroDivisionError):
            await probes.failed()
        assert target.starts == {}
        waiting = asyncio.get_running_loop().create_task(probes.failed())
        await asyncio.sleep(20)
        assert len(target.starts["a"]) > 5
        assert not waiting.done()
        waiting.cancel()
        await probes.close()

    play(story)
