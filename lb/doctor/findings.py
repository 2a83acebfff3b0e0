# SPDX-License-Identifier: Apache-2.0
"""What an examination finds: a sentence that says what and where, and one that says what to do. Values only."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass


class Severity(enum.Enum):
    """In the order in which findings are shown."""

    FAULT = "fault"  #: clients see it, or will; exit code 1
    WARNING = "warning"  #: it works, but not as well or not for long
    UNKNOWN = "unknown"  #: could not be looked at
    OK = "ok"


@dataclass(frozen=True, slots=True)
class Finding:
    """One."""

    check: str  #: stable name in snake_case; docs/doctor.md has a line for each
    severity: Severity
    what: str  #: with the exact file, setting, interface or value
    remedy: str | None = None  #: what to do, with the exact command where there is one; None: nothing


def ok(check: str, what: str) -> Finding:
    return Finding(check, Severity.OK, what)


def warning(check: str, what: str, remedy: str) -> Finding:
    return Finding(check, Severity.WARNING, what, remedy)


def fault(check: str, what: str, remedy: str) -> Finding:
    return Finding(check, Severity.FAULT, what, remedy)


def unknown(check: str, what: str, remedy: str | None = None) -> Finding:
    return Finding(check, Severity.UNKNOWN, what, remedy)


def ordered(findings: Iterable[Finding]) -> list[Finding]:
    """The worst first, otherwise as they came."""
    rank = {severity: number for number, severity in enumerate(Severity)}
    return sorted(findings, key=lambda finding: rank[finding.severity])


def count(findings: Iterable[Finding], severity: Severity) -> int:
    return sum(finding.severity is severity for finding in findings)


def verdict(findings: list[Finding]) -> str:
    """The first line: ``2 faults, 1 warning, 23 checks fine``."""
    faults, warnings, unseen, fine = (count(findings, severity) for severity in Severity)
    words = [
        _many(faults, "fault"),
        _many(warnings, "warning") if warnings else "",
        f"{unseen} not looked at" if unseen else "",
        f"{_many(fine, 'check')} fine",
    ]
    return ", ".join(word for word in words if word)


def _many(number: int, noun: str) -> str:
    return f"{number or 'no'} {noun}{'' if number == 1 else 's'}"
