# SPDX-License-Identifier: Apache-2.0
"""A row is defined once: a field that is added to it is in the JSON, the table, the description and the page."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import Meta

from lb.cli.tables.row_tables import TABLES
from lb.rows.node import AgentRow, MuxRow
from lb.rows.row import Column, PageColumn, Row, shown
from lb.rows.service import ServiceRow
from lb.rows.table import columns_of, listed, listing, read_rows, table_of
from manager.api import openapi, routes
from manager.web import page_rows
from tests.lb.rows.values import service

STATIC = Path(page_rows.__file__).parent / "static"


def with_field(row_type: type[Row], name: str, type_: Any, meta: Meta) -> type[Row]:
    """The row as it would be, had its definition this field as well."""
    found: Any = msgspec.defstruct(
        row_type.__name__, [(name, _annotated(type_, meta))], bases=(row_type,), kw_only=True, gc=False
    )
    return found  # type: ignore[no-any-return]


def _annotated(type_: Any, meta: Meta) -> Any:
    from typing import Annotated

    return Annotated[type_, meta]


def test_a_new_column_is_one_change(monkeypatch: pytest.MonkeyPatch) -> None:
    meta = shown("where it is", Column("Rack", place=4), PageColumn("Rack", "text", 2))
    row_type: Any = with_field(ServiceRow, "rack", str, meta)
    row = row_type(**msgspec.structs.asdict(service()), rack="r12")

    text = msgspec.json.encode([row])
    assert json.loads(text)[0]["rack"] == "r12", "in the JSON"
    assert read_rows(row_type, text) == [row]

    head, line = listed(listing(row_type, [row]))
    assert head.split()[3:6] == ["State", "Rack", "Up"], "in the table"
    assert line.split()[3:6] == ["up", "r12", "2/2"]

    (route,) = (route for route in routes.ROUTES if route.operation == "services")
    monkeypatch.setattr(openapi, "ROUTES", (replace(route, answer=list[row_type]),))
    _, schemas = openapi._schemas()
    assert schemas["Service"]["properties"]["rack"] == {"type": "string", "description": "where it is"}
    assert "rack" in schemas["Service"]["required"], "in the description"

    monkeypatch.setitem(page_rows.TABLES, "services", with_field(page_rows.PageService, "rack", str, meta))
    script = page_rows.columns_script()
    columns = json.loads(script[script.index("{") : script.rindex(";")])["services"]
    assert {"key": "rack", "heading": "Rack", "kind": "text", "role": ""} in columns, "on the page"


def test_the_page_draws_every_kind_that_its_columns_have() -> None:
    text = (STATIC / "table.js").read_text()
    known = set(re.findall(r'^  "?([\w-]+)"?: (?:text\(|\(\) =>)', text, re.MULTILINE))
    used = {column.kind for row_type in page_rows.TABLES.values() for _, column in columns_of(row_type, PageColumn)}
    assert used <= known
    assert known - used <= {"text"}, "and no others"


@pytest.mark.parametrize("what", TABLES)
def test_what_tells_rows_from_each_other_are_fields_of_theirs(what: str) -> None:
    names = set(TABLES[what].__struct_fields__)
    assert {*TABLES[what].KEY} <= names or what == "status"
    assert TABLES[what].GROUP in names or what in ("announcements", "events", "history", "audit")


def test_tables_have_the_columns_that_scripts_know() -> None:
    headers = {what: table_of(row_type).header for what, row_type in TABLES.items()}
    assert headers["services"] == ("Prot", "LocalAddress:Port", "Service", "State", "Up", "Flows", "Pkts", "MUXes")
    assert headers["backends"] == ("Prot LocalAddress:Port", "Service", "State", "Weight", "Flows", "InPkts")
    assert headers["announcements"] == ("VIP", "MUX", "Wanted", "Peer", "State")
    assert table_of(MuxRow).header == ("MUX", "State", "Since", "Address", "VIPs", "Flows", "IO", "BGP")
    assert table_of(AgentRow).header == ("Agent", "State", "Since", "Address", "Services")
    assert headers["events"] == ("Time", "", "Subject", "Event")
    assert headers["audit"] == headers["history"] == ("Version", "Time", "Who", "What")
    assert table_of(ServiceRow, stats=True).header == (
        "Prot", "LocalAddress:Port", "Service", "State", "Healthy", "Conns", "Live", "InPkts", "InBytes",
        "Announced by",
    )  # fmt: skip
