# SPDX-License-Identifier: Apache-2.0
"""Wheel and source archive: what is in them, and that the wheel installs and runs where there is no compiler.

Nothing is fetched but the wheels of the dependencies, once, into ``.build/wheels``; the installation itself has no
network. Every dependency must have a wheel, else an operator would need a compiler after all.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

from deploy import bundle
from lb.cli.main import COMMANDS
from tests.lab.environments import keep

ROOT = Path(__file__).resolve().parent.parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
WHEELS = ROOT / ".build" / "wheels"
PACKAGES = ("lb", "agent", "manager")

#: What the new environment's programs get: no compiler in any of these.
BARE = {"PATH": "/nonexistent", "HOME": "/nonexistent", "LC_ALL": "C.UTF-8"}


def run(*argv: str | Path, seconds: float = 120.0, **keywords: object) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=seconds, check=False, **keywords)  # type: ignore[call-overload]
    assert done.returncode == 0, f"{' '.join(map(str, argv))}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done  # type: ignore[no-any-return]


def tracked() -> list[str]:
    """The files that are kept in version control."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout: nothing tells which files belong to the project")
    return run("git", "-C", ROOT, "ls-files").stdout.splitlines()


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both, as ``make dist`` makes them: the wheel out of the source archive."""
    directory = tmp_path_factory.mktemp("dist")
    environment = {**os.environ, "PIP_NO_INDEX": "1"}
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", directory, ROOT, env=environment, seconds=300)
    keep(next(directory.glob("*.whl")))  # the labs need one as well
    return directory


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    (found,) = dist.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def sdist(dist: Path) -> Path:
    (found,) = dist.glob("*.tar.gz")
    return found


def dependencies() -> list[str]:
    """All that the programs need at run time, as it is installed here: ``name==version``."""
    done = run(sys.executable, "-m", "pip", "freeze", "--all", "--exclude-editable")
    installed = {line.partition("==")[0].lower().replace("_", "-"): line for line in done.stdout.splitlines()}
    names, queue = set(), [re.split(r"[^\w.-]", text)[0] for text in PROJECT["project"]["dependencies"]]
    while queue:
        name = queue.pop().lower().replace("_", "-")
        if name in names or name not in installed:
            continue
        names.add(name)
        shown = run(sys.executable, "-m", "pip", "show", name).stdout
        queue += [item for item in re.findall(r"^Requires: (.*)$", shown, re.MULTILINE)[0].split(", ") if item]
    return sorted(installed[name] for name in names)


@pytest.fixture(scope="module")
def fresh(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment with the wheel in it; its bin directory."""
    WHEELS.mkdir(parents=True, exist_ok=True)
    offline = [sys.executable, "-m", "pip", "download", "-q", "--only-binary=:all:", "--no-deps", "-d", WHEELS]
    wanted = dependencies()
    known = WHEELS / "wanted"
    if not known.exists() or known.read_text() != "\n".join(wanted):
        run(*offline, *wanted)
        known.write_text("\n".join(wanted))
    place = tmp_path_factory.mktemp("fresh")
    venv.create(place, with_pip=True)
    pip = [place / "bin" / "python", "-m", "pip", "--isolated", "--disable-pip-version-check"]
    run(*pip, "install", "-q", "--no-compile", "--no-index", "--find-links", WHEELS, wheel, env=BARE, cwd=place)
    run(*pip, "check", env=BARE, cwd=place)
    return place / "bin"


def test_the_wheel_is_for_every_python_from_3_11_on(wheel: Path) -> None:
    assert wheel.name.startswith(f"vipmux-{version('vipmux')}-cp311-abi3-linux_")
    with zipfile.ZipFile(wheel) as archive:
        assert [name for name in archive.namelist() if name.endswith(".so")] == ["lb/_dataplane.abi3.so"]


def test_the_wheel_holds_every_file_of_the_packages_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if name.split("/")[0] in PACKAGES}
    wanted = {name for name in tracked() if name.split("/")[0] in PACKAGES}
    assert found - {"lb/_dataplane.abi3.so"} == wanted
    assert len(wanted) > 100


