# SPDX-License-Identifier: Apache-2.0
"""Rows to try things with."""

from __future__ import annotations

from typing import Any

from lb.rows.backend import BackendRow
from lb.rows.service import ServiceRow


def service(**keys: Any) -> ServiceRow:
    """One that is up, or as the keys say."""
    known: dict[str, Any] = {
        "name": "web",
        "vip": "203.0.113.10",
        "protocol": "tcp",
        "port": "80",
        "state": "up",
        "backends": 2,
        "healthy": 2,
        "announced_by": ["mux1"],
        "wanted_by": ["mux1"],
    }
    return ServiceRow(**known | keys)


def backend(**keys: Any) -> BackendRow:
    """One that is up, or as the keys say."""
    known: dict[str, Any] = {
        "service": "web",
        "vip": "203.0.113.10",
        "protocol": "tcp",
        "service_port": "80",
        "name": "web-1",
        "address": "10.0.3.1",
        "port": "80",
        "weight": 1,
        "slow_start": None,
        "state": "up",
        "takes_flows": True,
        "healthy": True,
        "agent": "host1",
        "since": 0.0,
        "empty_since": None,
        "reason": "3 of 3 checks passed",
    }
    return BackendRow(**known | keys)
