# SPDX-License-Identifier: Apache-2.0
"""Finds a running daemon's local socket and asks it; used by every subcommand that takes ``--local``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from lb.errors import ConfigError, ControlError, RequestError

F = TypeVar("F", bound=Callable[..., Any])

STATE_DIR = Path("/var/lib/lb")


def local_options(function: F) -> F:
    """``--local``, ``--socket`` and ``--config``; the command gets ``local``, ``socket`` and ``config``."""
    options = [
        click.option("--local", is_flag=True, help="Ask the daemon on this machine."),
        click.option(
            "--socket", type=click.Path(), metavar="PATH", help="The daemon's socket, if not in the default place."
        ),
        click.option(
            "--config", type=click.Path(), metavar="FILE", help="The daemon's file, which says where its state is."
        ),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def require_local(local: bool, socket: str | None) -> None:
    """For what only the daemon on this machine can answer."""
    if not local and socket is None:
        raise RequestError("only a daemon knows this; add --local to ask the one on this machine")


def find_socket(socket: str | None, config: str | None, daemon: str) -> Path:
    """Where the daemon listens: the one that the file is for, else ``mux`` or ``agent`` as given."""
    if socket is not None:
        return Path(socket)
    if config is None:
        return STATE_DIR / f"{daemon}.sock"
    directory, daemon = _from_file(config)
    return directory / f"{daemon}.sock"


def ask(path: Path, asked: dict[str, Any]) -> Any:
    from lb.daemon.control_socket import request  # noqa: PLC0415  brings asyncio

    try:
        return request(path, asked)
    except ControlError:
        if not path.exists():
            raise ControlError(
                f"{path}: no daemon listens here; is it running? --socket or --config tell where"
            ) from None
        raise


def _from_file(config: str) -> tuple[Path, str]:
    """Only ``state_dir`` is needed: the daemon may well be running although the file has since been broken."""
    from lb.config import toml  # noqa: PLC0415

    document = toml.read(config)
    for name in ("mux", "agent"):
        owner = document.get(name)
        if isinstance(owner, dict) and isinstance(owner.get("state_dir", ""), str):
            return Path(owner.get("state_dir") or STATE_DIR), name
    raise ConfigError([(config, "has neither [mux] nor [agent]; give the daemon's file, or --socket")])
