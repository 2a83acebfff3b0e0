# SPDX-License-Identifier: Apache-2.0
"""Wrappers dropped, closed and used in any order while C threads run: each in its own process, for it may crash."""

from __future__ import annotations

import subprocess
import sys

import pytest

PRELUDE = """
import faulthandler, gc, os, signal, threading, time
faulthandler.enable()
from ipaddress import ip_address, ip_network
from lb.dataplane import HostPipeline, Io, LinkHeader, Pipeline, Worker
from lb.dataplane.binding import c
from lb.errors import DataplaneError
from tests.native.test_worker import FLOW, compiled, wait_until

def silent():
    return Io("memory", lambda out: c.io_memory_open(0, out))

def started():
    worker = Worker(Pipeline(1000, LinkHeader.NONE), silent(), compiled("a").offline_snapshot())
    worker.start()
    wait_until(lambda: worker.counters().bursts > 3)
    return worker
"""

STORIES = {
    "a started worker is dropped": """
for _ in range(30):
    started()
""",
    "a started worker is dropped in a cycle": """
for _ in range(10):
    worker = started()
    worker.itself = [worker]
    del worker
    assert gc.collect()
""",
    "all but the worker is dropped and its io closed": """
io = silent()
worker = Worker(Pipeline(1000, LinkHeader.NONE), io, compiled("a").offline_snapshot())
worker.start()
io.close()
worker._pipeline = None
gc.collect()
[bytearray(1 << 20) for _ in range(50)]
before = worker.counters().bursts
wait_until(lambda: worker.counters().bursts > before + 100)
worker.close()
""",
    "a host's worker is dropped": """
for _ in range(30):
    host = HostPipeline([ip_address("10.0.1.11")], [ip_network("203.0.113.10")])
    worker = Worker(host, silent())
    worker.start()
    wait_until(lambda: worker.counters().bursts > 3)
    del host, worker
""",
    "the program ends while a worker runs": """
worker = started()
""",
    "what is closed says so": """
worker = started()
worker.close()
worker.close()
io = silent()
io.close()
io.close()
snapshot = compiled("a").offline_snapshot()
uses = [
    worker.start, worker.counters, worker.reclaim, worker.stop, worker.pipeline_counters, io.stats,
    lambda: worker.publish(snapshot), lambda: worker.lookup(snapshot, FLOW), lambda: Worker(Pipeline(0,
    LinkHeader.NONE), io),
]
for use in uses:
    try:
        use()
    except DataplaneError as error:
        assert str(error).endswith(" is closed: it cannot be used any more."), error
    else:
        raise AssertionError(use)
""",
    "a worker is closed while others ask it": """
def ask(worker, snapshot):
    try:
        while True:
            worker.lookup(snapshot, FLOW)
            worker.counters()
            worker.publish(snapshot)
    except DataplaneError:
        pass

for _ in range(5):
    worker, snapshot = started(), compiled("a", "b").offline_snapshot()
    threads = [threading.Thread(target=ask, args=(worker, snapshot)) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.02)
    worker.close()
    for thread in threads:
        thread.join()
""",
    "a forked child lets go of its parent's worker": """
worker = started()
child = os.fork()
if not child:
    signal.alarm(20)
    assert not worker.counters().running
    worker.close()
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
before = worker.counters().bursts
wait_until(lambda: worker.counters().bursts > before)
""",
}


@pytest.mark.parametrize("story", STORIES)
def test_nothing_is_used_after_it_was_freed(story: str) -> None:
    found = subprocess.run(
        [sys.executable, "-c", PRELUDE + STORIES[story]], capture_output=True, text=True, check=False, timeout=120
    )
    assert found.returncode == 0, found.stderr
