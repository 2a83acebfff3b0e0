# SPDX-License-Identifier: Apache-2.0
"""What is checked before the first packet, with plain values."""

from __future__ import annotations

from ipaddress import IPv4Address, ip_address
from pathlib import Path

import pytest

from lb.errors import IoError
from lb.model import MuxSettings
from lb.mux.hops.next_hops import Link
from lb.mux.io.startup import StateDir, check_outer_source, find_interface

SETTINGS = MuxSettings(name="mux1", address=IPv4Address("10.0.1.11"), seed=bytes(16), interface="eth0")
LINKS = [Link(1, "lo", up=True, mac=None), Link(2, "eth0", up=True, mac=bytes(6))]


def test_the_interface_is_found_by_its_name() -> None:
    assert find_interface("eth0", LINKS).index == 2


def test_a_missing_interface_is_named_with_those_there_are() -> None:
    with pytest.raises(IoError, match="'eth1' does not exist here; the interfaces are: eth0, lo"):
        find_interface("eth1", LINKS)


def test_an_interface_without_link_addresses_is_refused() -> None:
    with pytest.raises(IoError, match="'lo' has no Ethernet address"):
        find_interface("lo", LINKS)


def test_an_outer_source_that_the_machine_does_not_have_is_refused() -> None:
    local = {ip_address("10.0.1.12"): "eth0", ip_address("127.0.0.1"): "lo"}
    with pytest.raises(IoError, match=r"10.0.1.11 is not an address of this machine; it has 10.0.1.12$"):
        check_outer_source(SETTINGS, local)
    check_outer_source(SETTINGS, {ip_address("10.0.1.11"): "eth0"})


def test_a_state_directory_serves_one_daemon_at_a_time(tmp_path: Path) -> None:
    first = StateDir(tmp_path / "state")
    with pytest.raises(IoError, match="another lb-mux runs"):
        StateDir(tmp_path / "state")
    first.close()
    StateDir(tmp_path / "state").close()


def test_a_state_directory_that_cannot_be_made_says_why(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(IoError, match=r"mux.state_dir .* cannot be used: not a directory"):
        StateDir(tmp_path / "file" / "state")
