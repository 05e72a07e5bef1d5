"""Made-up targets with the figures that PAPER prints of a real one."""

from __future__ import annotations

import random
from collections.abc import Sequence

from potstill.records import Chain, Target

LENGTH = 130  # tokens of a chain


def targets(tokens: int, seed: int = 0, pool: Sequence[int] = range(32_100)) -> list[tuple[Chain, Target]]:
    """Chains of 130 tokens with their targets: 28 of 51 positions soft, five candidates and the token itself among
    them, which hold a mass of 0.976 on the mean and 0.845 at least; the other positions are certain.

    pool  ids to draw from
    """
    draw = random.Random(seed)
    made = []
    for index in range(tokens // LENGTH):
        rows: list[dict[int, float]] = []
        for _ in range(LENGTH):
            token = draw.choice(pool)
            mass = 1 - min(0.155, draw.expovariate(1 / 0.024))
            first = max(1e-5, mass * draw.betavariate(6, 0.6))
            rest = [max(1e-5, (mass - first) * share) for share in (0.65, 0.22, 0.09, 0.04)]
            soft = {token: first, **{draw.choice(pool): share for share in rest}}
            rows.append(soft if draw.random() < 28 / 51 else {token: 1.0})
        ids = tuple(next(iter(row)) for row in rows)
        offsets = [0]
        for row in rows:
            offsets.append(offsets[-1] + len(row))
        target = Target(
            ids,
            tuple(offsets),
            tuple(token for row in rows for token in row),
            tuple(share for row in rows for share in row.values()),
            tuple("same" if len(row) > 1 else "hard" for row in rows),
        )
        made.append((Chain.from_text(f"gsm8k/train/{index}", 0, " ".join(map(str, ids)), source="teacher"), target))
    return made
