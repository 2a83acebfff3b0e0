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


#: Section -> words of its command; "pipeline" has one command for each point.
PEERS: dict[str, list[str]] = {
    "peers": peers_words(part="http", rounds=5),
    "peers-offloads-off": peers_words(part="http", rounds=3, offloads="off", only=SHORT),
    "packets": peers_words(part="packets", rounds=5),
    "load": peers_words(part="load", rounds=3, only=SHORT),
}
SECTIONS = (*PEERS, "pipeline")


def run(words: list[str]) -> Answer:
    """The answer of a command; what it says meanwhile goes to the terminal."""
    done = subprocess.run([LB, "bench", *words, "--json"], stdout=subprocess.PIPE, text=True, check=False)
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


def section(name: str, say: Callable[[str], None]) -> None:
    """Measures it and keeps the answer."""
    answer = pipeline(say) if name == "pipeline" else run(PEERS[name])
    for part in (answer, *(point for points in answer.get("curves", {}).values() for point in points)):
        part.pop("commit", None)  # the page's own commit would make it wrong at once
    ANSWERS.mkdir(exist_ok=True)
    (ANSWERS / f"{name}.json").write_text(json.dumps(answer, indent=1) + "\n")


def answers() -> dict[str, Answer]:
    """By section, those that were measured."""
    return {name: json.loads(path.read_text()) for name in SECTIONS if (path := ANSWERS / f"{name}.json").exists()}
