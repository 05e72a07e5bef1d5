"""Optimism of the best of several checkpoints: how much of its validation accuracy is luck.

    >>> fair = {Checkpoint(step): {"svamp": [(step + i) % 2 == 0 for i in range(40)]} for step in (1, 2, 3, 4)}
    >>> estimate_optimism({Checkpoint(1): fair[Checkpoint(1)]}), 0 < estimate_optimism(fair) < 0.1
    (0.0, True)

The checkpoint with the best accuracy on some questions is partly the best because it was lucky with these questions, so
its accuracy on new questions is lower. The estimate repeats the choice: it resamples the questions with replacement,
chooses the best checkpoint on the resample, and reads its accuracy on the questions that are not in the resample (37 % of
them on average), which the choice did not see. The optimism is the accuracy of the best on all questions minus the mean of
these accuracies. (Tsamardinos, Greasidou and Borboudakis, Machine Learning 107, 2018, use it for the best of several
configurations.)

The usual bootstrap estimate (accuracy of the choice on its resample minus on all questions) finds only about 70 % of the
optimism of equal checkpoints, because it takes the accuracies that were measured, which differ by chance, for the true
ones; `tests/unit/test_optimism.py` shows it. In the same simulation, accuracy on the resample minus accuracy outside found
140 %, and tenfold cross-validation had as small a bias as this estimate, but an error that was up to 1.7 times as large.

The estimate is for the rule, not for the one checkpoint: it can be wrong for a single run by as much as accuracies vary
by chance. It says nothing about other seeds of the training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from potstill.records import Checkpoint

DRAWS_AT_ONCE: Final = 100  # resamples in memory at a time


def estimate_optimism(
    table: Mapping[Checkpoint, Mapping[str, Sequence[bool]]],
    weights: Mapping[str, float] | None = None,
    *,
    seed: int = 0,
    draws: int = 1000,
) -> float | None:
    """The expected difference between the best value of the table and the value of this checkpoint on new questions.

    table    checkpoint -> set -> whether each answer is right; all have the same questions in the same order
    weights  weights of the sets; None: all sets have the same weight
    draws    number of resamples. A resample that contains all questions of a set is left out

    The result is rounded to six decimals. Its unit is that of accuracies; 0 for a single checkpoint. Chance can make it
    slightly negative. None if no resample leaves questions of every set, as with sets of one question.
    """
    checkpoints = sorted(table)
    assert checkpoints, "no checkpoint to choose"
    if len(checkpoints) == 1:
        return 0.0
    names = sorted(table[checkpoints[0]])
    total = sum(weights[name] for name in names) if weights else len(names)
    shares = [(weights[name] if weights else 1) / total for name in names]
    right = [np.array([table[checkpoint][name] for checkpoint in checkpoints], dtype=np.float64) for name in names]
    apparent = sum(share * answers.mean(1) for share, answers in zip(shares, right, strict=True))
    generator = np.random.Generator(np.random.PCG64(seed))
    outside: list[np.ndarray] = []
    for start in range(0, draws, DRAWS_AT_ONCE):
        count = min(DRAWS_AT_ONCE, draws - start)
        inside, left = np.zeros((count, len(checkpoints))), np.zeros((count, len(checkpoints)))
        for share, answers in zip(shares, right, strict=True):
            n = answers.shape[1]
            times = generator.multinomial(n, np.full(n, 1 / n), size=count)
            absent = (times == 0).astype(np.float64)
            sizes = absent.sum(1, keepdims=True)
            sizes[sizes == 0] = np.nan  # no question is left: this resample does not count
            inside += share * (times @ answers.T) / n
            left += share * (absent @ answers.T) / sizes
        best = inside.round(12).argmax(1)  # of equal checkpoints the first, whatever the rounding
        outside.append(left[np.arange(count), best])
    values = np.concatenate(outside)
    values = values[~np.isnan(values)]
    return round(float(np.max(apparent) - values.mean()), 6) if len(values) else None
