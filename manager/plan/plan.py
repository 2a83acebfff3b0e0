# SPDX-License-Identifier: Apache-2.0
"""From what should be and what is to what every node should have. Pure; :mod:`manager.controller.controller` calls it.

    desired services + nodes (what each has live) + reports + memory  ->  a NodeState for each node, and new memory

The plan is made VIP by VIP, for what is at one VIP does not depend on what is at another; :func:`replan` makes only
those VIPs anew that something happened to, and gives what :func:`plan` would give. Planning again once the nodes have
what they should changes nothing. The order of steps comes from looking at what nodes have acknowledged:

* install before announce: a MUX is told to announce a VIP once it has the VIP's services itself and the agents of
  their backends have them too, and accept this MUX's tunnels. A backend takes no traffic before its agent has it.
* withdraw before remove: what is at a VIP that nobody wants any more stays on MUXes until none announces the VIP,
  and on agents until no MUX has it. A backend taken out of a service stays on its agent until no MUX sends to it.
* a place that is served is served on: who was there before serves until somebody who is there now can
  (:mod:`manager.plan.previous`), and who is renamed is who they were.
* what was granted stays granted: memory outlives the manager, so that one that starts anew withdraws nothing.

A MUX that is gone for longer than the hold time, and an agent that is gone or does not answer, hold nobody up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from lb.model import BackendState
from manager.desired.state import Desired
from manager.plan.announcers import announcement, grants, unwanted_by_policy
from manager.plan.model import (
    BackendOrder,
    BackendPlan,
    Leaving,
    Node,
    Plan,
    PlanCache,
    PlanMemory,
    Prepared,
    Remembered,
    Vip,
    VipPlan,
    World,
    prefix_of,
    tables_of,
)
from manager.plan.node_states import States, agents_of, replaced, with_lent
from manager.plan.previous import Previous
from manager.plan.slow_start import weights
from manager.plan.verdicts import plan_backends

# --- the whole -------------------------------------------------------------------------------------------------------


def plan(world: World) -> Plan:
    """Everything anew."""
    return replan(Plan(), world, None)


def replan(last: Plan, world: World, touched: Iterable[Vip] | None) -> Plan:
    """``last`` with the VIPs in ``touched`` planned anew; None: all. Whatever else changed in ``world`` must not
    matter to the other VIPs: that is the caller's promise."""
    drains = drain_muxes(world)
    draining = frozenset(name for name, waits in drains.items() if waits is None)
    world = replace(world, draining=draining, tables=world.tables or PlanCache())
    desired = world.desired
    every = {*last.vips, *desired.by_vip, *desired.retiring_by_vip} if touched is None else set()
    names = every if touched is None else coupled(last, desired, touched)
    here, failed = _each(last, world, names)
    vips = replaced(last.vips, names, here)
    states = States(last, world, vips, None if touched is None else names)
    before = PlanMemory() if touched is None else world.memory
    remembered = _remember(last, before, vips, names)
    if failed or last.failed:
        failed = {vip: why for vip, why in last.failed.items() if vip not in names} | failed
    return Plan(vips, states.services, states.states(), drains, remembered, failed)


def _each(last: Plan, world: World, names: Iterable[Vip]) -> tuple[dict[Vip, VipPlan], dict[Vip, Exception]]:
    """The VIPs' plans, and those that could not be made: a mistake of ours in one must not stop all others, so it
    stays as it was, or is as its tables say."""
    desired = world.desired
    here: dict[Vip, VipPlan] = {}
    failed: dict[Vip, Exception] = {}
    for vip in names:
        if vip not in desired.by_vip and vip not in desired.retiring_by_vip:
            continue
        try:
            here[vip] = plan_vip(vip, world)
        except Exception as error:  # whatever it is; who calls says it
            failed[vip] = error
            here[vip] = last.vips.get(vip) or _unplanned(vip, world)
    return here, failed


def coupled(last: Plan, desired: Desired, touched: Iterable[Vip]) -> set[Vip]:
    """``touched``, and the VIPs that their services come from: a name is in one place at a time, so these are planned
    together or not at all."""
    found = set(touched)
    todo = list(found)
    while todo:
        for name in desired.by_vip.get(todo.pop(), ()):
            table = last.services.get(name)
            other = prefix_of(table["vip"]) if table is not None else None
            if other is not None and other not in found:
                found.add(other)
                todo.append(other)
    return found


def _remember(last: Plan, before: PlanMemory, vips: Mapping[Vip, VipPlan], names: Iterable[Vip]) -> PlanMemory:
    """``before`` with what was planned anew."""
    kept: dict[str, dict[Vip, Any]] = {"granted": {}, "lent": {}, "served": {}, "leaving": {}}
    backends: dict[Any, Any] = {}
    gone: dict[Any, None] = {}
    for vip in names:
        gone.update((item.key, None) for item in (last.vips[vip].backends if vip in last.vips else ()))
        found = vips.get(vip)
        if found is None:
            continue
        memory = {"granted": found.granted, "lent": found.agents, "served": found.served, "leaving": found.leaving}
        for what, value in memory.items():
            if value:
                kept[what][vip] = value
        for item in found.backends:
            proven = item.healthy or (item.known is not None and item.known.proven)
            taking = item.state is BackendState.UP
            begun = item.ramp.begun if item.ramp is not None else None
            backends[item.key] = Remembered(item.healthy, proven, taking, item.shown, item.since, begun)
    vips_gone = dict.fromkeys(names)
    return PlanMemory(
        replaced(before.backends, gone, backends),
        **{what: replaced(getattr(before, what), vips_gone, found) for what, found in kept.items()},
    )


