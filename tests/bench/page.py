# SPDX-License-Identifier: Apache-2.0
"""The text of docs/benchmarks.md: answers in, Markdown out."""

from __future__ import annotations

from collections.abc import Sequence

from lb.bench.compare.comparison import TABLES, Figure, cell
from tests.bench.measure import CURVES, PEERS, ROOT, Answer, command, overload_words, pipeline_words
from tests.bench.plots import NAMES

PAGE = ROOT / "docs" / "benchmarks.md"

HEAD = """\
# Benchmarks

`sudo make bench` (about fifteen minutes on two cores) makes this page, its plots and the
[answers](benchmarks/) that both are drawn from. `sudo make bench ONLY=peers` measures one section again:
{sections}. [Performance](performance.md) explains what each figure means and how it is taken.

A figure is the median of several rounds, in which all ways took turns. The smallest and the largest are in brackets, or
a thin line in a plot. *Steal* is the time that the hypervisor took from the cores meanwhile. *Noise* is how much slower
the slowest run of a fixed loop was than the median run. Where either is large, ignore differences within the spread.
"""

TITLES = {
    "peers": "Beside peers",
    "peers-offloads-off": "Beside peers, offloads of the links off",
    "packets": "Packets per second",
    "load": "Latency by load",
    "overload": "More than it can take",
    "pipeline": "The pipeline alone",
}
TEXTS = {
    "peers": "One client, one router, one host with nginx. Each way has a load balancer of its own; all are up.",
    "peers-offloads-off": "The links neither checksum, segment nor merge: frames are as on a wire.",
    "packets": "Frames of 60 bytes come from a generator on one core. The load balancer has the other, except where"
    "\nthe kernel forwards: it does so on the generator's core.",
    "load": "wrk sends requests over kept connections, one at a time on each.",
    "overload": "A generator floods one VIP at the highest rate that the MUX can forward, at twice and at four times"
    "\nthat. Meanwhile a client asks another VIP, and a router has a BGP session with the MUX (hold time 3 s). The MUX"
    "\nand its BGP have one core. The generator and the links' receive side share the other, so the flood may fall"
    "\nshort of its rate. *Ring*: lost before a worker saw them. *Shed*: dropped by choice, from the flooded VIP.",
    "pipeline": "Packets in memory, on one core, with no system call and no interface. `hit`: known flows. `flood`:"
    "\neach packet is the SYN of a new flow. `stateless`: no flow table. Curves over services and backends have"
    "\n100,000 flows.",
}
PLOTS = {
    "peers": (
        ("peers", "Latency of a lone request, and requests per second, by way"),
        ("cpu", "CPU for 1,000 requests, by way"),
        ("transfers", "Downloads and uploads, by way"),
    ),
    "packets": (("packets", "Packets per second and CPU for each, by way"),),
    "overload": (
        ("overload", "What becomes of packets at one, two and four times of what a MUX can take, by I/O mode"),
    ),
    "load": (("load", "Median and 99th percentile of a request by number of connections"),),
    "pipeline": (("pipeline", "Nanoseconds per packet by flows, services and backends"),),
}


def write(answers: dict[str, Answer]) -> None:
    PAGE.write_text(text(answers))


def text(answers: dict[str, Answer]) -> str:
    parts = [HEAD.format(sections=", ".join(f"`{name}`" for name in TITLES))]
    for name, title in TITLES.items():
        if name not in answers:
            parts.append(f"## {title}\n\nNot measured yet: `sudo make bench ONLY={name}`.\n")
            continue
        several = {"pipeline": _pipeline, "overload": _overload}.get(name)
        body = several(answers[name]) if several is not None else _peers(name, answers[name])
        plots = "\n\n".join(f"![{words}](images/bench-{plot}.svg)" for plot, words in PLOTS.get(name, ()))
        parts.append("\n\n".join(filter(None, (f"## {title}", TEXTS[name], plots, body))) + "\n")
    return "\n".join(parts)


