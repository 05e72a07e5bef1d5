"""The report in a real browser: every control works, nothing is fetched, and no text is interpreted as HTML."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

import browser as headless
from example_comparison import comparison, recipes
from example_report import HOSTILE, example, hostile
from potstill.records import BASE, LabelTable
from potstill.report import csv_tables, figures, html
from potstill.report.html import render_report
from potstill.report.model import ReportData, StageTime

pytest.importorskip("playwright.sync_api", reason="playwright is not installed: no browser can be driven")
if headless.path() is None:
    pytest.skip(f"none of {', '.join(headless.NAMES)} is installed", allow_module_level=True)

WIDTHS = tuple(headless.WIDTHS.values())
KINDS = ("taught", "won", "lost", "still-wrong", "still-right")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with headless.started() as started:
        yield started


def write(folder: Path, data: ReportData) -> Path:
    """The page of a data with everything beside it, as the report stage leaves it."""
    folder.mkdir(exist_ok=True)
    made = {"index.html": html.render_report(data, figures.draw_figures(data))}
    made |= {f"{name}.csv": text for name, text in csv_tables.build_tables(data).items()}
    made |= html.render_times(data, (StageTime("sample", 12.5, 800), StageTime("train", 90.25, 900)))
    for name, text in made.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder / "index.html"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("page"), example())


class Opened:
    """A page in a window, and what the browser said, asked for and showed while it was open."""

    def __init__(self, browser: Any, file: Path, width: int = 1280, scheme: str = "light", **more: Any) -> None:
        window = {"width": width, "height": 800}
        self.context = browser.new_context(viewport=window, color_scheme=scheme, reduced_motion="reduce", **more)
        self.page = self.context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.said.append(dialog.message), dialog.dismiss()))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(headless.address(file))

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()

    def shown(self, selector: str) -> list[str]:
        """The classes of the elements that can be seen."""
        script = "all => all.filter(e => e.checkVisibility()).map(e => e.className)"
        return self.page.locator(selector).evaluate_all(script)

    def overflow(self) -> int:
        """Pixels by which the page is wider than its window, with everything opened."""
        self.page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
        return self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_it_loads_alone_without_a_complaint_and_fits(browser: Any, file: Path, width: int, scheme: str) -> None:
    with Opened(browser, file, width, scheme) as opened:
        assert opened.overflow() <= 0
        assert opened.asked == [headless.address(file)] and opened.said == []
        assert opened.page.evaluate("document.scripts.length") == 1
        wide, narrow = len(opened.shown(".wide")), len(opened.shown(".narrow"))
        assert (wide > 0, narrow > 0) == (width > 700, width < 700)


@pytest.mark.parametrize("text", ["".join(HOSTILE), "word" * 200], ids=["hostile", "long"])
def test_hostile_texts_are_inert(browser: Any, tmp_path: Path, text: str) -> None:
    file = write(tmp_path, hostile(text))
    for width in WIDTHS:
        with Opened(browser, file, width) as opened:
            assert opened.overflow() <= 0
            assert len(opened.asked) == 1 and opened.said == []
            alive = "all => all.filter(e => [...e.attributes].some(a => a.name.startsWith('on'))).length"
            assert opened.page.locator("script:not(body > script:last-of-type), img, iframe, object, form").count() == 0
            assert opened.page.locator("*").evaluate_all(alive) == 0


def test_the_policy_would_stop_a_script(browser: Any, tmp_path: Path) -> None:
    """If a text did come through unescaped, the browser would refuse to run it."""
    html = render_report(example(), {})
    scripts = "<script>document.title='run'</script><img src='http://x.invalid/'>"
    file = tmp_path / "index.html"
    file.write_text(html.replace("<main>", "<main>" + scripts), encoding="utf-8")
    with Opened(browser, file) as opened:
        assert opened.page.title() == "example: a potstill run"
        assert sum("Content Security Policy" in said for said in opened.said) == 2


def test_every_link_leads_somewhere(browser: Any, file: Path) -> None:
    with Opened(browser, file) as opened:
        sections = opened.page.locator("nav a")
        assert sections.count() == len(html.SECTIONS) - 1  # the example has no labels
        for link in sections.all():
            target = link.get_attribute("href") or ""
            link.click()
            assert opened.page.url.endswith(target) and opened.page.locator(target).is_visible()
        opened.page.locator("a[href='time.html']").click()
        assert "1 min 43 s" in opened.page.locator(".lede").inner_text()
        opened.page.locator("a[href='index.html']").click()
        assert opened.page.locator("#before-after").count() == 1 and opened.said == []


def test_every_table_can_be_had(browser: Any, file: Path) -> None:
    with Opened(browser, file) as opened:
        opened.page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
        links = {link.get_attribute("href"): link for link in opened.page.locator("a.csv").all()}
        assert set(links) == {f"{name}.csv" for name in csv_tables.build_tables(example())} | {"time.csv"}
        for name, link in links.items():
            with opened.page.expect_download() as download:
                link.click()
            assert download.value.suggested_filename == name
            assert Path(download.value.path()).read_bytes() == (file.parent / str(name)).read_bytes()


def test_the_filter_shows_what_it_says(browser: Any, file: Path) -> None:
    with Opened(browser, file) as opened:
        every = opened.shown(".question")
        assert len(every) == len(example().examples)
        for choice in opened.page.locator(".filter input[name=show]").all():
            kind = (choice.get_attribute("id") or "").removeprefix("show-")
            choice.check()
            wanted = every if kind == "all" else [each for each in every if kind in each.split()]
            assert opened.shown(".question") == wanted and opened.said == []
            number = opened.page.locator(f"label[for=show-{kind}] small").inner_text()
            assert int(number) == len(wanted)


def test_the_filter_by_keyboard(browser: Any, file: Path) -> None:
    with Opened(browser, file, 390) as opened:
        opened.page.locator("#show-all").focus()
        seen = []
        for _ in range(4):
            opened.page.keyboard.press("ArrowRight")
            seen += opened.shown(".question")
        assert [each.split()[1] for each in seen] == ["taught", "won", "lost", "still-wrong"]
        for _ in range(3):  # the filter by set, the search, the first question
            opened.page.keyboard.press("Tab")
        inside = "document.activeElement.closest('.question')?.className"
        assert opened.page.evaluate(inside).startswith("question still-wrong")
        opened.page.keyboard.press("Enter")
        assert opened.page.locator(".question.still-wrong").get_attribute("open") is not None


def test_both_filters_and_the_search_hold_together(browser: Any, file: Path) -> None:
    with Opened(browser, file) as opened:
        page, found = opened.page, opened.page.locator("#found")
        assert found.inner_text() == "4 of 4 questions" and not page.locator(".nothing").is_visible()
        page.locator("#of-set-3").check()  # bbh
        assert opened.shown(".question") == ["question lost set-3"] and found.inner_text() == "1 of 4 questions"
        page.locator("#show-won").check()
        assert opened.shown(".question") == [] and page.locator(".nothing").is_visible()
        page.locator("#show-all").check()
        page.locator("#of-all").check()
        page.locator("#search").fill("SOME  or not")
        assert [each.split()[1] for each in opened.shown(".question")] == ["still-wrong"]
        page.locator("#search").fill("")
        assert len(opened.shown(".question")) == 4 and opened.said == []


def test_without_a_script_the_filters_work_and_no_search_is_shown(browser: Any, file: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(headless.address(file))
    assert not page.locator("#search").is_visible()
    page.locator("#show-lost").check()
    assert [page.locator(f".question.{kind}").is_visible() for kind in ("lost", "won", "taught")] == [
        True,
        False,
        False,
    ]
    context.close()


def test_the_link_of_a_question_opens_it(browser: Any, file: Path) -> None:
    with Opened(browser, file) as opened:
        assert opened.page.locator("#q-bbh-3").get_attribute("open") is None
        opened.page.goto(headless.address(file) + "#q-bbh-3")
        assert opened.page.locator("#q-bbh-3").get_attribute("open") is not None and opened.said == []
        opened.page.locator("#q-bbh-3 .keys a").click()
        assert opened.page.url.endswith("#q-bbh-3")


def test_a_table_that_goes_on_says_so(browser: Any, file: Path) -> None:
    """A shadow in every browser, and words where the browser can tell that a table scrolls."""
    with Opened(browser, file, 390) as opened:
        for part in opened.page.locator(".scroll:visible").all():
            wider = part.evaluate("e => e.scrollWidth > e.clientWidth + 1")
            assert (part.evaluate("e => getComputedStyle(e, '::after').visibility") == "visible") is wider
            assert "linear-gradient" in part.evaluate("e => getComputedStyle(e).backgroundImage")


def test_questions_open_and_close(browser: Any, file: Path) -> None:
    with Opened(browser, file) as opened:
        for question in opened.page.locator(".question").all():
            before = question.get_attribute("open") is not None
            question.locator("summary").first.click()
            assert (question.get_attribute("open") is not None) is not before
        prompt = opened.page.locator(".won .prompt")
        assert not prompt.locator("pre").is_visible()
        prompt.locator("summary").click()
        assert prompt.locator("pre").is_visible()
        shut = opened.page.locator(".won > .texts").count()
        assert shut == 1 and opened.page.locator(".won .texts article").count() == 2


@pytest.mark.parametrize("width", WIDTHS)
def test_pieces_say_what_else_might_have_stood_there(browser: Any, file: Path, width: int) -> None:
    with Opened(browser, file, width) as opened:
        first = opened.page.locator(".piece").first
        others = first.locator(".others")
        assert not others.is_visible()
        first.hover()
        assert others.is_visible() and "%" in others.inner_text()
        box = others.bounding_box()
        assert box and box["x"] >= 0 and box["x"] + box["width"] <= width and opened.overflow() <= 0
        opened.page.locator("h1").hover()
        assert not others.is_visible()
        first.focus()
        assert others.is_visible()
        opened.page.keyboard.press("Tab")
        assert not others.is_visible() and opened.page.locator(".piece").nth(1).locator(".others").is_visible()


@pytest.mark.parametrize("width", WIDTHS)
def test_no_label_of_the_tradeoff_covers_another(browser: Any, tmp_path: Path, width: int) -> None:
    """Not even where checkpoints coincide."""
    full = example()
    near = tuple(
        replace(score, accuracy=0.3 + 0.001 * (score.checkpoint.step // 100), low=0.28, high=0.33)
        if score.checkpoint.step > 100
        else score
        for score in full.validation
    )
    for number, data in enumerate((full, replace(full, validation=near))):
        with Opened(browser, write(tmp_path / str(number), data), width) as opened:
            boxes = "all => all.map(e => [e.textContent.trim(), e.getBoundingClientRect()])"
            found = opened.page.locator("#tradeoff svg:visible text").evaluate_all(boxes)
            labels = [(text, box) for text, box in found if re.fullmatch(r"(step )?\d+(, chosen)?", text)]
            assert len(labels) == 14
            for (one, a), (other, b) in combinations(labels, 2):
                apart = a["right"] <= b["left"] or b["right"] <= a["left"]
                apart = apart or a["bottom"] <= b["top"] + 4 or b["bottom"] <= a["top"] + 4  # boxes have room above
                assert apart, f"{one} covers {other}"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_can_be_read(browser: Any, file: Path, scheme: str) -> None:
    """Every colour of text against the paper: a contrast of 4.5 (WCAG 2.2, level AA)."""
    with Opened(browser, file, scheme=scheme) as opened:
        names = ("paper", "ink", "soft", "inside", "outside", "generic", "good", "bad")
        script = "names => names.map(n => getComputedStyle(document.documentElement).getPropertyValue('--' + n).trim())"
        colours = dict(zip(names, opened.page.evaluate(script, names), strict=True))
        paper = luminance(colours.pop("paper"))
        for name, colour in colours.items():
            low, high = sorted((paper, luminance(colour)))
            assert (high + 0.05) / (low + 0.05) >= 4.5, f"{name} {colour}"


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_a_checker_of_accessibility_finds_nothing(browser: Any, file: Path, width: int, scheme: str) -> None:
    """axe-core: no rule of WCAG 2.2 AA is broken."""
    for name in ("index.html", "time.html"):
        assert headless.accessibility_faults(browser, file.parent / name, width, scheme) == []


def classification() -> ReportData:
    """A page with the section "Labels": a base, the chosen checkpoint, and a long label that breaks nothing."""
    full = example()
    assert full.choice is not None
    kind = (full.choice.format, full.choice.decoding, ("billing", "bug", "a label of several words", "w" * 60))
    counts = ((9, 1, 0, 0, 2, 0), (0, 7, 0, 0, 0, 1), (0, 0, 0, 0, 0, 0), (1, 0, 0, 0, 0, 3))
    tables = [
        LabelTable(checkpoint, "gsm8k", "test", *kind, counts, "bug", "train")
        for checkpoint in (BASE, full.choice.checkpoint)
    ]
    return replace(full, labels=tuple(tables))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_the_tables_of_labels_fit_and_are_accessible(browser: Any, tmp_path: Path, width: int, scheme: str) -> None:
    file = write(tmp_path / "page", classification())
    with Opened(browser, file, width, scheme) as opened:
        assert opened.page.locator("#labels table").count() == 2 and opened.overflow() <= 0 and opened.said == []
    assert headless.accessibility_faults(browser, file, width, scheme) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_comparisons_fit_and_are_accessible(browser: Any, tmp_path: Path, width: int, scheme: str) -> None:
    for name, compared in (("models", comparison()), ("recipes", recipes("another")), ("long", comparison("w" * 200))):
        file = tmp_path / f"{name}.html"
        file.write_text(html.render_comparison(compared), encoding="utf-8")
        with Opened(browser, file, width, scheme) as opened:
            assert opened.overflow() <= 0 and opened.said == []
        assert headless.accessibility_faults(browser, file, width, scheme) == []


def test_it_prints(browser: Any, file: Path) -> None:
    with Opened(browser, file) as opened:
        opened.page.emulate_media(media="print")
        assert opened.shown("nav, .filter, a.csv, .narrow") == []
        assert len(opened.shown(".question")) == len(example().examples)
        assert opened.page.locator(".question:not([open]) .texts").first.bounding_box() is not None
        assert opened.page.pdf().startswith(b"%PDF")
