# SPDX-License-Identifier: Apache-2.0
"""Maglev's table from the paper (Eisenbud et al., NSDI 2016, section 3.4, pseudocode 1), with weights.

The paper leaves weights to "the relative frequency of the backends' turns". Ours: in round r (from 1) a backend of
weight w has its turn if w/W * r reaches a whole number that it had not reached in round r - 1, W the largest weight.
"""

from __future__ import annotations

from collections.abc import Sequence

EMPTY = 0xFFFF


def permutation(offset: int, skip: int, size: int) -> list[int]:
    return [(offset + j * skip) % size for j in range(size)]


def populate(size: int, members: Sequence[tuple[int, int, int, int]]) -> list[int]:
    """``members``: offset, skip, weight, name of each. Names by slot."""
    members = [member for member in members if member[2] > 0]
    entry = [EMPTY] * size
    if not members:
        return entry
    heaviest = max(weight for _, _, weight, _ in members)
    permutations = [permutation(offset, skip, size) for offset, skip, _, _ in members]
    following = [0] * len(members)
    filled = 0
    turn = 0
    while True:
        turn += 1
        for i, (_, _, weight, name) in enumerate(members):
            if turn * weight // heaviest == (turn - 1) * weight // heaviest:
                continue
            while entry[permutations[i][following[i]]] != EMPTY:
                following[i] += 1
            entry[permutations[i][following[i]]] = name
            following[i] += 1
            filled += 1
            if filled == size:
                return entry
