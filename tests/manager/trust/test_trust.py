# SPDX-License-Identifier: Apache-2.0
"""Joining, renewal and refusals over real TLS on loopback, with the node's own code at the other end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
import stat
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from structlog.testing import capture_logs

from lb.daemon.files.private_files import write_private
from lb.errors import AccessError, RequestError
from lb.node.identity import Identity, ManagerUnreachableError, TokenText, unreachable
from lb.node.keys import new_key
from manager.api.routes import ROUTES
from manager.trust import ca, joining, tokens
from manager.trust.ca import CertificateAuthority, subject
from manager.trust.tokens import parse_ttl
from manager.trust.trust import RENEWALS, Peer, Trust, listener
from tests.manager.memory import MemoryTrust


class Manager:
    """As much of a manager as trust needs."""

    def __init__(self, directory: Path) -> None:
        self.authority = CertificateAuthority.create(directory / "ca")
        self.store = MemoryTrust()
        self.now = 0.0  # beside the real clock
        self.trust = Trust(self.authority, self.store, 3600, clock=lambda: time.time() + self.now)
        self.url = ""

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[Manager]:
        app = web.Application()
        app.add_routes(joining.routes(self.trust))
        app.router.add_get("/who", self._who)
        runner = web.AppRunner(app)
        await runner.setup()
        server = listener("127.0.0.1:0")
        context = self.trust.server_context("m1", "127.0.0.1:0")
        await web.SockSite(runner, server, ssl_context=context).start()
        self.url = f"https://127.0.0.1:{server.getsockname()[1]}"
        try:
            yield self
        finally:
            await runner.cleanup()

    async def _who(self, request: web.Request) -> web.Response:
        certificate = joining.certificate_of(request)
        try:
            peer = self.trust.node(certificate, "test")
        except AccessError:
            try:
                peer = await self.trust.operator(certificate, request.headers.get("Authorization"), "test")
            except AccessError as error:
                return web.Response(text=str(error), status=403)
        return web.Response(text=str(peer))

    async def token(self, kind: str = "mux", name: str | None = None, ttl: float = 900) -> TokenText:
        return TokenText.parse(await self.trust.make_token(kind, name, ttl, "operator:test"))


async def who(url: str, context: ssl.SSLContext, **headers: str) -> str:
    async with aiohttp.ClientSession() as session:
        try:
            async with session.get(url + "/who", ssl=context, headers=headers) as reply:
                return await reply.text()
        except (aiohttp.ClientError, OSError) as error:
            return str(unreachable(error))


def run(tmp_path: Path, test: Callable[[Manager], Awaitable[None]]) -> list[dict[str, Any]]:
    """A test with a serving manager; returns what was logged."""

    async def main() -> None:
        async with Manager(tmp_path).serving() as manager:
            await test(manager)

    with capture_logs() as logs:
        asyncio.run(main())
    return [dict(line) for line in logs]


def refusals(logs: list[dict[str, Any]]) -> list[str]:
    return [line["reason"] for line in logs if line["event"] == "refused"]


def test_a_node_joins_and_is_known_by_its_certificate(tmp_path: Path) -> None:
    async def test(manager: Manager) -> None:
        node = Identity(tmp_path / "identity", "mux", "mux1")
        assert not node.load()
        await node.join(manager.url, await manager.token())
        again = Identity(tmp_path / "identity", "mux", "mux1")
        assert again.load()
        assert again.usable(time.time())
        assert await who(manager.url, again.context()) == "mux:mux1"
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "identity").iterdir()}
        assert modes == {"node.pem": 0o600, "ca.pem": 0o600}
        assert stat.S_IMODE((tmp_path / "identity").stat().st_mode) == 0o700

    assert refusals(run(tmp_path, test)) == []


def test_a_token_works_once(tmp_path: Path) -> None:
    async def test(manager: Manager) -> None:
        token = await manager.token()
        await Identity(tmp_path / "one", "mux", "mux1").join(manager.url, token)
        with pytest.raises(AccessError, match="used already, by mux:mux1"):
            await Identity(tmp_path / "two", "mux", "mux2").join(manager.url, token)
        assert not (tmp_path / "two").exists()

    (reason,) = refusals(run(tmp_path, test))
    assert "works once" in reason


def test_of_two_that_join_at_once_with_one_token_one_does(tmp_path: Path) -> None:
    async def test(manager: Manager) -> None:
        token = await manager.token()
        results = await asyncio.gather(
            *(Identity(tmp_path / f"m{n}", "mux", f"mux{n}").join(manager.url, token) for n in range(4)),
            return_exceptions=True,
        )
        assert sorted(type(result).__name__ for result in results) == ["AccessError"] * 3 + ["NoneType"]
        assert len(manager.store.signed) == 1

    run(tmp_path, test)


@pytest.mark.parametrize(
    ("kind", "name", "ttl", "reason"),
    [
        ("agent", None, 900, "for a node of kind agent, not mux"),
        ("mux", "mux2", 900, "is for 'mux2', not for 'mux1'"),
        ("operator", "ada", 900, "is an operator's"),
        ("mux", None, 0.001, "expired"),
    ],
)
def test_a_token_is_bound(tmp_path: Path, kind: str, name: str | None, ttl: float, reason: str) -> None:
    async def test(manager: Manager) -> None:
        token = await manager.token(kind, name, ttl)
        manager.now = 1
        with pytest.raises(AccessError, match=reason):
            await Identity(tmp_path / "one", "mux", "mux1").join(manager.url, token)

    (logged,) = refusals(run(tmp_path, test))
    assert reason in logged


def test_a_token_for_any_name_does_not_replace_a_node(tmp_path: Path) -> None:
    async def test(manager: Manager) -> None:
        first = Identity(tmp_path / "one", "mux", "mux1")
        await first.join(manager.url, await manager.token())
        with pytest.raises(AccessError, match="has a certificate already"):
            await Identity(tmp_path / "two", "mux", "mux1").join(manager.url, await manager.token())
        await Identity(tmp_path / "two", "mux", "mux1").join(manager.url, await manager.token(name="mux1"))
        assert "was revoked: mux1 joined anew" in await who(manager.url, first.context())

    run(tmp_path, test)


def test_nothing_is_sent_to_a_manager_whose_fingerprint_is_another(tmp_path: Path) -> None:
    async def test(manager: Manager) -> None:
        token = TokenText((await manager.token()).secret, "0" * 64)
        with pytest.raises(AccessError, match="Nothing was sent"):
            await Identity(tmp_path / "one", "mux", "mux1").join(manager.url, token)
        assert all(token.used_at is None for token in manager.store.tokens.values())

    run(tmp_path, test)


def test_a_revoked_certificate_gets_nothing(tmp_path: Path) -> None:
    async def test(manager: Manager) -> None:
        node = Identity(tmp_path / "one", "mux", "mux1")
        await node.join(manager.url, await manager.token())
        await manager.trust.revoke(list(manager.store.signed), "disk was sold")
        assert await who(manager.url, node.context()) == "the certificate of mux:mux1 was revoked: disk was sold"
        with pytest.raises(AccessError, match="disk was sold"):
            await node.renew(manager.url)

    assert any("disk was sold" in reason for reason in refusals(run(tmp_path, test)))


def test_a_certificate_of_another_authority_is_refused_and_logged_with_who_and_why(tmp_path: Path) -> None:
    async def test(manager: Manager) -> None:
        stranger = CertificateAuthority.create(tmp_path / "other")
        issued, key = stranger.make_operator("mallory")
        write_private(tmp_path / "mallory.pem", (key + issued.pem).encode())
        context = ssl.create_default_context(cafile=str(manager.authority.ca_file))
        context.load_cert_chain(tmp_path / "mallory.pem")
        assert "closed the connection" in await who(manager.url, context)

    logs = run(tmp_path, test)
    line = next(line for line in logs if line["event"] == "refused")
    assert line["peer"] == "127.0.0.1"
    assert "unable to get local issuer certificate" in line["reason"]


def test_an_expired_certificate_is_refused_and_logged(tmp_path: Path) -> None:
    async def test(manager: Manager) -> None:
        node = Identity(tmp_path / "one", "mux", "mux1")
        manager.trust.node_lifetime = 1
        await node.join(manager.url, await manager.token())
        async with asyncio.timeout(30):
            while node.usable(time.time()):  # noqa: ASYNC110  a clock is no event
                await asyncio.sleep(0.05)
        assert "closed the connection" in await who(manager.url, node.context())

    assert any("certificate has expired" in reason for reason in refusals(run(tmp_path, test)))


def test_no_certificate_at_all_gets_nothing(tmp_path: Path) -> None:
    async def test(manager: Manager) -> None:
        context = ssl.create_default_context(cafile=str(manager.authority.ca_file))
        assert "no client certificate" in await who(manager.url, context)

    assert len(refusals(run(tmp_path, test))) == 2  # as a node, and as an operator


def test_a_node_cannot_pass_for_the_manager(tmp_path: Path) -> None:
    async def test(manager: Manager) -> None:
        node = Identity(tmp_path / "one", "mux", "mux1")
        await node.join(manager.url, await manager.token())
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.load_cert_chain(node.file)
        runner = web.AppRunner(web.Application())
        await runner.setup()
        socket = listener("127.0.0.1:0")
        await web.SockSite(runner, socket, ssl_context=server).start()
        answer = await who(f"https://127.0.0.1:{socket.getsockname()[1]}", node.context())
        assert "the manager's certificate is not to be trusted" in answer
        await runner.cleanup()

    run(tmp_path, test)


def test_a_node_is_no_operator_and_an_operator_no_node(tmp_path: Path) -> None:
    async def test(manager: Manager) -> None:
        node = {
            "subject": ((("commonName", "mux:mux1"),),),
            "notAfter": "Jan  1 00:00:00 2040 GMT",
            "serialNumber": "1",
        }
        operator = {**node, "subject": ((("commonName", "operator:ada"),),)}
        with pytest.raises(AccessError, match="mux:mux1 is not an operator"):
            await manager.trust.operator(node, None, "-")
        with pytest.raises(AccessError, match="operator:ada is not a node"):
            manager.trust.node(operator, "-")
        assert (await manager.trust.operator(operator, None, "-")).name == "ada"

    run(tmp_path, test)


def test_an_operator_may_ask_with_a_bearer_token(tmp_path: Path) -> None:
    async def test(manager: Manager) -> None:
        context = ssl.create_default_context(cafile=str(manager.authority.ca_file))
        token = await manager.token("operator", "ci")
        assert await who(manager.url, context, Authorization=f"Bearer {token}") == "operator:ci"
        assert await who(manager.url, context, Authorization=f"Bearer {token.secret}") == "operator:ci"
        assert "not an operator's" in await who(manager.url, context, Authorization="Bearer guessed")
        assert "not an operator's" in await who(manager.url, context, Authorization=f"Bearer {await manager.token()}")

    run(tmp_path, test)


def test_renewal_gives_a_new_key_and_the_old_certificate_still_works(tmp_path: Path) -> None:
    async def test(manager: Manager) -> None:
        node = Identity(tmp_path / "one", "mux", "mux1")
        await node.join(manager.url, await manager.token())
        before, old = node.file.read_bytes(), node.context()
        await node.renew(manager.url)
        assert node.file.read_bytes() != before
        assert len(manager.store.signed) == 2
        assert await who(manager.url, node.context()) == await who(manager.url, old) == "mux:mux1"

    run(tmp_path, test)


def test_renewal_is_due_after_a_third_of_its_life() -> None:
    from lb.node.keys import HeldCertificate

    held = HeldCertificate("mux:mux1", "1", 1000, 1300)
    assert not held.renewal_due(1099)
    assert held.renewal_due(1100)


def test_an_identity_of_another_node_is_refused_by_the_node_itself(tmp_path: Path) -> None:
    async def test(manager: Manager) -> None:
        await Identity(tmp_path / "one", "mux", "mux2").join(manager.url, await manager.token())
        with pytest.raises(AccessError, match="is the certificate of mux:mux2, and this node is mux:mux1"):
            Identity(tmp_path / "one", "mux", "mux1").load()

    run(tmp_path, test)


def test_a_damaged_identity_says_what_to_do(tmp_path: Path) -> None:
    write_private(tmp_path / "node.pem", b"-----BEGIN")
    write_private(tmp_path / "ca.pem", b"")
    with pytest.raises(AccessError, match="is damaged; to join again, make a token"):
        Identity(tmp_path, "mux", "mux1").load()


def test_no_manager_is_worth_another_try(tmp_path: Path) -> None:
    node = Identity(tmp_path / "one", "mux", "mux1")
    with listener("127.0.0.1:0") as closed:
        port = closed.getsockname()[1]
    with pytest.raises(ManagerUnreachableError, match="refused"):
        asyncio.run(node.join(f"https://127.0.0.1:{port}", TokenText("x" * 32, "0" * 64)))


def test_there_is_one_authority_and_it_is_never_replaced(tmp_path: Path) -> None:
    made = CertificateAuthority.create(tmp_path / "ca")
    with pytest.raises(AccessError, match="already"):
        CertificateAuthority.create(tmp_path / "ca")
    assert CertificateAuthority.load(tmp_path / "ca").fingerprint == made.fingerprint
    assert stat.S_IMODE((tmp_path / "ca" / "ca.key").stat().st_mode) == 0o600
    with pytest.raises(AccessError, match="lb-manager init"):
        CertificateAuthority.load(tmp_path / "elsewhere")


def test_the_server_certificate_is_made_anew_only_when_names_are_missing(tmp_path: Path) -> None:
    made = CertificateAuthority.create(tmp_path / "ca", ["lb.example.net"])
    first = made.server_certificate("m1", "127.0.0.1:9740").read_bytes()
    assert made.server_certificate("m1", "127.0.0.1:9740").read_bytes() == first
    assert made.server_certificate("m1", "127.0.0.2:9740").read_bytes() != first
    assert made.server_certificate("m1", "0.0.0.0:9740").exists()


def test_a_name_that_a_certificate_cannot_hold_is_refused() -> None:
    for name in ("", "x" * 61, "a\nb", " a"):
        with pytest.raises(AccessError):
            subject("mux", name)
    with pytest.raises(AccessError, match="kind"):
        subject("manager", "m1")


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("15m", 900), ("12h", 43200), ("7d", 604800)])
def test_times_are_read(text: str, seconds: float) -> None:
    assert parse_ttl(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "-1", "1w", "400d", "nan", "1e3"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(RequestError):
        parse_ttl(text)


@pytest.mark.parametrize("text", ["", "lb1.x.y", "lb2." + "x" * 32 + "." + "0" * 64, "lb1." + "x" * 32])
def test_what_is_no_token_is_refused(text: str) -> None:
    with pytest.raises(RequestError):
        TokenText.parse(text)


def test_a_private_file_replaces_what_a_killed_process_left(tmp_path: Path) -> None:
    (tmp_path / "key.new").write_text("half")
    os.chmod(tmp_path / "key.new", 0o644)
    write_private(tmp_path / "key", b"whole")
    assert (tmp_path / "key").read_bytes() == b"whole"
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_a_server_certificate_that_begins_in_the_future_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock was a day ahead when it was made: nobody would trust it until then."""
    made = CertificateAuthority.create(tmp_path / "ca")

    class Ahead(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return datetime.now(tz) + timedelta(days=1)

    with monkeypatch.context() as wrong:
        wrong.setattr(ca, "datetime", Ahead)
        early = made.server_certificate("m1", "127.0.0.1:9740").read_bytes()
        assert made.server_certificate("m1", "127.0.0.1:9740").read_bytes() == early
    now = made.server_certificate("m1", "127.0.0.1:9740").read_bytes()
    assert now != early
    assert made.begins_in(datetime.now(UTC)) <= 0
    assert made.begins_in(datetime.now(UTC) - timedelta(days=1)) > 80_000


@pytest.mark.parametrize(
    "name", ["../../../etc/passwd", "operator:ada", "*", "mux 1", "-mux", "mux1.", "a..b", "é", ""]
)
def test_the_name_of_a_node_is_a_hosts(name: str) -> None:
    with pytest.raises(AccessError, match="cannot be"):
        subject("mux", name)


@pytest.mark.parametrize("name", ["mux1", "host-7.example.net", "rack_4", "10.0.3.21"])
def test_names_of_hosts_are_taken(name: str) -> None:
    assert str(subject("agent", name)) == f"agent:{name}"


def test_a_renewal_that_began_before_a_revocation_gives_nothing(tmp_path: Path) -> None:
    async def test(manager: Manager) -> None:
        await Identity(tmp_path / "node", "mux", "mux1").join(manager.url, await manager.token())
        (held,) = await manager.trust.certificates()
        sign = manager.trust.authority.sign_request

        def revoking(*arguments: Any) -> Any:
            """As if somebody did it between what is asked and what is kept."""
            manager.store.signed[held.serial] = replace(held, revoked_at=1.0, revoked_why="sold")
            return sign(*arguments)

        manager.trust.authority.sign_request = revoking  # type: ignore[method-assign]
        with pytest.raises(AccessError, match="was revoked meanwhile"):
            await manager.trust.renew(Peer("mux", "mux1", held.serial, held.expires), {"csr": new_key()[1]}, "test")
        assert [one.serial for one in await manager.trust.certificates() if one.revoked_at is None] == []

    run(tmp_path, test)


def test_a_node_in_a_loop_gets_no_more_certificates_than_it_needs(tmp_path: Path) -> None:
    async def test(manager: Manager) -> None:
        identities = [Identity(tmp_path / name, "mux", name) for name in ("mux1", "mux2")]
        for identity in identities:
            await identity.join(manager.url, await manager.token())
        for _ in range(RENEWALS):
            await identities[0].renew(manager.url)
        with pytest.raises(AccessError, match="one is enough"):
            await identities[0].renew(manager.url)
        assert len(await manager.trust.certificates()) == 2 + RENEWALS
        await identities[1].renew(manager.url)  # which is no other's affair
        manager.now = manager.trust.node_lifetime / 10
        await identities[0].renew(manager.url)

    run(tmp_path, test)


def test_of_two_tokens_without_a_name_used_for_one_name_at_once_one_joins(tmp_path: Path) -> None:
    async def test(manager: Manager) -> None:
        asked = [
            {"kind": "mux", "name": "mux1", "token": (await manager.token()).secret, "csr": new_key()[1]}
            for _ in range(5)
        ]
        done = await asyncio.gather(*(manager.trust.join(one, "test") for one in asked), return_exceptions=True)
        assert sum(isinstance(one, dict) for one in done) == 1
        assert len([one for one in await manager.trust.certificates() if one.revoked_at is None]) == 1

    run(tmp_path, test)


def test_a_token_makes_none_that_outlives_it_and_one_that_was_ended_is_nobodys(tmp_path: Path) -> None:
    async def test(manager: Manager) -> None:
        ends = time.time() + 60
        with pytest.raises(RequestError, match="none that lives longer than itself"):
            await manager.trust.make_token("operator", "eve", 366 * 86400, "operator:ada", ends)
        text = await manager.trust.make_token("viewer", "bob", 30, "operator:ada", ends)
        peer = await manager.trust.operator(None, f"Bearer {text}", "test")
        assert (str(peer), peer.role) == ("operator:bob", "viewer")
        (token,) = await manager.trust.all_tokens()
        await manager.trust.end_tokens([token.digest])
        with pytest.raises(AccessError, match="expired"):
            await manager.trust.operator(None, f"Bearer {text}", "test")

    run(tmp_path, test)


@pytest.mark.parametrize(
    ("method", "path", "roles"),
    [
        ("GET", "/v1/services", {"viewer", "operator", "admin"}),
        ("POST", "/v1/diff", {"viewer", "operator", "admin"}),
        ("POST", "/v1/apply", {"operator", "admin"}),
        ("DELETE", "/v1/services/{name}", {"operator", "admin"}),
        ("POST", "/v1/muxes/{name}/drain", {"operator", "admin"}),
        ("POST", "/v1/tokens", {"admin"}),
        ("DELETE", "/v1/agents/{name}", {"admin"}),
    ],
)
def test_what_each_role_may(method: str, path: str, roles: set[str]) -> None:
    assert {role for role in tokens.ROLES if tokens.may_ask(role, method, path) is None} == roles


def test_every_route_that_changes_something_is_refused_to_a_viewer() -> None:
    for route in ROUTES:
        if not route.of_nodes and route.method != "GET" and route.path != "/v1/diff":
            assert tokens.may_ask("viewer", route.method, route.path) is not None, route.path
