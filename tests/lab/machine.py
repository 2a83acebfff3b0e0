# SPDX-License-Identifier: Apache-2.0
"""A machine of its own in a namespace: a whole Debian with its root directory, processes, name and ``systemctl``.

Each :class:`Machine` is a writable layer over directories that nobody writes to, with namespaces for mounts, processes,
host name and IPC; the network namespace is there before. The layers lie in memory, in a mount namespace that no other
process sees (:class:`Shelf`), so that nothing is left on this machine whatever happens. What runs in a machine ends
with its first process, and that with the lab. (Not each by a signal of its own at the death of who started it: that
would be the thread, and threads that did something on several machines end long before.)

``systemctl`` is played by :class:`Machine` itself: it reads the unit files in the machine and does what they say, by
:mod:`tests.lab.sandbox` for ours.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.lab.debian import MIRROR, Debian
from tests.lab.netns import LabError
from tests.lab.process import in_namespace, wait_for
from tests.lab.sandbox import Unit, read_unit

#: How long a command of a page may take, and a unit to be ready, seconds.
PATIENCE = 180
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "TERM": "dumb",
    "DEBIAN_FRONTEND": "noninteractive",
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
}

_EVERYTHING = ("--mount", "--pid", "--net", "--uts", "--ipc", "--root", "--wdns=/root", "--")

_BOOT = """\
set -eu
name=$1 root=$2 lower=$3 upper=$4 mirror=$5 given=$6
mkdir -p "$upper/data" "$upper/work" "$root"
mount -t overlay -o "lowerdir=$lower,upperdir=$upper/data,workdir=$upper/work" overlay "$root"
mount -t proc proc "$root/proc"
mount --bind /proc/sys "$root/proc/sys"; mount -o remount,bind,ro "$root/proc/sys"
mount --bind /proc/sys/net "$root/proc/sys/net"
mount -t sysfs sysfs "$root/sys"
mount -t tmpfs -o mode=0755 tmpfs "$root/run"
mount -t tmpfs -o mode=0755 tmpfs "$root/dev"
for device in null zero full random urandom tty net/tun; do
	mkdir -p "$(dirname "$root/dev/$device")"; : > "$root/dev/$device"; mount --bind "/dev/$device" "$root/dev/$device"
done
ln -s /proc/self/fd "$root/dev/fd"
ln -s fd/0 "$root/dev/stdin"; ln -s fd/1 "$root/dev/stdout"; ln -s fd/2 "$root/dev/stderr"
mkdir "$root/dev/shm" "$root/dev/pts"; mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
mkdir -p "$root$7"; mount --bind "$mirror" "$root$7"
mkdir -p "$root/mnt/given"; mount --bind "$given" "$root/mnt/given"; mount -o remount,bind,ro "$root/mnt/given"
echo "$name" > "$root/etc/hostname"; printf '127.0.0.1 localhost\\n127.0.1.1 %s\\n' "$name" > "$root/etc/hosts"
hostname "$name"
mkdir -p "$root/run/systemd/system"
exec chroot "$root" /bin/bash -c 'echo up > /run/up; trap : TERM; while :; do sleep 3600 & wait $!; done'
"""


class Shelf:
    """A place in memory for the layers of machines; :meth:`close` frees all of it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        script = f"mount -t tmpfs -o size=4g,mode=0755 vipmux {shlex.quote(str(directory))}; echo; exec sleep infinity"
        argv = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "private", "sh", "-ec", script]
        self._holder = subprocess.Popen(argv, stdout=subprocess.PIPE, start_new_session=True)
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != b"\n":
            raise LabError(f"no place in memory for machines: {self._holder.wait()}")

    @property
    def inside(self) -> list[str]:
        """What goes before a command line that is to see it."""
        return ["nsenter", f"--mount=/proc/{self._holder.pid}/ns/mnt", "--"]

    def close(self) -> None:
        self._holder.kill()
        self._holder.communicate()


