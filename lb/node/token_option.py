# SPDX-License-Identifier: Apache-2.0
"""Where a join token comes from: ``--token``, ``--token-file``, ``LB_TOKEN``, or standard input (``--token -``).

What stands on a command line stands in ``ps`` for everybody on the machine, for as long as the daemon runs; the other
ways are for those who mind. Used by ``lb-mux`` and ``lb-agent``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, MutableMapping
from pathlib import Path
from typing import Any, TypeVar

import click

from lb.errors import RequestError

VARIABLE = "LB_TOKEN"
_LENGTH_MAX = 4096
_STANDARD_INPUT = "-"

F = TypeVar("F", bound=Callable[..., Any])


def token_options(command: F) -> F:
    """Adds ``--token`` and ``--token-file``, as ``token`` and ``token_file``."""
    command = click.option(
        "--token-file",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="The same, from a file; LB_TOKEN in the environment is a third way. Neither stands in `ps`.",
    )(command)
    return click.option(
        "--token",
        metavar="TOKEN",
        help="Join the manager with this token, if there is no certificate yet; - reads it from standard input.",
    )(command)


def given_token(token: str | None, file: Path | None, environment: MutableMapping[str, str] = os.environ) -> str | None:
    """The token, or None; raises RequestError. The variable is taken out of the environment: what the daemon starts
    need not have it."""
    from_environment = environment.pop(VARIABLE, None) or None
    if token is not None and file is not None:
        raise RequestError("--token and --token-file are two ways to say the same: give one of them")
    if file is not None:
        return _first_line(_read(file), str(file))
    if token == _STANDARD_INPUT:
        return _first_line(sys.stdin.readline(_LENGTH_MAX), "standard input")
    return token if token is not None else from_environment


def _read(file: Path) -> str:
    try:
        with file.open() as opened:
            return opened.read(_LENGTH_MAX)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise RequestError(f"--token-file {file}: cannot be read: {reason.lower()}") from None


def _first_line(text: str, where: str) -> str:
    found = text.strip().partition("\n")[0].strip()
    if not found:
        raise RequestError(f"there is no token in {where}")
    return found