def test_the_wheel_brings_what_an_operator_needs_beside_the_programs(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        found = {name.partition("/data/share/vipmux/")[2] for name in archive.namelist() if "/share/vipmux/" in name}
    wanted = {
        name.removeprefix("deploy/")
        for name in tracked()
        if re.match(r"deploy/(systemd|sysctl|routers|prometheus|grafana)/|deploy/\w+\.toml$", name)
    }
    wanted |= {name for name in tracked() if re.match(r"docs/\w[\w-]*\.md$", name)} | {"LICENSE", "CHANGELOG.md"}
    assert found == wanted


def test_the_wheel_brings_a_manual_page_for_each_command_and_completions(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        found = {name.partition("/data/share/")[2] for name in archive.namelist() if "/data/share/" in name}
    pages = {name for name in found if name.startswith("man/")}
    assert {"man/man1/lb.1", "man/man1/lb-get.1", "man/man8/lb-mux.8", "man/man8/lb-manager-token.8"} <= pages
    assert {f"man/man1/lb-{name}.1" for name in COMMANDS} <= pages
    for program in PROJECT["project"]["scripts"]:
        assert f"bash-completion/completions/{program}" in found
        assert f"zsh/site-functions/_{program}" in found
        assert f"fish/vendor_completions.d/{program}.fish" in found


def test_what_makes_the_manual_is_there_when_a_wheel_is_built() -> None:
    """Somebody's own `pip install .` has no more in its environment for the build than what is listed for that."""
    assert set(PROJECT["project"]["dependencies"]) <= set(PROJECT["build-system"]["requires"])


def test_the_source_archive_holds_every_file_of_the_project(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        found = {name.partition("/")[2] for name in archive.getnames()}
    left_out = {name for name in tracked() if not name.startswith((".ci/", ".git"))} - found
    assert left_out == set()
    assert {name for name in found if name.endswith((".so", ".o", ".pyc"))} == set()


def test_the_bundle_installs_with_nothing_else_and_its_checksums_are_right(wheel: Path, tmp_path: Path) -> None:
    """Here for the Python that the tests run in."""
    archive = bundle.make(wheel, tmp_path / "out", f"{sys.version_info[0]}.{sys.version_info[1]}")
    run("sha256sum", "--check", f"{archive.name}.sha256", cwd=archive.parent)
    run("tar", "-xf", archive, "-C", tmp_path)
    top = tmp_path / f"vipmux-{version('vipmux')}"
    run("sha256sum", "--check", "--strict", "SHA256SUMS", cwd=top)
    listed = {line.split("  ", 1)[1] for line in (top / "SHA256SUMS").read_text().splitlines()}
    assert listed == {str(path.relative_to(top)) for path in top.rglob("*") if path.is_file()} - {"SHA256SUMS"}
    assert {"routers/frr.conf", "prometheus/vipmux-alerts.yml", "grafana/vipmux.json", "docs/install.md"} <= listed
    venv.create(tmp_path / "env", with_pip=True)
    pip = [tmp_path / "env" / "bin" / "python", "-m", "pip", "--isolated", "--disable-pip-version-check"]
    run(
        *pip, "install", "-q", "--no-compile", "--no-index", "--find-links", top / "wheels", "vipmux", env=BARE, cwd=top
    )
    run(*pip, "check", env=BARE, cwd=top)


def test_nothing_is_compiled_for_the_builders_processor_alone() -> None:
    """Faster code for newer processors is chosen at run time; see native/flow/flow_table.c."""
    text = (ROOT / "native/api/build_extension.py").read_text() + (ROOT / "Makefile").read_text()
    assert re.findall(r"-m(?:arch|tune|cpu|avx\w*|sse\w*|bmi\w*)\b", text) == []


@pytest.mark.parametrize("program", ["lb", "lb-mux", "lb-agent", "lb-manager"])
def test_a_program_of_the_fresh_environment_says_its_version(fresh: Path, program: str) -> None:
    done = run(fresh / program, "--version", env=BARE, cwd=fresh)
    assert version("vipmux") in done.stdout


def test_the_data_plane_of_the_fresh_environment_forwards(fresh: Path) -> None:
    done = run(fresh / "lb", "bench", "pipeline", "--seconds", "1", "--json", env=BARE, cwd=fresh)
    assert json.loads(done.stdout)["ns_per_packet"] > 0


def test_the_examples_that_the_wheel_brings_are_right(fresh: Path) -> None:
    examples = sorted((fresh.parent / "share/vipmux").glob("*.toml"))
    assert len(examples) == 4
    for example in examples:
        run(fresh / "lb", "check", example, env=BARE, cwd=fresh)
