# SPDX-License-Identifier: Apache-2.0
"""The operator's commands against a real ``lb-manager run``: what they print, how they end, and how fast they start."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from lb.cli.ask import manager as ask_manager
from lb.cli.ask.manager import local_manager
from lb.cli.commands.drain import target
from lb.cli.main import run
from lb.cli.tables.row_tables import TABLES, draw
from lb.errors import ControlError, RequestError
from lb.rows.table import read_rows, rows_of
from lb.tables.layout import columns
from lb.tables.values import ago, endpoint
from tests.lab.pace import allowed
from tests.lb.cli.test_help import ALL, OFFLINE, examples, words

ROOT = Path(__file__).parents[3]

SERVICES = """
[[service]]
name = "web"
vip = "203.0.113.10"
protocol = "tcp"
port = 80
[[service.backend]]
name = "web-1"
address = "10.0.3.21"
port = 8080
[[service.backend]]
name = "web-2"
address = "10.0.3.22"
port = 8080
"""
SIX = '[[service]]\nname = "six"\nvip = "2001:db8:100::1"\nprotocol = "udp"\nport = "53-54"\n'


class Daemon:
    """``lb-manager run`` on loopback, with its state in a directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.config = directory / "manager.toml"
        self.config.write_text(
            f'[manager]\nname = "m1"\nlisten = "127.0.0.1:{self.port}"\nmetrics = "127.0.0.1:0"\n'
            f'state_dir = "{directory}/state"\nvip_prefixes = ["203.0.113.0/24", "2001:db8:100::/48"]\n'
        )
        self.process = self._start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def _start(self) -> subprocess.Popen[str]:
        with open(self._directory / "log", "a") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "manager.daemon", "run", "--config", self.config, "--insecure-loopback"],
                cwd=ROOT,
                stderr=log,
                text=True,
            )
        deadline = time.monotonic() + allowed(60)
        while time.monotonic() < deadline:
            assert process.poll() is None, self.log()
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return process
            time.sleep(0.02)
        raise AssertionError(self.log())

    def log(self) -> str:
        return (self._directory / "log").read_text()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def restart(self) -> None:
        self.process = self._start()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(10)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    started = Daemon(tmp_path_factory.mktemp("manager"))
    try:
        yield started
    finally:
        started.kill()


