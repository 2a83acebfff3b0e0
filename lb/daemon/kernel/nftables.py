# SPDX-License-Identifier: Apache-2.0
"""Runs ``nft``, and asks the kernel for the number of its ruleset. Knows no table of ours.

A run that is cancelled or takes too long is killed and waited for; its transaction then happened whole or not at all,
and which of the two only the kernel knows.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
from dataclasses import dataclass

from lb.daemon.kernel.netlink_bytes import HEADER, attributes, messages
from lb.daemon.kernel.watch import OwnMarks
from lb.errors import FeatureError, IoError

TIMEOUT = 10.0
#: Its processes count as ours for so long after they have ended: the kernel's notices may come late, seconds.
OWN_FOR = 5.0

_NETLINK_NETFILTER = 12
_NFTABLES = 10
_NFT_MSG_GETGEN = 16
_NLM_F_REQUEST = 1
_NFGENMSG = 4  # struct nfgenmsg: family, version, resource; bytes
_NFTA_GEN_ID = 1
#: What it says of a thing that is not there.
ABSENT = "No such file or directory"


def environment() -> dict[str, str]:
    """In which programs speak English, so that what they say can be understood."""
    return {**os.environ, "LC_ALL": "C"}


@dataclass(frozen=True, slots=True)
class Done:
    """One run that came to its end."""

    code: int
    output: str
    complaint: str  #: its first line

    @property
    def absent(self) -> bool:
        """It failed because something that it names is not there."""
        return bool(self.code) and ABSENT in self.complaint


async def run(*arguments: str, text: str = "", own: OwnMarks | None = None) -> Done:
    """Runs ``nft`` with these; raises FeatureError where it is not installed, IoError where it does not end."""
    if shutil.which("nft") is None:
        raise FeatureError("nft is not installed: install the package nftables")
    try:
        process = await asyncio.create_subprocess_exec(
            "nft",
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environment(),
        )
    except OSError as error:  # no descriptor, no process, no memory
        raise not_started(error) from None
    if own is not None:
        own.processes.add(process.pid)
        asyncio.get_running_loop().call_later(TIMEOUT + OWN_FOR, own.processes.discard, process.pid)
    try:
        async with asyncio.timeout(TIMEOUT):
            output, errors = await process.communicate(text.encode())
    except TimeoutError:
        await _end(process)
        raise IoError(f"nft did not finish within {TIMEOUT:g} s") from None
    except BaseException:
        await _end(process)
        raise
    lines = errors.decode(errors="replace").strip().splitlines()
    return Done(process.returncode or 0, output.decode(errors="replace"), lines[0] if lines else "no reason given")


def not_started(error: OSError) -> IoError:
    """There is ``nft``, and it could not be run: for everybody who runs it."""
    return IoError(f"cannot run nft: {(error.strerror or str(error)).lower()}")


async def _end(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await process.wait()


def generation() -> int:
    """The kernel's number of the ruleset, another after each transaction of anybody; raises IoError."""
    kind = _NFTABLES << 8 | _NFT_MSG_GETGEN
    question = HEADER.pack(HEADER.size + _NFGENMSG, kind, _NLM_F_REQUEST, 1, 0) + bytes(_NFGENMSG)
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER) as asked:
            asked.settimeout(1.0)
            asked.bind((0, 0))
            asked.send(question)
            answer = asked.recv(4096)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise IoError(f"cannot ask for the number of the nftables ruleset: {reason}") from None
    for kind, _, _, body in messages(answer):
        number = attributes(body[_NFGENMSG:]).get(_NFTA_GEN_ID) if kind >> 8 == _NFTABLES else None
        if number is not None:
            return int.from_bytes(number)
    raise IoError("cannot ask for the number of the nftables ruleset: this kernel has no nftables")
