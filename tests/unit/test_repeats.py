"""Texts that repeat themselves: which ones are stopped, what is kept of them, and that no grade changes."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache_models import random_model
from potstill.evaluation import score_predictions
from potstill.grading import grade
from potstill.inference import Decode, Request
from potstill.inference.sampling import MAX_PERIOD, MIN_REPEATED, REPEATS, RepeatDetector
from potstill.inference.transformers import TransformersEngine
from potstill.records import Checkpoint, Prediction, Score
from potstill.serialization import from_json, to_json

FIRST = ["He has 3 + 4 = 7 pens.\nThe answer is 7.", "3 + 4 = 7.\nThe answer is 12.\n\nQ: What is 2?\nThe answer is 2."]
BLOCKS = [
    "\n\nQ: What is 5 + 4?\nThe answer is 9.",
    "\nThe answer is 12.",
    "\nThe answer is 7.\n",
    " The answer is 125 cents.",
    " So he has 3 left. And the rest is 40.",
    "\n\nA: 4",
    " and 7 and 12",
    " 1 +",
    "0",
    "\n",
]


def is_repeating(text: Sequence[int]) -> bool:
    """The rule, written plainly."""
    for period in range(1, MAX_PERIOD + 1):
        size = max(REPEATS * period, MIN_REPEATED)
        part = text[-size:]
        if len(part) == size and all(part[place] == part[place - period] for place in range(period, size)):
            return True
    return False


@given(
    st.lists(st.integers(0, 2), max_size=40), st.lists(st.integers(0, 2), min_size=1, max_size=70), st.integers(0, 6)
)
def test_the_rule_is_the_plain_one(before: list[int], block: list[int], times: int) -> None:
    text = before + block * times + before
    detector = RepeatDetector(1, lambda token, position: b"x")
    for length in range(1, len(text) + 1):
        assert bool(detector.add([0], [text[:length]])) == is_repeating(text[:length])
        if is_repeating(text[:length]):
            break


@given(st.lists(st.lists(st.integers(0, 1), min_size=90, max_size=90), min_size=2, max_size=4), st.data())
def test_rows_do_not_affect_each_other(texts: list[list[int]], data: st.DataObject) -> None:
    together = RepeatDetector(len(texts), lambda token, position: [b" a", b".\n"][token])
    alone = [RepeatDetector(1, together.token_bytes) for _ in texts]
    live = list(range(len(texts)))
    for length in range(1, 91):
        parts = [texts[row][:length] for row in live]
        found = together.add(live, parts)
        assert found == [row for row, part in zip(live, parts, strict=True) if alone[row].add([0], [part])]
        live = [row for row in live if row not in found and data.draw(st.integers(0, 99)) != 0]
    assert all(together.lengths[row] == alone[row].lengths[0] for row in live)


def split_into_tokens(text: str) -> list[str]:
    return re.findall(r" ?[A-Za-z]+|\n| ?\d| ?[^\w\s]|\s", text)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("first", FIRST)
@settings(max_examples=20)
@given(st.sampled_from(["7", "12", "9", "4"]), st.integers(0, 80))
def test_the_grade_of_a_text_is_that_of_its_whole_loop(first: str, block: str, gold: str, phase: int) -> None:
    """Whatever the loop says, and wherever in it the text would have been cut at a limit after a whole block."""
    words = split_into_tokens(first + block * 150)
    ids = {word: number for number, word in enumerate(dict.fromkeys(words))}
    names = [word.encode() for word in ids]
    text = [ids[word] for word in words]
    start = len(split_into_tokens(first))
    detector = RepeatDetector(1, lambda token, position: names[token])
    end = next(length for length in range(1, len(text)) if detector.add([0], [text[:length]]))
    length = detector.lengths[0]
    assert length is not None and start < length <= end
    kept = "".join(words[:length])
    size = len(split_into_tokens(block))
    whole = "".join(words[: start + size * (max(REPEATS, -(-end // size)) + phase)])
    assert grade(kept, gold, "number", "repeat") == grade(whole, gold, "number", "length")
    # Where the first answer ends in front of another question, it alone is graded.
    if "Q:" in first + block:
        assert grade(kept, gold, "number", "repeat") == grade(first, gold, "number")


def test_a_text_without_an_answer_is_truncated() -> None:
    assert grade("1 + 1 + 1 +", "3", "number", "repeat").grade == "truncated"
    assert grade("The answer is 3.\n\n\n", "3", "number", "repeat").grade == "right"


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_an_engine_stops_the_rows_that_repeat_and_no_others(kind: str) -> None:
    engine = TransformersEngine(random_model(kind))
    requests = [Request(("q", row), tuple(5 + (7 * row + 3 * place) % 40 for place in range(4))) for row in range(12)]
    written: list[int] = []
    whole = engine.generate(requests, Decode(max_tokens=150, likelihood=True), written.append)
    stopped = engine.generate(requests, Decode(max_tokens=150, likelihood=True, stop_repeats=True))
    assert "repeat" in {text.stop for text in stopped}
    assert sum(written) == sum(text.written for text in whole)
    for before, after in zip(whole, stopped, strict=True):
        ends = [length for length in range(1, len(before.ids) + 1) if is_repeating(before.ids[:length])]
        assert (after.stop == "repeat") == bool(ends)
        if not ends:
            assert after == before
        else:
            period = MAX_PERIOD
            assert after.ids == before.ids[: len(after.ids)] and ends[0] - period < len(after.ids) <= ends[0]
            assert after.likelihood is not None and before.likelihood is not None
            assert after.likelihood >= before.likelihood - 1e-6


def test_repeated_texts_are_counted_only_where_they_are_stopped() -> None:
    rows = [
        Prediction("m/1", "m", "number", "The answer is 2", "repeat", "right", "2"),
        Prediction("m/2", "m", "number", "1 1 1", "repeat", "truncated", None),
        Prediction("m/3", "m", "number", "1 2 3", "length", "truncated", None),
    ]
    labels = {"split": "test", "format": "zero-shot-rationale", "decoding": "greedy", "checkpoint": Checkpoint(0)}
    [score] = score_predictions(rows, stop_repeats=True, **labels)  # type: ignore[arg-type]
    assert (score.truncated, score.repeated) == (2, 1)
    assert from_json(Score, to_json(score)) == score
    [score] = score_predictions(rows, **labels)  # type: ignore[arg-type]
    assert score.repeated is None and "repeated" not in to_json(score) and "macro" in to_json(score)
