# SPDX-License-Identifier: Apache-2.0
"""``lb describe``: why things are as they are, in words: services, backends, VIPs, nodes, and single flows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from lb.cli.ask.manager import Manager, manager_options
from lb.cli.options.completion import by_kind
from lb.cli.terminal.output import example, output_option, print_json
from lb.cli.terminal.times import terminal_width
from lb.errors import NotFoundError, RequestError
from lb.tables.layout import hanging
from lb.tables.values import ago, cell, clock, endpoint

PATHS = {"mux": "muxes", "agent": "agents"}
KINDS = ("service", "backend", "vip", "mux", "agent", "flow")


@click.command(
    "describe",
    epilog=example(
        "lb describe service web",
        "lb describe backend web/web-1",
        "lb describe flow --src 198.51.100.7:4711 --dst 203.0.113.10:80",
    ),
)
@click.argument("kind", type=click.Choice(KINDS))
@click.argument("name", required=False, shell_complete=by_kind("kind"))
@click.option("--src", metavar="ADDR:PORT", help="For a flow: the client.")
@click.option("--dst", metavar="ADDR:PORT", help="For a flow: the VIP and the port that it connects to.")
@click.option("--proto", type=click.Choice(["tcp", "udp"]), default="tcp", show_default=True, help="For a flow.")
@manager_options
@output_option
def command(
    *, kind: str, name: str | None, src: str | None, dst: str | None, proto: str, manager: Manager, as_json: bool
) -> int:
    """Explain in words a service (each backend, and each MUX's announcement), a backend (SERVICE/NAME), what is at a
    VIP's address, a MUX, an agent, or a flow: which backend it gets by each MUX, and why.

    For a flow, exit code 1 means that no backend gets it.
    """
    if kind == "flow":
        return _flow(manager, name, src, dst, proto, as_json=as_json)
    if name is None or src is not None or dst is not None:
        raise RequestError(f"which? `lb describe {kind} NAME`; --src and --dst are of a flow")
    answer, lines = _ask(manager, kind, name)
    if as_json:
        print_json(answer)
    else:
        click.echo("\n".join(hanging(lines, terminal_width())))
    return 0


def _ask(manager: Manager, kind: str, name: str) -> tuple[Any, list[str]]:
    if kind == "service":
        answer = manager.get("services", name)
        return answer, list(service(answer))
    if kind == "backend":
        of, _, which = name.rpartition("/")
        if not of or not which:
            raise RequestError(f'a backend is named SERVICE/NAME, such as web/web-1, not "{name}"')
        row = manager.get("backends", of, which)
        events = manager.get("events", limit=20, subject=f"backend {name}")
        return row, [*backend(row), *_events(events)]
    if kind == "vip":
        answer = manager.get("vips", name)
        return answer, list(vip(answer))
    rows = manager.get(PATHS[kind])
    found = next((row for row in rows if row.get("name") == name), None)
    if found is None:
        known = ", ".join(str(row.get("name")) for row in rows) or "none"
        raise NotFoundError(f'there is no {kind} "{name}"; there are {known}')
    events = manager.get("events", limit=20, subject=f"{kind} {name}")
    return found, [*node(found), *_events(events)]


def _flow(manager: Manager, name: str | None, src: str | None, dst: str | None, proto: str, *, as_json: bool) -> int:
    from lb.cli.options.flow_endpoint import parse_endpoint  # noqa: PLC0415

    if name is not None or src is None or dst is None:
        raise RequestError("which flow? `lb describe flow --src ADDR:PORT --dst ADDR:PORT [--proto udp]`")
    source, source_port = parse_endpoint(src, "--src")
    destination, destination_port = parse_endpoint(dst, "--dst")
    answer = manager.get(
        "flow",
        protocol=proto,
        source=source,
        source_port=source_port,
        destination=destination,
        destination_port=destination_port,
    )
    if as_json:
        print_json(answer)
    else:
        click.echo("\n".join(hanging(flow(answer), terminal_width())))
    return 0 if any(row["goes_to"] for row in answer["muxes"]) else 1


def flow(answer: dict[str, Any]) -> Iterator[str]:
    """The lines on a flow."""
    row = answer["service"]
    yield f"Flow       {cell(answer['flow'])}"
    if row is not None:
        place = f"{endpoint(row['vip'], row['port'])} {cell(row['protocol'])}"
        yield f"Service    {cell(row['name'])} ({place}), {cell(row['state'])}"
    yield ""
    for found in answer["muxes"]:
        yield from wrapped(f"{cell(found['mux'])} {cell(found['words'])}", "  ", "      ")
    if answer["muxes"]:
        yield ""
    for words in answer["words"]:
        yield from wrapped(cell(words), "", "  ")
    named = {found[key] for found in answer["muxes"] for key in ("new", "remembered") if found[key]}
    shown = [item for item in answer["backends"] if item["name"] in named]
    if shown:
        yield ""
        yield "Backends"
    for item in shown:
        yield f"  {cell(item['name'])}  {endpoint(item['address'], item['port'])}  {_state(item)}"
        yield from wrapped(cell(item["reason"]), "      ", "      ")


def wrapped(text: str, first: str, rest: str) -> list[str]:
    """A sentence in lines of a terminal."""
    import textwrap  # noqa: PLC0415

    return textwrap.wrap(text, 80, initial_indent=first, subsequent_indent=rest, break_long_words=False) or [first]


def backend(row: dict[str, Any]) -> Iterator[str]:
    """The lines on a backend."""
    slow = f" ({row['slow_start']:.0%} of it now: slow start)" if row.get("slow_start") else ""
    place = endpoint(row["vip"], row["service_port"])
    yield f"Backend    {cell(row['service'])}/{cell(row['name'])}"
    yield f"Address    {endpoint(row['address'], row['port'])}, behind {place} {cell(row['protocol'])}"
    yield f"State      {_state(row)}, {'takes' if row['takes_flows'] else 'takes no'} new flows"
    yield from wrapped(cell(row["reason"]), "Why        ", "           ")
    yield f"Weight     {row['weight']}{slow}"
    if row.get("server_id"):
        yield f"Server id  {cell(row['server_id'])} in QUIC connection ids"
    yield f"Flows      {cell(row['flows'])} alive; {cell(row['packets'])} packets so far"
    yield f"Host       {'agent ' + cell(row['agent']) if row['agent'] else 'no agent of this address has joined'}"
    if row["empty_since"] is not None:
        yield f"Drained    no flow is left for {ago(row['empty_since'])}: it may be stopped"
    for item in row["left"]:
        left = f"{item['flows']:,} flows left" if item["flows"] is not None else cell(item["why"])
        yield f"Draining   {cell(item['mux'])}: {left}"
    for item in row.get("tunnels") or ():  # an older manager does not tell of them
        what = "unreachable" if item["unreachable"] else f"carries {item['mtu']:,} bytes"
        yield from wrapped(f"{cell(item['mux'])}: {what}; {cell(item['reason'])}", "Tunnel     ", "           ")


def vip(answer: dict[str, Any]) -> Iterator[str]:
    """The lines on what is at an address."""
    yield f"VIP        {cell(answer['vip'])}"
    yield ""
    yield "Services"
    for row in answer["services"]:
        healthy = f"{row['healthy']} of {row['backends']} backends healthy"
        yield f"  {cell(row['protocol'])} {cell(row['port'])}  {cell(row['name'])}  {cell(row['state'])}, {healthy}"
        if row.get("note"):
            yield from wrapped(cell(row["note"]), "      ", "      ")
    yield ""
    yield "Announcements"
    for item in answer["announcements"]:
        yield from _announcement(item)
    if not answer["announcements"]:
        yield "  no MUX has joined yet"
    yield from _left_out(answer.get("left_out") or [])
    yield from _events(answer["events"])


def service(answer: dict[str, Any]) -> Iterator[str]:
    """The lines on a service."""
    row = answer["service"]
    healthy = f"{row['healthy']} of {row['backends']} backends healthy"
    yield f"Service    {cell(row['name'])}"
    yield f"Address    {endpoint(row['vip'], row['port'])} {cell(row['protocol'])}"
    yield f"State      {cell(row['state'])}, {healthy}"
    if answer["panic"]:
        yield f"           {cell(answer['panic'])}"
    yield f"Probe      {cell(answer['probe'])}"
    yield f"Announced  {cell(answer['policy'])}"
    by, wanted = row.get("announced_by") or [], row.get("wanted_by")
    should = f" (should be: {', '.join(map(cell, wanted)) or 'nobody'})" if wanted not in (None, by) else ""
    yield f"           now by {', '.join(map(cell, by)) or 'nobody'}{should}"
    if row.get("note"):
        yield from wrapped(cell(row["note"]), "Note       ", "           ")
    yield ""
    yield "Backends"
    for backend, words in zip(answer["backends"], answer["explanation"], strict=True):
        place = endpoint(backend["address"], backend["port"])
        slow = f" ({backend['slow_start']:.0%} of it now)" if backend.get("slow_start") else ""
        named = f"  server id {cell(backend['server_id'])}" if backend.get("server_id") else ""
        yield f"  {cell(backend['name'])}  {place}  weight {backend['weight']}{slow}{named}  {_state(backend)}"
        yield f"      {cell(words)}"
        if backend.get("empty_since") is not None:
            yield f"      drained: no flow left since {clock(backend['empty_since'])}"
    if not answer["backends"]:
        yield "  none"
    yield ""
    yield "Announcements"
    for item in answer["announcements"]:
        yield from _announcement(item)
    if not answer["announcements"]:
        yield "  no MUX has joined yet"
    yield from _left_out(answer.get("left_out") or [])
    yield from _events(answer["events"])


def _state(backend: dict[str, Any]) -> str:
    state = str(backend["state"])
    return f"{state.upper() if state == 'panic' else state} for {ago(backend['since'])}"


def _announcement(item: dict[str, Any]) -> Iterator[str]:
    said = {True: "announced", False: "not announced", None: "not known"}[item["announces"]]
    yield f"  {cell(item['mux'])}  {said}: {cell(item['reason'])}"
    for peer in item["peers"]:
        why = f": {cell(peer['why'])}" if peer.get("why") else ""
        yield f"      to {cell(peer.get('name'))}: {cell(peer.get('state'))}{why}"


def _left_out(found: list[dict[str, Any]]) -> Iterator[str]:
    """An older manager does not tell of it."""
    if found:
        yield ""
        yield "Left out"
    for item in found:
        yield f"  {cell(item.get('node'))} does not serve {cell(item.get('what'))}: {cell(item.get('reason'))}"


def node(row: dict[str, Any]) -> Iterator[str]:
    """The lines on a MUX or an agent."""
    words = {
        "ready": "has what it should have",
        "following": "is about to take its latest state",
        "late": "has not acknowledged its state for a while",
        "refused": "could not take its state and goes on with the one before",
        "away": "is disconnected; it goes on with what it has",
        "gone": "has expired: disconnected for longer than the hold time; nobody waits for it",
    }
    peers = row.get("peers") or []
    width = max(len(key) for key in row) + 2
    for key, value in row.items():
        text = cell(value)
        if key == "since":
            text = f"{clock(value)}, {ago(value)} ago"
        elif key == "state":
            text = f"{text}: {words.get(text, 'a state that this lb does not know')}"
        elif key == "clock_skew" and value is not None:
            text = f"{abs(value):g} s {'behind' if value < 0 else 'ahead of'} the manager's clock"
        elif key == "certificate_expires" and value is not None:
            text = clock(value)
        elif key == "left_out":
            text = f"{len(value)}, see below" if value else cell(None)
        if key != "peers":
            yield f"{key.replace('_', ' '):<{width}}{text}"
    yield from _left_out(
        [{"node": row.get("name"), "what": name, "reason": why} for name, why in (row.get("left_out") or {}).items()]
    )
    if peers:
        yield ""
        yield "BGP sessions"
    for peer in peers:
        why = f": {cell(peer['error'])}" if peer.get("error") else ""
        yield f"  {cell(peer.get('name'))}  {cell(peer.get('address'))}  {cell(peer.get('state'))}{why}"


def _events(events: list[dict[str, Any]]) -> Iterator[str]:
    yield ""
    yield "Events"
    for event in events:
        mark = "!" if event.get("bad") else " "
        yield f"  {clock(event.get('at'))} {mark} {cell(event.get('subject'))}: {cell(event.get('text'))}"
    if not events:
        yield "  none"
