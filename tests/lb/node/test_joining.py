# SPDX-License-Identifier: Apache-2.0
"""A node that joins another authority forgets the terms of the one before."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from structlog.testing import capture_logs

from lb.errors import IoError
from lb.node.cache import Cached
from lb.node.client import NodeClient


class FullDisk:
    """Where the last good state cannot be written."""

    def forget_term(self) -> None:
        raise IoError("node: cannot be written: no space left on device")


def test_a_full_disk_does_not_have_a_node_refuse_the_orders_of_the_authority_that_it_joined() -> None:
    async def main() -> int:
        async def join(*_: object) -> None:
            pass

        given: Any = SimpleNamespace(join=join, common_name="mux:mux1")
        cache: Any = FullDisk()
        nothing: Any = None
        token: Any = SimpleNamespace()
        client = NodeClient("https://manager", given, cache, nothing, dict, token=token)
        client.begin_with(Cached(7, 3, "d", {}))
        await client.join()
        return client.term

    with capture_logs() as logs:
        assert asyncio.run(main()) == 0
    assert [line["event"] for line in logs if line["log_level"] == "error"] == ["state not kept"]
