# SPDX-License-Identifier: Apache-2.0
"""A node is examined by a child that may do anything: nobody is held up, and every question is answered."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from lb.doctor.model.findings import fault, ok, unknown, warning
from lb.doctor.report import report
from lb.node.examiner import Examiner
from lb.node.messages import EXAMINATION_MAX, FINDINGS_MAX, Examination, ExamineQuestion, encode, parse_from_node


async def until(true: Callable[[], bool], what: str, seconds: float = 20.0) -> None:
    for _ in range(int(seconds / 0.01)):
        if true():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"waited {seconds:g} s for {what}")


FULL = fault("disk", "/var/lib/lb is full", "`df -h /var/lib/lb`")


@contextlib.asynccontextmanager
async def examiner(program: str, seconds: float = 20.0) -> AsyncIterator[tuple[Examiner, list[Examination]]]:
    said: list[Examination] = []
    made = Examiner((sys.executable, "-c", program), said.append, seconds=seconds, pause=0.01)
    running = asyncio.create_task(made.run())
    try:
        yield made, said
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await asyncio.sleep(0.05)  # the loop hears of pipes that have ended


def answer(program: str, seconds: float = 20.0) -> Examination:
    async def ask() -> Examination:
        async with examiner(program, seconds) as (made, said):
            made.ask(ExamineQuestion(7))
            await until(lambda: bool(said), "the answer")
            assert said[0].serial == 7
            return said[0]

    return asyncio.run(ask())


def test_what_the_child_finds_is_the_answer() -> None:
    text = json.dumps(report([FULL, ok("mtu", "fits"), unknown("vip_arp", "needs root")]))
    found = answer(f"print({text!r})")
    assert [(one.check, one.severity) for one in found.findings] == [("disk", "fault"), ("vip_arp", "unknown")]
    assert (found.fine, found.left_out, found.error) == (1, 0, None)


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("raise SystemExit('mux.toml: cannot be read')", "mux.toml: cannot be read"),
        ("raise SystemExit(3)", "ended with 3"),
        ("import os; os.abort()", "ended with -6"),
        ("pass", "said nothing that can be read"),
        ("print('[1]')", "ended with 0"),
        ("print('{}')", "findings"),
        ("while True: print('x' * 100000)", "did not end within"),
        ("import time; time.sleep(60)", "did not end within"),
    ],
)
def test_a_child_that_fails_in_whatever_way_is_an_answer_in_words(program: str, words: str) -> None:
    found = answer(program, 20.0 if "did not" not in words else 1.0)
    assert found.error is not None
    assert words in found.error
    assert found.findings == ()


def test_a_program_that_is_not_there_is_an_answer_in_words() -> None:
    async def ask() -> list[Examination]:
        said: list[Examination] = []
        made = Examiner(("/nowhere/at/all",), said.append)
        running = asyncio.create_task(made.run())
        made.ask(ExamineQuestion(1))
        await until(lambda: bool(said), "the answer")
        running.cancel()
        return said

    assert asyncio.run(ask())[0].error == "its examination cannot be started: no such file or directory"


def test_there_is_one_at_a_time_and_those_who_ask_meanwhile_share_the_next(tmp_path: Path) -> None:
    program = (
        "import os, pathlib, time\n"
        f"marks = pathlib.Path({str(tmp_path)!r})\n"
        "(marks / str(os.getpid())).touch()\n"
        "while not (marks / 'go').exists(): time.sleep(0.01)\n"
        """print('{"findings": [], "fine": 1, "left_out": 0}')\n"""
    )

    go = tmp_path / "go"

    def marks() -> int:
        return len(list(tmp_path.iterdir()))

    async def ask() -> list[Examination]:
        async with examiner(program) as (made, said):
            made.ask(ExamineQuestion(1))
            await until(lambda: marks() == 1, "the first child")
            for serial in range(2, 7):
                made.ask(ExamineQuestion(serial))
            await asyncio.sleep(0.05)
            assert marks() == 1
            go.touch()
            await until(lambda: len(said) == 6, "all answers")
            return said

    assert sorted(one.serial for one in asyncio.run(ask())) == [1, 2, 3, 4, 5, 6]
    assert marks() == 3  # two children, and the word to go


def test_a_report_is_bounded_and_the_gravest_come_first() -> None:
    many = [warning("disk", f"{number} " + "x" * 3000, "y" * 3000) for number in range(300)]
    told = report([*many, FULL, *[ok("mtu", "fits")] * 5])
    assert told["findings"][0]["check"] == "disk"
    assert told["findings"][0]["severity"] == "fault"
    assert len(told["findings"]) + told["left_out"] == 301
    assert told["fine"] == 5
    text = json.dumps({**told, "type": "examination", "serial": 1})
    assert len(text) <= EXAMINATION_MAX
    read = parse_from_node(text)
    assert isinstance(read, Examination)
    assert len(encode(read)) <= EXAMINATION_MAX
    small = report([FULL] * 300)
    assert (len(small["findings"]), small["left_out"]) == (FINDINGS_MAX, 300 - FINDINGS_MAX)
