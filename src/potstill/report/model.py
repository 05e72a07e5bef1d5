"""The data of a report, as frozen values. `collect` reads them from a run, and the other modules render them.

    >>> ReportData("demo", student="tiny", teacher="local", groups={}, recipe="seed: 1").comparisons
    ()

Shares are in [0, 1] and differences of shares in [-1, 1]; they become percentages only when they are rendered. All
intervals are 95 % intervals.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from potstill.records import (
    Chain,
    Checkpoint,
    Choice,
    Grade,
    LabelTable,
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
    "Intervals are over questions, for one training seed. They do not include the variation between seeds: two runs of the"
    " same recipe with different seeds can differ by more than the interval."
)
FIXED_WEIGHTS_NOTE: Final = (
    "Intervals and p are over questions, for these weights. Another seed would give other weights."
)

WITHOUT_BOUNDS: Final = "without-retain"  # the name of the run's rule without its bounds, as in `select.also`

SetGroup = Literal["in-distribution", "out-of-distribution", "generic"]
SET_GROUPS: Final[tuple[SetGroup, ...]] = ("in-distribution", "out-of-distribution", "generic")
Outcome = Literal["won", "lost", "still wrong", "still right", "right", "not right"]
# The outcomes of training; those of a run that only evaluates are right and not right.
OUTCOMES: Final[tuple[Outcome, ...]] = ("won", "lost", "still wrong", "still right")


def set_groups(
    in_distribution: Sequence[str], out_of_distribution: Sequence[str], generic: Sequence[str]
) -> dict[str, SetGroup]:
    """The group of every evaluation set; the first group for a set in several groups."""
    groups: dict[str, SetGroup] = {}
    for group, names in zip(SET_GROUPS, (in_distribution, out_of_distribution, generic), strict=True):
        for name in names:
            groups.setdefault(name, group)
    return groups


def licence_note(name: str, licence: str) -> str:
    """The note on the page about a licence that the recipe states. The model card has a table of licences instead."""
    return f"Licence of {name}: {licence}."


@dataclass(frozen=True, slots=True)
class Interval:
    """A number, usually a share or a difference of shares, and the bounds of its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """The base (step 0) and a trained checkpoint on the same test questions of one set.

    difference  accuracy of the trained checkpoint minus that of the base; the interval is paired over the questions
    won         number of questions that only the trained checkpoint has right
    lost        number of questions that only the base has right
    """

    base: Score
    chosen: Score
    difference: Interval
    won: int
    lost: int


@dataclass(frozen=True, slots=True)
class TextComparison:
    """The bits per byte of the base and a trained checkpoint on the same texts. Fewer bits are better.

    difference  trained checkpoint minus base, in bits per byte. Its interval is over texts, and is NaN for a single text
    """

    base: TextScore
    chosen: TextScore
    difference: Interval


@dataclass(frozen=True, slots=True)
class RuleChoice:
    """What a rule of selection chooses among the checkpoints of a run, and its result on test if it was tested.

    name    the rule; `without-retain` is the rule of the run without its bounds
    value   the value of the checkpoint by the rule, on validation
    tested  the base and this checkpoint on test, one for each set in the main format; empty if it was not tested
    price   this checkpoint (`base`) and the run's choice (`chosen`) on test: what the run's choice gains or loses. Empty if
            this checkpoint was not tested, or is the run's choice
    """

    name: str
    checkpoint: Checkpoint
    value: float
    tested: tuple[Comparison, ...] = ()
    price: tuple[Comparison, ...] = ()


@dataclass(frozen=True, slots=True)
class QuotedScore:
    """A figure from the literature (`report.references`). It was measured elsewhere, maybe on other questions.

    n  number of questions; None if the source does not state it
    """

    name: str
    source: str
    set: str
    share: float
    n: int | None = None


@dataclass(frozen=True, slots=True)
class ControlRun:
    """Another run from the same base on the same test questions, which shows what else could have caused the difference.

    training     a short description of its training data
    steps        number of its training steps
    comparisons  one for each set: its chosen checkpoint compared with this run's base in this run's main format
    on_policy    whether it is this run's chosen checkpoint after on-policy distillation, and not another run
    """

    name: str
    training: str
    steps: int
    comparisons: tuple[Comparison, ...]
    on_policy: bool = False