def _peers(name: str, answer: Answer) -> str:
    said = [f"```\nsudo {command(*PEERS[name])}\n```"]
    for title, group, columns in TABLES:
        measured = answer.get(group)
        if not measured:
            continue
        lines = [[title, *(heading for heading, _, _ in columns), "steal", "noise"]]
        for way, of in measured.items():
            figures = {key: Figure(**value) for key, value in of["figures"].items()}
            cells = [cell(figures.get(figure), digits) for _, figure, digits in columns]
            lines.append([NAMES.get(way, way), *cells, f"{of['steal']:.1%}", f"{of['noise']:.0%}"])
        said.append(markdown(lines))
    left_out = [f"- {way}: {reason}." for way, reason in answer["left_out"].items()]
    if left_out:
        said.append("Left out:\n\n" + "\n".join(left_out))
    others = (
        f"load average {answer['load_average']} before they began" if "load_average" in answer else "others at work"
    )
    said.append(f"{answer['cpu']}, {answer['kernel']}, {answer['date']}; {answer['rounds']} rounds, {others}.")
    # What whoever measured has to say of it by hand; it goes with the answer when that is measured anew.
    if "remark" in answer:
        said.append(answer["remark"])
    return "\n\n".join(said)


def _overload(answer: Answer) -> str:
    modes: dict[str, Answer] = answer["modes"]
    said = ["```\n" + "\n".join(f"sudo {command(*overload_words(io))}" for io in modes) + "\n```"]
    rates = [["thousand packets per second", "offered", "came", "forwarded", "ring", "shed", "first lost"]]
    rest = [
        ["beside it", "answers, median ms", "slowest", "on a new connection", "failed", "control's CPU", "BGP session"]
    ]
    for io, measured in modes.items():
        for step in measured["steps"]:
            name = f"{io}, {step['factor']:g} times"
            figures = (step[key] / 1e3 for key in ("offered", "arrived", "forwarded", "ring", "shed"))
            rates.append([name, *(f"{figure:,.0f}" for figure in figures), ", ".join(step["first"]) or "-"])
            asked = (step["kept_p50_ms"], step["kept_slowest_ms"], step["new_slowest_ms"])
            failed = f"{step['failed']} of {step['requests'] + step['failed']}"
            rest.append(
                [
                    name,
                    *(f"{ms:,.0f}" if ms >= 10 else f"{ms:.2f}" for ms in asked),
                    failed,
                    f"{step['control_cpu']:.1%}",
                    step["session"],
                ]
            )
    first, *_ = modes.values()
    takes = ", ".join(f"{io} {measured['capacity'] / 1e3:,.0f}" for io, measured in modes.items())
    said += [markdown(rates), f"The most that they forward, in thousand packets per second: {takes}.", markdown(rest)]
    steal = max(step["steal"] for measured in modes.values() for step in measured["steps"])
    taken = f"steps of {first['seconds']:g} s; {first['router']}; steal up to {steal:.1%}"
    said.append(f"{first['cpu']}, {first['kernel']}; {taken}.")
    if "remark" in answer:
        said.append(answer["remark"])
    return "\n\n".join(said)


def _pipeline(answer: Answer) -> str:
    said = [f"```\n{command(*pipeline_words(CURVES['flows'][0]))}\n```"]
    for what, points in answer["curves"].items():
        values = sorted({point[what] for point in points})
        by_name: dict[str, dict[int, Answer]] = {}
        for point in points:
            by_name.setdefault(f"{point['mode']}, IPv{point['family']}", {})[point[what]] = point
        lines = [[f"ns per packet by {what}", *(f"{value:,}" for value in values)]]
        for name, found in by_name.items():
            cells = [
                f"{found[v]['ns_per_packet']:.0f} [{min(found[v]['runs']):.0f}-{max(found[v]['runs']):.0f}]"
                for v in values
            ]
            lines.append([name, *cells])
        said.append(markdown(lines))
    every = [point for points in answer["curves"].values() for point in points]
    noise = max(point["noise"] for point in every)
    said.append(
        f"{every[0]['cpu']}; 5 runs a point; a fixed loop beside them was up to {noise:.0%} slower than its median."
    )
    return "\n\n".join(said)


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """A table; figures to the right."""
    head, *body = lines
    rule = ["---", *("---:" for _ in head[1:])]
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, rule, *body))
