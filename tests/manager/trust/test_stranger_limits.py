# SPDX-License-Identifier: Apache-2.0
"""Who of the strangers may come in: values and a clock of the test's own."""

from __future__ import annotations

from dataclasses import replace

import pytest

from manager.trust.stranger_limits import ADDRESSES_MAX, FRIEND, PATIENCE, Guests, Limits, group

LIMITS = Limits(waiting=6, waiting_each=4, inside=4, inside_each=2, burst=3.0, rate=1.0, burst_all=5.0, rate_all=2.0)


class Door:
    """Guests by name, ``address/number``."""

    def __init__(self, limits: Limits = LIMITS) -> None:
        self.now = 0.0
        self.guests: Guests[str] = Guests(limits, lambda: self.now)
        self.out: list[str] = []

    def come(self, *names: str, speak: bool = True) -> None:
        for name in names:
            self.out += self.guests.came(name, name.partition("/")[0])
            if speak:
                self.guests.spoke(name, name.partition("/")[0])

    def enter(self) -> list[str]:
        found = []
        while (following := self.guests.next()) is not None:
            guest, out = following
            found.append(guest)
            self.out += out
        return found


def test_whoever_says_nothing_waits_outside_and_costs_no_credit() -> None:
    door = Door()
    door.come("a/1", "a/2", "a/3", "a/4", speak=False)
    assert door.enter() == []
    door.come("a/5")
    assert (door.out, door.enter()) == (["a/1"], ["a/5"])


def test_an_address_has_so_much_at_once_and_then_so_much_a_second() -> None:
    door = Door(replace(LIMITS, inside_each=4))
    door.come("a/1", "a/2", "a/3", "a/4")
    assert door.enter() == ["a/1", "a/2", "a/3"]
    door.now = 1.0
    assert door.enter() == ["a/4"]


def test_who_never_knocked_comes_before_whoever_knocks_all_the_time() -> None:
    door = Door()
    door.come("a/1", "a/2", "a/3", "a/4", "b/1")
    assert door.enter()[:3] == ["a/1", "b/1", "a/2"]


def test_inside_the_oldest_of_an_address_goes_for_its_newest_once_it_had_time_to_become_known() -> None:
    door = Door()
    door.come("a/1", "a/2", "a/3")
    assert (door.enter(), door.out) == (["a/1", "a/2"], [])
    door.now = PATIENCE
    assert (door.enter(), door.out) == (["a/3"], ["a/1"])


def test_a_fleet_behind_one_address_that_comes_at_once_puts_out_none_of_its_own() -> None:
    door = Door(Limits())
    fleet = [f"a/{number}" for number in range(100)]
    door.come(*fleet)
    entered = door.enter()
    assert (len(entered), door.out) == (Limits().inside_each, [])
    for name in fleet:
        door.guests.known(name, "a")
        entered += door.enter()
    assert (entered, door.out, door.guests.inside) == (fleet, [], 0)


def test_two_fleets_of_one_size_put_out_none_of_each_other() -> None:
    door = Door()
    door.come("a/1", "a/2", "b/1", "b/2")
    door.enter()
    door.guests.left("a/1", "a")
    door.come("c/1", "c/2", "a/3")
    door.now = 1.0
    assert (door.enter(), door.out) == (["c/1"], [])
    door.now = 2.0
    assert (door.enter(), door.out) == ([], [])
    door.guests.left("b/1", "b")
    assert (len(door.enter()), door.out) == (1, [])


def test_where_all_places_are_taken_the_address_with_most_loses_one() -> None:
    door = Door()
    door.come("a/1", "a/2", "b/1", "c/1")
    door.enter()
    door.come("d/1")
    door.enter()
    assert (door.out, door.guests.inside) == (["a/1"], 4)


def test_outside_the_address_with_most_loses_one() -> None:
    door = Door()
    door.come("a/1", "a/2", "a/3", "b/1", "b/2", "c/1", "d/1", speak=False)
    assert (door.out, door.guests.waiting) == (["a/1"], 6)


def test_a_fleet_of_known_nodes_behind_one_address_waits_for_nothing() -> None:
    door = Door()
    for number in range(100):
        door.come(f"a/{number}")
        assert door.enter() == [f"a/{number}"]
        door.guests.known(f"a/{number}", "a")
    assert (door.out, door.guests.inside) == ([], 0)


def test_strangers_from_everywhere_take_nothing_from_a_friend() -> None:
    door = Door()
    door.come("friend/1")
    door.enter()
    door.guests.known("friend/1", "friend")
    for number in range(10):
        door.come(f"{number}/1", speak=True)
        door.enter()
    door.come("friend/2", "stranger/1")
    assert door.enter() == ["friend/2"]
    door.now = FRIEND + 1
    door.come("friend/3")
    assert "friend/3" in door.enter()


def test_requests_take_of_the_same_credit() -> None:
    door = Door()
    assert [door.guests.asks("a") for _ in range(4)] == [True, True, True, False]
    assert [door.guests.asks("b") for _ in range(3)] == [True, True, False]


def test_who_left_makes_room_wherever_it_was() -> None:
    door = Door()
    door.come("a/1", "a/2", "a/3", "a/4")
    door.enter()
    for number in (1, 2, 3, 4, 4):
        door.guests.left(f"a/{number}", "a")
    assert (door.guests.inside, door.guests.waiting, door.guests.ready) == (0, 0, False)


def test_addresses_are_forgotten() -> None:
    door = Door()
    door.come("a/1")
    door.enter()
    for number in range(2 * ADDRESSES_MAX):
        door.guests.asks(str(number))
    door.guests.left("a/1", "a")
    assert door.guests.inside == 0


@pytest.mark.parametrize(
    ("address", "one"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("fe80::1%eth0", "fe80::"),
        ("?:", "?:"),
    ],
)
def test_one_address_is_a_64_of_ipv6(address: str, one: str) -> None:
    assert group(address) == one


@pytest.mark.parametrize("descriptors", [64, 256, 1024, 65536])
def test_most_descriptors_are_for_those_who_are_known(descriptors: int) -> None:
    limits = Limits().for_descriptors(descriptors)
    assert 2 * (limits.waiting + limits.inside) <= descriptors
    assert 1 <= limits.inside_each < limits.inside
    assert 1 <= limits.waiting_each < limits.waiting