@dataclass(frozen=True, slots=True)
class SourceSummary:
    """The chains of one source, and the results of the filter.

    questions       number of questions that the source got
    chains          number of chains that the source returned
    grades          number of chains by grade; the sum is `chains`
    dropped         number of right chains that the filter dropped, by reason
    kept            number of chains for training
    kept_questions  number of questions that have a kept chain
    single_sample   share of right chains of a question, as the mean over questions; the interval is over questions
    right_counts    number of questions by their number of right chains
    covered         number of questions that have a right chain, even if the filter dropped it as a copy or over the cap
    covered_alone   number of these questions that no other source covers
    tokens          number of tokens that the source wrote; 0 for texts without tokens
    money           the cost in a run with several sources; None if it has no cost, or the run has one teacher
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
    covered: int = 0
    covered_alone: int = 0
    tokens: int = 0
    money: float | None = None


@dataclass(frozen=True, slots=True)
class KindCoverage:
    """The number of positions of one kind, and the mean of their probability mass (the sum over the candidates)."""

    kind: TargetKind
    positions: int
    mass: float


@dataclass(frozen=True, slots=True)
class AlignmentSummary:
    """The transfer of the chains to the student's vocabulary.

    parts             positions by kind, for `all` positions and for the parts `digits`, `line starts`, `unknown`, ...
    covered           share of positions with the teacher's distribution; None if the teacher gave no probabilities
    unknown           number of occurrences of each character for which the student has no token
    rewrites          replacement of each character that the recipe replaced before alignment
    calculator_marks  insert or remove, if the recipe did this to the chains; else None
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
    """One count of a stage, such as `tokens written by the teacher`, or the money that a paid teacher cost."""

    stage: str
    label: str
    number: int | float


def billed_costs(stage: str, usage: Mapping[str, float]) -> Iterator[Cost]:
    """The rows of what a server has billed in a stage, with the fields of `ledger.USAGE_FIELDS`; none without requests."""
    if usage["requests"]:
        yield Cost(stage, "requests to the teacher's server", round(usage["requests"]))
        yield Cost(stage, "prompt tokens billed", round(usage["prompt_tokens"]))
        yield Cost(stage, "generated tokens billed", round(usage["completion_tokens"]))
        if usage["money"]:
            yield Cost(stage, "money, in the currency of teacher.budget.prices", round(usage["money"], 4))


@dataclass(frozen=True, slots=True)
class TaskScore:
    """The right answers to one task of a set of several tasks, such as BBH, on test.

    rationale  whether the format asks for a chain of thought, or for the answer only
    n          number of questions
    base       number of them that the base has right
    chosen     number of them that the chosen checkpoint has right
    """

    set: str
    task: str
    format: str
    rationale: bool
    n: int
    base: int
    chosen: int


@dataclass(frozen=True, slots=True)
class ConfidenceBin:
    """The questions in which the share of samples with the most frequent answer is in (low, high].

    confidence  the mean of these shares
    right       number of questions whose most frequent answer is right
    """

    low: float
    high: float
    n: int
    confidence: float
    right: int


@dataclass(frozen=True, slots=True)
class Calibration:
    """How sure a model is of its answers, and how often it is right, measured on its own samples.

    who            teacher, base or chosen
    of             the source of the chains, or the set and the decoding of the answers
    bins           questions by the share of samples that agree; empty if no question has several samples
    error          expected calibration error: the mean over questions of |confidence - share right| of their bin
    bits_per_byte  mean of -log2 of the probability that the model gave to a byte of its own samples; None if unknown
    entropy        mean entropy in nats of the candidates of a sampled token, with the tail as one outcome, which makes it a
                   lower bound; None without candidates
    """

    who: str
    of: str
    bins: tuple[ConfidenceBin, ...]
    error: float | None
    bits_per_byte: float | None = None
    entropy: float | None = None


@dataclass(frozen=True, slots=True)
class StageTime:
    """The seconds and the peak memory of the process that finished a stage."""

    stage: str
    seconds: float
    memory_mib: int


@dataclass(frozen=True, slots=True)
class TrainingSpeed:
    """Medians over the measured training steps.

    steps        number of measured steps
    tokens       tokens per second
    operations   floating-point operations per second
    utilisation  share of the device's peak; None if the peak is unknown
    """

    steps: int
    tokens: float
    operations: float
    utilisation: float | None = None


@dataclass(frozen=True, slots=True)
class ReportExample:
    """A question that the page shows, with a teacher's chains and their verdicts, or with the student's answers.

    before  the answer of the base
    after   the answer of the chosen checkpoint
    prompt  the prompt of the teacher or of the student, as plain text
    """

    question: Question
    chains: tuple[tuple[Chain, Verdict], ...] = ()
    before: Prediction | None = None
    after: Prediction | None = None
    prompt: str = ""


@dataclass(frozen=True, slots=True)
class OwnTextStep:
    """The texts that the student wrote for one training step.

    divergences  scorer -> mean divergence from it, in nats per position, without any weight. After the selection: `own` for
                 generic questions, `kept` for those of the task
    measures     the other measures of the texts, as in `written` of metrics.jsonl; empty if the step has no such text
    """

    step: int
    divergences: Mapping[str, float]
    measures: Mapping[str, int | float]


@dataclass(frozen=True, slots=True)
class StalenessRow:
    """The texts whose weights were `first` to `last` steps old when they were trained on.

    steps   number of training steps
    ratio   mean over these steps of the importance ratio; `capped`: of the share of tokens whose ratio is above the cap
    """

    first: int
    last: int
    steps: int
    ratio: float
    capped: float


@dataclass(frozen=True, slots=True)
class OwnTextSample:
    """A text that the student wrote for a training step, with what it counted for. The verdict has its answer."""

    step: int
    question: Question
    text: str
    verdict: Verdict
    reward: float
    advantage: float


