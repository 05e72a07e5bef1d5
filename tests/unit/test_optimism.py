"""The optimism of the best of several checkpoints, against simulated checkpoints whose accuracies are known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from potstill.evaluation.optimism import estimate_optimism
from potstill.records import Checkpoint

CASES = {  # the true accuracies of ten checkpoints
    "equal": [0.3] * 10,
    "rising": list(np.linspace(0.2, 0.3, 10)),
    "saturating": list(0.3 * (1 - np.exp(-np.arange(1, 11) / 2))),
    "one is clearly better": [0.2] * 9 + [0.4],
}


def simulate(truth: list[float], n: int, generator: np.random.Generator) -> np.ndarray:
    """Whether each checkpoint has each question right: [checkpoints, n]. Some questions are hard for all of them."""
    hard = np.sqrt(0.5) * (generator.standard_normal(n) + generator.standard_normal((len(truth), n)))
    return hard < stats.norm.ppf(truth)[:, None]


def table_of(right: np.ndarray) -> dict[Checkpoint, dict[str, list[bool]]]:
    return {Checkpoint(10 + at): {"a": row.tolist()} for at, row in enumerate(right)}


def plain_bootstrap(right: np.ndarray, generator: np.random.Generator) -> float:
    """The usual estimate: the accuracy of the best on a resample, minus its accuracy on all questions."""
    n = right.shape[1]
    resampled = generator.multinomial(n, np.full(n, 1 / n), size=100) @ right.T / n
    best = resampled.argmax(1)
    return float((resampled.max(1) - right.mean(1)[best]).mean())


@pytest.mark.parametrize("case", CASES)
def test_it_is_right_on_average(case: str) -> None:
    """Over 150 simulated studies, its mean is that of the true optimism, which is up to 6 points. The usual bootstrap
    estimate finds about 70 % of the optimism of equal checkpoints."""
    generator, truth, n = np.random.default_rng(1), CASES[case], 100
    estimates, real, plain = [], [], []
    for study in range(150):
        right = simulate(truth, n, generator)
        accuracies = right.mean(1)
        best = int(accuracies.argmax())
        real.append(accuracies[best] - truth[best])
        estimates.append(estimate_optimism(table_of(right), seed=study, draws=100))
        plain.append(plain_bootstrap(right, generator))
    error = (np.array(real) - np.array(estimates)).std() / np.sqrt(150)
    assert abs(np.mean(estimates) - np.mean(real)) < 3 * error < 0.017
    if case == "equal":
        assert np.mean(real) > 0.04 and 0.6 < np.mean(plain) / np.mean(real) < 0.8


def test_one_checkpoint_is_not_the_best_of_several() -> None:
    assert estimate_optimism({Checkpoint(1): {"a": [True, False]}}) == 0.0


def test_too_few_questions_have_no_estimate() -> None:
    """A resample of one question is this question, so nothing is left to check the choice with."""
    assert estimate_optimism({Checkpoint(1): {"a": [True]}, Checkpoint(2): {"a": [False]}}) is None


def test_it_does_not_depend_on_the_order_of_the_table_and_scales_with_weights() -> None:
    right = simulate(CASES["equal"], 60, np.random.default_rng(2))
    table = {Checkpoint(10 + at): {"a": row[:40].tolist(), "b": row[40:].tolist()} for at, row in enumerate(right)}
    assert estimate_optimism(table) == estimate_optimism(dict(reversed(table.items())))
    assert estimate_optimism(table) == estimate_optimism(table, {"a": 3, "b": 3})
    only_a = {checkpoint: {"a": row["a"]} for checkpoint, row in table.items()}
    weighted = estimate_optimism(table, {"a": 1, "b": 1e-6})
    assert weighted == pytest.approx(estimate_optimism(only_a), abs=0.01)
