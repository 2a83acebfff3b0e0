# SPDX-License-Identifier: Apache-2.0
"""How the daemons log: one line for each change of state, ``key=value``, on stderr.

Called once by each daemon's ``main``. Rates belong into metrics, not here.
"""

from __future__ import annotations

import sys

import structlog


def configure(program: str) -> None:
    """Every line gets time, level and the program's name."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "program", "event"]),
        ],
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
    )
    structlog.contextvars.bind_contextvars(program=program)
