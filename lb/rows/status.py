# SPDX-License-Identifier: Apache-2.0
"""The row of the manager itself."""

from typing import Annotated

from lb.rows.row import Row, Time, shown


class Unconfirmed(Row, kw_only=True, gc=False):
    """The change that is rolled back at ``until``, unless it is confirmed."""

    version: int
    who: str
    at: Time
    until: Time


class LostHistory(Row, kw_only=True, gc=False):
    """The store is older than the orders that nodes had: no change is taken."""

    why: str
    nodes: list[str]
    term: int


class HeldServiceRow(Row, kw_only=True, gc=False):
    """A service of the store that this version does not take as it stands."""

    service: str
    served: bool
    why: str


class Refusal(Row, kw_only=True, gc=False):
    """A node that was turned away."""

    node: str
    address: str
    reason: str
    duplicate: bool
    first: Time
    last: Time
    count: int


class StatusRow(Row, kw_only=True, gc=False):
    """The manager itself, and which nodes are behind."""

    name: str
    version: Annotated[int, shown("of the desired state")]
    term: Annotated[int, shown("of this manager's leadership")]
    generation: int
    services: int
    nodes: int
    connected: int
    behind: Annotated[list[str], shown("connected nodes that have not acknowledged all yet")]
    now: Time
    refusals: Annotated[list[Refusal], shown("nodes that were turned away, the newest first")]
    confirm: Unconfirmed | None
    history: LostHistory | None
    held: list[HeldServiceRow]
