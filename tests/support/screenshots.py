"""Screenshots of a run's page, as they stand in docs/: phone and desktop, light and dark.

.venv/bin/python tests/support/screenshots.py runs/demo docs
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

from PIL import Image

import browser as headless

HEIGHTS = {"phone": 812, "desktop": 1340}
VIEWS = {"": None, "-read": ".question[open]"}  # the top of the page, and its browser of questions
COLOURS = 128


def take(run: Path, out: Path) -> list[Path]:
    """Write `page[-read]-<device>-<scheme>.png` for every device and scheme; returns their paths."""
    file, paths = run / "report" / "index.html", []
    with headless.started() as browser:
        for device, width in headless.WIDTHS.items():
            for scheme in ("light", "dark"):
                context = browser.new_context(
                    viewport={"width": width, "height": HEIGHTS[device]},
                    color_scheme=scheme,
                    reduced_motion="reduce",
                    device_scale_factor=2,
                )
                page = context.new_page()
                page.goto(headless.address(file))
                for name, place in VIEWS.items():
                    if place:
                        page.locator(place).evaluate("question => question.scrollIntoView()")
                        unsure = page.locator(".piece.s2, .piece.s3, .piece.s4, .piece.s5").locator("visible=true")
                        unsure.nth(min(1, unsure.count() - 1)).hover()
                    paths.append(out / f"page{name}-{device}-{scheme}.png")
                    _save(page.screenshot(), paths[-1])
                context.close()
    return paths


def _save(png: bytes, path: Path) -> None:
    """With few colours, which a page has anyway: a third of the bytes."""
    image = Image.open(io.BytesIO(png)).convert("RGB")
    image.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    for path in take(Path(sys.argv[1]), Path(sys.argv[2])):
        print(f"{path}  {path.stat().st_size // 1000} kB")
