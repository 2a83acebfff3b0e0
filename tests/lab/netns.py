# SPDX-License-Identifier: Apache-2.0
"""Network namespaces for the labs: those of :mod:`lb.netns`, and the labs' name for what goes wrong."""

from lb.errors import IoError as LabError
from lb.netns import NETNS, batch, inside, ip, pids, reap, sysctl, unique_prefix

__all__ = ["NETNS", "LabError", "batch", "inside", "ip", "pids", "reap", "sysctl", "unique_prefix"]
