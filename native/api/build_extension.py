# SPDX-License-Identifier: Apache-2.0
"""Compiles ``native/`` into the extension ``lb._dataplane``; run by setuptools, never imported at run time.

``native/api/api.h`` is read verbatim: it is the one description of what Python may call.
"""

from __future__ import annotations

import os
from pathlib import Path

from cffi import FFI

ROOT = Path(__file__).resolve().parents[2]
NATIVE = ROOT / "native"

#: Said, but no errors: newer compilers warn of more, and must still build what was released. ``make check`` has none.
WARNINGS = ["-Wall", "-Wextra", "-Wshadow", "-Wstrict-prototypes", "-Wmissing-prototypes", "-Wpointer-arith"]
#: ``VIPMUX_CFLAGS`` adds to the flags, for instance ``-fsanitize=address,undefined``.
#: Hidden names and link-time optimisation let the stages of the pipeline inline across files.
FLAGS = [
    *["-std=gnu11", "-O3", "-g", "-fno-strict-aliasing", "-fvisibility=hidden", "-flto=auto"],
    *os.environ.get("VIPMUX_CFLAGS", "").split(),
]

#: The module's init function is the one function of the binding without a prototype.
PREAMBLE = """
#include "api/api_glue.h"
#pragma GCC diagnostic ignored "-Wmissing-prototypes"
"""

ffibuilder = FFI()
ffibuilder.cdef((NATIVE / "api" / "api.h").read_text())
ffibuilder.set_source(
    "lb._dataplane",
    PREAMBLE,
    sources=sorted(str(path.relative_to(ROOT)) for path in NATIVE.glob("**/*.c")),
    depends=sorted(str(path.relative_to(ROOT)) for path in NATIVE.glob("**/*.h")),
    include_dirs=[str(NATIVE.relative_to(ROOT))],
    extra_compile_args=[*FLAGS, *WARNINGS],
    extra_link_args=FLAGS,
    libraries=["pthread"],
    py_limited_api=True,
)

if __name__ == "__main__":
    os.chdir(ROOT)
    ffibuilder.compile(verbose=True)
