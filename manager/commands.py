# SPDX-License-Identifier: Apache-2.0
"""``lb-manager init``, ``token``, ``operator``, ``certificates``, ``revoke`` and ``take-over``: who may take part.

They run on the manager's machine, use the same store as a running manager, and need none to run; what they change, it
sees within a second. Added to the program's commands by :mod:`manager.daemon`.
"""

from __future__ import annotations

import asyncio
import getpass
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import click

from lb.config.load import load_manager
from lb.daemon.files.private_files import make_private_directory, write_private
from lb.daemon.files.state_dir import check_private
from lb.daemon.log import only_warnings
from lb.errors import IoError, RequestError
from lb.model import ManagerSettings
from manager.endpoints import CA_DIRECTORY
from manager.store.sqlite import SqliteStore
from manager.trust.ca import CertificateAuthority
from manager.trust.tokens import DEFAULT_TTL, KINDS, parse_ttl
from manager.trust.trust import Trust

T = TypeVar("T")

_config = click.option(
    "--config", "path", required=True, type=click.Path(path_type=Path), help="The manager's TOML file."
)


def _with_trust(settings: ManagerSettings, authority: CertificateAuthority, work: Callable[[Trust], Awaitable[T]]) -> T:
    # What a daemon would log is printed by the command itself; only what went wrong is worth a line.
    only_warnings()

    async def main() -> T:
        store = await SqliteStore.open(Path(settings.state_dir))
        try:
            return await work(Trust(authority, store, settings.node_lifetime))
        finally:
            await store.close()

    return asyncio.run(main())


def _load(path: Path) -> tuple[ManagerSettings, CertificateAuthority]:
    settings = load_manager(path)
    state_dir = Path(settings.state_dir)
    if state_dir.exists():
        check_private(state_dir, "manager.state_dir")
    return settings, CertificateAuthority.load(Path(settings.state_dir) / CA_DIRECTORY)


def _who() -> str:
    """Whoever runs the command, for the audit."""
    return f"operator:{getpass.getuser()}"


def _operators_directory() -> Path:
    """Where ``lb`` looks for an operator's credentials."""
    return Path.home() / ".config" / "lb"


def _write_operator(directory: Path, authority: CertificateAuthority, certificate: str, key: str) -> None:
    try:
        make_private_directory(directory)
        write_private(directory / "ca.pem", authority.pem.encode())
        write_private(directory / "operator.key", key.encode())
        write_private(directory / "operator.pem", certificate.encode())
    except OSError as error:
        raise IoError(f"{directory}: cannot be written: {(error.strerror or str(error)).lower()}") from None


def _refuse_to_replace(directory: Path) -> None:
    if (directory / "operator.key").exists():
        raise RequestError(f"{directory} holds an operator's key already; choose another directory with --out")


@click.command("init")
@_config
@click.option(
    "--address", "names", multiple=True, help="A further address or host name of the manager; may be repeated."
)
@click.option("--operator", default=None, help="Name of the first operator; yours unless given.")
@click.option("--out", type=click.Path(path_type=Path), help="Where the operator's files go; default ~/.config/lb.")
def init(path: Path, names: tuple[str, ...], operator: str | None, out: Path | None) -> None:
    """Make the CA (certificate authority), and the first operator's certificate."""
    settings = load_manager(path)
    directory = out or _operators_directory()
    _refuse_to_replace(directory)
    state_dir = Path(settings.state_dir)
    if state_dir.exists():
        check_private(state_dir, "manager.state_dir")
    try:
        make_private_directory(state_dir)
    except OSError as error:
        raise IoError(f"{state_dir}: cannot be made: {(error.strerror or str(error)).lower()}") from None
    authority = CertificateAuthority.create(state_dir / CA_DIRECTORY, names)
    authority.server_certificate(settings.name, settings.listen)
    name = operator or getpass.getuser()
    certificate, key = _with_trust(settings, authority, lambda trust: trust.make_operator(name, _who()))
    _write_operator(directory, authority, certificate, key)
    click.echo(f"CA: {state_dir / CA_DIRECTORY}; keep a copy of it in a safe place")
    click.echo(f"operator {name}: operator.pem, operator.key and ca.pem in {directory}")
    click.echo("next: start `lb-manager run`, and make a token for each node with `lb-manager token`")


@click.command("operator")
@_config
@click.argument("name")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The directory to write the files to.")
def operator(path: Path, name: str, out: Path) -> None:
    """Make a certificate for an operator."""
    settings, authority = _load(path)
    _refuse_to_replace(out)
    certificate, key = _with_trust(settings, authority, lambda trust: trust.make_operator(name, _who()))
    _write_operator(out, authority, certificate, key)
    click.echo(
        f"operator {name}: operator.pem, operator.key and ca.pem in {out}; they go to ~/.config/lb of whoever it is"
    )


