# SPDX-License-Identifier: Apache-2.0
"""As much of a ``[[service]]`` table as can be read, without what is wrong in it. Pure.

For the store, whose tables another version may have written (:mod:`manager.store.load_desired`), and to tell of a wrong
table what else is wrong with it, beside others (:mod:`manager.desired.state`).
"""

from __future__ import annotations

import copy
import re
from typing import Any

from lb.config.load import parse_service_tables
from lb.errors import ConfigError
from lb.model import Service

#: Rounds of taking out what is wrong.
_ROUNDS = 8


def salvaged(table: object) -> tuple[Service | None, list[str]]:
    """A service, without what is wrong in it; None: nothing is left of it. And what is wrong, with its path."""
    wrong: list[str] = []
    left = copy.deepcopy(table)
    for _ in range(_ROUNDS):
        try:
            return parse_service_tables([left])[0], wrong
        except ConfigError as error:
            wrong += [line.removeprefix("service[0].") for line in error.lines]
            if not isinstance(left, dict):
                return None, wrong
            taken = [_take_out(left, path) for path, _ in error.mistakes]
            if not all(taken):
                return None, wrong
            if isinstance(left.get("backend"), list):
                left["backend"] = [row for row in left["backend"] if row is not None]
        except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
            return None, [*wrong, f"it cannot be read: {type(error).__name__}"]
    return None, wrong


def _take_out(table: dict[str, Any], path: str) -> bool:
    """What is at the path; where nothing is, something is missing: then what it is missing in. False: that is all."""
    steps: list[str | int] = [
        int(number) if number else name for name, number in re.findall(r"([A-Za-z_][\w-]*)|\[(\d+)\]", path)
    ][2:]  # "service", 0
    holders: list[tuple[Any, str | int]] = []
    here: Any = table
    for step in steps:
        holders.append((here, step))
        there = isinstance(here, dict) and step in here
        there = there or (isinstance(here, list) and isinstance(step, int) and step < len(here))
        if not there:
            holders.pop()
            break
        here = here[step]
    if not holders:
        return False
    holder, last = holders[-1]
    if isinstance(holder, list) and isinstance(last, int):
        holder[last] = None  # the others keep their places for as long as paths are followed
    else:
        del holder[last]
    return True
