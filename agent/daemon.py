# SPDX-License-Identifier: Apache-2.0
"""``lb-agent``: the program. Reads the file, applies it, answers questions, and obeys signals.

    lb-agent --config FILE            runs; SIGHUP reads the file again, SIGTERM stops
    lb-agent cleanup --config FILE    takes everything of ours off the host

Stopping leaves the host as it is, so that connections live on while the agent is replaced; only a TUN device needs
the agent to run. All work on the host is done by :mod:`agent.agent`, in a helper thread, one call at a time.

With a manager, services and MUXes come from it. The start takes the last good state from the disk; as long as there is
none, the host is left as it is.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from agent.agent import Agent, AppliedConfig
from agent.host.change_log import ChangeLog, Lock
from agent.host.linux import RTPROT_KERNEL, LinuxHost
from agent.kernel_parts import FiltersAhead, HostInterface, HostParts, HostSettings
from agent.probes import LocalProbes, command_user
from agent.rules.nftables_table import TABLE
from agent.rules.vips import ROUTE_PROTOCOL
from agent.status import AgentCollector, HostRepairs, Picture, answer, for_manager
from lb.config.load import load_agent, parse_manager_url
from lb.daemon import log as logging
from lb.daemon.control_socket import ControlServer
from lb.daemon.files.clean_shutdown import RunMarker
from lb.daemon.kernel.keeper import Keeper
from lb.daemon.kernel.main_rule import MainRule
from lb.daemon.kernel.watch import EVERYTHING, KernelWatch, OwnMarks
from lb.daemon.log import get_logger
from lb.daemon.metrics import collectors
from lb.daemon.notify import Supervisor
from lb.daemon.process.privileges import Capability, keep_only, require
from lb.daemon.supervise import Tasks, until
from lb.doctor.checks import startup
from lb.doctor.model.facts import Role
from lb.errors import ConfigError, ControlError, RequestError, VipmuxError
from lb.model import Address, AgentConfig, DecapMode, Service
from lb.model.service_diff import ServiceDiff
from lb.node.token_option import given_token, token_options

if TYPE_CHECKING:
    from lb.node.follower import Follower
    from lb.node.messages import NodeState

log = get_logger()

PROGRAM = "lb-agent"
NEEDED = (Capability.NET_ADMIN, Capability.NET_RAW)
#: Kept where they are there: for the BPF program (older kernels: SYS_ADMIN, SYS_RESOURCE), and for command probes.
KEPT = (
    *NEEDED,
    Capability.BPF,
    Capability.PERFMON,
    Capability.SYS_ADMIN,
    Capability.SYS_RESOURCE,
    Capability.NET_BIND_SERVICE,
    Capability.SETUID,
    Capability.SETGID,
    Capability.KILL,
)
#: How often the status is looked at where nobody waits for signs of life, seconds.
STATUS_INTERVAL = 5.0
#: How long a stop waits for a change that is under way, seconds.
FINISH = 20.0


class AgentDaemon:
    """One run of the agent, from the first file to SIGTERM."""

    def __init__(
        self,
        file: Path,
        config: AgentConfig,
        agent: Agent,
        supervisor: Supervisor,
        token: str | None = None,
        *,
        own: OwnMarks | None = None,
    ) -> None:
        """``own``: by what changes of the agent's own are known."""
        self._file = file
        self._supervisor = supervisor
        self._config = config
        self._agent = agent
        self._applied: AppliedConfig | None = None
        self._rejected: str | None = None
        self._probes: LocalProbes | None = None
        self._changing = asyncio.Lock()  # one call of the agent at a time, whoever wants it
        watch = KernelWatch(EVERYTHING, own=own, tables=[TABLE], protocols=[ROUTE_PROTOCOL, RTPROT_KERNEL])
        self._interface = HostInterface(agent, self._changing)
        self._ahead = FiltersAhead(agent, self._changing)
        host = HostParts(agent, self._changing), HostSettings(agent, self._changing)
        self._keeper = Keeper([MainRule(), *host, self._interface, self._ahead], watch)
        self._follower = self._follow(config, token)

    async def run(self) -> None:
        stop, reload = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        loop.add_signal_handler(signal.SIGHUP, reload.set)
        settings = self._config.agent
        marker = RunMarker(Path(settings.state_dir) / "agent.running")
        marker.begin()
        control = ControlServer(Path(settings.state_dir) / "agent.sock", {"get": self._get})
        try:
            await control.start()
        except ControlError as error:  # nobody can ask us here, which is no reason to serve nobody
            log.error("no local socket", reason=str(error), then="lb-agent serves all the same")
        try:
            await self._begin()
            exporter = collectors.serve(settings.metrics, AgentCollector(self._picture), key="agent.metrics")
            self._probes = LocalProbes(self._follower.client.send_health if self._follower else None)
            try:
                if self._applied is not None:
                    self._say("ready", self._applied)
                    self._probes.update(self._applied.config)
                self._supervisor.ready(self._summary())
                await self._obey(stop, reload)
                marker.end()
            finally:
                self._supervisor.stopping()
                await self._probes.close()
                await asyncio.to_thread(exporter.close)
        finally:
            await control.close()
            await asyncio.to_thread(self._agent.close)

    async def _begin(self) -> None:
        """The file in force, or with a manager the last good state of it."""
        settings = self._config.agent
        startup.say(Role.AGENT, settings.state_dir, interface=settings.interface, mtu=settings.mtu)
        if self._follower is None:
            self._applied = await asyncio.to_thread(self._agent.apply, self._config)
            return
        state, services = await self._follower.begin()
        if self._follower.incomplete is not None:
            # What came last may be on the host, and is not to be taken off for want of a file.
            self._follower.not_begun(self._follower.incomplete)
            state = {}
        if not state:
            log.info("waiting", reason="the manager has not said yet what to serve; the host is left as it is")
            return
        config, left_out = self._managed(state, services)
        self._applied = await asyncio.to_thread(self._agent.apply, config)
        left_out |= self._applied.served.left_out
        if left_out:
            self._follower.begun_without(left_out)

    async def _obey(self, stop: asyncio.Event, reload: asyncio.Event) -> None:
        assert self._probes is not None  # noqa: S101  made before
        tasks = Tasks(tell=self._supervisor.status)
        tasks.restarted("probes", self._probes.run)
        tasks.restarted("heartbeat", self._vouch)
        tasks.restarted("reloads", partial(self._reloads, reload))
        tasks.restarted("kept in the kernel", self._keeper.run)
        if self._follower is not None:
            self._follower.status = self._status
            self._follower.client.reports = self._probes.reports
            self._follower.begin_tasks(tasks)
        try:
            await until(stop, tasks.failed())
        finally:
            await self._finish()
            await tasks.close()
        if self._applied is None:
            log.info("stopped", host="is as it was")
        elif self._applied.mode is DecapMode.TUN:
            log.warning("stopped", host="packets in tunnels are no longer taken out: the TUN device has ended")
        else:
            log.info("stopped", host="goes on decapsulating; lb-agent cleanup would end that")

    async def _finish(self) -> None:
        """Lets a change that is under way come to its end, and none begin after it: a helper thread cannot be stopped,
        and what it works with is closed next."""
        try:
            async with asyncio.timeout(FINISH):
                await self._changing.acquire()
        except TimeoutError:
            log.error("change not finished", reason=f"it takes longer than {FINISH:g} s", then="stopped all the same")

    async def _reloads(self, wanted: asyncio.Event) -> None:
        """Returns never."""
        while True:
            await wanted.wait()
            wanted.clear()
            self._supervisor.reloading()
            async with self._changing:
                await asyncio.to_thread(self._reload)
                if self._applied is not None and self._probes is not None:
                    self._probes.update(self._applied.config)
            self._supervisor.ready(self._summary())

    async def _vouch(self) -> None:
        """Signs of life, while helper threads answer and the worker, where packets pass through one, turns."""
        turns: int | None = -1
        while True:
            await asyncio.sleep(self._supervisor.pause or STATUS_INTERVAL)
            before, turns = turns, await asyncio.to_thread(self._agent.turns)
            if turns is None or turns != before:
                self._supervisor.alive()
                self._supervisor.status(self._summary())
            else:
                self._supervisor.status("the worker that takes packets out of their tunnels stands still")

    def _summary(self) -> str:
        """The agent in one line, for ``systemctl status``."""
        if self._applied is None:
            return "waiting: the manager has not said yet what to serve"
        count = len(self._applied.services)
        text = f"ready: {count:,} service{'' if count == 1 else 's'} here, decapsulation by {self._applied.mode.value}"
        return text if self._rejected is None else f"{text}; the last configuration was refused"

    def _reload(self) -> None:
        """The new file in force, or the old one with every mistake logged and shown in the status."""
        try:
            config = load_agent(self._file, manager=self._config.manager)
            command_user(config.agent)
            if self._follower is not None:
                self._follower.client.retry()
                if self._applied is None:
                    return
                present = self._applied.config
                config = replace(
                    present, agent=replace(config.agent, muxes=present.agent.muxes), services=present.services
                )
            self._applied = self._agent.apply(config)
        except ConfigError as error:
            for path, message in error.mistakes:
                log.error("config_refused", path=path, mistake=message)
            self._rejected = str(error)
        except VipmuxError as error:
            log.error("reload_failed", error=str(error))
            self._rejected = str(error)
            self._take_back()
        else:
            self._config = config
            self._rejected = None
            self._say("reloaded", self._applied)

    # -- with a manager ---------------------------------------------------------------------------------------------

    def _follow(self, config: AgentConfig, token: str | None) -> Follower | None:
        if config.manager is None:
            return None
        from lb.node.follower import Follower  # noqa: PLC0415  an agent without a manager starts faster

        return Follower(config.manager, token, "agent", config.agent, self._follow_state, config=self._file)

    def _managed(self, state: NodeState, services: tuple[Service, ...]) -> tuple[AgentConfig, dict[str, str]]:
        """The file, with services and MUXes as the manager says; and what of the MUXes cannot be here, and why."""
        muxes, left_out = _muxes(state.get("muxes", {}))
        return replace(self._config, agent=replace(self._config.agent, muxes=muxes), services=services), left_out

    async def _follow_state(self, state: NodeState, change: ServiceDiff) -> Mapping[str, str]:
        async with self._changing:
            config, left_out = self._managed(state, change.services)
            first = self._applied is None
            try:
                self._applied = await asyncio.to_thread(self._agent.apply, config)
            except VipmuxError as error:
                self._rejected = str(error)
                if not first and not isinstance(error, ConfigError):
                    await asyncio.to_thread(self._take_back)
                raise
            self._rejected = None
            self._say("ready" if first else "reloaded", self._applied)
            if self._probes is not None:
                self._probes.update(self._applied.config)
            return {**left_out, **self._applied.served.left_out}

    def _status(self) -> dict[str, Any]:
        picture = self._picture()
        return for_manager(picture) if picture is not None else {}

    def _take_back(self) -> None:
        """The host may be half way to the new file: back to the old one."""
        try:
            self._agent.apply(self._present.config)
        except VipmuxError as error:
            log.error("old_config_not_restored", error=str(error), then="it is tried again until it can be")

    @property
    def _present(self) -> AppliedConfig:
        assert self._applied is not None  # noqa: S101  set before anybody can ask
        return self._applied

    def _picture(self) -> Picture | None:
        if self._applied is None:
            return None
        known = self._probes.known() if self._probes is not None else {}
        manager = self._follower.row() if self._follower is not None else None
        kept = HostRepairs(
            self._keeper.rows(),
            self._keeper.words(),
            self._keeper.figures(),
            self._interface.amiss or self._ahead.amiss,
            self._ahead.named,
            self._ahead.judge.passes,
        )
        return Picture(self._applied, self._agent.counters(), self._rejected, known, manager, kept)

    async def _get(self, request: dict[str, Any]) -> list[dict[str, Any]]:
        picture = await asyncio.to_thread(self._picture)
        if picture is not None:
            return answer(picture, request)
        if self._follower is not None:
            problem = self._rejected or self._follower.client.problem or "its first state is on the way"
            raise VipmuxError(f"lb-agent waits for its manager: {problem}")
        raise VipmuxError("lb-agent is starting; ask again in a moment")

    @staticmethod
    def _say(event: str, applied: AppliedConfig) -> None:
        settings = applied.config.agent
        for name, why in applied.served.left_out.items():
            log.error("service_left_out", service=name, reason=why, then="everything else is served")
        log.info(
            event,
            decap=applied.mode.value,
            reason=applied.reason,
            services=len(applied.services),
            translated=sum(own.translated for own in applied.services),
            muxes=len(settings.muxes),
        )
        if applied.mode is DecapMode.IPIP:
            log.warning("only_ipip_tunnels", why="decapsulation by ipip takes IPv4 in IPv4 alone: no gue, no IPv6")


