# SPDX-License-Identifier: Apache-2.0
"""Real processes, mutual TLS: joining, following, a manager that is gone, and everybody who gets nothing."""

from __future__ import annotations

import json
import re
import shutil
import signal
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lb.node.cache import Cache
from manager.trust.ca import CertificateAuthority, subject
from tests.lab import netns
from tests.lab.fleet import Fleet
from tests.lab.pace import allowed
from tests.lab.process import wait_for
from tests.lab.routers import Routers
from tests.lab.services import FILES_VIP, WEB_VIP, files, web
from tests.lab.topology import READY, Node
from tests.lab.traffic import run

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module")
def pool() -> Iterator[Fleet]:
    """A manager, two MUXes, two hosts, and one service."""
    with Fleet(Routers.STATIC, muxes=2, hosts=2) as started:
        started.start((web(started.hosts),), vips=(f"{FILES_VIP}/32",))
        yield started


def get(lab: Fleet, vip: str) -> str:
    """Which host answers a new connection; empty if none does."""
    return run(lab, "curl", "-s", "-m", "2", f"http://{vip}/").stdout.strip()


def serves(lab: Fleet, vip: str = WEB_VIP, times: int = 8) -> bool:
    """Whether new connections are answered, by way of every MUX sooner or later."""
    return all(get(lab, vip) for _ in range(times))


def program(lab: Fleet, node: Node) -> str:
    return "mux" if node in lab.muxes else "agent"


def restart(lab: Fleet, node: Node) -> None:
    """SIGKILL, and a new start without a token."""
    node.processes[program(lab, node)].kill()
    lab.start_node(node).wait_output(READY)
    if node in lab.muxes:
        lab.announce(node)


def test_what_is_applied_is_live_on_every_node(pool: Fleet) -> None:
    assert serves(pool)
    started = time.monotonic()
    pool.apply((web(pool.hosts), files(pool.hosts)), wait=None)
    wait_for(lambda: get(pool, FILES_VIP), "the first answer of the new service")
    assert time.monotonic() - started < allowed(2.0)
    pool.wait_followed()
    assert {len(pool.get(mux, "services")) for mux in pool.muxes} == {2}
    assert {len(pool.get(host, "services")) for host in pool.hosts} == {2}


def test_agents_know_the_muxes_from_the_manager(pool: Fleet) -> None:
    for host in pool.hosts:
        assert pool.get(host, "agents")[0]["muxes"] == [str(mux.address) for mux in pool.muxes]


def test_a_token_works_once(pool: Fleet, tmp_path: Path) -> None:
    token = pool.token(pool.muxes[0], "--name", "mux1")
    before = pool.count(pool.manager, "event=refused")
    mux = pool.muxes[0]
    identity = mux.state_dir / "identity"
    shutil.copytree(identity, tmp_path / "identity")
    for attempt in (1, 2):
        mux.processes["mux"].kill()
        shutil.rmtree(identity)
        shutil.rmtree(mux.state_dir / "node")
        process = pool.start_node(mux, token)
        if attempt == 1:
            process.wait_output(READY)
            pool.announce(mux)
            pool.wait_followed()
        else:
            assert process.wait() == 1
            assert "the token was used already, by mux:mux1" in process.output()
    wait_for(
        lambda: pool.count(pool.manager, "event=refused") > before, "the manager to say so"
    )  # the node is told first
    assert pool.count(pool.manager, "event=refused.*the token was used already") == 1
    pool.start_node(mux, pool.token(mux, "--name", "mux1")).wait_output(READY)
    pool.announce(mux)
    pool.wait_followed()


def test_a_node_whose_state_dir_is_gone_says_how_it_joins_again_and_does(pool: Fleet) -> None:
    for node in (pool.muxes[0], pool.hosts[0]):
        node.processes[program(pool, node)].kill()
        shutil.rmtree(node.state_dir)
        process = pool.start_node(node)
        assert process.wait() == 1
        (command,) = re.findall(
            r"it joins again: make a token on the manager with `lb-manager (.*?)`", process.output()
        )
        assert "Traceback" not in process.output()
        process = pool.start_node(node, pool.token(node))
        assert process.wait() == 1
        assert f"{node.name} has a certificate already" in process.output()
        process = pool.start_node(node, pool.manage(*command.split()))
        process.wait_output(r'event="manager connected"')
        if node in pool.muxes:
            process.wait_output(READY)
            pool.announce(node)
        pool.wait_followed()
    assert serves(pool)


