# SPDX-License-Identifier: Apache-2.0
"""``python -m tests.bench [SECTION ...]``: measures these sections (all), then draws and writes the page anew.

With ``--draw`` it measures nothing.
"""

from __future__ import annotations

import sys

from tests.bench import measure, page, plots


def main(words: list[str]) -> int:
    wanted = [word for word in words if word != "--draw"] or ([] if "--draw" in words else list(measure.SECTIONS))
    unknown = [word for word in wanted if word not in measure.SECTIONS]
    if unknown:
        print(f"no section {unknown[0]}: there are {', '.join(measure.SECTIONS)}", file=sys.stderr)
        return 2
    for name in wanted:
        print(f"== {name}", file=sys.stderr)
        measure.section(name, lambda line: print(line, file=sys.stderr))
    found = measure.answers()
    drawn = plots.draw(found)
    page.write(found)
    print(f"docs/benchmarks.md and {len(drawn)} plots in docs/images")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
