# SPDX-License-Identifier: Apache-2.0
"""The texts that nft gets, and (in a namespace) that nft takes them."""

from __future__ import annotations

import asyncio
import json
import random
import re
import socket
import subprocess
import threading
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network, collapse_addresses, ip_network

import pytest

from agent.rules.nftables_table import TABLE
from lb.daemon.kernel import nftables
from lb.daemon.kernel.table_names import mux_table
from lb.model.prefixes import Cover
from lb.mux.io.isolation import (
    GONE_MANY,
    Isolation,
    amiss,
    install_text,
    remove_text,
    step_text,
    structure,
    update_text,
)
from tests.lab import netns

VIPS = [ip_network(text) for text in ("203.0.113.10/32", "203.0.113.0/28", "203.0.113.16/28", "2001:db8::10/128")]


def test_the_table_is_named_after_the_mux() -> None:
    assert mux_table("mux1") == "vipmux_mux1"
    assert mux_table("mux-1.example") == "vipmux_mux_1_example"
    assert mux_table("agent") != TABLE, "an lb-agent may be on the same machine"


def test_overlapping_vips_become_one_interval() -> None:
    text = install_text("vipmux_mux1", "eth0", 2, Cover(VIPS))
    assert "elements = { 203.0.113.0/27 }" in text
    assert "elements = { 2001:db8::10/128 }" in text


def test_installing_replaces_what_an_earlier_life_left() -> None:
    lines = install_text("t", "eth0", 2, Cover(VIPS)).splitlines()
    assert lines[:4] == ["add table netdev t", "delete table netdev t", "add table inet t", "delete table inet t"]
    assert lines[4] == "table inet t {"


def test_an_update_holds_exactly_the_given_vips() -> None:
    assert update_text("t", Cover(VIPS[:1])).splitlines() == [
        "flush set inet t vips4",
        "add element inet t vips4 { 203.0.113.10/32 }",
        "flush set inet t vips6",
    ]


def test_a_step_says_what_differs_and_what_goes_goes_first() -> None:
    cover = Cover(VIPS[:2])
    step = cover.step([ip_network("203.0.113.16/28"), ip_network("2001:db8::10/128")], [])
    assert step_text("t", step).splitlines() == [
        "delete element inet t vips4 { 203.0.113.0/28 }",
        "add element inet t vips4 { 203.0.113.0/27 }",
        "add element inet t vips6 { 2001:db8::10/128 }",
    ]


@pytest.mark.parametrize("vips", [[], VIPS])
def test_removing_works_with_and_without_a_table(vips: list[object]) -> None:
    assert remove_text("t").splitlines() == [
        f"{verb} table {family} t" for family in ("netdev", "inet") for verb in ("add", "delete")
    ]


LISTING = """\
table inet vipmux_mux1 { # handle 7
\tcomment "lb-mux: VIPs are served in userspace, never by this kernel"
\tset vips4 { # handle 2
\t\ttype ipv4_addr
\t\tflags interval
\t\telements = { 203.0.113.10 }
\t}

\tset vips6 { # handle 3
\t\ttype ipv6_addr
\t\tflags interval
\t}

\tchain ingress { # handle 1
\t\ttype filter hook ingress device "lo" priority -500; policy accept;
\t\tip daddr @vips4 counter drop # handle 4
\t\tip6 daddr @vips6 counter drop # handle 5
\t}

\tchain prerouting { # handle 8
\t\ttype filter hook prerouting priority -500; policy accept;
\t\tiif "lo" ip daddr @vips4 counter drop # handle 9
\t\tiif "lo" ip6 daddr @vips6 counter drop # handle 10
\t}
}
"""


