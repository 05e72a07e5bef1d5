"""What the report shows of the texts that the student wrote: which texts, which measures, and the means by staleness."""

from __future__ import annotations

from statistics import fmean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from potstill.report.canvas import smooth_by_step
from potstill.report.model import OwnTextStep, OwnTextSummary
from potstill.report.own_text_panels import list_panels
from potstill.report.own_texts import STALENESS_ROWS, group_by_staleness, pick_own_texts
from potstill.training.own_texts import OwnText


@some.composite
def own_texts(draw: some.DrawFn) -> list[OwnText]:
    keys = some.tuples(some.integers(1, 40), some.integers(0, 5), some.integers(0, 3))
    texts = []
    for step, slot, index in draw(some.lists(keys, unique=True, max_size=30)):
        question, advantage = f"q/{draw(some.integers(0, 9))}", draw(some.sampled_from([-1.0, 0.0, 0.5]))
        texts.append(OwnText(step, slot, question, index, "text", (), "end", "right", 1.0, 1.0, advantage))
    return texts


@given(own_texts(), some.integers(1, 8), some.randoms())
@settings(max_examples=60, deadline=None)
def test_the_choice_of_texts_is_one_for_each_question_and_does_not_depend_on_their_order(
    texts: list[OwnText], most: int, random: some.DataObject
) -> None:
    picked = pick_own_texts(texts, most)
    assert len(picked) == min(most, len({text.question for text in texts}))
    assert len({text.question for text in picked}) == len(picked) and all(text in texts for text in picked)
    assert picked == sorted(picked, key=lambda text: text.step)
    shuffled = list(texts)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert pick_own_texts(shuffled, most) == picked
    if picked:
        assert max(text.advantage for text in texts) == max(text.advantage for text in picked)


def test_the_texts_come_from_all_parts_of_the_steps() -> None:
    texts = [OwnText(step, 0, f"q/{step}", 0, "", (), "end", "right", 1.0) for step in range(1, 101)]
    assert [(text.step - 1) // 25 for text in pick_own_texts(texts, 4)] == [0, 1, 2, 3]


@given(some.lists(some.tuples(some.integers(0, 30), some.floats(0, 5)), max_size=40))
@settings(max_examples=60, deadline=None)
def test_means_by_staleness(values: list[tuple[int, float]]) -> None:
    steps = [
        OwnTextStep(number, {}, {"texts": 1, "staleness": age, "ratio": ratio, "capped": ratio / 5})
        for number, (age, ratio) in enumerate(values, 1)
    ]
    rows = group_by_staleness([OwnTextStep(0, {}, {}), *steps])
    assert len(rows) <= STALENESS_ROWS and sum(row.steps for row in rows) == len(values)
    for row in rows:
        found = [ratio for age, ratio in values if row.first <= age <= row.last]
        assert len(found) == row.steps and row.ratio == pytest.approx(fmean(found))


def test_panels_that_would_say_nothing_are_left_out() -> None:
    def titles(window: int, **measures: float) -> list[str]:
        steps = (OwnTextStep(1, {}, {}), OwnTextStep(2, {"a": 1.0, "b": float("inf")}, {"texts": 1, **measures}))
        return [panel.measure for panel in list_panels(OwnTextSummary((), window, 2.0, steps))]

    ratios = {"ratio": 1.0, "capped": 0.0, "clipped": 0.0, "kl": 0.01}
    assert titles(1, right=0.5, reward=0.5, **ratios) == ["divergence", "right"]
    assert titles(1, right=0.5, reward=0.25, **ratios) == ["divergence", "right", "reward"]
    assert titles(4, **{**ratios, "clipped": 0.1}) == ["divergence", "ratio", "kl", "capped", "clipped"]


@given(
    some.lists(some.floats(-10, 10), min_size=1, max_size=90),
    some.integers(1, 40),
    some.integers(2, 30),
    some.integers(1, 9),
)
@settings(max_examples=60, deadline=None)
def test_smooth_values_are_centred_means(values: list[float], most: int, parts: int, least: int) -> None:
    rows = list(enumerate(values, 1))
    steps, points, smooth = smooth_by_step(rows, most=most, parts=parts, least=least)
    size = len(values) // len(points) if len(points) == 1 else steps[0]
    assert len(steps) == len(points) == len(smooth) <= most and steps[-1] == len(values)
    assert points[0] == pytest.approx(fmean(values[:size]))
    width = max(1, len(points) // parts, -(-least // size))
    middle = len(points) // 2
    expected = fmean(points[max(0, middle - width // 2) : middle + width // 2 + 1])
    assert smooth[middle] == pytest.approx(expected, abs=1e-9)
    assert min(points) - 1e-9 <= min(smooth) and max(smooth) <= max(points) + 1e-9
