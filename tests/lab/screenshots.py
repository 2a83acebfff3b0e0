# SPDX-License-Identifier: Apache-2.0
"""``make screenshots``: pictures for docs/images of the web page (a real fleet, traffic, a dead backend), and of what
``make demo`` prints."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path
from xml.sax.saxutils import escape

from lb.model import Probe, ProbeType, Service
from tests.lab.browser import browser, missing_browser
from tests.lab.fleet import Fleet
from tests.lab.routers import Routers
from tests.lab.services import files, web
from tests.lab.traffic import KeepAlive

IMAGES = Path(__file__).resolve().parent.parent.parent / "docs" / "images"
PROBE = Probe(ProbeType.TCP, interval=0.5, timeout=0.5, rise=2, fall=2)
#: Seconds of traffic before the pictures are taken.
TRAFFIC = 45
NAMES = ("shop", "search", "mail", "images", "login", "video", "maps", "wiki")


def _services(fleet: Fleet) -> list[Service]:
    more = [replace(web(fleet.hosts), name=n, vip=ip_network(f"203.0.113.{40 + i}")) for i, n in enumerate(NAMES)]
    return [replace(service, probe=PROBE) for service in (web(fleet.hosts), files(fleet.hosts), *more)]


def main() -> None:
    why = missing_browser()
    if why is not None:
        raise SystemExit(f"no screenshots: {why}")
    IMAGES.mkdir(exist_ok=True)
    demo = subprocess.run(
        [sys.executable, "-m", "tests.lab.demo_fleet"], stdout=subprocess.PIPE, text=True, check=True, timeout=280
    )
    (IMAGES / "demo.svg").write_text(terminal(demo.stdout))
    with Fleet(Routers.BIRD, say=print) as fleet, tempfile.TemporaryDirectory() as directory:
        services = _services(fleet)
        fleet.start(services)
        fleet.wait_live(services)
        load = KeepAlive(fleet, "203.0.113.10", 80, count=40, interval=0.05).start()
        try:
            time.sleep(TRAFFIC)
            _pictures(fleet, Path(directory))
        finally:
            load.close()


def terminal(text: str) -> str:
    """A terminal with this text, as SVG: titles bold, the last sentence green."""
    lines = text.strip().splitlines()
    column, row, margin = 7.83, 17, 18
    width = round(max(map(len, lines)) * column + 2 * margin)
    height = len(lines) * row + 2 * margin
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">',
        f'<rect width="{width}" height="{height}" rx="8" fill="#14181d"/>',
        '<g font-family="ui-monospace, DejaVu Sans Mono, Menlo, Consolas, monospace" font-size="13" fill="#d6dde4">',
    ]
    for number, line in enumerate(lines):
        title = line != "" and not line.startswith(" ")
        style = ' fill="#57c27d" font-weight="bold"' if number == len(lines) - 1 else ' font-weight="bold"' * title
        y = margin + (number + 0.75) * row
        parts.append(f'<text x="{margin}" y="{y:g}" xml:space="preserve"{style}>{escape(line)}</text>')
    return "\n".join([*parts, "</g>", "</svg>", ""])


def _pictures(fleet: Fleet, directory: Path) -> None:
    desk, phone = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
    with browser(fleet, directory) as chromium:
        with chromium.page("/", viewport=desk) as page:
            page.wait_for_timeout(1500)
            page.screenshot(path=IMAGES / "web-well.png", full_page=True)
        fleet.hosts[0].processes["nginx"].kill()
        with chromium.page("/#/service/web", viewport=desk, color_scheme="dark") as page:
            page.wait_for_function("() => document.querySelector('[data-backend] .state').textContent.includes('down')")
            page.wait_for_timeout(1500)
            page.screenshot(path=IMAGES / "web-service.png")
        with chromium.page("/", viewport=phone, device_scale_factor=2) as page:
            page.wait_for_timeout(1500)
            page.screenshot(path=IMAGES / "web-phone.png")


if __name__ == "__main__":
    main()