@pytest.mark.parametrize(
    ("old", "new", "became"),
    [
        ("", "", None),
        ("accept;\n", "accept;\n\t\taccept # handle 6\n", "was changed"),
        ("accept;\n", "accept;\n\t\tip daddr 203.0.113.10 accept # handle 6\n", "was changed"),
        ("policy accept;", "policy drop;", "was changed"),
        ("\tset vips4", "\tchain other { # handle 6\n\t}\n\n\tset vips4", "was changed"),
    ],
)
def test_a_rule_of_somebody_else_is_seen_before_there_is_a_listing_to_compare_with(
    old: str, new: str, became: str | None
) -> None:
    """It may come right behind the table itself, as after each repair; else it would be taken for ours for ever."""
    cover = Cover([ip_network("203.0.113.10/32")])
    assert amiss(LISTING.replace(old, new, 1), "lo", "lo", None, cover) == became


def test_a_renamed_interface_is_no_change_and_another_of_its_name_is_one() -> None:
    cover, made = Cover([ip_network("203.0.113.10/32")]), structure(LISTING)
    renamed = LISTING.replace('iif "lo"', 'iif "up0"')
    assert amiss(renamed, "lo", "up0", made, cover) is None
    assert amiss(renamed, "lo", "lo", made, cover) == "was changed", "the name is of another interface now"
    assert amiss(LISTING.replace('iif "lo"', "iif 7"), "lo", "lo", made, cover) == "was changed"
    without = re.sub(r"\tchain ingress .*?\t}\n\n", "", renamed, flags=re.DOTALL)
    assert amiss(without, "lo", "up0", None, cover) is None
    assert amiss(without.replace("up0", "lo"), "lo", "lo", None, cover) == "lost its chain"


@pytest.fixture
def namespace() -> Iterator[str]:
    name = netns.unique_prefix()
    netns.ip("netns", "add", name)
    yield name
    netns.ip("netns", "del", name)


@pytest.mark.lab
def test_the_kernel_covers_what_it_should_whether_few_or_many_come_and_go(namespace: str) -> None:
    chance = random.Random(7)
    pool = [IPv4Network((int(IPv4Address("203.0.113.0")) + number, 32)) for number in range(256)]
    isolation = Isolation("mux1", "lo")
    netns.inside(namespace, lambda: asyncio.run(isolation.install([])))
    gone = set()
    for share in (0.5, 0.5, 0.98, 0.99, 0.5, 1, 0.02, 0):
        wanted = {network for network in pool if chance.random() < share}
        before = set(_in_kernel(namespace))
        netns.inside(namespace, lambda: asyncio.run(isolation.cover(wanted)))  # noqa: B023  it runs here
        assert _in_kernel(namespace) == list(collapse_addresses(wanted))
        gone.add(len(before - set(_in_kernel(namespace))) > GONE_MANY)
    assert gone == {True, False}, "both ways were gone"


@pytest.mark.lab
@pytest.mark.parametrize("damage", ["flush ruleset", "flush set inet vipmux_mux1 vips4"])
def test_a_change_that_meets_a_table_that_is_gone_is_done_anew_and_every_later_one_goes_on(
    namespace: str, damage: str
) -> None:
    one, two, three = (ip_network(f"203.0.113.{number}/32") for number in (10, 20, 30))

    async def test() -> None:
        isolation = Isolation("mux1", "lo")
        await isolation.install([one, two])
        for wanted in ([one, two, three], [three], []):
            assert (await nftables.run(*damage.split())).code == 0
            await isolation.cover(wanted)
            if found := await isolation.look():  # as the keeper does: of a set that was flushed, what was not touched
                await isolation.put_back(found)
            assert _in_kernel(namespace) == sorted(wanted)
            assert await isolation.look() == ()

    netns.inside(namespace, lambda: asyncio.run(test()))


