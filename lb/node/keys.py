# SPDX-License-Identifier: Apache-2.0
"""Keys, requests to sign them, and what a certificate says; by :mod:`cryptography`, in a process of its own.

A node needs that library when it starts and when it renews its certificate, twice a month, and would carry its ten MiB
all the time. So :func:`new_key` and :func:`held` run this file as a program, over pipes, so that a key is seen by
nobody else. Both wait for it, some 0.2 s: not for an event loop that has more to do. Used by :mod:`lb.node.identity`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from typing import Any

from lb.errors import IoError

#: A certificate is renewed when this part of its life is over.
RENEW_AT = 1 / 3
#: By so much two clocks may differ, seconds.
SKEW = 300.0
#: Until the process is given up, seconds.
PATIENCE = 30.0


@dataclass(frozen=True, slots=True)
class HeldCertificate:
    """The certificate that a node holds."""

    common_name: str
    serial: str
    not_before: float
    not_after: float

    def renewal_due(self, now: float, age: float = 0.0) -> bool:
        """``now`` by this machine's clock; ``age``: for how long, by a clock that nobody sets, the certificate has been
        here at least. A clock that says it begins in the future is wrong, and then nobody knows: it is due."""
        after = (self.not_after - self.not_before) * RENEW_AT
        return now >= self.not_before + after or age >= after or now < self.not_before - SKEW

    def doubted(self, now: float) -> str | None:
        """What the clock says of the certificate that cannot be, or must not be; None: all is well."""
        if now < self.not_before - SKEW:
            return "begins in the future"
        return "has expired" if now >= self.not_after else None


def new_key() -> tuple[bytes, str]:
    """A key and a request to sign it, as PEM. Nobody but us ever has the key."""
    key, request = _asked("new", b"")
    return key.encode(), request


def held(data: bytes) -> HeldCertificate | None:
    """The certificate of a key and certificate that belong together, of one PEM file; None: they do not."""
    found = _asked("held", data)
    return HeldCertificate(**found) if found is not None else None


def _asked(what: str, data: bytes) -> Any:
    if "cryptography.x509" in sys.modules:  # who has it anyway need not start a process
        return json.loads(_answer(what, data))
    argv = [sys.executable, "-P", "-m", __name__, what]
    try:
        done = subprocess.run(argv, input=data, capture_output=True, timeout=PATIENCE, check=True)
        return json.loads(done.stdout)
    except subprocess.CalledProcessError as error:
        words = error.stderr.decode(errors="replace").strip().splitlines()
        raise IoError(f"keys and certificates cannot be handled: {words[-1] if words else error}") from None
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        raise IoError(f"keys and certificates cannot be handled: {error}") from None


# --- in the process --------------------------------------------------------------------------------------------------


def _new() -> tuple[str, str]:
    from cryptography import x509  # noqa: PLC0415
    from cryptography.hazmat.primitives import hashes, serialization  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415

    key = ec.generate_private_key(ec.SECP256R1())
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return pem.decode(), request.public_bytes(serialization.Encoding.PEM).decode()


def _read(data: bytes) -> HeldCertificate | None:
    from cryptography import x509  # noqa: PLC0415
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415
    from cryptography.x509.oid import NameOID  # noqa: PLC0415

    try:
        key = serialization.load_pem_private_key(data, None)
        certificate: x509.Certificate = x509.load_pem_x509_certificate(data)
        if key.public_key() != certificate.public_key():
            return None
        (name,) = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    except (ValueError, TypeError):
        return None
    return HeldCertificate(
        str(name.value),
        f"{certificate.serial_number:X}",
        certificate.not_valid_before_utc.timestamp(),
        certificate.not_valid_after_utc.timestamp(),
    )


def _answer(what: str, data: bytes) -> str:
    if what == "new":
        return json.dumps(_new())
    found = _read(data)
    return json.dumps(asdict(found) if found is not None else None)


def main() -> None:
    """``python -m lb.node.keys new|held``"""
    print(_answer(sys.argv[1], sys.stdin.buffer.read()))


if __name__ == "__main__":
    main()
