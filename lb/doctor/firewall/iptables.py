# SPDX-License-Identifier: Apache-2.0
"""Rules of iptables as :mod:`lb.doctor.firewall.packet_filter` walks them. Pure: the text of ``iptables-save`` in,
chains out.

``nft -j`` shows the chains that iptables-nft makes, and leaves out what most of their matches say; ``iptables-save``
has it all, of the older iptables too. What is not known here becomes a match that cannot be judged.
"""

from __future__ import annotations

import shlex
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from lb.doctor.firewall.packet_filter import Chain, Ruleset, with_rules

_HOOKS = {
    "PREROUTING": "prerouting",
    "INPUT": "input",
    "FORWARD": "forward",
    "OUTPUT": "output",
    "POSTROUTING": "postrouting",
}
_PRIORITIES = {"raw": -300, "mangle": -150, "nat": -100, "filter": 0, "security": 50}
_UNKNOWN: Mapping[str, Any] = {"xt": {"type": "match"}}
_TERMINAL = {"ACCEPT": "accept", "DROP": "drop", "REJECT": "reject", "RETURN": "return", "DNAT": "dnat",
             "REDIRECT": "redirect", "SNAT": "snat", "MASQUERADE": "masquerade"}  # fmt: skip
#: Targets that let a packet go on to the next rule.
_GOES_ON = frozenset(
    ("LOG", "NFLOG", "ULOG", "MARK", "CONNMARK", "CT", "NOTRACK", "TCPMSS", "TOS", "DSCP", "TRACE", "SET", "CLASSIFY",
     "AUDIT", "CHECKSUM", "TTL", "HL", "SECMARK", "CONNSECMARK")
)  # fmt: skip
#: Options that say nothing of whether the rule matches, by how many words they have.
_IDLE = {"--comment": 1, "--reject-with": 1, "--to-destination": 1, "--to-ports": 1, "--to-source": 1, "--set-mark": 1,
         "--set-xmark": 1, "--log-prefix": 1, "--log-level": 1, "--random": 0, "--persistent": 0,
         "--notrack": 0}  # fmt: skip
_FIELDS = {"-s": "saddr", "-d": "daddr"}
_PORTS = {"--dport": "dport", "--sport": "sport", "--dports": "dport", "--sports": "sport"}


_META = {"-p": "l4proto", "-i": "iifname", "-o": "oifname"}
_JUDGED = frozenset((*_META, *_FIELDS, *_PORTS, "--ctstate", "--state", "--tcp-flags", "--syn"))
#: Words that belong to an option.
_ARGUMENTS = {**_IDLE, **dict.fromkeys(_JUDGED | {"-j", "-g", "-m"}, 1), "--syn": 0, "--tcp-flags": 2}


def merged(ruleset: Ruleset, text: str, family: str = "ip") -> Ruleset:
    """The ruleset with iptables' tables as ``iptables-save`` tells of them, instead of nft's."""
    own = read(text, family)
    tables = {(chain.family, chain.table) for chain in own.values()}
    kept = {key: chain for key, chain in ruleset.chains.items() if key[:2] not in tables}
    return Ruleset({**kept, **own}, ruleset.sets)


def read(text: str, family: str = "ip") -> dict[tuple[str, str, str], Chain]:
    """Every chain in it that has rules or drops by policy."""
    chains: dict[tuple[str, str, str], Chain] = {}
    rules: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    table = ""
    for line in text.splitlines():
        if line.startswith("*"):
            table = line[1:].strip()
        elif line.startswith(":"):
            name, policy, *_ = line[1:].split()
            chains[family, table, name] = _chain(family, table, name, policy)
        elif line.startswith("-A "):
            key, rule = _rule(line, family, table)
            rules.setdefault(key, []).append({**rule, "handle": len(rules[key]) + 1 if key in rules else 1})
    return with_rules(chains, rules)


def _chain(family: str, table: str, name: str, policy: str) -> Chain:
    hook = _HOOKS.get(name) if policy != "-" else None
    kind = "nat" if table == "nat" else "filter"
    made = Chain(family, table, name, hook, kind, _PRIORITIES.get(table, 0), policy.lower(), iptables=True)
    return made if policy != "-" else replace(made, policy="accept")


def _rule(line: str, family: str, table: str) -> tuple[tuple[str, str, str], Mapping[str, Any]]:
    try:
        words = shlex.split(line)
    except ValueError:
        words = line.split()
    return (family, table, words[1]), {"expr": list(_statements(words[2:], family)), "text": " ".join(words[2:])}


def _statements(words: list[str], family: str) -> Iterator[Mapping[str, Any]]:
    """Matches first and the verdict last, as they stand there."""
    rest, protocol, inverted = deque(words), "th", False
    while rest:
        word = rest.popleft()
        if word == "!":
            inverted = True
            continue
        arguments = [rest.popleft() for _ in range(_ARGUMENTS.get(word, 0)) if rest]
        if word == "-p":
            protocol = arguments[0] if arguments else "th"
        if word in ("-j", "-g"):
            yield from _verdict(word, arguments[0] if arguments else "")
        elif word in _JUDGED:
            yield _judged(word, arguments, "!=" if inverted else "==", family, protocol)
        elif word != "-m" and word not in _IDLE:
            yield _UNKNOWN
            while rest and not rest[0].startswith("-") and rest[0] != "!":
                rest.popleft()
        inverted = False


def _judged(word: str, arguments: list[str], operator: str, family: str, protocol: str) -> Mapping[str, Any]:
    """A match that can be judged."""
    first, second = (*arguments, "", "")[:2]
    if word in ("--syn", "--tcp-flags"):
        mask, value = (first, second) if word == "--tcp-flags" else ("FIN,SYN,RST,ACK", "SYN")
        return _flags(mask, value, operator)
    if word in _FIELDS:
        address, _, length = first.partition("/")
        prefix = {"prefix": {"addr": address, "len": length or ("32" if family == "ip" else "128")}}
        return _match({"payload": {"protocol": family, "field": _FIELDS[word]}}, operator, prefix)
    if word in _PORTS:
        return _match({"payload": {"protocol": protocol, "field": _PORTS[word]}}, operator, _ports(first))
    if word in ("--ctstate", "--state"):
        return _match({"ct": {"key": "state"}}, operator, {"set": first.lower().split(",")})
    return _match({"meta": {"key": _META[word]}}, operator, first.replace("+", "*"))


def _verdict(word: str, target: str) -> Iterator[Mapping[str, Any]]:
    if target in _TERMINAL:
        yield {_TERMINAL[target]: None}
    elif target not in _GOES_ON:
        yield {"jump" if word == "-j" else "goto": {"target": target}}


def _match(left: Mapping[str, Any], operator: str, right: Any) -> Mapping[str, Any]:
    return {"match": {"left": left, "op": operator, "right": right}}


def _flags(mask: str, value: str, operator: str) -> Mapping[str, Any]:
    left = {"&": [{"payload": {"protocol": "tcp", "field": "flags"}}, mask.lower().split(",")]}
    return _match(left, operator, [] if value == "NONE" else value.lower().split(","))


def _ports(text: str) -> Any:
    parts = text.replace(":", "-").split(",")
    return {"set": [{"range": [p.split("-")[0] or "0", p.split("-")[1] or "65535"]} if "-" in p else p for p in parts]}
