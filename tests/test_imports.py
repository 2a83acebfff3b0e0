# SPDX-License-Identifier: Apache-2.0
"""Who may import whom, in Python and in C: the rules of docs/architecture.md, read from the sources themselves."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("lb", "agent", "manager")
EXTENSION = "lb._dataplane"


def modules() -> dict[str, Path]:
    """Every module of ours: dotted name -> file."""
    found = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, path: Path) -> set[str]:
    """The modules of ours (and the extension) that a module imports, wherever in it the import stands."""
    known = {*modules(), EXTENSION}
    found: set[str] = set()
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1]) if node.level else ""
            source = ".".join(filter(None, [base, node.module or ""]))
            found |= {source, *(f"{source}.{alias.name}" for alias in node.names)}
    return found & known


def reachable(start: str, graph: dict[str, set[str]]) -> set[str]:
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        for module in graph.get(waiting.pop(), set()) - seen:
            seen.add(module)
            waiting.append(module)
    return seen


FILES = modules()
GRAPH = {name: imports(name, path) for name, path in FILES.items()}


def test_there_are_modules_to_look_at() -> None:
    assert {"lb.model", "lb.dataplane", "lb.mux.daemon", "agent.daemon"} <= GRAPH.keys()


def test_model_imports_nothing_of_ours() -> None:
    assert GRAPH["lb.model"] == set()


def test_only_dataplane_imports_the_extension() -> None:
    assert {name for name, uses in GRAPH.items() if EXTENSION in uses} == {"lb.dataplane.binding"}


def test_agent_manager_and_mux_never_import_one_another() -> None:
    sides = ("agent", "manager", "lb.mux")

    def side(module: str) -> str | None:
        return next((s for s in sides if module == s or module.startswith(s + ".")), None)

    crossings = {
        (module, used)
        for module in GRAPH
        if side(module)
        for used in reachable(module, GRAPH)
        if side(used) not in (None, side(module))
    }
    assert crossings == set()


def test_manager_runs_without_the_extension() -> None:
    assert [m for m in GRAPH if m.startswith("manager") and EXTENSION in reachable(m, GRAPH)] == []


def test_a_daemon_without_a_manager_loads_nothing_of_the_managers_world() -> None:
    """They start in a fraction of a second; HTTP and certificates would double that."""
    heavy = {"aiohttp", "cryptography"}
    for module in ("lb.mux.daemon", "agent.daemon", "lb.cli.main"):
        code = f"import sys, {module}; print(*sorted({heavy} & sys.modules.keys()))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.split() == [], module


def test_only_the_command_line_knows_the_benchmarks() -> None:
    assert {name for name, uses in GRAPH.items() if any(used.startswith("lb.bench.") for used in uses)} <= {
        "lb.cli.commands.bench",
        *(name for name in GRAPH if name.startswith("lb.bench.")),
    }
    assert any(used.startswith("lb.bench.") for used in GRAPH["lb.cli.commands.bench"])


def test_imports_have_no_cycle() -> None:
    assert [module for module in GRAPH if module in reachable(module, GRAPH)] == []


#: The rooms of the house, floor by floor from the ground; a room is a folder, and what lies in it beside its folders. A
#: room uses rooms of the floors below its own, and none of its own floor or above. A new room gets the lowest floor
#: that it can have.
FLOORS: tuple[tuple[str, ...], ...] = (
    (
        "lb",
        "lb.model",
        "lb.tables",
    ),
    (
        "lb.cli.terminal",
        "lb.config",
        "lb.daemon.process",
        "lb.dataplane",
        "lb.doctor.firewall",
        "lb.doctor.model",
        "lb.rows",
    ),
    (
        "lb.daemon.log",
        "lb.dataplane.compile",
        "lb.doctor.path_tests",
        "manager.desired",
    ),
    (
        "lb.daemon",
        "lb.daemon.files",
        "lb.daemon.kernel",
        "lb.dataplane.replay",
        "lb.mux.rules",
    ),
    (
        "agent.rules",
        "lb.bench.testbed",
        "lb.bgp",
        "lb.cli.ask",
        "lb.daemon.metrics",
        "lb.mux.hops",
        "lb.node",
    ),
    (
        "agent.host",
        "lb.bench",
        "lb.bench.control",
        "lb.cli",
        "lb.cli.options",
        "lb.cli.tables",
        "lb.doctor.collect",
        "lb.mux.io",
        "lb.mux.workers",
        "lb.probe",
        "manager.trust",
    ),
    (
        "lb.bench.compare",
        "lb.doctor.checks",
        "lb.mux.probes",
        "manager.plan",
    ),
    (
        "agent",
        "lb.mux",
        "manager.store",
    ),
    (
        "lb.doctor",
        "manager.nodes",
    ),
    (
        "lb.cli.commands",
        "manager.observed",
    ),
    ("manager.controller",),
    ("manager.api",),
    ("manager.web",),
    ("manager",),
)


def room(module: str) -> str:
    return module if FILES[module].name == "__init__.py" else module.rpartition(".")[0]


def test_every_room_has_its_floor_and_uses_only_those_below() -> None:
    floors = {name: number for number, names in enumerate(FLOORS) for name in names}
    assert {room(module) for module in GRAPH} - floors.keys() == set(), "rooms without a floor"
    assert floors.keys() - {room(module) for module in GRAPH} == set(), "floors of rooms that are no more"
    upward = {
        f"{module} -> {used}"
        for module, uses in GRAPH.items()
        for used in uses & GRAPH.keys()
        if room(used) != room(module) and floors[room(used)] >= floors[room(module)]
    }
    assert upward == set()


#: Both ways on purpose: an agent tells at its start what the doctor's cheap checks find, and the doctor knows what an
#: agent that does not run would have set up.
BOTH_WAYS = {("agent", "lb.doctor")}


def whole_folder(module: str) -> str:
    """``lb.mux`` of all that is in it; ``agent`` is one."""
    return ".".join(module.split(".")[: 1 if module.startswith("agent") else 2])


def test_whole_folders_form_no_circle() -> None:
    graph: dict[str, set[str]] = {}
    for module, uses in GRAPH.items():
        here = whole_folder(module)
        there = {whole_folder(used) for used in uses & GRAPH.keys()} - {here}
        graph.setdefault(here, set()).update(used for used in there if tuple(sorted((here, used))) not in BOTH_WAYS)
    assert sorted(name for name in graph if name in reachable(name, graph)) == []


# The same for C, by its #include "..." lines. api.h is left out: Python's view of everything.

INCLUDES = {
    path.stem: set(re.findall(r'^#include "(?:[\w/]*/)?(\w+)\.h"', path.read_text(), re.MULTILINE))
    for path in sorted((ROOT / "native").rglob("*.h"))
    if not path.stem.startswith("api")
}


def test_c_headers_have_no_cycle() -> None:
    assert [module for module in INCLUDES if module in reachable(module, INCLUDES)] == []


#: The folders of native/, floor by floor.
C_FLOORS: tuple[tuple[str, ...], ...] = (
    ("machine",),
    ("flow", "packet"),
    ("services/quic",),
    ("services",),
    ("services/vip",),
    ("packet/burst",),
    ("services/snapshot",),
    ("worker",),
    ("host", "mux"),
    ("bpf", "control"),
    ("bench", "io"),
    ("io/af_xdp",),
    ("io/af_packet",),
    ("api",),
)


def test_every_folder_of_native_has_its_floor_and_includes_only_those_below() -> None:
    native = ROOT / "native"
    floors = {name: number for number, names in enumerate(C_FLOORS) for name in names}
    sources = sorted(native.rglob("*.[ch]"))
    assert {str(path.parent.relative_to(native)) for path in sources} == floors.keys()
    upward = set()
    for path in sources:
        here = str(path.parent.relative_to(native))
        for included in re.findall(r'^#include "([\w/]+\.h)"', path.read_text(), re.MULTILINE):
            there = str(Path(included).parent)
            if there != here and floors[there] >= floors[here]:
                upward.add(f"{path.relative_to(native)} -> {included}")
    assert upward == set()


def test_no_class_name_means_two_things() -> None:
    places: dict[str, list[str]] = {}
    for name, path in FILES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(name)
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


def test_io_backends_know_nothing_of_the_data_plane() -> None:
    for path in (ROOT / "native").glob("io/**/*.c"):
        used = set(re.findall(r'^#include "(?:\w+/)*(\w+)\.h"', path.read_text(), re.MULTILINE))
        assert not used & {"mux", "host", "snapshot", "flow_table", "maglev", "service", "vip_map", "worker"}, path.name


def test_python_is_unknown_to_c() -> None:
    assert [path.name for path in (ROOT / "native").rglob("*.[ch]") if "Python.h" in path.read_text()] == []
