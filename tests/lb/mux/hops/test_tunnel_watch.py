# SPDX-License-Identifier: Apache-2.0
"""What messages do: hops become narrower once, answers have a rate, all is counted."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

from lb.dataplane.snapshot import NO_MAC, Hop
from lb.model import Address, Unserved
from lb.mux.hops.tunnel_watch import AT_ONCE, TunnelWatch, _Rate
from tests.lb.mux.hops.test_tunnel_errors import HOPS, LONG, PLAIN, ROUTER, VIPS, says
from tests.packets.world import SETTINGS, WEB, WEB6

WAYS: dict[Address, Hop] = {ip_address(end): Hop(ip_address(end), NO_MAC) for end in (WEB, WEB6)}


def watch(changes: list[int]) -> TunnelWatch:
    settings = replace(SETTINGS, unserved=Unserved.UNREACHABLE)
    return TunnelWatch(settings, has=HOPS.has, vips=lambda: NETWORKS, changed=lambda: changes.append(1))


NETWORKS = frozenset(VIPS)


def test_hops_are_made_narrower_and_stay_the_same_object_until_something_changes() -> None:
    changes: list[int] = []
    heard = watch(changes)
    assert heard.narrowed(WAYS) is WAYS
    assert heard.heard(says(LONG, 3, 4, 1300), ROUTER, 10.0)
    heard._publish()
    assert changes == [1]
    first = heard.narrowed(WAYS)
    assert {address: hop.mtu for address, hop in first.items()} == {ip_address(WEB): 1300, ip_address(WEB6): 0}
    assert heard.narrowed(WAYS) is first
    assert not heard.heard(says(LONG, 3, 4, 1300), ROUTER, 20.0)
    heard._publish()
    assert changes == [1]
    assert heard.narrowed(WAYS) is first
    assert heard.heard(says(LONG, 3, 4, 1200), ROUTER, 30.0)
    heard._publish()
    assert heard.narrowed(WAYS)[ip_address(WEB)].mtu == 1200
    assert changes == [1, 1]


def test_what_is_heard_is_counted_and_shown() -> None:
    heard = watch([])
    heard.heard(says(LONG, 3, 4, 1300), ROUTER, 10.0)
    heard.heard(says(PLAIN, 3, 1), ROUTER, 10.0)
    heard.heard(says(PLAIN, 5, 1), ROUTER, 10.0)
    assert heard.errors == {"too_big": 1, "unreachable": 1, "ignored": 1}
    (row,) = heard.rows()
    assert (row["address"], row["mtu"], row["unreachable"]) == (WEB, 1300, True)
    assert row["reason"].startswith(f"{ROUTER} says: host unreachable; {ROUTER} says: fragmentation needed, 1,300")


def test_no_more_is_told_on_than_the_rate() -> None:
    rate = _Rate(100)
    assert sum(rate.takes(5.0) for _ in range(1000)) == AT_ONCE
    assert sum(rate.takes(5.0 + n / 1000) for n in range(1, 1001)) in range(99, 102)
    assert not _Rate(0).takes(1.0)
