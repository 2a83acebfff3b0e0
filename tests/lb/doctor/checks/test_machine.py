# SPDX-License-Identifier: Apache-2.0
"""Checks of any machine: tables of what was seen, and what is said of it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lb.daemon.process.privileges import Capability
from lb.doctor.checks import machine
from lb.doctor.model.facts import (
    CertificateFile,
    Clock,
    ConntrackUse,
    DaemonSeen,
    Disk,
    Interface,
    Kernel,
    Private,
    Rights,
    Role,
    Twin,
)
from lb.doctor.model.findings import Finding, Severity, explained, fault, ok, ordered, verdict

ROOT = Path(__file__).parents[4]
FAULT, WARNING, UNKNOWN, OK = Severity
FILE = "/etc/vipmux/mux.toml"
RUNS = DaemonSeen("/s/mux.sock", True, pid=7, capabilities=0)
GONE = DaemonSeen("/s/mux.sock", False, error="/s/mux.sock: is not there")
MUTE = DaemonSeen("/s/mux.sock", False, error="/s/mux.sock: permission denied", may_ask=False)
ALL = (1 << 41) - 1
GIB = 1 << 30


def only(findings: list[Finding], check: str) -> Finding:
    (found,) = [finding for finding in findings if finding.check == check]
    return found


def test_every_check_has_its_line_in_the_documentation() -> None:
    made = r'\b(?:ok|fault|warning|unknown|say)\(\s*"(\w+)"'
    checks = {name for path in (ROOT / "lb" / "doctor").rglob("*.py") for name in re.findall(made, path.read_text())}
    page = (ROOT / "docs" / "doctor.md").read_text()
    assert len(checks) > 30
    assert checks - set(re.findall(r"`(\w+)`", page)) == set()


def test_every_cause_stands_in_the_documentation() -> None:
    files = [path.read_text() for path in (ROOT / "lb" / "doctor").rglob("*.py")]
    causes = {name for text in files for name in re.findall(r'\bcause="(\w+)"', text)}
    assert {"vip_missing", "daemon_down"} <= causes
    assert causes - set(re.findall(r"`(\w+)`", (ROOT / "docs" / "doctor.md").read_text())) == set()


def test_the_verdict_counts_and_the_worst_comes_first() -> None:
    found = [Finding("a", severity, "x") for severity in (OK, WARNING, FAULT, OK, UNKNOWN, FAULT)]
    assert verdict(found) == "2 faults, 1 warning, 1 not looked at, 2 checks fine"
    assert [finding.severity for finding in ordered(found)] == [FAULT, FAULT, WARNING, UNKNOWN, OK, OK]
    assert verdict([Finding("a", OK, "x")]) == "no faults, 1 check fine"


def kept(**differs: object) -> dict[str, object]:
    """A row of what was put back, as a daemon's status has it."""
    row = {"what": "nftables", "name": "table inet vipmux_mux1", "became": "was removed", "by": "nft (pid 42)"}
    return {**row, "count": 3, "last": 1000.0, "amiss": False, "fight": False, "failed": None, **differs}


@pytest.mark.parametrize(
    ("rows", "severity", "said"),
    [
        ([], OK, "what lb-mux put into the kernel is there"),
        (
            [kept()],
            WARNING,
            "table inet vipmux_mux1 was removed by nft (pid 42); lb-mux put it back 3 times, the last time 10 s ago",
        ),
        ([kept(last=1010.0 - 7200.0)], OK, "what lb-mux put into the kernel is there, after 3 repairs since its start"),
        (
            [kept(fight=True, count=9)],
            FAULT,
            "another program undoes table inet vipmux_mux1 again and again by nft (pid 42); lb-mux put it back 9 "
            "times, the last time 10 s ago, and does so ever more rarely",
        ),
        (
            [kept(failed="nft is not installed", amiss=True, by=None)],
            FAULT,
            "table inet vipmux_mux1 was removed, and lb-mux cannot put it back: nft is not installed",
        ),
    ],
)
def test_what_was_put_back_into_the_kernel_is_told_with_how_often_when_and_by_whom(
    rows: list[dict[str, object]], severity: Severity, said: str
) -> None:
    daemon = replace(RUNS, status={"kernel": rows})
    (found,) = machine.check_repairs(Role.MUX, daemon, 1010.0)
    assert (found.check, found.severity, found.what) == ("kernel_kept", severity, said)


