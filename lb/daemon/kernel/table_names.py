# SPDX-License-Identifier: Apache-2.0
"""What the nftables tables of ours are called: a daemon makes its own, the doctor recognises all."""

from __future__ import annotations

import re

#: That of lb-agent.
AGENT_TABLE = "vipmux_agent"


def mux_table(mux: str) -> str:
    """The table of one MUX; several may run on one machine, on interfaces of their own."""
    name = "vipmux_" + re.sub(r"[^A-Za-z0-9_]", "_", mux)
    return name + "_mux" if name == AGENT_TABLE else name