def test_without_a_manager_everything_restarts_and_serves(pool: Fleet) -> None:
    pool.manager.processes["manager"].kill()
    for node in (*pool.muxes, *pool.hosts):
        restart(pool, node)
        assert serves(pool, times=4)
    published = {mux.name: pool.count(mux, 'event="configuration published"') for mux in pool.muxes}
    assert set(published.values()) == {0}
    # It is back: everybody connects, and nothing is published or applied again.
    pool.start_manager()
    for node in (*pool.muxes, *pool.hosts):
        node.processes[program(pool, node)].wait_output('event="manager connected"')
    pool.wait_followed()
    assert [pool.count(mux, 'event="configuration published"') for mux in pool.muxes] == [0, 0]
    assert [pool.count(host, "event=reloaded") for host in pool.hosts] == [0, 0]
    assert serves(pool)


def test_what_a_node_cannot_serve_is_told_to_the_manager_and_all_else_is_served(pool: Fleet) -> None:
    mux = pool.muxes[0]
    pool.apply((web(pool.hosts), files(pool.hosts)))
    pool.wait_followed()
    netns.batch([f"addr add {FILES_VIP}/32 dev lo"], mux.namespace)
    try:
        restart(pool, mux)
        row = wait_for(lambda: leaving_out(pool, mux) or {}, "the manager to know")
        row = wait_for(lambda: followed(leaving_out(pool, mux)) or {}, "everything else to be served")
        assert list(row["left_out"]) == ["files"]
        assert FILES_VIP in row["left_out"]["files"]
        assert serves(pool)
    finally:
        netns.batch([f"addr del {FILES_VIP}/32 dev lo"], mux.namespace)
    mux.processes["mux"].signal(signal.SIGHUP)
    wait_for(lambda: leaving_out(pool, mux) is None, "all to be served again")
    pool.wait_followed()
    assert serves(pool)


def leaving_out(lab: Fleet, mux: Node) -> dict[str, Any] | None:
    """The row of a MUX that leaves something out."""
    return next((row for row in lab.ask("muxes") if row["name"] == mux.name and row["left_out"]), None)


def followed(row: dict[str, Any] | None) -> dict[str, Any] | None:
    """The row of a MUX that serves all else."""
    return row if row and row["state"] == "ready" else None


def refusal(lab: Fleet, pattern: str) -> None:
    lab.manager.processes["manager"].wait_output(f"event=refused.*{pattern}")


def test_a_certificate_of_another_authority_gets_nothing(pool: Fleet, tmp_path: Path) -> None:
    mux = pool.muxes[1]
    identity = mux.state_dir / "identity"
    shutil.copytree(identity, tmp_path / "kept")
    other = CertificateAuthority.create(tmp_path / "other")
    forge(identity, other, "mux", "mux2", 3600)
    try:
        restart(pool, mux)  # from its last good state
        refusal(pool, "the client's certificate is refused")
        row = pool.get(mux, "muxes")[0]["manager"]
        assert not row["connected"]
        assert serves(pool)
    finally:
        mux.processes["mux"].kill()
        shutil.rmtree(identity)
        shutil.copytree(tmp_path / "kept", identity)
    restart(pool, mux)
    pool.wait_followed()


def test_an_expired_certificate_gets_nothing(pool: Fleet, tmp_path: Path) -> None:
    mux = pool.muxes[1]
    identity = mux.state_dir / "identity"
    shutil.copytree(identity, tmp_path / "kept")
    forge(identity, CertificateAuthority.load(pool.manager.state_dir / "ca"), "mux", "mux2", 1)
    time_is_up = time.time() + 1.1
    wait_for(lambda: time.time() > time_is_up, "the certificate to expire")
    try:
        restart(pool, mux)
        wait_for(lambda: "has expired" in (pool.get(mux, "muxes")[0]["manager"]["problem"] or ""), "the node to know")
        assert serves(pool)
    finally:
        mux.processes["mux"].kill()
        shutil.rmtree(identity)
        shutil.copytree(tmp_path / "kept", identity)
    restart(pool, mux)
    pool.wait_followed()


def test_the_certificate_of_another_node_gets_nothing(pool: Fleet, tmp_path: Path) -> None:
    thief = tmp_path / "thief"
    (thief / "state").mkdir(parents=True)
    shutil.copytree(pool.muxes[0].state_dir / "identity", thief / "state" / "identity")
    node = Node("mux2", pool.muxes[1].namespace, pool.muxes[1].address, thief)
    pool.muxes[1].processes["mux"].kill()
    text = pool.muxes[1].config.read_text().replace(str(pool.muxes[1].state_dir), str(node.state_dir))
    node.config.write_text(text)
    process = pool.run(node, "lb-mux", "--config", node.config)
    assert process.wait() == 1
    assert "is the certificate of mux:mux1, and this node is mux:mux2" in process.output()
    # And if it calls itself mux1, it is one mux1 too many.
    node.config.write_text(text.replace('"mux2"', '"mux1"'))
    process = pool.run(node, "lb-mux", "--config", node.config)
    process.wait_output("is connected already, from 10.0.1.11")
    refusal(pool, "mux:mux1 is connected already")
    process.kill()
    restart(pool, pool.muxes[1])
    pool.wait_followed()