def drain_muxes(world: World) -> dict[str, str | None]:
    """Which of the MUXes that operators drain may go now: enough others must stay. First ordered, first served."""
    muxes = world.muxes
    orders = sorted(
        ((order.at, name) for name, order in world.desired.mux_drains.items() if name in muxes), key=lambda o: o
    )
    must_stay = math.ceil(len(muxes) * (1 - world.withdraw_cap)) if len(muxes) > 1 else 0
    serving = {name for name, mux in muxes.items() if not mux.gone}
    answers: dict[str, str | None] = {}
    for _, name in orders:
        left = len(serving - {name})
        if left >= must_stay or name not in serving:
            serving.discard(name)
            answers[name] = None
        else:
            answers[name] = f"waits: {left} of {len(muxes)} MUXes would be left, withdraw_cap asks for {must_stay}"
    return answers


# --- one VIP ---------------------------------------------------------------------------------------------------------


def plan_vip(vip: Vip, world: World) -> VipPlan:
    """All that is at one VIP."""
    names = world.desired.by_vip.get(vip)
    if names is None:
        return _retire(vip, world)
    before = Previous(vip, world)
    services = [tables_of(world).get(world.desired.services[name], world) for name in names]
    backends: list[BackendPlan] = []
    panic: dict[str, str] = {}
    tables: dict[str, Any] = {}
    leaving: list[Leaving] = []
    for prepared in services:
        found, reason = plan_backends(prepared, before, world)
        backends += found
        name = prepared.service.name
        told = weights(prepared.service.backends, [item.ramp for item in found])
        left = before.leaving(prepared.service, found, world)
        leaving += left
        stay = {item.backend.address for item in left} & {item.backend.address for item in found}
        tables[name] = prepared.mux_table(
            tuple(
                BackendOrder(BackendState.UP, max(1, weight))
                if item.backend.address in stay
                else BackendOrder(item.state, weight)
                for item, weight in zip(found, told, strict=True)
            ),
            tuple(item.backend for item in left if item.backend.address not in stay),
        )
        if reason is not None:
            panic[name] = reason
    unwanted = unwanted_by_policy(services, backends)
    granted, withheld, unsettled = grants(before, services, backends, unwanted, world)
    return VipPlan(
        vip,
        tables=tables,
        agents=with_lent(before, agents_of(services), world),
        announcement=announcement(services),
        granted=granted,
        withheld=withheld,
        backends=tuple(backends),
        served=tuple(prepared.service for prepared in services),
        leaving=tuple(leaving),
        panic=panic,
        unsettled=unsettled,
    )


def _unplanned(vip: Vip, world: World) -> VipPlan:
    """What can be had without a plan: the tables as they are, announced by who was to announce it."""
    withheld = dict.fromkeys(world.muxes, "it cannot be planned, see the log")
    try:
        services = [Prepared(world.desired.services[name], world) for name in world.desired.by_vip.get(vip, ())]
        told = [tuple(BackendOrder.of(backend) for backend in found.service.backends) for found in services]
        tables = {found.service.name: found.mux_table(now) for found, now in zip(services, told, strict=True)}
        granted = frozenset(world.memory.granted.get(vip, frozenset()) & world.muxes.keys())
        return VipPlan(
            vip,
            tables,
            agents_of(services),
            announcement(services),
            granted,
            {m: withheld[m] for m in withheld if m not in granted},
        )
    except Exception:  # the same mistake once more, most likely
        return VipPlan(vip, withheld=withheld)


def _retire(vip: Vip, world: World) -> VipPlan:
    """Nobody wants the VIP: withdraw it, then take its services from the MUXes, then from the agents."""
    keys = world.desired.retiring_by_vip[vip]
    services = [Prepared(replace(world.desired.retiring[key], name=key), world) for key in keys]
    withheld = dict.fromkeys(world.muxes, "its services were deleted")
    before = Previous(vip, world)
    may_have = vip in world.memory.served  # what MUXes were told and have not acknowledged is not to remove it

    def holds(mux: Node, found: Callable[[Node], bool]) -> bool:
        if mux.gone:
            return False
        if may_have and vip in mux.owes and not mux.late and mux.refused is None:
            return True
        return mux.live is None or found(mux)

    def announces(mux: Node) -> bool:
        return mux.live is not None and vip in mux.live.get("announcements", {})

    def serves(mux: Node) -> bool:
        """By whatever names: meanwhile another VIP may have a service of the same."""
        return any(True for _ in tables_of(world).live(mux, vip))

    if any(holds(mux, announces) for mux in world.muxes.values()):
        tables = {
            found.service.name: found.mux_table(tuple(BackendOrder.of(backend) for backend in found.service.backends))
            for found in services
        }
        served = tuple(found.service for found in services)
        agents = with_lent(before, agents_of(services), world)
        return VipPlan(vip, tables=tables, agents=agents, withheld=withheld, served=served)
    if any(holds(mux, serves) for mux in world.muxes.values()):
        return VipPlan(vip, agents=with_lent(before, agents_of(services), world), withheld=withheld)
    return VipPlan(vip, withheld=withheld, done=tuple(keys))
