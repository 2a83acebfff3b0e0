# SPDX-License-Identifier: Apache-2.0
"""What the workers' heartbeats say of them."""

from __future__ import annotations

import errno

from lb.dataplane import WorkerCounters
from lb.mux.workers.worker_watch import STALLED, Heartbeats


def workers(*bursts: int, error: int = 0) -> list[WorkerCounters]:
    return [WorkerCounters(count, errors=bool(error), error=error, running=True, retired=0) for count in bursts]


def test_a_worker_that_stands_still_is_told_once_and_again_after_it_turned() -> None:
    seen = Heartbeats()
    assert seen.stopped(workers(1, 1), 0.0) == {}
    assert seen.stopped(workers(1, 2), STALLED) == {}, "not for so long yet"
    assert seen.stopped(workers(1, 3), STALLED + 1) == {0: STALLED + 1}
    assert seen.stopped(workers(1, 4), STALLED + 2) == {}
    assert seen.stalled == {0}
    assert seen.stopped(workers(2, 5), 10.0) == {}
    assert seen.stalled == set()
    assert seen.stopped(workers(2, 6), 10.0 + STALLED + 1) == {0: STALLED + 1}


def test_of_fewer_workers_those_that_went_do_not_stand_still() -> None:
    seen = Heartbeats()
    seen.stopped(workers(1, 1), 0.0)
    assert seen.stopped(workers(2, 1), 10.0) == {1: 10.0}
    seen.stopped(workers(3), 11.0)
    assert seen.stalled == set()


def test_an_error_is_told_when_it_changes() -> None:
    seen = Heartbeats()
    assert seen.failed(workers(1)) == {}
    assert seen.failed(workers(1, error=errno.ENETDOWN)) == {0: errno.ENETDOWN}
    assert seen.failed(workers(1, error=errno.ENETDOWN)) == {}
    assert seen.failed(workers(1, error=errno.EIO)) == {0: errno.EIO}
    assert seen.failed(workers(1)) == {}
    assert seen.failed(workers(1, error=errno.EIO)) == {0: errno.EIO}
