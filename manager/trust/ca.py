# SPDX-License-Identifier: Apache-2.0
"""The manager's certificate authority: makes itself, its own server certificate, and signs for nodes and operators.

One directory, ``<state_dir>/ca``, mode 0700, owned by :class:`CertificateAuthority`: ``ca.pem``, ``ca.key`` (0600),
``server.pem`` (key and certificate, made anew when it ages or the manager gets other addresses) and ``names`` (further
addresses that the manager is reached by). Who may have a certificate is decided in :mod:`manager.trust.tokens`; whose
name is in it is decided here, never by the request. Certificates of nodes and operators are for clients only and hold
no host name, so none of them can pass for the manager.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from lb.daemon.files.private_files import make_private_directory, write_private
from lb.errors import AccessError, IoError

CA_LIFETIME = timedelta(days=3650)
SERVER_LIFETIME = timedelta(days=90)
OPERATOR_LIFETIME = timedelta(days=365)
#: Clocks of nodes may be behind by so much.
SKEW = timedelta(minutes=5)
#: What X.509 allows in a common name, which holds kind and name.
COMMON_NAME_MAX = 64
CSR_MAX = 16 * 1024
RSA_BITS_MIN = 2048

#: Of nodes: labels of letters, digits, hyphens and, as many networks have them, underscores.
HOST_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9_-]*[A-Za-z0-9])?)*")

KINDS = ("mux", "agent", "operator")

_Key = ec.EllipticCurvePrivateKey
_PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey


@dataclass(frozen=True, slots=True)
class Subject:
    """Who a certificate is for; its common name is ``kind:name``."""

    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}"


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate that was signed."""

    subject: Subject
    serial: str  #: hex, as the ssl module prints it
    not_after: float  #: Unix time
    pem: str


def subject(kind: str, name: str) -> Subject:
    """Checked: raises AccessError for what cannot be in a certificate."""
    if kind not in KINDS:
        raise AccessError(f"there are no certificates of kind {kind[:20]!r}; the kinds are {', '.join(KINDS)}")
    longest = COMMON_NAME_MAX - len(kind) - 1
    if kind in ("mux", "agent") and not (len(name) <= longest and HOST_NAME.fullmatch(name)):
        raise AccessError(
            f"{name[:80]!r} cannot be a node's name: it must be that of a host, of at most {longest} letters, digits "
            "and hyphens, in parts with dots between them"
        )
    if not 1 <= len(name) <= longest or not name.isprintable() or name != name.strip():
        raise AccessError(
            f"{name[:80]!r} cannot be the name of a certificate: it must be 1 to {longest} printable characters "
            "with no space at either end"
        )
    return Subject(kind, name)


