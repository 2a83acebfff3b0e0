# SPDX-License-Identifier: Apache-2.0
"""What an interface is and how it is set up, as its driver says, and its offloads put back as they were.

By the ethtool ioctl, in the network namespace of the caller. Used by :mod:`lb.mux.io.xdp_port` and
:mod:`lb.mux.io.open_port`.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import socket
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from lb.errors import IoError

_SIOCGIFMTU, _SIOCGIFHWADDR, _SIOCETHTOOL = 0x8921, 0x8927, 0x8946
_GDRVINFO, _GFLAGS, _GSTRINGS, _SGRO = 0x03, 0x25, 0x1B, 0x2C
_GSSET_INFO, _GFEATURES, _SFEATURES, _GCHANNELS = 0x37, 0x3A, 0x3B, 0x3C
_STRINGS_FEATURES = 4
_STRING_BYTES = 32
_FLAG_RXVLAN = 1 << 8
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_VLANS = Path("/proc/net/vlan/config")


@dataclass(frozen=True, slots=True)
class Facts:
    """What the choice of an I/O mode depends on."""

    driver: str
    mtu: int
    queues: int  #: that receive
    vlans: tuple[str, ...] = ()  #: devices for VLANs on top of it
    strips_vlans: bool = False  #: tags are taken off before a program sees the frame


def _call(interface: str, request: int, data: bytes) -> bytes:
    """An ioctl about an interface whose argument is not behind a pointer."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        return fcntl.ioctl(asker, request, struct.pack("16s24s", interface.encode(), data))[16:]


def _ethtool(interface: str, data: bytes) -> bytes:
    buffer = array.array("B", data)
    address, _ = buffer.buffer_info()
    _call(interface, _SIOCETHTOOL, struct.pack("P", address))
    return buffer.tobytes()


def _failed(interface: str, error: OSError) -> IoError:
    return IoError(f"cannot look at {interface}: {(error.strerror or str(error)).lower()}")


def facts_of(interface: str) -> Facts:
    """Raises IoError where there is no such interface."""
    try:
        (mtu,) = struct.unpack_from("=i", _call(interface, _SIOCGIFMTU, b""))
    except OSError as error:
        raise _failed(interface, error) from None
    return Facts(_driver(interface), mtu, queues_of(interface), _vlans(interface), _strips_vlans(interface))


def _driver(interface: str) -> str:
    """Empty where it has none."""
    try:
        answer = _ethtool(interface, struct.pack("=I", _GDRVINFO) + bytes(192))
    except OSError:
        return ""
    return answer[4:36].split(b"\0")[0].decode(errors="replace")


def queues_of(interface: str) -> int:
    """One, where its driver does not say."""
    try:
        answer = _ethtool(interface, struct.pack("=9I", _GCHANNELS, *[0] * 8))
    except OSError:
        return 1
    found: tuple[int, ...] = struct.unpack("=9I", answer)
    return max(found[5] + found[8], 1)


def address_of(interface: str) -> bytes:
    """Its link address."""
    try:
        return _call(interface, _SIOCGIFHWADDR, b"")[2:8]
    except OSError as error:
        raise _failed(interface, error) from None


def _vlans(interface: str) -> tuple[str, ...]:
    """Lines are like ``eth0.5  | 5  | eth0``."""
    try:
        lines = [line.split("|") for line in _VLANS.read_text().splitlines()]
    except OSError:
        return ()
    return tuple(line[0].strip() for line in lines if len(line) == 3 and line[2].strip() == interface)


def _strips_vlans(interface: str) -> bool:
    try:
        flags = struct.unpack("=II", _ethtool(interface, struct.pack("=II", _GFLAGS, 0)))[1]
    except OSError:
        return False
    return bool(flags & _FLAG_RXVLAN)


# -- offloads -----------------------------------------------------------------------------------------------------


