# SPDX-License-Identifier: Apache-2.0
"""Changes of the desired state: what is refused, all of it at once; what changes say of themselves; what is shared."""

from __future__ import annotations

import json
import tomllib
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from typing import Any

import pytest
from hypothesis import given, settings

from lb.config.render import service_table
from lb.config.toml import format_tables
from lb.errors import ConfigError, NotFoundError, RequestError
from lb.model import BackendState, Service
from lb.node.messages import apply
from manager.desired.state import (
    Desired,
    DesiredChange,
    Order,
    Rules,
    apply_tables,
    delete_services,
    drain_backend,
    drain_host,
    drain_mux,
    from_entries,
    purge,
    set_weight,
)
from tests.lb.config.test_load import services_of
from tests.manager.fleet import RULES, service

ALICE = Order("alice", 12.0)
NOTHING = Desired()


def after(*tables: dict[str, Any], desired: Desired = NOTHING) -> Desired:
    return apply_tables(desired, tables, RULES).new


def mistakes(desired: Desired, *tables: object, rules: Rules = RULES) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        apply_tables(desired, tables, rules)
    return caught.value.lines


def test_every_mistake_is_reported_at_once_and_in_order() -> None:
    there = after(service("old"))
    found = mistakes(
        there,
        service("web"),
        service("far", "198.51.100.1"),
        {
            **service("ranged", "203.0.113.12"),
            "port": "80-90",
            "backend": [{"name": "a", "address": "10.0.3.1", "port": 1}],
        },
        service("web", "203.0.113.13", colour="red"),
    )
    assert found == [
        'service[0].port: ties with service "old", which is there already: same VIP and protocol, and the ports '
        'overlap (service "web")',
        'service[1].vip: must be inside manager.vip_prefixes, 203.0.113.0/24; 198.51.100.1 is not (service "far")',
        "service[2].backend[0].port: cannot be translated where the service has a range of ports; leave it out "
        '(backend "a" of service "ranged")',
        "service[3].colour: unknown key; known are name, vip, protocol, port, slots, hash, mtu, encap, track, idle, "
        'slow_start, panic, quic, probe, announce, backend (service "web")',
        'service[3].name: is also the name of service[0]: "web"',
    ]


def test_tables_that_are_no_tables_are_mistakes_and_no_crash() -> None:
    assert mistakes(Desired(), 7, None, {"name": [], "vip": {}, "backend": 1, "announce": []})


def test_a_vip_must_not_take_a_backend_of_another_service_nor_a_node() -> None:
    rules = Rules((IPv4Network("0.0.0.0/0"),), {IPv4Address("10.0.1.11"): "MUX mux1"})
    there = after(service())
    assert mistakes(there, service("b", "10.0.3.1", hosts=()), rules=rules) == [
        'service[0].vip: takes the address of a backend of service "web", 10.0.3.1 (service "b")'
    ]
    assert "takes the address of a backend" in mistakes(there, service("b", "10.0.3.0/24", hosts=()), rules=rules)[0]
    assert mistakes(there, service("b", "10.0.1.0/24", hosts=()), rules=rules) == [
        'service[0].vip: takes the address of MUX mux1, 10.0.1.11 (service "b")'
    ]
    backend = {"name": "x", "address": "203.0.113.10"}
    assert mistakes(there, {**service("b", "203.0.113.11"), "backend": [backend]}) == [
        'service[0].backend[0].address: must be outside the VIP of service "web", 203.0.113.10; 203.0.113.10 is not '
        '(service "b")'
    ]


def test_services_at_one_vip_agree_on_its_announcement() -> None:
    there = after(service(announce={"med": 5}))
    after(service("tls", port=443, announce={"med": 5, "policy": "any-backend"}), desired=there)
    after(service("tls", port=443), desired=there)
    assert mistakes(there, service("tls", port=443, announce={"med": 6})) == [
        'service[0].announce: must agree with that of service "web" at the same VIP in med (service "tls")'
    ]


def test_a_service_replaces_itself_without_tying() -> None:
    there = after(service(), service("dns", "203.0.113.11"))
    change = apply_tables(there, [service(hosts=(1, 3)), service("dns", "203.0.113.11")], RULES)
    assert [str(line) for line in change.lines] == [
        "service web changed: backend web-3 added, backend web-2 removed",
        "service dns unchanged",
    ]
    assert change.vips() == {"203.0.113.10/32"}
    assert change.new.services["dns"] is there.services["dns"]
    assert change.delta()["set"].keys() == {"services"}
    assert change.delta()["set"]["services"].keys() == {"web"}


def test_two_services_may_swap_places_in_one_change() -> None:
    there = after(service("a", port=80), service("b", port=81))
    change = apply_tables(there, [service("a", port=81), service("b", port=80)], RULES)
    assert [line.action for line in change.lines] == ["changed", "changed"]
    assert change.new.retiring == {}


def test_details_say_what_was_and_what_is() -> None:
    there = after(service())
    table = service(idle=60, probe={"type": "tcp"})
    table["backend"][0]["weight"] = 5
    line = apply_tables(there, [table], RULES).lines[0]
    assert str(line) == "service web changed: idle default → 60, probe added (type tcp), weight of web-1 1 → 5"


def test_deleting_keeps_the_service_until_its_vip_is_withdrawn() -> None:
    there = after(service(), service("tls", port=443))
    one = delete_services(there, ["tls"]).new
    assert one.retiring == {}, "the VIP is still wanted"
    none = delete_services(one, ["web"]).new
    assert none.retiring.keys() == {"web"}
    assert none.retiring_by_vip == {"203.0.113.10/32": ("web",)}
    again = after(service("other"), desired=none)
    assert again.retiring == {}, "the VIP is wanted again"
    assert purge(none, ["web"]).new.retiring == {}


def test_a_retiring_service_keeps_what_muxes_were_told_of_its_backends() -> None:
    def as_told(found: Service) -> Service:
        return replace(found, backends=tuple(replace(b, state=BackendState.DOWN) for b in found.backends))

    gone = delete_services(after(service()), ["web"], as_told).new
    assert {backend.state for backend in gone.retiring["web"].backends} == {BackendState.DOWN}


def test_a_service_that_moves_retires_its_old_place_under_another_name() -> None:
    moved = after(service(vip="203.0.113.11"), desired=after(service()))
    assert {key: str(found.vip) for key, found in moved.retiring.items()} == {"web~2": "203.0.113.10/32"}


def test_unknown_names_are_refused_with_those_that_are_known() -> None:
    there = after(service())
    with pytest.raises(NotFoundError, match='there is no service "wab"; there are web'):
        delete_services(there, ["web", "wab"])
    with pytest.raises(NotFoundError, match='has no backend "x"; its backends are web-1, web-2'):
        drain_backend(there, "web", "x", ALICE)


def test_drains_outlive_applying_but_not_their_backend() -> None:
    there = drain_backend(after(service()), "web", "web-1", ALICE).new
    assert after(service(idle=5), desired=there).drains == {"web/web-1": ALICE}
    assert after(service(hosts=(2,)), desired=there).drains == {}
    assert delete_services(there, ["web"]).new.drains == {}
    assert drain_backend(there, "web", "web-1", ALICE).empty
    assert drain_backend(there, "web", "web-1", None).new.drains == {}
    assert drain_mux(there, "mux1", ALICE).new.mux_drains == {"mux1": ALICE}


def test_all_of_a_host_is_drained_in_one_change_and_taken_back_in_another() -> None:
    there = after(service(hosts=(1, 2)), service("dns", "203.0.113.11", (1,)))
    host = [IPv4Address("10.0.3.1")]
    change = drain_host(there, "host1", host, ALICE)
    assert sorted(change.new.drains) == ["dns/dns-1", "web/web-1"]
    assert change.what == "host host1 drained: backend dns/dns-1 drained; backend web/web-1 drained"
    assert drain_host(change.new, "host1", host, ALICE).empty
    now = drain_host(change.new, "host1", host, replace(ALICE, now=True))
    assert {line.action for line in now.lines} == {"taken out"}
    assert now.delta()["set"]["drains"]["web/web-1"] == {"who": "alice", "at": 12.0, "now": True}
    assert change.delta()["set"]["drains"]["web/web-1"] == {"who": "alice", "at": 12.0}, "as older versions read it"
    assert from_entries(3, {"drains": now.delta()["set"]["drains"]}).drains == now.new.drains
    assert now.drained() == {"dns", "web"}
    assert drain_host(now.new, "host1", host, None).new.drains == {}
    with pytest.raises(NotFoundError, match=r'no backend is on host "host9" \(10\.0\.3\.9\)'):
        drain_host(there, "host9", [IPv4Address("10.0.3.9")], ALICE)


def test_a_weight_is_set_as_if_its_service_had_been_applied_with_it() -> None:
    there = after(service())
    change = set_weight(there, "web", "web-2", 7, rules=RULES)
    assert [str(line) for line in change.lines] == ["service web changed: weight of web-2 1 → 7"]
    assert set_weight(change.new, "web", "web-2", 7, rules=RULES).empty
    with pytest.raises(ConfigError, match="must be 0 to 1000"):
        set_weight(there, "web", "web-2", 1001, rules=RULES)
    with pytest.raises(NotFoundError, match='service "web" has no backend "web-9"; its backends are web-1, web-2'):
        set_weight(there, "web", "web-9", 1, rules=RULES)


def test_of_probe_and_announcement_values_are_told() -> None:
    old = {**service(), "probe": {"type": "http", "path": "/a"}, "announce": {"policy": "any-backend"}}
    new = {**service(), "probe": {"type": "command", "command": ["/bin/check", "-x"], "interval": 5}}
    (line,) = apply_tables(after(old), [new], RULES).lines
    assert line.details == (
        "probe.type http → command",
        "probe.path /a → default",
        "probe.command default → [/bin/check -x]",
        "probe.interval default → 5.0",
        "announce removed (policy any-backend)",
    )


