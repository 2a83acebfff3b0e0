# SPDX-License-Identifier: Apache-2.0
"""One archive with which a machine installs vipmux without any network: ``make bundle``.

    vipmux-VERSION/wheels/      the wheel, and one of each package that it needs, in the version that was tested here
    vipmux-VERSION/...          what the wheel has in share/vipmux: units, sysctls, router examples, alerts, pages
    vipmux-VERSION/SHA256SUMS   of every file

Beside the archive lies its own checksum. Wheels are for one version of Python on x86-64 Linux, that of Debian 12 unless
``--python`` says otherwise; no compiler is needed to install them, and none to make the archive.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

#: Debian 12's.
PYTHON = "3.11"
#: The oldest C libraries that wheels are made for, up to Debian 12's (2.36).
_PLATFORMS = ("manylinux2014_x86_64", *(f"manylinux_2_{minor}_x86_64" for minor in (17, 24, 26, 28, 31, 34)))
_SHARE = "/data/share/vipmux/"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("wheel", type=Path, help="vipmux's own, as `make dist` leaves it")
    parser.add_argument("--out", type=Path, default=Path("dist"), help="the directory for the archive (default: dist)")
    parser.add_argument("--python", default=PYTHON, help=f"the version that it is for (default: {PYTHON})")
    arguments = parser.parse_args()
    try:
        print(make(arguments.wheel, arguments.out, arguments.python))
    except subprocess.CalledProcessError as error:
        sys.exit(f"bundle: a package could not be had: {(error.stderr or error.stdout).strip().splitlines()[-1]}")


def make(wheel: Path, out: Path, python: str = PYTHON) -> Path:
    """The archive, in ``out``; raises CalledProcessError where pip cannot have a package."""
    name = "-".join(wheel.name.split("-")[:2])
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        top = Path(scratch) / name
        wheels = top / "wheels"
        wheels.mkdir(parents=True)
        shutil.copy(wheel, wheels)
        _download(wheel, wheels, python)
        _unpack_share(wheel, top)
        files = sorted(path for path in top.rglob("*") if path.is_file())
        (top / "SHA256SUMS").write_text("".join(f"{_digest(path)}  {path.relative_to(top)}\n" for path in files))
        archive = out / f"{name}-bundle.tar"
        with tarfile.open(archive, "w") as tar:  # wheels are packed already
            tar.add(top, name, filter=_nobodys)
    archive.with_suffix(".tar.sha256").write_text(f"{_digest(archive)}  {archive.name}\n")
    return archive


def _download(wheel: Path, wheels: Path, python: str) -> None:
    """Every package that it needs, in the version that is installed here where that is known."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    frozen = subprocess.run(
        [*pip, "freeze", "--exclude-editable", "--exclude", "vipmux"], capture_output=True, text=True, check=True
    ).stdout
    tested = wheels / "constraints.txt"
    tested.write_text(frozen)
    argv = [*pip, "download", "--quiet", "--only-binary=:all:", "--implementation=cp", f"--python-version={python}"]
    argv += [f"--platform={platform}" for platform in (*_PLATFORMS, "linux_x86_64")]
    argv += ["--constraint", str(tested), "--dest", str(wheels), str(wheel)]
    subprocess.run(argv, capture_output=True, text=True, check=True)
    tested.unlink()


def _unpack_share(wheel: Path, top: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.namelist():
            path = member.partition(_SHARE)[2]
            if path and not member.endswith("/"):
                target = top / path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(archive.read(member))


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _nobodys(info: tarfile.TarInfo) -> tarfile.TarInfo:
    """Whoever made it does not matter."""
    info.uid = info.gid = 0
    info.uname = info.gname = "root"
    info.mode = 0o755 if info.isdir() else 0o644
    return info


if __name__ == "__main__":
    main()
