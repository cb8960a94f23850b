"""Screenshots of the results page: python tests/browser/shots.py results/index.html results/page.

Wide, phone and dark, each of the head and of an experiment with its charts.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from opening import browser, opened

SIZES = {"wide": (1280, 1000, False), "phone": (360, 780, False), "dark": (1280, 1000, True)}


def main(page: Path, folder: Path, experiment: str = "cifar10") -> None:
    """Writes <folder>/<size>.png and <size>-head.png."""
    folder.mkdir(parents=True, exist_ok=True)
    with browser() as running:
        for name, (width, height, dark) in SIZES.items():
            shown = opened(running, page, width, height, dark).page
            shown.screenshot(path=folder / f"{name}-head.png")
            shown.locator(f"#{experiment} .charts").scroll_into_view_if_needed()
            shown.evaluate(f"document.querySelector('#{experiment} .charts').scrollIntoView()")
            for kind in ("metrics", "curves", "layers"):
                shown.locator(f"#{experiment} figure[data-kind={kind}]").scroll_into_view_if_needed()
                shown.wait_for_selector(f"#{experiment} figure[data-drawn={kind}]")
            shown.evaluate(f"document.querySelector('#{experiment} .charts').scrollIntoView()")
            shown.wait_for_timeout(300)
            shown.screenshot(path=folder / f"{name}.png")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
