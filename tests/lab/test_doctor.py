# SPDX-License-Identifier: Apache-2.0
"""``lb doctor`` of a real fleet: nothing where all is well, and each of thirteen faults in one finding.

Faults are made for real, on the ways between, on MUXes, on hosts, on their daemons and identities, several at a time
where they do not disturb each other. The doctor is asked as an operator would, on the manager's machine for all of
them; ``lb get``, the page and the events must tell the same truth. The command that it names is carried out where a lab
can run it, and then all must be well. ``pytest -s`` prints what it said at the end; docs/doctor.md has the table.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import CertificateSigningRequestBuilder, Name

from lb.config.render import format_config
from lb.model import MuxConfig
from lb.model.prefixes import Cover
from lb.mux.io.isolation import install_text
from manager.trust.ca import CertificateAuthority, Subject
from tests.lab import netns
from tests.lab.clinic import LASTED, PROBE, Clinic, Expected, Truth, announced_by, command, is_away, is_ill, table
from tests.lab.fleet import UP
from tests.lab.process import Process, in_namespace, wait_for
from tests.lab.routers import Routers, missing
from tests.lab.services import FILES_VIP, WEB_VIP, files, web
from tests.lab.topology import PROGRAMS, Node

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(missing(Routers.BIRD) is not None, reason=str(missing(Routers.BIRD))),
]


WRONG_CLOCK = Path(__file__).parent / "tools" / "clock.c"


@pytest.fixture(scope="module")
def clinic() -> Iterator[Clinic]:
    with Clinic() as started:
        started.start([replace(make(started.hosts), probe=PROBE) for make in (web, files)])
        started.wait_hops(WEB_VIP, *started.muxes)
        yield started
        print(table(started.seen))


def test_a_fleet_that_is_well_has_no_fault(clinic: Clinic) -> None:
    for said in clinic.well(*clinic.nodes, clinic.manager):
        assert [f["what"] for f in said["findings"] if f["severity"] == "warning" and f["check"] != "ntp"] == []
        assert [f["what"] for f in said["findings"] if f["severity"] == "unknown"] == []


def test_what_nobody_but_the_doctor_sees(clinic: Clinic) -> None:
    """Small packets pass, and probes are small: everybody else says that all is well."""
    host1, host2, host3 = clinic.hosts
    mux2, before = clinic.muxes[1], clinic.last_event()
    # A bridge that was told its MTU keeps it: larger frames vanish, and no router says why.
    netns.batch(["link set brh mtu 1499", "link set brh mtu 1500", f"link set to{host1.name} mtu 1400"], clinic.router)
    rule = f"ip saddr {host2.address} ip daddr {mux2.address} meta length > 1400 drop;"
    clinic.in_node(clinic.router, "nft", "-f", "-", stdin=_ON_THE_WAY.format(rule))
    second_way(host3)
    ballast = host3.state_dir / "ballast"
    with pytest.raises(OSError, match="No space left"):
        ballast.write_bytes(bytes(4 << 20))
    small, back, strict, disk = clinic.fleet_finds(
        Expected("mtu_path", ("1500 bytes do not reach 10.0.3.21", "up to 1400 bytes"), "mtu_small"),
        Expected("mtu_path", ("mux mux2 says", "10.0.3.22", "come back; up to 1400 bytes"), "mtu_small_back"),
        Expected("rp_filter", ("agent host3 says", "net.ipv4.conf.eth0.rp_filter is 1", "by eth1"), "rp_filter"),
        Expected("disk", ("agent host3 says", str(host3.state_dir), "is full")),
    )
    clinic.all_is_said_to_be_well(before)
    clinic.note("an MTU that is too small, both ways", small)
    clinic.note("an MTU that is too small on the way back", back)
    clinic.note("rp_filter strict where it hurts", strict)
    clinic.note("full disk", disk)
    assert "`ip link set dev INTERFACE mtu 1500`" in small["remedy"]
    netns.batch([f"link set to{host1.name} mtu 1500"], clinic.router)
    clinic.in_node(clinic.router, "nft", "delete", "table", "ip", "lab_way")
    clinic.do(host3, strict)
    assert command(disk) == f"df -h {host3.state_dir}"
    ballast.unlink()
    clinic.well(clinic.manager)
    first_way(host3)


_ON_THE_WAY = "table ip lab_way {{ chain forward {{ type filter hook forward priority 0; {} }}; }}"


def second_way(host: Node) -> None:
    """Another interface, by which the default route leads, and a strict filter."""
    lines = [
        "link add eth1 type veth peer name eth1peer",
        "link set eth1peer up",
        "addr add 10.9.0.2/24 dev eth1",
        "link set eth1 up",
        "route add 10.0.1.0/24 via 10.0.3.1",
        "route replace default via 10.9.0.1",
    ]
    netns.batch(lines, host.namespace)
    netns.sysctl(host.namespace, {"ipv4/conf/all/rp_filter": 0, "ipv4/conf/eth0/rp_filter": 1})


def first_way(host: Node) -> None:
    lines = ["route replace default via 10.0.3.1", "route del 10.0.1.0/24 via 10.0.3.1", "link del eth1"]
    netns.batch(lines, host.namespace)


def test_ways_on_which_packets_are_lost(clinic: Clinic) -> None:
    host2, host3 = clinic.hosts[1:]
    before = clinic.last_event()
    rule = f"ip daddr {host2.address} ip protocol 4 drop;"
    clinic.in_node(clinic.router, "nft", "-f", "-", stdin=_ON_THE_WAY.format(rule))
    netns.batch([f"link set to{host3.name} down"], clinic.router)
    clinic.all_say(before, is_ill("web", "web-host2"), is_ill("files", "files-host2"), is_ill("web", "web-host3"))
    dropped, away = clinic.fleet_finds(
        Expected("protocol_4", ("10.0.3.22", "plain packets arrive")),
        Expected("unreachable", ("10.0.3.23", "cannot be reached from 10.0.1.1")),
    )
    clinic.note("protocol 4 dropped on the way", dropped)
    clinic.note("a host that cannot be reached", away)
    assert "allow protocol 4" in dropped["remedy"]
    assert "lb drain backend" in away["remedy"]
    clinic.in_node(clinic.router, "nft", "delete", "table", "ip", "lab_way")
    netns.batch([f"link set to{host3.name} up"], clinic.router)
    clinic.well(clinic.manager)


def test_a_password_a_clock_a_table_of_before_and_a_host_that_answers_arp(clinic: Clinic) -> None:
    """The last while its agent is stopped: one that runs puts the setting back."""
    host1, host2, host3 = clinic.hosts
    mux2, before = clinic.muxes[1], clinic.last_event()
    configuration = clinic.configuration(mux2)
    assert isinstance(configuration, MuxConfig)
    assert configuration.bgp is not None
    peers = tuple(replace(peer, password="not that") for peer in configuration.bgp.peers)  # noqa: S106
    clinic.stop(mux2)
    mux2.config.write_text(format_config(replace(configuration, bgp=replace(configuration.bgp, peers=peers))))
    clinic.start_daemon(mux2)
    clinic.stop(host2)
    clinic.start_daemon(host2, env=wrong_clock(clinic))
    files_vip = clinic.services[1].vip
    clinic.in_node(host1, "nft", "-f", "-", stdin=install_text("vipmux_mux9", "eth0", 2, Cover([files_vip])))
    clinic.stop(host3)
    netns.sysctl(host3.namespace, {f"ipv4/conf/{name}/arp_ignore": 0 for name in ("all", "eth0")})
    clinic.all_say(
        before,
        Truth("agent host2", lambda row: "ahead of" in str(row["clock"]), "its clock is"),
        is_ill("files", "files-host1"),
        is_away("agent host3"),
    )
    clinic.all_say(before, announced_by("mux1", "web"), seconds=LASTED)
    password, clock, stale, arp, _ = clinic.fleet_finds(
        Expected("bgp_password", ("mux mux2 says", "router (10.0.1.1)", "its password (TCP MD5) is another")),
        Expected("clock", ("host2 says", "10 min ahead of the manager's")),
        Expected("stale_table", ("agent host1 says", "inet vipmux_mux9", FILES_VIP)),
        Expected("vip_arp", ("agent host1 says", f"answers ARP for the VIP {FILES_VIP} on eth0", "past every MUX")),
        Expected("node", ("agent host3", "is not connected"), "node"),
    )
    clinic.note("BGP password wrong", password)
    clinic.note("clock skew", clock)
    clinic.note("nftables table of a MUX that is no more", stale)
    clinic.note("VIP answering ARP", arp)
    assert "make password in [[bgp.peer]] router" in password["remedy"]
    assert "`chronyc makestep`" in clock["remedy"]
    clinic.stop(mux2)
    mux2.config.write_text(format_config(configuration))
    clinic.start_daemon(mux2)
    clinic.stop(host2)
    clinic.start_daemon(host2)
    clinic.do(host1, stale)
    clinic.in_node(host3, *command(arp).split())
    clinic.start_daemon(host3)
    clinic.well(clinic.manager)


def wrong_clock(clinic: Clinic) -> dict[str, str]:
    """The environment of a daemon whose clock is ten minutes ahead."""
    shim = clinic.directory / "clock.so"
    subprocess.run(["gcc", "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-o", shim, WRONG_CLOCK], check=True)
    return {"LD_PRELOAD": str(shim), "CLOCK_AHEAD": "600"}


def expired_identity(clinic: Clinic, node: Node) -> bytes:
    """Key and certificate, signed by the real authority for one second."""
    key = ec.generate_private_key(ec.SECP256R1())
    request = CertificateSigningRequestBuilder().subject_name(Name([])).sign(key, hashes.SHA256())
    authority = CertificateAuthority.load(clinic.manager.state_dir / "ca")
    csr = request.public_bytes(serialization.Encoding.PEM).decode()
    issued = authority.sign_request(csr, Subject("mux", node.name), 1.0)
    wait_for(lambda: time.time() > issued.not_after, "the certificate to expire")
    forms = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return key.private_bytes(*forms) + issued.pem.encode()


def test_a_certificate_that_ended_and_a_daemon_without_a_right(clinic: Clinic) -> None:
    host, mux = clinic.hosts[0], clinic.muxes[1]
    before = clinic.last_event()
    narrow = ["setpriv", "--bounding-set", "-net_raw", "--inh-caps", "-net_raw", "--"]
    clinic.stop(host)
    clinic.stop(mux)
    (mux.state_dir / "identity" / "node.pem").write_bytes(expired_identity(clinic, mux))
    clinic.start_daemon(mux)
    argv = [*narrow, str(PROGRAMS / "lb-agent"), "--config", str(host.config)]
    done = subprocess.run(in_namespace(host.namespace, argv), capture_output=True, text=True, check=False, timeout=20)
    assert done.returncode == 1
    assert "lacks CAP_NET_RAW" in done.stderr
    clinic.all_say(before, is_away("agent host1"), is_away("mux mux2"))
    clinic.fleet_finds(Expected("node", ("MUX mux2",), "node"), Expected("node", ("agent host1",), "node"))
    ended = clinic.finds(mux, "certificate", "expired", "node.pem")
    lacking = clinic.finds(host, "privileges", "does not run here", "lacks CAP_NET_RAW", through=narrow)
    clinic.note("expired certificate", ended)
    clinic.note("missing privilege", lacking)
    assert "as root" in lacking["remedy"]
    assert "--kind mux --name mux2" in ended["remedy"]
    words = command(ended).replace("MANAGER.toml", str(clinic.manager.config)).split()
    token = clinic.in_node(clinic.manager, PROGRAMS / words[0], *words[1:]).split()[0]
    clinic.stop(mux)
    clinic.start_daemon(mux, "--token", token)
    clinic.start_daemon(host)
    clinic.well(clinic.manager)


def test_two_machines_of_one_mux_name(clinic: Clinic) -> None:
    """As when a virtual machine is cloned with all that is on it."""
    one, two = clinic.muxes
    before = clinic.last_event()
    clinic.stop(two)
    copy = two.directory / "copy"
    shutil.copytree(one.state_dir / "identity", copy / "identity")
    configuration = clinic.configuration(two)
    assert isinstance(configuration, MuxConfig)
    settings = replace(configuration.mux, name="mux1", state_dir=str(copy))
    config = two.directory / "copy.toml"
    config.write_text(format_config(replace(configuration, mux=settings)))
    cloned = Process("the copy", two.namespace, [PROGRAMS / "lb-mux", "--config", config], two.directory / "copy.log")
    two.processes["copy"] = cloned
    cloned.wait_output(UP, 30)
    clinic.all_say(before, is_away("mux mux2"), another_machine("mux mux1"))
    double, _ = clinic.fleet_finds(
        Expected("duplicate_name", ('MUX "mux1"', "10.0.1.12", "connected already, from 10.0.1.11")),
        Expected("node", ("MUX mux2", "is not connected"), "node"),
    )
    clinic.note("duplicate MUX name", double)
    assert "set another name" in double["remedy"]
    assert cloned.stop() == 0
    clinic.start_daemon(two)  # which has the other name
    clinic.well(*clinic.muxes, clinic.manager)


def another_machine(node: str) -> Truth:
    """It goes on; that another was turned away is an event."""
    return Truth(node, lambda row: row["state"] == "ready", "another machine of this name or address")
