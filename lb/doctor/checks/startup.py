# SPDX-License-Identifier: Apache-2.0
"""What a daemon says at its start of the machine that it finds: the cheap part of ``lb doctor``, in the log.

Only what would not keep it from working, and so from starting, is here: the rest ends the start with a sentence.
"""

from __future__ import annotations

from lb.daemon.log import get_logger
from lb.doctor.checks.machine import check_disk, check_interface
from lb.doctor.collect import this_machine
from lb.doctor.model.facts import Role
from lb.doctor.model.findings import Finding, Severity

log = get_logger()


def look_around(role: Role, state_dir: str, *, interface: str | None = None, mtu: int = 0) -> list[Finding]:
    """What is wrong with disk, MTU and offloads."""
    found = list(check_disk(this_machine.disk(state_dir)))
    if interface is not None:
        found += check_interface(this_machine.link(interface), mtu, role.value, "its file")
    return [finding for finding in found if finding.severity in (Severity.FAULT, Severity.WARNING)]


def say(role: Role, state_dir: str, *, interface: str | None = None, mtu: int = 0) -> None:
    """A line of the log for each."""
    for finding in look_around(role, state_dir, interface=interface, mtu=mtu):
        log.warning(
            "not as it should be",
            check=finding.check,
            reason=finding.what,
            remedy=finding.remedy,
            more="lb doctor",
        )
