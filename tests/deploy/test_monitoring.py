# SPDX-License-Identifier: Apache-2.0
"""Alert rules and dashboard in ``deploy/``: each alert fires when it should and not else."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
RULES = ROOT / "deploy" / "prometheus" / "vipmux-alerts.yml"
DASHBOARD = ROOT / "deploy" / "grafana" / "vipmux.json"
PAGE = ROOT / "docs" / "monitoring.md"

NAMES = re.findall(r"- alert: (\w+)", RULES.read_text())
M = 'job="lb-manager"'
DAY = 86400

pytestmark = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool (package prometheus) is not installed"
)


@dataclass(frozen=True)
class Case:
    """Series that make the alert fire, series that do not, and after how long it must have fired."""

    alert: str
    fires: dict[str, str]
    quiet: dict[str, str]
    after: str = "3m"


CASES = [
    Case("LbServicePanic", {'lb_panic{service="web"}': "1x40"}, {'lb_panic{service="web"}': "0x40"}, "15s"),
    Case(
        "LbServiceWithoutBackend",
        {'lb_backend_takes_flows{service="web",backend="a"}': "0x40"},
        {
            'lb_backend_takes_flows{service="web",backend="a"}': "0x40",
            'lb_backend_takes_flows{service="web",backend="b"}': "1x40",
        },
        "45s",
    ),
    Case("LbVipNotAnnounced", {'lb_announce_wanted{vip="v"}': "0x40"}, {'lb_announce_wanted{vip="v"}': "2x40"}, "45s"),
    Case(
        "LbVipUnheard",
        {'lb_announce_wanted{vip="v"}': "2x40", f'lb_announced{{{M},vip="v",peer="p",mux="m"}}': "0x40"},
        {
            'lb_announce_wanted{vip="v"}': "2x40",
            f'lb_announced{{{M},vip="v",peer="p",mux="m"}}': "1x40",
            f'lb_announced{{{M},vip="v",peer="p",mux="n"}}': "0x40",
        },
    ),
    Case(
        "LbVipByOneMux",
        {'lb_announced_by{vip="v"}': "1x40", 'lb_announce_wanted{vip="v"}': "2x40"},
        {
            'lb_announced_by{vip="v"}': "2x40",
            'lb_announce_wanted{vip="v"}': "2x40",
            'lb_announced_by{vip="of one MUX"}': "1x40",
            'lb_announce_wanted{vip="of one MUX"}': "1x40",
        },
        "7m",
    ),
    Case(
        "LbMuxAway",
        {'lb_node_connected{kind="mux",node="m"}': "0x40"},
        {'lb_node_connected{kind="mux",node="m"}': "1x40", 'lb_node_connected{kind="agent",node="h"}': "0x40"},
    ),
    Case("LbMuxDiffers", {'lb_mux_differs{mux="m"}': "1x40"}, {'lb_mux_differs{mux="m"}': "0x40"}, "45s"),
    Case(
        "LbAgentAway",
        {'lb_node_connected{kind="agent",node="h"}': "0x40"},
        {'lb_node_connected{kind="agent",node="h"}': "1x40"},
    ),
    Case(
        "LbBackendDown",
        {f'lb_backend_up{{{M},service="web",backend="a"}}': "0x40"},
        {f'lb_backend_up{{{M},service="web",backend="a"}}': "1x40", 'lb_backend_up{job="lb-mux",backend="a"}': "0x40"},
    ),
    Case("LbBgpSessionDown", {'lb_bgp_session_up{peer="p"}': "0x40"}, {'lb_bgp_session_up{peer="p"}': "1x40"}),
    Case(
        "LbGenerationBehind",
        {
            f'lb_generation_wanted{{{M},kind="mux",node="m"}}': "9x40",
            f'lb_generation{{{M},kind="mux",node="m"}}': "8x40",
            f'lb_node_connected{{{M},kind="mux",node="m"}}': "1x40",
        },
        {
            f'lb_generation_wanted{{{M},kind="mux",node="m"}}': "9x40",
            f'lb_generation{{{M},kind="mux",node="m"}}': "9x40",
            f'lb_node_connected{{{M},kind="mux",node="m"}}': "1x40",
            f'lb_generation_wanted{{{M},kind="mux",node="away"}}': "9x40",
            f'lb_generation{{{M},kind="mux",node="away"}}': "0x40",
            f'lb_node_connected{{{M},kind="mux",node="away"}}': "0x40",
        },
    ),
    Case("LbNodeRefused", {'lb_node_refused{node="m"}': "1x40"}, {'lb_node_refused{node="m"}': "0x40"}, "15s"),
    Case(
        "LbConfigRejected", {'lb_config_rejected{instance="m"}': "1x40"}, {'lb_config_rejected{instance="m"}': "0x40"}
    ),
    Case(
        "LbKernelFight", {'lb_kernel_fights{instance="m"}': "1x40"}, {'lb_kernel_fights{instance="m"}': "0x40"}, "15s"
    ),
    Case("LbKernelAmiss", {'lb_kernel_amiss{instance="m"}': "1x40"}, {'lb_kernel_amiss{instance="m"}': "0x40"}),
    Case(
        "LbKernelRepaired",
        {'lb_kernel_repairs_total{instance="m",what="nftables"}': "0x5 1x40"},
        {'lb_kernel_repairs_total{instance="m",what="nftables"}': "7x40"},
    ),
    Case(
        "LbFlowTableNearlyFull",
        {'lb_flows{instance="m"}': "950x60", 'lb_flow_capacity{instance="m"}': "1000x60"},
        {'lb_flows{instance="m"}': "850x60", 'lb_flow_capacity{instance="m"}': "1000x60"},
        "8m",
    ),
    Case(
        "LbDrops",
        {
            'lb_packets_total{instance="m",verdict="drop",reason="ttl_expired"}': "0+300x60",
            'lb_packets_total{instance="m",verdict="forward",reason="forward"}': "0+9000x60",
        },
        {
            'lb_packets_total{instance="m",verdict="drop",reason="ttl_expired"}': "0+30x60",
            'lb_packets_total{instance="m",verdict="forward",reason="forward"}': "0+9000x60",
        },
        "12m",
    ),
    Case(
        "LbPacketsMissed",
        {'lb_io_missed_total{instance="m"}': "0+30x60"},
        {'lb_io_missed_total{instance="m"}': "30x60"},
        "12m",
    ),
    Case(
        "LbWorkerStuck",
        {'lb_worker_bursts_total{instance="m",worker="0"}': "30x60"},
        {'lb_worker_bursts_total{instance="m",worker="0"}': "0+30x60"},
        "4m",
    ),
    Case(
        "LbBackendsUnreachable",
        {'lb_backends_unreachable{instance="m"}': "2x40"},
        {'lb_backends_unreachable{instance="m"}': "0x40"},
    ),
    Case(
        "LbCertificateEndsSoon",
        {'lb_node_certificate_expires_seconds{kind="mux",node="m"}': f"{6 * DAY}x90"},
        {'lb_node_certificate_expires_seconds{kind="mux",node="m"}': f"{9 * DAY}x90"},
        "14m",
    ),
    Case(
        "LbClockSkew",
        {'lb_node_clock_skew_seconds{node="m"}': "-7x60"},
        {'lb_node_clock_skew_seconds{node="m"}': "4x60"},
        "8m",
    ),
    Case(
        "LbTargetDown",
        {'up{job="lb-mux",instance="m"}': "0x40"},
        {'up{job="lb-mux",instance="m"}': "1x40", 'up{job="other",instance="m"}': "0x40"},
    ),
]


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True, check=False, timeout=60)


def test_the_rules_are_rules() -> None:
    done = promtool("check", "rules", RULES)
    assert done.returncode == 0, done.stderr
    assert f"{len(NAMES)} rules found" in done.stdout


def test_every_alert_has_a_case() -> None:
    assert sorted(case.alert for case in CASES) == sorted(NAMES)


def test_every_alert_fires_when_it_should_and_not_else(tmp_path: Path) -> None:
    tests = []
    for case in CASES:
        for series, firing in ((case.fires, True), (case.quiet, False)):
            query = f'count(ALERTS{{alertname="{case.alert}",alertstate="firing"}})'
            samples = [{"labels": "{}", "value": 1}] if firing else []
            tests.append(
                {
                    "name": f"{case.alert} {'fires' if firing else 'is quiet'}",
                    "interval": "15s",
                    "input_series": [{"series": name, "values": values} for name, values in series.items()],
                    "promql_expr_test": [{"expr": query, "eval_time": case.after, "exp_samples": samples}],
                }
            )
    path = tmp_path / "alerts.yml"  # JSON is YAML
    path.write_text(json.dumps({"rule_files": [str(RULES)], "evaluation_interval": "15s", "tests": tests}))
    done = promtool("test", "rules", path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_says_what_it_means_and_where_to_read_on() -> None:
    text = RULES.read_text()
    headings = {line.removeprefix("### ").lower() for line in PAGE.read_text().splitlines() if line.startswith("### ")}
    for rule in text.split("- alert: ")[1:]:
        name = rule.split("\n", 1)[0]
        for key in ("summary: ", "description: ", "severity: "):
            assert key in rule, name
        assert f"runbook: docs/monitoring.md#{name.lower()}" in rule
        assert name.lower() in headings, "docs/monitoring.md has a paragraph for each alert"


def test_the_dashboard_is_whole() -> None:
    board = json.loads(DASHBOARD.read_text())
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) >= 15
    assert all(target["expr"] for panel in panels for target in panel["targets"])
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells
