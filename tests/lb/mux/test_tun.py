# SPDX-License-Identifier: Apache-2.0
"""The plan of routes of the TUN mode."""

from __future__ import annotations

from ipaddress import ip_network

from lb.mux.tun import VipRoute, device_name, plan_routes

A, B = ip_network("203.0.113.10/32"), ip_network("203.0.113.128/25")


def test_a_blackhole_stands_behind_a_vip_before_its_route_exists() -> None:
    plan = plan_routes([], [B, A])
    assert plan.add == (VipRoute(A, True), VipRoute(B, True), VipRoute(A, False), VipRoute(B, False))
    assert plan.delete == ()


def test_the_route_goes_before_its_blackhole() -> None:
    plan = plan_routes([VipRoute(A, True), VipRoute(A, False)], [])
    assert plan.delete == (VipRoute(A, False), VipRoute(A, True))


def test_what_is_there_is_left_alone() -> None:
    present = [VipRoute(A, True), VipRoute(A, False)]
    plan = plan_routes(present, [A])
    assert (plan.add, plan.delete) == ((), ())


def test_a_crash_leaves_blackholes_and_only_routes_are_added() -> None:
    assert plan_routes([VipRoute(A, True)], [A]).add == (VipRoute(A, False),)


def test_device_names_fit_the_kernel() -> None:
    assert device_name("mux1") == "lb-mux1"
    assert device_name("a very long name/indeed") == "lb-a-very-long-"
