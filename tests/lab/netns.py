# SPDX-License-Identifier: Apache-2.0
"""Network namespaces for the labs: those of :mod:`lb.bench.testbed.netns`, and the labs' name for what goes wrong."""

from lb.bench.testbed.netns import NETNS, batch, inside, ip, pids, reap, sysctl, unique_prefix
from lb.errors import IoError as LabError

__all__ = ["NETNS", "LabError", "batch", "inside", "ip", "pids", "reap", "sysctl", "unique_prefix"]
