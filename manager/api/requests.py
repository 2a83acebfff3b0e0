# SPDX-License-Identifier: Apache-2.0
"""What calls of the API take: their bodies. The OpenAPI description is made of these types; the keys that a body may
have are theirs as well."""

from typing import Annotated

from msgspec import UNSET, UnsetType

from lb.rows.row import Row, Transport, shown

Optional = UnsetType


class BackendTableRow(Row, kw_only=True, gc=False):
    """``[[service.backend]]``."""

    name: str
    address: str
    port: int | Optional = UNSET
    weight: Annotated[int | Optional, shown("0 to 1000; 0 takes no new flows")] = UNSET
    state: Annotated[str | Optional, shown(None, values=("up", "drain", "down"))] = UNSET
    server_id: Annotated[str | Optional, shown("in QUIC connection ids, hex digits")] = UNSET


class QuicTableRow(Row, kw_only=True, gc=False):
    """``[[service.quic]]``."""

    id: Annotated[int, shown("0 to 6")]
    key_file: Annotated[str | Optional, shown("on each MUX")] = UNSET
    server_id_bytes: int | Optional = UNSET
    nonce_bytes: int | Optional = UNSET


class ProbeTableRow(Row, kw_only=True, gc=False):
    """``[service.probe]``."""

    type: Annotated[str, shown(None, values=("tcp", "http", "udp", "command"))]
    port: int | Optional = UNSET
    path: Annotated[str | Optional, shown("http: what to get")] = UNSET
    status: Annotated[int | str | Optional, shown('http: a number or a range, such as "200-399"')] = UNSET
    request: Annotated[str | Optional, shown("tcp, udp: text that is sent first")] = UNSET
    expect: Annotated[str | Optional, shown("text that the answer must contain")] = UNSET
    command: Annotated[list[str] | Optional, shown("command: the program and its arguments")] = UNSET
    interval: Annotated[float | Optional, shown("seconds between probes")] = UNSET
    timeout: Annotated[float | Optional, shown("seconds until a probe has failed")] = UNSET
    rise: Annotated[int | Optional, shown("successes in a row that bring the backend up")] = UNSET
    fall: Annotated[int | Optional, shown("failures in a row that take it down")] = UNSET


class AnnounceTableRow(Row, kw_only=True, gc=False):
    """``[service.announce]``."""

    policy: Annotated[str | Optional, shown(None, values=("always", "any-backend", "min-healthy"))] = UNSET
    n: Annotated[int | Optional, shown("min-healthy: how many backends")] = UNSET
    communities: list[str] | Optional = UNSET
    med: int | Optional = UNSET
    prepend: Annotated[int | Optional, shown("how often the own AS is put in front")] = UNSET
    peers: Annotated[
        str | Optional, shown("which BGP peers hear of the VIP", values=("all", "external", "internal"))
    ] = UNSET


class ServiceTableRow(Row, kw_only=True, gc=False):
    """``[[service]]``, as a file has it."""

    name: str
    vip: Annotated[str, shown("an address, or a prefix")]
    protocol: Transport
    port: Annotated[int | str, shown('a number, "8000-8099", or 0 for any')]
    slots: Annotated[int | Optional, shown("size of the Maglev table, a prime")] = UNSET
    hash: Annotated[str | Optional, shown(None, values=("5-tuple", "source"))] = UNSET
    mtu: int | Optional = UNSET
    track: Annotated[bool | Optional, shown("hosts track these connections")] = UNSET
    idle: Annotated[int | Optional, shown("seconds")] = UNSET
    slow_start: Annotated[float | Optional, shown("seconds")] = UNSET
    panic: Annotated[float | Optional, shown("a share of the backends, 0 to 1")] = UNSET
    quic: list[QuicTableRow] | Optional = UNSET
    probe: ProbeTableRow | Optional = UNSET
    announce: AnnounceTableRow | Optional = UNSET
    backend: list[BackendTableRow] | Optional = UNSET


class Why(Row, kw_only=True, gc=False):
    """A reason."""

    why: Annotated[str | Optional, shown("kept with the change in the audit")] = UNSET


class Undrain(Why, kw_only=True, gc=False):
    """Ends a drain."""

    dry_run: bool | Optional = UNSET


class Drain(Undrain, kw_only=True, gc=False):
    """A drain."""

    now: Annotated[bool | Optional, shown("it does not finish what it has: its connections end at once")] = UNSET


class Terms(Undrain, kw_only=True, gc=False):
    """How a change is made."""

    wait: Annotated[float | Optional, shown("seconds to wait until every connected node has followed")] = UNSET
    confirm: Annotated[float | Optional, shown("seconds after which it is rolled back, unless it is confirmed")] = UNSET


class Apply(Terms, kw_only=True, gc=False):
    """Services to create or change."""

    services: list[ServiceTableRow]
    prune: Annotated[bool | Optional, shown("others are deleted")] = UNSET


class Delete(Why, kw_only=True, gc=False):
    """Services to delete."""

    services: Annotated[list[str], shown("their names, at least one")]


class Diff(Row, kw_only=True, gc=False):
    """Services to compare, or a version to go back to."""

    services: list[ServiceTableRow] | Optional = UNSET
    prune: Annotated[bool | Optional, shown("others would be deleted")] = UNSET
    to: Annotated[int | Optional, shown("a version")] = UNSET


class Confirm(Why, kw_only=True, gc=False):
    """Keeps a change."""

    version: Annotated[int | Optional, shown("the one that is meant, to be sure")] = UNSET


class Rollback(Terms, kw_only=True, gc=False):
    """Back to a version."""

    to: Annotated[int | Optional, shown("a version; none: the one before the latest change")] = UNSET


class SetWeight(Terms, kw_only=True, gc=False):
    """A weight."""

    weight: Annotated[int, shown("0 to 1000; 0 takes no new flows")]


class MakeToken(Row, kw_only=True, gc=False):
    """A token to make."""

    kind: Annotated[str, shown(None, values=("mux", "agent", "viewer", "operator", "admin"))]
    name: str | Optional | None = UNSET
    ttl: Annotated[float | Optional, shown("seconds")] = UNSET


class Join(Row, kw_only=True, gc=False):
    """A node's first question for a certificate."""

    kind: Annotated[str, shown(None, values=("mux", "agent"))]
    name: str
    token: str
    csr: Annotated[str, shown("PEM")]


class Renew(Row, kw_only=True, gc=False):
    """A node's next question for a certificate."""

    csr: Annotated[str, shown("PEM")]


def keys_of(body: type[Row]) -> set[str]:
    """The keys that a body may have."""
    return set(body.__struct_fields__)
