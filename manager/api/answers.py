# SPDX-License-Identifier: Apache-2.0
"""What the API answers beside rows of tables (:mod:`lb.rows`): changes and previews, everything on one service, VIP or
flow, and what nodes find of themselves. The OpenAPI description is made of these types."""

from typing import Annotated, Any

from msgspec import UNSET, UnsetType, field

from lb.rows.backend import BackendRow
from lb.rows.event import EventRow
from lb.rows.row import PageColumn, Row, Transport, shown
from lb.rows.service import ServiceRow
from manager.api.requests import ServiceTableRow


class Mistake(Row, kw_only=True, gc=False):
    """One mistake of a request."""

    path: str
    message: str


class Error(Row, kw_only=True, gc=False):
    """What is wrong, all of it."""

    error: Annotated[str, shown("one sentence")]
    mistakes: list[Mistake] | UnsetType = UNSET


class TokenRow(Row, kw_only=True, gc=False):
    """What a node joins with, or an operator asks with."""

    token: str


class CaCertificate(Row, kw_only=True, gc=False):
    """The CA's certificate."""

    ca: Annotated[str, shown("PEM")]


class NodeCertificate(CaCertificate, kw_only=True, gc=False):
    """A node's certificate."""

    certificate: Annotated[str, shown("PEM")]


class Nothing(Row, kw_only=True, gc=False):
    """Done; there is nothing to say."""


# --- changes ---------------------------------------------------------------------------------------------------------

#: What a line of a change says.
ACTIONS = (
    "created",
    "changed",
    "unchanged",
    "deleted",
    "drained",
    "taken out",
    "undrained",
    "confirmed",
    "rolled back",
)


class ChangeLineRow(Row, kw_only=True, gc=False):
    """What a change does to one thing."""

    name: str
    action: Annotated[str, shown(None, values=ACTIONS)]
    details: list[str]


class ChangeLines(Row, kw_only=True, gc=False):
    """What was changed, or would be."""

    version: Annotated[int, shown("of the desired state, after the change")]
    changed: bool
    dry_run: bool
    lines: Annotated[
        list[ChangeLineRow], shown("a line for each thing; of many that are unchanged, for the first hundred")
    ]
    unchanged: Annotated[int, shown("how many things are, in all")]
    title: Annotated[str | UnsetType, shown("what was done, where the lines alone do not tell")] = UNSET


class AnnouncedVips(Row, kw_only=True, gc=False):
    """VIPs of which the same is to be said."""

    count: int
    vips: Annotated[list[str], shown("the first of them")]
    announced_by: list[str]
    wanted_by: list[str]
    note: str | None
    silent: Annotated[bool, shown("there are MUXes, and none announces it")]


class LeftByDrain(Row, kw_only=True, gc=False):
    """Of a service of which backends are drained."""

    service: str
    backends: Annotated[int, shown("how many there are")]
    takes_flows: Annotated[int, shown("how many go on taking new flows")]
    flows: Annotated[int | None, shown("live flows of those that do not; null: not known")]


class ChangeRow(ChangeLines, kw_only=True, gc=False):
    """What was changed, and what became of it."""

    behind: Annotated[list[str] | UnsetType, shown("with wait: nodes that did not follow in that time")] = UNSET
    why: Annotated[dict[str, str] | UnsetType, shown("with wait: why they did not, by node")] = UNSET
    confirm: Annotated[float | UnsetType, shown("seconds until it is rolled back, unless it is confirmed")] = UNSET
    announced: Annotated[
        list[AnnouncedVips] | UnsetType, shown("with wait: who announces the VIPs of what was changed")
    ] = UNSET
    warnings: Annotated[list[str] | UnsetType, shown("what else it means, which may not be wanted")] = UNSET
    left: Annotated[list[LeftByDrain] | UnsetType, shown("what a drain leaves")] = UNSET


class BackendChoice(Row, kw_only=True, gc=False):
    """What decides which flows a backend gets."""

    name: str
    address: str
    weight: int
    state: str
    flows: Annotated[int | UnsetType | None, shown("live, over all MUXes; null: not known")] = UNSET


