# SPDX-License-Identifier: Apache-2.0
"""Who a node is: its key, which never leaves the machine, the certificate for it, and the authority it trusts.

:class:`Identity` owns ``<state_dir>/identity`` (mode 0700): ``node.pem``, key and certificate in one file so that the
two always belong together, and ``ca.pem``; both 0600 and replaced atomically. Used by :mod:`lb.node.client` and the
daemons. Joining trusts nobody on first use: the token holds the SHA-256 of the authority's certificate, the node
fetches that certificate, compares, and only then sends the token over a connection verified with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import ssl
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from lb.daemon.files.private_files import make_private_directory, write_private
from lb.errors import AccessError, IoError, RequestError
from lb.node.keys import HeldCertificate, held, new_key

#: Until a manager that does not answer is given up, seconds.
TIMEOUT = 10.0
_ANSWER_MAX = 64 * 1024
#: X509_V_FLAG_NO_CHECK_TIME of OpenSSL, which the module ssl has no name for; and its errors about time.
_NO_CHECK_TIME = 0x200000
_NOT_YET_VALID, _EXPIRED = 9, 10
#: Begins a request to sign a key, after the key.
_REQUEST = b"-----BEGIN CERTIFICATE REQUEST-----"


@dataclass(frozen=True, slots=True)
class TokenText:
    """A token as it is shown: ``lb1.SECRET.FINGERPRINT``."""

    secret: str
    fingerprint: str

    def __str__(self) -> str:
        return f"lb1.{self.secret}.{self.fingerprint}"

    @classmethod
    def parse(cls, text: str) -> TokenText:
        match = re.fullmatch(r"lb1\.([A-Za-z0-9_-]{16,128})\.([0-9a-f]{64})", text.strip())
        if match is None:
            raise RequestError(
                "the token is not one: it must look like lb1.SECRET.FINGERPRINT, as lb-manager token shows"
            )
        return cls(match[1], match[2])


class ManagerUnreachableError(Exception):
    """Nobody answers, or not as a manager does; worth another try. Never leaves :mod:`lb.node`."""


class Identity:
    """The identity of one node, ``kind:name``."""

    def __init__(self, directory: Path, kind: str, name: str) -> None:
        self._directory = directory
        self.kind = kind
        self.name = name
        self.held: HeldCertificate | None = None
        self._authority: str | None = None  # PEM of one that a token's fingerprint was compared with

    @property
    def common_name(self) -> str:
        return f"{self.kind}:{self.name}"

    @property
    def how_to_join(self) -> str:
        """In words, with the command: a token without a name is for who had no certificate yet."""
        command = f"lb-manager token --kind {self.kind} --name {self.name}"
        return f"make a token on the manager with `{command}`, and start once with --token"

    @property
    def file(self) -> Path:
        return self._directory / "node.pem"

    @property
    def ca_file(self) -> Path:
        return self._directory / "ca.pem"

    @property
    def _asked_file(self) -> Path:
        """The key that a first certificate was asked for, and the request; for as long as it has not come."""
        return self._directory / "joining.pem"

    # -- what is there ------------------------------------------------------------------------------------------

    def load(self) -> bool:
        """Whether there is a certificate; raises AccessError for one that is damaged or somebody else's."""
        self.held = None
        try:
            data = self.file.read_bytes()
            self.ca_file.read_bytes()
        except FileNotFoundError:
            return False
        except OSError as error:
            raise AccessError(f"{self._directory}: cannot be read: {(error.strerror or str(error)).lower()}") from None
        found = held(data)
        if found is None:
            raise AccessError(f"{self.file}: is damaged; to join again, {self.how_to_join}")
        if found.common_name != self.common_name:
            raise AccessError(
                f"{self.file}: is the certificate of {found.common_name}, and this node is {self.common_name}; "
                f"correct the name in the configuration, or to join as that, {self.how_to_join}"
            )
        self.held = found
        return True

    def usable(self, now: float) -> bool:
        return self.held is not None and now < self.held.not_after

    def doubted(self, now: float) -> str | None:
        """What this machine's clock says against the certificate, or None. The clock may well be what is wrong."""
        return self.held.doubted(now) if self.held is not None else None

    def belongs_to(self, token: TokenText) -> bool:
        """Whether the certificate is of the manager that the token is for."""
        try:
            return _fingerprint(self.ca_file.read_text()) == token.fingerprint
        except (OSError, ValueError):
            return False

    def context(self, now: float | None = None) -> ssl.SSLContext:
        """For connections to the manager as this node; raises AccessError.

        Where our own certificate is not valid by this machine's clock (``now``), that clock is not asked about the
        manager's certificate either: whether ours is good the manager decides, by its own clock, and that it is the
        manager is still proved by our authority. So a clock that was set wrong costs no node its manager.
        """
        try:
            context = client_context(self.ca_file.read_text())
            if now is not None and self.doubted(now) is not None:
                context.verify_flags |= _NO_CHECK_TIME
            context.load_cert_chain(self.file)
        except (OSError, ValueError) as error:
            raise AccessError(
                f"{self._directory}: cannot be used: {error}; to join again, {self.how_to_join}"
            ) from None
        return context

    # -- getting one --------------------------------------------------------------------------------------------

    async def join(self, url: str, token: TokenText) -> None:
        """Gets a first certificate. Raises AccessError if refused, ManagerUnreachableError if nobody could be asked, or
        the answer did not come: then the token may be spent, and another attempt asks with the same key, also after a
        restart, for what the manager has given to it."""
        pem = await self._authority_of(url, token)
        key, csr = await asyncio.to_thread(self._asking)
        asked = {"token": token.secret, "kind": self.kind, "name": self.name, "csr": csr}
        try:
            answer = await _ask(url, "/v1/join", asked, client_context(pem))
            await asyncio.to_thread(self._keep, key, answer, pem)
        except AccessError:
            self._forget_asking()
            raise
        self._forget_asking()

    async def _authority_of(self, url: str, token: TokenText) -> str:
        """The certificate that the token has the fingerprint of; asked for once."""
        if self._authority is None or _fingerprint(self._authority) != token.fingerprint:
            pem = (await _ask(url, "/v1/ca", None, unverified_context())).get("ca")
            if not isinstance(pem, str) or _fingerprint(pem) != token.fingerprint:
                raise AccessError(
                    f"{url} is not the manager that the token is from: its CA has another fingerprint. "
                    "Nothing was sent to it"
                )
            self._authority = pem
        return self._authority

    def _asking(self) -> tuple[bytes, str]:
        """A key and its request: those of an attempt that had no answer, if there was one."""
        try:
            key, begin, rest = self._asked_file.read_bytes().partition(_REQUEST)
            if begin:
                return key, (begin + rest).decode()
        except (OSError, ValueError):
            pass  # a new one is as good, unless there was an answer
        fresh, csr = new_key()
        try:
            make_private_directory(self._directory)
            write_private(self._asked_file, fresh + csr.encode())
        except OSError as error:
            raise self._not_written(error) from None
        return fresh, csr

    def _forget_asking(self) -> None:
        with contextlib.suppress(OSError):
            self._asked_file.unlink()
            self._directory.rmdir()  # if nothing else was there

    def _not_written(self, error: OSError) -> IoError:
        return IoError(f"{self._directory}: cannot be written: {(error.strerror or str(error)).lower()}")

    async def renew(self, url: str, now: float | None = None) -> None:
        """Gets the next certificate, for a new key; the old ones serve until it is in place. ``now``: as context().
        Raises as join()."""
        key, csr = await asyncio.to_thread(new_key)
        answer = await _ask(url, "/v1/renew", {"csr": csr}, self.context(now))
        await asyncio.to_thread(self._keep, key, answer, None)

    def _keep(self, key: bytes, answer: dict[str, Any], ca: str | None) -> None:
        certificate = answer.get("certificate")
        data = key + (certificate.encode() if isinstance(certificate, str) else b"")
        found = held(data)
        if found is None or found.common_name != self.common_name:
            raise AccessError("the manager answered with a certificate that is not for this node and its key")
        try:
            make_private_directory(self._directory)
            if ca is not None:
                write_private(self.ca_file, ca.encode())
            write_private(self.file, data)
        except OSError as error:
            raise self._not_written(error) from None
        self.held = found


