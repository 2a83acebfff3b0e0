# SPDX-License-Identifier: Apache-2.0
"""What a node says of itself, checked once where it comes in, so that nobody who reads it later need doubt it. Pure.

Called by :mod:`manager.nodes.stream`, for long messages beside the event loop. Names are text, counters are counts,
numbers are finite, and nothing is deeper or longer than any of ours; sections and keys that a newer version has are let
through within the same bounds. A node that says anything else is no node of ours, or is broken: :func:`read` raises,
and its connection ends with a line in the log. What each section means is in :mod:`manager.nodes.hub`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lb.errors import MessageError
from lb.node.messages import FromNode, StatusMessage, parse_from_node

#: Sections of a status, keys of a row, and how deep a value may be.
SECTIONS_MAX, KEYS_MAX, DEPTH_MAX = 64, 64, 4
#: Rows of one section: what ten thousand VIPs make with a dozen peers each; and of sections of which a MUX tells
#: 20,000 at most.
ROWS_MAX, COUNTED_MAX = 120_000, 40_000
TEXT_MAX = 1 << 16
NAME_MAX = 128
#: Counters of 64 bits.
COUNT_MAX = 2**64

#: Of each section's rows: the keys that name something, which must be there; those that hold text or nothing; and those
#: that count, as far as they are there.
_ROWS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "services": (("name",), (), ("packets", "bytes", "flows_new", "flows", "dropped")),
    "backends": (("service", "name"), (), ("packets", "flows")),
    "drains": (("service", "name"), (), ("flows", "copies")),
    "peers": (("name",), ("address", "state", "error"), ("announced",)),
    "announcements": (("vip",), ("peer", "state", "why"), ()),
    "announcements_since": (("vip",), ("peer", "state", "why"), ()),
}
#: Sections that somebody reads; what is newer is let through and not remembered, or a node could say ever new ones.
REMEMBERED = frozenset(_ROWS) | {"at", "mux", "agent", "handover"}
_MUX_COUNTS = (
    "flows",
    "flow_capacity",
    "received",
    "forwarded",
    "passed",
    "replied",
    "dropped",
    "missed",
    "generation",
    "slots",
)
_MUX_TEXTS = ("name", "state", "io", "mode", "reason", "rejected", "saturated", "pool")


def read(text: str) -> FromNode:
    """A node's message, a status of it checked as well; raises MessageError."""
    message = parse_from_node(text)
    if isinstance(message, StatusMessage):
        checked(message.body)
    return message


def checked(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """The body; raises MessageError for what no node of ours says."""
    if len(body) > SECTIONS_MAX:
        raise MessageError(f"a status of {len(body)} sections; none of ours has more than {SECTIONS_MAX}")
    for section, value in body.items():
        _check_text(section, "the name of a section")
        if section in _ROWS:
            _check_rows(section, value)
        elif section == "mux":
            _check_mux(value)
        elif section == "at":
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise _wrong(section, "a number", value)
            _check(value, section, 0)
        elif section == "handover":
            _check_optional_text(value, section)
        else:
            _check(value, section, 0)
    return body


def _check_rows(section: str, rows: object) -> None:
    most = ROWS_MAX if section.startswith("announcements") else COUNTED_MAX
    if not isinstance(rows, list) or len(rows) > most:
        raise _wrong(section, f"at most {most:,} rows", rows)
    names, texts, counts = _ROWS[section]
    known = {*names, *texts, *counts}
    for row in rows:
        if not isinstance(row, dict) or len(row) > KEYS_MAX:
            raise _wrong(section, "rows", row)
        for key in names:
            value = row.get(key)
            if type(value) is not str or len(value) > NAME_MAX:
                raise _wrong(f"{key} in {section}", f"a name of at most {NAME_MAX} characters", value)
            _check_text(value, section)
        for key in texts:
            if row.get(key) is not None:
                _check_text(row[key], f"{key} in {section}")
        for key in counts:
            value = row.get(key)
            if value is not None and (type(value) is not int or not 0 <= value < COUNT_MAX):
                raise _wrong(f"{key} in {section}", "a count", value)
        if len(row) > len(known) or not row.keys() <= known:
            for key in row.keys() - known:
                _check_text(key, section)
                _check(row[key], f"{key} in {section}", 1)


def _check_mux(row: object) -> None:
    if not isinstance(row, dict):
        raise _wrong("mux", "a row", row)
    for key in _MUX_COUNTS:
        value = row.get(key)
        if value is not None and (type(value) is not int or not 0 <= value < COUNT_MAX):
            raise _wrong(f"{key} in mux", "a count", value)
    for key in _MUX_TEXTS:
        _check_optional_text(row.get(key), f"{key} in mux")
    _check({key: value for key, value in row.items() if key not in _MUX_COUNTS}, "mux", 0)


def _check(value: object, where: str, depth: int) -> None:
    """Of whatever form: bounded."""
    if value is None or isinstance(value, bool):
        return
    if isinstance(value, str):
        _check_text(value, where)
    elif isinstance(value, int | float):
        if not -COUNT_MAX < value < COUNT_MAX or not math.isfinite(value):
            raise _wrong(where, "a number of 64 bits", value)
    elif depth >= DEPTH_MAX:
        raise MessageError(f"{where[:80]} in a status is nested deeper than anything of ours")
    elif isinstance(value, dict):
        if len(value) > ROWS_MAX:
            raise _wrong(where, "fewer entries", value)
        for key, one in value.items():
            _check_text(key, where)
            _check(one, where, depth + 1)
    elif isinstance(value, list):
        if len(value) > ROWS_MAX:
            raise _wrong(where, "fewer entries", value)
        for one in value:
            _check(one, where, depth + 1)
    else:
        raise _wrong(where, "plain JSON", value)


def _check_optional_text(value: object, where: str) -> None:
    if value is not None:
        _check_text(value, where)


def _check_text(value: object, where: str) -> None:
    if not isinstance(value, str) or len(value) > TEXT_MAX:
        raise _wrong(where, f"text of at most {TEXT_MAX} characters", value)
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise _wrong(where, "text", value) from None


def _wrong(where: str, expected: str, value: object) -> MessageError:
    """The value is not printed where that could be long work: a number of thousands of digits."""
    shown = ascii(value)[:60] if isinstance(value, str | float | bool) or value is None else type(value).__name__
    return MessageError(f"{ascii(where[:80])[1:-1]} in a status must be {expected}, not {shown}")
