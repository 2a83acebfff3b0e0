# SPDX-License-Identifier: Apache-2.0
"""The HTTP API as one table: its routes, what they take and what they answer; and the OpenAPI description made of it.

:mod:`manager.api.server` adds exactly these routes to the server, so the description cannot tell of others. The few
calls of nodes (:mod:`manager.trust.joining`, :mod:`manager.nodes.stream`) are described here as well, and served there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from manager.controller.change_feed import TABLES as WATCHED

Schema = Mapping[str, Any]


def ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def array(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def record(required: Mapping[str, Schema], optional: Mapping[str, Schema] | None = None) -> Schema:
    return {"type": "object", "required": list(required), "properties": {**required, **(optional or {})}}


TEXT: Schema = {"type": "string"}
MAYBE_TEXT: Schema = {"type": ["string", "null"]}
COUNT: Schema = {"type": "integer"}
MAYBE_COUNT: Schema = {"type": ["integer", "null"]}
NUMBER: Schema = {"type": "number"}
FLAG: Schema = {"type": "boolean"}
MAYBE_FLAG: Schema = {"type": ["boolean", "null"]}
TIME: Schema = {"type": "number", "description": "Unix time, seconds"}
ANYTHING: Schema = {"type": "object"}
#: Of a row: always text, for it may be a range.
PORT: Schema = {
    "type": "string",
    "pattern": "^[0-9]{1,5}(-[0-9]{1,5})?$",
    "description": 'a number, a range such as "8000-8099", or "0" for any',
    "examples": ["80", "8000-8099", "0"],
}

#: What ``[[service]]`` tables hold; see deploy/services.toml for every key.
SERVICE_TABLE = record(
    {
        "name": TEXT,
        "vip": {"type": "string", "description": "an address, or a prefix"},
        "protocol": {"enum": ["tcp", "udp"]},
        "port": {"type": ["integer", "string"], "description": 'a number, "8000-8099", or 0 for any'},
    },
    {
        "slots": COUNT,
        "hash": {"enum": ["5-tuple", "source"]},
        "mtu": COUNT,
        "idle": COUNT,
        "slow_start": NUMBER,
        "panic": NUMBER,
        "probe": ANYTHING,
        "announce": ANYTHING,
        "backend": array(
            record(
                {"name": TEXT, "address": TEXT},
                {"port": COUNT, "weight": COUNT, "state": {"enum": ["up", "drain", "down"]}},
            )
        ),
    },
)

_NODE = {
    "name": TEXT,
    "state": {"enum": ["ready", "following", "late", "refused", "away", "gone"]},
    "address": MAYBE_TEXT,
    "address6": MAYBE_TEXT,
    "since": TIME,
    "generation": MAYBE_COUNT,
    "wanted": COUNT,
    "refused": MAYBE_TEXT,
    "repaired": {**MAYBE_TEXT, "description": "what of its own it lately put back into the kernel, or cannot"},
    "left_out": {
        "type": "object",
        "additionalProperties": TEXT,
        "description": "services that it alone does not serve, and why; it serves the rest",
    },
    "version": TEXT,
    "clock": {**MAYBE_TEXT, "description": "that its clock is not the manager's, in words"},
    "clock_skew": {"type": ["number", "null"], "description": "seconds by which its clock is ahead of the manager's"},
    "certificate_expires": {"type": ["number", "null"], "description": "Unix time, seconds"},
}

_BACKEND: dict[str, Schema] = {
    "service": TEXT,
    "vip": TEXT,
    "protocol": TEXT,
    "service_port": PORT,
    "name": TEXT,
    "address": TEXT,
    "port": PORT,
    "weight": COUNT,
    "slow_start": {
        "type": ["number", "null"],
        "description": "the part of its weight that a backend which returned has by now; null: all of it",
    },
    "state": {"enum": ["up", "down", "drain", "panic", "unknown", "installing"]},
    "takes_flows": FLAG,
    "healthy": FLAG,
    "agent": MAYBE_TEXT,
    "since": TIME,
    "empty_since": {**TIME, "type": ["number", "null"], "description": "since when a drain left no flow here"},
    "reason": TEXT,
    "flows": MAYBE_COUNT,
    "packets": MAYBE_COUNT,
}

_VERSION: dict[str, Schema] = {
    "version": COUNT,
    "at": TIME,
    "who": TEXT,
    "what": TEXT,
    "why": {"type": "string", "description": "in the words of whoever did it"},
}

#: What a line of a change says.
ACTIONS = [
    "created",
    "changed",
    "unchanged",
    "deleted",
    "drained",
    "taken out",
    "undrained",
    "confirmed",
    "rolled back",
]

MAYBE_NUMBER: Schema = {"type": ["number", "null"]}

#: Rates are over all MUXes, made of the last two words of each; null: no MUX told twice yet, or lately.
_RATES: dict[str, Schema] = {
    "pps": {**MAYBE_NUMBER, "description": "packets forwarded per second"},
    "bps": {**MAYBE_NUMBER, "description": "bits of them per second, without the outer header"},
    "cps": {**MAYBE_NUMBER, "description": "new flows per second"},
    "dropped": {**MAYBE_NUMBER, "description": "packets dropped per second"},
    "flows": {**MAYBE_COUNT, "description": "flows alive, as counted every few seconds"},
}
_POINTS: Schema = {
    **record({name: array(MAYBE_NUMBER) for name in _RATES}),
    "description": "an array of each rate, the oldest point first; null where there was no report",
}

_CHANGE_KEYS: dict[str, Schema] = {
    "version": {"type": "integer", "description": "of the desired state, after the change"},
    "changed": FLAG,
    "dry_run": FLAG,
    "lines": {
        **array(record({"name": TEXT, "action": {"enum": ACTIONS}, "details": array(TEXT)})),
        "description": "a line for each thing; of many that are unchanged, for the first hundred",
    },
    "unchanged": {**COUNT, "description": "how many things are, in all"},
}

#: What decides where the flows of a service go.
_TOLD: Schema = {
    **record(
        {
            "vip": TEXT,
            "protocol": TEXT,
            "port": {"type": ["integer", "string"]},
            "slots": {**MAYBE_COUNT, "description": "null: what the MUX's file says"},
            "hash": TEXT,
            "backend": array(
                record(
                    {"name": TEXT, "address": TEXT, "weight": COUNT, "state": TEXT},
                    {"flows": {**MAYBE_COUNT, "description": "live, over all MUXes; null: not known"}},
                )
            ),
        }
    ),
    "type": ["object", "null"],
}

SCHEMAS: dict[str, Schema] = {
    "ServiceTable": SERVICE_TABLE,
    "Error": record(
        {"error": {"type": "string", "description": "one sentence"}},
        {"mistakes": array(record({"path": TEXT, "message": TEXT}))},
    ),
    "Change": record(
        _CHANGE_KEYS,
        {
            "behind": {**array(TEXT), "description": "with wait: nodes that did not follow in that time"},
            "why": {"type": "object", "description": "with wait: why they did not, by node"},
            "confirm": {**NUMBER, "description": "seconds until it is rolled back, unless it is confirmed"},
            "title": {"type": "string", "description": "what was done, where the lines alone do not tell"},
            "announced": {
                **array(
                    record(
                        {
                            "count": COUNT,
                            "vips": {**array(TEXT), "description": "the first of them"},
                            "announced_by": array(TEXT),
                            "wanted_by": array(TEXT),
                            "note": MAYBE_TEXT,
                            "silent": {**FLAG, "description": "there are MUXes, and none announces it"},
                        }
                    )
                ),
                "description": "with wait: who announces the VIPs of what was changed, a record for those of which the "
                "same is to be said",
            },
            "warnings": {**array(TEXT), "description": "what else it means, which may not be wanted"},
            "left": {
                **array(record({"service": TEXT, "backends": COUNT, "takes_flows": COUNT, "flows": MAYBE_COUNT})),
                "description": "of services whose backends are drained: how many backends there are, how many go on "
                "taking new flows, and the live flows of those that do not",
            },
        },
    ),
    "Preview": record(
        {
            **_CHANGE_KEYS,
            "services": {
                **array(record({"name": TEXT, "before": _TOLD, "after": _TOLD})),
                "description": "as MUXes have them now, and as they would be once the change has settled",
            },
        },
        {"title": TEXT},
    ),
    "Service": record(
        {
            "name": TEXT,
            "vip": TEXT,
            "protocol": TEXT,
            "port": PORT,
            "state": {"enum": ["new", "up", "degraded", "PANIC", "down", "retiring"]},
            "backends": COUNT,
            "healthy": COUNT,
            "announced_by": {
                **array(TEXT),
                "description": "MUXes that announce the VIP to a router, by their own reports; of one without BGP "
                "counts what it has live, and of one that is not connected nothing is known",
            },
            "wanted_by": {**array(TEXT), "description": "MUXes that should announce the VIP"},
            "unreached": {
                **FLAG,
                "description": "it is announced, and the manager's own connections do not get through",
            },
            "note": {
                **MAYBE_TEXT,
                "description": "what clients may notice: that nobody, one MUX alone or not all that should announce it "
                "for some seconds, or that no backend takes new flows; and why",
            },
            "flows_new": MAYBE_COUNT,
            "flows": MAYBE_COUNT,
            "packets": MAYBE_COUNT,
            "bytes": MAYBE_COUNT,
        }
    ),
    "Backend": record(_BACKEND),
    "OneBackend": record(
        {
            **_BACKEND,
            "left": {
                **array(record({"mux": TEXT, "flows": MAYBE_COUNT, "why": MAYBE_TEXT})),
                "description": "while it drains: the flows that each MUX has left, null where it has not reported",
            },
        }
    ),
    "Mux": record(
        {
            **_NODE,
            "drain": MAYBE_TEXT,
            "announces": COUNT,
            "announced": {
                **MAYBE_COUNT,
                "description": "VIPs that it announces to a router; null: it has not reported",
            },
            "handover": {**MAYBE_TEXT, "description": "what became of its last flow sync"},
            "io": MAYBE_TEXT,
            "mode": MAYBE_TEXT,
            "flows": MAYBE_COUNT,
            "forwarded": MAYBE_COUNT,
            "dropped": MAYBE_COUNT,
            "missed": {**MAYBE_COUNT, "description": "packets that its kernel dropped before a worker saw them"},
            "differs": {**MAYBE_TEXT, "description": "that its seed or slots are not those of the other MUXes"},
            "saturated": {**MAYBE_TEXT, "description": "that its workers do not keep up, and whose packets come"},
            "peers": array(ANYTHING),
        }
    ),
    "Agent": record({**_NODE, "services": COUNT}),
    "Announcement": record(
        {"vip": TEXT, "mux": TEXT, "wanted": FLAG, "peer": MAYBE_TEXT, "state": MAYBE_TEXT, "reason": MAYBE_TEXT}
    ),
    "Event": record({"id": COUNT, "at": TIME, "subject": TEXT, "text": TEXT, "bad": FLAG}),
    "AuditLine": record(
        {
            **_VERSION,
            "version": {
                **COUNT,
                "description": "of the desired state once it was done: tokens and certificates leave it",
            },
            "change": {"description": "null where an answer with it would be too long: ask for fewer lines"},
        }
    ),
    "Version": record(_VERSION),
    "Top": record(
        {
            "at": TIME,
            "by": {"enum": ["service", "backend", "mux"]},
            "total": record(_RATES),
            "of": {"type": "integer", "description": "how many there are, shown or not"},
            "rows": array({"anyOf": [ref("TopService"), ref("TopBackend"), ref("TopMux")]}),
        }
    ),
    "Vip": record(
        {
            "vip": TEXT,
            "services": array(ref("Service")),
            "announcements": array(
                record({"mux": TEXT, "announces": MAYBE_FLAG, "reason": TEXT, "peers": array(ANYTHING)})
            ),
            "left_out": array(record({"node": TEXT, "what": TEXT, "reason": TEXT})),
            "events": array(ref("Event")),
        }
    ),
    "Examination": record(
        {
            "kind": {"enum": ["mux", "agent"]},
            "name": TEXT,
            "findings": array(
                record(
                    {"check": TEXT, "severity": {"enum": ["fault", "warning", "unknown"]}, "what": TEXT},
                    {"remedy": MAYBE_TEXT, "cause": MAYBE_TEXT, "about": array(TEXT)},
                )
            ),
            "fine": {**COUNT, "description": "checks that found nothing wrong"},
            "left_out": {**COUNT, "description": "findings that were too many to tell"},
            "error": {**MAYBE_TEXT, "description": "why it was not examined"},
        }
    ),
    "Flow": record(
        {
            "flow": TEXT,
            "service": {"type": ["object", "null"], "description": "a Service; null: none takes it"},
            "agree": {**MAYBE_FLAG, "description": "whether it goes to one backend by every MUX; null: not known"},
            "words": {**array(TEXT), "description": "sentences on all of it"},
            "muxes": array(
                record(
                    {
                        "mux": TEXT,
                        "service": MAYBE_TEXT,
                        "slot": MAYBE_COUNT,
                        "new": {**MAYBE_TEXT, "description": "the backend that a new flow gets"},
                        "remembered": {**MAYBE_TEXT, "description": "the backend that its flow table has"},
                        "flow_class": MAYBE_TEXT,
                        "age": {**MAYBE_NUMBER, "description": "seconds since the flow's last packet"},
                        "goes_to": {**MAYBE_TEXT, "description": "the backend of the flow's next packet"},
                        "words": TEXT,
                    }
                )
            ),
            "backends": array(ref("Backend")),
        }
    ),
    "Watched": record(
        {
            "cursor": {"type": "string", "description": "for the next question"},
            "whole": {"type": "boolean", "description": "these are all rows; what was before is void"},
            "rows": {
                **array(ANYTHING),
                "description": "as the table's own call has them; of backends, all of a service",
            },
            "gone": {**array(TEXT), "description": "services that have no rows any more"},
        }
    ),
    "TopService": record(
        {"service": TEXT, "vip": TEXT, "protocol": TEXT, "port": PORT, "state": TEXT, **_RATES},
    ),
    "TopBackend": record(
        {
            "service": TEXT,
            "backend": TEXT,
            "address": TEXT,
            "state": TEXT,
            "weight": COUNT,
            "pps": _RATES["pps"],
            "flows": _RATES["flows"],
        }
    ),
    "TopMux": record(
        {
            "mux": TEXT,
            "state": TEXT,
            "received": {**MAYBE_NUMBER, "description": "packets received per second"},
            "capacity": {**MAYBE_COUNT, "description": "flows that its table holds"},
            "fill": {**MAYBE_NUMBER, "description": "the part of it that is in use, 0 to 1"},
            **_RATES,
        }
    ),
    "Rates": record(
        {
            "step": {"type": "number", "description": "seconds from one point to the next"},
            "first": {**TIME, "description": "Unix time of the first point"},
            "points": {"type": "integer", "description": "how many there are in each array"},
            "total": _POINTS,
            "muxes": {"type": "object", "additionalProperties": _POINTS},
            "services": {"type": "object", "additionalProperties": _POINTS},
        }
    ),
    "Description": record(
        {
            "service": ref("Service"),
            "table": ref("ServiceTable"),
            "panic": MAYBE_TEXT,
            "probe": TEXT,
            "policy": TEXT,
            "backends": array(ref("Backend")),
            "announcements": array(
                record({"mux": TEXT, "announces": MAYBE_FLAG, "reason": TEXT, "peers": array(ANYTHING)})
            ),
            "left_out": array(record({"node": TEXT, "what": TEXT, "reason": TEXT})),
            "explanation": array(TEXT),
            "events": array(ref("Event")),
        }
    ),
    "Status": record(
        {
            "name": TEXT,
            "version": COUNT,
            "term": COUNT,
            "generation": COUNT,
            "services": COUNT,
            "nodes": COUNT,
            "connected": COUNT,
            "behind": array(TEXT),
            "confirm": {
                **record({"version": COUNT, "who": TEXT, "at": TIME, "until": TIME}),
                "type": ["object", "null"],
                "description": "the change that is rolled back at `until`, unless it is confirmed",
            },
            "history": {
                **record({"why": TEXT, "nodes": array(TEXT), "term": COUNT}),
                "type": ["object", "null"],
                "description": "the store is older than the orders that nodes had: no change is taken",
            },
            "held": {
                **array(record({"service": TEXT, "served": {"type": "boolean"}, "why": TEXT})),
                "description": "services of the store that this version does not take as they stand",
            },
            "now": TIME,
            "refusals": {
                **array(
                    record(
                        {
                            "node": TEXT,
                            "address": TEXT,
                            "reason": TEXT,
                            "duplicate": FLAG,
                            "first": TIME,
                            "last": TIME,
                            "count": COUNT,
                        }
                    )
                ),
                "description": "nodes that were turned away, the newest first",
            },
        }
    ),
}


@dataclass(frozen=True, slots=True)
class ApiRoute:
    """One call."""

    method: str
    path: str
    operation: str  #: the method of manager.api.server.Api that serves it
    summary: str
    answer: Schema
    body: Schema | None = None
    query: Mapping[str, Schema] = field(default_factory=dict)
    body_needed: bool = True
    of_nodes: bool = False  #: served by manager.trust.joining or manager.nodes.stream
    public: bool = False  #: needs no client certificate and no token
    files: bool = False  #: its body, or its answer where it has none, may be a file of services instead, as TOML


_WAIT = {"wait": {"type": "number", "description": "seconds to wait until every connected node has followed"}}
_LIMIT = {"limit": {"type": "integer", "minimum": 1, "maximum": 5000, "default": 100}}
_CHANGE = ref("Change")
_AS: dict[str, Schema] = {
    "as": {
        "enum": ["json", "columns", "text"],
        "default": "json",
        "description": "columns: `lb get`'s table as text: a line of JSON (header, rows, notes), below it the cells, a "
        "line each, column by column; text: that table as it is drawn",
    }
}
_SOME: dict[str, Schema] = {
    "service": {"type": "string", "description": "only of this one; any number of times"},
    "limit": {"type": "integer", "description": "only of so many services, the first by name; 0: of all"},
    **_AS,
}
_TERMS: dict[str, Schema] = {
    "dry_run": FLAG,
    "confirm": {"type": "number", "description": "seconds after which it is rolled back, unless it is confirmed"},
    "why": {"type": "string", "description": "kept with the change in the audit"},
    **_WAIT,
}
_WHY = record({}, {"why": _TERMS["why"]})
_UNDRAIN = record({}, {"why": _TERMS["why"], "dry_run": FLAG})
_DRAIN = record(
    {},
    {
        "why": _TERMS["why"],
        "dry_run": FLAG,
        "now": {**FLAG, "description": "it does not finish what it has: its connections end at once"},
    },
)


def _beside_file(keys: Mapping[str, Schema]) -> dict[str, Schema]:
    """What is in the query where the body is a file."""
    return {
        key: {**schema, "description": "with a file, what the body's key is in JSON"} for key, schema in keys.items()
    }


ROUTES: tuple[ApiRoute, ...] = (
    ApiRoute("GET", "/v1/status", "status", "The manager itself, and which nodes are behind", ref("Status")),
    ApiRoute("GET", "/v1/services", "services", "All services", array(ref("Service")), query=_SOME),
    ApiRoute(
        "PUT",
        "/v1/services",
        "replace_services",
        "Makes these the services; all others are deleted",
        _CHANGE,
        array(ref("ServiceTable")),
    ),
    ApiRoute("GET", "/v1/services/{name}", "describe", "One service, explained", ref("Description")),
    ApiRoute(
        "PUT", "/v1/services/{name}", "put_service", "Creates or changes one service", _CHANGE, ref("ServiceTable")
    ),
    ApiRoute(
        "DELETE",
        "/v1/services/{name}",
        "delete_service",
        "Withdraws a service, then removes it",
        _CHANGE,
        query={"why": _TERMS["why"]},
    ),
    ApiRoute(
        "POST",
        "/v1/delete",
        "delete_services",
        "Withdraws these services, as one change, then removes them",
        _CHANGE,
        record({"services": array(TEXT)}, {"why": _TERMS["why"]}),
    ),
    ApiRoute(
        "POST",
        "/v1/apply",
        "apply",
        "Creates or changes services; leaves the others alone, unless prune is true",
        _CHANGE,
        record({"services": array(ref("ServiceTable"))}, {"prune": FLAG, **_TERMS}),
        query=_beside_file({"prune": FLAG, **_TERMS}),
        files=True,
    ),
    ApiRoute(
        "POST",
        "/v1/diff",
        "diff",
        "What /v1/apply, or a rollback to a version, would change, and for whom; changes nothing",
        ref("Preview"),
        record({}, {"services": array(ref("ServiceTable")), "prune": FLAG, "to": COUNT}),
        query=_beside_file({"prune": FLAG}),
        files=True,
    ),
    ApiRoute(
        "POST",
        "/v1/confirm",
        "confirm",
        "Keeps the change that waits for its confirmation",
        _CHANGE,
        record({}, {"version": {**COUNT, "description": "the one that is meant, to be sure"}, "why": TEXT}),
    ),
    ApiRoute(
        "POST",
        "/v1/rollback",
        "rollback",
        "Services and drains as they were at an earlier version; or ends what waits for its confirmation",
        _CHANGE,
        record({}, {"to": {**COUNT, "description": "a version; none: the one before the latest change"}, **_TERMS}),
    ),
    ApiRoute(
        "GET",
        "/v1/history",
        "history",
        "The versions of the desired state, the latest first",
        array(ref("Version")),
        query=_LIMIT,
    ),
    ApiRoute(
        "GET",
        "/v1/tables",
        "tables",
        "The services as they were applied; as JSON, or as a file that /v1/apply takes",
        array(ref("ServiceTable")),
        query={"service": _SOME["service"], "as": {"enum": ["json", "toml"], "default": "json"}},
        files=True,
    ),
    ApiRoute(
        "GET",
        "/v1/backends",
        "backends",
        "All backends, with the reason for each one's state",
        array(ref("Backend")),
        query=_SOME,
    ),
    ApiRoute(
        "GET",
        "/v1/backends/{service}/{backend}",
        "backend",
        "One backend, and the flows left of it while it drains",
        ref("OneBackend"),
    ),
    ApiRoute(
        "POST",
        "/v1/backends/{service}/{backend}/drain",
        "drain_backend",
        "Keeps its connections and gives it no new ones",
        _CHANGE,
        _DRAIN,
        body_needed=False,
    ),
    ApiRoute(
        "POST",
        "/v1/backends/{service}/{backend}/undrain",
        "undrain_backend",
        "Ends the drain",
        _CHANGE,
        _UNDRAIN,
        body_needed=False,
    ),
    ApiRoute(
        "POST",
        "/v1/backends/{service}/{backend}/weight",
        "set_weight",
        "Changes its weight, as if its service had been applied with it",
        _CHANGE,
        record({"weight": COUNT}, _TERMS),
    ),
    ApiRoute(
        "POST",
        "/v1/hosts/{name}/drain",
        "drain_host",
        "Drains all backends on an agent's host, or at an address, as one change",
        _CHANGE,
        _DRAIN,
        body_needed=False,
    ),
    ApiRoute(
        "POST",
        "/v1/hosts/{name}/undrain",
        "undrain_host",
        "Ends the drains of all backends on a host",
        _CHANGE,
        _UNDRAIN,
        body_needed=False,
    ),
    ApiRoute("GET", "/v1/vips/{address}", "vip", "What is at an address, and who announces it", ref("Vip")),
    ApiRoute(
        "GET",
        "/v1/flow",
        "flow",
        "Which backend a flow gets by each MUX and why; asks the MUXes, and answers after 2 seconds at most",
        ref("Flow"),
        query={
            "protocol": {"enum": ["tcp", "udp"], "default": "tcp"},
            "source": TEXT,
            "source_port": COUNT,
            "destination": TEXT,
            "destination_port": COUNT,
        },
    ),
    ApiRoute(
        "GET",
        "/v1/examination",
        "examination",
        "What each node's own doctor finds wrong; has them all look, and answers after 30 seconds at most (after 60, "
        "where others asked just before)",
        array(ref("Examination")),
    ),
    ApiRoute("GET", "/v1/muxes", "muxes", "All MUXes", array(ref("Mux"))),
    ApiRoute(
        "POST",
        "/v1/muxes/{name}/drain",
        "drain_mux",
        "GRACEFUL_SHUTDOWN, then withdraws its VIPs",
        _CHANGE,
        _WHY,
        body_needed=False,
    ),
    ApiRoute("POST", "/v1/muxes/{name}/undrain", "undrain_mux", "Ends the drain", _CHANGE, _WHY, body_needed=False),
    ApiRoute("DELETE", "/v1/muxes/{name}", "forget_mux", "Forgets a MUX that will not come back", ANYTHING),
    ApiRoute("GET", "/v1/agents", "agents", "All host agents", array(ref("Agent"))),
    ApiRoute("DELETE", "/v1/agents/{name}", "forget_agent", "Forgets an agent that will not come back", ANYTHING),
    ApiRoute(
        "GET",
        "/v1/announcements",
        "announcements",
        "Who announces which VIP to whom",
        array(ref("Announcement")),
        query=_AS,
    ),
    ApiRoute(
        "GET",
        "/v1/events",
        "events",
        "What happened, and why; the oldest first",
        array(ref("Event")),
        query={
            **_LIMIT,
            "subject": {"type": "string", "description": '"backend web/web-1"; or a kind, "mux"; or a name, "web"'},
            "since": {"type": "number", "description": "Unix time"},
            "after": {"type": "integer", "description": "only events of a higher number"},
            "bad": {"enum": ["false", "true"], "default": "false"},
        },
    ),
    ApiRoute(
        "GET",
        "/v1/top",
        "top",
        "Rates of the busiest services, backends or MUXes; they are new about once a second",
        ref("Top"),
        query={
            "by": {"enum": ["service", "backend", "mux"], "default": "service"},
            "sort": {"enum": [*_RATES, "name"], "default": "pps"},
            "limit": {"type": "integer", "minimum": 1, "maximum": 5000, "default": 20},
            "service": {"type": "string", "description": "only this one, or its backends"},
        },
    ),
    ApiRoute(
        "GET",
        "/v1/watch",
        "watch",
        "A table, and then, asked with the cursor of the last answer, its rows that changed, as soon as any did",
        ref("Watched"),
        query={
            "what": {"enum": [*WATCHED]},
            "since": {"type": "string", "description": "the cursor of the answer before; without it, all rows"},
            "wait": {"type": "number", "description": "seconds to wait for news, 0 to 60", "default": 20},
            "service": {"type": "string", "description": "of services and backends: only these"},
        },
    ),
    ApiRoute(
        "GET",
        "/v1/rates",
        "rates",
        "Rates of the last five minutes: the total, each MUX, and the busiest services or those named",
        ref("Rates"),
        query={
            "since": {"type": "number", "description": "Unix time: only points after it"},
            "services": {"type": "integer", "minimum": 0, "maximum": 50, "default": 8},
            "service": {"type": "string", "description": "a name, any number of times: these instead of the busiest"},
        },
    ),
    ApiRoute(
        "GET",
        "/v1/audit",
        "audit",
        "Who changed what, and who let whom take part; the latest first",
        array(ref("AuditLine")),
        query={**_LIMIT, "change": {"enum": ["true", "false"], "default": "true", "description": "false: left out"}},
    ),
    ApiRoute("GET", "/v1/openapi.json", "openapi", "This description", ANYTHING),
    ApiRoute(
        "POST",
        "/v1/tokens",
        "make_token",
        "A token: for a node to join once, or for an operator to ask with",
        record({"token": TEXT}),
        record(
            {"kind": {"enum": ["mux", "agent", "viewer", "operator", "admin"]}}, {"name": MAYBE_TEXT, "ttl": NUMBER}
        ),
    ),
    ApiRoute("GET", "/v1/ca", "ca", "The CA's certificate", record({"ca": TEXT}), of_nodes=True, public=True),
    ApiRoute(
        "POST",
        "/v1/join",
        "join",
        "A node's first certificate, for a token",
        record({"certificate": TEXT, "ca": TEXT}),
        record({"kind": {"enum": ["mux", "agent"]}, "name": TEXT, "token": TEXT, "csr": TEXT}),
        of_nodes=True,
        public=True,
    ),
    ApiRoute(
        "POST",
        "/v1/renew",
        "renew",
        "A node's next certificate",
        record({"certificate": TEXT, "ca": TEXT}),
        record({"csr": TEXT}),
        of_nodes=True,
    ),
    ApiRoute("GET", "/v1/stream", "stream", "The node stream, a WebSocket", ANYTHING, of_nodes=True),
)


def describe(version: str) -> dict[str, Any]:
    """The OpenAPI 3.1 document."""
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {"title": "vipmux manager", "version": version, "license": {"name": "Apache-2.0"}},
        "security": [{"certificate": []}, {"token": []}],
        "paths": paths,
        "components": {
            "schemas": SCHEMAS,
            "securitySchemes": {"certificate": {"type": "mutualTLS"}, "token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(route: ApiRoute) -> dict[str, Any]:
    error = {"description": "what is wrong, all of it", "content": _content(ref("Error"))}
    operation: dict[str, Any] = {
        "operationId": route.operation,
        "summary": route.summary,
        "parameters": [
            *(
                {"name": name, "in": "path", "required": True, "schema": TEXT}
                for name in re.findall(r"{(\w+)}", route.path)
            ),
            *({"name": name, "in": "query", "schema": schema} for name, schema in route.query.items()),
        ],
        "responses": {
            "101" if route.operation == "stream" else "200": {
                "description": "done",
                "content": _content(route.answer, files=route.files and route.body is None)
                | ({"text/plain": {"schema": TEXT}} if "as" in route.query and not route.files else {}),
            },
            "default": error,
        },
    }
    if route.body is not None:
        operation["requestBody"] = {"required": route.body_needed, "content": _content(route.body, files=route.files)}
    if route.public:
        operation["security"] = []
    return operation


def _content(schema: Schema, *, files: bool = False) -> dict[str, Any]:
    return {"application/json": {"schema": schema}} | ({"application/toml": {"schema": TEXT}} if files else {})
