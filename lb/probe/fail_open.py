# SPDX-License-Identifier: Apache-2.0
"""When so many backends of a service seem dead that it is rather the probes that are wrong. Pure.

Shared by the manager (:mod:`manager.plan.verdicts`) and by a MUX whose manager is away
(:mod:`lb.mux.probes.own_verdicts`): who takes backends out asks here first. If it is too few, all of them stay in
service, dead or not ("panic").
"""

from __future__ import annotations

from collections.abc import Sequence

#: Of a service that says nothing else: as long as half of its weight, or half of its backends, are healthy, the others
#: are taken out.
PANIC = 0.5


def too_few(healthy: Sequence[int], of: Sequence[int], panic: float | None) -> bool:
    """Whether the healthy of these backends are less than the share ``panic`` (0 to 1; None: the default) of them.

    Both sequences are of weights, none of them 0. Number counts as much as weight: where one heavy backend of two dies,
    the light one is half of what there was, and has to do.
    """
    share = PANIC if panic is None else panic
    return sum(healthy) < share * sum(of) and len(healthy) < share * len(of)
