# SPDX-License-Identifier: Apache-2.0
"""What a machine's packet filter does to a packet: rules of nftables and of iptables, walked as the kernel does. Pure.

Not every match can be judged from here (marks, rates, addresses of clients that may be anybody's). So a walk has not
one end, but all that are possible: a packet is *dropped* only where no other end is. Rules come as ``nft -j list
ruleset`` writes them; those of iptables, whose matches that leaves out, as :mod:`lb.doctor.firewall.iptables` reads
them.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any

from lb.model import Address

#: Where conntrack begins, among the priorities of prerouting and output: before it no packet has a state.
CONNTRACK = -200
#: Chains that call one another no deeper are legal.
DEPTH_MAX = 16
#: Every priority that a chain may have.
EVERY = range(-(1 << 31), 1 << 31)


class Unknown(enum.Enum):
    """What cannot be told from here."""

    UNKNOWN = "unknown"


UNKNOWN = Unknown.UNKNOWN


@dataclass(frozen=True, slots=True)
class FilteredPacket:
    """The first of a connection, or an answer to it (``leaving``)."""

    protocol: str  #: tcp, udp or ipencap, as nft writes them
    source: Address | None  #: None: anybody's
    destination: Address | None
    sport: int | None = None
    dport: int | None = None
    interface: str = "eth0"
    state: str = "new"  #: new, established or untracked
    leaving: bool = False

    @property
    def family(self) -> str:
        known = self.destination or self.source
        return "ip6" if known is not None and known.version == 6 else "ip"


@dataclass(frozen=True, slots=True)
class RulePlace:
    """A chain, and the rule in it; no rule: its policy."""

    family: str
    table: str
    chain: str
    handle: int | None = None
    iptables: bool = False  #: made by iptables, which should change it as well
    why: str = ""  #: the rule in words, as far as they are known

    @property
    def words(self) -> str:
        chain = f"chain {self.chain} of table {self.family} {self.table}"
        return f"the policy (drop) of {chain}" if self.handle is None else f"a rule ({self.why}) in {chain}"


class End(enum.Enum):
    """What may become of a packet in a chain."""

    ACCEPT = "accept"
    THROUGH = "through"  #: it goes on to the next rule, or came to the end of the chain
    BACK = "back"  #: within a chain: it goes no further there, and on where the chain was called from


#: The ends of a walk: End, or the Place that drops.
Ends = frozenset[End | RulePlace]


@dataclass(frozen=True, slots=True)
class Chain:
    """Of one table; a base chain has a hook."""

    family: str
    table: str
    name: str
    hook: str | None = None
    kind: str = "filter"
    priority: int = 0
    policy: str = "accept"
    device: str | None = None
    iptables: bool = False
    rules: tuple[Mapping[str, Any], ...] = ()  #: as nft's JSON has them: "expr", "handle"


@dataclass(frozen=True, slots=True)
class Ruleset:
    """All chains and sets, by family, table and name."""

    chains: Mapping[tuple[str, str, str], Chain] = field(default_factory=dict)
    sets: Mapping[tuple[str, str, str], Sequence[Any]] = field(default_factory=dict)

    def hooked(self, hook: str, families: Iterable[str]) -> list[Chain]:
        """Base chains in the order in which packets meet them."""
        found = [chain for chain in self.chains.values() if chain.hook == hook and chain.family in families]
        return sorted(found, key=lambda chain: chain.priority)

    def without(self, tables: Collection[tuple[str, str]]) -> Ruleset:
        """But for these tables, by family and name."""
        return Ruleset({key: chain for key, chain in self.chains.items() if key[:2] not in tables}, self.sets)


def read(items: Iterable[Mapping[str, Any]], *, without: Iterable[tuple[str, str]] = ()) -> Ruleset:
    """``items``: the list "nftables" of nft's JSON. ``without``: tables, by family and name, to be passed over."""
    left_out = frozenset(without)
    chains: dict[tuple[str, str, str], Chain] = {}
    rules: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    sets: dict[tuple[str, str, str], Sequence[Any]] = {}
    for item in items:
        for kind, found in item.items():
            if not isinstance(found, Mapping) or (found.get("family"), found.get("table")) in left_out:
                continue
            family, table = str(found.get("family")), str(found.get("table"))
            if kind == "chain":
                chains[family, table, str(found.get("name"))] = _chain(family, table, found)
            elif kind == "rule":
                rules.setdefault((family, table, str(found.get("chain"))), []).append(found)
            elif kind in ("set", "map"):
                sets[family, table, str(found.get("name"))] = tuple(found.get("elem") or ())
    return Ruleset(with_rules(chains, rules), sets)