class CertificateAuthority:
    """The authority in one directory."""

    def __init__(self, directory: Path, key: _Key, certificate: x509.Certificate) -> None:
        self._directory = directory
        self._key = key
        self._certificate = certificate

    @classmethod
    def create(cls, directory: Path, names: Iterable[str] = ()) -> CertificateAuthority:
        """A new one; never in place of one that is there, which would shut out every node."""
        if (directory / "ca.key").exists():
            raise AccessError(
                f"{directory} holds a CA already; to start over, with every node and operator "
                "to join anew, move that directory away first"
            )
        key = ec.generate_private_key(ec.SECP256R1())
        # A number in its name, so that two authorities are never taken for one another.
        name = x509.Name(
            [x509.NameAttribute(NameOID.COMMON_NAME, f"vipmux authority {x509.random_serial_number():040x}"[:40])]
        )
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - SKEW)
            .not_valid_after(now + CA_LIFETIME)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(signs_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        try:
            make_private_directory(directory)
            write_private(directory / "names", "".join(f"{name}\n" for name in names).encode())
            write_private(directory / "ca.pem", certificate.public_bytes(serialization.Encoding.PEM))
            write_private(directory / "ca.key", _key_pem(key))
        except OSError as error:
            raise IoError(f"{directory}: cannot be written: {(error.strerror or str(error)).lower()}") from None
        return cls(directory, key, certificate)

    @classmethod
    def load(cls, directory: Path) -> CertificateAuthority:
        try:
            key = serialization.load_pem_private_key((directory / "ca.key").read_bytes(), None)
            certificate = x509.load_pem_x509_certificate((directory / "ca.pem").read_bytes())
        except FileNotFoundError:
            raise AccessError(f"{directory} holds no CA: run `lb-manager init` first") from None
        except OSError as error:
            raise AccessError(f"{directory}: cannot be read: {(error.strerror or str(error)).lower()}") from None
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise AccessError(f"{directory}: ca.key or ca.pem is damaged; restore both from a backup") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise AccessError(f"{directory}: ca.key does not belong to ca.pem; restore both from one backup")
        return cls(directory, key, certificate)

    def begins_in(self, now: datetime) -> float:
        """Seconds until the authority's certificate is valid; not positive: it is."""
        return (self._certificate.not_valid_before_utc - now).total_seconds()

    @property
    def ca_file(self) -> Path:
        return self._directory / "ca.pem"

    @property
    def pem(self) -> str:
        return self._certificate.public_bytes(serialization.Encoding.PEM).decode()

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the authority's certificate, hex: what a token carries."""
        return self._certificate.fingerprint(hashes.SHA256()).hex()

    # -- signing ------------------------------------------------------------------------------------------------

    def sign_request(self, csr: str, subject: Subject, lifetime: float) -> Issued:
        """For the key in the request alone: nothing else of it is believed. Raises AccessError."""
        return self._issue(_requested_key(csr), subject, timedelta(seconds=lifetime))

    @staticmethod
    def serial_for(pem: str, csr: str) -> str | None:
        """The serial of a certificate of ours, if it is for the key in the request, which must be signed with it; else
        None. Raises AccessError for what is no request."""
        certificate = x509.load_pem_x509_certificate(pem.encode())
        same = _requested_key(csr) == certificate.public_key()
        return serial_text(certificate.serial_number) if same else None

    def make_operator(self, name: str) -> tuple[Issued, str]:
        """A certificate and its key, both made here, as PEM."""
        key = ec.generate_private_key(ec.SECP256R1())
        return self._issue(key.public_key(), subject("operator", name), OPERATOR_LIFETIME), _key_pem(key).decode()

    def _issue(self, key: _PublicKey, subject: Subject, lifetime: timedelta) -> Issued:
        certificate = self._sign(key, str(subject), lifetime, ExtendedKeyUsageOID.CLIENT_AUTH)
        pem = certificate.public_bytes(serialization.Encoding.PEM).decode()
        serial = serial_text(certificate.serial_number)
        return Issued(subject, serial, certificate.not_valid_after_utc.timestamp(), pem)

    def _sign(
        self,
        key: _PublicKey,
        common_name: str,
        lifetime: timedelta,
        use: x509.ObjectIdentifier,
        *names: x509.GeneralName,
    ) -> x509.Certificate:
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)]))
            .issuer_name(self._certificate.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(max(now - min(SKEW, lifetime / 10), self._certificate.not_valid_before_utc))
            .not_valid_after(min(now + lifetime, self._certificate.not_valid_after_utc))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([use]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self._key, hashes.SHA256())

    # -- the manager's own certificate --------------------------------------------------------------------------

    def server_certificate(self, manager: str, *listens: str) -> Path:
        """Key and certificate for the manager's addresses; the one that is there if it still will do."""
        path = self._directory / "server.pem"
        names = _alternative_names([*(name for listen in listens for name in _listen_names(listen)), *self.names()])
        if not self._will_do(path, names):
            key = ec.generate_private_key(ec.SECP256R1())
            name = f"manager:{manager}"[:COMMON_NAME_MAX]
            certificate = self._sign(key.public_key(), name, SERVER_LIFETIME, ExtendedKeyUsageOID.SERVER_AUTH, *names)
            try:
                write_private(path, _key_pem(key) + certificate.public_bytes(serialization.Encoding.PEM))
            except OSError as error:
                raise IoError(f"{path}: cannot be written: {(error.strerror or str(error)).lower()}") from None
        return path

    def names(self) -> list[str]:
        """Further addresses and host names of the manager, as given to ``lb-manager init --address``."""
        try:
            return (self._directory / "names").read_text().split()
        except FileNotFoundError:
            return []

    def _will_do(self, path: Path, names: Sequence[x509.GeneralName]) -> bool:
        try:
            certificate = x509.load_pem_x509_certificate(path.read_bytes())
            certificate.verify_directly_issued_by(self._certificate)
            has = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except (OSError, ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
            return False
        now = datetime.now(UTC)
        begun = certificate.not_valid_before_utc <= now  # else it was made while the clock was ahead
        return set(names) <= set(has) and begun and certificate.not_valid_after_utc - now > SERVER_LIFETIME / 3


def serial_text(number: int) -> str:
    """As ``ssl.SSLObject.getpeercert()`` prints it."""
    text = f"{number:X}"
    return text if len(text) % 2 == 0 else "0" + text


def _requested_key(csr: str) -> _PublicKey:
    if len(csr) > CSR_MAX:
        raise AccessError(f"a certificate request of {len(csr)} characters; none of ours is longer than {CSR_MAX}")
    try:
        request = x509.load_pem_x509_csr(csr.encode())
        key = request.public_key()
        valid = request.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise AccessError("the certificate request cannot be read") from None
    if not valid:
        raise AccessError("the certificate request is not signed with its own key")
    strong_curve = isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1)
    strong_rsa = isinstance(key, rsa.RSAPublicKey) and RSA_BITS_MIN <= key.key_size <= 2 * RSA_BITS_MIN
    if not strong_curve and not strong_rsa and not isinstance(key, ed25519.Ed25519PublicKey):
        raise AccessError("the certificate request's key must be of P-256, P-384, Ed25519, or RSA of 2048 to 4096 bits")
    return key  # type: ignore[return-value]  # it is one of the three


def _alternative_names(names: Sequence[str]) -> list[x509.GeneralName]:
    found: list[x509.GeneralName] = []
    for name in dict.fromkeys(names):
        try:
            found.append(x509.IPAddress(ip_address(name)))
        except ValueError:
            try:
                found.append(x509.DNSName(name.encode("idna").decode() if not name.isascii() else name))
            except (ValueError, UnicodeError):
                raise AccessError(f"{name!r} is neither an address nor a host name") from None
    return found


def _listen_names(listen: str) -> list[str]:
    """What the manager is called here: the address it listens on, or all of the machine's where that is any."""
    host = listen.rpartition(":")[0].strip("[]")
    names = ["localhost", "127.0.0.1", "::1", socket.gethostname()]
    try:
        anywhere = ip_address(host).is_unspecified
    except ValueError:
        anywhere = False
    return [*names, *(_own_addresses() if anywhere else [host])]


def _own_addresses() -> list[str]:
    from pyroute2 import IPRoute  # noqa: PLC0415  slow to import, and rarely needed

    with IPRoute() as netlink:
        found = [dict(message["attrs"]).get("IFA_ADDRESS") for message in netlink.get_addr()]
    return sorted(address for address in found if address and not ip_address(address).is_link_local)


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _key_pem(key: _Key) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
