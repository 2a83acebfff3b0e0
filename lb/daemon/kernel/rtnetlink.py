# SPDX-License-Identifier: Apache-2.0
"""What daemons use of pyroute2: questions about links, addresses, routes and neighbours. The rest stays on the disk.

Pyroute2's own ``__init__`` loads all there is of it, a database and a web server with it: that is 5 MiB, and half a
daemon's start. So its place is taken by an empty package of the same folder, before anything of it is imported; who
asks that for more gets the whole of it after all.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from typing import Any

_NAME = "pyroute2"


def _begin() -> None:
    spec = importlib.util.find_spec(_NAME) if _NAME not in sys.modules else None
    if spec is None:
        return
    package = importlib.util.module_from_spec(spec)  # nothing of it is executed

    def more(name: str) -> Any:
        if name.startswith("__") or importlib.util.find_spec(f"{_NAME}.{name}") is not None:
            raise AttributeError(name)  # a part is loaded by itself
        if sys.modules.get(_NAME) is package:
            del sys.modules[_NAME]
        return getattr(importlib.import_module(_NAME), name)

    package.__getattr__ = more  # type: ignore[method-assign]
    sys.modules[_NAME] = package


_begin()

from pyroute2.iproute import AsyncIPRoute, IPRoute  # noqa: E402
from pyroute2.netlink.exceptions import NetlinkDumpInterrupted, NetlinkError  # noqa: E402
from pyroute2.netlink.rtnl.marshal import MarshalRtnl  # noqa: E402

__all__ = ["AsyncIPRoute", "IPRoute", "MarshalRtnl", "NetlinkDumpInterrupted", "NetlinkError"]