@pytest.mark.parametrize(
    ("row", "check", "stays"),
    [
        ({"what": "nftables", "fight": True}, "translation", False),
        ({"what": "nftables", "failed": "nft is not installed"}, "isolation", False),
        ({"what": "sysctl", "fight": True}, "vip_arp", False),
        ({"what": "sysctl", "fight": True}, "translation", True),
        ({"what": "nftables", "fight": False, "failed": None, "amiss": True}, "translation", True),
        ({"what": "filter", "fight": True}, "host_firewall", True),
    ],
)
def test_what_is_undone_again_and_again_is_not_told_a_second_time(row: dict[str, Any], check: str, stays: bool) -> None:
    found = [fault(check, "it is gone", "put it back"), ok(check, "something else is there")]
    left = list(machine.but_undone(found, replace(RUNS, status={"kernel": [row]})))
    assert left == (found if stays else found[1:])


def test_a_filter_of_others_that_stands_before_the_agents_is_not_called_a_repair_that_fails() -> None:
    row = {"what": "filter", "name": "the bpf filter of priority 1", "became": "stands before", "failed": "not ours"}
    told = {"kernel": [row], "filters_ahead": ["the bpf filter of priority 1"]}
    (found,) = machine.check_repairs(Role.AGENT, replace(RUNS, status=told), 0.0)
    assert found.severity is OK


@pytest.mark.parametrize("why", ["the certificate expired", "closed the connection at once"])
def test_a_certificate_that_ended_explains_why_the_manager_is_not_followed(why: str) -> None:
    ended = machine.check_certificate(Role.MUX, "mux1", FILE, CertificateFile("node.pem", "mux:mux1", 0.0, 10.0), 20.0)
    connection = {"url": "https://m", "connected": False, "problem": why}
    found = explained([*ended, *machine.check_manager(Role.MUX, "mux1", FILE, connection)])
    assert [one.check for one in found] == ["certificate"]


def test_of_a_daemon_that_does_not_tell_what_it_keeps_nothing_is_said() -> None:
    assert list(machine.check_repairs(Role.MUX, GONE, 0.0)) == []


@pytest.mark.parametrize(
    ("daemon", "severity", "words"),
    [
        (RUNS, OK, "lb-mux runs (pid 7)"),
        (GONE, FAULT, "does not run here: /s/mux.sock: is not there"),
        (MUTE, UNKNOWN, "was not asked"),
    ],
)
def test_a_daemon_that_is_not_there_is_told_from_one_that_may_not_be_asked(
    daemon: DaemonSeen, severity: Severity, words: str
) -> None:
    found = only(list(machine.check_daemon(Role.MUX, FILE, daemon)), "daemon")
    assert found.severity is severity
    assert words in found.what


def test_a_refused_configuration_is_a_fault() -> None:
    daemon = replace(RUNS, status={"rejected": "service[0].vip: is no address"})
    found = only(list(machine.check_daemon(Role.MUX, FILE, daemon)), "configuration")
    assert found.severity is FAULT
    assert "service[0].vip" in found.what
    assert f"lb check {FILE}" in (found.remedy or "")


RAW = 1 << Capability.NET_RAW
NEEDED = (Capability.NET_ADMIN, Capability.NET_RAW)


@pytest.mark.parametrize(
    ("daemon", "own", "severity", "words"),
    [
        (replace(RUNS, capabilities=ALL), 0, OK, "has the rights"),
        (replace(RUNS, capabilities=RAW), ALL, FAULT, "runs without CAP_NET_ADMIN"),
        (GONE, ALL, OK, "this shell has the rights"),
        (MUTE, 0, UNKNOWN, "cannot be seen"),
    ],
)
def test_rights_are_those_of_the_daemon_or_of_who_would_start_it(
    daemon: DaemonSeen, own: int, severity: Severity, words: str
) -> None:
    (found,) = machine.check_rights(Role.MUX, FILE, NEEDED, daemon, Rights(False, own))
    assert found.severity is severity
    assert words in found.what


def test_a_daemon_that_is_down_and_cannot_be_started_from_here_is_one_finding() -> None:
    assert list(machine.check_rights(Role.MUX, FILE, NEEDED, GONE, Rights(False, ALL & ~RAW))) == []
    lacking = machine.lacking_of(NEEDED, ALL & ~RAW)
    (found,) = machine.check_daemon(Role.MUX, FILE, GONE, lacking=lacking)
    assert (found.check, found.severity) == ("privileges", FAULT)
    assert "does not run here" in found.what
    assert "this shell lacks CAP_NET_RAW" in found.what
    assert (found.remedy or "").startswith("start it as root, or by its unit: `systemctl start lb-mux`")