def lb(
    *arguments: object, manager: str | None = None, cwd: Path = ROOT, **environment: str
) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("LB_")}
    if manager is not None:
        clean["LB_MANAGER"] = manager
    done = subprocess.run(
        [sys.executable, "-m", "lb.cli.main", *map(str, arguments)],
        cwd=cwd,
        env={**clean, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Traceback" not in done.stdout + done.stderr, done
    return done


def fine(*arguments: object, manager: str, cwd: Path = ROOT) -> str:
    done = lb(*arguments, manager=manager, cwd=cwd)
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout


def test_a_service_by_command_line(daemon: Daemon, tmp_path: Path) -> None:
    path = tmp_path / "services.toml"
    path.write_text(SERVICES + SIX)
    said = fine("diff", "-f", path, manager=daemon.url)
    assert "service web would be created: 203.0.113.10 tcp 80, 2 backends\n" in said
    said = fine("apply", "-f", path, "--wait", "5", manager=daemon.url)
    assert said.splitlines() == [
        "service web created: 203.0.113.10 tcp 80, 2 backends",
        "service six created: 2001:db8:100::1 udp 53-54, 0 backends",
        "version 1",
        "live on every node",
        "2001:db8:100::1, 203.0.113.10: announced by 0 of 0 MUXes; nobody announces it: no MUX has joined",
    ]
    assert fine("apply", "-f", path, manager=daemon.url) == "2 unchanged\n"
    path.write_text(SERVICES.replace('name = "web-2"', 'name = "web-2"\nweight = 3'))
    assert fine("apply", "-f", path, manager=daemon.url).splitlines() == [
        "service web changed: weight of web-2 1 → 3",
        "version 2",
    ]

    table = fine("get", "services", manager=daemon.url).splitlines()
    assert table[0].startswith("Prot  LocalAddress:Port")
    assert re.match(r"UDP   \[2001:db8:100::1\]:53-54 +six +down +0/0", table[1])
    assert re.match(r"TCP   203\.0\.113\.10:80 +web +up +2/2", table[2])
    table = fine("get", "backends", manager=daemon.url).splitlines()
    assert table[1] == "  -> RemoteAddress:Port"
    assert re.match(r"  -> 10\.0\.3\.22:8080 +web-2 +up +3 ", table[-1])
    for what in ("muxes", "agents", "announcements", "events", "audit", "status"):
        assert fine("get", what, manager=daemon.url)
        json.loads(fine("get", what, "-o", "json", manager=daemon.url))

    assert fine("drain", "web/web-1", manager=daemon.url) == "backend web/web-1 drained\nversion 3\n"
    said = fine("describe", "service", "web", manager=daemon.url)
    assert "Address    203.0.113.10:80 tcp" in said
    assert "web-1 keeps its connections and takes no new ones: drained by operator:loopback" in said
    assert "no MUX has joined yet" in said
    assert fine("undrain", "web", "web-1", manager=daemon.url).startswith("backend web/web-1 undrained")
    assert fine("delete", "service", "six", manager=daemon.url).startswith("service six deleted")
    assert fine("delete", "-f", path, manager=daemon.url).startswith("service web deleted")


def test_mistakes_are_listed_all_at_once_and_nothing_is_changed(daemon: Daemon, tmp_path: Path) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text('colour = "red"\n' + SERVICES + SIX.replace("2001:db8:100::1", "198.51.100.9") + "slots = 8\n")
    done = lb("apply", "-f", path, manager=daemon.url)
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert lines[0] == f"lb: {path}: 3 mistakes"
    assert [line.split(":")[0].strip() for line in lines[1:]] == ["colour", "service[1].slots", "service[1].vip"]
    assert "web" not in fine("get", "services", manager=daemon.url)


def test_several_files_and_folders_are_one_change(daemon: Daemon, tmp_path: Path) -> None:
    one, folder = tmp_path / "one.toml", tmp_path / "folder"
    folder.mkdir()
    one.write_text(SERVICES)
    (folder / "six.toml").write_text(SIX)
    (folder / "notes.txt").write_text("no TOML")
    assert fine("diff", "-f", one, "-f", folder, "--prune", manager=daemon.url).count("would be created") == 2
    assert fine("apply", "-f", folder, "-f", one, "--prune", manager=daemon.url).splitlines()[-1].startswith("version ")
    assert fine("apply", "-f", one, "-f", folder, "--prune", manager=daemon.url) == "2 unchanged\n", (
        "nothing is left out"
    )
    said = fine("delete", "-f", one, "-f", folder, manager=daemon.url)
    assert said.count("deleted") == 2
    assert said.count("version ") == 1, "all of them are one change"


def test_mistakes_in_several_files_name_the_file_and_the_service_in_it(daemon: Daemon, tmp_path: Path) -> None:
    one, two, three = (tmp_path / f"{name}.toml" for name in ("one", "two", "three"))
    one.write_text(SERVICES)
    two.write_text(SIX + SIX.replace("six", "far").replace("2001:db8:100::1", "198.51.100.9"))
    done = lb("apply", "-f", one, "-f", two, manager=daemon.url)
    assert done.returncode == 2
    assert f"{two}: service[1].vip: must be inside" in done.stderr
    assert done.stderr.count("\n") == 1
    three.write_text("[[service]\n")
    two.write_text('colour = "red"\n' + SIX)
    done = lb("diff", "-f", one, "-f", two, "-f", three, manager=daemon.url)
    assert done.returncode == 2
    assert f"{two}: colour: has no place in a file of services" in done.stderr
    assert f"{three}: line 1: is not TOML" in done.stderr
    assert lb("apply", "-f", tmp_path / "none", "-f", one, manager=daemon.url).returncode == 2
    (tmp_path / "empty").mkdir()
    done = lb("apply", "-f", tmp_path / "empty", manager=daemon.url)
    assert done.stderr == f"lb: {tmp_path}/empty: is a folder without a file *.toml\n"
    assert "web" not in fine("get", "services", manager=daemon.url)


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["apply"], 2, "give -f FILE"),
        (["describe", "service", "nono"], 1, 'there is no service "nono"; there are none yet'),
        (["describe", "mux", "mux9"], 1, 'there is no mux "mux9"; there are none'),
        (["delete", "service", "nono"], 1, 'there is no service "nono"'),
        (["drain", "mux", "mux9"], 1, 'there is no MUX "mux9"; none has joined yet'),
        (["drain", "web/web-1"], 1, 'there is no service "web"'),
        (["drain", "web"], 2, "what is to drain?"),
        (["delete"], 2, "what is to be deleted?"),
        (["get", "peers"], 2, "only a MUX knows its peers: add --local"),
        (["get", "events", "--local"], 2, "only the manager knows events"),
        (["apply", "-f", "/nonexistent"], 2, "/nonexistent: cannot be read: no such file or directory"),
    ],
)
def test_what_cannot_be_is_one_sentence(daemon: Daemon, arguments: list[str], code: int, sentence: str) -> None:
    done = lb(*arguments, manager=daemon.url)
    assert (done.returncode, done.stdout) == (code, "")
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1


