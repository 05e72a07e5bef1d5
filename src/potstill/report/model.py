"""Words of a story: numbers with their sign, and texts in which nothing hides.

The pieces of a story: frozen values that say what a run did.

What the page of a run tells, as plain data: `account` fills a `Story`, `plots` and `page` only show it.

    >>> ReportData("demo", student="tiny", teacher="local", groups={}, recipe="seed: 1").comparisons
    ()

Shares are in 0 to 1 and differences of shares in -1 to 1; only the page multiplies by 100. All intervals are 95 %.
`nouns` has the pieces, `means` what follows from them, `words` how numbers and texts are written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from potstill.records import (
    END,
    Chain,
    Choice,
    End,
    Grade,
    PassCurve,
    Prediction,
    Question,
    Score,
    Semantics,
    TargetKind,
    Verdict,
)

ONE_SEED_NOTE: Final = (
    "Intervals are over questions, for one seed of each training. They do not include the variation between seeds: two"
    " runs of one recipe that differ in the seed alone can lie further apart than their interval says."
)
FIXED_WEIGHTS_NOTE: Final = "Intervals and p are over questions, for these weights: another seed would train others."


def format_points(difference: float) -> str:
    """A difference of shares in percentage points, with its sign where it is not zero.

    >>> format_points(0.125), format_points(-0.0004)
    ('+12.5', '0.0')
    """
    text = f"{100 * difference:+.1f}".replace("-", "\N{MINUS SIGN}")
    return text[1:] if text[1:] == "0.0" else text


def percent_number(share: float) -> str:
    """A share in percent, without the sign.

    >>> percent_number(0.125), percent_number(1.0)
    ('12.5', '100.0')
    """
    return f"{100 * share:.1f}"


def readable_token(what: bytes | End) -> str:
    r"""A token as one short word: white space spelt out, bytes that are no text as numbers.

    >>> readable_token(b" 12"), readable_token(b"\n"), readable_token(b"\xe2\x82"), readable_token(END), readable_token(b"")
    ('␣12', '⏎', 'E2 82', 'end', '∅')
    """
    if what is END:
        return "end"
    assert isinstance(what, bytes)
    try:
        text = what.decode("utf-8")
    except UnicodeDecodeError:
        return " ".join(f"{byte:02X}" for byte in what)
    return text.replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥") or "∅"


SetGroup = Literal["in-distribution", "out-of-distribution", "generic"]
SET_GROUPS: Final[tuple[SetGroup, ...]] = ("in-distribution", "out-of-distribution", "generic")
Outcome = Literal["won", "lost", "still wrong", "still right"]
OUTCOMES: Final[tuple[Outcome, ...]] = ("won", "lost", "still wrong", "still right")


@dataclass(frozen=True, slots=True)
class Interval:
    """A share, or a difference of shares, and the bounds of its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """The base (step 0) and a trained checkpoint on the same test items of one set, each in its format and decoding.

    difference  trained minus base, its interval paired over the items
    won, lost   how many items only the trained one, or only the base, has right
    """

    base: Score
    chosen: Score
    difference: Interval
    won: int
    lost: int


@dataclass(frozen=True, slots=True)
class ControlRun:
    """Another run from the same base, asked the same test items: what else could have made the difference?

    name         of the run; `taught` is what it was trained on, in a few words
    steps        that it was trained for; the one that answered is its own choice
    comparisons  one a set, each against the base of this run in this run's main format
    repaired     whether it is no other run, but what became of this one's choice when it was repaired
    """

    name: str
    taught: str
    steps: int
    comparisons: tuple[Comparison, ...]
    repaired: bool = False


@dataclass(frozen=True, slots=True)
class SourceSummary:
    """What one teacher gave and what the filter made of it.

    name       of the source, as in `Chain.source`
    questions  asked; `chains` came back
    grades     how many chains have each verdict; sums to `chains`
    dropped    reason -> how many right chains were dropped for it
    kept       chains that reach training; `taught` questions have one or more of them
    single     share of single samples that are right: mean over questions of their own share, interval over questions
    solved     right samples of a question -> how many questions have so many
    """

    name: str
    semantics: Semantics
    questions: int
    chains: int
    grades: Mapping[Grade, int]
    dropped: Mapping[str, int]
    kept: int
    taught: int
    single: Interval | None = None
    solved: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class KindCoverage:
    """The positions of one kind: how many, and the mean probability mass that they kept of the teacher's."""

    kind: TargetKind
    positions: int
    mass: float