@pytest.mark.parametrize(
    ("kernel", "tun", "wrong"),
    [
        (Kernel("6.1.0", True, None), False, []),
        (Kernel("5.4.0-generic", True, None), False, [("kernel", FAULT)]),
        (Kernel("5.10.1", False, None), False, [("nft", FAULT)]),
        (Kernel("6.1.0", True, "no such file or directory"), False, [("tun", WARNING)]),
        (Kernel("6.1.0", True, "no such file or directory"), True, [("tun", FAULT)]),
        (Kernel("6.1.0", True, "permission denied"), True, [("tun", UNKNOWN)]),
    ],
)
def test_what_the_kernel_lacks_is_named(kernel: Kernel, tun: bool, wrong: list[tuple[str, Severity]]) -> None:
    found = [(f.check, f.severity) for f in machine.check_kernel(kernel, needs_tun=tun) if f.severity is not OK]
    assert found == wrong


ETH0 = Interface("eth0", True, True, True, 1500, False)


@pytest.mark.parametrize(
    ("interface", "wrong", "remedy"),
    [
        (ETH0, [], ""),
        (replace(ETH0, exists=False), [("interface", FAULT)], "`ip link` lists"),
        (replace(ETH0, up=False), [("interface", FAULT)], "`ip link set dev eth0 up`"),
        (replace(ETH0, carrier=False), [("interface", FAULT)], "plug it in"),
        (replace(ETH0, mtu=1450), [("mtu", FAULT)], "`ip link set dev eth0 mtu 1500`"),
        (replace(ETH0, lro=True), [("offloads", WARNING)], "`ethtool -K eth0 lro off`"),
        (replace(ETH0, lro=None), [("offloads", UNKNOWN)], ""),
    ],
)
def test_what_is_wrong_with_the_interface_is_named(
    interface: Interface, wrong: list[tuple[str, Severity]], remedy: str
) -> None:
    found = [f for f in machine.check_interface(interface, 1500, "mux", FILE) if f.severity is not OK]
    assert [(f.check, f.severity) for f in found] == wrong
    assert all(remedy in (f.remedy or "") for f in found)


ROOMY = Disk("/var/lib/lb", 50 * GIB, 100 * GIB, 1000, 2000)


@pytest.mark.parametrize(
    ("disk", "severity", "words"),
    [
        (ROOMY, OK, "50 GiB left"),
        (replace(ROOMY, free=1 << 20), FAULT, "is full (1 MiB of 100 GiB left)"),
        (replace(ROOMY, free=0), FAULT, "is full (0 KiB"),
        (replace(ROOMY, free=30 << 20), WARNING, "only 30 MiB left"),
        (replace(ROOMY, free=3 << 20, total=3 << 20), OK, "3 MiB left"),  # a small one that is empty
        (replace(ROOMY, inodes_free=0), FAULT, "no inode left"),
        (replace(ROOMY, read_only=True), FAULT, "mounted read-only"),
        (Disk("/x", error="no such file or directory"), FAULT, "/x: no such file"),
    ],
)
def test_a_disk_is_full_before_nothing_at_all_is_left(disk: Disk, severity: Severity, words: str) -> None:
    (found,) = machine.check_disk(disk)
    assert found.severity is severity
    assert words in found.what


DAY = 86400.0
HELD = CertificateFile("/s/identity/node.pem", "mux:mux1", 0.0, 30 * DAY)


@pytest.mark.parametrize(
    ("certificate", "now", "severity", "words"),
    [
        (HELD, 10 * DAY, OK, "another 20 days"),
        (HELD, 20 * DAY, WARNING, "ends in 10 days and was not renewed"),
        (HELD, 30 * DAY + 7200, FAULT, "expired 2 h ago"),
        (HELD, -600, FAULT, "becomes valid in 10 min: a clock is wrong"),
        (replace(HELD, owner="mux:other"), DAY, FAULT, "is the certificate of mux:other"),
        (CertificateFile("/s/node.pem", missing=True), DAY, FAULT, "there is no certificate"),
        (CertificateFile("/s/node.pem", error="is damaged"), DAY, FAULT, "is damaged"),
        (CertificateFile("/s/node.pem", error="permission denied"), DAY, UNKNOWN, "may not be read"),
    ],
)
def test_what_is_wrong_with_a_certificate_is_named(
    certificate: CertificateFile, now: float, severity: Severity, words: str
) -> None:
    (found,) = machine.check_certificate(Role.MUX, "mux1", FILE, certificate, now)
    assert found.severity is severity
    assert words in found.what
    if "expired" in words:
        assert "`lb-manager token --config MANAGER.toml --kind mux --name mux1`" in (found.remedy or "")
        assert f"`lb-mux --config {FILE} --token TOKEN`" in (found.remedy or "")


