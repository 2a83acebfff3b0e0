# SPDX-License-Identifier: Apache-2.0
"""Daemons load what they use of pyroute2, and whoever wants the rest in the same process gets it."""

from __future__ import annotations

import subprocess
import sys

import pytest

SAID = "print(*(name in sys.modules for name in ('pyroute2.iproute', 'pyroute2.ndb', 'sqlite3')))"


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("", "", "True False False"),
        ("", "from pyroute2 import NDB, IPRoute; assert IPRoute is rtnetlink.IPRoute and NDB", "True True True"),
        ("", "import pyroute2; assert pyroute2.NDB and pyroute2.IPRoute", "True True True"),
        ("", "from pyroute2 import netns; import pyroute2.netlink.rtnl.tcmsg", "True False False"),
        ("import pyroute2;", "assert pyroute2.IPRoute is rtnetlink.IPRoute", "True True True"),
    ],
)
def test_only_what_is_used_of_pyroute2_is_loaded(before: str, after: str, said: str) -> None:
    script = f"import sys; {before} from lb.daemon.kernel import rtnetlink\n{after}\n{SAID}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == said


@pytest.mark.parametrize("program", ["lb.mux.daemon", "agent.daemon"])
def test_daemons_load_no_database(program: str) -> None:
    script = f"import sys, {program}\n{SAID}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("False False")
