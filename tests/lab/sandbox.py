# SPDX-License-Identifier: Apache-2.0
"""What systemd would do to a daemon by its unit file, done where systemd is not running: for tests of the units.

``python -m tests.lab.sandbox UNIT --writable DIR -- PROGRAM ARGUMENT…`` reads the hardening of the unit and applies it
to itself, then becomes the program: the capability bounding set, no new privileges, everything read-only but the
daemon's directories, system calls, address families, namespaces, and no memory that is both writable and executable.
The filters are seccomp programs as systemd makes them. Not done, as a lab cannot: the device cgroup.

With ``--machine PID`` all of it happens in the machine (:mod:`tests.lab.machine`) whose first process that is, which
has a root directory of its own; there ``User=``, ``ProtectHome`` and ``PrivateTmp`` are done as well, which otherwise
would hide the interpreter and the lab's files.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import os
import struct
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

from lb.daemon.process.privileges import Capability

#: Unit settings by name, each with all that was assigned to it.
Unit = dict[str, list[str]]

_libc = ctypes.CDLL(None, use_errno=True)

_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP = 24, 38, 22
_CLONE_NEWNS = 0x00020000
_NEW_NAMESPACES = 0x7E020080
_MS_REC, _MS_BIND, _MS_PRIVATE = 0x4000, 0x1000, 0x40000
_NR_MOUNT_SETATTR, _AT_FDCWD, _AT_RECURSIVE, _ATTR_RDONLY = 442, -100, 0x8000, 1
_FAMILIES = {"AF_UNIX": 1, "AF_INET": 2, "AF_INET6": 10, "AF_NETLINK": 16, "AF_PACKET": 17, "AF_XDP": 44}
_EPERM, _EAFNOSUPPORT, _ENOSYS = 1, 97, 38


def read_unit(path: Path) -> Unit:
    """Every setting of the file; sections do not matter, for no name is in two of them."""
    found: Unit = {}
    for line in path.read_text().splitlines():
        key, separator, value = line.partition("=")
        if separator and not line.startswith(("#", ";")):
            found.setdefault(key.strip(), []).append(value.strip())
    return found


def is_on(unit: Unit, key: str) -> bool:
    return unit.get(key, ["no"])[-1] in ("yes", "true", "on", "1")


# --- system calls ----------------------------------------------------------------------------------------------------


@functools.cache
def _sets() -> dict[str, list[str]]:
    """systemd's named sets of system calls, and what each holds."""
    output = subprocess.run(["systemd-analyze", "syscall-filter"], capture_output=True, text=True, check=True).stdout
    found: dict[str, list[str]] = {}
    name = ""
    for line in output.splitlines():
        if line.startswith("@"):
            name = line.strip()
            found[name] = []
        elif line.startswith(" ") and not line.strip().startswith("#") and name:
            found[name].append(line.strip())
    return found


def _expand(name: str) -> set[str]:
    if not name.startswith("@"):
        return {name}
    return set().union(*(_expand(member) for member in _sets()[name]))


def allowed_calls(lines: Iterable[str]) -> set[str]:
    """What ``SystemCallFilter=`` lines allow, by systemd.exec(5): the first is a list, later ones add or take away."""
    allowed = _expand("@default")
    for line in lines:
        names = set().union(*(_expand(name) for name in line.removeprefix("~").split()))
        allowed = allowed - names if line.startswith("~") else allowed | names
    return allowed


@functools.cache
def call_numbers() -> dict[str, int]:
    """This machine's system calls, from the C headers."""
    text = subprocess.run(
        ["gcc", "-E", "-dM", "-include", "sys/syscall.h", "-"], input="", capture_output=True, text=True, check=True
    ).stdout
    pairs = (line.split() for line in text.splitlines() if line.startswith("#define __NR_"))
    return {words[1].removeprefix("__NR_"): int(words[2]) for words in pairs if words[2].isdecimal()}


# --- seccomp ---------------------------------------------------------------------------------------------------------

_LD, _JEQ, _JSET, _AND, _RET = 0x20, 0x15, 0x45, 0x54, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_NR, _ARG = 0, 16  # offsets in struct seccomp_data; an argument's low half comes first

