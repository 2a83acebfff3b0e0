# SPDX-License-Identifier: Apache-2.0
"""Becomes ExaBGP: run by :mod:`lb.bgp.sidecar` as ``python -m lb.bgp.launch PARENT`` with the configuration on stdin.

What must be true before the first line of ExaBGP runs is made true here: it dies with its parent, whatever kills
that (PR_SET_PDEATHSIG, which must come after the change of user); it has no capability and gets none; and its
configuration, which holds passwords, is in no file. The user was already changed by whoever started us.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys

from lb.daemon.process.privileges import keep_only

#: After the first SYN; the second goes a second after it, and two seconds later it is over.
SYNS_AGAIN = 1
#: DSCP of routing protocols, in its place in the TOS byte; and the highest priority at our own queues without rights.
CS6, INTERACTIVE = 48 << 2, 6

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4


def die_with(parent: int) -> None:
    """SIGKILL for us when the parent ends; at once if it has."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def prepare_sockets() -> None:
    """What ExaBGP does not set on its connections.

    One that nobody answers is given up, and begun anew, after three seconds and not after two minutes: the kernel
    doubles its pause from one SYN to the next, so a link that comes back would be noticed that much later. All are
    marked as routing (CS6, RFC 4594 section 3.1), which routers and queues let pass before a flood.
    """
    from exabgp.protocol.family import AFI  # noqa: PLC0415
    from exabgp.reactor.network import outgoing  # noqa: PLC0415

    create = outgoing.create

    def created(afi: object, interface: str | None = None) -> socket.socket:
        opened: socket.socket = create(afi, interface)
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_SYNCNT, SYNS_AGAIN)
        mark_routing(opened, v6=afi == AFI.ipv6)
        return opened

    outgoing.create = created


def mark_routing(opened: socket.socket, *, v6: bool) -> None:
    if v6:
        opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, CS6)
    else:
        opened.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, CS6)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, INTERACTIVE)  # after IP_TOS, which sets it too


def exabgp(configuration: str) -> int:
    """What ``exabgp server FILE`` does, without a file. Imported only now, when nothing can go wrong any more."""
    from exabgp.bgp.message.update.attribute import Attribute  # noqa: PLC0415
    from exabgp.configuration.configuration import Configuration  # noqa: PLC0415
    from exabgp.environment import getenv  # noqa: PLC0415
    from exabgp.logger import log  # noqa: PLC0415
    from exabgp.reactor.loop import Reactor  # noqa: PLC0415

    prepare_sockets()
    environment = getenv()
    log.init(environment)
    Attribute.caching = environment.cache.attributes
    code: int = Reactor(Configuration([configuration], text=True)).run()
    return code


def main() -> None:
    keep_only(())
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)  # others of our user may not look into us
    die_with(int(sys.argv[1]))
    configuration = sys.stdin.read()
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    sys.exit(exabgp(configuration))


if __name__ == "__main__":
    main()
