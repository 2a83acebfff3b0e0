# SPDX-License-Identifier: Apache-2.0
"""How the daemons log: one line for each change of state, ``key=value``, on stderr.

:func:`configure` is called once by each daemon's ``main``; whoever logs asks :func:`get_logger`. Rates belong into
metrics, not here.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

from lb.daemon.log.writer import take_over_stderr

# structlog takes rich for its tracebacks wherever that is installed: 8 MiB in every daemon, and nobody draws one. A
# module that is None cannot be imported (the language reference, "The module cache"), which structlog can live with.
if "rich" not in sys.modules:
    sys.modules["rich"] = None  # type: ignore[assignment]
    import structlog

    del sys.modules["rich"]
else:
    import structlog


def configure(program: str) -> None:
    """Every line gets time, level and the program's name, and nobody who reads none of them holds the program up."""
    take_over_stderr()
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


def only_warnings() -> None:
    """For a program that has something else to say."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
    )


def get_logger() -> Any:
    """Logs as :func:`configure` says by the time that it is used."""
    return structlog.get_logger()
