# SPDX-License-Identifier: Apache-2.0
"""A fresh Debian 12: its root directory, and the packages that are to be installed in it, as a mirror of its own.

Made once by mmdebstrap and kept outside the repository, in ``/var/cache/vipmux-lab`` or where ``VIPMUX_LAB_CACHE``
says, so that only the first run on a machine needs Debian's servers and its minute or two. Used by
:mod:`tests.lab.machine`, which lays a writable layer over it; nobody writes in it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

CACHE = Path(os.environ.get("VIPMUX_LAB_CACHE", "/var/cache/vipmux-lab"))
#: How long making it may take, seconds: some 15 s of work, and 150 packages over the network.
PATIENCE = 420
#: Where a machine has the mirror.
MIRROR = "/var/lib/mirror"
#: What a change of these lines makes anew.
_RECIPE = "3"


class UnavailableError(Exception):
    """It cannot be had here, and why."""


@dataclass(frozen=True, slots=True)
class Debian:
    """Both are read only."""

    root: Path
    mirror: Path


def fresh(packages: Sequence[str]) -> Debian:
    """With these packages, and what they need, in its mirror; none of them is installed. Raises UnavailableError."""
    digest = hashlib.sha256("\0".join([_RECIPE, *sorted(packages)]).encode()).hexdigest()[:12]
    place = CACHE / f"debian12-{digest}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with _alone(CACHE / "lock"):
        if not place.exists():
            _clear(CACHE, place.name)
            making = CACHE / f"making-{digest}"
            _make(making, packages)
            making.rename(place)
    return Debian(place / "root", place / "mirror")


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _clear(cache: Path, wanted: str) -> None:
    """What a killed run left behind, and those for other lists of packages."""
    for path in cache.iterdir():
        if path.is_dir() and path.name.startswith(("debian12-", "making-")) and path.name != wanted:
            shutil.rmtree(path, ignore_errors=True)


def _make(place: Path, packages: Sequence[str]) -> None:
    if shutil.which("mmdebstrap") is None:
        raise UnavailableError("mmdebstrap is not installed (apt-get install mmdebstrap)")
    place.mkdir()
    root, mirror = place / "root", place / "mirror"
    # What debootstrap installs as well; "download" leaves what is wanted in the archive of packages.
    download = f'chroot "$1" apt-get install --download-only --yes --install-recommends {" ".join(packages)}'
    argv: list[str | Path] = [
        *("mmdebstrap", "--mode=root", "--variant=important", "--skip=cleanup/apt"),
        '--aptopt=Acquire::Languages "none"',
        '--aptopt=Acquire::Retries "3"',
        "--dpkgopt=force-unsafe-io",
        f"--customize-hook={download}",
        *("bookworm", root),
    ]
    log = place / "log"
    try:
        with log.open("wb") as output:
            subprocess.run(argv, stdout=output, stderr=output, timeout=PATIENCE, check=True)
    except subprocess.TimeoutExpired:
        raise UnavailableError(f"Debian 12 could not be had within {PATIENCE} s") from None
    except subprocess.CalledProcessError:
        raise UnavailableError(f"Debian 12 could not be had: {_reason(log.read_text(errors='replace'))}") from None
    archives = root / "var/cache/apt/archives"
    mirror.mkdir()
    for package in sorted(archives.glob("*.deb")):
        shutil.move(package, mirror / package.name)
    (mirror / "Packages").write_text("".join(_stanza(package) for package in sorted(mirror.glob("*.deb"))))
    shutil.rmtree(root / "var/lib/apt/lists")
    (root / "var/lib/apt/lists/partial").mkdir(parents=True)
    (root / "etc/apt/sources.list").write_text(f"deb [trusted=yes] file:{MIRROR} ./\n")
    (root / "etc/resolv.conf").write_text("")  # that of the machine which made it leads nowhere in a lab
    # No service starts while its package is being installed: whoever plays systemd starts it.
    policy = root / "usr/sbin/policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)


def _reason(log: str) -> str:
    """The first error; those that follow are what came of it."""
    lines = log.strip().splitlines()
    return next((line for line in lines if line.startswith("E: ")), lines[-1] if lines else "nothing was said")


def _stanza(package: Path) -> str:
    """Of the index of a mirror."""
    control = subprocess.run(["dpkg-deb", "--field", package], capture_output=True, text=True, check=True).stdout
    digest = hashlib.sha256(package.read_bytes()).hexdigest()
    return f"{control}Filename: ./{package.name}\nSize: {package.stat().st_size}\nSHA256: {digest}\n\n"
