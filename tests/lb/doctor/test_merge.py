# SPDX-License-Identifier: Apache-2.0
"""What nodes find and what the manager knows becomes one finding for each cause, and nothing of it is lost."""

from __future__ import annotations

import time
from collections.abc import Sequence
from ipaddress import ip_address

import pytest

from lb.doctor.checks.mux import check_vips_not_local
from lb.doctor.merge import NodeReport, merged
from lb.doctor.model.findings import Finding, Severity, fault, ok, unknown, warning

HOSTED = {
    "host1": ["backend web/web-1", "backend files/files-1"],
    "host2": ["backend web/web-2", "backend files/files-2"],
}
WEB1 = ("backend web/web-1",)


def firewall(*about: str) -> Finding:
    return fault("host_firewall", "drops TCP port 8080", "`nft insert`", cause="host_firewall", about=about)


def down(*about: str) -> Finding:
    return fault("backend", f"{about[0]} is down: connection timed out", "`lb drain`", cause="backend", about=about)


def panic(*about: str) -> Finding:
    return fault("panic", "service web: 1 of 2 backends are healthy", "repair", about=about)


def way(check: str = "protocol_4", *about: str) -> Finding:
    return fault(check, "IP-in-IP is dropped", "allow it", about=about or WEB1)


def shown(own: Sequence[Finding], *said: NodeReport) -> list[tuple[str, Severity]]:
    found = merged(own, said, HOSTED)
    return [(one.check, one.severity) for one in found if one.severity is not Severity.OK]


FAULT, WARNING, UNKNOWN, OK = Severity
BGP = fault("bgp_password", "its password is another", "make it equal")
FLEET_BGP = fault("bgp", "is down", "look", cause="bgp", about=("mux mux1: bgp", "mux mux1"))
UNHEARD = warning("announced", "mux2 alone", "look", about=("mux mux1",))
UNTOLD = warning("announcement", "does not announce 2 VIPs", "look", about=("mux mux1",))
AWAY = fault("node", "agent host1 is away", "start it", cause="node", about=("agent host1: node", *HOSTED["host1"]))


@pytest.mark.parametrize(
    ("own", "said", "left"),
    [
        pytest.param([], [], [], id="nothing"),
        pytest.param(
            [down(*WEB1), panic(*WEB1)],
            [
                NodeReport("agent", "host1", [firewall(*WEB1)]),
                NodeReport("mux", "mux1", [way()]),
                NodeReport("mux", "mux2", [way()]),
            ],
            ["host_firewall"],
            id="what a host knows explains what MUXes and the manager see",
        ),
        pytest.param(
            [down(*WEB1)],
            [NodeReport("mux", "mux1", [way()]), NodeReport("mux", "mux2", [way()])],
            ["protocol_4"],
            id="what two MUXes say of one way is one finding",
        ),
        pytest.param(
            [],
            [
                NodeReport("agent", "host1", [firewall(*WEB1)]),
                NodeReport("agent", "host2", [firewall("backend web/web-2")]),
                NodeReport("mux", "mux1", [way("protocol_4", *WEB1, "backend web/web-2")]),
            ],
            ["host_firewall", "host_firewall"],
            id="what a MUX says of two hosts, each of which knows better",
        ),
        pytest.param(
            [],
            [
                NodeReport("agent", "host1", [firewall(*WEB1)]),
                NodeReport("mux", "mux1", [way("protocol_4", *WEB1, "backend web/web-2")]),
            ],
            ["host_firewall", "protocol_4"],
            id="and of two of which one is well by its own word",
        ),
        pytest.param(
            [],
            [
                NodeReport("mux", "mux1", [way("unreachable")]),
                NodeReport("mux", "mux2", [way("unreachable", "backend web/web-2")]),
            ],
            ["unreachable", "unreachable"],
            id="and of two ways it is two",
        ),
        pytest.param(
            [down(*WEB1), down("backend web/web-2"), panic("backend web/web-1", "backend web/web-2")],
            [NodeReport("agent", "host1", [firewall(*WEB1)])],
            ["host_firewall", "backend"],
            id="what a host does not explain stays",
        ),
        pytest.param(
            [down(*WEB1), panic(*WEB1)], [], ["backend"], id="without a node's word the manager's is grouped as well"
        ),
        pytest.param(
            [FLEET_BGP, UNHEARD, UNTOLD],
            [NodeReport("mux", "mux1", [BGP])],
            ["bgp_password"],
            id="a session that is down, and all that is not announced for it",
        ),
        pytest.param([FLEET_BGP, UNHEARD, UNTOLD], [], ["bgp"], id="the same by the manager's word alone"),
        pytest.param(
            [FLEET_BGP],
            [NodeReport("mux", "mux2", [BGP])],
            ["bgp_password", "bgp"],
            id="of another MUX it explains nothing",
        ),
        pytest.param(
            [AWAY, down(*HOSTED["host1"])],
            [NodeReport("mux", "mux1", [way("unreachable", *HOSTED["host1"])])],
            ["unreachable"],
            id="of a host that cannot be reached the agent is away as well",
        ),
        pytest.param(
            [AWAY, down(*HOSTED["host1"])],
            [NodeReport("mux", "mux1", [way("backend", *HOSTED["host1"])])],
            ["backend", "node"],
            id="but not of one whose processes do not listen",
        ),
        pytest.param(
            [],
            [
                NodeReport(
                    "mux", "mux1", [fault("vip_arp", "a machine answers", "there", about=("vip 203.0.113.30",))]
                ),
                NodeReport(
                    "mux", "mux2", list(check_vips_not_local(["203.0.113.30"], {ip_address("203.0.113.30"): "lo"}))
                ),
            ],
            ["local_vip"],
            id="a MUX that has a VIP answers ARP for it",
        ),
        pytest.param(
            [AWAY, down(*HOSTED["host1"])],
            [NodeReport("mux", "mux1", [way("protocol_4", *WEB1)])],
            ["node"],
            id="while an agent is away it is not protocol 4 that is dropped",
        ),
        pytest.param(
            [fault("clock", "of host1", "ntp", about=("agent host1: clock",))],
            [NodeReport("agent", "host1", [fault("clock", "10 min ahead", "ntp")])],
            ["clock"],
            id="what both know of one node is said once",
        ),
        pytest.param(
            [fault("history", "older", "`lb-manager take-over`", cause="backup_restored", about=("history",))],
            [NodeReport(kind, "x", [fault("history", "older", "take over")]) for kind in ("mux", "agent")],
            ["history"],
            id="a backup that was put back is known to all",
        ),
        pytest.param(
            [fault("history", "older", "`lb-manager take-over`", cause="backup_restored", about=("history",))],
            [NodeReport(kind, "x", [fault("manager", "does not follow", "look")]) for kind in ("mux", "agent")],
            ["history"],
            id="nodes that get no orders for a backup do not follow",
        ),
        pytest.param(
            [],
            [NodeReport("mux", "mux1", [fault("manager", "does not follow", "look")])],
            ["manager"],
            id="a node that does not follow for another reason says so",
        ),
        pytest.param(
            [down(*WEB1)],
            [NodeReport("agent", "host1", [warning("settings", "lower", "raise", about=WEB1)])],
            ["settings", "backend"],
            id="a warning is no reason for a fault",
        ),
    ],
)
def test_one_cause_is_one_finding(own: Sequence[Finding], said: Sequence[NodeReport], left: Sequence[str]) -> None:
    assert sorted(check for check, _ in shown(own, *said)) == sorted(left)


