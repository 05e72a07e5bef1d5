"""The page of a study in a real browser: it fits a phone and a desktop, loads nothing, and shows texts as texts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import browser as headless
import example_study
from example_report import HOSTILE
from potstill.report.study_page import render_study_page

pytest.importorskip("playwright.sync_api", reason="playwright is not installed: no browser can be driven")
if headless.path() is None:
    pytest.skip(f"none of {', '.join(headless.NAMES)} is installed", allow_module_level=True)

OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with headless.started() as started:
        yield started


def write(folder: Path, title: str, study: example_study.Study) -> Path:
    for name, content in render_study_page("findings", title, *study).items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder / "index.html"


def check(browser: Any, file: Path, width: int, scheme: str) -> None:
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page, said, asked = context.new_page(), [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(headless.address(file))
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert page.evaluate(OVERFLOW) <= 0
    assert said == [] and asked == [headless.address(file)]
    shown = "all => all.filter(e => e.checkVisibility()).length"
    wide, narrow = (page.locator(name).evaluate_all(shown) for name in (".wide", ".narrow"))
    assert (wide > 0, narrow > 0) == (width > 700, width < 700)
    # No text of a figure leaves the window.
    sizes = "all => all.filter(e => e.checkVisibility()).map(e => e.getBoundingClientRect())"
    texts = page.locator("svg.figure text").evaluate_all(sizes)
    assert texts and all(text["left"] >= 0 and text["right"] <= width for text in texts)
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", headless.WIDTHS.values())
def test_it_loads_alone_and_fits(browser: Any, tmp_path: Path, width: int, scheme: str) -> None:
    check(browser, write(tmp_path, "A study", example_study.everything()), width, scheme)


@pytest.mark.parametrize("text", ["".join(HOSTILE), "word" * 200], ids=["hostile", "long"])
def test_titles_and_names_of_users_are_texts_and_fit(browser: Any, tmp_path: Path, text: str) -> None:
    experiments, runs = example_study.rules()
    long = [each._replace(title=text) for each in experiments]
    named = {name: replace(run, fault=text if run.fault else "") for name, run in runs.items()}
    file = write(tmp_path, text, (long, named))
    for width in headless.WIDTHS.values():
        check(browser, file, width, "light")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", headless.WIDTHS.values())
def test_a_checker_of_accessibility_finds_nothing(browser: Any, tmp_path: Path, width: int, scheme: str) -> None:
    file = write(tmp_path, "A study", example_study.everything())
    assert headless.accessibility_faults(browser, file, width, scheme) == []
