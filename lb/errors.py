# SPDX-License-Identifier: Apache-2.0
"""Every error that the programs raise on purpose, in one tree; each is one sentence for an operator.

    VipmuxError                 exit code 1
    ├── ConfigError             exit code 2   a configuration file is wrong: every mistake, with its path
    ├── RequestError            exit code 2   what was asked for makes no sense (arguments, socket requests)
    ├── PcapError               exit code 2   a capture that cannot be read or written
    ├── DataplaneError          exit code 1   the C data plane refused (it raises these in lb/dataplane)
    ├── IoError                 exit code 1   an interface, socket or device does not do what is needed
    ├── PrivilegeError          exit code 1   a right is missing; says which and how to get it
    ├── FeatureError            exit code 1   this kernel or this version cannot do it
    ├── ControlError            exit code 1   a daemon's local socket does not answer, or the daemon refused
    ├── NotFoundError           exit code 1   what was asked for is not there
    ├── AccessError             exit code 1   who asks is not known or may not: certificates, tokens, joining
    └── MessageError            exit code 1   what came over the node stream is no message

The message says what is wrong, where, and what to do. Programs print it on stderr and exit with
``exit_code``: 0 is fine, 1 bad news, 2 the request or the file was wrong. Anything else that is raised is
a programming error and may crash loudly. Imports nothing of ours.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar


class VipmuxError(Exception):
    """Base of all; catch it only at the top of a program."""

    exit_code: ClassVar[int] = 1


class ConfigError(VipmuxError):
    """A configuration file with mistakes: all of them as ``(path, message)``, in the order of the file."""

    exit_code = 2

    def __init__(self, mistakes: Iterable[tuple[str, str]], file: str | None = None) -> None:
        self.mistakes: tuple[tuple[str, str], ...] = tuple(mistakes)
        self.file = file
        super().__init__(self._sentence())

    @property
    def lines(self) -> list[str]:
        """One line per mistake: ``path: what is wrong``."""
        return [f"{path}: {message}" if path else message for path, message in self.mistakes]

    def _sentence(self) -> str:
        """The only mistake on one line, several on a line each."""
        prefix = f"{self.file}: " if self.file else ""
        if len(self.mistakes) == 1:
            return prefix + self.lines[0]
        return f"{prefix}{len(self.mistakes)} mistakes\n  " + "\n  ".join(self.lines)


class RequestError(VipmuxError):
    """The request was wrong: an argument, or a request on the local socket."""

    exit_code = 2


class PcapError(VipmuxError):
    """A capture file that is not one, is damaged, or holds what cannot be replayed."""

    exit_code = 2


class DataplaneError(VipmuxError):
    """The data plane refused; the message has the operands and the system's reason."""


class IoError(VipmuxError):
    """An interface, socket or device is missing, down, or does not do what is needed."""


class PrivilegeError(VipmuxError):
    """The process lacks a right that it needs."""


class FeatureError(VipmuxError):
    """The kernel, or this version of the program, cannot do what was asked."""


class ControlError(VipmuxError):
    """A daemon's local socket cannot be reached, or the daemon answered with an error."""


class NotFoundError(VipmuxError):
    """There is no service, backend or node of that name."""


class AccessError(VipmuxError):
    """Who asks is not known, or may not: a certificate or a token that is missing, wrong, used, expired or revoked."""


class MessageError(VipmuxError):
    """What the other end of the node stream sent is no message, or is larger than any of ours."""
