# SPDX-License-Identifier: Apache-2.0
"""``lb-manager init`` and its companions, as an operator types them."""

from __future__ import annotations

import asyncio
import re
import stat
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from lb.errors import AccessError, RequestError
from lb.node.identity import TokenText
from manager.daemon import lb_manager
from manager.store.sqlite import SqliteStore
from manager.trust.ca import CertificateAuthority
from manager.trust.tokens import digest


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "manager.toml"
    path.write_text(
        f'[manager]\nname = "m1"\nvip_prefixes = ["203.0.113.0/24"]\nlisten = "127.0.0.1:9740"\n'
        f'state_dir = "{tmp_path / "state"}"\n'
    )
    return path


def run(config: Path, command: str, *arguments: Any) -> Result:
    words = [command, "--config", str(config), *map(str, arguments)]
    result = CliRunner().invoke(lb_manager, words, standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return result


def init(config: Path) -> Path:
    out = config.parent / "operator"
    run(config, "init", "--operator", "ada", "--out", out, "--address", "lb.example.net")
    return out


def test_init_makes_the_authority_and_the_first_operator(config: Path) -> None:
    out = init(config)
    ca = config.parent / "state" / "ca"
    assert {path.name for path in out.iterdir()} == {"operator.pem", "operator.key", "ca.pem"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in [*out.iterdir(), *ca.iterdir()]} == {0o600}
    assert CertificateAuthority.load(ca).names() == ["lb.example.net"]
    assert "operator:ada" in run(config, "certificates").output


def test_init_never_replaces_an_authority_or_an_operators_key(config: Path) -> None:
    out = init(config)
    with pytest.raises(RequestError, match="holds an operator's key already"):
        run(config, "init", "--out", out)
    with pytest.raises(AccessError, match="holds a CA already"):
        run(config, "init", "--out", config.parent / "other")
    with pytest.raises(RequestError, match="choose another directory"):
        run(config, "operator", "bob", "--out", out)


def test_a_token_is_all_that_is_printed_and_only_its_hash_is_kept(config: Path) -> None:
    init(config)
    printed = run(config, "token", "--kind", "mux", "--name", "mux1", "--ttl", "2h").output
    token = TokenText.parse(printed)
    assert printed == f"{token}\n"
    assert token.fingerprint == CertificateAuthority.load(config.parent / "state" / "ca").fingerprint

    async def kept() -> None:
        store = await SqliteStore.open(config.parent / "state")
        row = await store.token(digest(token.secret))
        assert row is not None
        assert (row.kind, row.name, row.expires - row.made_at) == ("mux", "mux1", 7200)
        await store.close()

    asyncio.run(kept())
    database = (config.parent / "state" / "manager.db").read_bytes()
    assert token.secret.encode() not in database


def test_what_is_revoked_is_listed_with_the_reason(config: Path) -> None:
    init(config)
    run(config, "operator", "bob", "--out", config.parent / "bob")
    assert "operator:bob" in run(config, "revoke", "operator:bob", "--reason", "left us").output
    lines = run(config, "certificates").output.splitlines()
    assert [line.endswith("revoked: left us") for line in lines] == [False, True]
    with pytest.raises(RequestError, match="there is no valid certificate or token of 'operator:bob'"):
        run(config, "revoke", "operator:bob")


def test_tokens_are_listed_by_an_id_and_revoked(config: Path) -> None:
    init(config)
    text = run(config, "token", "--kind", "viewer", "--name", "bob").output.strip()
    (line,) = run(config, "tokens").output.splitlines()
    assert "viewer:bob" in line
    assert text.split(".")[1] not in line
    id_ = line.split()[0]
    assert run(config, "revoke", id_).output == f"token {id_} of viewer:bob is revoked\n"
    assert run(config, "tokens").output == "there are none\n"


def test_who_let_whom_take_part_stands_in_the_audit(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("getpass.getuser", lambda: "root")
    init(config)
    run(config, "token", "--kind", "viewer", "--name", "bob", "--ttl", "2h")
    run(config, "operator", "eve", "--out", config.parent / "eve")
    run(config, "revoke", "operator:eve", "--reason", "left us")
    run(config, "revoke", "viewer:bob")

    async def lines() -> list[tuple[str, str, str]]:
        store = await SqliteStore.open(config.parent / "state")
        try:
            return [(line.who, line.what, line.why) for line in reversed(await store.audit(10))]
        finally:
            await store.close()

    found = [(who, re.sub("[0-9A-Fa-f]{12,}", "ID", what), why) for who, what, why in asyncio.run(lines())]
    assert found == [
        ("operator:root", "certificate ID made for operator ada, for 365 days", ""),
        ("operator:root", "token ID made for operator bob to ask as viewer, for 7200 s", ""),
        ("operator:root", "certificate ID made for operator eve, for 365 days", ""),
        ("operator:root", "certificate ID of operator eve revoked", "left us"),
        ("operator:root", "token ID of viewer bob revoked", ""),
    ]


def test_without_an_authority_the_commands_say_what_to_do(config: Path) -> None:
    for command in (["token", "--kind", "mux"], ["certificates"], ["revoke", "mux:mux1"]):
        with pytest.raises(AccessError, match="run `lb-manager init` first"):
            run(config, *command)


def test_an_operators_token_must_name_somebody(config: Path) -> None:
    init(config)
    with pytest.raises(RequestError, match="needs a name, for the audit"):
        run(config, "token", "--kind", "operator")


def test_after_a_restore_terms_go_on_above_what_nodes_know(config: Path) -> None:
    init(config)
    assert "restart it now" in run(config, "take-over", "--above", 7).output

    async def term() -> int:
        store = await SqliteStore.open(config.parent / "state")
        try:
            return await store.next_term()
        finally:
            await store.close()

    assert asyncio.run(term()) > 8
