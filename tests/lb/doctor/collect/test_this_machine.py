# SPDX-License-Identifier: Apache-2.0
"""Looking at the real machine: files, processes, sockets; nothing of it is changed."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lb.daemon.control_socket import ControlServer
from lb.doctor.collect import this_machine
from lb.doctor.model.facts import Role
from lb.node.keys import new_key
from manager.trust.ca import CertificateAuthority, Subject


@contextmanager
def running(*configs: Path) -> Iterator[list[int]]:
    """Processes that look like ``lb-mux --config FILE``."""
    argv = ["lb-mux", "-c", "import time; print(flush=True); time.sleep(60)", "--config"]
    started = [
        subprocess.Popen([*argv, str(config)], executable=sys.executable, stdout=subprocess.PIPE) for config in configs
    ]
    try:
        for process in started:
            assert process.stdout is not None
            process.stdout.readline()
        yield [process.pid for process in started]
    finally:
        for process in started:
            process.kill()
            process.communicate()


def test_daemons_of_this_machine_are_found_with_the_names_in_their_files(tmp_path: Path) -> None:
    one, two = tmp_path / "one.toml", tmp_path / "two.toml"
    one.write_text('[mux]\nname = "mux1"\ninterface = "eth0"\n')
    two.write_text("[mux")
    with running(one, two) as pids:
        twins = [twin for twin in this_machine.twins(Role.MUX) if twin.pid in pids]
        found = {twin.pid: (twin.config, twin.name, twin.interface) for twin in twins}
        assert found == {pids[0]: (str(one), "mux1", "eth0"), pids[1]: (str(two), None, None)}
        assert not {twin.pid for twin in this_machine.twins(Role.AGENT)} & set(pids)
    assert not {twin.pid for twin in this_machine.twins(Role.MUX)} & set(pids)


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes nobody")
def test_a_daemon_with_more_rights_than_the_doctor_is_seen_as_well() -> None:
    """As of a daemon whose own examination looks for others beside it."""
    directory = Path(tempfile.mkdtemp(prefix="vipmux-doctor-"))  # everybody may go there
    config = directory / "one.toml"
    try:
        directory.chmod(0o755)
        config.write_text('[mux]\nname = "mux1"\n')
        with running(config) as (pid,):
            assert pid in {twin.pid for twin in this_machine.twins(Role.MUX)}
            child = os.fork()
            if child == 0:
                os.setresuid(65534, 65534, 65534)
                seen = [twin for twin in this_machine.twins(Role.MUX) if twin.pid == pid]
                os._exit(0 if [twin.name for twin in seen] == ["mux1"] else 1)
            assert os.waitpid(child, 0)[1] == 0
    finally:
        config.unlink(missing_ok=True)
        directory.rmdir()


def test_a_certificate_is_read_or_it_is_said_why_not(tmp_path: Path) -> None:
    authority = CertificateAuthority.create(tmp_path / "ca")
    _, csr = new_key()
    file = tmp_path / "node.pem"
    file.write_text(authority.sign_request(csr, Subject("mux", "mux1"), 3600.0).pem)
    found = this_machine.certificate(file)
    assert found.owner == "mux:mux1"
    assert found.not_before < time.time() < found.not_after < time.time() + 3601
    assert this_machine.certificate(tmp_path / "none.pem").missing
    for garbage in (b"", b"\0\xff" * 100, b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"):
        file.write_bytes(garbage)
        assert this_machine.certificate(file).error == "is damaged"


def test_a_daemon_is_asked_and_known_by_its_pid(tmp_path: Path) -> None:
    rows = {
        "status": [{"name": "mux1", "manager": {"connected": True}}],
        "services": [{"name": "web"}],
        "backends": "x",
    }
    ready, end = threading.Event(), threading.Event()

    async def serve() -> None:
        server = ControlServer(tmp_path / "mux.sock", {"get": lambda asked: rows.get(asked["what"], [])})
        await server.start()
        ready.set()
        await asyncio.to_thread(end.wait)
        await server.close()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        assert ready.wait(10)
        found = this_machine.daemon(Role.MUX, str(tmp_path))
    finally:
        end.set()
        thread.join()
    assert (found.answers, found.pid, found.capabilities) == (True, os.getpid(), this_machine.rights().capabilities)
    assert (found.status["name"], found.services, found.backends) == ("mux1", ({"name": "web"},), ())
    assert found.manager == {"connected": True}


def test_why_a_daemon_was_not_asked_is_said(tmp_path: Path) -> None:
    found = this_machine.daemon(Role.MUX, str(tmp_path))
    assert (found.answers, found.may_ask, found.error) == (False, True, f"{tmp_path}/mux.sock: is not there")


def test_a_disk_is_that_of_where_the_directory_will_be(tmp_path: Path) -> None:
    there, later = this_machine.disk(str(tmp_path)), this_machine.disk(str(tmp_path / "not" / "yet"))
    assert later.total == there.total > 0
    assert later.error is None


def test_this_machine_can_be_looked_at() -> None:
    assert this_machine.kernel().release
    assert this_machine.link("lo").exists
    assert not this_machine.link("nosuch0").exists
    assert this_machine.clock(None).synchronised in (True, False)
    assert "127.0.0.1" in {str(address) for address in this_machine.network("lo").addresses}


@pytest.mark.parametrize(
    ("held", "addresses"),
    [
        (["203.0.113.10"], ["203.0.113.10"]),
        ([{"prefix": {"addr": "203.0.113.0", "len": 25}}], ["203.0.113.0/25"]),
        ([{"range": ["203.0.113.1", "203.0.113.3"]}], ["203.0.113.1-203.0.113.3"]),
        ([7, None, {"elem": {}}], []),
    ],
)
def test_the_elements_of_a_table_are_read(held: list[object], addresses: list[str]) -> None:
    assert list(this_machine._elements(held)) == addresses


def test_a_manager_that_is_no_manager_tells_no_time() -> None:
    found = this_machine.clock("https://127.0.0.1:9")
    assert found.ahead is None
    assert found.error == "connection refused"


def test_a_state_directory_is_seen_with_owners_rights_and_links(tmp_path: Path) -> None:
    directory = tmp_path / "state"
    (directory / "identity").mkdir(parents=True)
    key = directory / "identity" / "node.pem"
    key.write_text("secret")
    key.chmod(0o644)
    (directory / "node").symlink_to("/nowhere")
    found = {one.path: one for one in this_machine.private_in(directory)}
    assert found.keys() == {str(directory), str(directory / "identity"), str(key), str(directory / "node")}
    assert (found[str(key)].mode, found[str(key)].owner) == (0o644, os.geteuid())
    assert found[str(directory / "node")].link == "/nowhere"
    assert this_machine.private_in(tmp_path / "not there") == []
