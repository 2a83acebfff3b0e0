# SPDX-License-Identifier: Apache-2.0
"""What an examination finds: a sentence that says what and where, and one that says what to do. Values only."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any


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
    cause: str | None = None  #: the one thing that is wrong, in snake_case; None: the check says it, or it is a symptom
    about: tuple[str, ...] = ()  #: what it explains, such as "backend web/web-1", "host 10.0.3.21", "vip 203.0.113.10"


def ok(check: str, what: str) -> Finding:
    return Finding(check, Severity.OK, what)


def warning(check: str, what: str, remedy: str, *, cause: str | None = None, about: Iterable[str] = ()) -> Finding:
    return Finding(check, Severity.WARNING, what, remedy, cause, tuple(about))


def fault(check: str, what: str, remedy: str, *, cause: str | None = None, about: Iterable[str] = ()) -> Finding:
    return Finding(check, Severity.FAULT, what, remedy, cause, tuple(about))


def unknown(check: str, what: str, remedy: str | None = None) -> Finding:
    return Finding(check, Severity.UNKNOWN, what, remedy)


def row(finding: Finding) -> dict[str, Any]:
    """As JSON has it; :func:`of_row` makes the finding of it again, on another machine."""
    return {
        "check": finding.check,
        "severity": finding.severity.value,
        "what": finding.what,
        "remedy": finding.remedy,
        "cause": finding.cause,
        "about": list(finding.about),
    }


def of_row(found: Mapping[str, Any]) -> Finding:
    """Of another version it may know more, or less. Raises ValueError or KeyError where it is no finding."""
    remedy, cause, about = found.get("remedy"), found.get("cause"), found.get("about")
    return Finding(
        str(found["check"]),
        Severity(found["severity"]),
        str(found["what"]),
        None if remedy is None else str(remedy),
        None if cause is None else str(cause),
        tuple(map(str, about)) if isinstance(about, list) else (),
    )


def explained(findings: Iterable[Finding]) -> list[Finding]:
    """Without the symptoms (and what is unseen) that causes explain: faults of which a cause is known for everything
    that they are about. Of a symptom that is explained in part the rest stays."""
    found = list(findings)
    known = {
        name for finding in found if finding.cause and finding.severity is Severity.FAULT for name in finding.about
    }
    return [kept for finding in found if (kept := _unexplained(finding, known)) is not None]


def _unexplained(finding: Finding, known: set[str]) -> Finding | None:
    if finding.cause or not finding.about or finding.severity is Severity.OK:
        return finding
    rest = tuple(name for name in finding.about if name not in known)
    return replace(finding, about=rest) if rest else None


def few(names: Sequence[object], most: int = 4) -> str:
    """The first of them, and how many more."""
    shown = ", ".join(map(str, names[:most]))
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")


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
