# SPDX-License-Identifier: Apache-2.0
"""Whether the filter on an interface is ours, where no program can be opened: by its unit the agent lacks the right."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from agent import decap
from agent.host.linux import Ingress
from agent.plan import FilterState


@pytest.mark.parametrize(
    ("number", "state"), [(7, FilterState.CURRENT), (8, FilterState.STALE), (None, FilterState.STALE)]
)
def test_our_own_filter_is_known_by_its_number_where_it_cannot_be_opened(
    number: int | None, state: FilterState, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decap, "open_program", lambda number: None)
    host: Any = SimpleNamespace(ingress=lambda name: Ingress(qdisc=True, place_taken=True, program=7))
    wanted: Any = SimpleNamespace(number=number)
    found, program = decap.found_filter(host, "eth0", wanted)
    assert (found.state, program) == (state, None)
