# SPDX-License-Identifier: Apache-2.0
"""Keys are made, and certificates read, in a process of its own as they are here."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from lb.errors import IoError
from lb.node import keys


def elsewhere(code: str, data: bytes = b"") -> str:
    """In a process that has not loaded the library."""
    argv = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(argv, input=data, capture_output=True, check=True).stdout.decode()


def test_a_node_makes_its_key_and_does_not_keep_the_library() -> None:
    said = elsewhere(
        """
        import sys
        from lb.node import keys
        key, request = keys.new_key()
        print(key.decode(), request, "cryptography" in sys.modules)
        """
    )
    key = serialization.load_pem_private_key(said.encode(), None)
    request = x509.load_pem_x509_csr(said[said.index("-----BEGIN CERTIFICATE REQUEST") :].encode())
    assert request.is_signature_valid
    assert request.public_key() == key.public_key()
    assert said.rstrip().endswith("False")


def test_what_is_no_certificate_is_none_in_either_place() -> None:
    key, _ = keys.new_key()
    for data in (b"", b"nonsense", key, b"\xff" * 100_000):
        assert keys.held(data) is None
        code = "import sys; from lb.node import keys; print(keys.held(sys.stdin.buffer.read()))"
        assert elsewhere(code, data) == "None\n"


def test_a_process_that_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "cryptography.x509")
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(IoError, match="keys and certificates cannot be handled"):
        keys.new_key()
    monkeypatch.setattr(sys, "executable", "/nonexistent")
    with pytest.raises(IoError, match="No such file"):
        keys.held(b"")
