# SPDX-License-Identifier: Apache-2.0
"""The program ``lb`` as operators run it: exit codes, one sentence for each error, and never a traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lb.cli.commands.top import Sample, rates
from lb.cli.terminal.output import plural
from lb.tables.values import cell, size

ROOT = Path(__file__).parents[3]
CASES = ROOT / "tests" / "lb" / "config" / "cases"
MUX = ROOT / "deploy" / "mux.toml"


def lb(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "lb.cli.main", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Traceback" not in done.stdout + done.stderr
    return done


def refused(*arguments: object, code: int = 2) -> str:
    """What a request that fails prints: one sentence on stderr, nothing on stdout."""
    done = lb(*arguments)
    assert done.returncode == code, done
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1 or done.stderr.startswith("Usage:")
    return done.stderr


def test_help_lists_every_command_and_starts_fast() -> None:
    times = []
    for _ in range(5):
        start = time.monotonic()
        done = lb("--help")
        times.append(time.monotonic() - start)
    assert done.returncode == 0
    assert all(name in done.stdout for name in ("check", "lookup", "replay", "reasons", "get", "top", "bench"))
    assert min(times) < 0.5  # 100 ms on an idle machine


def test_starting_imports_nothing_heavy() -> None:
    heavy = ["rich", "pyroute2", "scapy", "asyncio", "lb._dataplane", "structlog", "prometheus_client"]
    code = f"import sys, lb.cli.main; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- check -----------------------------------------------------------------------------------------------------------


def test_check_lists_ten_mistakes_and_exits_2() -> None:
    done = lb("check", CASES / "ten_mistakes.toml")
    assert (done.returncode, done.stderr) == (2, "")
    assert done.stdout == (CASES / "ten_mistakes.err").read_text()


def test_check_prints_a_summary_and_exits_0() -> None:
    done = lb("check", ROOT / "deploy" / "agent.toml")
    assert done.returncode == 0
    assert "a host agent's file" in done.stdout


def test_check_prints_the_memory_that_a_mux_needs() -> None:
    pytest.importorskip("lb._dataplane")
    done = lb("check", MUX)
    assert done.returncode == 0, done
    assert "memory" in done.stdout
    answer = json.loads(lb("check", MUX, "--json").stdout)
    assert answer["ok"] is True
    assert answer["memory"]["maglev"] == 65537 + 4093  # of fewer than 256 backends each: a byte for each slot
    assert 8 * 1_000_000 < answer["memory"]["flow_tables"] < 32 * 1_000_000


def test_check_says_mistakes_in_json_too() -> None:
    done = lb("check", "-o", "json", CASES / "ten_mistakes.toml")
    assert done.returncode == 2
    answer = json.loads(done.stdout)
    assert (answer["ok"], len(answer["mistakes"])) == (False, 10)
    assert answer["mistakes"][0]["path"] == "mux.address"


def test_check_prints_the_canonical_form() -> None:
    done = lb("check", "--print", MUX)
    assert done.stdout == (CASES / "deploy-mux.ok").read_text()


def test_check_of_what_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    for path in (tmp_path / "none.toml", tmp_path, CASES / "syntax_twice.toml"):
        done = lb("check", path)
        assert (done.returncode, done.stdout.count("\n")) == (2, 1)


# --- requests that make no sense -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["dance"],
        ["check"],
        ["check", "a", "b"],
        ["lookup"],
        ["lookup", "--config", MUX, "--proto", "icmp", "--src", "1.2.3.4:1", "--dst", "203.0.113.10:80"],
        ["get", "flowers", "--local"],
        ["bench", "pipeline", "--flows", "0"],
        ["reasons", "--json", "-o", "table"],
        ["replay", "--config", MUX],
    ],
    ids=lambda arguments: " ".join(map(str, arguments[:2])) or "nothing",
)
def test_wrong_usage_exits_2(arguments: list[object]) -> None:
    done = lb(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Usage:" in done.stderr


@pytest.mark.parametrize("end", ["192.0.2.1", "192.0.2.1:65536", "2001:db8::1:80", "[192.0.2.1]:80", ":80", "web:80"])
def test_an_end_that_is_no_address_and_port_is_refused(end: str) -> None:
    assert "--src" in refused("lookup", "--config", MUX, "--proto", "tcp", "--src", end, "--dst", "203.0.113.10:80")


def test_ends_of_two_families_are_refused() -> None:
    ends = ["--src", "[2001:db8::1]:1", "--dst", "203.0.113.10:80"]
    assert "family" in refused("lookup", "--config", MUX, "--proto", "tcp", *ends)


def test_lookup_with_a_wrong_file_lists_its_mistakes_on_stderr() -> None:
    ends = ["--proto", "tcp", "--src", "192.0.2.1:1", "--dst", "203.0.113.10:80"]
    done = lb("lookup", "--config", CASES / "ten_mistakes.toml", *ends)
    assert (done.returncode, done.stdout) == (2, "")
    assert "10 mistakes" in done.stderr


def test_without_a_manager_get_says_what_to_add() -> None:
    assert "--local" in refused("get", "services")


def test_a_daemon_that_is_not_there_is_bad_news(tmp_path: Path) -> None:
    assert "no daemon listens here" in refused("get", "services", "--socket", tmp_path / "mux.sock", code=1)
    (tmp_path / "mux.toml").write_text(f'[mux]\nstate_dir = "{tmp_path}"\n')
    said = refused("top", "--local", "--config", tmp_path / "mux.toml", code=1)
    assert f"{tmp_path}/mux.sock" in said


def test_output_into_a_closed_pipe_is_silent() -> None:
    command = f"{sys.executable} -m lb.cli.main check {CASES / 'vips.toml'} | head -1"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr == ""


# --- a daemon's answers ----------------------------------------------------------------------------------------------

SERVICES = [
    {
        "name": f"web-{i}",
        "vip": "2001:db8:100:200:300:400:500:600",
        "protocol": "tcp",
        "port": "8000-8099",
        "backends": 3,
        "packets": 1_234_567 * i,
        "bytes": 9_876_543_210 * i,
        "flows_new": 5 * i,
    }
    for i in range(3)
]
MUXES = [{"name": "mux1", "state": "serving", "io": "packet", "mode": None, "reason": "no \x1b[31mxdp", "received": 5}]
ANSWERS: dict[str, Any] = {
    "services": SERVICES,
    "muxes": MUXES,
    "backends": "not a table",
    "top": {"mux": MUXES[0], "services": SERVICES},
    "lookup": {"service": "web", "slot": 5, "backend": None, "address": None},
}


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Path]:
    """A control server in a thread of its own, with answers of our choice."""
    import asyncio

    from lb.daemon.control_socket import ControlServer

    path = tmp_path / "mux.sock"
    loop = asyncio.new_event_loop()
    handlers = {
        "get": lambda asked: ANSWERS[asked["what"]],
        "top": lambda _: ANSWERS["top"],
        "lookup": lambda _: ANSWERS["lookup"],
    }
    server = ControlServer(path, handlers)
    loop.run_until_complete(server.start())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield path
    asyncio.run_coroutine_threadsafe(server.close(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()


def test_get_shows_a_table_of_80_columns_or_json(daemon: Path) -> None:
    done = lb("get", "services", "--socket", daemon)
    assert done.returncode == 0, done
    assert all(len(line) <= 80 for line in done.stdout.splitlines())
    assert "web-2" in done.stdout
    assert "\x1b" not in done.stdout
    assert json.loads(lb("get", "services", "--socket", daemon, "-o", "json").stdout) == SERVICES


def test_get_shows_one_mux_as_a_list_without_control_characters(daemon: Path) -> None:
    done = lb("get", "muxes", "--local", "--socket", daemon)
    assert done.returncode == 0, done
    assert "serving" in done.stdout
    assert "\x1b" not in done.stdout


def test_an_answer_of_another_version_is_bad_news(daemon: Path) -> None:
    assert "one version" in refused("get", "backends", "--socket", daemon, code=1)


def test_lookup_without_a_backend_is_bad_news(daemon: Path) -> None:
    ends = ["--proto", "tcp", "--src", "192.0.2.1:1", "--dst", "203.0.113.10:80"]
    done = lb("lookup", *ends, "--local", "--socket", daemon)
    assert (done.returncode, "no backend" in done.stdout) == (1, True)


def test_top_once_prints_one_view(daemon: Path) -> None:
    done = lb("top", "--once", "--interval", "0.1", "--local", "--socket", daemon)
    assert done.returncode == 0, done
    assert "web-1" in done.stdout
    assert all(len(line) <= 80 for line in done.stdout.splitlines())


def test_top_sorts_by_rate_and_knows_no_negative_rates() -> None:
    def row(name: str, packets: int) -> dict[str, Any]:
        return {"name": name, "vip": "v", "port": 80, "protocol": "tcp", "packets": packets, "bytes": packets * 100}

    before = Sample(10.0, {}, [row("slow", 0), row("fast", 0), row("restarted", 900)])
    after = Sample(12.0, {}, [row("slow", 20), row("fast", 4000), row("restarted", 5), row("new", 7)])
    assert [(r.service, r.pps) for r in rates(before, after)] == [
        ("fast", 2000),
        ("slow", 10),
        ("new", 0),
        ("restarted", 0),
    ]
    assert msgspec.to_builtins(rates(before, after)[0])["mbit/s"] == 1.6


def test_cells_read_well() -> None:
    assert [cell(value) for value in (None, True, 1234567, 1.25, [], ["a", 2])] == [
        "-",
        "yes",
        "1,234,567",
        "1.2",
        "-",
        "a, 2",
    ]
    assert [size(5), size(2**20), size(3 * 2**30)] == ["5 bytes", "1.0 MiB", "3.0 GiB"]
    assert [plural(1, "address"), plural(2, "address"), plural(1000, "flow")] == [
        "1 address",
        "2 addresses",
        "1,000 flows",
    ]


def test_the_seed_of_the_example_is_noted(tmp_path: Path) -> None:
    example, own = "00112233445566778899aabbccddeeff", "10112233445566778899aabbccddeeff"
    path = tmp_path / "mux.toml"
    path.write_text(MUX.read_text().replace(example, own))
    for file, noted in ((MUX, True), (path, False)):
        notes = json.loads(lb("check", file, "-o", "json").stdout)["notes"]
        assert any("the seed is that of the example" in note for note in notes) is noted
