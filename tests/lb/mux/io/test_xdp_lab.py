# SPDX-License-Identifier: Apache-2.0
"""AF_XDP in namespaces: several queues, the kernel's own code instead of a driver's, and links that go and come."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from lb.model import IoMode
from lb.mux.io.mode import TOGETHER
from tests.lab.netns import ip
from tests.lab.pace import allowed
from tests.lab.process import wait_for
from tests.lb.mux.stage import DNS, MUX, READY, VIP, Stage

pytestmark = pytest.mark.lab

SOON = 5.0
#: A driver that runs no program, on a link whose neighbours send no super-packets.
NO_DRIVER = """
import dataclasses
import lb.mux.io.xdp_port as port
from lb.errors import IoError
facts, attach = port.facts_of, port.Redirect.attach
port.facts_of = lambda name: dataclasses.replace(facts(name), driver="old_nic")
def in_the_kernel_alone(self, ifindex, *, generic):
    if not generic:
        raise IoError("its driver runs no XDP program")
    attach(self, ifindex, generic=True)
port.Redirect.attach = in_the_kernel_alone
"""


@pytest.fixture
def stage() -> Iterator[Stage]:
    with Stage(IoMode.XDP) as built:
        yield built


@pytest.fixture
def two_queues() -> Iterator[Stage]:
    with Stage(IoMode.XDP, queues=2) as built:
        yield built


def serves(stage: Stage) -> bool:
    with stage.tap() as tap, stage.udp_client() as client:
        client.sendto(b"question", (VIP, 53))
        return len(tap.take(1, seconds=0.5)) == 1


def test_a_worker_has_a_socket_for_each_of_its_queues(two_queues: Stage) -> None:
    two_queues.start(DNS)
    assert two_queues.row()["mode"] == f"AF_XDP: native, copying, 2 queues; {TOGETHER}"
    two_queues.many_flows_arrive()


def test_each_of_two_workers_has_a_queue_of_its_own(two_queues: Stage) -> None:
    two_queues.settings = replace(two_queues.settings, workers=2)
    two_queues.start(DNS)
    assert two_queues.row()["io"] == "xdp"
    row = two_queues.many_flows_arrive()
    assert all(worker["received"] for worker in row["workers"])


def receive_offload(stage: Stage) -> bool:
    return "generic-receive-offload: on" in stage.run(stage.mux, "ethtool", "-k", "eth0")


def test_where_no_driver_runs_the_program_the_kernel_does_and_offloads_are_put_back_also_after_a_kill(
    stage: Stage,
) -> None:
    stage.run(stage.mux, "ethtool", "-K", "eth0", "gro", "on")
    stage.write(DNS)
    process = stage.launch_altered(NO_DRIVER)
    process.wait_output(READY)
    mode = f"AF_XDP: generic (the kernel's code, not the driver's), copying, 1 queue; {TOGETHER}"
    assert stage.row()["mode"] == mode
    assert stage.metrics()[f'lb_io_info{{io="xdp",mode="{mode}"}}'] == 1
    process.wait_output(
        'event="XDP program attached".*refused="native, zero-copy: its driver runs no XDP program; native, copying: '
        'its driver runs no XDP program".*offloads_off=rx-gro'
    )
    assert "xdpgeneric" in ip("-n", stage.mux, "link", "show", "eth0")
    assert serves(stage)
    assert not receive_offload(stage)
    process.kill()
    wait_for(lambda: "xdp" not in ip("-n", stage.mux, "link", "show", "eth0"), "the program to leave")
    assert not receive_offload(stage)
    stage.settings = replace(stage.settings, io=IoMode.PACKET)
    process = stage.start(DNS)
    process.wait_output('event="offloads put back" interface=eth0 offloads=rx-gro')
    assert receive_offload(stage)
    assert process.stop() == 0


def test_a_link_that_goes_down_and_comes_serves_again(stage: Stage) -> None:
    stage.start(DNS)
    assert serves(stage)
    for _ in range(2):
        ip("-n", stage.mux, "link", "set", "eth0", "down")
        wait_for(lambda: stage.row()["state"] == "degraded", "the loss to be seen")
        ip("-n", stage.mux, "link", "set", "eth0", "up")
        wait_for(lambda: serves(stage), "packets to flow", seconds=allowed(SOON))
        wait_for(lambda: stage.row()["state"] == "ready", "it to be seen", seconds=allowed(SOON))
    row = stage.row()
    assert row["io"] == "xdp"
    assert row["kernel"] == []


def test_an_interface_that_goes_and_comes_is_served_over_xdp_again(stage: Stage) -> None:
    process = stage.start(DNS)
    assert serves(stage)
    ip("-n", stage.mux, "link", "del", "eth0")
    process.wait_output('event="interface lost"')
    stage.plug("p9", stage.mux, MUX)
    ip("-n", stage.client, "neigh", "flush", "all")
    wait_for(lambda: serves(stage), "packets to flow", seconds=allowed(SOON))
    wait_for(lambda: stage.row()["state"] == "ready", "it to be seen", seconds=allowed(SOON))
    assert stage.row()["mode"] == f"AF_XDP: native, copying, 1 queue; {TOGETHER}"
    assert "xdp" in ip("-n", stage.mux, "link", "show", "eth0")
    assert stage.vips_of_the_kernel() == [VIP]
    assert process.stop() == 0
    assert "xdp" not in ip("-n", stage.mux, "link", "show", "eth0")
