# SPDX-License-Identifier: Apache-2.0
"""From what is announced to what is wanted: commands, in the right order and with nothing of anybody's text in them."""

from __future__ import annotations

from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lb.bgp.routes import (
    BATCH,
    GRACEFUL_SHUTDOWN,
    BgpRoute,
    Key,
    Wishes,
    is_safe,
    offers,
    parse_announcements,
    plan,
    withdrawals,
)
from lb.errors import ConfigError
from lb.model import AnnouncePeers, Network
from lb.model.persistent_map import PersistentMap
from tests.lb.bgp.values import INSIDE, OUTSIDE, SPEAKS, key, net

WEB, SIX = net("203.0.113.10/32"), net("2001:db8::10/128")


def test_a_peer_hears_its_kind_and_its_families_only() -> None:
    wanted = {
        net("203.0.113.1"): BgpRoute(),
        net("203.0.113.2"): BgpRoute(peers=AnnouncePeers.EXTERNAL),
        net("203.0.113.3"): BgpRoute(peers=AnnouncePeers.INTERNAL),
        SIX: BgpRoute(),
    }
    heard = offers(SPEAKS, wanted)
    assert {k.vip for k in heard if k.peer == OUTSIDE.address} == {net("203.0.113.1"), net("203.0.113.2"), SIX}
    assert {k.vip for k in heard if k.peer == INSIDE.address} == {net("203.0.113.1"), net("203.0.113.3")}


def test_next_hop_is_the_session_s_own_address_or_ours_of_the_other_family() -> None:
    heard = offers(SPEAKS, {WEB: BgpRoute(), SIX: BgpRoute()})
    assert heard[key("10.0.1.1", "203.0.113.10/32")] == "next-hop self"
    assert heard[key("10.0.1.1", "2001:db8::10/128")] == "next-hop fd00:1::11"


def test_attributes_are_written_as_exabgp_reads_them() -> None:
    route = BgpRoute(("65000:1", "65000:1:2", "65000:3"), med=50, prepend=2)
    assert offers(SPEAKS, {WEB: route})[key("10.0.1.1", "203.0.113.10/32")] == (
        "next-hop self as-path [ 65001 65001 65001 ] med 50 community [ 65000:1 65000:3 ] large-community [ 65000:1:2 ]"
    )


def test_prepending_is_left_out_within_one_as_where_it_would_be_a_loop() -> None:
    assert "as-path" not in offers(SPEAKS, {WEB: BgpRoute(prepend=2)})[key("10.0.1.2", "203.0.113.10/32")]


def test_draining_adds_graceful_shutdown_once_and_changes_nothing_else() -> None:
    route = BgpRoute(("65000:1", GRACEFUL_SHUTDOWN), med=5)
    drained = offers(SPEAKS, {WEB: route}, drained=True)[key("10.0.1.1", "203.0.113.10/32")]
    assert drained == "next-hop self med 5 community [ 65000:1 65535:0 ]"


def test_withdrawals_come_before_announcements() -> None:
    announced = {key("10.0.1.1", "203.0.113.1"): "next-hop self"}
    wanted = {key("10.0.1.1", "203.0.113.2"): "next-hop self"}
    assert [command.line for command in plan(announced, wanted)] == [
        "neighbor 10.0.1.1 withdraw attributes next-hop self nlri 203.0.113.1/32",
        "neighbor 10.0.1.1 announce attributes next-hop self nlri 203.0.113.2/32",
    ]


def test_a_withdrawal_of_ipv6_names_no_next_hop_that_its_session_has_not() -> None:
    announced = {key("10.0.1.1", "2001:db8::10"): "next-hop fd00:1::11"}
    assert withdrawals(announced) == ["neighbor 10.0.1.1 withdraw attributes next-hop :: nlri 2001:db8::10/128"]


def test_changed_attributes_replace_without_a_withdrawal() -> None:
    here = key("10.0.1.1", "203.0.113.1")
    (command,) = plan({here: "next-hop self"}, {here: "next-hop self med 5"})
    assert "announce" in command.line
    assert "med 5" in command.line


