"""Decodings: named methods to get one answer to a question from a student.

    >>> parse_decoding("vote-8+calculator")
    Decoding(choice='vote', samples=8, calculator=True)
    >>> [spec.name for spec in list_sampling_specs(["greedy", "vote-8", "best-40", "vote-8+calculator"])]
    ['greedy', 'samples', 'samples+calculator']

    greedy          the most likely token at every step
    vote-8          self-consistency: the most frequent value of 8 samples (Wang et al. 2022)
    best-8          of 8 samples, the one with the highest probability under the student (best-of-n by likelihood)
    ...+calculator  the result after an arithmetic expression and `=` is calculated, not generated

Decodings that differ only in the choice share one `SamplingSpec`. Decodings with 8 and with 40 samples also share one,
because the random numbers of a sample depend on its index, not on the number of samples.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

from potstill.evaluation import self_consistency
from potstill.evaluation.intervals import wilson_interval
from potstill.records import Checkpoint, PassCurve, Prediction, Split

VERSION: Final = 1  # version of the samples and choices of decodings; stored with the scores
DECODING_PATTERN: Final = r"^(greedy|vote-[1-9][0-9]{0,3}|best-[1-9][0-9]{0,3})(\+calculator)?$"


@dataclass(frozen=True, slots=True)
class Decoding:
    choice: Literal["greedy", "vote", "best"]
    samples: int = 1
    calculator: bool = False

    @property
    def name(self) -> str:
        """The inverse of `parse_decoding`."""
        samples = "" if self.choice == "greedy" else f"-{self.samples}"
        return f"{self.choice}{samples}{'+calculator' if self.calculator else ''}"

    @property
    def spec(self) -> SamplingSpec:
        """The texts that must be generated for this decoding."""
        return SamplingSpec(self.choice != "greedy", self.samples, self.calculator)


@dataclass(frozen=True, slots=True)
class SamplingSpec:
    """The texts that are generated per question: `samples` sampled texts, or one greedy text."""

    sampled: bool = False
    samples: int = 1
    calculator: bool = False

    @property
    def name(self) -> str:
        return f"{'samples' if self.sampled else 'greedy'}{'+calculator' if self.calculator else ''}"


def parse_decoding(name: str) -> Decoding:
    """The decoding with a name that matches DECODING_PATTERN."""
    assert re.match(DECODING_PATTERN, name), f"no decoding: {name!r}"
    first, _, calculator = name.partition("+")
    choice, _, samples = first.partition("-")
    return Decoding(choice, int(samples or 1), bool(calculator))  # type: ignore[arg-type]


def list_sampling_specs(names: Iterable[str]) -> list[SamplingSpec]:
    """The texts that must be generated for the decodings: every kind once, with the largest number of samples."""
    specs: dict[str, SamplingSpec] = {}
    for name in names:
        spec = parse_decoding(name).spec
        specs[spec.name] = max(spec, specs.get(spec.name, spec), key=lambda spec: spec.samples)
    return list(specs.values())


def choose_answers(name: str, samples: Iterable[Prediction]) -> list[Prediction]:
    """The answer that a decoding chooses for each question, in the order of the first samples of the questions."""
    decoding = parse_decoding(name)
    chosen = []
    for group in _group_by_question(samples, decoding.samples):
        if decoding.choice == "best":
            index = self_consistency.most_likely_index([_require_likelihood(sample) for sample in group])
        else:
            index = self_consistency.majority_index([sample.answer for sample in group])
        chosen.append(group[index])
    return chosen


def compute_pass_curves(
    samples: Iterable[Prediction], *, checkpoint: Checkpoint, split: Split, format: str, drawing: str
) -> list[PassCurve]:
    """For each set and each k up to the number of samples: the accuracies of vote-k and best-k, and pass@k.

    An accuracy is the mean over all ways to choose k of a question's samples, and over the questions. The intervals are
    Wilson's intervals for shares. They are wide enough for means of values in [0, 1], whose variance is at most p (1 - p).
    """
    accuracies: dict[str, dict[str, list[list[float]]]] = {}  # set -> method -> accuracies by k of each question
    for group in _group_by_question(samples):
        right = [sample.grade == "right" for sample in group]
        votes = [(sample.answer, sample.grade == "right") for sample in group]
        likelihoods = [(_require_likelihood(sample), sample.grade == "right") for sample in group]
        by_how = accuracies.setdefault(group[0].set, {"vote": [], "best": [], "any": []})
        by_how["vote"].append(self_consistency.vote_accuracy(votes))
        by_how["best"].append(self_consistency.best_of_accuracy(likelihoods))
        by_how["any"].append(self_consistency.pass_at_k(len(group), sum(right)))
    curves = []
    for name in sorted(accuracies):
        for how, questions in accuracies[name].items():
            n = len(questions)
            for k in range(1, min(map(len, questions)) + 1):
                total = sum(by_k[k - 1] for by_k in questions)
                low, high = wilson_interval(min(total, n), n)
                curves.append(PassCurve(checkpoint, name, split, format, drawing, how, k, n, total / n, low, high))  # type: ignore[arg-type]
    return curves


def _group_by_question(samples: Iterable[Prediction], limit: int | None = None) -> list[list[Prediction]]:
    """The samples of each question in the order of their indices. limit: maximum number per question."""
    groups: dict[str, list[Prediction]] = {}
    for sample in samples:
        groups.setdefault(sample.question, []).append(sample)
    return [sorted(group, key=lambda sample: sample.index)[:limit] for group in groups.values()]


def _require_likelihood(prediction: Prediction) -> float:
    assert prediction.likelihood is not None, f"{prediction.question}: a sample without its likelihood"
    return prediction.likelihood
