# SPDX-License-Identifier: Apache-2.0
"""What ``make bench`` measures: sections, each a few commands of ``lb bench`` and one file of their answers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
ANSWERS = ROOT / "docs" / "benchmarks"
LB = Path(sys.executable).parent / "lb"

Answer = dict[str, Any]
#: No command takes so long, seconds; the longest, of all ways beside peers, some five minutes.
LONGEST = 1200

#: Of the sections, with what is compared in the shorter ones.
SHORT = ("direct", "nft-dnat", "haproxy", "vipmux-xdp", "vipmux-packet", "vipmux-tun")

#: Curves of the pipeline: its name, and of each point the options that make it.
CURVES: dict[str, list[dict[str, Any]]] = {
    "flows": [
        {"mode": mode, "family": family, "flows": flows, "services": 64, "backends": 100}
        for mode, family in (("hit", 4), ("hit", 6), ("flood", 4), ("stateless", 4))
        for flows in (1_000, 10_000, 100_000, 1_000_000)
    ],
    "services": [
        {"mode": mode, "family": 4, "flows": 100_000, "services": services, "backends": 10}
        for mode in ("hit", "flood", "stateless")
        for services in (1, 64, 1_000, 10_000)
    ],
    "backends": [
        {"mode": mode, "family": 4, "flows": 100_000, "services": 64, "backends": backends}
        for mode in ("hit", "flood", "stateless")
        for backends in (1, 10, 100, 1_000)
    ],
}


def command(*words: object) -> str:
    """As one would type it."""
    return " ".join(["lb", "bench", *map(str, words)])


def peers_words(*, part: str, rounds: int, offloads: str = "on", only: tuple[str, ...] = ()) -> list[str]:
    chosen = [word for name in only for word in ("--only", name)]
    # Three processes share two cores: at ordinary priority it is luck which of them waits.
    realtime = ["--realtime"] if part == "http" else []
    return ["peers", "--part", part, "--rounds", str(rounds), "--offloads", offloads, *realtime, *chosen]


#: Section -> words of its command; "overload" and "pipeline" have several.
PEERS: dict[str, list[str]] = {
    "peers": peers_words(part="http", rounds=5),
    "peers-offloads-off": peers_words(part="http", rounds=3, offloads="off", only=SHORT),
    "packets": peers_words(part="packets", rounds=5),
    "load": peers_words(part="load", rounds=3, only=SHORT),
}
#: Of overload, one command for each I/O mode.
MODES = ("packet", "xdp", "tun")
SECTIONS = (*PEERS, "overload", "pipeline")


def run(words: list[str]) -> Answer:
    """The answer of a command; what it says meanwhile goes to the terminal."""
    argv: list[str | Path] = [LB, "bench", *words, "--json"]
    try:
        done = subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=False, timeout=LONGEST)
    except subprocess.TimeoutExpired:
        raise SystemExit(f"{command(*words)} did not end within {LONGEST} s") from None
    if not done.stdout:
        raise SystemExit(f"{command(*words)} failed with {done.returncode}")
    answer: Answer = json.loads(done.stdout)
    return answer


def pipeline_words(point: dict[str, Any]) -> list[str]:
    return [
        "pipeline",
        "--seconds",
        "1",
        *(str(word) for name, value in point.items() for word in (f"--{name}", value)),
    ]


def pipeline(say: Callable[[str], None]) -> Answer:
    """All curves."""
    curves: dict[str, list[Answer]] = {}
    for name, points in CURVES.items():
        curves[name] = []
        for point in points:
            say(command(*pipeline_words(point)))
            curves[name].append(run(pipeline_words(point)))
    return {"curves": curves}


def overload_words(io: str) -> list[str]:
    return ["overload", "--io", io, "--seconds", "8"]


def overload(say: Callable[[str], None]) -> Answer:
    """Of every I/O mode."""
    modes: dict[str, Answer] = {}
    for io in MODES:
        say(command(*overload_words(io)))
        modes[io] = run(overload_words(io))
    return {"modes": modes}


def section(name: str, say: Callable[[str], None]) -> None:
    """Measures it and keeps the answer."""
    several = {"pipeline": pipeline, "overload": overload}.get(name)
    answer = several(say) if several is not None else run(PEERS[name])
    points = [point for points in answer.get("curves", {}).values() for point in points]
    for part in (answer, *points, *answer.get("modes", {}).values()):
        part.pop("commit", None)  # the page's own commit would make it wrong at once
    ANSWERS.mkdir(exist_ok=True)
    (ANSWERS / f"{name}.json").write_text(json.dumps(answer, indent=1) + "\n")


def answers() -> dict[str, Answer]:
    """By section, those that were measured."""
    return {name: json.loads(path.read_text()) for name in SECTIONS if (path := ANSWERS / f"{name}.json").exists()}