def _chain(family: str, table: str, found: Mapping[str, Any]) -> Chain:
    hook, device, priority = found.get("hook"), found.get("dev"), found.get("prio")
    return Chain(
        family,
        table,
        str(found.get("name")),
        str(hook) if hook else None,
        str(found.get("type", "filter")),
        priority if isinstance(priority, int) else 0,
        str(found.get("policy", "accept")),
        str(device) if device else None,
    )


def with_rules(
    chains: Mapping[tuple[str, str, str], Chain], rules: Mapping[tuple[str, str, str], Sequence[Mapping[str, Any]]]
) -> dict[tuple[str, str, str], Chain]:
    return {
        key: Chain(
            c.family, c.table, c.name, c.hook, c.kind, c.priority, c.policy, c.device, c.iptables,
            tuple(rules.get(key, ())),
        )
        for key, c in chains.items()
    }  # fmt: skip


# --- asked -----------------------------------------------------------------------------------------------------------


def dropped_at(ruleset: Ruleset, packet: FilteredPacket, hook: str, *, among: range = EVERY) -> RulePlace | None:
    """Who drops it at this hook for certain; None: nobody, or that cannot be told. Chains that translate are left out:
    they drop nothing. ``among``: priorities of chains."""
    families = ("netdev", "inet") if hook == "ingress" else (packet.family, "inet")
    for chain in ruleset.hooked(hook, families):
        if chain.kind == "nat" or chain.priority not in among or chain.device not in (None, packet.interface):
            continue
        ends = _Walk(ruleset, packet, tracked=hook == "input" or chain.priority > CONNTRACK).base(chain)
        places = [end for end in ends if isinstance(end, RulePlace)]
        if places and len(places) == len(ends):
            return min(places, key=lambda place: (place.handle is not None, -(place.handle or 0), place.chain))
    return None


def translations(ruleset: Ruleset, packet: FilteredPacket) -> list[tuple[RulePlace, Any]]:
    """Rules that may send a packet that comes in to another address or port, and to which, as nft's JSON has it."""
    found: list[tuple[RulePlace, Any]] = []
    for chain in ruleset.hooked("prerouting", (packet.family, "inet")):
        if chain.kind == "nat":
            walk = _Walk(ruleset, packet, tracked=True)
            walk.base(chain)
            found += walk.translating
    return found


