# SPDX-License-Identifier: Apache-2.0
"""ExaBGP's configuration, judged by ExaBGP's own parser."""

from __future__ import annotations

import sys
from base64 import b64decode
from dataclasses import replace
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lb.bgp import helper
from lb.bgp.exabgp_config import exabgp_config
from lb.bgp.routes import Speaks
from lb.errors import IoError
from lb.model import BgpFamily, BgpPeer
from tests.lb.bgp.values import INSIDE, OUTSIDE, SPEAKS

HELPER = [sys.executable, "-I", "-S", str(Path(helper.__file__)), "name", "1000"]


def parsed(text: str) -> dict[str, Any]:
    """The neighbours that ExaBGP finds in a configuration, by address."""
    from exabgp.configuration.configuration import Configuration
    from exabgp.environment import getenv
    from exabgp.logger import log

    log.silence()
    getenv()
    configuration = Configuration([text], text=True)
    assert configuration.reload(), str(configuration.error)
    return {str(neighbour["peer-address"]): neighbour for neighbour in configuration.neighbors.values()}


def with_peers(*peers: BgpPeer) -> Speaks:
    return replace(SPEAKS, settings=replace(SPEAKS.settings, peers=peers))


def test_exabgp_reads_every_setting() -> None:
    neighbours = parsed(exabgp_config(SPEAKS, HELPER))
    assert neighbours.keys() == {"10.0.1.1", "10.0.1.2"}
    outside = neighbours["10.0.1.1"]
    assert str(outside["local-address"]) == "10.0.1.11"
    assert str(outside["router-id"]) == "10.0.1.11"
    assert (int(outside["local-as"]), int(outside["peer-as"]), int(outside["hold-time"])) == (65001, 65000, 3)
    assert outside["adj-rib-out"] is True
    assert outside["passive"] is False
    assert {str(afi) for afi, _ in outside.families()} == {"ipv4", "ipv6"}
    assert {str(afi) for afi, _ in neighbours["10.0.1.2"].families()} == {"ipv4"}
    assert outside.api["neighbor-changes"] == ["vipmux"]


def test_graceful_restart_is_never_offered() -> None:
    for neighbour in parsed(exabgp_config(SPEAKS, HELPER)).values():
        assert not neighbour["capability"]["graceful-restart"]


def test_ttl_security_is_set_both_ways_where_asked_for() -> None:
    neighbours = parsed(exabgp_config(with_peers(replace(OUTSIDE, gtsm=True), INSIDE), HELPER))
    assert (neighbours["10.0.1.1"]["outgoing-ttl"], neighbours["10.0.1.1"]["incoming-ttl"]) == (255, 255)
    assert neighbours["10.0.1.2"]["outgoing-ttl"] is None


def test_ipv6_session_has_our_ipv6_address() -> None:
    peer = BgpPeer("six", IPv6Address("fd00:1::1"), 65000, (BgpFamily.IPV6,))
    (neighbour,) = parsed(exabgp_config(with_peers(peer), HELPER)).values()
    assert str(neighbour["local-address"]) == "fd00:1::11"


@settings(deadline=None, max_examples=50)
@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=20))
def test_any_password_arrives_as_it_is_and_ends_no_quotes(password: str) -> None:
    (neighbour,) = parsed(exabgp_config(with_peers(replace(OUTSIDE, password=password)), HELPER)).values()
    assert b64decode(neighbour["md5-password"]).decode() == password
    assert neighbour["md5-base64"] is True


def test_names_of_peers_are_not_in_the_configuration() -> None:
    peer = replace(OUTSIDE, name='"; } process x { run /bin/sh; }')
    assert "/bin/sh" not in exabgp_config(with_peers(peer), HELPER)


@pytest.mark.parametrize("word", ["/opt/my python/bin/python", "/opt/a;b", "/opt/{x}", "/opt/'q'", "/opt/#1", ""])
def test_a_path_that_exabgp_would_take_apart_is_refused(word: str) -> None:
    with pytest.raises(IoError, match="plain characters"):
        exabgp_config(SPEAKS, [word])
