# SPDX-License-Identifier: Apache-2.0
"""The plots of docs/benchmarks.md: answers in, SVG out.

They stand on light and on dark pages: no background, text of a grey that both carry. Lines are named where they end,
points where they are; vipmux has the one strong colour.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tests.bench.measure import ROOT, Answer

IMAGES = ROOT / "docs" / "images"
INK, QUIET, OURS, OTHERS = "#768390", "#9aa4ae", "#e0641c", "#4a90c4"
#: Lines of one plot, where more than two are told apart.
LINES = {
    "vipmux-packet": "#e0641c",
    "vipmux-xdp": "#b8860b",
    "vipmux-tun": "#d4699b",
    "direct": "#768390",
    "nft-dnat": "#4a90c4",
    "haproxy": "#3a9d6e",
    "hit": "#e0641c",
    "flood": "#4a90c4",
    "stateless": "#3a9d6e",
    "hit, IPv6": "#b8860b",
}
NAMES = {
    "direct": "direct, nothing between",
    "kernel": "kernel forwarding",
    "nft-stateless": "nft, stateless",
    "nft-dnat": "nft DNAT",
    "ipvs": "IPVS",
    "haproxy": "HAProxy TCP",
    "nginx": "nginx stream",
    "vipmux-xdp": "vipmux xdp",
    "vipmux-packet": "vipmux packet",
    "vipmux-tun": "vipmux tun",
}

STYLE: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.size": 10.5,
    "svg.fonttype": "none",
    "svg.hashsalt": "vipmux",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": QUIET,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.minor.bottom": False,
    "savefig.transparent": True,
}


def colour(name: str) -> str:
    return OURS if name.startswith("vipmux") else OTHERS


def draw(answers: dict[str, Answer]) -> list[str]:
    """Every plot that there are answers for; returns their names."""
    drawn = []
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        for section, name, plot in PLOTS:
            if section in answers:
                save(plot(answers), name)
                drawn.append(name)
    return drawn


def save(figure: Figure, name: str) -> None:
    IMAGES.mkdir(exist_ok=True)
    path = IMAGES / f"bench-{name}.svg"
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None, "Creator": None})
    plt.close(figure)
    path.write_text("\n".join(line.rstrip() for line in path.read_text().splitlines()) + "\n")


# ---- rows: one way each ----


def rows(axes: Axes, ways: Sequence[str], *, named: bool) -> None:
    axes.set_yticks(range(len(ways)), [NAMES.get(way, way) for way in ways] if named else [""] * len(ways))
    for label, way in zip(axes.get_yticklabels(), ways, strict=True):
        label.set_color(colour(way) if way.startswith("vipmux") else INK)
    axes.set_ylim(len(ways) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", color=QUIET, alpha=0.25, linewidth=0.8)
    axes.set_axisbelow(True)


def bars(axes: Axes, measured: Answer, key: str, text: Callable[[float], str], scale: float = 1.0) -> None:
    """The median as a bar, the spread of the rounds as a thin line over it, the median in figures beside."""
    ways = list(measured)
    most = max(way["figures"][key]["max"] for way in measured.values() if key in way["figures"]) * scale
    for at, way in enumerate(ways):
        figure = measured[way]["figures"].get(key)
        if figure is None:
            axes.text(0, at, " not told by a process", va="center", color=QUIET, fontsize=9)
            continue
        median, least, greatest = (figure[part] * scale for part in ("median", "min", "max"))
        axes.barh(at, median, height=0.58, color=colour(way), alpha=0.85, linewidth=0)
        axes.plot([least, greatest], [at, at], color=INK, linewidth=1.2, solid_capstyle="butt")
        axes.text(max(greatest, median) + most * 0.02, at, text(median), va="center", fontsize=9.5)
    axes.set_xlim(0, most * 1.16)


def dumbbells(axes: Axes, measured: Answer, low: str, high: str) -> None:
    """From the median to the 99th percentile."""
    most = max(way["figures"][high]["median"] for way in measured.values())
    for at, (name, way) in enumerate(measured.items()):
        p50, p99 = way["figures"][low]["median"], way["figures"][high]["median"]
        axes.plot([p50, p99], [at, at], color=colour(name), linewidth=2.2, alpha=0.5, solid_capstyle="round")
        axes.plot([p50], [at], "o", color=colour(name), markersize=7)
        axes.plot([p99], [at], "|", color=colour(name), markersize=11, markeredgewidth=2)
        axes.text(p99 + most * 0.03, at, f"{p50:.0f} / {p99:.0f}", va="center", fontsize=9.5)
    axes.set_xlim(0, most * 1.25)


def panels(count: int, ways: int, width: float = 9.6) -> tuple[Figure, list[Axes]]:
    figure, axes = plt.subplots(1, count, figsize=(width, 0.36 * ways + 1.3), squeeze=False, sharey=False)
    figure.subplots_adjust(wspace=0.08)
    return figure, list(axes[0])


def peers(answers: dict[str, Answer]) -> Figure:
    measured = answers["peers"]["http"]
    figure, (left, right) = panels(2, len(measured))
    rows(left, list(measured), named=True)
    dumbbells(left, measured, "keep_p50_us", "keep_p99_us")
    left.set_title("A lone request, kept connection")
    left.set_xlabel("microseconds: ● median, | 99th percentile")
    rows(right, list(measured), named=False)
    bars(right, measured, "wrk_per_second", lambda value: f"{value:.0f}", 1e-3)
    right.set_title("32 connections")
    right.set_xlabel("thousand requests per second")
    return figure


def cpu(answers: dict[str, Answer]) -> Figure:
    measured = {name: way for name, way in answers["peers"]["http"].items() if "cpu_ms" in way["figures"]}
    figure, (axes,) = panels(1, len(measured), 5.6)
    rows(axes, list(measured), named=True)
    bars(axes, measured, "cpu_ms", lambda value: f"{value:.1f}")
    axes.set_title("CPU of the load balancer's process")
    axes.set_xlabel("milliseconds for 1,000 requests")
    return figure


def transfers(answers: dict[str, Answer]) -> Figure:
    measured = answers["peers"]["http"]
    figure, axes = panels(3, len(measured), 11.4)
    for at, (key, title) in enumerate(
        (
            ("get_30mb_mbit", "Download, 30 MB"),
            ("put_30mb_mbit", "Upload, 30 MB"),
            ("put_30mb_window_mbit", "Upload, 64 KB of window"),
        )
    ):
        rows(axes[at], list(measured), named=at == 0)
        bars(axes[at], measured, key, lambda value: f"{value:.1f}", 1e-3)
        axes[at].set_title(title)
        axes[at].set_xlabel("Gbit/s")
    return figure


def packets(answers: dict[str, Answer]) -> Figure:
    measured = answers["packets"]["packets"]
    figure, (left, right) = panels(2, len(measured))
    rows(left, list(measured), named=True)
    bars(left, measured, "mpps", lambda value: f"{value:.2f}")
    left.set_title("Packets of 60 bytes")
    left.set_xlabel("million per second, one core")
    rows(right, list(measured), named=False)
    bars(right, measured, "ns_per_packet", lambda value: f"{value:,.0f}")
    right.set_title("CPU for each")
    right.set_xlabel("nanoseconds, sink's receive side included")
    return figure


def overload(answers: dict[str, Answer]) -> Figure:
    """Of what was offered: forwarded, shed, lost in the ring, and before the MUX."""
    steps = [(io, step) for io, one in answers["overload"]["modes"].items() for step in one["steps"]]
    figure, (axes,) = panels(1, len(steps), 8.4)
    names = [f"{io}, {step['factor']:g} x" for io, step in steps]
    rows(axes, names, named=True)
    for label in axes.get_yticklabels():
        label.set_color(INK)
    left = [0.0] * len(steps)
    for what, words, shade in (
        ("forwarded", "forwarded", OURS),
        ("shed", "shed by choice", "#b8860b"),
        ("ring", "lost in the ring", OTHERS),
    ):
        widths = [step[what] / 1e6 for _, step in steps]
        axes.barh(range(len(steps)), widths, left=left, height=0.58, color=shade, alpha=0.85, linewidth=0, label=words)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    most = max(left)
    for at, (_, step) in enumerate(steps):
        slowest = max(step["kept_slowest_ms"], step["new_slowest_ms"])
        axes.text(left[at] + most * 0.02, at, f"{slowest:,.0f} ms", va="center", fontsize=9.5)
    axes.set_xlim(0, most * 1.16)
    axes.set_title("More than a MUX can take; beside it the slowest answer of another VIP", pad=26)
    axes.set_xlabel("million packets per second that came to the MUX")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=3, frameon=False, fontsize=9.5, borderaxespad=0.2)
    return figure


# ---- curves ----


def name_ends(axes: Axes, ends: Sequence[tuple[str, float, float, str]], gap: float) -> None:
    """Names beside the last points, moved apart where they would touch; ``gap``: a part of the axis."""
    to_display, window = axes.transData.transform, axes.get_window_extent()
    step = gap * window.height
    ends = sorted(ends, key=lambda end: end[2])
    heights: list[float] = []
    for _, x, y, _ in ends:
        at = to_display((x, y))[1]
        heights.append(max(at, heights[-1] + step) if heights else at)
    top = window.y1
    for at in reversed(range(len(heights))):  # none above the plot: what is below gives way
        heights[at] = top = min(heights[at], top)
        top -= step
    for (text, x, y, shade), height in zip(ends, heights, strict=True):
        moved = axes.transData.inverted().transform((to_display((x, y))[0], height))[1]
        axes.annotate(
            text,
            (x, moved),
            xytext=(7, 0),
            textcoords="offset points",
            va="center",
            color=shade,
            fontsize=9.5,
            annotation_clip=False,
        )


def load(answers: dict[str, Answer]) -> Figure:
    measured = answers["load"]["load"]
    figure, axes = plt.subplots(1, 2, figsize=(10.8, 3.9))
    figure.subplots_adjust(wspace=0.5)
    for panel, part, title in ((axes[0], "p50", "Median"), (axes[1], "p99", "99th percentile")):
        ends = []
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        for name, way in measured.items():
            counts = sorted(int(key.split("_")[1]) for key in way["figures"] if key.endswith(f"_{part}_us"))
            values = [way["figures"][f"load_{count}_{part}_us"]["median"] for count in counts]
            shade = LINES.get(name, INK)
            panel.plot(counts, values, "o-", color=shade, markersize=4, linewidth=2 if "vipmux" in name else 1.4)
            ends.append((NAMES.get(name, name).partition(",")[0], counts[-1], values[-1], shade))
        panel.set_xticks(counts, [str(count) for count in counts])
        panel.set_ylim(10, 100_000)
        panel.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        panel.set_title(f"{title} of a request by load")
        panel.set_xlabel("connections with a request under way")
        if part == "p50":
            panel.set_ylabel("microseconds")
        panel.grid(axis="y", color=QUIET, alpha=0.25)
        name_ends(panel, ends, 0.06)
    return figure


def pipeline(answers: dict[str, Answer]) -> Figure:
    curves = answers["pipeline"]["curves"]
    figure, axes = plt.subplots(1, 3, figsize=(11.4, 3.6), sharey=True)
    figure.subplots_adjust(wspace=0.34)
    most = 0.0
    for panel, (what, points) in zip(axes, curves.items(), strict=True):
        panel.set_xscale("log")
        lines: dict[str, list[tuple[int, float]]] = {}
        for point in points:
            name = point["mode"] + (", IPv6" if point["family"] == 6 else "")
            lines.setdefault(name, []).append((point[what], point["ns_per_packet"]))
            most = max(most, point["ns_per_packet"])
        panel.set_ylim(0, most * 1.1)
        for name, line in lines.items():
            panel.plot(*zip(*line, strict=True), "o-", color=LINES[name], markersize=4, linewidth=1.8)
        panel.xaxis.set_major_formatter(lambda value, _: short(value))
        panel.minorticks_off()
        panel.set_title(f"by {what}")
        panel.set_xlabel(what + (" for each service" if what == "backends" else ""))
        panel.grid(axis="y", color=QUIET, alpha=0.25)
        panel.ends = [(name, line[-1][0], line[-1][1], LINES[name]) for name, line in lines.items()]
    axes[0].set_ylabel("nanoseconds per packet")
    for panel in axes:
        panel.set_ylim(0, most * 1.1)
        name_ends(panel, panel.ends, 0.07)
    return figure


def short(value: float) -> str:
    """``10 k``."""
    for size, unit in ((1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


#: The section it needs, its name, and who draws it.
PLOTS: tuple[tuple[str, str, Callable[[dict[str, Answer]], Figure]], ...] = (
    ("peers", "peers", peers),
    ("peers", "cpu", cpu),
    ("peers", "transfers", transfers),
    ("packets", "packets", packets),
    ("load", "load", load),
    ("overload", "overload", overload),
    ("pipeline", "pipeline", pipeline),
)
