# SPDX-License-Identifier: Apache-2.0
"""A node's key, its request to have it signed, and what is no certificate."""

from __future__ import annotations

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from lb.node import keys


def test_a_request_is_signed_with_the_key_that_was_made() -> None:
    pem, asked = keys.new_key()
    key, request = serialization.load_pem_private_key(pem, None), x509.load_pem_x509_csr(asked.encode())
    assert request.is_signature_valid
    assert request.public_key() == key.public_key()
    assert keys.new_key()[0] != pem


@pytest.mark.parametrize("data", [b"", b"nonsense", keys.new_key()[0], b"\xff" * 100_000], ids=len)
def test_what_is_no_certificate_is_none(data: bytes) -> None:
    assert keys.held(data) is None
