# SPDX-License-Identifier: Apache-2.0
"""``lb doctor`` as a program: what it prints, how it ends, and what it says when it may not look."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lb.cli.commands import doctor
from lb.cli.main import run
from lb.doctor import examine, fleet
from lb.doctor.model.findings import Finding, Severity

ROOT = Path(__file__).parents[3]
FOUND = [
    Finding("kernel", Severity.OK, "Linux 6.1.0"),
    Finding("ntp", Severity.WARNING, "nobody synchronises this machine's clock", "`timedatectl set-ntp true`"),
    Finding(
        "disk", Severity.FAULT, "the filesystem of /var/lib/lb is \x1b[31mfull", "`df -h /var/lib/lb` " + "x " * 60
    ),
]


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(examine, "machine", lambda path, **_: list(FOUND) if path == str(tmp_path / "mux.toml") else [])
    monkeypatch.setattr(doctor, "DIRECTORY", tmp_path)
    monkeypatch.delenv("LB_MANAGER", raising=False)
    return tmp_path / "mux.toml"


def test_the_verdict_comes_first_and_faults_before_the_rest(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--config", str(file)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "1 fault, 1 warning, 1 check fine"
    assert lines[2].startswith("FAULT    disk: ")
    assert "   do:   `df -h /var/lib/lb`" in lines[3]
    assert all(len(line) <= 80 and line.isprintable() for line in lines)
    assert not any("Linux" in line for line in lines)
    assert run(["doctor", "--config", str(file), "--all"]) == 1
    assert "ok       kernel: Linux 6.1.0" in capsys.readouterr().out.splitlines()


def test_json_has_everything(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--config", str(file), "-o", "json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert (said["faults"], said["warnings"], said["unknown"], said["fine"]) == (1, 1, 0, 1)
    assert said["findings"][0]["check"] == "disk"
    assert said["findings"][0]["severity"] == "fault"
    assert said["findings"][0]["remedy"].startswith("`df -h")


def test_without_a_file_those_of_the_usual_place_are_taken(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--local"]) == 2
    assert "there is no mux.toml, agent.toml or manager.toml" in capsys.readouterr().err
    file.write_text("")
    assert run(["doctor", "--local"]) == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "cannot be read: no such file"),
        ("[mux", "is not TOML"),
        ("[service]", "has neither [mux] nor [agent] nor [manager]"),
        ('[mux]\nname = "m"\n', "mux.address"),
    ],
)
def test_a_wrong_request_is_told_from_a_fault(
    text: str | None, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LB_MANAGER", raising=False)
    if text is not None:
        (tmp_path / "x.toml").write_text(text)
    assert run(["doctor", "--config", str(tmp_path / "x.toml")]) == 2
    assert said in capsys.readouterr().err
    assert run(["doctor"]) == 2
    assert "nothing to examine" in capsys.readouterr().err


def test_a_manager_whose_fleet_was_not_asked_for_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LB_MANAGER", raising=False)
    config = tmp_path / "manager.toml"
    config.write_text(
        f'[manager]\nname = "m1"\nlisten = "127.0.0.1:9"\nstate_dir = "{tmp_path}"\nvip_prefixes = ["203.0.113.0/24"]\n'
    )
    for arguments, unseen in (((), True), (("--local",), False)):
        assert run(["doctor", "--config", str(config), "-o", "json", *arguments]) == 1
        found = {f["check"]: f["severity"] for f in json.loads(capsys.readouterr().out)["findings"]}
        assert found["daemon"] == found["authority"] == "fault"
        assert (found.get("fleet") == "unknown") is unseen


def test_a_fleet_is_examined_by_what_the_manager_answers() -> None:
    answers: dict[str, Any] = {"status": {"now": 1e9, "refusals": []}}
    asked: list[str] = []

    def ask(what: str) -> Any:
        asked.append(what)
        return answers.get(what, [])

    found = fleet.examine(ask)
    assert asked == ["examination", "status", "muxes", "agents", "services", "backends", "announcements"]
    assert [f.what for f in found if f.severity is Severity.WARNING] == ["no MUX has joined"]


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes nobody")
@pytest.mark.parametrize("kind", ["mux", "agent"])
def test_without_rights_nothing_passes_for_fine_that_was_not_seen(kind: str, tmp_path: Path) -> None:
    """A namespace of its own: nothing of this machine is looked at, and no packet leaves it."""
    directory = Path("/run") / f"vipmux-doctor-{os.getpid()}-{kind}"
    directory.mkdir(0o755)
    try:
        config = directory / f"{kind}.toml"
        example = (ROOT / "deploy" / f"{kind}.toml").read_text()
        config.write_text(example.replace("/var/lib/lb", str(directory / "none")).replace('"eth0"', '"lo"'))
        argv = ["unshare", "--net", "--", "setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--"]
        done = subprocess.run(
            [*argv, sys.executable, "-m", "lb.cli.main", "doctor", "--config", config, "-o", "json"],
            capture_output=True, text=True, check=False, cwd=ROOT, timeout=60,
        )  # fmt: skip
    finally:
        for path in directory.iterdir():
            path.unlink()
        directory.rmdir()
    if "Permission denied" in done.stderr or "No module" in done.stderr:
        pytest.skip("nobody may not read this copy of the program")
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)["findings"]
    assert "privileges" in {f["check"] for f in found if f["severity"] == "fault"}
    unseen = {f["check"] for f in found if f["severity"] == "unknown"}
    assert unseen >= ({"vip_arp", "isolation"} if kind == "mux" else {"vip_arp"})
