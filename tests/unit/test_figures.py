"""Figures: well-formed, deterministic, coloured by the page only, and safe for any name of a set."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as xml
from dataclasses import replace

import matplotlib
import pytest
from hypothesis import given
from hypothesis import strategies as st

from example_report import HOSTILE, example, hostile
from potstill.records import END, Chain, Checkpoint
from potstill.report import figures
from potstill.report.canvas import CSS_VARIABLES, shorten
from potstill.report.model import Interval, ReportData
from potstill.report.summary import CheckpointScores, scores_by_checkpoint

SVG = "{http://www.w3.org/2000/svg}"
NAMES = {"before-after", "tradeoff", "accuracy", "loss", "loss-kinds", "own-texts", "probabilities", "candidates"}
NAMES |= {"repair-texts"}


@pytest.fixture(scope="module")
def drawn() -> dict[str, str]:
    return figures.draw_figures(example())


def texts(svg: str) -> list[str]:
    return [text for element in xml.fromstring(svg).iter(SVG + "text") if (text := "".join(element.itertext()))]


def test_every_figure_in_two_widths(drawn: dict[str, str]) -> None:
    assert set(drawn) == NAMES | {f"{name}-narrow" for name in NAMES}
    for name, svg in drawn.items():
        root = xml.fromstring(svg)
        assert root.tag == SVG + "svg"
        assert root.attrib["viewBox"].split()[2] == ("380" if name.endswith("narrow") else "960")
        assert root.attrib["aria-label"].endswith(".")


def test_same_data_same_bytes_whatever_the_machine_is_set_to(drawn: dict[str, str]) -> None:
    with matplotlib.rc_context(
        {"font.size": 30, "svg.fonttype": "path", "lines.linewidth": 9, "axes.facecolor": "red"}
    ):
        assert figures.draw_figures(example()) == drawn


def test_colours_are_variables_of_the_page(drawn: dict[str, str]) -> None:
    for svg in drawn.values():
        assert not re.findall(r"(?<!, )#[0-9a-f]{6}\b", re.sub(r"url\(#[^)]*\)", "", svg)), "a colour of its own"
        assert not any(placeholder in svg for placeholder in CSS_VARIABLES)
        assert "<style" not in svg and "<metadata" not in svg and "<!DOCTYPE" not in svg


def test_ids_are_unique_in_a_page_and_all_references_resolve(drawn: dict[str, str]) -> None:
    ids = [each for svg in drawn.values() for each in re.findall(r' id="([^"]*)"', svg)]
    assert len(ids) == len(set(ids))
    for svg in drawn.values():
        own = set(re.findall(r' id="([^"]*)"', svg))
        assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg)) <= own


def test_tradeoff_labels_every_checkpoint_and_marks_the_chosen(drawn: dict[str, str]) -> None:
    found = texts(drawn["tradeoff"])
    for step in ("step 0", "100", "200", "300", "400, chosen", "500", "600"):
        assert found.count(step) == 2, step  # once in each panel
    assert "in-distribution accuracy" in found and "out-of-distribution accuracy" in found


def test_points_at_zero_are_whole() -> None:
    """A marker at 0 % lies half outside the axes: nothing may clip it."""
    full = example()
    zero = tuple(replace(score, accuracy=0.0, low=0.0, high=0.01) for score in full.validation)
    for name, markers in (("tradeoff", 14), ("accuracy", 35)):
        svg = figures.draw_figures(replace(full, validation=zero))[name]
        groups = [group for group in xml.fromstring(svg).iter(SVG + "g") if "clip-path" in group.attrib]
        clipped = [each for group in groups for each in group.iter(SVG + "use")]
        assert not clipped and svg.count("<use") >= markers, name


def test_kinds_of_positions_are_drawn_on_a_logarithmic_axis(drawn: dict[str, str]) -> None:
    found = texts(drawn["loss-kinds"])
    assert {"same", "merged", "split", "hard", "end"} <= set(found) and "mixed" not in found
    assert {"0.001", "0.01", "0.1", "1"} <= set(found), "a decade has a label"
    rows = [(step, "same", 0.0 if step % 2 else math.inf) for step in range(8)] + [(1, "end", 0.5), (2, "end", 0.25)]
    assert "same" not in texts(figures.draw_kind_losses(rows, None, width=380))


def test_before_after_says_the_change_of_every_set(drawn: dict[str, str]) -> None:
    for name in ("before-after", "before-after-narrow"):
        found = texts(drawn[name])
        assert {"gsm8k", "multiarith", "asdiv", "svamp", "bbh"} <= set(found)
        assert any(text.startswith("−22.0 (") for text in found)


@pytest.mark.parametrize("text", HOSTILE)
def test_names_from_data_stay_text(text: str) -> None:
    data = hostile(text)
    rows = [each for each in data.comparisons if each.chosen.format == "zero-shot-rationale"]
    for svg in (
        figures.draw_before_after(rows, data.groups),
        figures.draw_accuracy(scores_by_checkpoint(data), data.groups, 400),
    ):
        root = xml.fromstring(svg.encode("utf-8"))
        assert not {each.tag for each in root.iter()} & {SVG + "script", SVG + "image", SVG + "foreignObject"}
        assert not [key for each in root.iter() for key in each.attrib if key.startswith("on")]
        assert shorten(text, 22) in texts(svg)


def test_mathematics_in_a_name_is_not_typeset() -> None:
    data = hostile("$x^2$")
    assert "$x^2$" in texts(figures.draw_before_after(data.comparisons, data.groups))


def test_nothing_is_drawn_without_data() -> None:
    assert figures.draw_figures(ReportData("empty", student="s", teacher="t", groups={}, recipe="")) == {}


def test_no_tradeoff_without_a_generic_set() -> None:
    full = example()
    data = replace(full, validation=tuple(score for score in full.validation if score.set != "bbh"))
    assert "tradeoff" not in figures.draw_figures(data) and "accuracy" in figures.draw_figures(data)


def test_losses_that_are_not_finite_are_left_out() -> None:
    rows = [(1, 2.0), (2, math.nan), (3, 1.0), (4, math.inf)]
    assert figures.draw_losses(rows, None) == figures.draw_losses([(1, 2.0), (3, 1.0)], None)


def test_a_long_run_is_thinned() -> None:
    long = figures.draw_losses([(step, 1.0 + 1.0 / step) for step in range(1, 20_001)], 500)
    assert len(long) < 60_000


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_accuracies_at_the_ends(share: float) -> None:
    same = Interval(share, share, share)
    rows = [
        CheckpointScores(Checkpoint(step), {"in-distribution": same, "generic": same}, {"a": same}) for step in (0, 5)
    ]
    for svg in (figures.draw_tradeoff(rows, 5), figures.draw_accuracy(rows, {"a": "in-distribution"}, 5)):
        assert "nan" not in svg and xml.fromstring(svg).tag == SVG + "svg"


def test_checkpoints_are_means_of_the_sets_of_a_group() -> None:
    row = next(each for each in scores_by_checkpoint(example()) if each.checkpoint.step == 400)
    mean = row.groups["out-of-distribution"].value
    assert mean == pytest.approx(sum(row.sets[name].value for name in ("multiarith", "asdiv", "svamp")) / 3)
    assert row.groups["out-of-distribution"].low < mean < row.groups["out-of-distribution"].high


@given(st.lists(st.integers(1, 40), max_size=12), st.integers(1, 20))
def test_lines_hold_every_token_once_and_cut_only_steps_that_have_no_room(steps: list[int], room: int) -> None:
    found = figures.break_lines(steps, room)
    assert [begin for begin, _ in found] == [0, *(end for _, end in found)][: len(found)]
    assert (found[-1][1] if found else 0) == sum(steps) and all(0 < end - begin <= room for begin, end in found)
    borders = {sum(steps[:n]) for n in range(len(steps) + 1)}
    inside = [(sum(steps[:n]), steps[n]) for n in range(len(steps))]
    for _, end in found:
        assert end in borders or any(at < end < at + length and length > room for at, length in inside)


@pytest.mark.parametrize(
    "steps",
    [
        ["He has 4.", " So 5 left.", " The answer is 5"],
        ["One.\n", "Two. Half\n", "The answer is 3"],
        ["It costs $3.50 now"],
        ["So 4.\n", "The answer is 4"],
    ],
)
def test_steps_begin_at_lines_or_sentences(steps: list[str]) -> None:
    tokens = [piece.encode() for piece in re.findall(r"\n| ?[^ \n.]+|\.", "".join(steps))]
    begins = [len(b"".join(tokens[:at])) for at in figures.step_starts(tokens)]
    assert begins == [len("".join(steps[:n])) for n in range(len(steps))]


def test_the_figures_of_a_chain_show_its_tokens_and_candidates() -> None:
    tokens = [b"So", b" 4", b"\xe2\x82", " 日".encode()]
    steps = [[(token, math.log(0.5)), (b" wholly", math.log(0.3)), (b"!", math.log(0.1))] for token in tokens]
    chain = Chain.from_tokens("q", 0, tokens, [*steps, [(END, -0.1)]])
    for width in (960, 380):
        bars, cells = figures.draw_probabilities(chain, width=width), figures.draw_candidates(chain, width=width)
        assert {"step 1", "So", "4", "E2 82", "日", "end"} <= set(texts(bars))
        assert texts(cells).count("!") == len(tokens) and {"␣4", "end"} <= set(texts(cells))


def test_a_drawn_token_outside_of_the_likeliest_is_shown_all_the_same() -> None:
    step = [(b"a", -0.5), (b"b", -1.5), (b"c", -2.5), (b"d", -3.5), (b"e", -4.5), (b"rare", -9.0)]
    chain = Chain.from_tokens("q", 0, [b"rare"], [step])
    for width, shown in ((960, {"a", "b", "c", "d", "rare"}), (380, {"a", "b", "rare"})):
        assert {text for text in texts(figures.draw_candidates(chain, width=width)) if "step" not in text} == shown


def test_a_long_chain_is_cut() -> None:
    chain = Chain.from_tokens("q", 0, [b" x"] * 300, [[(b" x", -0.1)]] * 300)
    assert texts(figures.draw_probabilities(chain, width=960)).count("x") == figures.MAX_TOKENS["probabilities"]
    assert texts(figures.draw_candidates(chain, width=960)).count("␣x") == figures.MAX_TOKENS["candidates"]