@dataclass(frozen=True, slots=True)
class AlignmentSummary:
    """How the chains came into the student's vocabulary.

    parts    `all` positions by kind; then those again that hold `digits`, that are `line starts`, that are `unknown`
    covered  share of positions with the teacher's distribution; None where the teacher gave no probabilities
    unknown  character that the student cannot write -> how often it stood in the chains
    written  character -> what the recipe had written instead of it, before the chains were aligned
    marks    insert or remove, if the recipe had that done to the chains' calculator marks
    """

    tokenizer: str
    rule: str
    parts: Mapping[str, tuple[KindCoverage, ...]]
    covered: float | None = None
    unknown: Mapping[str, int] = field(default_factory=dict)
    written: Mapping[str, str] = field(default_factory=dict)
    marks: str | None = None


@dataclass(frozen=True, slots=True)
class Cost:
    """One count of what a stage did: the same on every machine. `what` in words, such as "tokens sampled"."""

    stage: str
    what: str
    number: int


@dataclass(frozen=True, slots=True)
class StageTime:
    """What the machine measured of one stage: seconds of the process that finished it, and the most memory it held."""

    stage: str
    seconds: float
    memory_mib: int


@dataclass(frozen=True, slots=True)
class TrainingSpeed:
    """What training took, by the medians of its `steps`: tokens and operations a second, and the share of the device's
    peak; None where the peak is not known."""

    steps: int
    tokens: float
    operations: float
    utilisation: float | None = None


@dataclass(frozen=True, slots=True)
class ReportExample:
    """One question to read: a teacher's chains with their verdicts, the student's answers before and after, or both.

    prompt  in which the teacher or the student was asked, as plain text
    """

    question: Question
    chains: tuple[tuple[Chain, Verdict], ...] = ()
    before: Prediction | None = None
    after: Prediction | None = None
    prompt: str = ""


@dataclass(frozen=True, slots=True)
class ReportData:
    """A run as its page tells it. A piece that a run does not have stays empty; the page then says why.

    name        of the run
    student     what was trained, and `teacher` from whom, in a few words: a folder's name and its size
    taught      what the student learnt from, in a few words
    groups      the group of every set
    choice      None where nothing was selected
    comparisons on the test split, one a set, format and decoding; empty where there was no test
    controls    other runs from the same base on the same test items
    tries       what k of the samples come to on test, of the base and the chosen step; empty where none were drawn
    validation  every Score of `evaluate`: all steps, sets and formats
    losses      (step, training loss in nats a supervised position), in order of steps
    pictured    one chain with candidates, whose tokens the figures show one by one
    outcomes    how many validation questions of each, in the main format
    recipe      the resolved recipe, as YAML
    versions    (name, version) of potstill and of what made the numbers
    notes       sentences that a reader must know first: "The student started from random weights: ..."
    seed        of the run; the intervals know this one only
    """

    name: str
    student: str
    teacher: str
    groups: Mapping[str, SetGroup]
    recipe: str
    taught: str = ""
    choice: Choice | None = None
    comparisons: tuple[Comparison, ...] = ()
    controls: tuple[ControlRun, ...] = ()
    tries: tuple[PassCurve, ...] = ()
    validation: tuple[Score, ...] = ()
    losses: tuple[tuple[int, float], ...] = ()
    sources: tuple[SourceSummary, ...] = ()
    alignment: AlignmentSummary | None = None
    costs: tuple[Cost, ...] = ()
    outcomes: Mapping[Outcome, int] = field(default_factory=dict)
    samples: tuple[ReportExample, ...] = ()
    pictured: ReportExample | None = None
    versions: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    seed: int | None = None

    def __post_init__(self) -> None:
        compared = [*self.comparisons, *(row for each in self.controls for row in each.comparisons)]
        scored = [each.set for each in self.validation] + [each.chosen.set for each in compared]
        assert set(scored) <= set(self.groups), f"sets without a group: {sorted(set(scored) - set(self.groups))}"
