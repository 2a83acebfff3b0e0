# SPDX-License-Identifier: Apache-2.0
"""``lb doctor`` in a real fleet: it finds nothing where all is well, and each of twelve faults once it is there.

Each fault is made for real, the doctor is asked as an operator would, the remedy that it names is carried out (its very
command, where a lab can run it), and it is asked again. ``pytest -s`` prints what it said at the end.
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

from lb.config_text import format_config
from lb.model import MuxConfig
from lb.mux.isolation import install_text
from lb.mux.prefixes import Cover
from manager.authority import Authority, Subject
from tests.lab import netns
from tests.lab.clinic import PROBE, Clinic, table
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


def test_it_finds_an_mtu_that_is_too_small_although_small_packets_pass(clinic: Clinic) -> None:
    mux, port = clinic.muxes[0], f"to{clinic.hosts[0].name}"
    # A bridge that was told its MTU keeps it: larger frames vanish, and no router says why.
    netns.batch(["link set brh mtu 1499", "link set brh mtu 1500", f"link set {port} mtu 1400"], clinic.router)
    try:
        found = clinic.finds(mux, "mtu_path", "1500 bytes", "10.0.3.21", "up to 1400 bytes")
        clinic.note("wrong MTU", found)
        assert "`ip link set dev INTERFACE mtu 1500`" in found["remedy"]
    finally:
        clinic.in_node(clinic.router, "ip", "link", "set", "dev", port, "mtu", "1500")
    clinic.well(mux)


def test_it_finds_a_strict_rp_filter_where_it_hurts(clinic: Clinic) -> None:
    host = clinic.hosts[0]
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
    try:
        found = clinic.finds(host, "rp_filter", "net.ipv4.conf.eth0.rp_filter is 1 (strict)", "by eth1")
        clinic.note("rp_filter strict where it hurts", found)
        clinic.do(host, found)
        clinic.well(host)
    finally:
        lines = ["route replace default via 10.0.3.1", "route del 10.0.1.0/24 via 10.0.3.1", "link del eth1"]
        netns.batch(lines, host.namespace)


def test_it_finds_a_host_that_answers_arp_for_a_vip_there_and_from_its_neighbour(clinic: Clinic) -> None:
    """While its agent is stopped: one that runs puts the setting back."""
    host, neighbour = clinic.hosts[0], clinic.hosts[1]
    clinic.stop(host)
    netns.sysctl(host.namespace, {f"ipv4/conf/{name}/arp_ignore": 0 for name in ("all", "eth0")})
    found = clinic.finds(host, "vip_arp", FILES_VIP, "arp_ignore is 0")
    clinic.finds(neighbour, "vip_arp", f"answers ARP for the VIP {FILES_VIP} on eth0")
    clinic.note("VIP answering ARP", found)
    clinic.do(host, found)
    clinic.start_daemon(host)
    clinic.well(host, neighbour)


def test_it_finds_a_missing_privilege(clinic: Clinic) -> None:
    host = clinic.hosts[1]
    narrow = ["setpriv", "--bounding-set", "-net_raw", "--inh-caps", "-net_raw", "--"]
    clinic.stop(host)
    argv = [*narrow, str(PROGRAMS / "lb-agent"), "--config", str(host.config)]
    done = subprocess.run(in_namespace(host.namespace, argv), capture_output=True, text=True, check=False, timeout=20)
    assert done.returncode == 1
    assert "lacks CAP_NET_RAW" in done.stderr
    found = clinic.finds(host, "privileges", "lacks CAP_NET_RAW", through=narrow)
    clinic.note("missing privilege", found)
    assert "as root" in found["remedy"]
    clinic.finds(host, "daemon", "lb-agent does not run here")
    clinic.start_daemon(host)
    clinic.well(host)


def test_it_finds_a_clock_that_is_wrong_there_and_from_the_manager(clinic: Clinic) -> None:
    host = clinic.hosts[1]
    shim = clinic.directory / "clock.so"
    subprocess.run(["gcc", "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-o", shim, WRONG_CLOCK], check=True)
    wrong = {"LD_PRELOAD": str(shim), "CLOCK_AHEAD": "600"}
    clinic.stop(host)
    clinic.start_daemon(host, env=wrong)
    found = clinic.finds(clinic.manager, "clock", "agent host2", "10 min ahead of the manager's")
    clinic.finds(host, "clock", "this machine's clock is 10 min ahead of the manager's", env=wrong)
    clinic.note("clock skew", found)
    assert "`chronyc makestep`" in found["remedy"]
    clinic.stop(host)
    clinic.start_daemon(host)
    clinic.well(host, clinic.manager)


def expired_identity(clinic: Clinic, node: Node) -> bytes:
    """Key and certificate, signed by the real authority for one second."""
    key = ec.generate_private_key(ec.SECP256R1())
    request = CertificateSigningRequestBuilder().subject_name(Name([])).sign(key, hashes.SHA256())
    authority = Authority.load(clinic.manager.state_dir / "ca")
    csr = request.public_bytes(serialization.Encoding.PEM).decode()
    issued = authority.sign_request(csr, Subject("mux", node.name), 1.0)
    wait_for(lambda: time.time() > issued.not_after, "the certificate to expire")
    forms = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return key.private_bytes(*forms) + issued.pem.encode()


def test_it_finds_an_expired_certificate(clinic: Clinic) -> None:
    mux = clinic.muxes[1]
    clinic.stop(mux)
    (mux.state_dir / "identity" / "node.pem").write_bytes(expired_identity(clinic, mux))
    clinic.start_daemon(mux)
    found = clinic.finds(mux, "certificate", "expired", "node.pem")
    clinic.note("expired certificate", found)
    assert "lb-manager token" in found["remedy"]
    assert "--kind mux --name mux2" in found["remedy"]
    arguments = ["token", "--config", str(clinic.manager.config), "--kind", "mux", "--name", "mux2"]
    token = clinic.in_node(clinic.manager, PROGRAMS / "lb-manager", *arguments).split()[0]
    clinic.stop(mux)
    clinic.start_daemon(mux, "--token", token)
    clinic.well(mux, clinic.manager)


def test_it_finds_a_backend_that_cannot_be_reached(clinic: Clinic) -> None:
    mux, host = clinic.muxes[0], clinic.hosts[2]
    netns.batch([f"link set to{host.name} down"], clinic.router)
    try:
        found = clinic.finds(mux, "unreachable", "10.0.3.23", "cannot be reached from 10.0.1.11")
        clinic.note("unreachable backend", found)
        assert "lb drain backend" in found["remedy"]
        clinic.finds(clinic.manager, "unreachable", "10.0.3.23")
    finally:
        netns.batch([f"link set to{host.name} up"], clinic.router)
    clinic.well(mux, clinic.manager)


def test_it_finds_that_protocol_4_is_dropped_on_the_way(clinic: Clinic) -> None:
    mux, host = clinic.muxes[0], clinic.hosts[1]
    rule = f"ip daddr {host.address} ip protocol 4 drop;"
    rules = f"table ip lab_tunnels {{\nchain forward {{\ntype filter hook forward priority 0;\n{rule}\n}}\n}}\n"
    clinic.in_node(clinic.router, "nft", "-f", "-", stdin=rules)
    try:
        found = clinic.finds(mux, "protocol_4", "10.0.3.22", "plain packets arrive")
        clinic.note("dropped protocol 4", found)
        assert "allow protocol 4" in found["remedy"]
    finally:
        clinic.in_node(clinic.router, "nft", "delete", "table", "ip", "lab_tunnels")
    clinic.well(mux)


def test_it_finds_a_wrong_bgp_password(clinic: Clinic) -> None:
    mux = clinic.muxes[1]
    configuration = clinic.configuration(mux)
    assert isinstance(configuration, MuxConfig)
    assert configuration.bgp is not None
    peers = tuple(replace(peer, password="not that") for peer in configuration.bgp.peers)  # noqa: S106
    clinic.stop(mux)
    mux.config.write_text(format_config(replace(configuration, bgp=replace(configuration.bgp, peers=peers))))
    clinic.start_daemon(mux)
    found = clinic.finds(mux, "bgp_password", "router (10.0.1.1)", "its password (TCP MD5) is another")
    clinic.note("BGP password wrong", found)
    assert "make password in [[bgp.peer]] router" in found["remedy"]
    clinic.stop(mux)
    mux.config.write_text(format_config(configuration))
    clinic.start_daemon(mux)
    clinic.well(mux, clinic.manager)


def test_it_finds_two_machines_of_one_mux_name_there_and_from_the_manager(clinic: Clinic) -> None:
    """As when a virtual machine is cloned with all that is on it."""
    one, two = clinic.muxes
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
    found = clinic.finds(
        clinic.manager, "duplicate_name", 'MUX "mux1"', "10.0.1.12", "connected already, from 10.0.1.11"
    )
    clinic.finds(two, "duplicate_name", "is connected already", config=config)
    clinic.note("duplicate MUX name", found)
    assert "set another name" in found["remedy"]
    assert cloned.stop() == 0
    clinic.start_daemon(two)  # which has the other name
    clinic.well(two)


def test_it_finds_the_nftables_table_of_a_mux_that_is_no_more(clinic: Clinic) -> None:
    """On a host that was a MUX once: what comes out of tunnels meets the table as well."""
    host = clinic.hosts[0]
    vip = clinic.services[1].vip
    clinic.in_node(host, "nft", "-f", "-", stdin=install_text("vipmux_mux9", "eth0", 2, Cover([vip])))
    found = clinic.finds(host, "stale_table", "inet vipmux_mux9", FILES_VIP)
    clinic.finds(clinic.muxes[0], "host_silent", "10.0.3.21")  # as far as that can be told from there
    clinic.note("stale nftables table", found)
    clinic.do(host, found)
    clinic.well(host, clinic.muxes[0])


def test_it_finds_a_full_disk(clinic: Clinic) -> None:
    host = clinic.hosts[2]
    ballast = host.state_dir / "ballast"
    with pytest.raises(OSError, match="No space left"):
        ballast.write_bytes(bytes(4 << 20))
    found = clinic.finds(host, "disk", str(host.state_dir), "is full")
    clinic.note("full disk", found)
    assert f"`df -h {host.state_dir}`" in found["remedy"]
    ballast.unlink()
    clinic.well(host)


def test_all_is_well_again_and_twelve_faults_were_named(clinic: Clinic) -> None:
    clinic.well(*clinic.muxes, clinic.manager)
    assert len(clinic.seen) == 12
