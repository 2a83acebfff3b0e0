# SPDX-License-Identifier: Apache-2.0
"""Whether the run before this one came to a clean end: a file in the state directory that is there while a daemon runs.

Used by ``lb-mux`` and ``lb-agent``, under the lock of their state directory.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lb.daemon.log import get_logger

log = get_logger()


class RunMarker:
    """The file; a disk that cannot be written is no reason not to run, and is said by those who have more to write."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.found = False  #: it was there when this run began

    def begin(self) -> None:
        """The run begins; says so if the one before ended uncleanly: killed, crashed, or the machine's power went."""
        self.found = self._path.exists()
        if self.found:
            log.warning("previous run ended uncleanly", marker=str(self._path), then="what it left behind is repaired")
        else:
            self._try(self._path.touch)

    def end(self) -> None:
        """The run ends as it should."""
        self._try(lambda: self._path.unlink(missing_ok=True))

    def _try(self, act: Callable[[], None]) -> None:
        try:
            act()
        except OSError as error:
            log.warning("marker not written", file=str(self._path), reason=(error.strerror or str(error)).lower())
