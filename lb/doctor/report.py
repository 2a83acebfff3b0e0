# SPDX-License-Identifier: Apache-2.0
"""A node's examination for its manager: ``python -m lb.doctor.report FILE [URL]`` prints what the fleet's doctor gets.

Started by :mod:`lb.node.examiner`, as a child of the daemon and with what the daemon is allowed, no more: what only
root may see is told as ``unknown``. A process of its own, so that nothing of it can hold up who forwards packets, and
so that it can be ended. Prints one JSON object, ``{"findings": [...], "fine": 12, "left_out": 0}``, within the bounds
of :mod:`lb.node.messages`; exit code 0. Where it cannot look, one sentence on the error output, and exit code 2.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lb.doctor.model.findings import Finding

#: What an examination may take: seconds of a core, and bytes of memory.
CPU_MAX, MEMORY_MAX = 20, 2 << 30
_PR_SET_PDEATHSIG = 1


def main(arguments: Sequence[str]) -> int:
    parent = os.getppid()
    _bounded()
    if os.getppid() != parent:
        return 2  # the daemon ended before its end could be ours
    from lb.doctor.examine import machine  # noqa: PLC0415  after the bounds
    from lb.errors import VipmuxError  # noqa: PLC0415

    try:
        found = machine(arguments[0], manager=arguments[1] if len(arguments) > 1 else None)
    except VipmuxError as error:
        print(error, file=sys.stderr)
        return 2
    json.dump(report(found), sys.stdout, ensure_ascii=False)
    return 0


def report(found: Sequence[Finding]) -> dict[str, Any]:
    """The gravest first, as many as may be told."""
    from lb.doctor.model.findings import Severity, explained, ordered, row  # noqa: PLC0415
    from lb.node.messages import ABOUT_MAX, EXAMINATION_MAX, FINDING_MAX, FINDINGS_MAX, LEFT_OUT_KEY_MAX  # noqa: PLC0415

    known = explained(found)
    wrong = [finding for finding in ordered(known) if finding.severity is not Severity.OK]
    told: list[dict[str, Any]] = []
    room = EXAMINATION_MAX - 1000  # for what is around them
    for finding in wrong[:FINDINGS_MAX]:
        plain = row(finding)
        plain["what"] = finding.what[:FINDING_MAX]
        plain["remedy"] = finding.remedy[:FINDING_MAX] if finding.remedy else None
        plain["about"] = [name for name in finding.about if len(name) <= LEFT_OUT_KEY_MAX][:ABOUT_MAX]
        room -= len(json.dumps(plain)) + 1
        if room < 0:
            break
        told.append(plain)
    return {"findings": told, "fine": len(known) - len(wrong), "left_out": len(wrong) - len(told)}


def _bounded() -> None:
    """Nobody's heir: not of the daemon's priority, and not without the daemon."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    os.setpriority(os.PRIO_PROCESS, 0, max(0, os.getpriority(os.PRIO_PROCESS, 0)))
    for limit, most in ((resource.RLIMIT_CPU, CPU_MAX), (resource.RLIMIT_AS, MEMORY_MAX), (resource.RLIMIT_CORE, 0)):
        _, hard = resource.getrlimit(limit)
        resource.setrlimit(limit, (most if hard < 0 else min(most, hard), hard))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