@pytest.mark.parametrize(("left", "severity"), [(3650 * DAY, OK), (30 * DAY, WARNING), (DAY / 2, FAULT), (-DAY, FAULT)])
def test_an_authority_that_ends_is_told_in_time(left: float, severity: Severity) -> None:
    (found,) = machine.check_authority(CertificateFile("/m/ca/ca.pem", "authority", 0.0, left), 0.0)
    assert found.severity is severity


def test_the_managers_own_certificate_is_looked_at() -> None:
    held = CertificateFile("/m/ca/server.pem", "manager:m1", 0.0, DAY)
    assert [f.severity for f in machine.check_server_certificate(held, 0.0)] == [OK]
    assert [f.severity for f in machine.check_server_certificate(held, 2 * DAY)] == [FAULT]
    assert list(machine.check_server_certificate(CertificateFile("/m/ca/server.pem", missing=True), 0.0)) == []


@pytest.mark.parametrize(
    ("clock", "found"),
    [
        (Clock(0, True, 0.4, "https://m"), [("clock", OK)]),
        (Clock(0, False, 0.4, "https://m"), [("clock", OK)]),  # what agrees is right, whoever sets it
        (Clock(0, False, 5.0, "https://m"), [("clock", WARNING)]),
        (Clock(0, True, -600.0, "https://m"), [("clock", FAULT)]),
        (Clock(0, True, None, "https://m", "connection refused"), [("clock", UNKNOWN), ("ntp", OK)]),
        (Clock(0, False), [("ntp", WARNING)]),
        (Clock(0, True), [("ntp", OK)]),
    ],
)
def test_a_clock_is_compared_with_the_managers(clock: Clock, found: list[tuple[str, Severity]]) -> None:
    assert [(f.check, f.severity) for f in machine.check_clock(clock)] == found


@pytest.mark.parametrize(
    ("row", "check", "words"),
    [
        ({"connected": True, "problem": None}, "manager", "certificate"),
        (
            {"problem": "the manager refused: mux:mux1 is connected already, from 10.0.1.11"},
            "duplicate_name",
            "identity",
        ),
        (
            {"problem": "the manager refused: the certificate of mux:mux1 was revoked: mux1 joined anew"},
            "duplicate_name",
            "",
        ),
        ({"problem": "this node's certificate has expired: make a token"}, "manager", "lb-manager token"),
        ({"problem": "https://m:9740: connection refused"}, "manager", "curl -k https://m:9740/v1/ca"),
        ({"problem": "/s: state not kept: no space left", "connected": True}, "manager", "disk"),
    ],
)
def test_why_a_node_does_not_follow_its_manager_decides_the_remedy(
    row: dict[str, object], check: str, words: str
) -> None:
    (found,) = machine.check_manager(Role.MUX, "mux1", FILE, {"url": "https://m:9740", **row})
    assert found.check == check
    if row.get("problem"):
        assert found.severity is FAULT
        assert words in (found.remedy or "")
    else:
        assert found.severity is OK


def test_a_state_that_the_node_refused_is_a_fault() -> None:
    row = {"url": "u", "connected": True, "problem": None, "refused": "203.0.113.11 is local here"}
    first, _ = machine.check_manager(Role.MUX, "mux1", FILE, row)
    assert first.severity is FAULT
    assert "203.0.113.11 is local here" in first.what


def test_two_daemons_of_one_name_on_a_machine_are_named_with_pid_and_file() -> None:
    twins = [Twin(7, "/a.toml", "mux1"), Twin(9, "/b.toml", "mux1"), Twin(11, "/c.toml", "mux2")]
    (found,) = machine.check_twins(Role.MUX, "mux1", twins)
    assert found.severity is FAULT
    assert "pid 7 (/a.toml) and pid 9 (/b.toml)" in found.what
    (found,) = machine.check_twins(Role.MUX, "mux2", twins)
    assert found.severity is OK