def test_what_a_finding_explains_and_who_says_so_too_is_named() -> None:
    said = [NodeReport("agent", "host1", [firewall(*WEB1)]), NodeReport("mux", "mux1", [way()])]
    (found,) = [one for one in merged([panic(*WEB1)], said, HOSTED) if one.severity is FAULT]
    assert found.what.startswith("agent host1 says: drops TCP port 8080")
    assert "panic: service web: 1 of 2" in found.what
    assert "protocol_4: IP-in-IP is dropped" in found.what
    assert found.remedy == "`nft insert`"
    said = [NodeReport("mux", f"mux{number}", [way()]) for number in range(1, 9)]
    (found,) = [one for one in merged([], said, HOSTED) if one.severity is FAULT]
    assert found.what.endswith("; mux mux2, mux mux3, mux mux4, mux mux5 and 3 more say the same")


def test_a_node_that_lies_hides_nothing_of_others() -> None:
    everything = ("backend web/web-2", "mux mux1", "mux mux1: bgp", "agent host2: node", *WEB1)
    lie = NodeReport("agent", "host1", [firewall(*everything)])
    assert shown([down("backend web/web-2"), FLEET_BGP], lie) == [
        ("host_firewall", FAULT),
        ("backend", FAULT),
        ("bgp", FAULT),
    ]
    lie = NodeReport("mux", "mux2", [way("protocol_4", *everything)])
    assert ("bgp", FAULT) in shown([FLEET_BGP], lie)


def test_what_cannot_be_looked_at_is_one_line_and_so_are_nodes_that_did_not_look() -> None:
    blind = [unknown("vip_arp", "needs root"), unknown("certificate", "may not be read")]
    said = [NodeReport("agent", f"host{number}", blind) for number in range(1, 7)]
    said += [NodeReport("mux", f"mux{number}", error="it did not answer within 20 s") for number in (1, 2)]
    found = [one for one in merged([], said, HOSTED) if one.severity is UNKNOWN]
    assert [one.check for one in found] == ["node_view", "node_view"]
    assert "vip_arp (agent host1, agent host2, agent host3, agent host4 and 2 more)" in found[0].what
    assert found[1].what == "mux mux1, mux mux2: not examined: it did not answer within 20 s"
    (more,) = [one for one in merged([], [NodeReport("mux", "m", left_out=7)], {}) if one.severity is UNKNOWN]
    assert "7 more than it may tell" in more.what


def test_ten_thousand_services_that_are_ill_are_soon_sorted() -> None:
    """Each with a reason of its own, and all of them on one host that is away."""
    own = [panic(f"backend s{n}/b") for n in range(10_000)] + [down(f"backend s{n}/b") for n in range(0, 10_000, 2)]
    began = time.process_time()
    assert len(shown(own)) == 10_000
    labels = [f"backend s{n}/b" for n in range(10_000)]
    away = fault("node", "agent host1 is away", "start it", cause="node", about=("agent host1: node", *labels))
    assert shown([away, *own]) == [("node", FAULT)]
    assert time.process_time() - began < 10.0  # some 0.3 s; seconds for each, where all are compared with all


def test_what_is_fine_is_counted() -> None:
    found = merged(
        [ok("node", "mux1 is connected")], [NodeReport("mux", "mux1", fine=30), NodeReport("agent", "h", fine=12)], {}
    )
    assert [(one.check, one.severity) for one in found] == [("node_view", OK), ("node", OK)]
    assert "2 nodes examined their machines, and found 42 things" in found[0].what
