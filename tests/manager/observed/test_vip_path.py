# SPDX-License-Identifier: Apache-2.0
"""Whether clients get through to VIPs: what is asked, what counts as news, and that real connections tell."""

from __future__ import annotations

import asyncio
import errno
import socket
from pathlib import Path

import pytest

from lb.config.load import load_manager
from lb.errors import ConfigError
from manager.api.metrics import ManagerCollector
from manager.observed import vip_path
from manager.observed.vip_path import FALL, NotConnectedError, Paths, VipTarget, connect, targets
from tests.manager.fake_nodes import Site, running, until
from tests.manager.fleet import Fleet, service

TARGET = VipTarget("203.0.113.10", 80)


class Told:
    def __init__(self) -> None:
        self.said: list[tuple[str, str | None]] = []
        self.paths = Paths(1.0, dict, self._say)
        self.paths.keep({"v": TARGET})

    def _say(self, vip: str, why: str | None) -> None:
        self.said.append((vip, why))

    def hear(self, *whys: str | None) -> None:
        for why in whys:
            self.paths.heard("v", TARGET, why)


def test_some_failures_in_a_row_are_news_and_one_success_ends_them() -> None:
    told = Told()
    told.hear(None, *["no answer"] * (FALL - 1), None, *["no answer"] * (FALL - 1))
    assert (told.said, told.paths.reached) == ([], {"v": True})
    told.hear("no answer", "no answer")
    why = "connections from the manager to 203.0.113.10:80 fail: no answer"
    assert (told.said, told.paths.reached) == ([("v", why)], {"v": False})
    told.hear(None, None)
    assert told.said == [("v", why), ("v", None)]


def test_what_is_not_asked_any_more_or_elsewhere_is_not_known() -> None:
    told = Told()
    told.hear(*["no answer"] * FALL)
    told.paths.keep({"v": VipTarget("203.0.113.10", 81)})
    assert (told.said[-1], told.paths.reached) == (("v", None), {})
    told.hear(*["no answer"] * FALL)
    assert told.paths.reached == {}, "answers to the question of before"
    told.paths.keep({})
    assert len(told.said) == 2


def test_asked_are_tcp_ports_of_announced_vips_behind_which_somebody_is_well() -> None:
    fleet = Fleet()
    fleet.apply(
        service(),
        service("dns", "203.0.113.11", protocol="udp"),
        service("any", "203.0.113.12", port=0),
        service("net", "203.0.113.128/25"),
        service("idle", "203.0.113.13", hosts=()),
        service("both", "203.0.113.14", protocol="udp", port=53),
        service("tls", "203.0.113.14", port=443),
    )
    fleet.settle()
    assert targets(fleet.last, fleet.last.vips) == {
        "203.0.113.10/32": VipTarget("203.0.113.10", 80),
        "203.0.113.14/32": VipTarget("203.0.113.14", 443),
    }
    assert targets(fleet.last, {"203.0.113.14/32"}).keys() == {"203.0.113.14/32"}


async def test_real_connections_come_through_or_say_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
        assert await connect(VipTarget("127.0.0.1", port)) is None, "a refusal came through as well"
        listening.listen()
        assert await connect(VipTarget("127.0.0.1", port)) is None

    async def fails(number: int) -> None:
        async def opened(*_: object) -> None:
            raise OSError(number, "No route to host")

        monkeypatch.setattr(asyncio, "open_connection", opened)

    await fails(errno.EHOSTUNREACH)
    assert await connect(TARGET) == "no route to host"
    await fails(errno.EMFILE)
    with pytest.raises(NotConnectedError):
        await connect(TARGET)

    async def silent(*_: object) -> None:
        await asyncio.sleep(60)

    monkeypatch.setattr(asyncio, "open_connection", silent)
    monkeypatch.setattr(vip_path, "PATIENCE", 0.05)
    assert await connect(TARGET) == "no answer within 0.05 s"


async def test_a_manager_whose_file_asks_for_it_looks_itself(tmp_path: Path) -> None:
    answers: dict[str, str | None] = {}

    async def asked(target: VipTarget) -> str | None:
        return answers.get(target.address)

    async with running(tmp_path, path_interval=1.0) as controller:
        assert controller.paths is not None
        controller.paths.interval, controller.paths.connect = 0.02, asked
        Site().connect(controller)
        await controller.writer.apply([service()], "operator:ada")
        paths = controller.paths
        await until(lambda: paths.reached == {"203.0.113.10/32": True}, "it to be reached", 10)
        answers["203.0.113.10"] = "no answer within 2 s"
        await until(lambda: "203.0.113.10/32" in controller.announced.unreached, "the loss to be seen", 10)
        (metric,) = [it for it in ManagerCollector(controller).collect() if it.name == "lb_vip_reached"]
        assert [sample.value for sample in metric.samples] == [0]
        answers.clear()
        await until(lambda: not controller.announced.unreached, "the return to be seen", 10)


def test_its_interval_stands_in_the_managers_file(tmp_path: Path) -> None:
    file = tmp_path / "manager.toml"
    text = '[manager]\nname = "m1"\nvip_prefixes = ["203.0.113.0/24"]\npath_interval = 5.0\n'
    file.write_text(text)
    assert load_manager(file).path_interval == 5.0
    file.write_text(text.replace("5.0", "0.5"))
    with pytest.raises(ConfigError, match="path_interval: must be 1 to 3600 s"):
        load_manager(file)
