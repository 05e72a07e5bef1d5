"""What the page of a run tells, as plain data: the report stage fills a `Story`, `plots` and `page` only show it.

    >>> thirds = mean([Interval(0.2, 0.1, 0.3), Interval(0.4, 0.3, 0.5)])
    >>> f"{thirds.value:.3f} ({thirds.low:.3f} to {thirds.high:.3f})"
    '0.300 (0.229 to 0.371)'

Shares are in 0 to 1 and differences of shares in -1 to 1; only the page multiplies by 100. All intervals are 95 %.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from potstill.records import Chain, Choice, Grade, Kind, Prediction, Question, Score, Semantics, Verdict

Group = Literal["in-distribution", "out-of-distribution", "generic"]
GROUPS: Final[tuple[Group, ...]] = ("in-distribution", "out-of-distribution", "generic")


@dataclass(frozen=True, slots=True)
class Interval:
    """A share, or a difference of shares, and the bounds of its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """The base (step 0) and the chosen checkpoint on the same test items of one set, in one format and decoding.

    difference  chosen minus base, its interval paired over the items
    """

    base: Score
    chosen: Score
    difference: Interval


@dataclass(frozen=True, slots=True)
class Source:
    """What one teacher gave and what the filter made of it.

    name       of the source, as in `Chain.source`
    questions  asked; `chains` came back
    grades     how many chains have each verdict; sums to `chains`
    dropped    reason -> how many right chains were dropped for it
    kept       chains that reach training
    single     share of single samples that are right: mean over questions of their own share, interval over questions
    """

    name: str
    semantics: Semantics
    questions: int
    chains: int
    grades: Mapping[Grade, int]
    dropped: Mapping[str, int]
    kept: int
    single: Interval | None = None


@dataclass(frozen=True, slots=True)
class Coverage:
    """The positions of one kind: how many, and the mean probability mass that they kept of the teacher's."""

    kind: Kind
    positions: int
    mass: float


@dataclass(frozen=True, slots=True)
class Alignment:
    """How the chains came into the student's vocabulary. `digits` counts again the positions that hold a digit."""

    tokenizer: str
    rule: str
    coverage: tuple[Coverage, ...]
    digits: tuple[Coverage, ...] = ()


@dataclass(frozen=True, slots=True)
class Sample:
    """One question to read: a teacher's chains with their verdicts, the student's answers before and after, or both."""

    question: Question
    chains: tuple[tuple[Chain, Verdict], ...] = ()
    before: Prediction | None = None
    after: Prediction | None = None


@dataclass(frozen=True, slots=True)
class Story:
    """A run as its page tells it. A piece that a run does not have stays empty; the page then says why.

    name        of the run
    student     what was trained, and `teacher` from whom, in a few words: a folder's name and its size
    groups      the group of every set
    choice      None where nothing was selected
    comparisons on the test split, one a set, format and decoding; empty where there was no test
    validation  every Score of `evaluate`: all steps, sets and formats
    losses      (step, training loss in nats a supervised position), in order of steps
    recipe      the resolved recipe, as YAML
    versions    (name, version) of potstill and of what made the numbers
    notes       sentences that a reader must know first: "The student started from random weights: ..."
    seed        of the run; the intervals know this one only
    """

    name: str
    student: str
    teacher: str
    groups: Mapping[str, Group]
    recipe: str
    choice: Choice | None = None
    comparisons: tuple[Comparison, ...] = ()
    validation: tuple[Score, ...] = ()
    losses: tuple[tuple[int, float], ...] = ()
    sources: tuple[Source, ...] = ()
    alignment: Alignment | None = None
    samples: tuple[Sample, ...] = ()
    versions: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    seed: int | None = None

    def __post_init__(self) -> None:
        scored = [each.set for each in self.validation] + [each.chosen.set for each in self.comparisons]
        assert set(scored) <= set(self.groups), f"sets without a group: {sorted(set(scored) - set(self.groups))}"


