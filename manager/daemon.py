# SPDX-License-Identifier: Apache-2.0
"""``lb-manager``: the control plane's daemon, and the commands that go with it.

``run`` starts in this order: file, state directory (one manager each), store, controller, then the sockets; the line
``ready`` comes last. A stop goes the other way; nodes go on by themselves. Everything it knows is in the store, so a
killed manager loses nothing but the last moment of its events.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import gc
import os
import signal
import sys
import time
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import click
from aiohttp import web

from lb.config.load import load_manager
from lb.daemon import log as log_setup
from lb.daemon.files.state_dir import check_private
from lb.daemon.log import get_logger
from lb.daemon.metrics.collectors import program_version, serve
from lb.daemon.notify import Supervisor
from lb.daemon.process.memory import tame_allocator
from lb.daemon.process.privileges import Capability, effective, keep_only
from lb.daemon.supervise import until
from lb.doctor.checks import startup
from lb.doctor.model.facts import Role
from lb.errors import AccessError, ConfigError, IoError, RequestError, VipmuxError
from lb.model import ManagerSettings
from manager.api.metrics import ManagerCollector
from manager.api.server import Api, Authenticate, application
from manager.api.view import View
from manager.commands import COMMANDS
from manager.controller.controller import Controller
from manager.endpoints import Access
from manager.store.interface import Store
from manager.store.sqlite import SqliteStore
from manager.trust.bounded_listener import nobody, serving, small_buffers
from manager.trust.trust import listener
from manager.web.server import READERS, WebPage, is_loopback
from manager.web.sessions import Sessions

PROGRAM = "lb-manager"
#: Open requests get so long to end when the manager stops, seconds.
GRACE = 1.0
#: How often the status is looked at where nobody waits for signs of life, seconds.
STATUS_INTERVAL = 5.0

#: Of root's rights, where it is started with them: ports below 1024.
KEPT = (Capability.NET_BIND_SERVICE,)

log = get_logger()


@contextlib.contextmanager
def state_directory(path: str) -> Iterator[Path]:
    """The directory, made if it is not there, for one manager at a time."""
    directory = Path(path)
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        check_private(directory, "manager.state_dir")
        handle = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise IoError(f"manager.state_dir {path}: cannot be used: {reason}") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise IoError(f"manager.state_dir {path}: another lb-manager uses it; stop that one first") from None
    try:
        yield directory
    finally:
        os.close(handle)


async def run_manager(settings: ManagerSettings, *, insecure_loopback: bool) -> None:
    """The daemon's whole life; returns after a clean stop."""
    end = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end.set)
    supervisor = Supervisor.from_environment()
    loop.add_signal_handler(signal.SIGHUP, _no_reload, supervisor)
    with state_directory(settings.state_dir) as directory:
        store = await SqliteStore.open(directory)
        try:
            controller = Controller(settings, store)
            await controller.start()
            _calm_collector()
            small_buffers()
            _share_the_interpreter()
            try:
                await _serve(settings, controller, store, end, supervisor, insecure_loopback=insecure_loopback)
            finally:
                await controller.stop()
        finally:
            await store.close()
    log.info("stopped")


async def _serve(
    settings: ManagerSettings,
    controller: Controller,
    store: Store,
    end: asyncio.Event,
    supervisor: Supervisor,
    *,
    insecure_loopback: bool,
) -> None:
    view = View(controller)
    # In a thread: it reads files, and the addresses of this machine, for which pyroute2 wants a loop of its own.
    access = None if insecure_loopback else await asyncio.to_thread(Access, settings, store, controller.hub)
    if access is not None:
        await access.trust.refresh()
    pages = _pages(settings, controller, view, access)
    authenticate: Authenticate = _loopback(settings) if access is None else access.authenticate
    make_token = access.make_token if access is not None else None
    routes = access.routes if access is not None else ()
    app = application(Api(controller, view, store, program_version(), make_token), authenticate, routes)
    metrics = serve(settings.metrics, ManagerCollector(controller), key="manager.metrics")
    try:
        async with contextlib.AsyncExitStack() as stack:
            tls, recognise = (access.context, access.recognise) if access is not None else (None, nobody)
            await stack.enter_async_context(
                serving(app, listener(settings.listen), tls, grace=GRACE, recognise=recognise)
            )
            if pages is not None and settings.web is not None:
                tls = access.page_context if access is not None else None
                door = serving(pages.app, listener(settings.web, "manager.web"), tls, grace=GRACE, limits=READERS)
                await stack.enter_async_context(door)
            log.info(
                "ready",
                listen=settings.listen,
                web=settings.web or "off",
                tls=not insecure_loopback,
                term=controller.hub.term,
                version=controller.desired.version,
                services=len(controller.desired.services),
                nodes=len(controller.hub.entries),
            )
            startup.say(Role.MANAGER, settings.state_dir)
            supervisor.ready(_summary(controller))
            controller.tasks.restarted("heartbeat", lambda: _vouch(controller, supervisor))
            if access is not None:
                access.begin(controller.tasks)
            if pages is not None:
                controller.tasks.restarted("web page", pages.run)
            await until(end, controller.failed())
            supervisor.stopping()
            if access is not None:
                await access.close()
    finally:
        await asyncio.to_thread(metrics.close)


