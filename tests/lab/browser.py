# SPDX-License-Identifier: Apache-2.0
"""A real Chromium in a machine of the lab, and what the tests ask of every page: no errors, nothing from elsewhere.

Used by ``test_web.py`` and ``screenshots.py``. Chromium and playwright are for development only; where one is missing,
:func:`missing_browser` says so.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Page

    from tests.lab.fleet import Fleet

URL = "https://10.0.1.9:9744"
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-quic",
)  # fmt: skip

#: Of every text that is to be seen: what has less contrast than WCAG 2.1 AA asks for.
CONTRAST = """() => {
  const paint = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (color) => {
    paint.clearRect(0, 0, 1, 1); paint.fillStyle = color; paint.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = paint.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = (top, under) => [0, 1, 2].map((n) => top[n] * top[3] + under[n] * (1 - top[3])).concat(1);
  const ground = (element) => {
    const layers = [];
    for (let at = element; at; at = at.parentElement) layers.push(rgba(getComputedStyle(at).backgroundColor));
    return layers.reverse().reduce((under, top) => over(top, under), [255, 255, 255, 1]);
  };
  const light = ([r, g, b]) => [r, g, b].map((part) => part / 255)
    .map((part) => (part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4))
    .reduce((sum, part, n) => sum + part * [0.2126, 0.7152, 0.0722][n], 0);
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || !element.checkVisibility() || element.closest(".hidden, .skip, svg, :disabled")) continue;
    const style = getComputedStyle(element);
    const [a, b] = [light(over(rgba(style.color), ground(element))), light(ground(element))].sort((x, y) => y - x);
    const large = parseFloat(style.fontSize) >= 24 || (parseFloat(style.fontSize) >= 18.66 && style.fontWeight >= 700);
    if ((a + 0.05) / (b + 0.05) < (large ? 3 : 4.5)) found.push(element.outerHTML.slice(0, 120));
  }
  return found;
}"""

#: Controls without a name, pictures without a text, ids that stand twice, headings that skip a level.
UNNAMED = """() => {
  const named = (element) => element.getAttribute("aria-label") || element.textContent.trim() || element.labels?.length;
  const found = [...document.querySelectorAll("button, a, input, select, meter, [role=img], dialog")]
    .filter((element) => element.checkVisibility() && !named(element) && !element.getAttribute("aria-labelledby"))
    .map((element) => `no name: ${element.outerHTML.slice(0, 120)}`);
  const ids = [...document.querySelectorAll("[id]")].map((element) => element.id);
  found.push(...ids.filter((id, n) => ids.indexOf(id) !== n).map((id) => `twice: #${id}`));
  let level = 0;
  for (const heading of document.querySelectorAll("main :is(h1, h2, h3)")) {
    if (!heading.checkVisibility()) continue;
    const now = Number(heading.tagName[1]);
    if (now > level + 1) found.push(`skips a level: ${heading.outerHTML.slice(0, 120)}`);
    level = now;
  }
  return found;
}"""


def missing_browser() -> str | None:
    """Why there is no browser here; None if there is one."""
    if shutil.which("chromium") is None:
        return "chromium is not installed"
    if importlib.util.find_spec("playwright") is None:
        return "playwright is not installed"
    return None


class Browser:
    """Chromium in the manager's machine. What went wrong on any page is in ``wrong``."""

    def __init__(self, chromium: Any) -> None:
        self._chromium = chromium
        self.wrong: list[str] = []
        self.asked: set[str] = set()  #: hosts and ports that any page asked something of
        self.expect_loss = False  #: requests may fail: the manager is being killed

    @contextmanager
    def page(self, path: str = "/", **options: Any) -> Iterator[Page]:
        context: BrowserContext = self._chromium.new_context(ignore_https_errors=True, **options)
        try:
            page = context.new_page()
            page.set_default_timeout(20_000)
            page.on("pageerror", lambda error: self.wrong.append(str(error)))
            page.on("console", self._console)
            page.on("request", lambda request: self.asked.add("/".join(request.url.split("/")[:3])))
            page.goto(URL + path)
            page.wait_for_function(
                "() => document.body.dataset.link === 'live' && document.querySelector('tbody tr') !== null"
            )
            yield page
        finally:
            context.close()

    def _console(self, message: Any) -> None:
        if message.type in ("error", "warning") and not (self.expect_loss and "net::ERR" in message.text):
            self.wrong.append(f"{message.type}: {message.text}")


@contextmanager
def browser(fleet: Fleet, directory: Path) -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright  # a package for development only

    program = directory / "chromium"
    program.write_text(f'#!/bin/sh\nexec ip netns exec {fleet.manager.namespace} /usr/bin/chromium "$@"\n')
    program.chmod(0o755)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=str(program), args=list(FLAGS))
        try:
            yield Browser(chromium)
        finally:
            chromium.close()
