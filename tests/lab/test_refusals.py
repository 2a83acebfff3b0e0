# SPDX-License-Identifier: Apache-2.0
"""What the daemons refuse, each in one clear sentence and with the right exit code, and what they go on doing."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from lb.config.render import format_config
from lb.model import AgentConfig, MuxConfig
from tests.lab.process import wait_for
from tests.lab.services import WEB_VIP
from tests.lab.topology import PROGRAMS, Lab, Node
from tests.lab.traffic import KeepAlive, requests

pytestmark = pytest.mark.lab

TEN_MISTAKES = """
[[service]]
name = "web"
vip = "203.0.113.999"
protocol = "sctp"
port = 99999
colour = "red"
slots = 100

[[service.backend]]
name = "web-1"
address = "10.0.3.300"
weight = 1001
state = "asleep"
port = 0
size = 3
"""


def refused(lab: Lab, node: Node, *argv: str | Path, prefix: tuple[str, ...] = ()) -> tuple[int, str]:
    """Runs a program that must end by itself; returns its exit code and what it complained about."""
    done = subprocess.run(
        ["ip", "netns", "exec", node.namespace, *prefix, *map(str, argv)],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert "Traceback" not in done.stderr + done.stdout
    return done.returncode, done.stderr.strip()


def test_running_mux_refuses_a_bad_file_whole_and_serves_on(all_running: Lab) -> None:
    lab = all_running
    mux = lab.muxes[0]
    good = mux.config.read_text()
    keep_alive = KeepAlive(lab, WEB_VIP, 80, count=20).start()
    generation = lab.status(mux)["generation"]
    mux.config.write_text(format_config(MuxConfig(lab.mux_settings(mux))) + TEN_MISTAKES)
    mux.processes["mux"].signal(signal.SIGHUP)
    rejected = wait_for(lambda: lab.status(mux)["rejected"], "the MUX to say that it refused the file")
    assert "service[0].vip" in rejected
    assert lab.status(mux)["generation"] == generation
    assert requests(lab, f"http://{WEB_VIP}/", 100)["failed"] == 0
    mux.config.write_text(good)
    mux.processes["mux"].signal(signal.SIGHUP)
    wait_for(lambda: lab.status(mux)["rejected"] is None, "the MUX to take the good file")
    assert [flow for flow in keep_alive.stop() if flow.broken] == []


def test_lb_check_lists_every_mistake_of_that_file(lab: Lab) -> None:
    bad = lab.directory / "bad.toml"
    bad.write_text(format_config(MuxConfig(lab.mux_settings(lab.muxes[0]))) + TEN_MISTAKES)
    done = subprocess.run([PROGRAMS / "lb", "check", bad], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("service[")]
    assert len(lines) == 10, done.stdout + done.stderr


def other_mux(lab: Lab, **changes: object) -> Path:
    """The file of a second lb-mux for mux1's machine, with other settings."""
    settings = replace(lab.mux_settings(lab.muxes[0]), state_dir=str(lab.directory / "other"), **changes)  # type: ignore[arg-type]
    file = lab.directory / "other-mux.toml"
    file.write_text(format_config(MuxConfig(settings, lab.services)))
    return file


def other_agent(lab: Lab, **changes: object) -> Path:
    settings = replace(lab.agent_settings(lab.hosts[0]), state_dir=str(lab.directory / "other"), **changes)  # type: ignore[arg-type]
    file = lab.directory / "other-agent.toml"
    file.write_text(format_config(AgentConfig(settings, lab.services)))
    return file


@pytest.mark.parametrize(
    ("program", "write"), [("lb-mux", other_mux), ("lb-agent", other_agent)], ids=["lb-mux", "lb-agent"]
)
class TestStart:
    """A daemon that cannot start says why in one sentence."""

    def test_missing_interface_is_named(self, lab: Lab, program: str, write: Callable[..., Path]) -> None:
        node = lab.muxes[0] if program == "lb-mux" else lab.hosts[0]
        code, said = refused(lab, node, PROGRAMS / program, "--config", write(lab, interface="eth7"))
        assert code == 1
        assert "eth7" in said

    def test_missing_privilege_is_named(self, lab: Lab, program: str, write: Callable[..., Path]) -> None:
        node = lab.muxes[0] if program == "lb-mux" else lab.hosts[0]
        without = ("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--")
        code, said = refused(lab, node, PROGRAMS / program, "--config", write(lab), prefix=without)
        assert code == 1
        assert "CAP_NET" in said

    def test_missing_file_is_named(self, lab: Lab, program: str, write: Callable[..., Path]) -> None:
        node = lab.muxes[0] if program == "lb-mux" else lab.hosts[0]
        code, said = refused(lab, node, PROGRAMS / program, "--config", lab.directory / "nowhere.toml")
        assert code == 2
        assert "nowhere.toml" in said

    def test_wrong_file_is_refused_with_every_mistake(self, lab: Lab, program: str, write: Callable[..., Path]) -> None:
        node = lab.muxes[0] if program == "lb-mux" else lab.hosts[0]
        file = write(lab)
        file.write_text(file.read_text().split("[[service]]")[0] + TEN_MISTAKES)
        code, said = refused(lab, node, PROGRAMS / program, "--config", file)
        assert code == 2
        assert said.count("service[0]") == 10


def test_address_that_the_machine_does_not_have_is_refused(all_running: Lab) -> None:
    lab = all_running
    lab.stop_mux(lab.muxes[1])
    file = other_mux(lab, address=IPv4Address("10.0.1.99"))
    code, said = refused(lab, lab.muxes[1], PROGRAMS / "lb-mux", "--config", file)
    assert code == 1
    assert "10.0.1.99" in said


def test_second_mux_on_the_same_state_is_refused(all_running: Lab) -> None:
    lab = all_running
    code, said = refused(lab, lab.muxes[0], PROGRAMS / "lb-mux", "--config", lab.muxes[0].config)
    assert code == 1
    assert said
    assert requests(lab, f"http://{WEB_VIP}/", 50)["failed"] == 0
