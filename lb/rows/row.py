# SPDX-License-Identifier: Apache-2.0
"""What rows are made of: the base of all, what is said of a field beside its type, and types that many rows share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Self

import msgspec
from msgspec import Meta

#: A column without a place of its own stands behind those that have one.
LAST = 99


class Row(msgspec.Struct, kw_only=True, gc=False):
    """A row of a table, or a part of one. None holds what could close a circle of references."""

    KEY: ClassVar[tuple[str, ...]] = ("name",)  #: what tells rows of a table from each other
    GROUP: ClassVar[str] = "name"  #: rows with one group are replaced together

    @property
    def amiss(self) -> bool:
        """Whether somebody should look at it. What operators drain is as they want it."""
        return False

    @classmethod
    def notes(cls, rows: Sequence[Self]) -> list[str]:
        """Sentences below a table, for a column is too narrow for them."""
        return []


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table in text."""

    heading: str
    cell: Callable[[Any], str] | None = None  #: of the row; None: :func:`lb.tables.values.cell` of the field
    place: int = LAST  #: columns go by it, then in the order of the fields
    number: bool = False  #: stands to the right, and is never folded
    counted: bool = False  #: is another one all the time, while the rest of the row stays
    stats: bool | None = False  #: of the wide table of ``--stats``; None: of both
    if_any: bool = False  #: only where a row has some


@dataclass(frozen=True, slots=True)
class PageColumn:
    """A column of a table on the web page."""

    heading: str
    kind: str = "text"  #: how the page draws it: one of KINDS in manager/web/static/table.js
    place: int = LAST
    role: str = ""  #: its CSS class


def shown(description: str | None, *columns: Column | PageColumn, values: Sequence[str] = ()) -> Meta:
    """What belongs into a field's ``Annotated``. ``values``: it is one of these today; newer versions may know more, so
    no reader refuses others."""
    return Meta(
        description=description,
        extra={"columns": columns} if columns else None,
        extra_json_schema={"enum": list(values)} if values else None,
    )


Time = Annotated[float, Meta(description="Unix time, seconds")]
Transport = Annotated[str, shown(None, values=("tcp", "udp"))]
#: Of a row: always text, for it may be a range.
Port = Annotated[
    str,
    Meta(
        pattern="^[0-9]{1,5}(-[0-9]{1,5})?$",
        description='a number, a range such as "8000-8099", or "0" for any',
        examples=["80", "8000-8099", "0"],
    ),
]