def _muxes(section: Mapping[str, Any]) -> tuple[tuple[Address, ...], dict[str, str]]:
    """A state's section ``muxes`` as outer sources; and what in it is no address."""
    found: list[Address] = []
    left_out: dict[str, str] = {}
    for name, entry in sorted(section.items()):
        for key in ("address", "address6"):
            value = entry.get(key) if isinstance(entry, dict) else entry
            if value is None:
                continue
            try:
                found.append(ip_address(value))
            except ValueError:
                left_out[f"muxes/{name}"] = f"{key} is no address: {str(value)[:60]!r}"
    return tuple(dict.fromkeys(found)), left_out


def run_daemon(file: Path, manager: str | None = None, token: str | None = None) -> None:
    """Runs until SIGTERM."""
    logging.configure(PROGRAM)
    supervisor = Supervisor.from_environment()
    config = load_agent(file, manager=parse_manager_url(manager) if manager is not None else None)
    if token is not None and config.manager is None:
        raise RequestError("--token is for joining a manager: give --manager URL as well, or [manager] url in the file")
    command_user(config.agent)
    require(PROGRAM, NEEDED)
    keep_only(KEPT)
    lock = Lock(config.agent.state_dir)
    try:
        own = OwnMarks()
        agent = Agent(partial(LinuxHost, own), ChangeLog(config.agent.state_dir))
        asyncio.run(_run(partial(AgentDaemon, file, config, agent, supervisor, token, own=own)))
    finally:
        lock.close()


