# SPDX-License-Identifier: Apache-2.0
"""docs/reference.md is what the models say now, and says something of each key."""

from __future__ import annotations

import pytest

from deploy import reference


def test_the_page_is_current() -> None:
    assert reference.PAGE.read_text() == reference.page(), "run `make docs`"


@pytest.mark.parametrize("section", reference.SECTIONS, ids=lambda section: section.title)
def test_every_key_has_a_meaning_and_says_what_it_must_be(section: reference.Section) -> None:
    for name, info in section.table.KEYS.items():
        assert info.meaning, f"{section.title} {name}"
        assert info.meaning.endswith("."), f"{section.title} {name}"
        assert reference.must_be(info.check), f"{section.title} {name}"


def test_every_key_of_the_models_is_on_the_page() -> None:
    """A key that a table reads and no section shows would be missed."""
    from lb.config import tables

    shown = {section.table for section in reference.SECTIONS}
    known = {kind for kind in vars(tables).values() if isinstance(kind, type) and kind.__base__ is tables.TomlTable}
    assert known == shown


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("workers", "1 to 64"),
        ("slots", "a prime number, 2 to 1000003"),
        ("io", '"auto", "xdp", "packet" or "tun"'),
        ("seed", "32 hex digits"),
        ("idle", "a table"),
    ],
)
def test_what_a_value_must_be_is_what_its_validator_says(key: str, says: str) -> None:
    from lb.config.tables import MuxTable

    assert says in reference.must_be(MuxTable.KEYS[key].check)
