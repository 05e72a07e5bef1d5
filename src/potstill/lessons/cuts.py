"""What all lessons count alike: rows as micro-batches, and rows of one kind beside those of another.

>>> beside(32, 0.5), beside(10, 0.01)
(32, 1)
"""

from __future__ import annotations

from collections.abc import Iterable

from potstill import order
from potstill.students import Example


def micro_batches(groups: Iterable[list[Example]], budget: int, *, padded: bool) -> list[list[Example]]:
    """The rows of a step, cut by their lengths. A student that pads computes every row by itself; another reads the
    prompt of a group once, so the rows of a group stay together.

    budget  tokens of a micro-batch
    """
    parts = [part for rows in groups for part in ([[row] for row in rows] if padded else [rows])]
    lengths = [(len(part[0].prompt), sum(len(row.target) for row in part)) for part in parts]
    cuts = order.micro_batches(lengths, budget, padded=padded)
    return [[row for place in cut for row in parts[place]] for cut in cuts]


def beside(groups: int, share: float) -> int:
    """How many rows a step has beside its groups, so that they are this share of both; one at least."""
    return max(1, round(groups * share / (1 - share)))
