# SPDX-License-Identifier: Apache-2.0
"""``lb bench``: how fast the data plane is on this machine."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any, TypeVar

import click

from lb.cli.terminal.output import console, example, output_option, plural, print_json, table
from lb.tables.values import size

F = TypeVar("F", bound=Callable[..., Any])


# ---- options of more than one benchmark ----


def _io_option(function: F) -> F:
    return click.option(
        "--io",
        type=click.Choice(["xdp", "packet", "tun"]),
        default="packet",
        show_default=True,
        help="How packets come in and go out.",
    )(function)


def _workers(words: str) -> Callable[[F], F]:
    return click.option("--workers", type=click.IntRange(1, 64), default=1, show_default=True, help=words)


def _seconds(default: float, least: float, words: str = "To measure for.") -> Callable[[F], F]:
    kind = click.FloatRange(least, 3600)
    return click.option("--seconds", type=kind, default=default, show_default=True, help=words)


def _many(name: str, default: int, most: int, words: str) -> Callable[[F], F]:
    return click.option(name, type=click.IntRange(1, most), default=default, show_default=True, help=words)


_live_flows = _many("--flows", 1_000_000, 100_000_000, "Live flows.")
_table_flows = _many("--flows", 1_000_000, 100_000_000, "[mux] flows.")
_live = _many("--live", 10_000, 1_000_000, "That stay open.")


# ---- the benchmarks ----


@click.group("bench", epilog=example("lb bench pipeline --mode flood"))
def command() -> None:
    """Measure the data plane on this machine."""


@command.command("pipeline", epilog=example("lb bench pipeline --mode flood --flows 100000 --seconds 2"))
@_live_flows
@click.option(
    "--mode",
    type=click.Choice(["hit", "flood", "mix", "stateless", "miss"]),
    default="hit",
    show_default=True,
    help="hit: known flows; flood: new ones only; mix: both; stateless: Maglev alone; miss: no service.",
)
@click.option("--backends", type=click.IntRange(1, 4095), default=100, show_default=True, help="For each service.")
@click.option("--services", type=click.IntRange(1, 32767), default=1, show_default=True)
@click.option("--family", type=click.Choice(["4", "6"]), default="4", show_default=True, help="Of IP.")
@click.option(
    "--ring",
    type=click.IntRange(1, 1 << 20),
    default=65536,
    show_default=True,
    help="Frames that packets lie in, rounded up to 2,048: few are near in caches, many come from memory.",
)
@_workers("Threads at once, each on a CPU and with a flow table of its own.")
@_seconds(5.0, 0.1)
@output_option
def pipeline(
    *,
    flows: int,
    mode: str,
    backends: int,
    services: int,
    family: str,
    ring: int,
    workers: int,
    seconds: float,
    as_json: bool,
) -> None:
    """Measure the in-memory data plane: nanoseconds per packet, and bytes per flow.

    The floor is what memory alone demands of the same packets, measured in the same run: one line of each header
    read, one of the flow table, an outer header written.
    """
    from lb.bench.pipeline import bench_pipeline  # noqa: PLC0415  brings the extension
    from lb.dataplane import BENCH_SEGMENT  # noqa: PLC0415

    result = bench_pipeline(
        flows=flows,
        mode=mode,
        backends=backends,
        services=services,
        seconds=seconds,
        family=int(family),
        ring=-(-ring // BENCH_SEGMENT) * BENCH_SEGMENT,
        workers=workers,
    )
    if as_json:
        print_json(result.as_dict())
        return
    spread = f"{min(result.runs):.1f} to {max(result.runs):.1f}, {len(result.runs)} runs"
    for name, text in (
        (
            "mode",
            f"{mode}, IPv{family}, {plural(flows, 'flow')}, {plural(services, 'service')}"
            f" of {plural(backends, 'backend')}",
        ),
        ("packet", f"{result.ns_per_packet:.1f} ns, median ({spread} of {result.packets_per_run:,} packets)"),
        (
            "floor",
            f"{result.floor_ns:.1f} ns of it is what memory alone demands, with a ring of {result.ring:,} frames",
        ),
        ("rate", f"{result.mpps:.1f} million packets per second on {plural(workers, 'core')}"),
        ("flow", f"{result.bytes_per_flow:.1f} bytes, {size(int(result.bytes_per_flow * flows))} in all"),
        ("census", f"{result.census_ms:.1f} ms to count the flows of every backend, beside the packets"),
        ("noise", f"{result.noise:.1%} spread of a fixed loop on this core"),
        ("cpu", result.cpu),
        ("commit", result.commit),
    ):
        click.echo(f"{name:<8}{text}")


@command.command("wear", epilog=example("lb bench wear --hours 0.1 --flows 100000"))
@click.option("--connections-per-second", type=click.IntRange(10, 1_000_000), default=5000, show_default=True)
@click.option("--hours", type=click.FloatRange(0.001, 1000), default=1.0, show_default=True, help="Of simulated time.")
@_table_flows
@_live
@output_option
def wear(*, connections_per_second: int, hours: float, flows: int, live: int, as_json: bool) -> int:
    """Open and close connections for hours of simulated time, then drain half of the backends.

    Exits 1 if a packet found no place in the flow table, or a connection that stays open was forgotten or broken.
    """
    from lb.bench.wear import bench_wear, wear_lines  # noqa: PLC0415  brings the extension

    result = bench_wear(
        connections_per_second=connections_per_second,
        hours=hours,
        flows=flows,
        live=live,
        say=lambda line: click.echo(line, err=True),
    )
    if as_json:
        print_json(result.as_dict())
    else:
        click.echo("\n".join(wear_lines(result)))
    return 0 if result.sound else 1


@command.command("acks", epilog=example("lb bench acks --apart-ms 300"))
@click.option("--rate", type=click.IntRange(100, 100_000_000), default=1_000_000, show_default=True, help="Packets/s.")
@click.option("--seconds", type=click.FloatRange(0.1, 3600), default=10.0, show_default=True, help="Of simulated time.")
@click.option(
    "--apart-ms", type=click.FloatRange(0, 10_000), default=0.0, show_default=True, help="Of the two packets."
)
@_table_flows
@_live
@click.option("--new", type=click.IntRange(1, 1_000_000), default=5000, show_default=True, help="A minute later.")
@output_option
def acks(*, rate: int, seconds: float, apart_ms: float, flows: int, live: int, new: int, as_json: bool) -> int:
    """Flood the flow table with two ACKs for each tuple, in simulated time, beside live connections.

    Exits 1 if a live connection was forgotten or broken, or one opened a minute later was not remembered.
    """
    from lb.bench.wear import acks_lines, bench_acks  # noqa: PLC0415  brings the extension

    result = bench_acks(rate=rate, seconds=seconds, apart_ms=apart_ms, flows=flows, live=live, new=new)
    if as_json:
        print_json(result.as_dict())
    else:
        click.echo("\n".join(acks_lines(result)))
    return 0 if result.sound else 1


@command.command("rollouts", epilog=example("lb bench rollouts --rollouts 500 --services 10"))
@click.option("--rollouts", type=click.IntRange(10, 1_000_000), default=10_000, show_default=True)
@click.option("--services", type=click.IntRange(1, 10_000), default=1, show_default=True)
@click.option("--backends", type=click.IntRange(1, 1000), default=5, show_default=True, help="For each service.")
@click.option("--seconds", type=click.FloatRange(0.1, 3600), default=2.0, show_default=True, help="Between two.")
@output_option
def rollouts(*, rollouts: int, services: int, backends: int, seconds: float, as_json: bool) -> int:
    """Replace all backends by ones with fresh names, again and again, in simulated time, beside a flow table.

    Exits 1 if a flow of a gone backend was taken for one of a new backend, or numbers were not lent again.
    """
    from lb.bench.wear import bench_rollouts, rollouts_lines  # noqa: PLC0415  brings the extension

    result = bench_rollouts(rollouts=rollouts, services=services, backends=backends, seconds=seconds)
    if as_json:
        print_json(result.as_dict())
    else:
        click.echo("\n".join(rollouts_lines(result)))
    return 0 if result.sound else 1


@command.command("io", epilog=example("lb bench io --io packet --seconds 3"))
@_io_option
@_workers("Of the MUX; one has the generator's core where there are too few.")
@_seconds(10.0, 1)
@output_option
def packet_io(*, io: str, workers: int, seconds: float, as_json: bool) -> None:
    """Measure a real lb-mux between network namespaces: packets per second, CPU and loss. Needs root."""
    from lb.bench.packet_rate import FRAME_BYTES, bench_io  # noqa: PLC0415  brings the extension
    from lb.model import IoMode  # noqa: PLC0415

    result = bench_io(io=IoMode(io), seconds=seconds, workers=workers)
    if as_json:
        print_json(result.as_dict())
        return
    offered = statistics.median(run.offered for run in result.details)
    busy = statistics.median(run.busy for run in result.details)
    paced = statistics.median(run.paced_mpps for run in result.details)
    spread = f"{min(result.runs):.3f} to {max(result.runs):.3f}, {len(result.runs)} runs"
    for name, text in (
        ("mode", f"{result.io}: {result.mode}"),
        ("rate", f"{result.mpps:.3f} million packets per second, median ({spread}), of {FRAME_BYTES + 4} bytes"),
        ("offered", f"{offered:.3f} million packets per second by {result.source}"),
        ("core", f"{busy:.0%} of it used by the MUX, with {plural(workers, 'worker')}"),
        ("packet", f"{result.ns_per_packet:.0f} ns of CPU, with what the sink's side of the link takes"),
        ("loss", f"{result.loss:.4%} at {paced:.3f} million packets per second"),
        ("steal", f"{result.steal:.1%} of the two cores went to others on this host"),
        ("cpu", result.cpu),
        ("commit", result.commit),
    ):
        click.echo(f"{name:<8}{text}")


@command.command("latency", epilog=example("lb bench latency --io tun"))
@_io_option
@_seconds(10.0, 1)
@output_option
def latency(*, io: str, seconds: float, as_json: bool) -> None:
    """Measure what a MUX adds to a lone request, beside the same path without it. Needs root."""
    from lb.bench.latency import bench_latency  # noqa: PLC0415
    from lb.model import IoMode  # noqa: PLC0415

    result = bench_latency(io=IoMode(io), seconds=seconds)
    if as_json:
        print_json(result.as_dict())
        return
    rows = [
        {
            "request": request,
            "direct": f"{direct50:.0f} / {direct99:.0f}",
            "through the VIP": f"{vip50:.0f} / {vip99:.0f}",
            "added": f"{vip50 - direct50:.0f} / {vip99 - direct99:.0f}",
        }
        for request, direct50, direct99, vip50, vip99 in (
            ("kept connection", result.direct_p50_us, result.direct_p99_us, result.vip_p50_us, result.vip_p99_us),
            (
                "new connection",
                *(result.direct_new_p50_us, result.direct_new_p99_us),
                *(result.vip_new_p50_us, result.vip_new_p99_us),
            ),
        )
    ]
    columns = ("request", "direct", "through the VIP", "added")
    console().print(table(columns, rows, right=frozenset(columns[1:])))
    click.echo(f"microseconds, 50th / 99th percentile, medians of {len(result.runs)} rounds; {result.noise:.0%} spread")
    click.echo(f"{result.io}: {result.mode}; decapsulation {result.decap}; {result.steal:.1%} steal")
    click.echo(f"{result.cpu}, commit {result.commit}")


@command.command("overload", epilog=example("lb bench overload --io tun --seconds 5"))
@_io_option
@click.option(
    "--times",
    type=click.FloatRange(0.1, 100),
    multiple=True,
    default=(1.0, 2.0, 4.0),
    show_default=True,
    help="Of what it can take, a step each; may be repeated.",
)
@_seconds(8.0, 1, "Of each step.")
@output_option
def overload(*, io: str, times: tuple[float, ...], seconds: float, as_json: bool) -> int:
    """Measure what a MUX loses when more comes than it can take, where, and what it does not lose. Needs root.

    One VIP is flooded while a client asks another, and a router (BIRD, where it is installed) has a BGP session.
    Exits 1 if the session fell.
    """
    from lb.bench.overload import bench_overload, lines  # noqa: PLC0415  brings the extension
    from lb.model import IoMode  # noqa: PLC0415

    result = bench_overload(io=IoMode(io), seconds=seconds, factors=times)
    if as_json:
        print_json(result.as_dict())
    else:
        click.echo("\n".join(lines(result)))
    return 0 if result.sound else 1


@command.command("peers", epilog=example("lb bench peers --only direct --only nft-dnat --only vipmux-packet"))
@click.option("--only", multiple=True, metavar="WAY", help="Not all ways, but this one; may be repeated.")
@click.option(
    "--part",
    "parts",
    type=click.Choice(["http", "packets", "load"]),
    multiple=True,
    default=("http", "packets"),
    show_default=True,
    help="May be repeated; load: latency with 1 to 256 connections.",
)
@click.option("--rounds", type=click.IntRange(1, 1000), default=5, show_default=True)
@_seconds(1.0, 0.1, "For each measurement in a round; a way takes some seven in each.")
@click.option(
    "--offloads", type=click.Choice(["on", "off"]), default="on", show_default=True, help="Of the links, for HTTP."
)
@click.option(
    "--realtime",
    is_flag=True,
    help="For a busy machine: all of http and load at real-time priority; all else has to wait.",
)
@output_option
def peers(
    *,
    only: tuple[str, ...],
    parts: tuple[str, ...],
    rounds: int,
    seconds: float,
    offloads: str,
    realtime: bool,
    as_json: bool,
) -> int:
    """Measure vipmux beside kernel forwarding, nftables, IPVS, HAProxy and nginx on one topology. Needs root.

    Ways are direct, kernel, nft-stateless, nft-dnat, ipvs, haproxy, nginx, and vipmux-IO for each I/O mode. What cannot
    be measured here is named with its reason. Exits 1 if a request failed.
    """
    from lb.bench.compare.comparison import bench_peers, lines  # noqa: PLC0415  brings the extension

    result = bench_peers(
        only=only,
        parts=parts,
        rounds=rounds,
        seconds=seconds,
        offloads=offloads == "on",
        realtime=realtime,
        say=lambda line: click.echo(line, err=True),
    )
    if as_json:
        print_json(result.as_dict())
    else:
        click.echo("\n".join(lines(result)))
    return 0 if result.sound else 1


@command.command("control", epilog=example("lb bench control --services 1000 --agents 20 --changes 30 --churn 5"))
@click.option("--services", type=click.IntRange(100, 32767), default=10_000, show_default=True)
@click.option("--backends", type=click.IntRange(1, 100), default=6, show_default=True, help="For each service.")
@click.option("--muxes", type=click.IntRange(1, 8), default=3, show_default=True, help="Real ones.")
@click.option("--agents", type=click.IntRange(2, 250), default=100, show_default=True, help="Simulated ones.")
@click.option("--changes", type=click.IntRange(3, 10_000), default=200, show_default=True, help="Of one service each.")
@click.option("--churn", type=click.FloatRange(0, 3600), default=30.0, show_default=True, help="Seconds of verdicts.")
@click.option("--rate", type=click.FloatRange(1, 1000), default=100.0, show_default=True, help="Verdicts per second.")
@click.option(
    "--rollouts",
    type=click.IntRange(0, 1_000_000),
    default=0,
    help="Measure memory over so many applies with fresh names of backends, such as 10000.",
)
@click.option(
    "--verdicts-during-apply",
    "during_apply",
    type=click.IntRange(0, 32767),
    default=0,
    help="Measure verdicts while so many services change at once, such as 5000.",
)
@click.option(
    "--verdicts-during-join",
    "during_join",
    type=click.IntRange(0, 5000),
    default=0,
    help="Measure verdicts while so many agents more join at once, such as 1000.",
)
@output_option
def control(
    *,
    services: int,
    backends: int,
    muxes: int,
    agents: int,
    changes: int,
    churn: float,
    rate: float,
    rollouts: int,
    during_apply: int,
    during_join: int,
    as_json: bool,
) -> int:
    """Measure the control plane: a manager, real MUXes and simulated agents in namespaces of their own. Needs root.

    Exits 1 if a router, a MUX or an agent did not have what it should in the end.
    """
    from lb.bench.control.control_plane import bench_control, lines  # noqa: PLC0415
    from lb.cli.ask.manager import Manager  # noqa: PLC0415

    if agents <= backends:
        raise click.UsageError(
            f"--agents {agents}: must be more than --backends, for a backend more; {backends + 1} do"
        )
    result = bench_control(
        Manager,
        services=services,
        backends=backends,
        muxes=muxes,
        agents=agents,
        changes=changes,
        seconds=churn,
        rate=rate,
        rollouts=rollouts,
        during_apply=during_apply,
        during_join=during_join,
        say=lambda line: click.echo(line, err=True),
    )
    if as_json:
        print_json(result.as_dict())
    else:
        click.echo("\n".join(lines(result)))
    return 0 if result.sound else 1


@command.command("all", epilog=example("lb bench all --seconds 2"))
@_live_flows
@_seconds(5.0, 1, "For each measurement.")
@output_option
def everything(*, flows: int, seconds: float, as_json: bool) -> None:
    """Measure every mode of pipeline and I/O, one after the other, into one table."""
    from lb.bench.packet_rate import bench_io  # noqa: PLC0415
    from lb.bench.pipeline import bench_pipeline  # noqa: PLC0415  brings the extension
    from lb.errors import FeatureError, PrivilegeError  # noqa: PLC0415
    from lb.model import IoMode  # noqa: PLC0415

    answers: dict[str, dict[str, Any]] = {}
    for mode in ("hit", "flood", "mix", "stateless", "miss"):
        done = bench_pipeline(flows=flows, mode=mode, backends=100, services=1, seconds=seconds)
        answers[f"pipeline {mode}"] = done.as_dict()
    refused = ""
    for io in (IoMode.PACKET, IoMode.TUN):
        try:
            answers[f"io {io.value}"] = bench_io(io=io, seconds=seconds).as_dict()
        except (FeatureError, PrivilegeError) as error:
            refused = str(error)
    if as_json:
        print_json(answers)
    else:
        rows = [_row(name, answer) for name, answer in answers.items()]
        columns = ("measurement", "ns_per_packet", "Mpps", "spread", "noise", "core", "steal", "loss")
        console().print(table(columns, rows, right=frozenset(columns[1:])))
        answer = answers["pipeline hit"]
        runs = len(answer["runs"])
        click.echo(f"{answer['cpu']}, commit {answer['commit']}, {plural(flows, 'flow')}; medians of {runs} runs")
    if refused:
        click.echo(f"packet I/O was not measured: {refused}", err=True)


def _row(name: str, answer: dict[str, Any]) -> dict[str, str]:
    """Of the table. Spread: of the runs; noise: of a fixed loop beside them; core: the part that lb-mux got of its."""
    ns, runs = answer["ns_per_packet"], answer["runs"]
    return {
        "measurement": name,
        "ns_per_packet": f"{ns:.1f}" if ns < 1000 else f"{ns:.0f}",
        "Mpps": f"{answer.get('mpps', 1000 / ns):.2f}",
        "spread": f"{(max(runs) - min(runs)) / statistics.median(runs):.0%}",
        "noise": "-" if "mpps" in answer else f"{answer['noise']:.0%}",
        "core": f"{statistics.median(run['busy'] for run in answer['details']):.0%}" if "details" in answer else "-",
        "steal": f"{answer['steal']:.1%}" if "steal" in answer else "-",
        "loss": f"{answer['loss']:.3%}" if "loss" in answer else "-",
    }