Instruction = tuple[int, int, int, int]


def _allow_only(numbers: Iterable[int]) -> list[Instruction]:
    program: list[Instruction] = [(_LD, 0, 0, _NR)]
    for number in sorted(numbers):
        program += [(_JEQ, 0, 1, number), (_RET, 0, 0, _ALLOW)]
    return [*program, (_RET, 0, 0, _ERRNO | _EPERM)]


def _refuse_call(number: int, error: int) -> list[Instruction]:
    return [(_LD, 0, 0, _NR), (_JEQ, 0, 1, number), (_RET, 0, 0, _ERRNO | error), (_RET, 0, 0, _ALLOW)]


def _refuse_bits(number: int, argument: int, bits: int) -> list[Instruction]:
    """The call, where its argument has any of the bits."""
    return [
        (_LD, 0, 0, _NR), (_JEQ, 0, 3, number),
        (_LD, 0, 0, _ARG + 8 * argument), (_JSET, 0, 1, bits), (_RET, 0, 0, _ERRNO | _EPERM),
        (_RET, 0, 0, _ALLOW),
    ]  # fmt: skip


def _refuse_all_bits(number: int, argument: int, bits: int) -> list[Instruction]:
    """The call, where its argument has all of the bits."""
    return [
        (_LD, 0, 0, _NR), (_JEQ, 0, 4, number),
        (_LD, 0, 0, _ARG + 8 * argument), (_AND, 0, 0, bits), (_JEQ, 0, 1, bits), (_RET, 0, 0, _ERRNO | _EPERM),
        (_RET, 0, 0, _ALLOW),
    ]  # fmt: skip


def _sockets_only(socket: int, families: Iterable[int]) -> list[Instruction]:
    allowed: list[Instruction] = []
    for family in families:
        allowed += [(_JEQ, 0, 1, family), (_RET, 0, 0, _ALLOW)]
    refused = (_RET, 0, 0, _ERRNO | _EAFNOSUPPORT)
    return [(_LD, 0, 0, _NR), (_JEQ, 1, 0, socket), (_RET, 0, 0, _ALLOW), (_LD, 0, 0, _ARG), *allowed, refused]


def filters(unit: Unit) -> list[list[Instruction]]:
    """The seccomp programs that the unit asks for."""
    numbers = call_numbers()
    found = []
    if is_on(unit, "MemoryDenyWriteExecute"):
        found += [_refuse_all_bits(numbers["mmap"], 2, 6), _refuse_bits(numbers["mprotect"], 2, 4)]
    if is_on(unit, "RestrictNamespaces"):
        found += [_refuse_bits(numbers[name], 0, _NEW_NAMESPACES) for name in ("clone", "unshare")]
        found += [_refuse_call(numbers["clone3"], _ENOSYS), _refuse_call(numbers["setns"], _EPERM)]
    if "RestrictAddressFamilies" in unit:
        names = " ".join(unit["RestrictAddressFamilies"]).split()
        found.append(_sockets_only(numbers["socket"], [_FAMILIES[name] for name in names]))
    if "SystemCallFilter" in unit:
        calls = allowed_calls(unit["SystemCallFilter"]) & numbers.keys()
        found.append(_allow_only(numbers[name] for name in calls))
    return found


def _install(program: Sequence[Instruction]) -> None:
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("HxxxxxxP", len(program), ctypes.addressof(buffer))
    _check(_libc.prctl(_PR_SET_SECCOMP, 2, ctypes.c_char_p(header), 0, 0), "install a seccomp filter")


# --- the rest --------------------------------------------------------------------------------------------------------


def _check(result: int, what: str) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), f"cannot {what}: {os.strerror(ctypes.get_errno())}")


def _mount(source: str, target: str, kind: str, flags: int, data: str | None = None) -> None:
    result = _libc.mount(
        source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), data.encode() if data else None
    )
    _check(result, f"mount {target}")


def _read_only(path: str, *, on: bool) -> None:
    """The mount at ``path``, and with ``on`` all below it as well."""
    attributes = struct.pack("QQQQ", _ATTR_RDONLY if on else 0, 0 if on else _ATTR_RDONLY, 0, 0)
    result = _libc.syscall(
        ctypes.c_long(_NR_MOUNT_SETATTR), _AT_FDCWD, path.encode(), _AT_RECURSIVE, ctypes.c_char_p(attributes), 32
    )
    _check(result, f"change the mount {path}")


