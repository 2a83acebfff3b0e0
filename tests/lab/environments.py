# SPDX-License-Identifier: Apache-2.0
"""Programs installed from a wheel, each version in an environment of its own, as an operator has them.

The dependencies are those of the development environment; the program itself is not looked for there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

from tests.lab.netns import LabError

ROOT = Path(__file__).resolve().parent.parent.parent


def previous() -> str | None:
    """The version to come from: ``VIPMUX_UPGRADE_FROM``, else the last release; None: there is none, or no checkout."""
    chosen = os.environ.get("VIPMUX_UPGRADE_FROM")
    if chosen:
        return chosen
    done = subprocess.run(
        ["git", "-C", ROOT, "describe", "--tags", "--abbrev=0"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or None


def build_wheel(directory: Path, ref: str | None = None) -> Path:
    """A wheel of this tree, or of a commit."""
    source = ROOT
    if ref is not None:
        source = directory / "source"
        source.mkdir(parents=True)
        archive = subprocess.run(["git", "-C", ROOT, "archive", ref], capture_output=True, check=True).stdout
        subprocess.run(["tar", "-x", "-C", source], input=archive, check=True)
    # By way of the source archive, so that nothing is compiled within the tree.
    _run(sys.executable, "-m", "build", "--no-isolation", "--outdir", directory, source)
    (wheel,) = directory.glob("*.whl")
    return wheel


def install(wheel: Path, place: Path) -> Path:
    """A new environment with the wheel; returns its bin directory."""
    venv.create(place, with_pip=False, symlinks=True)
    packages = place / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    python = place / "bin" / "python"
    _run(sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", wheel)
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    where = _run(python, "-c", "import lb; print(lb.__file__)", cwd="/").strip()
    if not where.startswith(str(place)):
        raise LabError(f"{python} runs {where}, not what was installed beside it")
    return place / "bin"


def two_versions(directory: Path) -> tuple[Path, Path, str]:
    """Old and new programs, and in words what the old ones are."""
    ref = previous()
    new = build_wheel(directory / "new-wheel")
    old = build_wheel(directory / "old-wheel", ref) if ref else new
    what = f"version {ref}" if ref else "the same version, installed a second time (there is no release yet)"
    return install(old, directory / "old"), install(new, directory / "new"), what


def _run(*argv: str | Path, cwd: str | None = None) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=cwd)
    if done.returncode:
        raise LabError(f"{' '.join(map(str, argv))}: {done.stdout[-1000:]}{done.stderr[-1000:]}")
    return done.stdout


def scratch() -> Path:
    """A directory that the account of ExaBGP may read."""
    directory = Path(tempfile.mkdtemp(prefix="vipmux-upgrade-"))
    directory.chmod(0o755)
    return directory


def remove(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