async def _run(made: Callable[[], AgentDaemon]) -> None:
    await made().run()


def run_cleanup(file: Path) -> None:
    """Takes everything away, and says what."""
    config = load_agent(file)
    require(PROGRAM, NEEDED)
    lock = Lock(config.agent.state_dir)
    try:
        done = Agent(LinuxHost, ChangeLog(config.agent.state_dir)).cleanup(config.agent)
    finally:
        lock.close()
    for line in done or ["nothing of lb-agent was on this host"]:
        click.echo(line)


_config_option = click.option(
    "--config", "file", type=click.Path(path_type=Path), metavar="FILE", help="The agent's file, with a table [agent]."
)


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@_config_option
@click.option("--manager", metavar="URL", help="The manager that services come from; goes before the file's.")
@token_options
@click.version_option(package_name="vipmux", prog_name=PROGRAM)
@click.pass_context
def command(
    context: click.Context, file: Path | None, manager: str | None, token: str | None, token_file: Path | None
) -> None:
    """The host agent of vipmux: takes packets out of their tunnels on a backend's host.

    Stopping it leaves everything in place; `lb-agent cleanup` removes it.
    """
    if context.invoked_subcommand is None:
        run_daemon(_required(file), manager, given_token(token, token_file))
    else:
        context.obj = file


@command.command("cleanup")
@_config_option
@click.pass_context
def cleanup(context: click.Context, file: Path | None) -> None:
    """Take everything that lb-agent set up off this host, and give its settings back."""
    run_cleanup(_required(file or context.obj))


def _required(file: Path | None) -> Path:
    if file is None:
        raise click.UsageError("--config FILE is missing")
    return file


def run(arguments: Sequence[str]) -> int:
    """Runs one command line and returns the exit code."""
    try:
        command.main(args=list(arguments), prog_name=PROGRAM, standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return 2
    except (click.Abort, KeyboardInterrupt):
        return 130
    except ConfigError as error:
        prefix = f"{error.file}: " if error.file else ""
        for line in error.lines:
            click.echo(f"{PROGRAM}: {prefix}{line}", err=True)
        return error.exit_code
    except VipmuxError as error:
        click.echo(f"{PROGRAM}: {error}", err=True)
        return error.exit_code
    return 0


def main() -> NoReturn:
    """Entry point of the program."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