class _Walk:
    """One packet through the chains of one hook."""

    def __init__(self, ruleset: Ruleset, packet: FilteredPacket, *, tracked: bool) -> None:
        self._ruleset = ruleset
        self._packet = packet
        self._tracked = tracked
        self._known: dict[tuple[str, str, str], Ends] = {}
        self.translating: list[tuple[RulePlace, Any]] = []

    def base(self, chain: Chain) -> Ends:
        ends = self._chain(chain, 0)
        if End.THROUGH not in ends:
            return ends
        policy: End | RulePlace = End.ACCEPT
        if chain.policy == "drop":
            policy = RulePlace(chain.family, chain.table, chain.name, None, chain.iptables)
        return ends - {End.THROUGH} | {policy}

    def _chain(self, chain: Chain, depth: int) -> Ends:
        """Ends of the chain alone, without its policy."""
        key = (chain.family, chain.table, chain.name)
        if depth > DEPTH_MAX:
            return frozenset({End.THROUGH, End.ACCEPT})
        if key not in self._known:
            self._known[key] = frozenset(self._rules(chain, depth))
        return self._known[key]

    def _rules(self, chain: Chain, depth: int) -> Iterator[End | RulePlace]:
        for rule in chain.rules:
            surely, ends = self._rule(chain, rule, depth)
            yield from (End.THROUGH if end is End.BACK else end for end in ends - {End.THROUGH})
            if surely and End.THROUGH not in ends:
                return
        yield End.THROUGH

    def _rule(self, chain: Chain, rule: Mapping[str, Any], depth: int) -> tuple[bool, Ends]:
        """Whether the rule applies for certain, and the ends that it leads to; none of them: it goes on."""
        surely = True
        through: Ends = frozenset({End.THROUGH})
        for statement in rule.get("expr") or ():
            if not isinstance(statement, Mapping) or len(statement) != 1:
                return False, through
            ((word, what),) = statement.items()
            if word == "match":
                matches = self._matches(chain, what)
            elif word in ("limit", "quota", "xt", "queue", "fwd", "synproxy", "tproxy", "meter", "ct count"):
                matches = UNKNOWN
            elif word == "vmap":
                return self._mapped(chain, rule, what, depth, surely=surely)
            elif word in _VERDICTS:
                return surely, self._verdict(chain, rule, word, what, depth)
            else:
                continue  # counter, log, mangle, set, notrack ...
            if matches is False:
                return False, through
            surely = surely and matches is True
        return surely, through

    def _verdict(self, chain: Chain, rule: Mapping[str, Any], word: str, what: Any, depth: int) -> Ends:
        place = RulePlace(chain.family, chain.table, chain.name, _handle(rule), chain.iptables, words_of(rule))
        if word in ("drop", "reject"):
            return frozenset({place})
        if word in ("jump", "goto"):
            target = self._ruleset.chains.get((chain.family, chain.table, str((what or {}).get("target"))))
            ends = self._chain(target, depth + 1) if target is not None else frozenset({End.THROUGH, End.ACCEPT})
            return ends if word == "jump" else frozenset(End.BACK if end is End.THROUGH else end for end in ends)
        if word in ("dnat", "redirect"):
            self.translating.append((place, what))
        return _SIMPLE[word]

    def _mapped(
        self, chain: Chain, rule: Mapping[str, Any], what: Any, depth: int, *, surely: bool
    ) -> tuple[bool, Ends]:
        """``vmap``: the verdict of the element that the key is; any of them where that cannot be told."""
        value, data = self._value(what.get("key")), what.get("data")
        elements = data.get("set") if isinstance(data, Mapping) else self._set(chain, str(data))
        ends: set[End | RulePlace] = set()
        for element in elements or ():
            key, verdict = element if isinstance(element, list) and len(element) == 2 else (None, None)
            matches = _one(value, _plain(key), "==")
            if matches is False or not isinstance(verdict, Mapping):
                continue
            ((word, target),) = verdict.items()
            found = self._verdict(chain, rule, word, target, depth) if word in _VERDICTS else frozenset({End.THROUGH})
            if matches is True:
                return surely, found
            ends |= found
        return False, frozenset(ends | {End.THROUGH})

    # --- matches ---

    def _matches(self, chain: Chain, match: Any) -> bool | Unknown:
        left, operator, right = match.get("left"), match.get("op"), match.get("right")
        flags = self._flags(left, right) if isinstance(left, Mapping) and "&" in left else None
        if flags is not None:
            found = flags
        else:
            value = self._value(left)
            if value is None or (isinstance(value, list) and None in value):
                return False  # it has no such thing: neither the same nor another
            found = any_of(_one(value, each, str(operator)) for each in self._choices(chain, right))
        if operator == "!=" and found is not UNKNOWN:
            return not found
        return found

    def _choices(self, chain: Chain, right: Any) -> Iterable[Any]:
        if isinstance(right, str) and right.startswith("@"):
            return [_plain(element) for element in self._set(chain, right)] or [_NOTHING]
        if isinstance(right, Mapping) and "set" in right:
            return [_plain(element) for element in right["set"]]
        return right if isinstance(right, list) else [right]

    def _set(self, chain: Chain, name: str) -> Sequence[Any]:
        return self._ruleset.sets.get((chain.family, chain.table, name.removeprefix("@")), ())

    def _flags(self, left: Mapping[str, Any], right: Any) -> bool | Unknown | None:
        """``tcp flags MASK == VALUE``: of a SYN, or of an answer that is SYN and ACK."""
        try:
            (what, mask) = left["&"]
            if what != {"payload": {"protocol": "tcp", "field": "flags"}}:
                return UNKNOWN
        except (TypeError, ValueError, KeyError):
            return UNKNOWN
        if self._packet.protocol != "tcp":
            return False
        sent = {"syn", "ack"} if self._packet.leaving else {"syn"}
        return sent & set(_listed(mask)) == set(_listed(right))

    def _value(self, left: Any) -> Any:
        """What the packet has there. None: it has no such thing, so that no value matches."""
        if not isinstance(left, Mapping) or len(left) != 1:
            return UNKNOWN
        ((word, what),) = left.items()
        if word == "concat":
            return [self._value(each) for each in what]
        if not isinstance(what, Mapping):
            return UNKNOWN
        if word == "payload":
            return self._header(str(what.get("protocol")), str(what.get("field")))
        return self._meta(str(what.get("key"))) if word == "meta" else self._kernels(word, what)

    def _kernels(self, word: str, what: Mapping[str, Any]) -> Any:
        """What the kernel knows of the packet beside it."""
        if word == "ct" and what.get("key") == "state" and self._tracked:
            return self._packet.state
        if word == "fib" and not self._packet.leaving and what.get("result") == "type" and what.get("flags") in _TO_US:
            return "local"
        return UNKNOWN

    def _meta(self, key: str) -> Any:
        packet = self._packet
        arrives, leaves = ("iif", "iifname"), ("oif", "oifname")
        if key in arrives + leaves:
            return packet.interface if (key in leaves) == packet.leaving else None
        known = {
            "l4proto": packet.protocol,
            "nfproto": "ipv6" if packet.family == "ip6" else "ipv4",
            "protocol": packet.family,
        }
        return known.get(key, UNKNOWN)

    def _header(self, protocol: str, name: str) -> Any:
        packet = self._packet
        if protocol in ("ip", "ip6"):
            if protocol != packet.family:
                return None
            addresses = {"saddr": packet.source, "daddr": packet.destination}
            if name in addresses:
                return addresses[name] if addresses[name] is not None else UNKNOWN
            return packet.protocol if name in ("protocol", "nexthdr") else UNKNOWN
        if protocol == "th" and packet.protocol in ("tcp", "udp"):
            protocol = packet.protocol
        if protocol != packet.protocol:
            return None
        ports = {"sport": packet.sport, "dport": packet.dport}
        return UNKNOWN if ports.get(name) is None else ports[name]


