# SPDX-License-Identifier: Apache-2.0
"""``lb diff`` at a manager whose MUXes tell of live flows: what it prints, and that it asks for little."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from lb.config.toml import format_tables
from tests.lb.cli.test_with_manager import fine
from tests.manager.api.test_server import Client, api
from tests.manager.fleet import service


async def diff(client: Client, path: Path, *arguments: object) -> str:
    return await asyncio.to_thread(fine, "diff", "-f", path, *arguments, manager=client.url)


def flows_of(counts: dict[str, int]) -> dict[str, Any]:
    rows = [{"service": name.partition("-")[0], "name": name, "packets": 1, "flows": n} for name, n in counts.items()]
    return {"backends": rows}


async def test_live_flows_that_break_drain_and_move_are_told_apart(tmp_path: Path) -> None:
    async with api(tmp_path) as client:
        api_table = service("api", "203.0.113.12", hosts=(1, 2))
        tables = [service(hosts=(1, 2, 3)), service("old", "203.0.113.11", hosts=(1,)), api_table]
        await client.ask("POST", "/v1/apply", {"services": tables, "wait": 5})
        site = client.site
        client.controller.hub.status(site.muxes[0], flows_of({"web-1": 700, "web-2": 300, "web-3": 50, "old-1": 6}))
        client.controller.hub.status(site.muxes[1], flows_of({"web-1": 500, "web-2": 100, "web-3": 30}))
        web = service(hosts=(1, 2))
        web["backend"][0]["state"] = "drain"
        more = service("dns", "203.0.113.13", hosts=(3,), port=53)
        path = tmp_path / "services.toml"
        path.write_text(format_tables([web, api_table, more]))
        said = (await diff(client, path, "--prune")).splitlines()
        assert said == [
            "~ service web would be changed: backend web-3 removed, state of web-1 up → drain",
            said[1],
            "    flows  80 break: web-3 is removed; 1,200 stay with web-1, which drains",
            "+ service dns would be created: 203.0.113.13 tcp 53, 1 backend",
            "- service old would be deleted",
            "    slots  65,537 of 65,537 move, 100.0%",
            "    flows  6 break: the service is deleted",
            "= 1 unchanged",
            "1 changed, 1 created, 1 deleted; 86 live flows would break",
        ]
        told = json.loads(await diff(client, path, "--prune", "-o", "json"))
        assert told["flows"] == {"break": 86, "drain": 1200, "move": 0}
        assert 0.65 < told["services"][-1]["slots"]["share"] < 0.68, "two of three backends take no new flow"

        web = service(hosts=(1, 2, 3))
        web["backend"][0]["weight"] = 2
        path.write_text(format_tables([web]))
        told = json.loads(await diff(client, path, "-o", "json"))
        slots, flows = told["services"][0]["slots"], told["services"][0]["flows"]
        assert (flows["break"], flows["drain"]) == (0, 0)
        assert 0.1 < slots["share"] < 0.25
        assert 0 < flows["move"] < 480, "of web-2 and web-3; those of web-1 stay where they are"
        assert "flows would break" not in await diff(client, path)


async def test_a_mux_that_has_not_told_leaves_flows_unknown(tmp_path: Path) -> None:
    async with api(tmp_path) as client:
        await client.ask("POST", "/v1/apply", {"services": [service()], "wait": 5})
        client.controller.hub.status(client.site.muxes[0], flows_of({"web-1": 700}))
        path = tmp_path / "services.toml"
        path.write_text(format_tables([service(hosts=(2,))]))
        assert "an unknown number break: web-1 is removed" in await diff(client, path)
        client.controller.hub.status(client.site.muxes[1], flows_of({}))
        assert "700 break: web-1 is removed" in await diff(client, path)


async def test_one_service_among_many_is_all_that_is_asked_for(tmp_path: Path) -> None:
    async with api(tmp_path) as client:
        tables = [service(f"s{n}", f"203.0.{113 + n // 200}.{n % 200}") for n in range(400)]
        await client.ask("POST", "/v1/apply", {"services": tables})
        _, told = await client.ask("POST", "/v1/diff", {"services": [service("s7", "203.0.113.7", hosts=(1,))]})
        assert len(json.dumps(told)) < 2000