@click.command("token")
@_config
@click.option("--kind", required=True, type=click.Choice(KINDS), help="What the token is for.")
@click.option("--name", default=None, help="The only node that may join with it, or the operator's name.")
@click.option(
    "--ttl", default=f"{DEFAULT_TTL / 60:g}m", show_default=True, help="How long it works: 90s, 15m, 12h, 7d."
)
def token(path: Path, kind: str, name: str | None, ttl: str) -> None:
    """Make a token: a node joins with it, once; an operator asks with it until it expires.

    A viewer sees everything; an operator changes services and drains; an admin decides who takes part as well.
    """
    seconds = parse_ttl(ttl)
    settings, authority = _load(path)
    click.echo(_with_trust(settings, authority, lambda trust: trust.make_token(kind, name, seconds, _who())))


@click.command("tokens")
@_config
def list_tokens(path: Path) -> None:
    """List the tokens that work, by an ID of each: the tokens themselves are not kept."""
    settings, authority = _load(path)

    async def listed(trust: Trust) -> list[str]:
        rows = sorted(await trust.all_tokens(), key=lambda row: row.made_at)
        return [
            f"{row.id}  {row.kind + ':' + (row.name or '*'):<24} {_day(row.made_at)} to {_day(row.expires)}  "
            f"by {row.made_by}" + (f"  used by {row.used_by}" if row.used_by is not None else "")
            for row in rows
        ]

    for line in _with_trust(settings, authority, listed) or ["there are none"]:
        click.echo(line)


@click.command("certificates")
@_config
def certificates(path: Path) -> None:
    """List the certificates that are valid."""
    settings, authority = _load(path)

    async def listed(trust: Trust) -> list[str]:
        rows = sorted(await trust.certificates(), key=lambda row: (row.kind, row.name, row.made_at))
        return [
            f"{row.common_name:<24} {_day(row.made_at)} to {_day(row.expires)}  {row.serial}"
            + (f"  revoked: {row.revoked_why}" if row.revoked_at is not None else "")
            for row in rows
        ]

    for line in _with_trust(settings, authority, listed) or ["there are none"]:
        click.echo(line)


@click.command("revoke")
@_config
@click.argument("what")
@click.option("--reason", default="no reason was given", help="For the log, and for whoever is refused.")
def revoke(path: Path, what: str, reason: str) -> None:
    """Revoke the certificates and tokens of WHAT: KIND:NAME, such as mux:mux1, a serial number, or a token's ID."""
    settings, authority = _load(path)

    async def revoked(trust: Trust) -> list[str]:
        found = [
            row
            for row in await trust.certificates()
            if row.revoked_at is None and what in (row.common_name, row.serial)
        ]
        await trust.revoke([row.serial for row in found], reason, _who())
        ended = [row for row in await trust.all_tokens() if what in (row.id, f"{row.kind}:{row.name}")]
        await trust.end_tokens([row.digest for row in ended], _who())
        lines = [f"{row.common_name} {row.serial} is revoked" for row in found]
        return lines + [f"token {row.id} of {row.kind}:{row.name or '*'} is revoked" for row in ended]

    lines = _with_trust(settings, authority, revoked)
    if not lines:
        raise RequestError(
            f"there is no valid certificate or token of {what[:80]!r}; `lb-manager certificates` and "
            "`lb-manager tokens` list all"
        )
    for line in lines:
        click.echo(line)


@click.command("take-over")
@_config
@click.option(
    "--above", default=0, type=click.IntRange(0, 2**52), help="The highest term that nodes know, if it is higher."
)
def take_over(path: Path, above: int) -> None:
    """After a backup was restored, or the store was lost: this store counts from now on, once lb-manager is restarted.

    Nodes that had newer orders go on with those until then, and take what this store has afterwards. What was applied
    or revoked since the backup is lost: look at `lb-manager certificates`. Be sure that no later manager runs.
    """
    settings, _ = _load(path)

    async def main() -> int:
        store = await SqliteStore.open(Path(settings.state_dir))
        try:
            return await store.take_over(above)
        finally:
            await store.close()

    click.echo(f"the next start of lb-manager has a term above {asyncio.run(main())}; restart it now")
    click.echo("what was revoked since is valid again: see `lb-manager certificates`, and revoke it once more")


def _day(at: float) -> str:
    return datetime.fromtimestamp(min(at, time.time() + 1e9), UTC).strftime("%Y-%m-%d %H:%M")


COMMANDS = (init, operator, token, list_tokens, certificates, revoke, take_over)
