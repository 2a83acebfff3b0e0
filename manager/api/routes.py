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
from lb.rows.row import Row
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


@dataclass(frozen=True, slots=True)
class ApiRoute:
    """One call."""

    method: str
    path: str
    operation: str  #: the method of manager.api.server.Api that serves it
    summary: str
    answer: Any  #: its type; None: no JSON of a known form
    body: Any = None  #: its type; None: it takes none
    query: Mapping[str, Parameter] = field(default_factory=dict)
    body_needed: bool = True
    of_nodes: bool = False  #: served by manager.trust.joining or manager.nodes.stream
    public: bool = False  #: needs no client certificate and no token
    files: bool = False  #: its body, or its answer where it has none, may be a file of services instead, as TOML
    beside: type[Row] | None = None  #: with a file, these keys of the body are in the query


_LINES = {"limit": Number(1, LIMIT_MAX, 100)}
_AS: dict[str, Parameter] = {"as": Choice(("json", "text"), "text: `lb get`'s table as it is drawn")}
_SOME: dict[str, Parameter] = {
    "service": Words("only of this one; any number of times", many=True),
    "limit": Number(0, MAX_SERVICES, 0, "only of so many services, the first by name; 0: of all"),
    **_AS,
}
_BACKEND = "/v1/backends/{service}/{backend}"