def test_a_revoked_node_is_cut_off_and_goes_on_serving(pool: Fleet) -> None:
    host = pool.hosts[1]
    pool.manage("revoke", "agent:host2", "--reason", "disk was sold")
    host.processes["agent"].wait_output("was revoked: disk was sold")
    refusal(pool, "was revoked: disk was sold")
    assert serves(pool)
    host.processes["agent"].kill()
    pool.start_node(host).wait_output(READY)
    assert serves(pool)
    # A new token for this name brings it back.
    host.processes["agent"].kill()
    shutil.rmtree(host.state_dir / "identity")
    pool.start_node(host, pool.token(host, "--name", "host2")).wait_output('event="manager connected"')
    pool.wait_followed()


def test_no_certificate_and_no_token_gets_nothing(pool: Fleet) -> None:
    guessed = "lb1.guessed.guessed"
    done = pool.try_lb("get", "services", token=guessed)
    assert done.returncode != 0
    assert "token" in done.stderr
    token = pool.manage("token", "--kind", "operator", "--name", "ci")
    assert pool.try_lb("get", "services", token=token).returncode == 0


def test_orders_of_a_lower_term_are_refused(pool: Fleet) -> None:
    """As of a manager that was replaced, and wakes up again from an old copy of its disk."""
    mux = pool.muxes[0]
    pool.manager.processes["manager"].stop()
    pool.start_manager()  # of a term that can be lower
    pool.wait_followed()
    pool.manager.processes["manager"].stop()
    with sqlite3.connect(pool.manager.state_dir / "manager.db") as database:
        (term,) = database.execute("SELECT value FROM counter WHERE name = 'term'").fetchone()
        database.execute("UPDATE counter SET value = 0 WHERE name = 'term'")
    try:
        pool.start_manager()
        held = wait_for(
            lambda: [row for row in pool.ask("muxes") if row["name"] == mux.name and row["state"] == "refused"],
            "the manager to know that it is behind",
            60,
        )
        assert f"term {term}" in json.dumps(held)
        assert serves(pool)
    finally:
        pool.manager.processes["manager"].stop()
        with sqlite3.connect(pool.manager.state_dir / "manager.db") as database:
            database.execute("UPDATE counter SET value = ? WHERE name = 'term'", (term,))
        pool.start_manager()
    pool.wait_followed()


def test_certificates_are_renewed_in_time_and_nothing_flaps() -> None:
    # A node renews after a third of it, and must have been heard before the rest is over.
    with Fleet(Routers.STATIC, muxes=1, hosts=1, lifetime=allowed(8.0)) as lab:
        lab.start((web(lab.hosts),))
        mux, host = lab.muxes[0], lab.hosts[0]
        mux.processes["mux"].wait_output(r'event="configuration published" services=1')  # which may lag behind
        published = lab.count(mux, 'event="configuration published"')
        for node in (mux, host):
            process = node.processes[program(lab, node)]
            wait_for(lambda node=node: lab.count(node, 'event="certificate renewed"') >= 3, process.name, 60)  # type: ignore[misc]
        lab.wait_followed()
        assert lab.count(mux, 'event="no manager"') == lab.count(host, 'event="no manager"') == 0
        assert lab.count(mux, 'event="configuration published"') == published
        assert lab.count(lab.manager, "event=refused") == 0
        assert serves(lab)
        cached = Cache(mux.state_dir / "node", "mux:mux1").load()
        assert cached is not None
        assert "web" in cached.state["services"]


def test_a_node_that_starts_before_its_manager_joins_when_it_is_there() -> None:
    with Fleet(Routers.STATIC, muxes=1, hosts=1) as lab:
        lab.init_manager()
        lab.write_files(())
        lab.guardian.serve((WEB_VIP,))
        lab.start_nginx()
        tokens = {node.name: lab.token(node) for node in (*lab.muxes, *lab.hosts)}
        for node in (*lab.muxes, *lab.hosts):
            lab.start_node(node, tokens[node.name]).wait_output('event="no manager"')
        lab.start_manager()
        lab.apply((web(lab.hosts),), wait=None)
        lab.muxes[0].processes["mux"].wait_output(READY)
        lab.announce(lab.muxes[0])
        wait_for(lambda: get(lab, WEB_VIP), "the first answer")


def forge(identity: Path, authority: CertificateAuthority, kind: str, name: str, lifetime: float) -> None:
    """An identity as if the authority had signed it."""
    from lb.daemon.files.private_files import write_private
    from lb.node.keys import new_key

    key, csr = new_key()
    issued = authority.sign_request(csr, subject(kind, name), lifetime)
    write_private(identity / "node.pem", key + issued.pem.encode())