@dataclass(frozen=True, slots=True)
class Change:
    """A group of sets on the test split, base against chosen: unweighted means over its sets. `n` items in all."""

    group: Group
    sets: tuple[str, ...]
    n: int
    base: Interval
    chosen: Interval
    difference: Interval


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One step on validation: the unweighted mean over the sets of each group, and every set alone."""

    step: int
    groups: Mapping[Group, Interval] = field(default_factory=dict)
    sets: Mapping[str, Interval] = field(default_factory=dict)


def interval(score: Score) -> Interval:
    """The accuracy of a score."""
    return Interval(score.accuracy, score.low, score.high)


def mean(intervals: Sequence[Interval]) -> Interval:
    """The unweighted mean of independent estimates; its bounds from the distances of theirs.

    Each side is the root of the summed squares of the distances on that side, divided by the number (the method of
    variance estimates recovery, Zou and Donner 2008); it keeps the bounds of skewed intervals near 0 and 1 in range.
    """
    assert intervals, "the mean of nothing"
    n, value = len(intervals), sum(each.value for each in intervals) / len(intervals)
    below = math.sqrt(sum((each.value - each.low) ** 2 for each in intervals)) / n
    above = math.sqrt(sum((each.high - each.value) ** 2 for each in intervals)) / n
    return Interval(value, value - below, value + above)


def trained(story: Story) -> bool:
    """Whether a checkpoint after step 0 was chosen, so that there is a before and an after."""
    return story.choice is not None and story.choice.step > 0


def main_format(story: Story) -> tuple[str, str] | None:
    """The format and decoding that the page shows first: the choice's, without a choice those of the first score."""
    scores = [each.chosen for each in story.comparisons] + list(story.validation)
    first = story.choice or (scores[0] if scores else None)
    return (first.format, first.decoding) if first else None


def changes(story: Story) -> tuple[Change, ...]:
    """Each group that has a test set, in the main format and decoding."""
    mine = [each for each in story.comparisons if (each.chosen.format, each.chosen.decoding) == main_format(story)]
    found = []
    for group in GROUPS:
        rows = [each for each in mine if story.groups[each.chosen.set] == group]
        if rows:
            found.append(
                Change(
                    group,
                    tuple(each.chosen.set for each in rows),
                    sum(each.chosen.n for each in rows),
                    mean([interval(each.base) for each in rows]),
                    mean([interval(each.chosen) for each in rows]),
                    mean([each.difference for each in rows]),
                )
            )
    return tuple(found)


def checkpoints(story: Story) -> tuple[Checkpoint, ...]:
    """Validation by step, in the main format and decoding."""
    mine = [each for each in story.validation if (each.format, each.decoding) == main_format(story)]
    found = []
    for step in sorted({each.step for each in mine}):
        sets = {each.set: interval(each) for each in mine if each.step == step}
        sets = {name: sets[name] for name in story.groups if name in sets}
        means: dict[Group, Interval] = {}
        for group in GROUPS:
            if rows := [value for name, value in sets.items() if story.groups[name] == group]:
                means[group] = mean(rows)
        found.append(Checkpoint(step, means, sets))
    return tuple(found)


def points(difference: float) -> str:
    """A difference of shares in percentage points, with its sign where it is not zero.

    >>> points(0.125), points(-0.0004)
    ('+12.5', '0.0')
    """
    text = f"{100 * difference:+.1f}".replace("-", "\N{MINUS SIGN}")
    return text[1:] if text[1:] == "0.0" else text


def visible(text: str) -> str:
    """The text with everything that would hide or reorder it spelt out: control and direction characters, halves of
    surrogate pairs, non-characters. Line ends, tabs and joiners stay.

    >>> visible("a\\x00b\\u202ec")
    'a⟨U+0000⟩b⟨U+202E⟩c'
    """
    return "".join(f"⟨U+{ord(each):04X}⟩" if _hidden(each) else each for each in text.replace("\r\n", "\n"))


def _hidden(character: str) -> bool:
    if character in "\n\t\u200c\u200d":
        return False
    code = ord(character)
    no_character = code & 0xFFFE == 0xFFFE or 0xFDD0 <= code <= 0xFDEF
    return no_character or unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")
