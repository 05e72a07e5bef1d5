"""Decodings: how one answer is taken from a student, by name.

    >>> parse_decoding("vote-8+calculator")
    Decoding(choice='vote', samples=8, calculator=True)
    >>> [drawing.name for drawing in list_sampling_specs(["greedy", "vote-8", "best-40", "vote-8+calculator"])]
    ['greedy', 'samples', 'samples+calculator']

    greedy          the likeliest token at every step
    vote-8          self-consistency: the value that most of 8 samples found (Wang et al. 2022)
    best-8          of 8 samples the one that the student itself finds likeliest
    ...+calculator  what stands behind an arithmetic expression and `=` is calculated, not written by the student

Decodings that differ only in how they choose share one *drawing*, and so do 8 of 40 samples: a sample's draws depend
on its index, never on how many there are. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

from potstill.evaluation import self_consistency
from potstill.evaluation.intervals import wilson_interval
from potstill.records import Checkpoint, PassCurve, Prediction, Split

VERSION: Final = 1  # of what a decoding draws and chooses; stored with the scores
DECODING_PATTERN: Final = r"^(greedy|vote-[1-9][0-9]{0,3}|best-[1-9][0-9]{0,3})(\+calculator)?$"


@dataclass(frozen=True, slots=True)
class Decoding:
    choice: Literal["greedy", "vote", "best"]
    samples: int = 1
    calculator: bool = False

    @property
    def name(self) -> str:
        number = "" if self.choice == "greedy" else f"-{self.samples}"
        return f"{self.choice}{number}{'+calculator' if self.calculator else ''}"


@dataclass(frozen=True, slots=True)
class SamplingSpec:
    """What is generated: `samples` texts a question, or one greedy one."""

    sampled: bool = False
    samples: int = 1
    calculator: bool = False

    @property
    def name(self) -> str:
        return f"{'samples' if self.sampled else 'greedy'}{'+calculator' if self.calculator else ''}"


GREEDY: Final = SamplingSpec()


def parse_decoding(name: str) -> Decoding:
    """The decoding of a name that fits `PATTERN`."""
    assert re.match(DECODING_PATTERN, name), f"no decoding: {name!r}"
    first, _, calculator = name.partition("+")
    choice, _, samples = first.partition("-")
    return Decoding(choice, int(samples or 1), bool(calculator))  # type: ignore[arg-type]


def list_sampling_specs(names: Iterable[str]) -> list[SamplingSpec]:
    """What has to be generated for some decodings, each once, with as many samples as the largest asks for."""
    found: dict[str, SamplingSpec] = {}
    for each in map(parse_decoding, names):
        drawn = SamplingSpec(each.choice != "greedy", each.samples, each.calculator)
        before = found.get(drawn.name)
        if before is None or before.samples < drawn.samples:
            found[drawn.name] = drawn
    return list(found.values())


def find_sampling_name(name: str) -> str:
    """The name of the drawing that a decoding chooses from."""
    return list_sampling_specs([name])[0].name


def choose_answers(name: str, samples: Iterable[Prediction]) -> list[Prediction]:
    """One answer a question, in the order in which the questions come first."""
    asked = parse_decoding(name)
    chosen = []
    for own in _group_by_question(samples, asked.samples):
        if asked.choice == "best":
            chosen.append(own[self_consistency.most_likely_index([_require_likelihood(each) for each in own])])
        else:
            chosen.append(own[self_consistency.majority_index([each.found for each in own])])
    return chosen


def compute_pass_curves(
    samples: Iterable[Prediction], *, contender: Checkpoint, split: Split, format: str, drawing: str
) -> list[PassCurve]:
    """Of every set, what k of the samples come to, for each k up to their number: by vote, by the student's own
    likelihood, and if any right one counted.

    Each is the mean over all ways to take k of a question's samples, and over the questions. The intervals are Wilson's
    for shares, which is wide enough for means of values in [0, 1]: their variance is at most p (1 - p).
    """
    sets: dict[str, list[list[Prediction]]] = {}
    for own in _group_by_question(samples):
        sets.setdefault(own[0].set, []).append(own)
    found = []
    for name in sorted(sets):
        rows: dict[str, list[list[float]]] = {"vote": [], "best": [], "any": []}
        for own in sets[name]:
            rows["vote"].append(self_consistency.vote_accuracy([(each.found, each.grade == "right") for each in own]))
            rows["best"].append(
                self_consistency.best_of_accuracy([(_require_likelihood(each), each.grade == "right") for each in own])
            )
            rows["any"].append(self_consistency.pass_at_k(len(own), sum(each.grade == "right" for each in own)))
        n = len(sets[name])
        for how, values in rows.items():
            for k in range(1, min(map(len, values)) + 1):
                total = sum(value[k - 1] for value in values)
                low, high = wilson_interval(min(total, n), n)
                found.append(PassCurve(contender, name, split, format, drawing, how, k, n, total / n, low, high))  # type: ignore[arg-type]
    return found


def _group_by_question(samples: Iterable[Prediction], most: int | None = None) -> list[list[Prediction]]:
    """The samples of each question in the order of their indices, at most the first so many."""
    found: dict[str, list[Prediction]] = {}
    for each in samples:
        found.setdefault(each.question, []).append(each)
    return [sorted(own, key=lambda each: each.index)[:most] for own in found.values()]


def _require_likelihood(prediction: Prediction) -> float:
    assert prediction.likelihood is not None, f"{prediction.question}: a sample without its likelihood"
    return prediction.likelihood
