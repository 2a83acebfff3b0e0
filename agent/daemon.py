# SPDX-License-Identifier: Apache-2.0
"""``lb-agent``: the program. Reads the file, applies it, answers questions, and obeys signals.

    lb-agent --config FILE            runs; SIGHUP reads the file again, SIGTERM stops
    lb-agent cleanup --config FILE    takes everything of ours off the host

Stopping leaves the host as it is, so that connections live on while the agent is replaced; only a TUN device needs
the agent to run. All work on the host is done by :mod:`agent.agent`, in a helper thread, one call at a time.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import click
import structlog

from agent.agent import Agent, Applied
from agent.linux import LinuxHost
from agent.probes import LocalProbes
from agent.state import Lock, Store
from agent.status import AgentCollector, Picture, answer
from lb import log as logging
from lb import metrics
from lb.config import load_agent
from lb.control import ControlServer
from lb.errors import ConfigError, VipmuxError
from lb.model import AgentConfig, DecapMode
from lb.privileges import Capability, require

log = structlog.get_logger()

PROGRAM = "lb-agent"
NEEDED = (Capability.NET_ADMIN, Capability.NET_RAW)


class Daemon:
    """One run of the agent, from the first file to SIGTERM."""

    def __init__(self, file: Path, config: AgentConfig, agent: Agent) -> None:
        self._file = file
        self._config = config
        self._agent = agent
        self._applied: Applied | None = None
        self._rejected: str | None = None
        self._probes: LocalProbes | None = None

    async def run(self) -> None:
        stop, reload = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        loop.add_signal_handler(signal.SIGHUP, reload.set)
        settings = self._config.agent
        control = ControlServer(Path(settings.state_dir) / "agent.sock", {"get": self._get})
        await control.start()
        try:
            self._applied = await asyncio.to_thread(self._agent.apply, self._config)
            exporter = metrics.serve(settings.metrics, AgentCollector(self._picture), key="agent.metrics")
            self._probes = LocalProbes()
            try:
                self._say("ready", self._applied)
                self._probes.update(self._applied.config)
                await self._obey(stop, reload)
            finally:
                await self._probes.close()
                await asyncio.to_thread(exporter.close)
        finally:
            await control.close()
            await asyncio.to_thread(self._agent.close)

    async def _obey(self, stop: asyncio.Event, reload: asyncio.Event) -> None:
        assert self._probes is not None  # noqa: S101  made before
        stopping = asyncio.ensure_future(stop.wait())
        probing = asyncio.ensure_future(self._probes.run())
        while not stop.is_set():
            waiting = asyncio.ensure_future(reload.wait())
            await asyncio.wait((stopping, waiting, probing), return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            if probing.done():
                await probing  # raises: a programming error
            if reload.is_set() and not stop.is_set():
                reload.clear()
                await asyncio.to_thread(self._reload)
                self._probes.update(self._present.config)
        probing.cancel()
        if self._present.mode is DecapMode.TUN:
            log.warning("stopped", host="packets in tunnels are no longer taken out: the TUN device has ended")
        else:
            log.info("stopped", host="goes on decapsulating; lb-agent cleanup would end that")

    def _reload(self) -> None:
        """The new file in force, or the old one with every mistake logged and shown in the status."""
        try:
            self._applied = self._agent.apply(load_agent(self._file))
        except ConfigError as error:
            for path, message in error.mistakes:
                log.error("config_refused", path=path, mistake=message)
            self._rejected = str(error)
        except VipmuxError as error:
            log.error("reload_failed", error=str(error))
            self._rejected = str(error)
            self._take_back()
        else:
            self._rejected = None
            self._say("reloaded", self._applied)

    def _take_back(self) -> None:
        """The host may be half way to the new file: back to the old one."""
        try:
            self._agent.apply(self._present.config)
        except VipmuxError as error:
            log.error("old_config_not_restored", error=str(error), then="restart lb-agent once the cause is removed")

    @property
    def _present(self) -> Applied:
        assert self._applied is not None  # noqa: S101  set before anybody can ask
        return self._applied

    def _picture(self) -> Picture:
        known = self._probes.known() if self._probes is not None else {}
        return Picture(self._present, self._agent.counters(), self._rejected, known)

    async def _get(self, request: dict[str, Any]) -> list[dict[str, Any]]:
        if self._applied is None:
            raise VipmuxError("lb-agent is starting; ask again in a moment")
        return answer(await asyncio.to_thread(self._picture), request)

    @staticmethod
    def _say(event: str, applied: Applied) -> None:
        settings = applied.config.agent
        log.info(
            event,
            decap=applied.mode.value,
            reason=applied.reason,
            services=len(applied.services),
            translated=sum(own.translated for own in applied.services),
            muxes=len(settings.muxes),
        )
        if applied.mode is not DecapMode.BPF and settings.address6 is not None:
            log.warning("no_ipv6_tunnels", why=f"decapsulation by {applied.mode.value} is for IPv4 only")


def run_daemon(file: Path) -> None:
    """Runs until SIGTERM."""
    logging.configure(PROGRAM)
    config = load_agent(file)
    require(PROGRAM, NEEDED)
    lock = Lock(config.agent.state_dir)
    try:
        agent = Agent(LinuxHost, Store(config.agent.state_dir))
        asyncio.run(Daemon(file, config, agent).run())
    finally:
        lock.close()


def run_cleanup(file: Path) -> None:
    """Takes everything away, and says what."""
    config = load_agent(file)
    require(PROGRAM, NEEDED)
    lock = Lock(config.agent.state_dir)
    try:
        done = Agent(LinuxHost, Store(config.agent.state_dir)).cleanup(config.agent)
    finally:
        lock.close()
    for line in done or ["nothing of lb-agent was on this host"]:
        click.echo(line)


_config_option = click.option(
    "--config", "file", type=click.Path(path_type=Path), metavar="FILE", help="The agent's file, with a table [agent]."
)


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@_config_option
@click.pass_context
def command(context: click.Context, file: Path | None) -> None:
    """The host agent of vipmux: takes packets out of their tunnels on a backend's host.

    Stopping it leaves everything in place; `lb-agent cleanup` takes it away.
    """
    if context.invoked_subcommand is None:
        run_daemon(_required(file))
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
