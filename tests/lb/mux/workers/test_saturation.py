# SPDX-License-Identifier: Apache-2.0
"""When a MUX is said to be saturated, and when no longer: from what workers receive and what is lost before them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import pytest

from lb.dataplane import IoStats
from lb.mux.workers.overload import INTERVAL
from lb.mux.workers.saturation import BEGIN, END, Ended, Loss, Saturation


@dataclass
class Watched:
    """A saturation that is fed a look every half second."""

    saturation: Saturation = field(default_factory=Saturation)
    at: float = 100.0
    received: list[int] = field(default_factory=lambda: [0])
    missed: list[int] = field(default_factory=lambda: [0])
    services: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.look()

    def look(self, *, came: int = 0, lost: Iterable[int] = (0,), to: dict[str, int] | None = None) -> object:
        for number, one in enumerate(lost):
            self.missed[number] += one
            self.received[number] += came
        for name, count in (to or {}).items():
            self.services[name] = self.services.get(name, 0) + count
        self.at += INTERVAL
        ios = tuple(IoStats(received=r, missed=m) for r, m in zip(self.received, self.missed, strict=True))
        return self.saturation.look(self.at, ios, dict(self.services) if self.saturation.losing else None)

    def looks(self, seconds: float, **traffic: int) -> list[object]:
        found = [
            self.look(came=traffic.get("came", 0), lost=[traffic.get("lost", 0)])
            for _ in range(round(seconds / INTERVAL))
        ]
        return [news for news in found if news is not None]


def test_nothing_lost_is_no_news_however_much_comes() -> None:
    watched = Watched()
    assert watched.looks(60, came=1_000_000) == []
    assert watched.saturation.now is None


def test_a_ring_that_was_full_for_a_moment_is_counted_and_not_told() -> None:
    watched = Watched()
    for _ in range(20):
        assert watched.look(came=100_000, lost=[50_000]) is None
        assert watched.look(came=100_000) is None


def test_a_few_losses_among_very_many_are_not_told_however_long() -> None:
    assert Watched().looks(60, came=1_000_000, lost=500) == []


def test_what_is_lost_throughout_a_while_is_told_once_and_with_its_rate() -> None:
    watched = Watched()
    (news,) = watched.looks(30, came=400_000, lost=100_000)
    assert isinstance(news, Loss)
    assert (news.lost, news.offered) == (200_000, 1_000_000)
    assert news.total == 100_000 * BEGIN / INTERVAL
    assert news.words == "loses 200,000 of 1,000,000 packets/s, its worker is saturated; add a MUX"


def test_what_is_told_goes_with_the_traffic() -> None:
    watched = Watched()
    watched.looks(2, came=400_000, lost=100_000)
    watched.looks(1, came=400_000, lost=300_000)
    assert watched.saturation.now is not None
    assert (watched.saturation.now.lost, watched.saturation.now.since) == (600_000, 100.5)
    watched.looks(2, came=10_000)
    assert watched.saturation.now.lost == 600_000, "what it was is worth more than that just now nothing is lost"


def test_it_ends_after_five_seconds_without_a_loss_and_says_how_long_it_was_and_how_much() -> None:
    watched = Watched()
    watched.looks(10, came=400_000, lost=100_000)
    assert watched.looks(END - INTERVAL, came=400_000) == []
    (news,) = watched.looks(INTERVAL, came=400_000)
    assert news == Ended(10.0, 20 * 100_000)
    assert watched.saturation.now is None
    assert watched.looks(60, came=400_000) == []


def test_a_flood_that_pauses_is_one_flood() -> None:
    watched = Watched()
    told = watched.looks(3, came=400_000, lost=100_000)
    for _ in range(5):
        told += watched.looks(END - INTERVAL, came=10_000)
        told += watched.looks(INTERVAL, came=400_000, lost=100_000)
    assert len(told) == 1
    told += watched.looks(END, came=400_000)
    assert told[1:] == [Ended(3.0 + 5 * END - 0.0, 11 * 100_000)]


def test_a_loss_too_small_to_begin_with_keeps_it_up() -> None:
    """Between the two shares nothing changes, whichever way it is."""
    watched = Watched()
    assert watched.looks(20, came=1_000_000, lost=500) == []
    assert len(watched.looks(3, came=400_000, lost=100_000)) == 1
    assert watched.looks(20, came=1_000_000, lost=500) == []
    assert watched.saturation.now is not None
    (ended,) = watched.looks(END, came=1_000_000, lost=50)
    assert isinstance(ended, Ended)


def test_no_traffic_at_all_after_a_flood_is_an_end_too() -> None:
    watched = Watched()
    watched.looks(3, came=400_000, lost=100_000)
    assert [type(news) for news in watched.looks(END)] == [Ended]


def test_of_several_workers_those_that_lose_are_named_and_what_can_be_done_is_another() -> None:
    watched = Watched(received=[0, 0, 0], missed=[0, 0, 0])
    told = [watched.look(came=100_000, lost=[0, 9_000, 0]) for _ in range(4)]
    (news,) = [one for one in told if one is not None]
    assert isinstance(news, Loss)
    assert news.workers == (1,)
    assert "1 of its 3 workers is saturated" in news.words
    assert "spread its queues (`workers`), or add a MUX" in news.words


def test_the_service_that_most_packets_are_for_is_named_with_its_part() -> None:
    watched, to = Watched(), {"web": 9_000, "flooded": 90_000, "idle": 0, "new": 1_000}
    told = [watched.look(came=100_000, lost=[50_000], to=to) for _ in range(4)]
    (news,) = [one for one in told if one is not None]
    assert isinstance(news, Loss)
    assert news.heaviest == "flooded", "from the first word on"
    assert watched.saturation.now is not None
    assert (watched.saturation.now.heaviest, watched.saturation.now.part) == ("flooded", 0.9)
    assert "; service flooded has 90% of the packets; " in watched.saturation.now.words


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_that_begin_anew_are_compared_with_nothing(workers: int) -> None:
    """Another number of them, or the same with counters that begin at zero again."""
    watched = Watched()
    watched.looks(0.5, came=400_000, lost=100_000)
    watched.received, watched.missed = [0] * workers, [0] * workers
    assert [watched.look(came=10, lost=[0] * workers) for _ in range(20)] == [None] * 20


def test_two_looks_at_one_moment_say_nothing() -> None:
    watched = Watched()
    assert watched.saturation.look(watched.at, (IoStats(received=1, missed=1),)) is None


def test_what_is_shed_counts_as_lost_so_it_is_not_over_while_it_is_only_by_choice_that_no_ring_is_full() -> None:
    saturation, news = Saturation(), []
    for look in range(1, 41):
        ios = (IoStats(received=100_000 * look, missed=10_000 * min(look, 5)),)
        news.append(saturation.look(look * INTERVAL, ios, {"web": 100_000 * look}, 50_000 * max(0, look - 5)))
    (began,) = [one for one in news if one is not None]
    assert isinstance(began, Loss)
    assert began.shed == 0
    assert saturation.now is not None
    assert (saturation.now.lost, saturation.now.shed, saturation.now.offered) == (100_000, 100_000, 200_000)
    assert (
        "loses 100,000 of 200,000 packets/s (100,000 of them shed, so that others are served)" in saturation.now.words
    )
    assert saturation.traffic is not None
    assert (saturation.traffic.shed, saturation.traffic.lost, saturation.traffic.came) == (
        50_000,
        False,
        {"web": 100_000},
    )