class Offloads:
    """Those of an interface at one moment; attaching a program may switch some off that nobody switches on again."""

    def __init__(self, interface: str) -> None:
        self._interface = interface
        self._names = _feature_names(interface)
        self._before = self._active()
        self._of = _of_this_time(interface)

    def _blocks(self) -> list[tuple[int, int, int, int]]:
        """Bits of 32 features each: available, requested, active, never changed."""
        count = (len(self._names) + 31) // 32
        try:
            answer = _ethtool(self._interface, struct.pack("=II", _GFEATURES, count) + bytes(16 * count))
        except OSError:
            return []
        return [struct.unpack_from("=4I", answer, 8 + 16 * block) for block in range(count)]

    def _active(self) -> int:
        return sum(block[2] << 32 * number for number, block in enumerate(self._blocks()))

    def merge_nothing(self) -> None:
        """Received packets stay as they are: what GRO puts together is too long for AF_XDP."""
        _set(self._interface, struct.pack("=II", _SGRO, 0))

    def went_off(self) -> list[str]:
        """What is off and was on, by the names that ``ethtool -k`` uses."""
        off = self._before & ~self._active()
        return [name for bit, name in enumerate(self._names) if off >> bit & 1]

    def put_back(self) -> None:
        """What went off, as far as the interface is there, and no other of its name, and lets us."""
        if _of_this_time(self._interface) == self._of:
            self.switch_on(self.went_off())

    def switch_on(self, names: Iterable[str]) -> None:
        """Those of these names that there are."""
        wanted = set(names)
        bits = sum(1 << bit for bit, name in enumerate(self._names) if name in wanted)
        blocks = (len(self._names) + 31) // 32  # all of them, or the kernel refuses
        words = [(bits >> 32 * block & 0xFFFFFFFF,) * 2 for block in range(blocks)]
        if bits:
            request = struct.pack("=II", _SFEATURES, blocks)
            _set(self._interface, request + b"".join(struct.pack("=II", *pair) for pair in words))


class OffNote:
    """A file that says which offloads of an interface were on, for as long as they are off because of us: who is
    killed puts nothing back, and the next start does. Of this boot, and of the interface of this number, alone."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, interface: str, names: Sequence[str]) -> None:
        """A disk that cannot be written is no reason not to serve."""
        note = {"interface": interface, "off": list(names), **_of_this_time(interface)}
        with contextlib.suppress(OSError):
            self._path.write_bytes(msgspec.json.encode(note))

    def forget(self) -> None:
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)

    def settle(self) -> tuple[str, list[str]] | None:
        """Puts back what a process that was killed left off; the interface and its offloads, None: there is nothing."""
        try:
            note = msgspec.json.decode(self._path.read_bytes())
            interface, names = str(note["interface"]), [str(name) for name in note["off"]]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        self.forget()
        if {**note, **_of_this_time(interface)} != note:
            return None
        Offloads(interface).switch_on(names)
        return interface, names


def _of_this_time(interface: str) -> dict[str, object]:
    try:
        return {"boot": _BOOT.read_text().strip(), "number": socket.if_nametoindex(interface)}
    except OSError:
        return {"boot": None, "number": None}


def _set(interface: str, data: bytes) -> None:
    try:
        _ethtool(interface, data)
    except OSError:
        return  # it is gone, or its driver decides for itself


def _feature_names(interface: str) -> list[str]:
    try:
        answer = _ethtool(interface, struct.pack("=IIQI", _GSSET_INFO, 0, 1 << _STRINGS_FEATURES, 0))
        count = struct.unpack_from("=I", answer, 16)[0]
        request = struct.pack("=III", _GSTRINGS, _STRINGS_FEATURES, count) + bytes(_STRING_BYTES * count)
        answer = _ethtool(interface, request)
    except OSError:
        return []
    words = (answer[12 + _STRING_BYTES * n : 12 + _STRING_BYTES * (n + 1)] for n in range(count))
    return [word.split(b"\0")[0].decode(errors="replace") for word in words]