def test_what_only_a_table_drains_is_undrained_there() -> None:
    table = service()
    table["backend"][0]["state"] = "drain"
    with pytest.raises(RequestError, match="change it there"):
        drain_backend(after(table), "web", "web-1", None)


def test_entries_make_the_same_desired_state_again() -> None:
    entries: dict[str, dict[str, Any]] = {}
    desired = Desired()
    changes: list[DesiredChange] = []

    def run(change: DesiredChange) -> None:
        nonlocal desired, entries
        changes.append(change)
        desired = change.new
        entries = apply(entries, json.loads(json.dumps(change.delta())))

    run(apply_tables(desired, [service(), service("dns", "203.0.113.11"), service("x", "203.0.113.12")], RULES))
    run(drain_backend(desired, "web", "web-1", ALICE))
    run(drain_mux(desired, "mux1", ALICE))
    run(delete_services(desired, ["dns"]))
    run(apply_tables(desired, [service("x", "203.0.113.13", port=81)], RULES))
    again = from_entries(desired.version, entries)
    assert again == desired
    assert again.by_vip == desired.by_vip
    assert again.retiring_by_vip == desired.retiring_by_vip
    assert {key: set(names) for key, names in again.by_address.items()} == {
        key: set(names) for key, names in desired.by_address.items()
    }
    assert changes[0].what.startswith("service web created: 203.0.113.10 tcp 80, 2 backends; service dns created")


def test_replacing_all_deletes_the_rest() -> None:
    there = after(service(), service("dns", "203.0.113.11"))
    change = apply_tables(there, [service()], RULES, replace_all=True)
    assert [str(line) for line in change.lines] == ["service web unchanged", "service dns deleted"]
    assert change.new.retiring.keys() == {"dns"}


def test_one_change_among_thousands_reads_only_its_own() -> None:
    tables = [service(f"s{i}", f"203.0.113.{i % 200}", port=1000 + i) for i in range(2000)]
    there = after(*tables)
    change = apply_tables(there, [service("s7", "203.0.113.7", hosts=(3,), port=1007)], RULES)
    assert sum(there.services[name] is not found for name, found in change.new.services.items()) == 1
    assert service_table(change.new.services["s7"])["backend"][0]["address"] == "10.0.3.3"


@given(services_of())
@settings(max_examples=100, deadline=None)
def test_any_services_printed_and_applied_again_change_nothing(services: tuple[Service, ...]) -> None:
    rules = Rules((IPv4Network("0.0.0.0/0"), IPv6Network("::/0")))
    there = apply_tables(NOTHING, [service_table(found) for found in services], rules).new
    answer = json.loads(json.dumps([service_table(found) for found in there.services.values()]))
    change = apply_tables(there, tomllib.loads(format_tables(answer)).get("service", []), rules, replace_all=True)
    assert change.empty
    assert change.delta() == {"set": {}, "remove": {}}


# --- what no node can serve ------------------------------------------------------------------------------------------


def test_what_no_mux_can_serve_is_refused_with_the_reason() -> None:
    rules = Rules((IPv6Network("2001:db8:100::/48"),), without_ipv6=("mux1", "mux2"))
    table = {"name": "six", "vip": "2001:db8:100::1", "protocol": "tcp", "port": 80, "backend": []}
    with pytest.raises(ConfigError) as refused:
        apply_tables(Desired(), [table], rules)
    assert refused.value.lines == [
        "service[0].vip: is IPv6, and no MUX has an address for it: set mux.address6 on mux1, mux2 and restart "
        '(service "six")'
    ]
    there = apply_tables(Desired(), [table], replace(rules, without_ipv6=())).new
    assert apply_tables(there, [table | {"port": 81}], rules).lines, "what is there already keeps nobody from a change"


def test_what_is_being_withdrawn_is_in_the_way_of_its_own_addresses() -> None:
    rules = Rules((IPv4Network("203.0.113.0/24"), IPv4Network("10.0.3.0/24")))
    before = apply_tables(
        Desired(), [service("web", hosts=(1,)), service("dns", "203.0.113.11", hosts=(2,))], rules
    ).new
    new = service("dns", "10.0.3.1", hosts=(2,))
    with pytest.raises(ConfigError, match='holds a backend of service "web", which is being withdrawn; apply this'):
        apply_tables(before, [new], rules, replace_all=True)
    gone = apply_tables(before, [service("dns", "203.0.113.11", hosts=(2,))], rules, replace_all=True).new
    left = purge(gone, gone.retiring).new
    assert apply_tables(left, [new], rules).lines


def test_names_of_what_is_withdrawn_are_no_longer_than_names_may_be() -> None:
    name = "n" * 128
    table = {**service(), "name": name}
    desired = apply_tables(Desired(), [table], RULES).new
    desired = apply_tables(desired, [table | {"vip": "203.0.113.11"}], RULES).new
    assert all(len(key) <= 128 for key in desired.retiring)
    assert len(desired.retiring) == 1
