"""Measures how sure a model is of its answers, from its own samples, and how often it is right.

    >>> sampled = {"q1": [("8", True), ("8", True), ("9", False)], "q2": [("5", False), ("5", False), ("5", False)]}
    >>> bins = confidence_bins(sampled.values())
    >>> [(round(row.confidence, 2), row.n, row.right) for row in bins]
    [(0.67, 1, 1), (1.0, 1, 0)]
    >>> round(calibration_error(bins), 2)      # (|0.67 - 1| + |1 - 0|) / 2
    0.67

The confidence in an answer is the share of the samples that agree on it. A calibrated model is right in 80 % of the
questions in which 80 % of its samples agree.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Final

from potstill.evaluation.self_consistency import majority_index
from potstill.records import Candidate, Chain
from potstill.report.model import ConfidenceBin

BOUNDS: Final = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
Sample = tuple[str | None, bool]  # answer, whether it is right


def confidence_bins(questions: Iterable[Sequence[Sample]]) -> tuple[ConfidenceBin, ...]:
    """The questions with several samples, by the share of samples that agree with the most frequent answer.

    A question in which no sample has an answer has the confidence 0. Empty bins are left out.
    """
    rows: list[tuple[float, bool]] = []
    for samples in questions:
        if len(samples) > 1:
            answer, right = samples[majority_index([answer for answer, _ in samples])]
            agree = 0 if answer is None else sum(other == answer for other, _ in samples)
            rows.append((agree / len(samples), right))
    bins = []
    for low, high in pairwise(BOUNDS):
        inside = [row for row in rows if low < row[0] <= high or (low == 0 == row[0])]
        if inside:
            mean = math.fsum(confidence for confidence, _ in inside) / len(inside)
            bins.append(ConfidenceBin(low, high, len(inside), mean, sum(right for _, right in inside)))
    return tuple(bins)


def calibration_error(bins: Sequence[ConfidenceBin]) -> float | None:
    """The expected calibration error: the mean over questions of |confidence - share right| of their bin; None without
    questions."""
    total = sum(row.n for row in bins)
    return math.fsum(abs(row.n * row.confidence - row.right) for row in bins) / total if total else None


def candidate_entropy(candidates: Sequence[Candidate]) -> float:
    """The entropy in nats of one step, with all tokens that are not candidates as one outcome.

    >>> round(candidate_entropy([(b"a", math.log(0.5)), (b"b", math.log(0.25))]), 3)      # the tail has 0.25
    1.04
    """
    tail = max(0.0, 1.0 - math.fsum(math.exp(log) for _, log in candidates))
    known = -math.fsum(math.exp(log) * log for _, log in candidates if log > -math.inf)
    return known - (tail * math.log(tail) if tail > 1e-9 else 0.0)


def chain_surprise(chain: Chain) -> tuple[float, float, int] | None:
    """(bits of the sampled tokens, sum of the entropies in nats, number of tokens) of a chain; None without candidates."""
    if not chain.candidates:
        return None
    bits, entropy = 0.0, 0.0
    for token, step in zip(chain.tokens, chain.candidates, strict=False):
        log = next((log for other, log in step if other == token), None)
        if log is None:
            return None
        bits -= log / math.log(2)
        entropy += candidate_entropy(step)
    return bits, entropy, len(chain.tokens)