ROUTES: tuple[ApiRoute, ...] = (
    ApiRoute("GET", "/v1/status", "status", "The manager itself, and which nodes are behind", StatusRow),
    # services
    ApiRoute("GET", "/v1/services", "services", "All services", list[ServiceRow], query=_SOME),
    ApiRoute(
        "PUT",
        "/v1/services",
        "replace_services",
        "Makes these the services; all others are deleted",
        ChangeRow,
        list[ServiceTableRow],
    ),
    ApiRoute("GET", "/v1/services/{name}", "describe", "One service, explained", Description),
    ApiRoute("PUT", "/v1/services/{name}", "put_service", "Creates or changes one service", ChangeRow, ServiceTableRow),
    ApiRoute(
        "DELETE",
        "/v1/services/{name}",
        "delete_service",
        "Withdraws a service, then removes it",
        ChangeRow,
        query={"why": Words("kept with the change in the audit")},
    ),
    ApiRoute(
        "POST",
        "/v1/apply",
        "apply",
        "Creates or changes services; leaves the others alone, unless prune is true",
        ChangeRow,
        requests.Apply,
        files=True,
        beside=requests.Apply,
    ),
    ApiRoute(
        "POST",
        "/v1/diff",
        "diff",
        "What /v1/apply, or a rollback to a version, would change, and for whom; changes nothing",
        Preview,
        requests.Diff,
        files=True,
        beside=requests.Diff,
    ),
    ApiRoute(
        "POST",
        "/v1/confirm",
        "confirm",
        "Keeps the change that waits for its confirmation",
        ChangeRow,
        requests.Confirm,
    ),
    ApiRoute(
        "POST",
        "/v1/rollback",
        "rollback",
        "Services and drains as they were at an earlier version; or ends what waits for its confirmation",
        ChangeRow,
        requests.Rollback,
    ),
    ApiRoute(
        "GET",
        "/v1/history",
        "history",
        "The versions of the desired state, the latest first",
        list[VersionRow],
        query=_LINES,
    ),
    ApiRoute(
        "GET",
        "/v1/tables",
        "tables",
        "The services as they were applied; as JSON, or as a file that /v1/apply takes",
        list[ServiceTableRow],
        query={"service": _SOME["service"], "as": Choice(("json", "toml"))},
        files=True,
    ),
    # backends
    ApiRoute(
        "GET",
        "/v1/backends",
        "backends",
        "All backends, with the reason for each one's state",
        list[BackendRow],
        query=_SOME,
    ),
    ApiRoute("GET", _BACKEND, "backend", "One backend, and the flows left of it while it drains", OneBackend),
    ApiRoute(
        "POST",
        f"{_BACKEND}/drain",
        "drain_backend",
        "Keeps its connections and gives it no new ones",
        ChangeRow,
        requests.Drain,
        body_needed=False,
    ),
    ApiRoute(
        "POST",
        f"{_BACKEND}/undrain",
        "undrain_backend",
        "Ends the drain",
        ChangeRow,
        requests.Undrain,
        body_needed=False,
    ),
    ApiRoute(
        "POST",
        f"{_BACKEND}/weight",
        "set_weight",
        "Changes its weight, as if its service had been applied with it",
        ChangeRow,
        requests.SetWeight,
    ),
    ApiRoute(
        "POST",
        "/v1/hosts/{name}/drain",
        "drain_host",
        "Drains all backends on an agent's host, or at an address, as one change",
        ChangeRow,
        requests.Drain,
        body_needed=False,
    ),
    ApiRoute(
        "POST",
        "/v1/hosts/{name}/undrain",
        "undrain_host",
        "Ends the drains of all backends on a host",
        ChangeRow,
        requests.Undrain,
        body_needed=False,
    ),
    # explanations
    ApiRoute("GET", "/v1/vips/{address}", "vip", "What is at an address, and who announces it", Vip),
    ApiRoute(
        "GET",
        "/v1/flow",
        "flow",
        "Which backend a flow gets by each MUX and why; asks the MUXes, and answers after 2 seconds at most",
        FlowRow,
        query={
            "protocol": Choice(("tcp", "udp")),
            "source": Words("the client's address"),
            "source_port": Number(0, 65535),
            "destination": Words("the VIP"),
            "destination_port": Number(0, 65535),
        },
    ),
    ApiRoute(
        "GET",
        "/v1/examination",
        "examination",
        "What each node's own doctor finds wrong; has them all look, and answers after 30 seconds at most (after 60, "
        "where others asked just before)",
        list[ExaminationRow],
    ),
    # nodes
    ApiRoute("GET", "/v1/muxes", "muxes", "All MUXes", list[MuxRow]),
    ApiRoute(
        "POST",
        "/v1/muxes/{name}/drain",
        "drain_mux",
        "GRACEFUL_SHUTDOWN, then withdraws its VIPs",
        ChangeRow,
        requests.Why,
        body_needed=False,
    ),
    ApiRoute(
        "POST",
        "/v1/muxes/{name}/undrain",
        "undrain_mux",
        "Ends the drain",
        ChangeRow,
        requests.Why,
        body_needed=False,
    ),
    ApiRoute("DELETE", "/v1/muxes/{name}", "forget_mux", "Forgets a MUX that will not come back", Nothing),
    ApiRoute("GET", "/v1/agents", "agents", "All host agents", list[AgentRow]),
    ApiRoute("DELETE", "/v1/agents/{name}", "forget_agent", "Forgets an agent that will not come back", Nothing),
    # what goes on
    ApiRoute(
        "GET", "/v1/announcements", "announcements", "Who announces which VIP to whom", list[AnnouncementRow], query=_AS
    ),
    ApiRoute(
        "GET",
        "/v1/events",
        "events",
        "What happened, and why; the oldest first",
        list[EventRow],
        query={
            **_LINES,
            "subject": Words('"backend web/web-1"; or a kind, "mux"; or a name, "web"'),
            "since": Number(0, _ANY, None, "Unix time", whole=False),
            "after": Number(0, _ANY, None, "only events of a higher number"),
            "bad": Choice(("false", "true")),
        },
    ),
    ApiRoute(
        "GET",
        "/v1/top",
        "top",
        "RatesRow of the busiest services, backends or MUXes; they are new about once a second",
        Top,
        query={
            "by": Choice(("service", "backend", "mux")),
            "sort": Choice((*FIELDS, "name")),
            "limit": Number(1, LIMIT_MAX, 20),
            "service": Words("only this one, or its backends"),
        },
    ),
    ApiRoute(
        "GET",
        "/v1/watch",
        "watch",
        "A table, and then, asked with the cursor of the last answer, its rows that changed, as soon as any did",
        Watched,
        query={
            "what": Choice(WATCHED),
            "since": Words("the cursor of the answer before; without it, all rows"),
            "wait": Number(0, WATCH_MAX, 20, "seconds to wait for news", whole=False),
            "service": Words("of services and backends: only these", many=True),
        },
    ),
    ApiRoute(
        "GET",
        "/v1/rates",
        "rates",
        "RatesRow of the last five minutes: the total, each MUX, and the busiest services or those named",
        RatesRow,
        query={
            "since": Number(0, _ANY, None, "Unix time: only points after it", whole=False),
            "services": Number(0, SERVICES_KEPT, 8),
            "service": Words("a name, any number of times: these instead of the busiest", many=True),
        },
    ),
    ApiRoute(
        "GET",
        "/v1/audit",
        "audit",
        "Who changed what, and who let whom take part; the latest first",
        list[AuditLine],
        query={**_LINES, "change": Choice(("true", "false"), "false: left out")},
    ),
    # the rest
    ApiRoute("GET", "/v1/openapi.json", "openapi", "This description", None),
    ApiRoute(
        "POST",
        "/v1/tokens",
        "make_token",
        "A token: for a node to join once, or for an operator to ask with",
        TokenRow,
        requests.MakeToken,
    ),
    ApiRoute("GET", "/v1/ca", "ca", "The CA's certificate", CaCertificate, of_nodes=True, public=True),
    ApiRoute(
        "POST",
        "/v1/join",
        "join",
        "A node's first certificate, for a token",
        NodeCertificate,
        requests.Join,
        of_nodes=True,
        public=True,
    ),
    ApiRoute("POST", "/v1/renew", "renew", "A node's next certificate", NodeCertificate, requests.Renew, of_nodes=True),
    ApiRoute("GET", "/v1/stream", "stream", "The node stream, a WebSocket", None, of_nodes=True),
)
#: By the operation's name.
BY_OPERATION = {route.operation: route for route in ROUTES}
