# SPDX-License-Identifier: Apache-2.0
"""``lb-mux``: starts the data plane, keeps it current from a file or a manager, and stops it in the right order.

Start: file, privileges, state directory, interface, isolation, I/O, next hops, workers, then the sockets; the line
``ready`` comes last. A stop goes the other way, and isolation is the last thing removed. SIGHUP reads the file
again: right, it is published with no flow forgotten; wrong, every mistake is logged and the old state serves on.
Whatever a killed predecessor left in the kernel is taken over by the start. One event loop; the workers are C.

With a manager the services come from it: what this MUX cannot serve of them is left out alone, and told to the manager
(:mod:`lb.mux.leave_out`). The start takes the last good state from the disk, so that it waits for nobody.

Every task is one of :class:`lb.daemon.supervise.Tasks`. A stop that was not asked for, whatever the reason, leaves the
isolation of the VIPs in the kernel, and the file ``mux.running`` in the state directory.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from lb import log as log_setup
from lb.bgp.session import State
from lb.changes import Change, Vips
from lb.config import load_mux, parse_manager_url
from lb.control import ControlServer
from lb.daemon.keeper import Keeper
from lb.daemon.kernel_watch import EVERYTHING, NOTHING, KernelWatch, Own
from lb.daemon.main_rule import MainRule
from lb.daemon.marker import RunMarker
from lb.daemon.priority import control_first, helpers
from lb.daemon.supervise import Tasks, describe, until
from lb.doctor import startup
from lb.doctor.facts import Role
from lb.errors import ConfigError, ControlError, DataplaneError, RequestError, VipmuxError
from lb.forwarding import Compiler, Forwarding
from lb.log import get_logger
from lb.memory import give_back, tame_allocator
from lb.metrics import MetricsServer, MuxCollector, serve
from lb.model import Address, IoMode, MuxConfig, Service
from lb.mux import own_verdicts as own
from lb.mux.announcer import Announcer
from lb.mux.census import FlowCensus
from lb.mux.engine import Engine
from lb.mux.fullness import Fullness
from lb.mux.hop_watch import HopWatch
from lb.mux.leave_out import compile_most, local_vips, readable
from lb.mux.mode import Mode
from lb.mux.netlink import Netlink
from lb.mux.nexthops import Link, Resolution
from lb.mux.open_port import open_port
from lb.mux.overload import OverloadWatch
from lb.mux.ports import Port
from lb.mux.reload import check_bgp, check_settings, check_vips
from lb.mux.requests import answer, handlers
from lb.mux.startup import StateDir, check_outer_source, find_interface
from lb.mux.status import Condition, Status
from lb.mux.tun import ROUTE_PROTOCOL
from lb.mux.tunnel_probes import TunnelProbes
from lb.mux.xdp import maps_need_rights
from lb.node.token_option import given_token, token_options
from lb.notify import Supervisor
from lb.privileges import Capability, keep_only, require

if TYPE_CHECKING:
    from lb.mux.handover import Handover
    from lb.node.follower import Follower
    from lb.node.messages import NodeState

PROGRAM = "lb-mux"
SOCKET = "mux.sock"
MARKER = "mux.running"
#: To open sockets and devices; to change routes, neighbours and nftables.
NEEDED = (Capability.NET_ADMIN, Capability.NET_RAW)
#: To start ExaBGP as somebody without rights, and to end it.
FOR_BGP = (Capability.KILL, Capability.SETGID, Capability.SETUID)
#: How long a start or a reload waits for backends to answer ARP before it goes on without them, seconds.
SETTLE = 1.0
#: So many services are compiled in the event loop: it takes less time than to ask a thread.
SMALL = 20
#: Services that come or go at once from which on the memory of it is given back.
MANY = 1000
#: After how long, seconds.
TIDY = 2.0
#: How often workers are looked after, seconds.
CARE_INTERVAL = 0.5
#: A worker whose heartbeat stood still for so long is reported, seconds.
STALLED = 3.0
#: How long a start waits for the manager, by whom the other MUXes' flows come, before it announces, seconds.
ENTER_WAIT = 1.0
#: How long a stop waits for a change of services that is under way, seconds.
FINISH = 20.0
#: How often it is looked for dead backends while the manager is away, seconds.
OWN_INTERVAL = 1.0
#: The task that announces after a start.
ENTERING = "first announcements"
_PRIVILEGED_PORTS = 1024

log = get_logger()

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Plane:
    """What forwards packets, once it is open."""

    port: Port
    mode: Mode  #: what was obtained when the port was opened last
    engine: Engine


class Daemon:
    """One MUX, from its file to its end."""

    def __init__(
        self,
        path: Path,
        config: MuxConfig,
        netlink: Netlink,
        state_dir: StateDir,
        reload_wanted: asyncio.Event,
        *,
        supervisor: Supervisor,
        token: str | None = None,
    ) -> None:
        """``reload_wanted`` is set by SIGHUP, perhaps before the start has ended. ``token``: to join the manager."""
        self._path = path
        self._supervisor = supervisor
        self._manager = config.manager
        self._settings = config.mux
        self._bgp = config.bgp
        self._announcer: Announcer | None = None
        self._netlink = netlink
        self._state_dir = state_dir
        self._compiler = Compiler(config.mux)
        self._condition = Condition()
        self._watch = HopWatch(netlink, self._hops_changed, self._links_changed)
        self._tasks = Tasks(tell=supervisor.status)
        self._marker = RunMarker(state_dir.path / MARKER)
        self._capped: frozenset[str] = frozenset()  # services of which too much seems dead, without a manager
        self._served = False  # the start came to its end
        self._reload_wanted = reload_wanted
        self._opened: Plane | None = None
        self._own = Own()  # by what our own changes of the kernel are known
        self._keeper = Keeper((), KernelWatch(NOTHING))
        self._vips = Vips.of(())  # of the services that are live
        self._local: Mapping[Address, str] = {}  # this machine's addresses, when VIPs were last checked against them
        self._changing = asyncio.Lock()  # one change of services or workers at a time, whoever wants it
        self._opening = asyncio.Lock()  # one who opens and closes ios at a time
        self._follower = self._follow(config, token)
        self._handover = self._hand_over()
        self._announced: Mapping[str, Any] = {}
        self._drained = False
        self._tidying: asyncio.TimerHandle | None = None
        self._probes = TunnelProbes(config.mux, netlink, self._follower.client.send_health if self._follower else None)
        if self._follower is not None:
            self._follower.client.reports = self._probes.reports
        self._control: ControlServer | None = None
        self._metrics: MetricsServer | None = None

    @property
    def _plane(self) -> Plane:
        """For all that happens after the start."""
        assert self._opened is not None  # noqa: S101
        return self._opened

    # -- start and stop -----------------------------------------------------------------------------------------

    def _make_engine(self, port: Port, forwarding: Forwarding) -> Engine:
        """Whose flow tables hold the compiler's numbers."""
        engine = Engine(self._settings, port.link, forwarding, guesses_checksums=port.guesses_checksums)
        self._compiler.follow(engine)
        return engine

    async def start(self, services: tuple[Service, ...]) -> None:
        """Everything up to ``ready``."""
        state: NodeState = {}
        self._marker.begin()
        if self._follower is not None:
            state, services = await self._follower.begin()
        find_interface(self._settings.interface, (await self._netlink.links()).values())
        local = await self._netlink.local_addresses()
        check_outer_source(self._settings, local)
        if self._follower is None:
            check_vips(services, local)
            forwarding = self._compiler.compile(services)
        else:
            forwarding = self._begin_with(self._follower, services, local)
            services = forwarding.services
        self._vips, self._local = Vips.of(services), local
        port, mode = await open_port(
            self._settings, self._vips.networks, self._netlink, self._state_dir.path, self._own
        )
        engine = self._make_engine(port, forwarding)
        self._opened = Plane(port, mode, engine)
        self._keeper = self._keep(port)
        if self._bgp is not None:
            self._announcer = Announcer(self._bgp, self._settings, engine, self._unsound)
            if self._handover is not None:
                self._announce({**state, "announcements": {}})  # the others' flows first
        if port.inherited:
            log.info(
                "repaired", reason="an earlier lb-mux did not stop cleanly; its isolation of the VIPs was taken over"
            )
        addresses = forwarding.hop_addresses if port.watches_hops else ()
        await self._watch.start(addresses)
        self._tasks.restarted("next hops", self._watch.run)
        await self._watch.settle(addresses, SETTLE)
        self._hops_changed(self._watch.resolutions)
        self._drop_privileges()
        engine.start(port.ios)
        await self._open_sockets()
        await self._probes.start(services)
        self._tasks.restarted("probes", self._probes.run)
        self._tasks.restarted("care of workers", self._care)
        self._tasks.restarted("reloads", self._reloads)
        self._tasks.restarted("kept in the kernel", self._keeper.run)
        self._condition.state = "ready"
        give_back()
        self._log_ready(services)
        if self._announcer is not None:
            await self._announcer.start()
        if self._follower is not None and self._handover is not None:
            self._follower.begin_tasks(self._tasks)
            self._tasks.restarted("hand-over of flows", self._handover.run)
            self._tasks.retried(ENTERING, partial(self._enter, state))
            self._tasks.restarted("own verdicts", partial(self._own_verdicts, self._follower))
        self._served = True
        self._supervisor.ready(self._summary())

    def _begin_with(
        self, follower: Follower, services: tuple[Service, ...], local: Mapping[Address, str]
    ) -> Forwarding:
        """What of the last good state can be served here."""
        left_out = local_vips(services, local, ())
        change = Change.between((), services).without(left_out)
        forwarding, no_room = compile_most(self._compiler, change, self._compiler.compile(()))
        left_out |= no_room
        if left_out:
            follower.begun_without(left_out)
        return forwarding

    def _summary(self) -> str:
        """The MUX in one line, for ``systemctl status``."""
        engine = self._plane.engine
        text = f"{self._condition.state}: {_count(len(engine.forwarding.services), 'service')}"
        text += f", generation {engine.generation}"
        if self._announcer is not None:
            peers = self._announcer.peers()
            up = sum(peer["state"] == State.ESTABLISHED.value for peer in peers)
            text += f", {up} of {_count(len(peers), 'BGP session')} established"
        if self._condition.rejected is not None:
            text += "; the last configuration was refused"
        return text

    def _log_ready(self, services: tuple[Service, ...]) -> None:
        log.info(
            "ready",
            io=self._plane.mode.io.value,
            mode=self._plane.mode.text,
            reason=self._plane.mode.reason,
            vector=self._plane.engine.vector,
            interface=self._settings.interface,
            workers=self._settings.workers,
            services=len(services),
            generation=self._plane.engine.generation,
        )
        settings = self._settings
        startup.say(Role.MUX, settings.state_dir, interface=settings.interface, mtu=settings.mtu)

    def _drop_privileges(self) -> None:
        keep = [*NEEDED, Capability.SYS_NICE]  # the last, if we have it, so that workers go before other threads
        if int(self._settings.metrics.rpartition(":")[2]) < _PRIVILEGED_PORTS:
            keep.append(Capability.NET_BIND_SERVICE)
        if self._plane.mode.io is IoMode.XDP and maps_need_rights(os.uname().release):
            keep.append(Capability.BPF)
        unlimited = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] == resource.RLIM_INFINITY
        if self._plane.mode.io is IoMode.XDP and not unlimited:
            keep.append(Capability.IPC_LOCK)  # or an interface that was made anew could not be opened again
        if self._bgp is not None:
            keep += FOR_BGP
        kept = keep_only(keep)
        log.info("privileges dropped", kept=" ".join(str(capability) for capability in kept), new_privileges="never")

    async def _open_sockets(self) -> None:
        census = FlowCensus(self._plane.engine)
        self._tasks.restarted("census of flows", census.run)
        overload = OverloadWatch(
            lambda: self._plane.engine, self._follower.client.send_event if self._follower is not None else None
        )
        self._tasks.restarted("watch for overload", overload.run)
        status = Status(
            self._settings,
            lambda: self._plane.mode,
            self._plane.engine,
            self._condition,
            self._announcer,
            census=census,
            probed=self._probes.known,
            manager=self._follower.row if self._follower is not None else None,
            handover=lambda: self._handover.words if self._handover is not None else None,
            keeper=self._keeper,
            overload=overload,
        )
        if self._follower is not None:
            self._follower.status = status.for_manager
            self._follower.client.answer = partial(answer, self._plane.engine)
        self._metrics = serve(self._settings.metrics, MuxCollector(status.figures), key="mux.metrics")
        self._control = ControlServer(self._state_dir.path / SOCKET, handlers(status, self._plane.engine))
        try:
            await self._control.start()
        except ControlError as error:  # nobody can ask us here, which is no reason to serve nobody
            log.error("no local socket", reason=str(error), then="lb-mux serves all the same")
        _go_first()

    async def stop(self, *, clean: bool) -> None:
        """In the reverse order of the start, whatever part of it had happened. Not ``clean``: something failed."""
        self._supervisor.stopping()
        await self._finish()
        self._tasks.end(ENTERING)
        if self._announcer is not None:  # first: while routers are told, packets are still forwarded
            if clean and self._handover is not None and self._announcer.announces:
                await self._handover.give()
            await self._announcer.stop(planned=clean)
        self._condition.state = "stopping"
        await self._tasks.close()
        await self._probes.close()
        if self._control is not None:
            await self._control.close()
        if self._metrics is not None:
            await asyncio.to_thread(self._metrics.close)
        if self._opened is not None:
            self._opened.engine.stop()
            self._opened.port.close_ios()
            # After a failure clients may still be sent here: without the drop this kernel would answer them.
            if clean or not (self._served or self._opened.port.inherited):
                await self._opened.port.remove()
            log.info("stopped", clean=clean)
        if clean or not (self._served or self._marker.found):
            self._marker.end()

    async def _finish(self) -> None:
        """Lets a change of services that is under way come to its end, and none begin after it: what it works with is
        closed next, and a helper thread cannot be stopped."""
        try:
            async with asyncio.timeout(FINISH):
                await self._changing.acquire()
        except TimeoutError:
            log.error("change not finished", reason=f"it takes longer than {FINISH:g} s", then="stopped all the same")

    async def failed(self) -> None:
        """Returns never; raises TaskFailedError where a task failed that nothing goes on without."""
        await self._tasks.failed()

    # -- next hops and the interface ----------------------------------------------------------------------------

    def _hops_changed(self, resolutions: Mapping[Address, Resolution]) -> None:
        if self._opened is None:
            return
        unreachable = {str(found.address): found.reason for found in self._watch.unreachable()}
        self._condition.unreachable = unreachable
        before = self._plane.engine.generation
        self._plane.engine.publish_hops(self._plane.port.hops(self._plane.engine.forwarding.hop_addresses, resolutions))
        if self._plane.engine.generation != before:
            self._tell_announcer()

    def _unsound(self) -> str | None:
        """Why no VIP may be announced now, whatever the table says."""
        if self._condition.state == "degraded":
            return f"the interface {self._settings.interface} is down or gone"
        return None

    def _links_changed(self, links: Mapping[int, Link]) -> None:
        name = self._settings.interface
        now = next((link for link in links.values() if link.name == name), None)
        was_there = self._condition.state != "degraded"
        if now is None or not now.up:
            if was_there:
                what = "is down" if now else "is gone"
                log.error("interface lost", interface=name, reason=f"{what}; waiting for it to return")
                self._condition.state = "degraded"
                self._tell_announcer()
            return
        if not was_there and self._plane.port.lost() is None:
            log.info("interface back", interface=name)
            self._condition.state = "ready"
            self._tell_announcer()
            if self._announcer is not None:
                self._announcer.link_up()

    def _tell_announcer(self) -> None:
        if self._announcer is not None:
            self._announcer.published()

    # -- kept in the kernel -------------------------------------------------------------------------------------

    def _keep(self, port: Port) -> Keeper:
        self._own.ports.add(self._netlink.port)
        watch = KernelWatch(EVERYTHING, own=self._own, tables=port.tables, protocols=[ROUTE_PROTOCOL])
        return Keeper([MainRule(), *port.parts(self._reopen), *self._probes.parts()], watch)

    async def _reopen(self) -> None:
        """A new interface of the old name: new isolation, new rings, the same flow tables. Raises VipmuxError."""
        async with self._opening:
            self._plane.engine.stop()
            try:
                await self._plane.port.reopen()
                self._plane.engine.start(self._plane.port.ios)
            except Exception:  # whatever it is: else the port looks open, and nobody forwards
                self._lose_port()
                raise
            self._opened_again()
        self._inherit_soon()
        self._links_changed(self._watch.links)

    def _lose_port(self) -> None:
        """The keeper opens it again."""
        self._plane.engine.stop()
        self._plane.port.close_ios()
        self._condition.state = "degraded"
        self._tell_announcer()

    def _opened_again(self) -> None:
        """What was had of the port before may not be had now, and what was refused may be."""
        before, port = self._plane.mode, self._plane.port
        now = replace(before, details=port.details)
        self._opened = replace(self._plane, mode=now)
        say = log.warning if now.cuts and not before.cuts else log.info
        more = {} if now == before else {"before": before.text}
        say("interface opened again", interface=self._settings.interface, mode=now.text, **more)

    # -- reload -------------------------------------------------------------------------------------------------

    async def _reloads(self) -> None:
        while True:
            await self._reload_wanted.wait()
            self._reload_wanted.clear()
            self._supervisor.reloading()
            try:
                await self._reload()
            except Exception as error:
                self._reject(error)
                log.warning("serving on with the previous configuration", generation=self._plane.engine.generation)
            self._supervisor.ready(self._summary())

    def _reject(self, error: Exception) -> None:
        """What nobody meant has its traceback in the log; it is no reason to leave whoever sent the signal waiting."""
        meant = isinstance(error, VipmuxError | OSError)
        self._condition.rejected = describe(error)
        lines = error.lines if isinstance(error, ConfigError) else [describe(error)]
        for line in lines:
            more = {} if meant else {"exc_info": error}
            log.error("configuration rejected", file=str(self._path), mistake=line, **more)

    async def _reload(self) -> None:
        config = await asyncio.to_thread(load_mux, self._path, manager=self._manager)
        check_settings(self._settings, config.mux)
        check_bgp(self._bgp, config.bgp)
        workers = config.mux.workers
        self._check_workers(workers)
        if self._follower is not None:
            async with self._changing:
                await self._change_workers(workers)
            log.info("configuration read", reason="services come from the manager")
            self._follower.client.retry()
            return
        async with self._changing:
            await self._take(Change.between(self._plane.engine.forwarding.services, config.services))
            del config
            give_back()
            await self._change_workers(workers)

    # -- workers ------------------------------------------------------------------------------------------------

    def _check_workers(self, workers: int) -> None:
        """Raises ConfigError where their number cannot change now."""
        why_not = None if workers == self._settings.workers else self._plane.port.keeps_workers(workers)
        if why_not is not None:
            raise ConfigError([("mux.workers", why_not)])

    async def _change_workers(self, workers: int) -> None:
        """More workers or fewer, and every flow is known to them.

        Raises VipmuxError, with the workers as they were or with the port lost."""
        before, engine = self._settings.workers, self._plane.engine
        if workers == before:
            return
        async with self._opening:
            await asyncio.to_thread(engine.inherit)  # what a change before left
            engine.expect_strangers()
            try:
                await self._plane.port.resize(workers, engine)
            except VipmuxError as error:
                if not engine.bursts() and self._plane.port.ios:
                    self._lose_port()
                raise DataplaneError(f"mux.workers: {before} did not become {workers}: {error}") from None
            mode = replace(self._plane.mode, details=self._plane.port.details)
            self._opened = replace(self._plane, mode=mode)
            self._settings = replace(self._settings, workers=workers)
        self._inherit_soon()
        log.info("workers changed", before=before, workers=workers, mode=mode.text)

    def _inherit_soon(self) -> None:
        if self._plane.engine.inherits:
            self._tasks.retried("flows to other workers", self._inherit)

    async def _inherit(self) -> None:
        flows = await asyncio.to_thread(self._plane.engine.inherit)
        log.info("flows moved to other workers", flows=flows)

    async def _take(self, change: Change) -> None:
        """Makes the services of a file live; raises VipmuxError, with everything as it was, where it cannot."""
        live = self._plane.engine.forwarding
        change = change.since(live.services)
        local = await self._netlink.local_addresses()
        check_vips(change.services, local, change.come if local is self._local else None)
        self._local = local
        await self._go_live(change, await self._compiled(self._compiler.change, change))

    async def _take_most(self, change: Change) -> dict[str, str]:
        """Makes the services of a state live, and returns those that this MUX cannot serve, and why; raises
        VipmuxError, with everything as it was, where not even the others can be."""
        change = change.since(self._plane.engine.forwarding.services)
        local = await self._netlink.local_addresses()
        left_out = local_vips(change.come, local, self._vips.networks)
        self._local = local
        change = change.without(left_out)
        if not change:  # what was left out before still is
            return left_out
        forwarding, no_room = await self._compiled(partial(compile_most, self._compiler), change)
        change = change.without(no_room)
        if change:
            await self._go_live(change, forwarding)
        return left_out | no_room

    async def _compiled(self, compile_: Callable[[Change, Forwarding], T], change: Change) -> T:
        live = self._plane.engine.forwarding
        if len(change.come) <= SMALL:  # a thread costs more, on a machine that is busy
            return compile_(change, live)
        return await asyncio.to_thread(compile_, change, live)

    async def _go_live(self, change: Change, forwarding: Forwarding) -> None:
        """What stays is not looked at: of ten thousand services mostly one changes, and somebody waits for it.

        Raises VipmuxError only as long as everything is as it was; the change is of the very services of the table.
        """
        live = self._plane.engine.forwarding
        change = Change(change.before, forwarding.services, change.gone, change.come)
        vips = self._vips.after(change)
        await self._find_ways(live, forwarding)
        if self._announcer is not None:
            await self._announcer.release(self._vips.networks - vips.networks if vips is not self._vips else ())
        try:
            await self._publish(forwarding, vips)
        finally:
            if self._announcer is not None:
                self._announcer.restore(change)
        if self._plane.port.watches_hops and forwarding.hop_addresses is not live.hop_addresses:
            self._watch.forget_all_but(forwarding.hop_addresses)
        self._probes.update(change)
        log.info("configuration published", services=len(forwarding.services), generation=self._plane.engine.generation)

    async def _find_ways(self, live: Forwarding, forwarding: Forwarding) -> None:
        """To machines that are new."""
        if self._plane.port.watches_hops and forwarding.hop_addresses is not live.hop_addresses:
            before = frozenset(self._watch.resolutions)
            await self._watch.want(forwarding.hop_addresses)
            await self._watch.settle(frozenset(forwarding.hop_addresses) - before, SETTLE)

    # -- with a manager -----------------------------------------------------------------------------------------

    def _follow(self, config: MuxConfig, token: str | None) -> Follower | None:
        if config.manager is None:
            return None
        from lb.node.follower import Follower  # noqa: PLC0415  a MUX without a manager starts faster

        return Follower(config.manager, token, "mux", config.mux, self._follow_state)

    async def _follow_state(self, state: NodeState, change: Change) -> Mapping[str, str]:
        """A state of the manager: services first, then what is announced of them. Returns what is left out."""
        async with self._changing:
            left_out: dict[str, str] = {}
            state = self._readable(state, left_out)
            try:
                if change:
                    left_out |= await self._take_most(change)
                    if len(change.gone) + len(change.come) > MANY:
                        self._tidy_soon()
            except VipmuxError as error:
                self._condition.rejected = str(error)
                raise
            self._condition.rejected = None
            await self._exchange_flows(state)
            self._announce(state)
            self._tasks.end(ENTERING)  # what it would announce is no news any more
            return left_out

    def _readable(self, state: NodeState, left_out: dict[str, str]) -> NodeState:
        """The state without announcements that this MUX cannot make."""
        wanted = state.get("announcements", {})
        if self._announcer is None or _same(wanted, self._announced):
            return state
        found, wrong = readable(wanted, self._announcer.check)
        left_out |= {f"announcements/{vip}": reason for vip, reason in wrong.items()}
        return state if found is wanted else {**state, "announcements": found}

    async def _own_verdicts(self, follower: Follower) -> None:
        """While the manager is away dead backends get no new flows from here; undone when it is back."""
        clock = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(OWN_INTERVAL)
            since = follower.client.away_since
            away = since is not None and clock() - since > own.PATIENCE
            if away or self._condition.own_verdicts:
                async with self._changing:
                    await self._go_by(follower, away=away)

    async def _go_by(self, follower: Follower, *, away: bool) -> None:
        """Our own verdicts, or the manager's word again."""
        wanted = follower.services
        found = own.own_verdicts(wanted, self._probes.known(), self._plane.engine.reachable) if away else None
        drained = dict(found.drained) if found is not None else {}
        self._mention_capped(found.capped if found is not None else {})
        before = self._condition.own_verdicts
        if drained.keys() != before.keys() or not away:
            services = found.services if found is not None else wanted
            change = Change.between(self._plane.engine.forwarding.services, services)
            if change:
                forwarding, _ = await self._compiled(partial(compile_most, self._compiler), change)
                await self._go_live(change, forwarding)
        self._condition.own_verdicts = drained
        for service, backend in drained.keys() - before.keys():
            reason = drained[service, backend]
            log.warning(
                "backend drained by this MUX itself", backend=f"{service}/{backend}", reason=reason, manager="away"
            )
        for service, backend in before.keys() - drained.keys():
            why = "it is well again" if away else "the manager is back"
            log.info("backend no longer drained by this MUX itself", backend=f"{service}/{backend}", reason=why)

    def _mention_capped(self, capped: Mapping[str, str]) -> None:
        """Once for each."""
        for service in capped.keys() - self._capped:
            log.error("too many backends seem dead", service=service, reason=capped[service], manager="away")
        self._capped = frozenset(capped)

    def _tidy_soon(self) -> None:
        """Once the state is on the disk and acknowledged, and nobody waits."""
        if self._tidying is not None:
            self._tidying.cancel()
        self._tidying = asyncio.get_running_loop().call_later(TIDY, give_back)

    def _hand_over(self) -> Handover | None:
        if self._follower is None:
            return None
        from lb.mux.handover import Handover  # noqa: PLC0415

        return Handover(self._settings, lambda: self._plane.engine, self._follower.client)

    async def _exchange_flows(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Before routers send packets here that went elsewhere, and before they send them elsewhere."""
        if self._handover is None or self._announcer is None:
            return
        serves = bool(self._announced) and not self._drained
        shall = bool(state.get("announcements", {})) and not _drains(state)
        try:
            if shall and not serves:
                since = self._announcer.away_since
                await self._handover.fetch(None if since is None else asyncio.get_running_loop().time() - since)
            elif serves and not shall and self._announcer.announces:
                await self._handover.give()
        except VipmuxError as error:  # a worker that stands still, or is being replaced
            log.warning(
                "flows not handed over", reason=str(error), consequence="those that one MUX alone knows may break"
            )

    async def _enter(self, state: NodeState) -> None:
        """After a start: announces as in the last good state, once the others' flows are here, or cannot be had."""
        assert self._handover is not None  # noqa: S101
        if not state.get("announcements"):
            return
        await self._handover.connected(ENTER_WAIT)
        async with self._changing:  # a newer state of the manager ends this while it waits here
            await self._exchange_flows(state)
            self._announce(state)

    def _announce(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        if self._announcer is None:
            return
        wanted = state.get("announcements", {})
        if not wanted or not _same(wanted, self._announced):
            self._announcer.want(wanted)
        self._announced = wanted
        self._drained = _drains(state)
        self._announcer.drain(self._drained)

    async def _publish(self, forwarding: Forwarding, vips: Vips) -> None:
        """Packets of old and new VIPs come in until the new table is live."""
        old = self._vips.networks
        if vips.networks is not old:
            await self._plane.port.cover(old | vips.networks)
        hops = self._plane.port.hops(forwarding.hop_addresses, self._watch.resolutions)
        self._plane.engine.publish(forwarding, hops)
        self._vips = vips
        self._condition.rejected = None
        self._plane.engine.reclaim()
        if vips.networks is not old:
            try:
                await self._plane.port.cover(vips.networks)
            except VipmuxError as error:  # what is live is right all the same; packets of VIPs that went are dropped
                log.warning("isolation is wider than it should be", reason=str(error), then="it is tried again")
                self._tasks.retried("isolation of VIPs that went", self._cover_again)

    async def _cover_again(self) -> None:
        async with self._changing:
            await self._plane.port.cover(self._vips.networks)

    # -- care ---------------------------------------------------------------------------------------------------

    def _tell_if_full(self, refused: int) -> None:
        if refused:
            log.warning(
                "flow table full",
                refused=refused,
                flows=self._settings.flows,
                reason="new flows are forwarded by Maglev alone and may move when backends change",
                remedy="raise flows in [mux] and restart",
            )

    async def _care(self) -> None:
        """Frees what workers let go of; reports a full flow table, and a worker that fails or stands still, once.

        Whoever supervises us hears from here that all is well, and only while every worker turns.
        """
        loop = asyncio.get_running_loop()
        fullness = Fullness()
        beats: dict[int, tuple[int, float]] = {}
        stalled: set[int] = set()
        errors: dict[int, int] = {}
        while True:
            await asyncio.sleep(CARE_INTERVAL)
            self._plane.engine.reclaim()
            with contextlib.suppress(DataplaneError):  # a worker that stands still: said below
                self._plane.engine.tend()
            self._tell_if_full(fullness.step(self._plane.engine.refused(), loop.time()))
            heartbeats = self._plane.engine.heartbeats()
            for number, worker in enumerate(heartbeats):
                if worker.error and worker.error != errors.get(number):
                    log.warning("receive failed", worker=number, error=errno.errorcode.get(worker.error, "?"))
                errors[number] = worker.error
                bursts, since = beats.get(number, (-1, 0.0))
                if bursts != worker.bursts:
                    beats[number] = (worker.bursts, loop.time())
                    stalled.discard(number)
                elif loop.time() - since > STALLED and number not in stalled:
                    log.error("worker stands still", worker=number, seconds=round(loop.time() - since, 1))
                    stalled.add(number)
            stalled &= set(range(len(heartbeats)))  # of fewer workers than there were
            if not stalled:
                self._supervisor.alive()
            self._supervisor.status(f"{len(stalled)} workers stand still" if stalled else self._summary())


def _go_first() -> None:
    """After what may wait (metrics), before what may not (the heart, ExaBGP): they begin with what we have."""
    refused = control_first()
    if refused is not None:
        log.warning("no priority", reason=refused, consequence="a MUX that is saturated may lose BGP and manager")


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _drains(state: Mapping[str, Mapping[str, Any]]) -> bool:
    return state.get("options", {}).get("drain") is True


def _same(one: object, other: object) -> bool:
    """At a glance where it is the same object: mappings of ten thousand entries compare one by one otherwise."""
    return one is other or one == other


async def serve_until_told(path: Path, manager: str | None = None, token: str | None = None) -> None:
    """The daemon's whole life; returns after a clean stop."""
    loop = asyncio.get_running_loop()
    loop.set_default_executor(helpers())
    end = asyncio.Event()
    hangup = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end.set)
    loop.add_signal_handler(signal.SIGHUP, hangup.set)
    supervisor = Supervisor.from_environment()
    config = load_mux(path, manager=parse_manager_url(manager) if manager is not None else None)
    if token is not None and config.manager is None:
        raise RequestError("--token is for joining a manager: give --manager URL as well, or [manager] url in the file")
    require(PROGRAM, NEEDED)
    with contextlib.closing(StateDir(config.mux.state_dir)) as state_dir:
        async with Netlink() as netlink:
            daemon = Daemon(path, config, netlink, state_dir, hangup, supervisor=supervisor, token=token)
            clean = False
            try:
                if await until(end, daemon.start(config.services)):
                    await until(end, daemon.failed())
                clean = True
            finally:
                await daemon.stop(clean=clean)


@click.command()
@click.option("--config", "path", required=True, type=click.Path(path_type=Path), help="The MUX's TOML file.")
@click.option("--manager", metavar="URL", help="The manager that services come from; goes before the file's.")
@token_options
@click.version_option(package_name="vipmux", prog_name=PROGRAM)
def main(path: Path, manager: str | None, token: str | None, token_file: Path | None) -> None:
    """Forward packets for VIPs to backends until SIGTERM, as a file or a manager says; SIGHUP reads the file again."""
    log_setup.configure(PROGRAM)
    tame_allocator()
    try:
        asyncio.run(serve_until_told(path, manager, given_token(token, token_file)))
    except ConfigError as error:
        for line in error.lines:
            click.echo(line, err=True)
        sys.exit(error.exit_code)
    except VipmuxError as error:
        click.echo(f"{PROGRAM}: {error}", err=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