def test_each_family_has_its_own_line() -> None:
    """ExaBGP takes the family of a whole line from its last prefix."""
    wanted = {key("10.0.1.1", vip): "next-hop self" for vip in ("203.0.113.1", "2001:db8::1", "203.0.113.2")}
    for command in plan({}, wanted):
        assert len({k.vip.version for k in command.keys}) == 1


KEYS = st.dictionaries(
    st.builds(
        Key,
        st.sampled_from([OUTSIDE.address, INSIDE.address]),
        st.integers(0, 130).map(lambda n: ip_network(f"203.0.113.{n}")),
    ),
    st.sampled_from(["next-hop self", "next-hop self med 5"]),
)


@given(KEYS, KEYS)
def test_any_plan_leads_to_what_is_wanted_in_bounded_lines_and_is_then_done(
    announced: dict[Key, str], wanted: dict[Key, str]
) -> None:
    now = dict(announced)
    for command in plan(announced, wanted):
        assert is_safe([command.line])
        assert len(command.keys) <= BATCH
        for each in command.keys:
            assert command.line.startswith(f"neighbor {each.peer} ")
            assert f" {each.vip}" in command.line
            if command.attributes is None:
                del now[each]
            else:
                now[each] = command.attributes
    assert now == wanted
    assert plan(now, wanted) == ()
    assert len(withdrawals(wanted)) <= 2 * (1 + len(wanted) // BATCH)


def test_lines_with_anything_else_in_them_are_not_safe() -> None:
    for line in ("shutdown; x", "announce route 1.2.3.4\nshutdown", 'x "y"', "neighbor * announce"):
        assert not is_safe([line])


def test_a_manager_s_announcements_become_routes() -> None:
    table = {
        "203.0.113.10/32": {"communities": ["65000:1"], "med": 5, "prepend": 1, "peers": "internal"},
        "2001:db8::10/128": {"communities": [], "med": None, "prepend": 0, "peers": "all"},
    }
    assert parse_announcements(table) == {
        WEB: BgpRoute(("65000:1",), 5, 1, AnnouncePeers.INTERNAL),
        SIX: BgpRoute(),
    }


@pytest.mark.parametrize(
    "table",
    [
        {"203.0.113.10/33": {}},
        {"all": {}},
        {"203.0.113.10/32": []},
        {"203.0.113.10": {}},
        {"203.0.113.10/32": {"communities": ["65000:1 ; shutdown"]}},
        {"203.0.113.10/32": {"med": "5"}},
        {"203.0.113.10/32": {"peers": "everybody"}},
        {"203.0.113.10/32": {"colour": "blue"}},
    ],
)
def test_a_manager_s_mistakes_are_refused_with_their_place(table: dict[str, object]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_announcements(table)
    assert caught.value.lines[0].startswith("announcements.")


TABLES = st.dictionaries(
    st.integers(0, 20).map(lambda n: f"203.0.113.{n}/32"), st.sampled_from([{}, {"med": 5}, {"med": 5, "prepend": 1}])
)


@given(st.lists(st.tuples(TABLES, st.booleans())))
def test_wishes_that_are_read_by_what_differs_are_those_of_the_whole_table(
    tables: list[tuple[dict[str, object], bool]],
) -> None:
    wishes = Wishes()
    now: dict[Network, BgpRoute] = {}
    persistent: PersistentMap[str, object] = PersistentMap()
    for table, taken in tables:
        persistent = persistent.replaced(persistent, table)
        put, gone = wishes.read(persistent)
        after = {vip: route for vip, route in (now | put).items() if vip not in gone}
        assert after == parse_announcements(table)
        if taken:
            assert wishes.take(persistent) == (put, gone)
            now = after


def test_wishes_with_a_mistake_are_not_taken() -> None:
    wishes = Wishes()
    wishes.take({"203.0.113.10/32": {}})
    with pytest.raises(ConfigError):
        wishes.take({"203.0.113.11/32": {"colour": "blue"}})
    assert wishes.read({}) == ({}, [WEB])
