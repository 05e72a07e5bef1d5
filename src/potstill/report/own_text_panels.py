"""What the page shows of the student's own texts by step: one panel for each measure, with its meaning in plain words.

>>> from potstill.report.model import OwnTextStep
>>> steps = [OwnTextStep(n, {"big": 1 / n}, {"texts": 4, "right": 0.25, "surprise": 1.0}) for n in (1, 2)]
>>> [panel.title for panel in list_panels(OwnTextSummary((), 1, None, tuple(steps)))]
['divergence: big', 'right', 'entropy, nats']
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from potstill.report.model import OwnTextSummary


@dataclass(frozen=True, slots=True)
class Panel:
    """A measure by step.

    rows      (step, value) of every step that has it, in order
    is_share  whether the values are in [0, 1]
    """

    measure: str
    title: str
    meaning: str
    rows: tuple[tuple[int, int | float], ...]
    is_share: bool = False


DIVERGENCE: Final = (
    "how far the student's distribution at its own tokens is from that of the scorer, in nats per token."
)
# Measure -> title, meaning, whether it is a share.
MEASURES: Final = {
    "right": ("right", "share of texts whose answer the grader finds right.", True),
    "reward": (
        "mean reward",
        "1 for a text that counts as right, 0 for one that counts as wrong; texts that do not count are left out.",
        True,
    ),
    "length": ("tokens per text", "mean number of tokens. Texts that grow may repeat themselves.", False),
    "truncated": ("truncated", "share of texts that reached the limit of tokens.", True),
    "no_answer": ("no answer", "share of complete texts in which the grader finds no answer.", True),
    "surprise": (
        "entropy, nats",
        "mean of -log of the probability that the student gives to a token that it wrote, which estimates its entropy. "
        "Near 0, it writes almost the same text every time.",
        False,
    ),
    "ratio": (
        "importance ratio",
        "a token's probability divided by its probability when it was written, as the mean over tokens. At 1 (dashed), "
        "the texts are as good as new ones.",
        False,
    ),
    "kl": (
        "KL since writing",
        "divergence of the current weights from those that wrote the texts, in nats per token. At 0, they are the same.",
        False,
    ),
    "capped": ("ratio capped", "share of tokens whose ratio is above the cap, {cap:g}, and counts as the cap.", True),
    "clipped": (
        "ratio clipped",
        "share of tokens whose ratio is so far from 1 that their advantage is not learnt from.",
        True,
    ),
}
AHEAD: Final = ("ratio", "kl", "capped")  # shown if texts were written ahead


def list_panels(summary: OwnTextSummary) -> list[Panel]:
    """The panels: a divergence for each scorer, then the measures that the texts have.

    Left out are the mean reward if it is always the share of right texts, ratios of texts that were not written ahead, and
    clipped tokens if there are none.
    """
    scorers = dict.fromkeys(name for row in summary.steps for name in row.divergences)
    panels = [
        Panel(
            "divergence",
            f"divergence: {name}",
            DIVERGENCE,
            _finite((row.step, row.divergences[name]) for row in summary.steps if name in row.divergences),
        )
        for name in scorers
    ]
    rows = {
        name: _finite((row.step, row.measures[name]) for row in summary.steps if name in row.measures)
        for name in MEASURES
    }
    hidden = {"reward"} if rows["reward"] == rows["right"] else set[str]()
    hidden |= set(AHEAD) if summary.window == 1 else set()
    hidden |= {"capped"} if summary.cap is None else set()
    hidden |= set() if any(value for _, value in rows["clipped"]) else {"clipped"}
    for name, (title, meaning, is_share) in MEASURES.items():
        if name not in hidden:
            panels.append(Panel(name, title, meaning.format(cap=summary.cap or 0.0), rows[name], is_share))
    return [panel for panel in panels if panel.rows]


def _finite(rows: Iterable[tuple[int, int | float]]) -> tuple[tuple[int, int | float], ...]:
    return tuple(row for row in rows if math.isfinite(row[1]))
