# SPDX-License-Identifier: Apache-2.0
"""``lb describe``: why a service's backends are as they are, who announces its VIP and why not; and of nodes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from lb.cli.output import cell, example, output_option, print_json
from lb.cli.plain import ago, clock, endpoint
from lb.cli.remote import Manager, manager_options
from lb.errors import NotFoundError

PATHS = {"mux": "muxes", "agent": "agents"}


@click.command("describe", epilog=example("lb describe service web", "lb describe mux mux1"))
@click.argument("kind", type=click.Choice(["service", *PATHS]))
@click.argument("name")
@manager_options
@output_option
def command(*, kind: str, name: str, manager: Manager, as_json: bool) -> None:
    """Explain a service (each backend, and each MUX's announcement), a MUX or an agent in words."""
    if kind == "service":
        answer = manager.get("services", name)
        lines = list(service(answer))
    else:
        rows = manager.get(PATHS[kind])
        answer = next((row for row in rows if row.get("name") == name), None)
        if answer is None:
            known = ", ".join(str(row.get("name")) for row in rows) or "none"
            raise NotFoundError(f'there is no {kind} "{name}"; there are {known}')
        events = [row for row in manager.get("events", limit=5000) if row.get("subject") == f"{kind} {name}"]
        lines = [*node(answer), *_events(events[-20:])]
    if as_json:
        print_json(answer)
    else:
        click.echo("\n".join(lines))


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
    yield ""
    yield "Backends"
    for backend, words in zip(answer["backends"], answer["explanation"], strict=True):
        place = endpoint(backend["address"], backend["port"])
        slow = f" ({backend['slow_start']:.0%} of it now)" if backend.get("slow_start") else ""
        yield f"  {cell(backend['name'])}  {place}  weight {backend['weight']}{slow}  {_state(backend)}"
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


def node(row: dict[str, Any]) -> Iterator[str]:
    """The lines on a MUX or an agent."""
    words = {
        "ready": "has what it should have",
        "following": "is about to take its latest state",
        "late": "has not acknowledged its state for a while",
        "refused": "could not take its state and goes on with the one before",
        "away": "is not connected; it goes on with what it has",
        "gone": "is not connected for longer than the hold time; nobody waits for it",
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
        if key != "peers":
            yield f"{key.replace('_', ' '):<{width}}{text}"
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
