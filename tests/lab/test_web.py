# SPDX-License-Identifier: Apache-2.0
"""The manager's web page in a real Chromium, before a real fleet: what dies shows at once, and hands need no mouse."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lb.model import Probe, ProbeType
from tests.lab import netns
from tests.lab.browser import CONTRAST, UNNAMED, URL, Browser, browser, missing_browser
from tests.lab.fleet import Fleet
from tests.lab.pace import allowed
from tests.lab.process import wait_for
from tests.lab.routers import Routers, missing
from tests.lab.services import files, web

if TYPE_CHECKING:
    from playwright.sync_api import Page

_WHY = missing_browser() or missing(Routers.BIRD)
pytestmark = [pytest.mark.lab, pytest.mark.skipif(_WHY is not None, reason=str(_WHY))]

PROBE = Probe(ProbeType.TCP, interval=0.5, timeout=0.5, rise=2, fall=2)
PHONE = {"width": 360, "height": 740}
DESK = {"width": 1280, "height": 900}
#: From the manager's verdict to the page, seconds.
SHOWN = 2.0


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with Fleet(Routers.BIRD) as started:
        started.start([replace(service(started.hosts), probe=PROBE) for service in (web, files)])
        in_service(started)
        yield started


@pytest.fixture(scope="module")
def chromium(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(fleet, tmp_path_factory.mktemp("chromium")) as started:
        yield started


@pytest.fixture(autouse=True)
def _nothing_went_wrong(chromium: Browser) -> Iterator[None]:
    yield
    wrong, chromium.wrong = chromium.wrong, []
    assert wrong == []
    assert chromium.asked <= {URL}, "the page asks nobody but the manager"


def in_service(fleet: Fleet) -> None:
    for name in ("web", "files"):
        fleet.wait_states(name, {f"{name}-{host.name}": "up" for host in fleet.hosts})


def state_of(page: Page, backend: str, words: str, seconds: float = 20) -> float:
    """Waits until the page says this of a backend; returns when it did."""
    found = page.wait_for_function(
        "([name, words]) => document.querySelector(`[data-backend='${name}'] .state`)?.textContent.includes(words)"
        " && Date.now()",
        arg=[backend, words],
        polling=20,
        timeout=seconds * 1000,
    )
    return float(found.json_value()) / 1000


def operator_token(fleet: Fleet) -> str:
    body = {"kind": "operator", "name": "alice", "ttl": 600}
    return str(netns.inside(fleet.manager.namespace, lambda: fleet.remote.post("tokens", body=body))["token"])


def tab_to(page: Page, label: str) -> None:
    """By the Tab key alone."""
    for _ in range(60):
        page.keyboard.press("Tab")
        named = page.evaluate("document.activeElement.getAttribute('aria-label') ?? document.activeElement.textContent")
        if named.strip() == label:
            assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
            return
    raise AssertionError(f"no Tab leads to {label}")


def test_a_killed_backend_is_on_the_page_within_two_seconds_with_the_reason(fleet: Fleet, chromium: Browser) -> None:
    host = fleet.hosts[0]
    with chromium.page("/#/service/web", viewport=DESK) as page:
        state_of(page, f"web-{host.name}", "up")
        killed = time.time()
        host.processes["nginx"].kill()
        shown = state_of(page, f"web-{host.name}", "down")
        page.wait_for_function(
            "(name) => document.querySelector(`[data-backend='${name}'] .reason`)?.textContent.includes('refused')",
            arg=f"web-{host.name}",
        )
        page.wait_for_function("() => document.querySelector('#verdict-text').textContent.includes('down')")
        told = [
            row["at"]
            for row in fleet.ask("events")
            if row["subject"] == f"backend web/web-{host.name}" and "→ down" in row["text"] and row["at"] > killed
        ]
        took = shown - told[-1]
        print(
            f"\nverdict {told[-1] - killed:.2f} s after the kill (probe); on the page {took * 1000:.0f} ms after that"
        )
        fleet.start_web_server(host)
        state_of(page, f"web-{host.name}", "up")
    assert took <= allowed(SHOWN)


def test_an_operator_drains_and_undrains_by_keyboard_alone(fleet: Fleet, chromium: Browser) -> None:
    backend = f"web-{fleet.hosts[1].name}"
    with chromium.page("/#/service/web", viewport=DESK) as page:
        state_of(page, backend, "up")
        tab_to(page, f"Drain {backend}")
        page.keyboard.press("Enter")
        page.wait_for_selector("#login-dialog[open]")
        page.keyboard.type("wrong")
        page.keyboard.press("Enter")
        page.wait_for_function("() => document.getElementById('login-error').textContent.includes('not logged in')")
        page.keyboard.type(operator_token(fleet))
        page.keyboard.press("Enter")
        page.wait_for_selector("#ask-dialog[open]")
        page.keyboard.press("Enter")
        state_of(page, backend, "drain")
        assert page.inner_text("#who") == "alice"
        page.wait_for_selector("#ask-dialog", state="hidden")
        tab_to(page, f"Undrain {backend}")
        page.keyboard.press("Enter")
        page.wait_for_selector("#ask-dialog[open]")
        page.keyboard.press("Enter")
        state_of(page, backend, "up")
        chromium.wrong.clear()  # the browser notes the refused login on the console
    said = [(row["who"], row["what"]) for row in fleet.ask("audit") if row["who"] == "operator:alice"]
    assert len(said) == 2


def test_it_is_readable_on_a_phone_in_both_schemes_and_every_control_has_a_name(
    fleet: Fleet, chromium: Browser
) -> None:
    for scheme in ("light", "dark"):
        for size in (PHONE, DESK):
            for path, ready in (("/", "#mux-cards article"), ("/#/service/web", "[data-backend]")):
                with chromium.page(path, viewport=size, color_scheme=scheme) as page:
                    page.wait_for_selector(ready)
                    assert page.evaluate("document.documentElement.scrollWidth") <= size["width"], (path, size)
                    assert page.evaluate(CONTRAST) == [], (scheme, path)
                    assert page.evaluate(UNNAMED) == [], path
    with chromium.page("/", viewport=DESK) as page:
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the content"


def test_the_topology_and_the_muxes_say_who_is_away(fleet: Fleet, chromium: Browser) -> None:
    mux = fleet.muxes[1]
    with chromium.page("/", viewport=DESK) as page:
        page.wait_for_function("() => document.querySelector('#verdict-text').textContent.startsWith('All well')")
        mux.processes["mux"].kill()
        page.wait_for_function(
            "(name) => document.querySelector('#verdict-text').textContent.includes(name)", arg=mux.name
        )
        page.wait_for_function("() => document.querySelectorAll('.topology .node[data-level=bad]').length > 0")
        fleet.revive(mux)
        page.wait_for_function("() => document.querySelector('#verdict-text').textContent.startsWith('All well')")
        assert page.inner_text("#mux-cards").count("established") >= len(fleet.muxes)


def test_a_page_outlives_the_manager_and_says_since_when_it_hears_nothing(fleet: Fleet, chromium: Browser) -> None:
    with chromium.page("/", viewport=DESK) as page:
        chromium.expect_loss = True
        fleet.manager.processes["manager"].kill()
        page.wait_for_function("() => document.body.dataset.link === 'lost'")
        assert page.inner_text("#link").startswith("Connection lost at ")
        assert page.inner_text("#services-table").count("web") >= 1
        fleet.revive(fleet.manager)
        page.wait_for_function("() => document.body.dataset.link === 'live'")
        wait_for(lambda: fleet.connected() == len(fleet.hosts) + len(fleet.muxes), "the nodes to come back", 60)
        page.wait_for_function("() => document.querySelector('#verdict-text').textContent.startsWith('All well')")
        chromium.expect_loss = False


def test_screenshots_are_taken(fleet: Fleet, chromium: Browser, tmp_path: Path) -> None:
    for name, size in (("desk", DESK), ("phone", PHONE)):
        with chromium.page("/", viewport=size) as page:
            page.wait_for_selector(".topology")
            path = tmp_path / f"{name}.png"
            page.screenshot(path=path, full_page=True)
            assert path.stat().st_size > 20_000