def enter(machine: int) -> None:
    """Become a process of the machine: its namespaces, its root directory, a child of nobody there."""
    root = os.open(f"/proc/{machine}/root", os.O_PATH | os.O_DIRECTORY)
    kinds = [os.open(f"/proc/{machine}/ns/{kind}", os.O_RDONLY) for kind in ("net", "uts", "ipc", "pid", "mnt")]
    for kind in kinds:
        _check(_libc.setns(kind, 0), "enter the machine")
        os.close(kind)
    os.fchdir(root)
    os.chroot(".")
    os.close(root)
    child = os.fork()  # the first one that is in the process namespace
    if child:
        _, status = os.waitpid(child, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
    os.setsid()


def become(user: str) -> None:
    """``User=`` and its group, by the machine's own list: a library would look into our own."""
    rows = (line.split(":") for line in Path("/etc/passwd").read_text().splitlines())
    uid, gid = next((int(row[2]), int(row[3])) for row in rows if row[0] == user)
    os.setgroups([gid])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def hide(unit: Unit) -> None:
    """``ProtectHome`` and ``PrivateTmp``, in the mount namespace that :func:`mounts` made."""
    if is_on(unit, "ProtectHome"):
        for path in ("/root", "/home"):
            _mount("none", path, "tmpfs", 0, "mode=000,size=0")
    if is_on(unit, "PrivateTmp"):
        for path in ("/tmp", "/var/tmp"):
            _mount("none", path, "tmpfs", 0, "mode=1777")


def mounts(unit: Unit, writable: Sequence[str]) -> None:
    """``ProtectSystem=strict`` and what goes with it, in a mount namespace of our own."""
    _check(_libc.unshare(_CLONE_NEWNS), "make a mount namespace")
    _mount("none", "/", "none", _MS_REC | _MS_PRIVATE)
    invisible, subset = unit.get("ProtectProc", [""])[-1], unit.get("ProcSubset", [""])[-1]
    if invisible or subset:
        options = [f"hidepid={invisible}"] * bool(invisible) + [f"subset={subset}"] * bool(subset)
        _mount("proc", "/proc", "proc", 0, ",".join(options))
    kept = [*writable, "/proc", "/dev", "/sys"]
    for path in kept:
        _mount(path, path, "none", _MS_BIND | _MS_REC)
    if unit["ProtectSystem"] == ["strict"]:
        _read_only("/", on=True)
        for path in kept:
            _read_only(path, on=False)
    if is_on(unit, "ProtectKernelTunables"):
        if Path("/proc/sys").exists():
            _mount("/proc/sys", "/proc/sys", "none", _MS_BIND)
            _read_only("/proc/sys", on=True)
        _read_only("/sys", on=True)


def bound(unit: Unit) -> None:
    """Only what the bounding set lets through is left after the next exec."""
    names = " ".join(unit["CapabilityBoundingSet"]).split()
    kept = {Capability[name.removeprefix("CAP_")].value for name in names}
    for number in range(64):
        if number not in kept and _libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0) < 0:
            break


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("unit", type=Path)
    parser.add_argument("--writable", action="append", default=[], help="a directory of the daemon's")
    parser.add_argument("--machine", type=int, help="the first process of the machine that it is done in")
    parser.add_argument("argv", nargs="+")
    arguments = parser.parse_args()
    argv = arguments.argv
    unit = read_unit(arguments.unit)
    programs = filters(unit)
    if arguments.machine is not None:
        enter(arguments.machine)
    mounts(unit, arguments.writable)
    if arguments.machine is not None:
        hide(unit)
    bound(unit)
    if arguments.machine is not None and "User" in unit:
        become(unit["User"][-1])
    if is_on(unit, "NoNewPrivileges"):
        _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "forbid new privileges")
    for program in programs:
        _install(program)
    os.execvp(argv[0], argv)  # noqa: S606  the point of it


if __name__ == "__main__":
    main()