@pytest.mark.lab
def test_what_was_done_to_the_table_is_said_in_words_and_put_back(namespace: str) -> None:
    damages = {
        "delete table inet vipmux_mux1": "was removed",
        "flush set inet vipmux_mux1 vips4": "lost all its VIPs",
        "delete element inet vipmux_mux1 vips4 { 203.0.113.20 }": "lost 1 of its 2 prefixes of VIPs",
        "add element inet vipmux_mux1 vips4 { 192.0.2.1, 192.0.2.2-192.0.2.3 }": "got 2 prefixes that are no VIPs",
        "flush chain inet vipmux_mux1 ingress": "lost its rules",
        "flush chain inet vipmux_mux1 ingress; delete chain inet vipmux_mux1 ingress": "lost its chain",
        "flush chain inet vipmux_mux1 prerouting": "lost its rules",
        "flush chain inet vipmux_mux1 prerouting; delete chain inet vipmux_mux1 prerouting": "lost its chain",
        "add table inet vipmux_mux1 { flags dormant; }": "was switched off",
        "insert rule inet vipmux_mux1 ingress accept": "was changed",
        "add chain inet vipmux_mux1 ingress { policy drop; }": "was changed",
    }

    async def test() -> None:
        isolation = Isolation("mux1", "lo")
        await isolation.install([ip_network("203.0.113.10/32"), ip_network("203.0.113.20/32")])
        for damage, became in damages.items():
            assert await isolation.look() == ()
            assert (await nftables.run("-f", "-", text=damage)).code == 0, damage
            found = await isolation.look()
            assert [difference.became for difference in found] == [became], damage
            await isolation.put_back(found)
        assert await isolation.look() == ()

    netns.inside(namespace, lambda: asyncio.run(test()))


@pytest.mark.lab
def test_without_its_interface_a_change_is_taken_and_made_good_later(namespace: str) -> None:
    async def test() -> None:
        isolation = Isolation("mux1", "v0")
        netns.ip("link", "add", "v0", "type", "veth", "peer", "name", "v1")
        await isolation.install([])
        netns.ip("link", "del", "v0")
        assert (await nftables.run("flush", "ruleset")).code == 0
        await isolation.cover([ip_network("203.0.113.10/32")])
        assert await isolation.look() == ()
        netns.ip("link", "add", "v0", "type", "veth", "peer", "name", "v1")
        if found := await isolation.look():  # some kernels hook by name, others not before there is an interface
            await isolation.put_back(found)
        assert _in_kernel(namespace) == [IPv4Network("203.0.113.10/32")]

    netns.inside(namespace, lambda: asyncio.run(test()))


@pytest.mark.lab
def test_a_renamed_interface_keeps_its_drop_whatever_is_done_and_the_table_of_an_older_version_goes(
    namespace: str,
) -> None:
    vip, other = ip_network("203.0.113.10/32"), ip_network("203.0.113.20/32")

    async def test() -> None:
        netns.ip("link", "add", "v0", "type", "veth", "peer", "name", "v1")
        assert (
            await nftables.run("-f", "-", text="table netdev vipmux_mux1 { set vips4 { type ipv4_addr; }; }")
        ).code == 0
        isolation = Isolation("mux1", "v0")
        await isolation.install([vip])
        assert "netdev" not in (await nftables.run("list", "tables")).output
        netns.ip("link", "set", "v0", "name", "up0")
        for _ in range(2):
            assert await isolation.look() == ()
            await isolation.cover([vip, other])
            assert _in_kernel(namespace) == [vip, other]
            assert (await nftables.run("flush", "ruleset")).code == 0
            assert [difference.became for difference in await isolation.look()] == ["was removed"]
            await isolation.put_back(())
        assert 'iif "up0" ip daddr @vips4' in (await nftables.run("list", "table", "inet", "vipmux_mux1")).output
        netns.ip("link", "set", "up0", "name", "v0")
        assert [difference.became for difference in await isolation.look()] == ["lost its chain"]
        await isolation.put_back(())
        assert await isolation.look() == ()

    netns.inside(namespace, lambda: asyncio.run(test()))