def test_which_manager_and_who_asks(daemon: Daemon, tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path)}
    assert "no manager to ask: give --manager URL or set LB_MANAGER" in lb("get", "services", **home).stderr
    done = lb("get", "services", "--manager", "http://127.0.0.1:1", **home)
    assert (done.returncode, "is lb-manager running there?" in done.stderr) == (1, True)
    done = lb("get", "services", "--manager", "http://192.0.2.1:9740", **home)
    assert (done.returncode, "plain HTTP is for this machine's loopback only" in done.stderr) == (2, True)
    done = lb("get", "services", "--manager", f"127.0.0.1:{daemon.port}", **home)
    assert (done.returncode, "ca.pem: is not there; --ca tells where" in done.stderr) == (1, True)
    for url in ("ftp://x", "https://", "https://a:b", "https://a/b"):
        done = lb("get", "services", "--manager", url, **home)
        assert (done.returncode, "--manager must be such as https://10.0.1.9:9740" in done.stderr) == (2, True)


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("[manager]\n", "https://127.0.0.1:9740"),
        ('[manager]\nlisten = "0.0.0.0:8443"\n', "https://127.0.0.1:8443"),
        ('[manager]\nlisten = "[::]:9740"\n', "https://[::1]:9740"),
        ('[manager]\nlisten = "10.0.1.9:9740"\nunknown = 1\n', "https://10.0.1.9:9740"),
        ("[manager]\nlisten = 7\n", None),
        ("[mux]\n", None),
        ("[manager", None),
        (None, None),
    ],
)
def test_the_manager_of_this_machine_is_found_by_its_file(tmp_path: Path, text: str | None, url: str | None) -> None:
    file = tmp_path / "manager.toml"
    if text is not None:
        file.write_text(text)
    assert local_manager(file) == url


def test_the_manager_of_this_machine_is_asked_where_none_is_named(
    daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "manager.toml"
    file.write_text(f'[manager]\nlisten = "0.0.0.0:{daemon.port}"\n')
    monkeypatch.setattr(ask_manager, "LOCAL_FILE", file)
    monkeypatch.delenv("LB_MANAGER", raising=False)
    asked: list[ask_manager.Manager] = []

    @click.command()
    @ask_manager.manager_options
    def ask(manager: ask_manager.Manager) -> None:
        asked.append(manager)

    ask.main([], standalone_mode=False)
    ask.main(["--manager", "https://10.0.1.9"], standalone_mode=False)
    assert [(one.url, one.named) for one in asked] == [
        (f"https://127.0.0.1:{daemon.port}", False),
        ("https://10.0.1.9", True),
    ]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has rights to give up")
def test_a_manager_that_root_starts_keeps_no_right_but_that_to_low_ports(daemon: Daemon) -> None:
    lines = dict(line.split(":\t") for line in Path(f"/proc/{daemon.process.pid}/status").read_text().splitlines())
    assert {lines[name].strip().lstrip("0") for name in ("CapEff", "CapPrm", "CapBnd")} <= {"", "400"}
    assert lines["NoNewPrivs"].strip() == "1"


def test_a_second_manager_is_refused(daemon: Daemon) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "manager.daemon", "run", "--config", daemon.config, "--insecure-loopback"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.endswith("another lb-manager uses it; stop that one first\n")


def test_commands_start_fast(daemon: Daemon) -> None:
    """Under 200 ms on an idle machine; processor time is what does not depend on others."""
    code = (
        "import sys, time; from lb.cli.main import run; run(sys.argv[1:]); "
        "print(time.process_time(), [m for m in ('rich', 'aiohttp', 'asyncio') if m in sys.modules], "
        "file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "get", "services", "--manager", daemon.url],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    seconds, _, heavy = done.stderr.strip().partition(" ")
    assert heavy == "[]"
    assert float(seconds) < 0.2 * 2


def test_killed_while_applying_the_manager_goes_on_where_it_was(tmp_path: Path) -> None:
    """The whole program, a few times; tests/manager/store/test_sqlite.py kills its store two hundred times."""
    import http.client

    daemon = Daemon(tmp_path)
    rng = random.Random(2)
    known = 0
    try:
        for _ in range(4):
            connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=10)
            ending = time.monotonic() + rng.uniform(0.05, 0.4)
            tried = known
            while time.monotonic() < ending:
                tried += 1
                connection.request("POST", "/v1/apply", json.dumps({"services": [numbered(tried), twin(tried)]}))
                assert connection.getresponse().read()
                known = tried
            connection.request("POST", "/v1/apply", json.dumps({"services": [numbered(tried + 1), twin(tried + 1)]}))
            daemon.kill()  # the last one is on its way, or done
            connection.close()
            daemon.restart()
            found = {row["name"]: row for row in json.loads(fine("get", "services", "-o", "json", manager=daemon.url))}
            ports = {int(found["a"]["port"]), int(found["b"]["port"]) - 20000}
            assert len(ports) == 1, "half of a change"
            known = ports.pop()
            assert known in (tried, tried + 1), "an acknowledged change was lost"
        assert daemon.stop() == 0
        assert "event=stopped" in daemon.log()
    finally:
        daemon.kill()


def numbered(n: int) -> dict[str, Any]:
    return {"name": "a", "vip": "203.0.113.10", "protocol": "tcp", "port": n}


def twin(n: int) -> dict[str, Any]:
    return {"name": "b", "vip": "203.0.113.11", "protocol": "tcp", "port": 20000 + n}


# --- what needs no manager -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "path"),
    [
        ("web/web-1", "backends/web/web-1"),
        ("web web-1", "backends/web/web-1"),
        ("backend web/web-1", "backends/web/web-1"),
        ("backend web web-1", "backends/web/web-1"),
        ("backend mux m/1", "backends/mux/m/1"),
        ("mux mux1", "muxes/mux1"),
    ],
)
def test_what_to_drain_may_be_said_in_several_ways(what: str, path: str) -> None:
    assert "/".join(target("drain", tuple(what.split()))) == path


