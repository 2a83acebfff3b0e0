# SPDX-License-Identifier: Apache-2.0
"""Asks the manager over HTTPS; used by every subcommand that is not ``--local``.

Which manager: ``--manager`` or ``LB_MANAGER``, else the one that has its file on this machine. Who asks: a client
certificate (``--cert``, ``--key``; ``LB_CERT``, ``LB_KEY``) or a bearer token (``LB_TOKEN``); whom to believe: ``--ca``
or ``LB_CA``. What is not given is looked for in ``~/.config/lb``: operator.pem, operator.key, ca.pem. Plain HTTP goes
to loopback only. Starts fast: what a question needs is imported when there is one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, urlencode, urlsplit

import click

from lb.errors import AccessError, ConfigError, ControlError, NotFoundError, RequestError, VipmuxError
from lb.rows.table import read_rows
from lb.tables.values import harmless

if TYPE_CHECKING:
    import ssl

    import msgspec

F = TypeVar("F", bound=Callable[..., Any])
S = TypeVar("S", bound="msgspec.Struct")

TIMEOUT = 30.0
PORT = 9740
JSON, TOML = "application/json", "application/toml"
#: What is answered when it is asked ``as`` this.
_KINDS: dict[object, str] = {"toml": TOML, "text": "text/plain"}
_DIRECTORY = "~/.config/lb"
#: Answers for which others have to look first, and how much longer they may take, seconds.
_SLOW = {"examination": 60.0}
#: The manager of this machine, where there is one.
LOCAL_FILE = Path("/etc/vipmux/manager.toml")


def manager_options(function: F) -> F:
    """``--manager`` and the credentials; the command gets ``manager``, a :class:`Manager` (asked nothing yet)."""
    options = [
        click.option(
            "--manager",
            "url",
            metavar="URL",
            envvar="LB_MANAGER",
            help=f"The manager (LB_MANAGER); without it the one of {LOCAL_FILE}, if that is here.",
        ),
        click.option(
            "--cert", type=click.Path(), metavar="FILE", envvar="LB_CERT", help="The operator's certificate (LB_CERT)."
        ),
        click.option("--key", type=click.Path(), metavar="FILE", envvar="LB_KEY", help="Its key (LB_KEY)."),
        click.option(
            "--ca", type=click.Path(), metavar="FILE", envvar="LB_CA", help="The manager's CA certificate (LB_CA)."
        ),
    ]
    import functools  # noqa: PLC0415

    @functools.wraps(function)
    def command(
        *arguments: Any, url: str | None, cert: str | None, key: str | None, ca: str | None, **others: Any
    ) -> Any:
        where = url or local_manager(LOCAL_FILE)
        token = os.environ.get("LB_TOKEN") or None
        return function(*arguments, manager=Manager(where, cert, key, ca, token, named=bool(url)), **others)

    wrapped: Any = command
    for option in reversed(options):
        wrapped = option(wrapped)
    return wrapped  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class Manager:
    """Where the manager is, and who asks it."""

    url: str | None
    cert: str | None = None
    key: str | None = None
    ca: str | None = None
    token: str | None = None
    patience: float = field(default=TIMEOUT, kw_only=True)  #: how long an answer may take, seconds
    named: bool = field(default=True, kw_only=True)  #: somebody said which; else it is the one of this machine

    def get(self, *path: str, **query: object) -> Any:
        return self._loaded(self.raw(*path, **query))

    def raw(self, *path: str, **query: object) -> bytes:
        """The answer as it is, for who would write it as it was read."""
        return self._ask("GET", path, query, kind=_KINDS.get(query.get("as"), JSON), wait=_SLOW.get(path[0], 0.0))

    def rows(self, row_type: type[S], *path: str, **query: object) -> list[S]:
        """The rows of a table; of each, what this type has."""
        return read_rows(row_type, self.raw(*path, **query))

    def page(self, *path: str, **query: object) -> str:
        """A table that the manager draws, for a reader who takes it as wide as it is."""
        return harmless(self.raw(*path, **query, **{"as": "text"}).decode(errors="replace"))

    def post(self, *path: str, body: object = None) -> Any:
        text = None if body is None else json.dumps(body, default=str).encode()
        wait = float(body.get("wait", 0) if isinstance(body, dict) else 0)
        kind = {"Content-Type": JSON} if text is not None else None
        return self._loaded(self._ask("POST", path, {}, text, kind, wait=wait))

    def post_file(self, *path: str, text: bytes, **query: object) -> Any:
        """A file of services as it is; what is else to be said of it is the query."""
        wait = float(str(query.get("wait", 0)))
        return self._loaded(self._ask("POST", path, query, text, {"Content-Type": TOML}, wait=wait))

    def delete(self, *path: str, **query: object) -> Any:
        return self._loaded(self._ask("DELETE", path, query))

    def _loaded(self, text: bytes) -> Any:
        try:
            return json.loads(text)
        except ValueError:
            raise ControlError(f"{self.url}: the answer is not that of a manager: it is no JSON") from None

    def _ask(
        self,
        method: str,
        path: tuple[str, ...],
        query: Mapping[str, object],
        text: bytes | None = None,
        more: Mapping[str, str] | None = None,
        *,
        kind: str = JSON,
        wait: float = 0.0,
    ) -> bytes:
        """The answer, which is of this kind; ``more``: headers."""
        import http.client  # noqa: PLC0415  20 ms

        host, port, where = self._place()
        target = "/v1/" + "/".join(quote(part, safe="") for part in path)
        if query:
            target += "?" + urlencode(query, doseq=True)
        timeout = self.patience + wait
        headers = {"Authorization": f"Bearer {self.token}", **(more or {})} if self.token else {**(more or {})}
        tls = self._context() if where.startswith("https:") else None
        connection: http.client.HTTPConnection
        if tls is not None:
            connection = http.client.HTTPSConnection(host, port, timeout=timeout, context=tls)
        else:
            connection = http.client.HTTPConnection(host, port, timeout=timeout)
        try:
            connection.request(method, target, text, headers)
            reply = connection.getresponse()
            return _answer(where, reply.status, reply.headers.get_content_type() == kind, reply.read())
        except TimeoutError:
            raise ControlError(f"{where}: no answer within {timeout:g} s") from None
        except (OSError, http.client.HTTPException) as error:
            raise ControlError(f"{where}: {_reason(error)}") from None
        finally:
            connection.close()

    def _place(self) -> tuple[str, int, str]:
        """Host and port, and both as a URL."""
        if not self.url:
            raise RequestError(
                "no manager to ask: give --manager URL or set LB_MANAGER; or --local, to ask the daemon on this machine"
            )
        try:
            parts = urlsplit(self.url if "://" in self.url else f"https://{self.url}")
            host, port = parts.hostname, parts.port or PORT
        except ValueError:
            host, port, parts = None, 0, urlsplit("")
        if host is None or parts.scheme not in ("http", "https") or parts.path.strip("/"):
            raise RequestError(f'--manager must be such as https://10.0.1.9:{PORT}, not "{self.url}"')
        where = f"{parts.scheme}://{f'[{host}]' if ':' in host else host}:{port}"
        if parts.scheme == "http" and not _is_loopback(host):
            raise RequestError(f"--manager {where}: plain HTTP is for this machine's loopback only; use https://")
        return host, port, where

    def _context(self) -> ssl.SSLContext:
        import ssl  # noqa: PLC0415

        ca = _file(self.ca, "ca.pem", "--ca", "the manager's CA certificate; `lb-manager init` writes it")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        try:
            context.load_verify_locations(ca)
            if self.token is None:
                cert = _file(self.cert, "operator.pem", "--cert", "the operator's certificate")
                key = Path(self.key or Path(_DIRECTORY).expanduser() / "operator.key")
                # A certificate's file may hold the key as well.
                context.load_cert_chain(cert, key if self.key or (not self.cert and key.exists()) else None)
        except OSError as error:  # ssl.SSLError is one
            reason = (error.strerror or str(error)).lower()
            raise AccessError(f"the certificate, its key or the CA's cannot be used: {reason}") from None
        return context


def local_manager(file: Path) -> str | None:
    """Where the manager of this file is asked from this machine; None where there is no such file, or none to be read.

    Only ``listen`` is needed, so that a file with mistakes, which `lb check` tells, is no hindrance to asking.
    """
    if not file.exists():
        return None
    from ipaddress import ip_address  # noqa: PLC0415

    from lb.config import toml  # noqa: PLC0415

    try:
        listen = toml.read(file)["manager"].get("listen", f"0.0.0.0:{PORT}")
        host, _, port = str(listen).rpartition(":")
        address, number = ip_address(host.strip("[]")), int(port)
    except (ConfigError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if address.is_unspecified:
        return f"https://127.0.0.1:{number}" if address.version == 4 else f"https://[::1]:{number}"
    return f"https://{host}:{number}"


def _file(given: str | None, name: str, option: str, what: str) -> Path:
    path = Path(given) if given else Path(_DIRECTORY).expanduser() / name
    if not path.exists():
        raise AccessError(f"{path}: is not there; {option} tells where {what} is" if given is None else
                          f"{path}: is not there, and should be {what}")  # fmt: skip
    return path


def _is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")


def _answer(where: str, status: int, expected: bool, text: bytes) -> bytes:
    """``expected``: it is of the kind that was asked for."""
    if status < 300 and expected:
        return text
    try:
        data = json.loads(text)
        sentence = str(data["error"])
        mistakes = [(str(item["path"]), str(item["message"])) for item in data.get("mistakes", [])]
    except (ValueError, KeyError, TypeError):
        raise ControlError(f"{where}: the answer is not that of a manager (HTTP status {status})") from None
    if mistakes:
        raise ConfigError(mistakes)
    kinds: dict[int, type[VipmuxError]] = {400: RequestError, 401: AccessError, 403: AccessError, 404: NotFoundError}
    raise kinds.get(status, ControlError)(sentence)


def _reason(error: Exception) -> str:
    """What went wrong on the way, and what it may mean."""
    reason = getattr(error, "verify_message", None) or getattr(error, "reason", None)
    text = str(reason or getattr(error, "strerror", None) or error).lower().replace("_", " ")
    if isinstance(error, ConnectionRefusedError):
        return f"{text}; is lb-manager running there?"
    if "certificate" in text:
        return f"the certificates do not match: {text}"
    return text