_VERDICTS = ("accept", "drop", "reject", "return", "jump", "goto", "continue", "dnat", "redirect", "snat", "masquerade")
_SIMPLE: Mapping[str, Ends] = {
    "accept": frozenset({End.ACCEPT}),
    "return": frozenset({End.BACK}),
    "continue": frozenset({End.THROUGH}),
    "dnat": frozenset({End.ACCEPT}),
    "redirect": frozenset({End.ACCEPT}),
    "snat": frozenset({End.ACCEPT}),
    "masquerade": frozenset({End.ACCEPT}),
}
_TO_US = ("daddr", ["daddr"], ["daddr", "iif"])
_NOTHING = object()
#: How nft writes protocols that have several names.
_SAME = {"4": "ipencap", "ipip": "ipencap", "ipv4": "ipencap", "6": "tcp", "17": "udp", "1": "icmp"}


def any_of(found: Iterable[bool | Unknown]) -> bool | Unknown:
    seen = set(found)
    return True if True in seen else UNKNOWN if UNKNOWN in seen else False


def _one(value: Any, wanted: Any, operator: str) -> bool | Unknown:
    """One value against one literal, prefix or range."""
    if value is None or wanted is _NOTHING:
        return False
    if isinstance(value, list):
        return _all_parts(value, wanted)
    if wanted == "*" or (isinstance(wanted, Mapping) and str(wanted.get("prefix", {}).get("len")) == "0"):
        return True
    try:
        return UNKNOWN if value is UNKNOWN else _compared(value, wanted, operator)
    except (TypeError, ValueError, KeyError):
        return UNKNOWN