@pytest.mark.parametrize(
    ("found", "severity"),
    [
        (ConntrackUse(100, 262144), OK),
        (ConntrackUse(230_000, 262144), WARNING),
        (ConntrackUse(230_000, 262144, dropped=3, seconds=0.5), FAULT),
        (ConntrackUse(262_144, 262144), FAULT),
        (ConntrackUse(90, 100_000, dropped=3), OK),  # a helper's doing, or a race
    ],
)
def test_a_full_table_of_connections_is_told_with_the_setting_that_makes_room(
    found: ConntrackUse, severity: Severity
) -> None:
    (finding,) = machine.check_conntrack(found, "new connections are dropped")
    assert finding.severity is severity
    if severity is not OK:
        assert finding.cause == "conntrack_full"
        assert (finding.remedy or "").startswith("`sysctl -w net.netfilter.nf_conntrack_max=524288`")


def test_without_conntrack_there_is_nothing_to_say_of_it() -> None:
    assert list(machine.check_conntrack(None, "")) == []


STATE = Private("/var/lib/vipmux", 0, 0o700)


@pytest.mark.parametrize(
    ("one", "command"),
    [
        (Private("/var/lib/vipmux/identity", 1001, 0o700), "chown -R 990 /var/lib/vipmux/identity"),
        (Private("/var/lib/vipmux/node", 990, 0o777), "chmod go-w /var/lib/vipmux/node"),
        (Private("/var/lib/vipmux/identity/node.pem", 990, 0o644), "chmod 600 /var/lib/vipmux/identity/node.pem"),
        (Private("/var/lib/vipmux/node", 1001, 0o777, "/tmp/x"), "rm /var/lib/vipmux/node"),
        (Private("/var/lib/vipmux/node", 0, 0o777, "/data/vipmux"), None),
        (Private("/var/lib/vipmux/node/state", 990, 0o644), None),
    ],
)
def test_what_others_may_change_of_a_state_directory_is_named(one: Private, command: str | None) -> None:
    found = [f for f in machine.check_private(Role.MUX, 990, [STATE, one], None) if f.severity is not OK]
    assert [(f.cause, (f.remedy or "").split("`")[1]) for f in found] == ([("state_dir", command)] if command else [])


def test_passwords_that_everybody_may_read_are_named() -> None:
    def said(mode: int) -> list[str | None]:
        file = Private("/etc/vipmux/mux.toml", 0, mode)
        return [f.remedy for f in machine.check_private(Role.MUX, 0, [STATE], file) if f.check == "secrets"]

    assert said(0o644) == ["`chmod o-rwx /etc/vipmux/mux.toml`"]
    assert said(0o640) == []


def test_two_muxes_on_one_interface_are_told() -> None:
    own, other = Twin(1, "one.toml", "mux1", "eth0"), Twin(2, "two.toml", "mux2", "eth0")
    found = [f for f in machine.check_twins(Role.MUX, "mux1", [own, other], interface="eth0") if f.severity is FAULT]
    assert [(f.cause, f.remedy) for f in found] == [
        ("interface_shared", "stop one: `kill 2`; or give it another interface")
    ]
    apart = [own, replace(other, interface="eth1")]
    assert [f.severity for f in machine.check_twins(Role.MUX, "mux1", apart, interface="eth0")] == [OK]


def test_a_manager_whose_store_is_older_is_told_with_what_leads_out() -> None:
    problem = "the store is older than it was (see lb-manager take-over)"
    row = {"url": "https://m:9740", "connected": False, "problem": problem}
    (found,) = machine.check_manager(Role.MUX, "mux1", "mux.toml", row)
    assert (found.check, found.cause) == ("history", "backup_restored")
    assert "`lb-manager take-over" in (found.remedy or "")


@pytest.mark.parametrize(("word", "cause"), [("fight", "repair_fight"), ("failed", "repair_fails")])
def test_who_undoes_what_is_kept_is_the_cause_of_what_follows(word: str, cause: str) -> None:
    row = {"name": "table inet vipmux_agent", "became": "was gone", "count": 9, word: "yes", "last": 1000.0}
    daemon = replace(RUNS, status={"kernel": [row]})
    (found,) = machine.check_repairs(Role.AGENT, daemon, 1010.0, ["backend web/a"])
    assert (found.severity, found.cause, found.about) == (FAULT, cause, ("backend web/a",))


def test_a_daemon_that_is_down_tells_what_of_its_own_is_gone() -> None:
    daemon = DaemonSeen("/s", False, error="is not there")
    (found,) = machine.check_daemon(Role.AGENT, "agent.toml", daemon, ["the nftables table"], ["backend web/a"])
    assert (found.cause, found.about) == ("daemon_down", ("backend web/a",))
    assert "what it left in the kernel is gone: the nftables table" in found.what
