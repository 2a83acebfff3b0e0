# SPDX-License-Identifier: Apache-2.0
"""The HTTP API as one table: its routes, what they take and what they answer.

:mod:`manager.api.server` adds exactly these routes to the server, and :mod:`manager.api.openapi` describes them. The
few calls of nodes (:mod:`manager.trust.joining`, :mod:`manager.nodes.stream`) stand here as well, and are served there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lb.model import MAX_SERVICES
from lb.rows.announcement import AnnouncementRow
from lb.rows.backend import BackendRow, OneBackend
from lb.rows.event import AuditLine, EventRow, VersionRow
from lb.rows.node import AgentRow, MuxRow
from lb.rows.service import ServiceRow
from lb.rows.status import StatusRow
from lb.rows.top import RatesRow, Top
from manager.api import requests
from manager.api.answers import (
    CaCertificate,
    ChangeRow,
    Description,
    ExaminationRow,
    FlowRow,
    NodeCertificate,
    Nothing,
    Preview,
    TokenRow,
    Vip,
    Watched,
)
from manager.api.query import Choice, Number, Parameter, Words
from manager.api.requests import ServiceTableRow
from manager.controller.change_feed import TABLES as WATCHED
from manager.observed.rates import FIELDS, SERVICES_KEPT

#: Lines of one answer, at most.
LIMIT_MAX = 5000
#: So long may a watcher be kept without news, seconds.
WATCH_MAX = 60.0
#: Unix times and numbers of events.
_ANY = 2.0**53


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiRoute:
    """One call."""

    method: str
    path: str
    operation: str  #: the method of manager.api.server.Api that serves it
    summary: str
    answer: Any  #: its type; None: no JSON of a known form
    body: Any = None  #: its type; None: it takes none
    query: Mapping[str, Parameter] = field(default_factory=dict)
    of_nodes: bool = False  #: served by manager.trust.joining or manager.nodes.stream
    public: bool = False  #: needs no client certificate and no token
    files: bool = False  #: its body, or its answer where it has none, may be a file of services instead, as TOML

    @property
    def body_needed(self) -> bool:
        return self.body not in (requests.Why, requests.Undrain, requests.Drain)


def _get(path: str, operation: str, answer: Any, summary: str, **more: Any) -> ApiRoute:
    return ApiRoute(method="GET", path=path, operation=operation, summary=summary, answer=answer, **more)


def _do(method: str, path: str, operation: str, body: Any, summary: str, **more: Any) -> ApiRoute:
    """It changes something, and the answer says what; unless it is told otherwise."""
    more = {"answer": ChangeRow, **more}
    return ApiRoute(method=method, path=path, operation=operation, summary=summary, body=body, **more)


def _post(path: str, operation: str, body: Any, summary: str, **more: Any) -> ApiRoute:
    return _do("POST", path, operation, body, summary, **more)


_LINES = {"limit": Number(1, LIMIT_MAX, 100)}
_AS: dict[str, Parameter] = {"as": Choice(("json", "text"), "text: `lb get`'s table as it is drawn")}
_SOME: dict[str, Parameter] = {
    "service": Words("only of this one; any number of times", many=True),
    "limit": Number(0, MAX_SERVICES, 0, "only of so many services, the first by name; 0: of all"),
    **_AS,
}
_FLOW: dict[str, Parameter] = {
    "protocol": Choice(("tcp", "udp")),
    "source": Words("the client's address"),
    "source_port": Number(0, 65535),
    "destination": Words("the VIP"),
    "destination_port": Number(0, 65535),
}
_EVENTS: dict[str, Parameter] = {
    **_LINES,
    "subject": Words('"backend web/web-1"; or a kind, "mux"; or a name, "web"'),
    "since": Number(0, _ANY, None, "Unix time", whole=False),
    "after": Number(0, _ANY, None, "only events of a higher number"),
    "bad": Choice(("false", "true")),
}
_TOP: dict[str, Parameter] = {
    "by": Choice(("service", "backend", "mux")),
    "sort": Choice((*FIELDS, "name")),
    "limit": Number(1, LIMIT_MAX, 20),
    "service": Words("only this one, or its backends"),
}
_WATCH: dict[str, Parameter] = {
    "what": Choice(WATCHED),
    "since": Words("the cursor of the answer before; without it, all rows"),
    "wait": Number(0, WATCH_MAX, 20, "seconds to wait for news", whole=False),
    "service": Words("of services and backends: only these", many=True),
}
_RATES: dict[str, Parameter] = {
    "since": Number(0, _ANY, None, "Unix time: only points after it", whole=False),
    "services": Number(0, SERVICES_KEPT, 8),
    "service": Words("a name, any number of times: these instead of the busiest", many=True),
}
_BACKEND, _HOST, _MUX = "/v1/backends/{service}/{backend}", "/v1/hosts/{name}", "/v1/muxes/{name}"

ROUTES: tuple[ApiRoute, ...] = (
    _get("/v1/status", "status", StatusRow, "The manager itself, and which nodes are behind"),
    # services
    _get("/v1/services", "services", list[ServiceRow], "All services", query=_SOME),
    _get("/v1/services/{name}", "describe", Description, "One service, explained"),
    _do("PUT", "/v1/services/{name}", "put_service", ServiceTableRow, "Creates or changes one service"),
    _do(
        "DELETE",
        "/v1/services/{name}",
        "delete_service",
        None,
        "Withdraws a service, then removes it",
        query={"why": Words("kept with the change in the audit")},
    ),
    _do(
        "PUT",
        "/v1/services",
        "replace_services",
        list[ServiceTableRow],
        "Makes these the services; all others are deleted",
    ),
    _post(
        "/v1/delete",
        "delete_services",
        requests.Delete,
        "Withdraws these services, as one change, then removes them",
    ),
    _post(
        "/v1/apply",
        "apply",
        requests.Apply,
        "Creates or changes services; leaves the others alone, unless prune is true",
        files=True,
    ),
    _post(
        "/v1/diff",
        "diff",
        requests.Diff,
        "What /v1/apply, or a rollback to a version, would change, and for whom; changes nothing",
        answer=Preview,
        files=True,
    ),
    _post("/v1/confirm", "confirm", requests.Confirm, "Keeps the change that waits for its confirmation"),
    _post(
        "/v1/rollback",
        "rollback",
        requests.Rollback,
        "Services and drains as they were at an earlier version; or ends what waits for its confirmation",
    ),
    _get(
        "/v1/tables",
        "tables",
        list[ServiceTableRow],
        "The services as they were applied; as JSON, or as a file that /v1/apply takes",
        query={"service": _SOME["service"], "as": Choice(("json", "toml"))},
        files=True,
    ),
    # backends
    _get(
        "/v1/backends", "backends", list[BackendRow], "All backends, with the reason for each one's state", query=_SOME
    ),
    _get(_BACKEND, "backend", OneBackend, "One backend, and the flows left of it while it drains"),
    _post(f"{_BACKEND}/drain", "drain_backend", requests.Drain, "Keeps its connections and gives it no new ones"),
    _post(f"{_BACKEND}/undrain", "undrain_backend", requests.Undrain, "Ends the drain"),
    _post(
        f"{_BACKEND}/weight",
        "set_weight",
        requests.SetWeight,
        "Changes its weight, as if its service had been applied with it",
    ),
    _post(
        f"{_HOST}/drain",
        "drain_host",
        requests.Drain,
        "Drains all backends on an agent's host, or at an address, as one change",
    ),
    _post(f"{_HOST}/undrain", "undrain_host", requests.Undrain, "Ends the drains of all backends on a host"),
    # nodes
    _get("/v1/muxes", "muxes", list[MuxRow], "All MUXes"),
    _post(f"{_MUX}/drain", "drain_mux", requests.Why, "GRACEFUL_SHUTDOWN, then withdraws its VIPs"),
    _post(f"{_MUX}/undrain", "undrain_mux", requests.Why, "Ends the drain"),
    _do("DELETE", _MUX, "forget_mux", None, "Forgets a MUX that will not come back", answer=Nothing),
    _get("/v1/agents", "agents", list[AgentRow], "All host agents"),
    _do(
        "DELETE", "/v1/agents/{name}", "forget_agent", None, "Forgets an agent that will not come back", answer=Nothing
    ),
    _get(
        "/v1/examination",
        "examination",
        list[ExaminationRow],
        "What each node's own doctor finds wrong; has them all look, and answers after 30 seconds at most (after 60, "
        "where others asked just before)",
    ),
    # explanations, and what goes on
    _get("/v1/vips/{address}", "vip", Vip, "What is at an address, and who announces it"),
    _get(
        "/v1/flow",
        "flow",
        FlowRow,
        "Which backend a flow gets by each MUX and why; asks the MUXes, and answers after 2 seconds at most",
        query=_FLOW,
    ),
    _get("/v1/announcements", "announcements", list[AnnouncementRow], "Who announces which VIP to whom", query=_AS),
    _get("/v1/events", "events", list[EventRow], "What happened, and why; the oldest first", query=_EVENTS),
    _get(
        "/v1/top",
        "top",
        Top,
        "Rates of the busiest services, backends or MUXes; they are new about once a second",
        query=_TOP,
    ),
    _get(
        "/v1/rates",
        "rates",
        RatesRow,
        "Rates of the last five minutes: the total, each MUX, and the busiest services or those named",
        query=_RATES,
    ),
    _get(
        "/v1/watch",
        "watch",
        Watched,
        "A table, and then, asked with the cursor of the last answer, its rows that changed, as soon as any did",
        query=_WATCH,
    ),
    _get(
        "/v1/history", "history", list[VersionRow], "The versions of the desired state, the latest first", query=_LINES
    ),
    _get(
        "/v1/audit",
        "audit",
        list[AuditLine],
        "Who changed what, and who let whom take part; the latest first",
        query={**_LINES, "change": Choice(("true", "false"), "false: left out")},
    ),
    # the rest
    _get("/v1/openapi.json", "openapi", None, "This description"),
    _post(
        "/v1/tokens",
        "make_token",
        requests.MakeToken,
        "A token: for a node to join once, or for an operator to ask with",
        answer=TokenRow,
    ),
    _get("/v1/ca", "ca", CaCertificate, "The CA's certificate", of_nodes=True, public=True),
    _post(
        "/v1/join",
        "join",
        requests.Join,
        "A node's first certificate, for a token",
        answer=NodeCertificate,
        of_nodes=True,
        public=True,
    ),
    _post("/v1/renew", "renew", requests.Renew, "A node's next certificate", answer=NodeCertificate, of_nodes=True),
    _get("/v1/stream", "stream", None, "The node stream, a WebSocket", of_nodes=True),
)
#: By the operation's name.
BY_OPERATION = {route.operation: route for route in ROUTES}
