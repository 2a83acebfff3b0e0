# SPDX-License-Identifier: Apache-2.0
"""A join token need not stand on a command line, where everybody on the machine reads it."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from lb.errors import RequestError
from lb.node.token_option import given_token


def test_a_token_comes_from_the_command_line_a_file_the_environment_or_standard_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "token"
    file.write_text("\n  lb1.file \nmore\n")
    assert given_token("lb1.line", None, {}) == "lb1.line"
    assert given_token(None, file, {}) == "lb1.file"
    assert given_token(None, None, {"LB_TOKEN": "lb1.env"}) == "lb1.env"
    monkeypatch.setattr(sys, "stdin", io.StringIO("lb1.in\n"))
    assert given_token("-", None, {}) == "lb1.in"
    assert given_token(None, None, {}) is None
    assert given_token(None, None, {"LB_TOKEN": ""}) is None


def test_what_is_said_beats_the_environment_from_which_it_is_taken_in_any_case() -> None:
    environment = {"LB_TOKEN": "lb1.env", "PATH": "/bin"}
    assert given_token("lb1.line", None, environment) == "lb1.line"
    assert environment == {"PATH": "/bin"}, "what the daemon starts has no token"


@pytest.mark.parametrize(
    ("token", "content", "reason"),
    [
        ("lb1.line", "lb1.file", "give one of them"),
        (None, None, "cannot be read: no such file"),
        (None, " \n", "there is no token in"),
        (None, b"\xff\xfe", "cannot be read"),
    ],
)
def test_mistakes_are_said(tmp_path: Path, token: str | None, content: str | bytes | None, reason: str) -> None:
    file = tmp_path / "token"
    if content is not None:
        file.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(RequestError, match=reason):
        given_token(token, file, {})