class FlowChoice(Row, kw_only=True, gc=False):
    """What decides where the flows of a service go."""

    vip: str
    protocol: Transport
    port: int | str
    slots: Annotated[int | None, shown("null: what the MUX's file says")]
    hash: str
    backend: list[BackendChoice]


class ServicePreview(Row, kw_only=True, gc=False):
    """A service as MUXes have it now, and as it would be once the change has settled; null: it is not there."""

    name: str
    before: FlowChoice | None
    after: FlowChoice | None


class Preview(ChangeLines, kw_only=True, gc=False):
    """What a change would mean."""

    services: list[ServicePreview]


# --- explanations ----------------------------------------------------------------------------------------------------


class ToldPeer(Row, kw_only=True, gc=False):
    """What a MUX tells of a VIP and one router."""

    name: str | None
    state: str | None
    why: str | None


class AnnouncementWords(Row, kw_only=True, gc=False):
    """Whether one MUX announces a VIP, in words."""

    mux: Annotated[str, shown(None, PageColumn("MUX", "strong", 1, "name"))]
    announces: Annotated[bool | None, shown("null: it has not reported", PageColumn("Announces", "answer", 2))]
    reason: Annotated[str, shown(None, PageColumn("Why", "peers", 3, "reason"))]
    peers: list[ToldPeer]


class LeftOut(Row, kw_only=True, gc=False):
    """A node that does not serve something."""

    node: str
    what: str
    reason: str


class Description(Row, kw_only=True, gc=False):
    """Everything on one service, and the sentences that explain it."""

    service: ServiceRow
    table: Annotated[ServiceTableRow, shown("as it was applied")]
    panic: str | None
    probe: str
    policy: str
    backends: list[BackendRow]
    announcements: list[AnnouncementWords]
    left_out: list[LeftOut]
    explanation: Annotated[list[str], shown("a sentence on each backend")]
    events: list[EventRow]


class Vip(Row, kw_only=True, gc=False):
    """What is at one address."""

    vip: str
    services: list[ServiceRow]
    announcements: list[AnnouncementWords]
    left_out: list[LeftOut]
    events: list[EventRow]


class FlowByMux(Row, kw_only=True, gc=False):
    """What one MUX says of a flow."""

    mux: str
    service: str | None
    slot: int | None
    new: Annotated[str | None, shown("the backend that a new flow gets")]
    remembered: Annotated[str | None, shown("the backend that its flow table has")]
    flow_class: str | None
    age: Annotated[float | None, shown("seconds since the flow's last packet")]
    goes_to: Annotated[str | None, shown("the backend of the flow's next packet")]
    words: str


class FlowRow(Row, kw_only=True, gc=False):
    """Which backend a flow gets, and why."""

    flow: str
    service: Annotated[ServiceRow | None, shown("null: none takes it")]
    agree: Annotated[bool | None, shown("whether it goes to one backend by every MUX; null: not known")]
    words: Annotated[list[str], shown("sentences on all of it")]
    muxes: list[FlowByMux]
    backends: list[BackendRow]


class FindingRow(Row, kw_only=True, gc=False):
    """Something that a node's doctor found."""

    check: str
    severity: Annotated[str, shown(None, values=("fault", "warning", "unknown"))]
    what: str
    remedy: str | None = None
    cause: str | None = None
    about: list[str] = field(default_factory=list)


class ExaminationRow(Row, kw_only=True, gc=False):
    """What a node's own doctor finds of it."""

    kind: Annotated[str, shown(None, values=("mux", "agent"))]
    name: str
    findings: list[FindingRow]
    fine: Annotated[int, shown("checks that found nothing wrong")]
    left_out: Annotated[int, shown("findings that were too many to tell")]
    error: Annotated[str | None, shown("why it was not examined")]


class Watched(Row, kw_only=True, gc=False):
    """A table, or what changed of it."""

    cursor: Annotated[str, shown("for the next question")]
    whole: Annotated[bool, shown("these are all rows; what was before is void")]
    rows: Annotated[list[dict[str, Any]], shown("as the table's own call has them; of backends, all of a service")]
    gone: Annotated[list[str], shown("services that have no rows any more")]
