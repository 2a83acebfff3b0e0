# SPDX-License-Identifier: Apache-2.0
"""The shipped examples are right: routers accept theirs, and the page's tables are a MUX's."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from lb.config.load import parse
from lb.model import AnnouncePolicy, MuxConfig
from tests.lab.routers import FRR_DAEMONS, Routers, missing

ROOT = Path(__file__).resolve().parents[3]
EXAMPLES = ROOT / "deploy" / "routers"

MUX = (
    '[mux]\nname = "m"\naddress = "10.0.1.11"\naddress6 = "2001:db8:1::11"\ninterface = "eth0"\nseed = "'
    + "0" * 32
    + '"\n'
)


@pytest.mark.parametrize("name", ["bird.conf", "bird-bfd-on-mux.conf"])
def test_bird_accepts_its_examples(name: str) -> None:
    if missing(Routers.BIRD):
        pytest.skip("install bird2")
    program = shutil.which("bird") or "/usr/sbin/bird"
    done = subprocess.run([program, "-p", "-c", EXAMPLES / name], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.lab
def test_frr_accepts_its_example() -> None:
    if missing(Routers.FRR):
        pytest.skip("install frr")
    argv: list[str | Path] = [FRR_DAEMONS / "bgpd", "-C", "-f", EXAMPLES / "frr.conf"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_page_s_tables_are_a_mux_s() -> None:
    blocks = re.findall(r"^```toml\n(.*?)^```", (ROOT / "docs" / "bgp.md").read_text(), re.MULTILINE | re.DOTALL)
    service = '[[service]]\nname = "web"\nvip = "203.0.113.10"\nprotocol = "tcp"\nport = 80\n'
    config = parse(MUX + blocks[0] + service + blocks[1])
    assert isinstance(config, MuxConfig)
    assert config.bgp is not None
    assert config.services[0].announce is not None
    assert config.services[0].announce.policy is AnnouncePolicy.ALWAYS
