# SPDX-License-Identifier: Apache-2.0
"""The texts that nft gets, and (in a namespace) that nft takes them."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from lb.mux.isolation import install_text, remove_text, step_text, table_name, update_text
from lb.mux.prefixes import Cover

VIPS = [ip_network(text) for text in ("203.0.113.10/32", "203.0.113.0/28", "203.0.113.16/28", "2001:db8::10/128")]


def test_the_table_is_named_after_the_mux() -> None:
    assert table_name("mux1") == "vipmux_mux1"
    assert table_name("mux-1.example") == "vipmux_mux_1_example"


def test_overlapping_vips_become_one_interval() -> None:
    text = install_text("vipmux_mux1", "eth0", Cover(VIPS))
    assert "elements = { 203.0.113.0/27 }" in text
    assert "elements = { 2001:db8::10/128 }" in text


def test_installing_replaces_what_an_earlier_life_left() -> None:
    lines = install_text("t", "eth0", Cover(VIPS)).splitlines()
    assert lines[:3] == ["add table netdev t", "delete table netdev t", "table netdev t {"]


def test_an_update_holds_exactly_the_given_vips() -> None:
    assert update_text("t", Cover(VIPS[:1])).splitlines() == [
        "flush set netdev t vips4",
        "add element netdev t vips4 { 203.0.113.10/32 }",
        "flush set netdev t vips6",
    ]


def test_a_step_says_what_differs_and_what_goes_goes_first() -> None:
    cover = Cover(VIPS[:2])
    step = cover.step([ip_network("203.0.113.16/28"), ip_network("2001:db8::10/128")], [])
    assert step_text("t", step).splitlines() == [
        "delete element netdev t vips4 { 203.0.113.0/28 }",
        "add element netdev t vips4 { 203.0.113.0/27 }",
        "add element netdev t vips6 { 2001:db8::10/128 }",
    ]


@pytest.mark.parametrize("vips", [[], VIPS])
def test_removing_works_with_and_without_a_table(vips: list[object]) -> None:
    assert remove_text("t").splitlines() == ["add table netdev t", "delete table netdev t"]