@pytest.mark.lab
def test_a_run_of_nft_that_is_cancelled_leaves_no_wrong_belief(namespace: str) -> None:
    vips = [IPv4Network(f"203.0.{high}.{low}/32") for high in range(8) for low in range(0, 256, 2)]

    async def test() -> None:
        isolation = Isolation("mux1", "lo")
        await isolation.install([])
        for tick in range(6):
            change = asyncio.create_task(isolation.cover(vips))
            await asyncio.sleep(0.004 * tick)
            change.cancel()
            await asyncio.gather(change, return_exceptions=True)
            await isolation.cover(vips[:1])
            assert _in_kernel(namespace) == vips[:1]
            await isolation.cover([])

    netns.inside(namespace, lambda: asyncio.run(test()))


COUNTED = """
table netdev behind {
	chain ingress {
		type filter hook ingress device "eth0" priority 0; policy accept;
		ip daddr 203.0.113.0/24 counter
	}
}
"""


@pytest.mark.lab
def test_no_packet_of_a_vip_comes_through_while_the_kernel_gets_a_new_set(namespace: str) -> None:
    """Of those that stay; else the machine would reset connections that are none of its own."""
    outside = netns.unique_prefix()
    netns.ip("netns", "add", outside)
    try:
        netns.ip(*f"link add eth0 netns {outside} type veth peer name eth0 netns {namespace}".split())
        for name, address in ((outside, "10.0.1.1/24"), (namespace, "10.0.1.2/24")):
            netns.ip("-n", name, "addr", "add", address, "dev", "eth0")
            netns.ip("-n", name, "link", "set", "eth0", "up")
        netns.ip("-n", outside, "route", "add", "203.0.113.0/24", "via", "10.0.1.2")
        stays, others = IPv4Network("203.0.113.77/32"), [IPv4Network(f"203.0.113.{n}/32") for n in range(2, 64, 2)]
        assert len(others) > GONE_MANY
        isolation, over = Isolation("mux1", "eth0"), threading.Event()
        netns.inside(namespace, lambda: asyncio.run(isolation.install([stays])))
        _nft(namespace, "-f", "-", stdin=COUNTED)
        sender = threading.Thread(target=netns.inside, args=(outside, lambda: _send_until(over, str(stays[0]))))
        sender.start()
        try:
            for _ in range(10):
                netns.inside(namespace, lambda: asyncio.run(isolation.cover([stays, *others])))
                netns.inside(namespace, lambda: asyncio.run(isolation.cover([stays])))
        finally:
            over.set()
            sender.join()
        assert _counted(namespace, "inet", "vipmux_mux1") > 10_000
        assert _counted(namespace, "netdev", "behind") == 0
    finally:
        netns.ip("netns", "del", outside)


def _send_until(over: threading.Event, address: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        while not over.is_set():
            sender.sendto(b"", (address, 9))


def _counted(namespace: str, family: str, table: str) -> int:
    """Packets that the first rule for IPv4 in a table met."""
    found = re.search(r"ip daddr .* counter packets (\d+)", _nft(namespace, "list", "table", family, table))
    assert found is not None
    return int(found[1])


def _nft(namespace: str, *arguments: str, stdin: str | None = None) -> str:
    argv = ["ip", "netns", "exec", namespace, "nft", *arguments]
    return subprocess.run(argv, input=stdin, capture_output=True, text=True, check=True).stdout


def _in_kernel(namespace: str) -> list[IPv4Network]:
    answer = json.loads(_nft(namespace, "-j", "list", "set", "inet", "vipmux_mux1", "vips4"))
    (found,) = [item["set"] for item in answer["nftables"] if "set" in item]
    return sorted(_network(element) for element in found.get("elem", []))


def _network(element: str | dict[str, dict[str, str | int]]) -> IPv4Network:
    if isinstance(element, str):
        return IPv4Network(element)
    return IPv4Network(f"{element['prefix']['addr']}/{element['prefix']['len']}")