def _all_parts(values: list[Any], wanted: Any) -> bool | Unknown:
    parts = wanted.get("concat") if isinstance(wanted, Mapping) else None
    if not isinstance(parts, list) or len(parts) != len(values):
        return UNKNOWN
    matches = [_one(value, part, "==") for value, part in zip(values, parts, strict=True)]
    return False if False in matches else UNKNOWN if UNKNOWN in matches else True


def _compared(value: Any, wanted: Any, operator: str) -> bool:
    make = int if isinstance(value, int) else str if isinstance(value, str) else ip_address
    if isinstance(wanted, Mapping):
        if "prefix" in wanted:
            prefix = wanted["prefix"]
            return bool(value in ip_network(f"{prefix['addr']}/{prefix['len']}", strict=False))
        first, last = (make(end) for end in wanted["range"])
        return bool(first <= value <= last)
    if isinstance(value, str):
        text = str(wanted)
        return value.startswith(text[:-1]) if text.endswith("*") else value in (text, _SAME.get(text))
    other = make(wanted)
    comparisons = {"<": value < other, ">": value > other, "<=": value <= other, ">=": value >= other}
    return bool(comparisons.get(operator, value == other))


def _plain(element: Any) -> Any:
    """Elements with a timeout, a counter or a comment are wrapped."""
    if isinstance(element, Mapping) and isinstance(element.get("elem"), Mapping):
        return element["elem"].get("val")
    if isinstance(element, list) and len(element) == 2 and isinstance(element[1], Mapping):
        return element[0]  # of a map
    return element


def _listed(value: Any) -> list[str]:
    if isinstance(value, Mapping) and "|" in value:
        return [each for part in value["|"] for each in _listed(part)]
    return [str(each) for each in value] if isinstance(value, list) else [str(value)]


def _handle(rule: Mapping[str, Any]) -> int:
    handle = rule.get("handle")
    return handle if isinstance(handle, int) else 0


def words_of(rule: Mapping[str, Any]) -> str:
    """Its conditions and its verdict, in the words of nft as far as they are short."""
    if isinstance(rule.get("text"), str):
        return str(rule["text"])
    words = [_words(one) for one in rule.get("expr") or () if isinstance(one, Mapping)]
    text = " ".join(filter(None, words))
    return text if len(text) <= 80 else text[:77] + "..."


def _words(statement: Mapping[str, Any]) -> str:
    ((word, what),) = statement.items() if len(statement) == 1 else (("", None),)
    if word == "match" and isinstance(what, Mapping):
        operator = "" if what.get("op") in ("==", "in") else f"{what.get('op')} "
        return f"{_side(what.get('left'))} {operator}{_side(what.get('right'))}"
    if word in ("jump", "goto") and isinstance(what, Mapping):
        return f"{word} {what.get('target')}"
    return word if word in (*_VERDICTS, "vmap") else ""


def _side(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(_side, value))
    if not isinstance(value, Mapping) or len(value) != 1:
        return str(value)
    ((word, what),) = value.items()
    write = _SIDES.get(str(word))
    return write(what) if write is not None and isinstance(what, Mapping | list) else str(word)


_SIDES: Mapping[str, Callable[[Any], str]] = {
    "payload": lambda what: f"{what.get('protocol')} {what.get('field')}",
    "meta": lambda what: str(what.get("key")),
    "ct": lambda what: f"ct {what.get('key')}",
    "prefix": lambda what: f"{what.get('addr')}/{what.get('len')}",
    "range": lambda what: "-".join(map(str, what)),
    "set": lambda what: "{ " + ", ".join(map(_side, what)) + " }",
    "concat": lambda what: " . ".join(map(_side, what)),
}
