# SPDX-License-Identifier: Apache-2.0
"""``lb bench``: how fast the data plane is on this machine."""

from __future__ import annotations

import click

from lb.cli.output import output_option, plural, print_json, size


@click.group("bench")
def command() -> None:
    """Measure the data plane on this machine."""


@command.command("pipeline")
@click.option("--flows", type=click.IntRange(1, 100_000_000), default=1_000_000, show_default=True, help="Live flows.")
@click.option(
    "--mode",
    type=click.Choice(["hit", "flood", "mix", "stateless", "miss"]),
    default="hit",
    show_default=True,
    help="hit: known flows; flood: new ones only; mix: both; stateless: Maglev alone; miss: no service.",
)
@click.option("--backends", type=click.IntRange(1, 4095), default=100, show_default=True, help="For each service.")
@click.option("--services", type=click.IntRange(1, 32767), default=1, show_default=True)
@click.option("--seconds", type=click.FloatRange(0.1, 3600), default=5.0, show_default=True, help="To measure for.")
@output_option
def pipeline(*, flows: int, mode: str, backends: int, services: int, seconds: float, as_json: bool) -> None:
    """Measure the in-memory data plane: nanoseconds per packet, and bytes per flow."""
    from lb.bench import bench_pipeline  # noqa: PLC0415  brings the extension

    result = bench_pipeline(flows=flows, mode=mode, backends=backends, services=services, seconds=seconds)
    if as_json:
        print_json(result.as_dict())
        return
    spread = f"{min(result.runs):.1f} to {max(result.runs):.1f}, {len(result.runs)} runs"
    for name, text in (
        ("mode", f"{mode}, {plural(flows, 'flow')}, {plural(services, 'service')} of {plural(backends, 'backend')}"),
        ("packet", f"{result.ns_per_packet:.1f} ns, median ({spread} of {result.packets_per_run:,} packets)"),
        ("rate", f"{1000 / result.ns_per_packet:.1f} million packets per second on one core"),
        ("flow", f"{result.bytes_per_flow:.1f} bytes, {size(int(result.bytes_per_flow * flows))} in all"),
        ("noise", f"{result.noise:.1%} spread of a fixed loop on this core"),
        ("cpu", result.cpu),
        ("commit", result.commit),
    ):
        click.echo(f"{name:<8}{text}")
