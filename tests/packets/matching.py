# SPDX-License-Identifier: Apache-2.0
"""Which service a packet belongs to: longer prefix first, then exact port, range, any port."""

from __future__ import annotations

from tests.packets.build import ipv4, ipv6, tcp, udp
from tests.packets.world import LOWER, NET6, RANGE, REST, WEB, WEB6, WHOLE, drops, forwards

ROWS = (
    forwards("an exact port is found", ipv4(tcp(dport=80)), WEB),
    forwards("the first port of a range is in it", ipv4(tcp(dport=8000)), RANGE),
    forwards("the last port of a range is in it", ipv4(tcp(dport=8099)), RANGE),
    forwards("a port below the range falls to the wider prefix", ipv4(tcp(dport=7999)), LOWER),
    forwards("a port above the range falls to the wider prefix", ipv4(tcp(dport=8100)), LOWER),
    forwards("an exact port beats a range and any port", ipv4(tcp(dport=80), to="203.0.113.11"), WEB),
    forwards("a range beats any port", ipv4(tcp(dport=81), to="203.0.113.11"), RANGE),
    forwards("any port takes the rest", ipv4(tcp(dport=22), to="203.0.113.11"), REST),
    forwards("any port takes port zero", ipv4(tcp(dport=0), to="203.0.113.11"), REST),
    forwards("any port takes port 65535", ipv4(tcp(dport=65535), to="203.0.113.11"), REST),
    forwards("a longer prefix of any port beats a shorter one of this port", ipv4(tcp(), to="203.0.113.9"), LOWER),
    forwards("the first address of a prefix is in it", ipv4(tcp(dport=9), to="203.0.113.8"), LOWER),
    forwards("the last address of a prefix is in it", ipv4(tcp(dport=9), to="203.0.113.15"), LOWER),
    forwards("the address behind a prefix is in the shorter one", ipv4(tcp(), to="203.0.113.16"), WHOLE),
    drops("a VIP's closed port is no service", ipv4(tcp(dport=81), to="203.0.113.16"), "no_service"),
    drops("TCP does not match a service of UDP", ipv4(udp(dport=80)), "no_service"),
    drops("UDP does not match a service of TCP", ipv4(udp(dport=8000)), "no_service"),
    drops("a service without backends is no backend", ipv4(tcp(), to="203.0.113.201"), "no_backend"),
    drops("a service that only drains is no backend for a new flow", ipv4(tcp(), to="203.0.113.202"), "no_backend"),
    forwards("an IPv6 address beats its prefix", ipv6(tcp(dport=80)), WEB6),
    forwards("an IPv6 prefix takes the rest", ipv6(tcp(dport=81)), NET6),
    drops("an IPv6 VIP's closed port is no service", ipv6(udp(dport=54)), "no_service"),
)
