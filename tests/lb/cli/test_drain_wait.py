# SPDX-License-Identifier: Apache-2.0
"""``lb drain --wait``: what it says while it waits, and how it ends. The manager is a list of answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from lb.cli import drain_wait
from lb.cli.terminal.times import lasting, parse_duration
from lb.errors import ControlError, RequestError, VipmuxError

Row = dict[str, Any]


class Manager:
    """Answers one after the other; the last one for ever."""

    def __init__(self, *answers: Any) -> None:
        self._answers = list(answers)

    def get(self, *_: str, **__: Any) -> Any:
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, VipmuxError):
            raise answer
        return answer


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def wait(timeout: float, *answers: Any) -> drain_wait.Wait:
    clock = Clock()
    manager: Any = Manager(*answers)
    return drain_wait.Wait(manager, timeout, drain_wait.ProgressLine(), clock, clock.sleep)


def backend(*left: tuple[str, int | None], empty: float | None = None, state: str = "drain") -> Row:
    rows = [
        {"mux": mux, "flows": flows, "why": None if flows is not None else "it has not counted them yet"}
        for mux, flows in left
    ]
    return {"service": "web", "name": "web-1", "state": state, "empty_since": empty, "left": rows}


def mux(forwarded: int, announced: int | None = 0, drain: str | None = "told to drain", **keys: Any) -> list[Row]:
    row = {"name": "mux1", "state": "ready", "drain": drain, "announced": announced, "forwarded": forwarded}
    return [{**row, "handover": None, **keys}]


def test_each_change_is_a_line_until_no_flow_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    answers = [
        backend(("mux1", None), ("mux2", 9)),
        backend(("mux1", 3), ("mux2", 9)),
        backend(("mux1", 3), ("mux2", 9)),
        backend(("mux1", 0), ("mux2", 1)),
        backend(("mux1", 0), ("mux2", 0)),
        backend(("mux1", 0), ("mux2", 0), empty=5.0),
    ]
    one = wait(60, *answers)
    row, sentence = drain_wait.backend(one, "web", "web-1")
    assert (row["flows"], row["done"], sentence) == (0, True, None)
    assert one.clock() == 5.0
    assert capsys.readouterr().out.splitlines() == [
        "web/web-1 drains: 9 flows left (mux2 9); mux1: it has not counted them yet",
        "web/web-1 drains: 12 flows left (mux1 3, mux2 9)",
        "web/web-1 drains: 1 flow left (mux2 1)",
        "web/web-1 drains: 0 flows left",
        "web/web-1 is drained: no flow is left",
    ]


def test_the_deadline_says_how_many_are_left_and_where() -> None:
    one = wait(600, backend(("mux1", 3), ("mux2", 9)))
    row, sentence = drain_wait.backend(one, "web", "web-1")
    assert sentence == "after 10 min web/web-1 drains: 12 flows left (mux1 3, mux2 9)"
    assert (row["flows"], row["done"], one.clock()) == (12, False, 600)


def test_a_manager_that_is_away_only_makes_it_longer(capsys: pytest.CaptureFixture[str]) -> None:
    away = ControlError("https://10.0.1.9:9740: connection refused")
    one = wait(60, backend(("mux1", 1)), away, away, backend(("mux1", 0), empty=1.0))
    assert drain_wait.backend(one, "web", "web-1")[1] is None
    assert "waiting for the manager: https://10.0.1.9:9740: connection refused" in capsys.readouterr().out
    _, sentence = drain_wait.backend(wait(2, away), "web", "web-1")
    assert sentence == "the manager did not answer within 2 s"


def test_a_drain_that_somebody_took_back_ends_the_wait() -> None:
    with pytest.raises(RequestError, match="web/web-1 does not drain any more"):
        drain_wait.backend(wait(60, backend(("mux1", 1)), backend(state="up")), "web", "web-1")
    with pytest.raises(RequestError, match="mux1 does not drain any more"):
        drain_wait.mux(wait(60, mux(7), mux(7, drain=None)), "mux1")


def test_a_mux_is_empty_once_it_is_withdrawn_and_its_packets_have_stopped(capsys: pytest.CaptureFixture[str]) -> None:
    told = "12 flows sent to 1 MUX"
    one = wait(60, mux(5, 2), mux(9, 2, handover=told), mux(12, handover=told), mux(15, handover=told))
    row, sentence = drain_wait.mux(one, "mux1")
    assert (sentence, row["done"], row["handover"]) == (None, True, told)
    assert one.clock() == 3 + drain_wait.QUIET
    assert capsys.readouterr().out.splitlines() == [
        "mux1 drains; 2 VIPs announced still",
        f"mux1 drains; 2 VIPs announced still; {told}",
        f"mux1 is withdrawn; packets still come; {told}",
        f"mux1 is withdrawn; no packet comes any more; {told}",
    ]


def on_host(*rows: tuple[str, str, int | None, float | None]) -> list[Row]:
    return [
        {"service": "web", "name": name, "state": state, "flows": flows, "empty_since": empty}
        for name, state, flows, empty in rows
    ]


def test_a_host_is_empty_once_all_of_its_backends_are(capsys: pytest.CaptureFixture[str]) -> None:
    answers = [
        on_host(("a", "drain", 12, None), ("b", "drain", 3, None), ("c", "up", 70, None)),
        on_host(("a", "drain", 7, None), ("b", "drain", 0, 5.0)),
        on_host(("a", "drain", 0, 9.0), ("b", "down", 0, None)),
    ]
    row, sentence = drain_wait.host(wait(60, *answers), "host1", ["web/a", "web/b"])
    assert (row, sentence) == ({"flows": 0, "left": [], "done": True}, None)
    assert capsys.readouterr().out.splitlines() == [
        "host host1 drains: 2 of 2 backends not empty yet (web/a 12, web/b 3)",
        "host host1 drains: 1 of 2 backends not empty yet (web/a 7)",
        "host host1 is drained: no flow is left",
    ]
    row, sentence = drain_wait.host(wait(60, answers[1]), "host1", ["web/a", "web/b"])
    assert sentence == "after 1 min host host1 drains: 1 of 2 backends not empty yet (web/a 7)"
    assert row == {"flows": 7, "left": [{"service": "web", "backend": "a", "flows": 7}], "done": False}
    with pytest.raises(RequestError, match="web/c does not drain any more"):
        drain_wait.host(wait(60, answers[0]), "host1", ["web/c"])


def growing() -> Iterator[list[Row]]:
    for forwarded in range(1000):
        yield mux(forwarded, announced=None)


def test_a_mux_that_still_gets_packets_or_must_stay_is_not_empty() -> None:
    _, sentence = drain_wait.mux(wait(30, *growing()), "mux1")
    assert sentence == "after 30 s mux1 drains; it has not reported yet what it announces"
    why = "waits: 1 of 2 MUXes would be left, withdraw_cap asks for 2"
    _, sentence = drain_wait.mux(wait(30, mux(5, 0, drain=why)), "mux1")
    assert sentence == f"after 30 s mux1 {why}"


def test_times_are_written_as_people_do() -> None:
    assert [parse_duration(text) for text in ("90", "90s", "1.5m", "2h")] == [90, 90, 90, 7200]
    assert [lasting(seconds) for seconds in (90, 600, 7200, 0.5)] == ["90 s", "10 min", "2 h", "0.5 s"]
    for text in ("", "s", "-1", "1d", "nan", "1e9", "\u0661"):
        with pytest.raises(RequestError):
            parse_duration(text)