def _pages(settings: ManagerSettings, controller: Controller, view: View, access: Access | None) -> WebPage | None:
    """The web page, if the file asks for it."""
    if settings.web is None:
        return None
    if access is None:
        return WebPage(controller, view, None, secure=False, program=program_version())
    sessions = Sessions(access.check_token, time.time)
    return WebPage(controller, view, sessions, secure=True, program=program_version())


async def _vouch(controller: Controller, supervisor: Supervisor) -> None:
    """Signs of life, while the store's thread answers and plans are made."""
    while True:
        await controller.heartbeat()
        supervisor.alive()
        supervisor.status(_summary(controller))
        await asyncio.sleep(supervisor.pause or STATUS_INTERVAL)


def _summary(controller: Controller) -> str:
    """The manager in one line, for ``systemctl status``."""
    nodes = controller.hub.entries.values()
    connected = sum(entry.connection is not None for entry in nodes)
    services = len(controller.desired.services)
    return (
        f"ready: {services:,} service{'' if services == 1 else 's'}, version {controller.desired.version}, "
        f"{connected} of {len(nodes)} nodes connected"
    )


def _loopback(settings: ManagerSettings) -> Authenticate:
    """Without TLS, whoever can reach this machine's loopback may ask."""
    for key, listen in (("listen", settings.listen), ("web", settings.web)):
        if listen is not None and not ip_address(listen.rpartition(":")[0].strip("[]")).is_loopback:
            raise RequestError(
                f"--insecure-loopback serves without TLS, so manager.{key} must be on loopback, such as "
                f"127.0.0.1:{listen.rpartition(':')[2]}; {listen} is not"
            )

    async def authenticate(request: web.Request) -> str:
        if not is_loopback(request.url.host):
            # A name that somebody points at 127.0.0.1 makes a browser on this machine ask for them.
            raise AccessError(f"{str(request.url.host)[:80]!r} is not a name of this machine's loopback")
        return "operator:loopback"

    return authenticate


def _no_reload(supervisor: Supervisor) -> None:
    supervisor.reloading()
    supervisor.ready(supervisor.text)
    log.warning("SIGHUP ignored", reason="the manager's file is read at start only; services come by `lb apply`")


def _calm_collector() -> None:
    """What was loaded stays; looking through it for cycles again and again costs tens of milliseconds each time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def _share_the_interpreter() -> None:
    """Where a large change is worked out in a thread, the event loop gets its turn after 1 ms and not after 5: a
    verdict needs several turns on its way."""
    sys.setswitchinterval(0.001)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="vipmux", prog_name=PROGRAM)
def lb_manager() -> None:
    """The control plane of vipmux: holds what operators want, and sees to it that every node has it."""


@lb_manager.command("run")
@click.option("--config", "path", required=True, type=click.Path(path_type=Path), help="The manager's TOML file.")
@click.option("--insecure-loopback", is_flag=True, help="Plain HTTP, for whoever is on this machine; loopback only.")
def run(path: Path, insecure_loopback: bool) -> None:
    """Serve until SIGTERM."""
    log_setup.configure(PROGRAM)
    tame_allocator()
    if effective():  # by its unit it has none, and may not even ask for less
        keep_only(KEPT)
    asyncio.run(run_manager(load_manager(path), insecure_loopback=insecure_loopback))


for command in COMMANDS:
    lb_manager.add_command(command)


def main() -> None:
    """Entry point of the program."""
    try:
        code = lb_manager.main(standalone_mode=False, prog_name=PROGRAM)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except ConfigError as error:
        for line in error.lines:
            click.echo(line, err=True)
        sys.exit(error.exit_code)
    except VipmuxError as error:
        click.echo(f"{PROGRAM}: {error}", err=True)
        sys.exit(error.exit_code)
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