@pytest.mark.parametrize("what", ["web", "mux", "/", "a/", "backend web", "a b c", "a b c d"])
def test_what_to_drain_must_be_said(what: str) -> None:
    with pytest.raises(RequestError, match="what is to drain"):
        target("drain", tuple(what.split()))


def test_the_doctor_examines_the_fleet_by_its_manager(daemon: Daemon) -> None:
    done = lb("doctor", manager=daemon.url)
    verdict, *rest = done.stdout.splitlines()
    assert ", 1 warning, " in verdict
    assert any(line.startswith("warning  node: no MUX has joined") for line in rest)
    assert done.returncode == ("no faults" not in verdict)
    said = json.loads(lb("doctor", "-o", "json", manager=daemon.url).stdout)
    assert said["verdict"] == verdict


def test_columns_line_up_and_numbers_stand_right() -> None:
    assert columns(("A", "Count", "Why"), [("x", 1200, "because"), ("long", None, None)], ("Count",)) == [
        "A     Count  Why",
        "x     1,200  because",
        "long      -  -",
    ]


def test_tables_of_a_manager_of_another_version_are_drawn_all_the_same() -> None:
    for what, row_type in TABLES.items():
        for rows in (rows_of(row_type, [{}, {"unknown": 1}]), read_rows(row_type, b'[{}, {"unknown": 1}]')):
            assert what == "status" or len(draw(what, rows)) >= 2


@pytest.mark.parametrize("text", [b"", b"{}", b"[1]", b'[{"name": ', b"\xff"])
def test_what_is_no_table_is_said(text: bytes) -> None:
    with pytest.raises(ControlError, match="is not a table of rows"):
        read_rows(TABLES["services"], text)


def test_texts_of_others_cannot_steer_the_terminal() -> None:
    lines = draw("events", rows_of(TABLES["events"], [{"at": 0, "subject": "mux\x1b[31m", "text": "a\nb"}]))
    assert all(c.isprintable() for line in lines for c in line)


def test_addresses_and_times_for_people() -> None:
    assert endpoint("2001:db8::1", "80") == "[2001:db8::1]:80"
    assert [ago(0, now) for now in (5, 119, 121, 7300, 200_000)] == ["5 s", "119 s", "2 min", "2 h", "2 d"]
    assert ago(None) == "-"


# --- the examples of the help ----------------------------------------------------------------------------------------

