# SPDX-License-Identifier: Apache-2.0
"""Compiles pieces of ``native/`` with a test's own C beside them: what Python cannot reach through the extension."""

from __future__ import annotations

import ctypes
import os
import subprocess
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

HERE = Path(__file__).parent / "c"
NATIVE = HERE.parents[2] / "native"
FLAGS = ["-std=gnu11", "-O2", "-g", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", f"-I{NATIVE}"]


@cache
def library(*sources: str) -> ctypes.CDLL:
    """Sources that lie in ``c/`` beside this file, or else in ``native/``. Sanitized where the extension is."""
    flags = [*FLAGS, *os.environ.get("VIPMUX_CFLAGS", "").split()]
    with TemporaryDirectory() as directory:
        path = Path(directory) / "probe.so"
        files = [str(HERE / name if (HERE / name).exists() else NATIVE / name) for name in sources]
        subprocess.run([os.environ.get("CC", "gcc"), *flags, *files, "-o", str(path)], check=True)
        return ctypes.CDLL(str(path))
