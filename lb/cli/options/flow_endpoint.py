# SPDX-License-Identifier: Apache-2.0
"""Reads what an operator writes for a flow's end: ``192.0.2.1:40000`` or ``[2001:db8::1]:40000``."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address

from lb.errors import RequestError
from lb.model import Address


def parse_endpoint(text: str, option: str) -> tuple[Address, int]:
    """Address and port; ``option`` is where it was written."""
    match = re.fullmatch(r"(?:\[(?P<six>[^\]]+)\]|(?P<four>[^:\[\]]+)):(?P<port>[0-9]{1,5})", text)
    try:
        if match is None or int(match["port"]) > 65535:
            raise ValueError
        address: Address = IPv6Address(match["six"]) if match["six"] else IPv4Address(match["four"])
    except ValueError:
        raise RequestError(
            f'{option}: must be ADDRESS:PORT such as 192.0.2.1:40000 or [2001:db8::1]:40000, not "{text}"'
        ) from None
    return address, int(match["port"])