def client_context(ca: str) -> ssl.SSLContext:
    """Verifies the manager and its address by our authority, and no other; raises ValueError for what is no PEM."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_verify_locations(cadata=ca)
    except ssl.SSLError:
        raise ValueError("the CA's certificate is damaged") from None
    return context


def unverified_context() -> ssl.SSLContext:
    """To fetch what is public and compared with a fingerprint afterwards, and for nothing else."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


async def _ask(url: str, path: str, body: dict[str, Any] | None, context: ssl.SSLContext) -> dict[str, Any]:
    import aiohttp  # noqa: PLC0415  a daemon without a manager never needs it

    timeout = aiohttp.ClientTimeout(total=TIMEOUT)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.request("GET" if body is None else "POST", url + path, json=body, ssl=context) as reply,
        ):
            text = b""
            async for piece in reply.content.iter_chunked(_ANSWER_MAX):
                text += piece
                if len(text) > _ANSWER_MAX:
                    raise ManagerUnreachableError(f"answers {path} at a length that no manager does")
            answer = msgspec.json.decode(text)
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise unreachable(error) from None
    except ValueError:
        raise ManagerUnreachableError(f"answers {path} with what is not JSON") from None
    if not isinstance(answer, dict):
        raise ManagerUnreachableError(f"answers {path} with what is not a table")
    if reply.status >= 500 or reply.status == 429:  # a fault there, or no time; not a decision
        raise ManagerUnreachableError(f"answers {reply.status}: {answer.get('error')}")
    if reply.status != 200:
        raise AccessError(f"the manager refused: {answer.get('error')}")
    return answer


def unreachable(error: BaseException) -> ManagerUnreachableError | AccessError:
    """What went wrong with a connection, in words; a certificate that is not to be trusted is a decision."""
    import aiohttp  # noqa: PLC0415

    cause: BaseException = getattr(error, "certificate_error", None) or getattr(error, "os_error", None) or error
    if isinstance(cause, ssl.SSLCertVerificationError) and cause.verify_code in (_NOT_YET_VALID, _EXPIRED):
        # May be better the next time: clocks are set, above all soon after a start.
        now = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
        return ManagerUnreachableError(
            f"the manager's {cause.verify_message}, by this machine's clock, which says {now}: see whether it is right"
        )
    if isinstance(cause, ssl.SSLCertVerificationError):
        return AccessError(f"the manager's certificate is not to be trusted: {cause.verify_message}")
    if isinstance(cause, ssl.SSLError):
        return ManagerUnreachableError(f"TLS failed: {(cause.reason or str(cause)).lower().replace('_', ' ')}")
    if isinstance(error, aiohttp.ServerDisconnectedError | ConnectionResetError):
        # In TLS 1.3 a client learns only this way that its certificate was refused.
        return ManagerUnreachableError("closed the connection at once; if it refuses our certificate, its log says why")
    if isinstance(error, TimeoutError):
        return ManagerUnreachableError("no answer in time")
    number = getattr(cause, "errno", None)
    return ManagerUnreachableError((os.strerror(number) if number else str(error) or type(error).__name__).lower())


def _fingerprint(pem: str) -> str:
    """SHA-256 of a certificate; raises ValueError."""
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()
