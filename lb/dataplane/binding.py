# SPDX-License-Identifier: Apache-2.0
"""The compiled extension, imported here and nowhere else, and what every wrapper does with it: own, free, complain."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

from lb._dataplane import ffi
from lb._dataplane import lib as c
from lb.errors import DataplaneError

if TYPE_CHECKING:
    from lb.model import Address

__all__ = ["TICK_SHIFT", "Cdata", "Closable", "address16", "c", "check", "fail", "ffi", "make", "text"]

Cdata = Any

#: The flow table's clock ticks every 2^28 ns.
TICK_SHIFT = 28


def text(pointer: Cdata) -> str:
    return str(ffi.string(pointer).decode())


def fail(code: int, what: str) -> NoReturn:
    raise DataplaneError(f"{what}: {os.strerror(-code)}.")


def make(ctype: str, destroy: Callable[[Cdata], None], what: str, create: Callable[[Cdata], int]) -> Cdata:
    """Calls ``create`` with an out-pointer; returns the object, which ``destroy`` frees."""
    out = ffi.new(f"struct {ctype} **")
    code = create(out)
    if code < 0:
        fail(code, what)
    return ffi.gc(out[0], destroy)


class Closable:
    """Owns one C object, which is freed with the last reference to it or by :meth:`close`; used afterwards, it says so.

    A call that another thread has begun meanwhile has a reference of its own, and ends before the object does.
    """

    _handle: Cdata | None = None

    @property
    def _c(self) -> Cdata:
        if self._handle is None:
            msg = f"This {type(self).__name__} is closed: it cannot be used any more."
            raise DataplaneError(msg)
        return self._handle

    @_c.setter
    def _c(self, handle: Cdata) -> None:
        self._handle = handle

    def close(self) -> None:
        """Lets go of it; again does nothing."""
        self._handle = None


def address16(address: Address | None) -> bytes:
    return address.packed.ljust(16, b"\0") if address is not None else bytes(16)


def check(code: int, what: str) -> int:
    if code < 0:
        fail(code, what)
    return code
