# SPDX-License-Identifier: Apache-2.0
"""Programs installed from a wheel, each version in an environment of its own, as an operator has them.

The dependencies are those of the development environment; the program itself is not looked for there.
"""

from __future__ import annotations

import hashlib
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


#: Wheels of this tree as it was, by what was in it: the compiler needs half a minute.
BUILT = ROOT / ".build" / "built"
_SOURCES = ("native", "lb", "agent", "manager", "deploy", "docs")
_FILES = ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md")


def kept() -> Path:
    """Where a wheel of exactly this tree is kept, or would be."""
    digest = hashlib.sha256()
    paths = [path for folder in _SOURCES for path in (ROOT / folder).rglob("*")]
    for path in sorted([*paths, *(ROOT / name for name in _FILES)]):
        if path.is_file() and path.suffix not in (".so", ".o", ".pyc") and path.name != "_dataplane.c":
            digest.update(f"{path.relative_to(ROOT)}\0{path.stat().st_size}\0".encode())
            digest.update(path.read_bytes())
    return BUILT / digest.hexdigest()[:16]


def keep(wheel: Path) -> None:
    """For the next who wants one of this tree; those of other trees go."""
    place = kept()
    if place.exists():
        return
    shutil.rmtree(BUILT, ignore_errors=True)
    BUILT.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(dir=BUILT))
    shutil.copy(wheel, fresh)
    try:
        fresh.rename(place)
    except OSError:  # somebody else was faster
        shutil.rmtree(fresh, ignore_errors=True)


def build_wheel(directory: Path, ref: str | None = None) -> Path:
    """A wheel of this tree, or of a commit."""
    if ref is None and (found := next(kept().glob("*.whl"), None)):
        directory.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copy(found, directory))
    source = ROOT
    if ref is not None:
        source = directory / "source"
        source.mkdir(parents=True)
        archive = subprocess.run(["git", "-C", ROOT, "archive", ref], capture_output=True, check=True).stdout
        subprocess.run(["tar", "-x", "-C", source], input=archive, check=True)
    # By way of the source archive, so that nothing is compiled within the tree.
    _run(sys.executable, "-m", "build", "--no-isolation", "--outdir", directory, source)
    (wheel,) = directory.glob("*.whl")
    if ref is None:
        keep(wheel)
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