class Machine:
    """One machine, from its start to :meth:`stop`. ``given`` is seen in it as ``/mnt/given``."""

    def __init__(
        self, name: str, namespace: str, debian: Debian, *, shelf: Shelf, given: Path, image: Path | None = None
    ) -> None:
        """``image``: the layer of a machine that was stopped, for one that begins as that was."""
        self.name = name
        self.namespace = namespace
        place = shelf.directory / f"{name}-{os.urandom(3).hex()}"
        self.layer = place / "data"
        lower = ":".join(str(part) for part in (image, debian.root) if part is not None)
        words = [name, place / "root", lower, place, debian.mirror, given, MIRROR]
        argv = [
            *("setpriv", "--pdeathsig", "KILL", "--"),  # unshare does not hear SIGTERM
            *shelf.inside,
            *("unshare", "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child=KILL", "--propagation=private"),
            *("bash", "-c", _BOOT, "boot", *map(str, words)),
        ]
        self.logs = given.parent / place.name
        self.logs.mkdir()
        self._log = self.logs / "boot.log"
        with self._log.open("wb") as output:
            self._child = subprocess.Popen(
                in_namespace(namespace, argv), stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True, env={**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"},
            )  # fmt: skip
        self.init = wait_for(self._booted, f"{name} to boot")
        self._units: dict[str, subprocess.Popen[bytes]] = {}
        self._background: list[tuple[str, subprocess.Popen[bytes]]] = []
        self._ears: dict[str, socket.socket] = {}
        self._said: dict[str, str] = {}

    def _booted(self) -> int | None:
        if self._child.poll() is not None:
            raise LabError(f"{self.name} did not boot: {self._log.read_text(errors='replace')[-2000:]}")
        # ip netns exec and setpriv become nsenter, which becomes unshare, whose child is the machine's first process.
        children = Path(f"/proc/{self._child.pid}/task/{self._child.pid}/children").read_text().split()
        if len(children) != 1 or not Path(f"/proc/{children[0]}/root/run/up").exists():
            return None
        return int(children[0])

    @property
    def root(self) -> Path:
        """Its root directory, from outside."""
        return Path(f"/proc/{self.init}/root")

    def stop(self) -> None:
        """All of its processes end at once; its layer stays on the shelf."""
        for _, started in self._background:
            started.kill()
        os.killpg(self._child.pid, signal.SIGKILL)
        self._child.wait()
        for ears in self._ears.values():
            ears.close()
        for process in [*self._units.values(), *(one for _, one in self._background)]:
            process.wait()

    # -- commands -----------------------------------------------------------------------------------------------------

    def _entering(self, *argv: str) -> list[str]:
        words = [f"{key}={value}" for key, value in ENVIRONMENT.items()]
        inside = ["nsenter", f"--target={self.init}", *_EVERYTHING]
        return [*inside, "env", "-i", *words, *argv]

    def run(self, script: str, *, background: bool = False) -> str:
        """A block of a page, line by line as it would be pasted; returns what it printed. Each line must succeed.

        In the ``background``: a program that goes on; it is looked after by :meth:`finished`.
        """
        if background:
            with self._journal("terminal").open("ab") as output:
                started = subprocess.Popen(
                    self._entering("bash", "-euo", "pipefail", "-c", script),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                )
            self._background.append((script, started))
            return ""
        said = ""
        for ours, part in _parts(script):
            if ours:
                said += self.systemctl(*shlex.split(part, comments=True)[1:])
                continue
            done = subprocess.run(
                self._entering("bash", "-euo", "pipefail", "-c", part),
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                timeout=PATIENCE, check=False,
            )  # fmt: skip
            said += done.stdout
            if done.returncode:
                raise LabError(
                    f"{self.name}: exit code {done.returncode} of\n{part}\n{done.stdout[-3000:]}{self.last_words()}"
                )
        return said

    def last_words(self) -> str:
        """What its services said last."""
        return "".join(f"\n--- {self.name}: {unit}: {self.journal(unit)[-2000:]}" for unit in self._units)

    def said(self) -> str:
        """What goes on in the background has printed so far."""
        return self.journal("terminal")

    def finished(self) -> str:
        """Waits for the end of what goes on in the background, and returns what it printed."""
        for script, started in self._background:
            if started.wait(PATIENCE):
                raise LabError(f"{self.name}: exit code {started.returncode} of\n{script}\n{self.said()[-2000:]}")
        self._background.clear()
        return self.said()

    # -- systemd ------------------------------------------------------------------------------------------------------

    def systemctl(self, *words: str) -> str:
        """What the pages use of it."""
        verb, names = words[0], [word.removesuffix(".service") for word in words[1:] if not word.startswith("-")]
        for name in names:
            self._unit(name)  # that it is there
            if verb in ("restart", "stop", "disable"):
                self._stop(name)
            if verb in ("restart", "start") or (verb == "enable" and "--now" in words):
                self._start(name)
            elif verb == "reload":
                self._reload(name)
        if verb == "status":
            return "".join(f'Status: "{self.status(name)}"\n' for name in names)
        if verb not in ("daemon-reload", "restart", "start", "stop", "disable", "enable", "reload"):
            raise LabError(f"systemctl {verb} is not played here")
        return ""

    def _unit(self, name: str) -> Path:
        for directory in ("etc/systemd/system", "lib/systemd/system", "usr/lib/systemd/system"):
            path = self.root / directory / f"{name}.service"
            if path.exists():
                return path
        raise LabError(f"{self.name}: Unit {name}.service not found")

    def _start(self, name: str) -> None:
        running = self._units.get(name)
        if running is not None and running.poll() is None:
            return
        path = self._unit(name)
        unit = read_unit(path)
        environment = self._environment(unit)
        for line in unit.get("ExecStartPre", []):
            self._complete(_words(line, environment), environment)
        argv = _words(unit["ExecStart"][-1], environment)
        if unit.get("Type") == ["forking"]:
            self._complete(argv, environment)
            return
        inside = ["env", "-i", *(f"{key}={value}" for key, value in environment.items()), *argv]
        if "ProtectSystem" not in unit:  # Debian's own
            self._launch(name, self._entering(*inside))
            return
        self._listen(name)
        inside.insert(2, f"NOTIFY_SOCKET=/run/systemd/{name}.notify")
        writable = [word for state in self._state_directories(unit) for word in ("--writable", state)]
        sandbox = [sys.executable, "-m", "tests.lab.sandbox", str(path), *writable, f"--machine={self.init}", "--"]
        self._launch(name, [*sandbox, *inside])
        self._wait_ready(name, float(unit["TimeoutStartSec"][-1]))

    def _listen(self, name: str) -> None:
        """``$NOTIFY_SOCKET``, for as long as the machine runs."""
        if name in self._ears:
            self._ears.pop(name).close()
        ears = self._ears[name] = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        spot = self.root / f"run/systemd/{name}.notify"
        spot.unlink(missing_ok=True)
        ears.bind(str(spot))
        spot.chmod(0o666)

    def _launch(self, name: str, argv: Sequence[str]) -> None:
        with self._journal(name).open("ab") as output:
            self._units[name] = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip

    def _complete(self, argv: Sequence[str], environment: Mapping[str, str]) -> None:
        words = [f"{key}={value}" for key, value in environment.items()]
        with self._journal("commands").open("ab") as output:
            done = subprocess.run(
                self._entering("env", *words, *argv),
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, timeout=PATIENCE, check=False,
            )  # fmt: skip
        if done.returncode:
            raise LabError(
                f"{self.name}: exit code {done.returncode} of {shlex.join(argv)}: {self.journal('commands')}"
            )

    def _wait_ready(self, name: str, seconds: float) -> None:
        def ready() -> bool:
            if self._units[name].poll() is not None:
                raise LabError(f"{self.name}: {name} ended: {self.journal(name)[-3000:]}")
            return "READY=1" in self._hear(name)

        wait_for(ready, f"{name} on {self.name} to be ready", seconds)

    def _hear(self, name: str) -> list[str]:
        """What the daemon said since it was last listened to."""
        found: list[str] = []
        with contextlib.suppress(BlockingIOError):
            while True:
                found += self._ears[name].recv(4096).decode().splitlines()
        for line in found:
            if line.startswith("STATUS="):
                self._said[name] = line.removeprefix("STATUS=")
        return found

    def _stop(self, name: str) -> None:
        """SIGTERM to the daemon itself, as KillMode=mixed does."""
        running = self._units.get(name)
        if running is not None and running.poll() is None:
            os.kill(self.main_pid(name), signal.SIGTERM)
            running.wait(PATIENCE)

    def _reload(self, name: str) -> None:
        """What ``ExecReload=/bin/kill -HUP $MAINPID`` does."""
        os.kill(self.main_pid(name), signal.SIGHUP)

    def main_pid(self, name: str) -> int:
        """The daemon: the child that whoever entered the machine for it waits for."""
        outside = self._units[name].pid
        (child,) = Path(f"/proc/{outside}/task/{outside}/children").read_text().split()
        return int(child)

    def status(self, name: str) -> str:
        """What ``systemctl status`` shows of it."""
        if name in self._ears:
            self._hear(name)
        return self._said.get(name, "")

    def journal(self, name: str) -> str:
        return self._journal(name).read_text(errors="replace") if self._journal(name).exists() else ""

    def _journal(self, name: str) -> Path:
        return self.logs / f"{name}.log"

    def _environment(self, unit: Unit) -> dict[str, str]:
        found = {"PATH": ENVIRONMENT["PATH"], "LANG": ENVIRONMENT["LANG"]}
        for line in unit.get("Environment", []):
            found |= dict(word.partition("=")[::2] for word in shlex.split(line))
        for line in unit.get("EnvironmentFile", []):
            path = self.root / line.removeprefix("-").lstrip("/")
            if path.exists():
                rows = (row for row in path.read_text().splitlines() if "=" in row and not row.startswith("#"))
                found |= {key: " ".join(shlex.split(value)) for key, _, value in (row.partition("=") for row in rows)}
            elif not line.startswith("-"):
                raise LabError(f"{self.name}: there is no {line}")
        return found

    def _state_directories(self, unit: Unit) -> list[str]:
        """Made as systemd makes them, for the user of the unit."""
        user = unit.get("User", ["root"])[-1]
        found = []
        for kind, below in (("StateDirectory", "/var/lib"), ("RuntimeDirectory", "/run")):
            for name in " ".join(unit.get(kind, [])).split():
                mode = unit.get(f"{kind}Mode", ["0755"])[-1]
                found.append(f"{below}/{name}")
                self.run(f"install -d -m {mode} -o {user} -g {user} {below}/{name}")
        return found


def _parts(script: str) -> list[tuple[bool, str]]:
    """The lines of systemctl one by one, and what is between them."""
    found: list[tuple[bool, str]] = []
    for line in script.splitlines():
        ours = line.startswith("systemctl ")
        if found and not ours and not found[-1][0]:
            found[-1] = (False, f"{found[-1][1]}\n{line}")
        else:
            found.append((ours, line))
    return found


def _words(line: str, environment: Mapping[str, str]) -> list[str]:
    """A command line of a unit: ``$NAME`` is as many words as it holds, ``${NAME}`` a part of one."""
    found: list[str] = []
    for word in shlex.split(line.lstrip("-@:+!")):
        whole = re.fullmatch(r"\$([A-Z_]+)", word)
        if whole:
            found += environment.get(whole[1], "").split()
        else:
            found.append(re.sub(r"\$\{([A-Z_]+)\}", lambda name: environment.get(name[1], ""), word))
    return found