@dataclass(frozen=True, slots=True)
class OwnTextSummary:
    """The texts that the student wrote during training (`train.on_policy`), or after the selection (`on_policy`).

    about      sentences on how they were written and scored
    window     number of steps whose texts were written at once
    cap        largest importance ratio of the divergence; None: no ratios
    steps      the training steps, in order
    staleness  their importance ratios by staleness; empty if no text was written ahead
    first      first of the last steps, from which the samples come; `last`: the last step with texts
    right      number of texts of these steps with the reward 1; `counted`: of texts with a reward
    samples    some of these texts, those with the reward 1 first
    stage      the stage in which they were written
    """

    about: tuple[str, ...]
    window: int
    cap: float | None
    steps: tuple[OwnTextStep, ...]
    staleness: tuple[StalenessRow, ...] = ()
    first: int = 0
    last: int = 0
    right: int = 0
    counted: int = 0
    samples: tuple[OwnTextSample, ...] = ()
    stage: Literal["train", "repair"] = "train"

    @property
    def name(self) -> str:
        """The name of their section, figure and table."""
        return "own-texts" if self.stage == "train" else "repair-texts"


@dataclass(frozen=True, slots=True)
class ReportData:
    """A run as its report shows it. A part that the run does not have is empty, and the page says why.

    student       a short description of the student, such as its folder or its size
    teacher       a short description of the teacher
    training      a short description of the student's training data
    also_trained  what trained the student on generic tasks, too: replay, on-policy distillation
    groups        the group of every set
    choice        the selected checkpoint; None if no checkpoint was selected
    comparisons   comparisons on the test split, one for each set, format and decoding; empty without test scores
    rules         what each rule of selection chooses, the rule of the run first; empty without a choice
    controls      other runs from the same base on the same test questions
    quoted        figures from the literature for the test sets
    texts         bits per byte on `evaluate.texts`; empty without this key
    labels        confusion matrices on test of the base and of the chosen checkpoint; empty without sets with labels
    pass_curves   test accuracy with k samples, of the base and of the chosen checkpoint; empty without samples
    validation    all scores of `evaluate`: all checkpoints, sets, formats and decodings
    losses        (step, training loss in nats per supervised position), in the order of the steps
    kind_losses   (step, loss by kind of position), in nats per supervised position of the kind
    own_texts     the texts that the student wrote during training; None without `train.on_policy`
    repair_texts  the texts that it wrote after the selection; None without `on_policy`
    tasks         test scores by task and format, for sets of several tasks
    calibrations  confidence and entropy of the teacher, the base and the chosen checkpoint, where they were sampled
    outcomes      for each set, number of validation questions by outcome, in the main format
    figure_chain  a chain with candidates, which the figures show token by token
    recipe        the recipe with all defaults, as YAML
    versions      (name, version) of everything that determines the numbers
    notes         sentences that a reader must know before the numbers
    is_trained    False for a run without a teacher, which only evaluates a model. Its comparisons are of the model with
                  itself, and its outcomes and examples are of test questions
    seed          seed of the run; intervals do not include the variation between seeds
    """

    name: str
    student: str
    teacher: str
    groups: Mapping[str, SetGroup]
    recipe: str
    training: str = ""
    also_trained: tuple[str, ...] = ()
    choice: Choice | None = None
    comparisons: tuple[Comparison, ...] = ()
    rules: tuple[RuleChoice, ...] = ()
    controls: tuple[ControlRun, ...] = ()
    quoted: tuple[QuotedScore, ...] = ()
    texts: tuple[TextComparison, ...] = ()
    labels: tuple[LabelTable, ...] = ()
    pass_curves: tuple[PassCurve, ...] = ()
    validation: tuple[Score, ...] = ()
    losses: tuple[tuple[int, float], ...] = ()
    kind_losses: tuple[tuple[int, Mapping[TargetKind, float]], ...] = ()
    own_texts: OwnTextSummary | None = None
    repair_texts: OwnTextSummary | None = None
    tasks: tuple[TaskScore, ...] = ()
    calibrations: tuple[Calibration, ...] = ()
    sources: tuple[SourceSummary, ...] = ()
    alignment: AlignmentSummary | None = None
    costs: tuple[Cost, ...] = ()
    outcomes: Mapping[str, Mapping[Outcome, int]] = field(default_factory=dict)
    examples: tuple[ReportExample, ...] = ()
    figure_chain: ReportExample | None = None
    versions: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    seed: int | None = None
    is_trained: bool = True

    @property
    def written(self) -> tuple[OwnTextSummary, ...]:
        """The texts that the student wrote, by stage."""
        return tuple(texts for texts in (self.own_texts, self.repair_texts) if texts is not None)

    def __post_init__(self) -> None:
        comparisons = [*self.comparisons, *(row for control in self.controls for row in control.comparisons)]
        comparisons += [row for rule in self.rules for row in (*rule.tested, *rule.price)]
        sets = {score.set for score in self.validation} | {row.chosen.set for row in comparisons} | set(self.outcomes)
        assert sets <= set(self.groups), f"sets without a group: {sorted(sets - set(self.groups))}"
        # What is compared between checkpoints, and selects among them, never comes from test.
        assert all(score.split == "validation" for score in self.validation), "a test score among the validation scores"
