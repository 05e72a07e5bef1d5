"""Confidence and entropy: bins hold every question once, and agree with the plain formulas."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as some

from potstill.records import END, Chain
from potstill.report.calibration import calibration_error, candidate_entropy, chain_surprise, confidence_bins

ANSWERS = some.sampled_from([("1", True), ("2", False), ("3", False), (None, False)])


@given(some.lists(some.lists(ANSWERS, min_size=1, max_size=8), max_size=30))
def test_every_question_with_several_samples_is_in_one_bin(questions: list[list[tuple[str | None, bool]]]) -> None:
    bins = confidence_bins(questions)
    several = [samples for samples in questions if len(samples) > 1]
    assert sum(row.n for row in bins) == len(several)
    assert all(row.low <= row.confidence <= row.high + 1e-12 and 0 <= row.right <= row.n for row in bins)
    error = calibration_error(bins)
    assert (error is None) == (not several) and 0 <= (error or 0) <= 1


def test_a_calibrated_model_has_no_error() -> None:
    agree = [("1", True)] * 3 + [("2", False)]  # three of four samples agree
    wrong = [("2", False)] * 3 + [("1", True)]
    bins = confidence_bins([agree, agree, agree, wrong])
    assert [(row.confidence, row.n, row.right) for row in bins] == [(0.75, 4, 3)]
    assert calibration_error(bins) == pytest.approx(0)
    assert calibration_error(confidence_bins([agree, wrong, wrong, wrong])) == pytest.approx(0.5)


@given(some.lists(some.floats(0.001, 1), min_size=1, max_size=9), some.floats(0, 0.5))
def test_entropy_is_that_of_the_outcomes_and_the_tail(weights: list[float], tail: float) -> None:
    shares = [weight * (1 - tail) / math.fsum(weights) for weight in weights]
    step = [(str(index).encode(), math.log(share)) for index, share in enumerate(shares)]
    expected = -sum(share * math.log(share) for share in [*shares, tail] if share > 0)
    assert candidate_entropy(step) == pytest.approx(expected, abs=1e-6)


def test_the_bits_of_a_chain_are_those_of_its_sampled_tokens() -> None:
    steps = [
        [(b"a", math.log(0.5)), (b"b", math.log(0.5))],
        [(b"c", math.log(0.25)), (b"d", math.log(0.75))],
        [(END, -0.1)],
    ]
    bits, entropy, tokens = chain_surprise(Chain.from_tokens("q", 0, [b"a", b"c"], steps)) or (0, 0, 0)
    assert (bits, tokens) == (pytest.approx(3), 2)
    assert entropy == pytest.approx(math.log(2) - 0.25 * math.log(0.25) - 0.75 * math.log(0.75))
    assert chain_surprise(Chain.from_text("q", 0, "a", source="human")) is None
    assert chain_surprise(Chain.from_tokens("q", 0, [b"x"], steps[:1])) is None, "the sampled token has no probability"
