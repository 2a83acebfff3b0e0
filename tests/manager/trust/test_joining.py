# SPDX-License-Identifier: Apache-2.0
"""A fleet behind one address joins at once, and a node whose answer was lost joins by asking again: real TLS, on
loopback, with the node's own code at the other end."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import cryptography.x509  # noqa: F401  so that keys are made here, rather than in a process each
import pytest

from lb.errors import AccessError
from lb.node import identity as identity_module
from lb.node.identity import Identity, ManagerUnreachableError, TokenText
from lb.node.keys import new_key
from manager.trust import trust as trust_module
from manager.trust.trust import Trust
from tests.manager.stage import StageManager

FLEET = 100


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine that is busy an answer may take longer than nodes wait for one."""
    monkeypatch.setattr(identity_module, "TIMEOUT", 60.0)


class FromNet(trust_module.LoggingListener):
    """As if everybody came from an address of its own in one /64."""

    numbers = itertools.count(1)

    def accept(self) -> tuple[socket.socket, Any]:
        connection, _ = super().accept()
        return connection, (f"2001:db8:1:2::{next(self.numbers):x}", 1)


async def token(trust: Trust, kind: str = "agent", name: str | None = None) -> TokenText:
    return TokenText.parse(await trust.make_token(kind, name, 900, "operator:test"))


@pytest.mark.parametrize("listen", [trust_module.LoggingListener, FromNet], ids=["one address", "one /64"])
async def test_a_fleet_behind_one_address_joins_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listen: type[trust_module.LoggingListener]
) -> None:
    monkeypatch.setattr(trust_module, "LoggingListener", listen)
    async with StageManager(tmp_path).serving() as manager:
        nodes = [Identity(tmp_path / f"host{n}", "agent", f"host{n}") for n in range(FLEET)]
        made = [await token(manager.trust, name=node.name) for node in nodes]
        done = await asyncio.gather(
            *(node.join(manager.url, one) for node, one in zip(nodes, made, strict=True)), return_exceptions=True
        )
        assert [one for one in done if one is not None] == []
        assert len(manager.store.signed) == FLEET
        assert all(node.usable(time.time()) for node in nodes)


@contextlib.asynccontextmanager
async def cut(manager: StageManager) -> AsyncIterator[str]:
    """A way to the manager on which what it answers to the first join is lost."""
    joins = itertools.count(1)

    async def passed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", manager.port)

        async def forth() -> None:
            while data := await reader.read(65536):
                far_writer.write(data)
                await far_writer.drain()

        async def back() -> None:
            while data := await far_reader.read(65536):
                if len(manager.store.signed) == 1 and not lost:
                    lost.append(next(joins))
                    return
                writer.write(data)
                await writer.drain()

        tasks = [asyncio.create_task(forth()), asyncio.create_task(back())]
        with contextlib.suppress(OSError):
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        far_writer.close()
        writer.close()

    lost: list[int] = []
    async with await asyncio.start_server(passed, "127.0.0.1", 0) as server:
        yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@pytest.mark.parametrize("restarted", [False, True], ids=["running", "restarted"])
async def test_a_node_whose_certificate_was_lost_on_its_way_joins_by_asking_again(
    tmp_path: Path, restarted: bool
) -> None:
    async with StageManager(tmp_path).serving() as manager, cut(manager) as url:
        made = await token(manager.trust)
        node = Identity(tmp_path / "node", "agent", "host1")
        with pytest.raises(ManagerUnreachableError):
            await node.join(url, made)
        assert len(manager.store.signed) == 1
        if restarted:
            node = Identity(tmp_path / "node", "agent", "host1")
            assert not node.load()
        await node.join(url, made)
        assert node.usable(time.time())
        assert node.held is not None
        assert [int(serial, 16) for serial in manager.store.signed] == [int(node.held.serial, 16)]
        assert {file.name for file in (tmp_path / "node").iterdir()} == {"node.pem", "ca.pem"}


async def test_whoever_else_has_a_token_that_was_used_gets_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with StageManager(tmp_path).serving() as manager:
        trust = manager.trust
        made = await token(trust)
        asked = {"kind": "agent", "name": "host1", "token": made.secret, "csr": new_key()[1]}
        first = await trust.join(asked, "test")
        assert await trust.join(asked, "test") == first
        (held,) = manager.store.signed.values()
        for other in ({"csr": new_key()[1]}, {"name": "host2"}, {"kind": "mux"}, {"csr": "-"}):
            with pytest.raises(AccessError):
                await trust.join(asked | other, "test")
        wall = time.time()
        monkeypatch.setattr(trust, "_clock", lambda: wall + trust_module.JOIN_AGAIN + 60)
        with pytest.raises(AccessError, match="was used already, by agent:host1"):
            await trust.join(asked, "test")
        monkeypatch.setattr(trust, "_clock", lambda: wall)
        await trust.revoke([held.serial], "sold")
        with pytest.raises(AccessError, match="sold"):
            await trust.join(asked, "test")
        assert list(manager.store.signed) == [held.serial]


async def test_a_token_that_was_revoked_gives_nothing_again(tmp_path: Path) -> None:
    async with StageManager(tmp_path).serving() as manager:
        made = await token(manager.trust)
        asked = {"kind": "agent", "name": "host1", "token": made.secret, "csr": new_key()[1]}
        await manager.trust.join(asked, "test")
        await manager.trust.end_tokens([one.digest for one in await manager.trust.all_tokens()])
        with pytest.raises(AccessError, match="was used already"):
            await manager.trust.join(asked, "test")


async def test_the_same_request_twice_at_once_is_one_certificate(tmp_path: Path) -> None:
    """The first of them may still be at work when the node asks again."""
    async with StageManager(tmp_path).serving() as manager:
        made = await token(manager.trust)
        asked = {"kind": "agent", "name": "host1", "token": made.secret, "csr": new_key()[1]}
        answers = await asyncio.gather(*(manager.trust.join(asked, "test") for _ in range(5)))
        assert len({one["certificate"] for one in answers}) == len(manager.store.signed) == 1


async def test_who_has_a_token_that_is_good_is_known_before_it_is_spent(tmp_path: Path) -> None:
    """Else others might take its place at the door while its certificate is made."""
    async with StageManager(tmp_path).serving() as manager:
        known: list[str] = []
        made = await token(manager.trust)
        asked = {"kind": "agent", "name": "host1", "token": made.secret, "csr": new_key()[1]}
        with pytest.raises(AccessError):
            await manager.trust.join(asked | {"token": "x" * 32}, "test", known.append)
        assert known == []
        with pytest.raises(AccessError):
            await manager.trust.join(asked | {"csr": "-"}, "test", known.append)
        assert len(known) == 1
        await manager.trust.join(asked, "test", known.append)
        assert known[1:] == known[:1]


async def test_a_manager_that_has_no_time_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def busy(_: aiohttp.web.Request) -> aiohttp.web.Response:
        return aiohttp.web.json_response({"error": "too many requests"}, status=429)

    app = aiohttp.web.Application()
    app.router.add_get("/v1/ca", busy)
    runner = aiohttp.web.AppRunner(app)
    await runner.setup()
    site = aiohttp.web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        url = runner.addresses[0]
        node = Identity(tmp_path / "node", "agent", "host1")
        with pytest.raises(ManagerUnreachableError, match="too many requests"):
            await node.join(f"http://{url[0]}:{url[1]}", TokenText("x" * 32, "0" * 64))
    finally:
        await runner.cleanup()
