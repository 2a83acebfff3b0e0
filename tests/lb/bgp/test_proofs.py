# SPDX-License-Identifier: Apache-2.0
"""VIPs are proved by what is new and by what is tested again, as a test of everything would prove them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lb.bgp.proofs import Proofs
from lb.model import Network, Service
from lb.model.service_diff import ServiceDiff
from tests.lb.bgp.values import net, service

VIP, OTHER = net("203.0.113.10"), net("203.0.113.11")
WEB, DNS = service("web", "203.0.113.10"), service("dns", "203.0.113.10", port=53)
FILES = service("files", "203.0.113.11")
BROKEN = "drop: no_next_hop"


def live(proofs: Proofs, *services: Service) -> set[Network]:
    return proofs.follow(ServiceDiff.between(proofs.services, services))


def test_a_vip_is_proved_once_all_its_services_passed() -> None:
    proofs = Proofs()
    assert live(proofs, WEB, DNS) == set()
    assert proofs.waiting(1) == [WEB]
    assert proofs.judge([WEB], {}) == set()
    assert not proofs.proved
    assert proofs.judge(proofs.waiting(9), {}) == {VIP}
    assert proofs.proved == {VIP}
    assert not proofs.urgent


def test_only_what_changed_is_tested_at_once_and_its_vip_stays_proved_meanwhile() -> None:
    proofs = Proofs()
    live(proofs, WEB, FILES)
    proofs.judge(proofs.waiting(9), {})
    changed = service("web", "203.0.113.10", port=80)
    assert live(proofs, changed, FILES) == set()
    assert proofs.waiting(9) == [changed]
    assert proofs.proved == {VIP, OTHER}
    assert proofs.judge([changed], {"web": BROKEN}) == {VIP}
    assert (proofs.proved, proofs.failed) == ({OTHER}, {VIP: BROKEN})


def test_a_test_of_what_became_another_meanwhile_says_nothing() -> None:
    proofs = Proofs()
    live(proofs, WEB)
    tested = proofs.waiting(9)
    again = service("web", "203.0.113.10")
    live(proofs, again)
    assert proofs.judge(tested, {}) == set()
    assert proofs.judge([again], {}) == {VIP}


def test_a_vip_that_goes_is_forgotten() -> None:
    proofs = Proofs()
    live(proofs, WEB, FILES)
    proofs.judge(proofs.waiting(9), {"files": BROKEN})
    assert live(proofs) == {VIP, OTHER}
    assert (proofs.proved, proofs.failed) == (set(), {})


def test_a_vip_whose_broken_service_goes_is_proved_by_the_others() -> None:
    proofs = Proofs()
    live(proofs, WEB, DNS)
    proofs.judge(proofs.waiting(9), {"dns": BROKEN})
    assert proofs.failed == {VIP: BROKEN}
    assert live(proofs, WEB) == {VIP}
    assert proofs.proved == {VIP}


def test_what_failed_is_tested_again_when_there_are_other_ways() -> None:
    proofs = Proofs()
    live(proofs, WEB, FILES)
    proofs.judge(proofs.waiting(9), {"web": BROKEN})
    assert not proofs.urgent
    proofs.retry()
    assert proofs.waiting(9) == [WEB]
    assert proofs.failed == {VIP: BROKEN}
    assert proofs.judge([WEB], {}) == {VIP}
    assert proofs.proved == {VIP, OTHER}


def test_after_a_change_everything_is_tested_once_more_and_a_failure_is_found() -> None:
    proofs = Proofs()
    live(proofs, WEB, DNS, FILES)
    proofs.judge(proofs.waiting(9), {})
    assert proofs.sweeping
    swept = [proofs.sweep(2), proofs.sweep(2)]
    assert swept == [(WEB, DNS), (FILES,)]
    assert not proofs.sweeping
    assert proofs.sweep(2) == ()
    assert proofs.judge(swept[1], {"files": BROKEN}) == {OTHER}
    assert proofs.proved == {VIP}


def test_a_change_during_a_sweep_makes_another_sweep() -> None:
    proofs = Proofs()
    live(proofs, WEB, FILES)
    proofs.judge(proofs.waiting(9), {})
    assert proofs.sweep(1) == (WEB,)
    live(proofs, WEB, DNS, FILES)
    assert proofs.sweep(9) == (FILES,)
    assert proofs.sweep(9) == (WEB, DNS, FILES)
    assert not proofs.sweeping


SERVICES = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 2)), max_size=6, unique=True
)  # port and VIP; a service has the same name wherever it is
STEPS = st.lists(st.tuples(SERVICES, st.sets(st.integers(0, 3)), st.booleans(), st.integers(1, 4)), max_size=8)


@given(STEPS)
def test_once_all_was_tested_the_proved_vips_are_those_that_a_test_of_everything_proves(
    steps: list[tuple[list[tuple[int, int]], set[int], bool, int]],
) -> None:
    proofs, known = Proofs(), {}
    for places, broken, anew, most in steps:
        if anew:
            known = {}
        for port, vip in places:
            if (port, vip) not in known:
                known[port, vip] = service(f"s{port}-{vip}", f"203.0.113.{vip}", port=port + 1)
        change = ServiceDiff.between(proofs.services, (known[place] for place in places))
        if not change:
            continue  # the table is the same, and so is what is wrong with it
        proofs.follow(change)
        failed = {each.name: BROKEN for each in proofs.services if each.ports.first - 1 in broken}
        proofs.retry()
        while proofs.urgent:
            proofs.judge(proofs.waiting(most), failed)
        while proofs.sweeping:
            here = set(map(id, proofs.services))
            proofs.judge([each for each in proofs.sweep(most) if id(each) in here], failed)
        bad = {each.vip for each in proofs.services if each.name in failed}
        assert proofs.failed == dict.fromkeys(bad, BROKEN)
        assert proofs.proved == {each.vip for each in proofs.services} - bad