#: Examples that need more than a manager, and what.
NOT_HERE = {
    "lb get muxes --local": "an lb-mux on this machine",
    "lb top --local": "an lb-mux on this machine",
    "lb doctor --config /etc/vipmux/mux.toml": "an installed MUX",
    "lb doctor --manager https://10.0.1.9:9740 -o json": "a manager at that address",
    "lb drain web/web-1 --wait --timeout 10m": "a MUX to tell that no flow is left",
    "lb drain mux mux1 --wait": "a MUX",
    'lb drain mux mux1 -m "new kernel"': "a MUX",
    "lb undrain mux mux1": "a MUX",
}
#: Without a MUX nobody gets a flow, which is bad news.
BAD_NEWS = ("lb describe flow --src 198.51.100.7:4711 --dst 203.0.113.10:80",)
ENDLESS = ("lb top", "lb get backends -w")
ASKING = [name for name in ALL if name not in OFFLINE and not name.startswith("bench")]


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """Another manager, with a history of twenty versions."""
    started = Daemon(tmp_path_factory.mktemp("busy"))
    try:
        for version in range(20):
            fine("apply", "-f", _services(tmp_path_factory.mktemp("file"), version + 1), manager=started.url)
        yield started
    finally:
        started.kill()


def _services(directory: Path, weight: int) -> Path:
    file = directory / "services.toml"
    backend = f'[[service.backend]]\nname = "web-1"\naddress = "10.0.3.21"\nweight = {weight}\n'
    file.write_text(f'[[service]]\nname = "web"\nvip = "203.0.113.10"\nprotocol = "tcp"\nport = 80\n{backend}')
    return file


@pytest.mark.parametrize("line", [line for name in ASKING for line in examples(name) if line not in NOT_HERE])
def test_example_of_a_command_that_asks_the_manager_runs(
    line: str, busy: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _services(tmp_path, 50)
    arguments = words(line)[1:]
    if arguments[0] == "confirm":
        told = json.loads(
            fine("apply", "-f", "services.toml", "--confirm", "60s", "--json", manager=busy.url, cwd=tmp_path)
        )
        arguments = [str(told["version"]) if word == "12" else word for word in arguments]
    if arguments[0] == "undrain":
        fine("drain", *arguments[1:], manager=busy.url)
    if line in ENDLESS:
        assert "web" in _beginning(arguments, busy)
        return
    done = lb(*arguments, manager=busy.url, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (1 if line in BAD_NEWS else 0, ""), done
    assert done.stdout
    if "--confirm" in arguments:
        fine("confirm", manager=busy.url)
    fine("apply", "-f", _services(tmp_path, 51), manager=busy.url)  # for the next one


def _beginning(arguments: list[str], daemon: Daemon) -> str:
    """What a command that does not end says first."""
    with subprocess.Popen(
        [sys.executable, "-u", "-m", "lb.cli.main", *arguments],
        cwd=ROOT,
        env={**os.environ, "LB_MANAGER": daemon.url},
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        said = b""
        while b"web" not in said and (more := process.stdout.read1(65536)):
            said += more
        process.kill()
    return said.decode()


# --- thousands of services -------------------------------------------------------------------------------------------


def test_a_terminal_shows_the_first_of_many_services_and_says_so(
    busy: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    more = "".join(
        f'[[service]]\nname = "more-{n}"\nvip = "203.0.113.{100 + n}"\nprotocol = "tcp"\nport = 80\n'
        f'[[service.backend]]\nname = "b"\naddress = "10.0.3.2{n}"\n'
        for n in range(4)
    )
    (tmp_path / "more.toml").write_text(more)
    fine("apply", "-f", tmp_path / "more.toml", manager=busy.url)

    def said(*arguments: str) -> str:
        assert run(["get", *arguments, "--manager", busy.url]) == 0
        return capsys.readouterr().out

    last = "… 3 more services; --limit 5 shows all, --service NAME one of them"
    for what in ("services", "backends"):
        assert "web" in said(what), "a file or a pipe gets all"
        monkeypatch.setattr("lb.cli.commands.get.SHOWN", 2)
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        text = said(what)
        assert text.splitlines()[-1] == last
        assert ("more-1" in text, "more-2" in text) == (True, False)
        for all_of_it in (["--limit", "5"], ["--service", "web"], ["-o", "json"]):
            assert last[:3] not in said(what, *all_of_it)
        monkeypatch.setattr("lb.cli.commands.get.SHOWN", 5)
        assert last[:1] not in said(what)
        monkeypatch.undo()
