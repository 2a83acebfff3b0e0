# SPDX-License-Identifier: Apache-2.0
"""How a page is read: its blocks, a reader's own values, and what should be seen."""

from __future__ import annotations

import pytest

from tests.lab.page import Block, blocks, packages, put, unseen

PAGE = """\
Text.

```sh mux
apt-get install --yes curl nftables
lb check /etc/vipmux/mux.toml
```

```text mux
mux1 … ready
```

```toml host /etc/vipmux/agent.toml
[agent]
```

```sh host terminal
apt-get install --yes curl
sleep 9
```

```
for reading
```
"""


def test_blocks_come_in_the_order_of_the_page_with_where_they_belong() -> None:
    assert list(blocks(PAGE)) == [
        Block("sh", "mux", "apt-get install --yes curl nftables\nlb check /etc/vipmux/mux.toml\n"),
        Block("text", "mux", "mux1 … ready\n"),
        Block("toml", "host", "[agent]\n", path="/etc/vipmux/agent.toml"),
        Block("sh", "host", "apt-get install --yes curl\nsleep 9\n", goes_on=True),
    ]
    assert packages(PAGE) == ["curl", "nftables"]


def test_a_reader_puts_own_values() -> None:
    assert put('name = "mux1" TOKEN', {'"mux1"': '"mux2"', "TOKEN": "lb1.x"}) == 'name = "mux2" lb1.x'


@pytest.mark.parametrize(
    ("wanted", "printed", "missing"),
    [
        ("web … up", "web   tcp  203.0.113.10:80  up 2/2", None),
        ("1 packet captured", "3 packet captured", None),
        ("a\nb", "a\nb", None),
        ("a\nb", "b\na", "b"),
        ("web … up", "web\nup", "web … up"),
        ("1 of 1 BGP session established", "0 of 1 BGP session idle", "1 of 1 BGP session established"),
        ("10.0.1.11 > 10.0.3.21: …", "IP 10.0.1.11 > 10.0.3.21: ip-proto-4", None),
        ("(a)", "aa", "(a)"),
    ],
)
def test_what_should_be_seen_is_looked_for_in_order(wanted: str, printed: str, missing: str | None) -> None:
    assert unseen(wanted, printed) == missing
