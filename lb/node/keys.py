# SPDX-License-Identifier: Apache-2.0
"""Keys, requests to sign them, and what a certificate says. Used by :mod:`lb.node.identity`.

:mod:`cryptography` is imported where it is used: a daemon without a manager needs none of its ten MiB.
"""

from __future__ import annotations

from dataclasses import dataclass

#: A certificate is renewed when this part of its life is over.
RENEW_AT = 1 / 3
#: By so much two clocks may differ, seconds.
SKEW = 300.0


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
    from cryptography import x509  # noqa: PLC0415
    from cryptography.hazmat.primitives import hashes, serialization  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415

    key = ec.generate_private_key(ec.SECP256R1())
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return pem, request.public_bytes(serialization.Encoding.PEM).decode()


def held(data: bytes) -> HeldCertificate | None:
    """The certificate of a key and certificate that belong together, of one PEM file; None: they do not."""
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
