"""The data of a report: frozen values that say what a run did. `collect` reads them, the other modules render them.

    >>> ReportData("demo", student="tiny", teacher="local", groups={}, recipe="seed: 1").comparisons
    ()

Shares are in [0, 1] and differences of shares in [-1, 1]; only rendering multiplies by 100. Intervals are 95 %.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from potstill.records import (
    Chain,
    Choice,
    Grade,
    PassCurve,
    Prediction,
    Question,
    Score,
    Semantics,
    TargetKind,
    TextScore,
    Verdict,
)

ONE_SEED_NOTE: Final = (
    "Intervals are over questions, for one seed of each training. They do not include the variation between seeds: two"
    " runs of one recipe that differ only in the seed can differ by more than the interval."
)
FIXED_WEIGHTS_NOTE: Final = (
    "Intervals and p are over questions, for these weights: another seed would train other weights."
)

SetGroup = Literal["in-distribution", "out-of-distribution", "generic"]
SET_GROUPS: Final[tuple[SetGroup, ...]] = ("in-distribution", "out-of-distribution", "generic")
Outcome = Literal["won", "lost", "still wrong", "still right"]
OUTCOMES: Final[tuple[Outcome, ...]] = ("won", "lost", "still wrong", "still right")


def licence_note(name: str, licence: str) -> str:
    """The note on a licence that a recipe states; the model card has a table instead."""
    return f"Licence of {name}: {licence}."


@dataclass(frozen=True, slots=True)
class Interval:
    """A number, mostly a share or a difference of shares, with the bounds of its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """The base (step 0) and a trained checkpoint on the same test questions of one set.

    difference  trained minus base; its interval is paired over the questions
    won, lost   number of questions that only the trained one, or only the base, has right
    """

    base: Score
    chosen: Score
    difference: Interval
    won: int
    lost: int


@dataclass(frozen=True, slots=True)
class TextComparison:
    """Bits per byte of the base and of a trained checkpoint on the same texts; fewer are better.

    difference  trained minus base, in bits per byte; its interval is over texts, and is NaN for a single text
    """

    base: TextScore
    chosen: TextScore
    difference: Interval


@dataclass(frozen=True, slots=True)
class ControlRun:
    """Another run from the same base on the same test questions: what else could have caused the difference?

    training     what it was trained on, in a few words
    steps        number of its training steps
    comparisons  one per set; its chosen checkpoint against this run's base in this run's main format
    on_policy    it is not another run, but this run's chosen checkpoint after on-policy distillation
    """

    name: str
    training: str
    steps: int
    comparisons: tuple[Comparison, ...]
    on_policy: bool = False


@dataclass(frozen=True, slots=True)
class SourceSummary:
    """The chains of one source and what the filter did with them.

    questions       questions that were sent to it; it returned `chains`
    grades          number of chains per grade; the sum is `chains`
    dropped         reason -> number of right chains that the filter dropped for it
    kept            chains that are trained on; they belong to `kept_questions` questions
    single_sample   share of right chains, the mean over questions; the interval is over questions
    right_counts    number of right chains of a question -> number of such questions
    """

    name: str
    semantics: Semantics
    questions: int
    chains: int
    grades: Mapping[Grade, int]
    dropped: Mapping[str, int]
    kept: int
    kept_questions: int
    single_sample: Interval | None = None
    right_counts: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class KindCoverage:
    """The positions of one kind, and the mean of the teacher's probability mass that their candidates kept."""

    kind: TargetKind
    positions: int
    mass: float


@dataclass(frozen=True, slots=True)
class AlignmentSummary:
    """How the chains were transferred to the student's vocabulary.

    parts             `all` positions by kind; then the positions of the parts `digits`, `line starts`, `unknown`, ...
    covered           share of positions with the teacher's distribution; None if the teacher gave no probabilities
    unknown           character that the student has no token for -> how often it occurs in the chains
    rewrites          character -> what the recipe replaced it with before alignment
    calculator_marks  insert or remove, if the recipe did so to the chains
    """

    tokenizer: str
    rule: str
    parts: Mapping[str, tuple[KindCoverage, ...]]
    covered: float | None = None
    unknown: Mapping[str, int] = field(default_factory=dict)
    rewrites: Mapping[str, str] = field(default_factory=dict)
    calculator_marks: str | None = None


@dataclass(frozen=True, slots=True)
class Cost:
    """One count of a stage, such as `tokens written by the teacher`. It is the same on every machine."""

    stage: str
    label: str
    number: int


@dataclass(frozen=True, slots=True)
class StageTime:
    """Seconds of the process that finished a stage, and the most memory that it held."""

    stage: str
    seconds: float
    memory_mib: int


@dataclass(frozen=True, slots=True)
class TrainingSpeed:
    """Medians over the measured training steps: tokens and operations per second, and the share of the device's peak;
    None if the peak is not known."""

    steps: int
    tokens: float
    operations: float
    utilisation: float | None = None


@dataclass(frozen=True, slots=True)
class ReportExample:
    """One question that the page shows: with a teacher's chains and their verdicts, or with the student's answers.

    before, after  the answers of the base and of the chosen checkpoint
    prompt         the prompt of the teacher or of the student, as plain text
    """

    question: Question
    chains: tuple[tuple[Chain, Verdict], ...] = ()
    before: Prediction | None = None
    after: Prediction | None = None
    prompt: str = ""


@dataclass(frozen=True, slots=True)
class ReportData:
    """A run as its report shows it. A part that a run does not have stays empty; the page then says why.

    student, teacher  in a few words: a folder's name, a size
    training      what the student was trained on, in a few words
    groups        the group of every set
    choice        None if no checkpoint was chosen
    comparisons   on the test split, one per set, format and decoding; empty without a test
    controls      other runs from the same base on the same test questions
    texts         bits per byte on `evaluate.texts`; empty without it
    pass_curves   accuracy on test with k samples, of the base and of the chosen checkpoint; empty without samples
    validation    every score of `evaluate`: all checkpoints, sets, formats and decodings
    losses        (step, training loss in nats per supervised position), in the order of the steps
    outcomes      number of validation questions with each outcome, in the main format
    figure_chain  one chain with candidates, whose tokens the figures show one by one
    recipe        the resolved recipe, as YAML
    versions      (name, version) of whatever determined the numbers
    notes         sentences that a reader must know first
    seed          of the run; intervals do not include the variation between seeds
    """

    name: str
    student: str
    teacher: str
    groups: Mapping[str, SetGroup]
    recipe: str
    training: str = ""
    choice: Choice | None = None
    comparisons: tuple[Comparison, ...] = ()
    controls: tuple[ControlRun, ...] = ()
    texts: tuple[TextComparison, ...] = ()
    pass_curves: tuple[PassCurve, ...] = ()
    validation: tuple[Score, ...] = ()
    losses: tuple[tuple[int, float], ...] = ()
    sources: tuple[SourceSummary, ...] = ()
    alignment: AlignmentSummary | None = None
    costs: tuple[Cost, ...] = ()
    outcomes: Mapping[Outcome, int] = field(default_factory=dict)
    examples: tuple[ReportExample, ...] = ()
    figure_chain: ReportExample | None = None
    versions: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    seed: int | None = None

    def __post_init__(self) -> None:
        comparisons = [*self.comparisons, *(row for control in self.controls for row in control.comparisons)]
        sets = {score.set for score in self.validation} | {row.chosen.set for row in comparisons}
        assert sets <= set(self.groups), f"sets without a group: {sorted(sets - set(self.groups))}"
