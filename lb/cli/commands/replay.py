# SPDX-License-Identifier: Apache-2.0
"""``lb replay``: the real data plane over a capture."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Mapping
from typing import IO, TYPE_CHECKING, Any, BinaryIO, cast

import click

from lb.cli.terminal.output import example, plural
from lb.errors import PcapError, RequestError

if TYPE_CHECKING:
    from lb.dataplane.replay.run import ReplayTotals, Switch
    from lb.model import MuxConfig


@click.command(
    "replay", epilog=example("lb replay --config mux.toml --in seen.pcap --out sent.pcap --report why.jsonl")
)
@click.option("--config", required=True, type=click.Path(), metavar="FILE", help="The MUX's file.")
@click.option(
    "--in", "source", required=True, type=click.Path(), metavar="IN.pcap", help="Capture to read: pcap or pcapng."
)
@click.option(
    "--out", "target", required=True, type=click.Path(), metavar="OUT.pcap", help="Where to write every packet sent."
)
@click.option(
    "--report",
    "report_file",
    type=click.Path(),
    metavar="R.jsonl",
    help="Where to write one JSON object per packet read.",
)
@click.option(
    "--switch",
    "switch_texts",
    multiple=True,
    metavar="N=FILE2",
    help="Publish FILE2's services before packet N (from 0); [mux] must be the same. May be repeated.",
)
def command(*, config: str, source: str, target: str, report_file: str | None, switch_texts: tuple[str, ...]) -> None:
    """Run the data plane over a capture, as fast as it goes; the clock is the capture's.

    The report has one object per packet: n, verdict (forward, pass, drop, reply), reason, service, backend,
    flow (new, known, untracked), and out, the places of what was sent for it in OUT.pcap.
    """
    from lb.config.load import load_mux  # noqa: PLC0415

    loaded = load_mux(config, offline=True)
    switches = [_switch(text, loaded) for text in switch_texts]
    _distinct(source, target, report_file)
    totals = _play(loaded, switches, source, target, report_file)
    for line in _summary(totals, switches):
        click.echo(line)


def _switch(text: str, loaded: MuxConfig) -> Switch:
    from lb.config.load import load_mux  # noqa: PLC0415
    from lb.dataplane.replay.run import make_switch  # noqa: PLC0415

    match = re.fullmatch(r"([0-9]{1,12})=(.+)", text, re.DOTALL)
    if match is None:
        raise RequestError(f'--switch: must be N=FILE2 such as 100=after.toml, not "{text}"')
    return make_switch(int(match[1]), load_mux(match[2], offline=True), loaded.mux)


def _distinct(source: str, target: str, report_file: str | None) -> None:
    """Writing to what is being read, or twice to one file, would end badly."""
    paths = [path for path in (source, target, report_file) if path is not None and not path.startswith("/dev/")]
    real = [os.path.realpath(path) for path in paths]
    if len(set(real)) < len(real):
        raise RequestError("--in, --out and --report must be different files")


def _play(loaded: MuxConfig, switches: list[Switch], source: str, target: str, report_file: str | None) -> ReplayTotals:
    from lb.dataplane.replay.pcap import Capture, PcapWriter  # noqa: PLC0415
    from lb.dataplane.replay.plane import NativePlane  # noqa: PLC0415  brings the extension
    from lb.dataplane.replay.run import Replay  # noqa: PLC0415

    with contextlib.ExitStack() as files:
        capture = Capture(cast(BinaryIO, _open(files, source, "rb")), source)
        plane = NativePlane(loaded.mux, raw_ip=capture.raw_ip)
        writer = PcapWriter(cast(BinaryIO, _open(files, target, "wb")), capture.linktype)
        report = None
        if report_file is not None:
            report_stream = _open(files, report_file, "w")

            def report(line: Mapping[str, Any]) -> None:
                report_stream.write(json.dumps(line, ensure_ascii=False) + "\n")

        player = Replay(plane, write=writer.write, report=report)
        return player.play(capture, loaded.services, switches)


def _open(files: contextlib.ExitStack, path: str, mode: str) -> IO[Any]:
    encoding = None if "b" in mode else "utf-8"
    try:
        return files.enter_context(open(path, mode, encoding=encoding))
    except (OSError, ValueError) as error:
        verb = "read" if mode == "rb" else "written"
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise PcapError(f"{path}: cannot be {verb}: {reason.lower()}") from None


def _summary(totals: ReplayTotals, switches: list[Switch]) -> list[str]:
    verdicts = ", ".join(f"{count:,} {verdict}" for verdict, count in sorted(totals.verdicts.items()))
    lines = [f"{plural(totals.packets, 'packet')}: {verdicts or 'nothing to do'}; {totals.sent:,} sent"]
    lines += [
        f"  {verdict} {reason}: {count:,}"
        for (verdict, reason), count in sorted(totals.reasons.items(), key=lambda item: (-item[1], item[0]))
    ]
    lines += [
        f"  --switch {switch.n} came after the last packet, so it changed nothing"
        for switch in switches
        if switch.n >= totals.packets
    ]
    return lines
