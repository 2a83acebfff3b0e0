# SPDX-License-Identifier: Apache-2.0
"""When AF_XDP serves an interface, and how it is tried."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lb.model import IoMode
from lb.mux.io.ethernet import Facts
from lb.mux.io.xdp_support import GENERIC, NATIVE, attempts, described, maps_need_rights, refusal

NIC = Facts("virtio_net", 1500, 2)
VETH = Facts("veth", 1500, 1)


def test_a_real_nic_is_served_also_when_nobody_asked() -> None:
    assert refusal(NIC, 1, IoMode.AUTO) is None
    assert attempts(NIC, IoMode.AUTO) == NATIVE


def test_a_veth_is_served_only_when_asked_for() -> None:
    assert "segmentation offload" in (refusal(VETH, 1, IoMode.AUTO) or "")
    assert refusal(VETH, 1, IoMode.XDP) is None


@pytest.mark.parametrize(
    ("facts", "workers", "said"),
    [
        (replace(NIC, mtu=9000), 1, "the MTU of the interface, 9,000, is above 3,822"),
        (replace(NIC, mtu=3823), 1, "is above 3,822"),
        (NIC, 3, "the interface has 2 queues, one at least for each of 3 workers is needed"),
        (VETH, 2, "the interface has 1 queue, one at least"),
        (replace(NIC, queues=65), 1, "more than 64 for each worker"),
        (replace(NIC, vlans=("eth0.5",), strips_vlans=True), 1, "packets of its VLANs (eth0.5) would be taken"),
    ],
)
def test_what_cannot_be_is_one_sentence(facts: Facts, workers: int, said: str) -> None:
    assert said in (refusal(facts, workers, IoMode.XDP) or "")


def test_what_is_just_possible_is_done() -> None:
    for facts, workers in (
        (replace(NIC, mtu=3822), 1),
        (NIC, 2),
        (replace(NIC, queues=64), 1),
        (replace(NIC, vlans=("eth0.5",)), 1),
        (replace(NIC, strips_vlans=True), 1),
    ):
        assert refusal(facts, workers, IoMode.XDP) is None


def test_the_kernels_own_code_runs_it_only_where_asked_for_and_where_no_super_packets_come() -> None:
    assert attempts(NIC, IoMode.XDP) == (*NATIVE, GENERIC)
    assert attempts(VETH, IoMode.XDP) == NATIVE


def test_an_attempt_says_what_it_is() -> None:
    assert [attempt.text for attempt in (*NATIVE, GENERIC)] == [
        "native, zero-copy",
        "native, copying",
        "generic (the kernel's code, not the driver's), copying",
    ]


def test_what_was_obtained_is_in_words() -> None:
    native = NATIVE[1]
    assert described(native, 1, busy_asked=False, busy=[False]) == "native, copying, 1 queue"
    assert described(native, 2, busy_asked=True, busy=[True, True]) == "native, copying, 2 queues, busy polling"
    refused_it = "native, copying, 2 queues, no busy polling: the kernel refused it"
    assert described(native, 2, busy_asked=True, busy=[True, False]) == refused_it


def test_old_kernels_want_rights_for_a_map_that_is_open() -> None:
    releases = ["5.18.0-4-amd64", "5.19.0", "6.1.0-13-cloud-amd64", "10.0", "?"]
    assert [maps_need_rights(release) for release in releases] == [True, False, False, False, True]
