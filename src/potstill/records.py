"""Records: the frozen values that the stages pass to later stages. Log-probabilities are natural logarithms.

    >>> chain = Chain.from_tokens("q1", 0, [b"4", b"\\xff"], [[(b"4", -0.1), (END, -2.5)], [(b"\\xff", -0.3)]])
    >>> chain.text, chain.spans
    ('4\\ufffd', ((0, 1), (1, 2)))
    >>> Checkpoint(350, 0.3).name, Checkpoint(350, 0.3).label, Checkpoint.parse("350-0.3")
    ('350-0.3', '350 × 0.3', Checkpoint(step=350, share=0.3, on_policy_steps=0))

This module imports no library. `serialization` converts the records to JSON.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Final, Literal, Self

from potstill.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, order=True)
class Checkpoint:
    """Weights that are evaluated: the student after a training step, or an interpolation of it with the base.

    share            share of the student's weights in the interpolation; 1 for the student itself
    on_policy_steps  number of steps of on-policy distillation after the training step. A checkpoint with such steps is
                     evaluated, but never selected
    """

    step: int
    share: float = 1.0
    on_policy_steps: int = 0

    @property
    def name(self) -> str:
        """The name of the checkpoint's folder."""
        share = "" if self.share == 1 else f"-{self.share!r}"
        return f"{self.step}{share}" + (f"+{self.on_policy_steps}" if self.on_policy_steps else "")

    @property
    def label(self) -> str:
        """The step and the suffix, for output."""
        return f"{self.step}{self.suffix}"

    @property
    def suffix(self) -> str:
        """The share of the student's weights and the number of on-policy steps, for output; empty for plain checkpoints."""
        share = "" if self.share == 1 else f" × {self.share!r}"
        return share + (f" + {self.on_policy_steps}" if self.on_policy_steps else "")

    @property
    def is_plain(self) -> bool:
        """Whether it is a checkpoint of the stage `train`, without interpolation and on-policy steps."""
        return self.share == 1 and not self.on_policy_steps

    @property
    def json_value(self) -> int | str:
        """The checkpoint in JSON: the step as a number if it is plain, else the name."""
        return self.step if self.is_plain else self.name

    @classmethod
    def parse(cls, value: int | str) -> Self:
        """The inverse of `json_value` and of `name`. Raises ValueError for any other value."""
        selected, _, on_policy = str(value).partition("+")
        step, dash, share = selected.partition("-")
        checkpoint = cls(int(step), float(share) if dash else 1.0, int(on_policy or 0))
        if checkpoint.name != str(value):
            raise ValueError(f"not a checkpoint: {value!r}")
        return checkpoint


BASE: Final = Checkpoint(0)

StopReason = Literal["end", "length", "repeat", "cut"]  # see `inference.Generation`
CHAIN_STOPS: Final = ("end", "length", "cut")
Semantics = Literal["raw", "tempered", "truncated", "unknown", "none"]
Grade = Literal["right", "wrong", "no answer", "truncated"]
CUT_IN_THOUGHT: Final = "cut in a thought"  # a defect of a chain that has no answer, because its thought was not closed
TargetKind = Literal["same", "merged", "split", "mixed", "hard", "end"]
Split = Literal["train", "validation", "test"]


class End(enum.Enum):
    """The outcome "the text ends here". It stands for the end token of any model."""

    END = "end"

    def __repr__(self) -> str:
        return "END"


END: Final = End.END
Candidate = tuple[bytes | End, float]


@dataclass(frozen=True, slots=True)
class Question:
    """A problem with a gold answer.

    id         unique in a run, `set/...`
    gold       the right answer as the set writes it ("72", "9 (apples)", "(A)", "valid")
    task       decides how answers are graded and grouped: `gsm8k`, `asdiv`, `bbh/navigate`, `number`, `choice`, ...
    rationale  the solution from the set, without its answer sentence; None if the set has no solution
    """

    id: str
    text: str
    gold: str
    set: str
    split: Split
    task: str
    rationale: str | None = None


@dataclass(frozen=True, slots=True)
class Turn:
    role: Literal["system", "user", "assistant"]
    text: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt as a list of turns.

    The concatenated texts of the turns are exactly the plain prompt. A chat model gets the turns as messages, without
    whitespace at their start and end.

    lead  the whitespace between the plain prompt and its answer
    """

    turns: tuple[Turn, ...]
    lead: str = ""

    @property
    def plain(self) -> str:
        return "".join(turn.text for turn in self.turns)

    @property
    def messages(self) -> list[dict[str, str]]:
        return [{"role": turn.role, "content": turn.text.strip()} for turn in self.turns]


@dataclass(frozen=True, slots=True, repr=False)
class Chain:
    """A solution of a question (a chain of thought), with the log-probabilities that its source gives.

    content     the text as bytes, because a sampled text may be invalid UTF-8. `text` replaces invalid bytes by U+FFFD
    tokens      the bytes of the source's tokens; empty if the source has no tokens (a human, a text file)
    spans       start and end of each token in `content`, in bytes
    candidates  for each step, (outcome, natural log-probability) of the sampled token and its alternatives. It has no
                steps, one step per token, or one more step, which then has the log-probability of END
    stop        end: the source ended the text; length: the source reached its token limit; cut: potstill cut the text
                after the answer. A chain is never stopped because it repeats itself
    semantics   the distribution of the log-probabilities: raw, tempered (after temperature), truncated (after top-k or
                top-p), unknown, or none if there are no log-probabilities
    defects     short descriptions of faults in the source's data ("entries missing"), among them CUT_IN_THOUGHT
    """

    question: str
    source: str
    index: int
    content: bytes
    tokens: tuple[bytes, ...] = ()
    spans: tuple[tuple[int, int], ...] = ()
    candidates: tuple[tuple[Candidate, ...], ...] = ()
    stop: StopReason = "end"
    semantics: Semantics = "none"
    defects: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        assert len(self.spans) == len(self.tokens), f"{self.key}: {len(self.tokens)} tokens, {len(self.spans)} spans"
        allowed = (0, len(self.tokens), len(self.tokens) + 1)
        assert len(self.candidates) in allowed, (
            f"{self.key}: {len(self.candidates)} steps for {len(self.tokens)} tokens"
        )

    def __repr__(self) -> str:
        text = self.text if len(self.text) <= 60 else f"{self.text[:60]}…"
        return f"Chain({self.question!r}, {self.source!r}, {self.index}: {len(self.tokens)} tokens, {text!r})"

    @property
    def key(self) -> tuple[str, str, int]:
        return (self.question, self.source, self.index)

    @property
    def text(self) -> str:
        return self.content.decode("utf-8", "replace")

    @classmethod
    def from_tokens(
        cls,
        question: str,
        index: int,
        tokens: Sequence[bytes],
        candidates: Sequence[Sequence[Candidate] | Mapping[bytes | End, float]] = (),
        stop: StopReason = "end",
        *,
        source: str = "teacher",
        semantics: Semantics | None = None,
    ) -> Self:
        """A chain whose text is the concatenation of its tokens.

        tokens      the bytes of the text of each token: b" 12", not "▁12"
        candidates  for each token, (outcome, natural log-probability) of the sampled token and its alternatives, as pairs
                    or as a mapping. There may be one more, for the step at which the text ended
        semantics   None stands for `raw` with candidates, and for `none` without candidates

        Raises UserError for a token or an outcome that is not bytes (or END), and if the candidates do not fit the tokens.
        """
        steps = [tuple(step.items() if isinstance(step, Mapping) else step) for step in candidates]
        wrong = [token for token in tokens if not isinstance(token, bytes)]
        wrong += [outcome for step in steps for outcome, _ in step if not isinstance(outcome, bytes | End)]
        where = f"chain {(question, source, index)}"
        if wrong:
            found = repr(wrong[0])[:80]
            hint = 'give the text of the token as bytes, " 12".encode(); the end of the text is potstill.END'
            raise UserError("a token is not bytes", code="E-chain-not-bytes", where=where, found=found, hint=hint)
        if len(steps) not in (0, len(tokens), len(tokens) + 1):
            what, found = (
                "the candidates do not fit the tokens",
                f"candidates of {len(steps)} steps, {len(tokens)} tokens",
            )
            hint = "give the candidates of each token; those of the end of the text may follow"
            raise UserError(what, code="E-chain-candidates", where=where, found=found, hint=hint)
        return cls(
            question=question,
            source=source,
            index=index,
            content=b"".join(tokens),
            tokens=tuple(tokens),
            spans=token_spans(tokens),
            candidates=tuple(tuple((piece, float(value)) for piece, value in step) for step in steps),
            stop=stop,
            semantics=semantics or ("raw" if candidates else "none"),
        )

    @classmethod
    def from_text(cls, question: str, index: int, text: str, *, source: str, stop: StopReason = "end") -> Self:
        """A chain without tokens: a human's solution, or a text from a file."""
        return cls(question, source, index, text.encode("utf-8"), stop=stop)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The grade of a text. For a chain, also the reason why the filter dropped it.

    answer   the extracted answer in canonical form; None if there is no answer
    dropped  the reason: contaminated, length, language, wrong sum, duplicate, near duplicate or cap; None if the chain
             was not dropped
    """

    grade: Grade
    answer: str | None = None
    dropped: str | None = None

    @property
    def kept(self) -> bool:
        return self.grade == "right" and self.dropped is None


@dataclass(frozen=True, slots=True, repr=False)
class Target:
    """A chain in the student's vocabulary: a token and a sparse distribution at every position.

    ids            [n] the tokens of the text, then the end token if the chain has ended
    offsets        [n + 1] position p has the candidates from offsets[p] up to but not including offsets[p + 1]
    candidate_ids  [m] the candidates' token ids, distinct within a position
    probabilities  [m] the candidates' probabilities in (0, 1]. The tail of a position is 1 minus their sum
    kinds          [n] same, merged, split, mixed, hard or end
    """

    ids: Sequence[int]
    offsets: Sequence[int]
    candidate_ids: Sequence[int]
    probabilities: Sequence[float]
    kinds: Sequence[TargetKind]

    def __len__(self) -> int:
        return len(self.ids)

    def distribution(self, position: int) -> dict[int, float]:
        """The candidates of a position, as token id to probability. Their sum is 1 minus the tail."""
        part = slice(self.offsets[position], self.offsets[position + 1])
        pairs = zip(self.candidate_ids[part], self.probabilities[part], strict=True)
        return {int(token): float(probability) for token, probability in pairs}

    def tail(self, position: int) -> float:
        """The probability of all tokens that are not candidates of the position."""
        return max(0.0, 1.0 - sum(self.distribution(position).values()))

    def kind(self, position: int) -> TargetKind:
        return self.kinds[position]

    def tensors(self, k: int | None = None) -> tuple[Tensor, Tensor]:
        """The inputs of the loss: candidate ids [n, k] int64 and probabilities [n, k] float32, the largest first.

        k  number of candidates of a position to keep; None keeps all. Dropped candidates become part of the tail

        Positions with fewer candidates are padded with id 0 and probability 0.
        """
        import torch  # imported here, so that the other uses of records need no heavy library

        rows = [sorted(self.distribution(i).items(), key=lambda pair: -pair[1])[:k] for i in range(len(self))]
        width = k if k is not None else max(map(len, rows), default=0)
        padded = [row + [(0, 0.0)] * (width - len(row)) for row in rows]
        ids = torch.tensor([[token for token, _ in row] for row in padded], dtype=torch.int64)
        probabilities = torch.tensor([[p for _, p in row] for row in padded], dtype=torch.float32)
        return ids.reshape(len(rows), width), probabilities.reshape(len(rows), width)

    def __repr__(self) -> str:
        return f"Target({len(self)} tokens, {len(self.candidate_ids)} candidates)"


@dataclass(frozen=True, slots=True)
class Prediction:
    """A student's answer to a question, with its grade.

    text        the generated text
    answer      the extracted answer in canonical form; None if there is no answer
    index       index of the sample among the samples of the question
    likelihood  natural log-probability, at temperature 1, of the part of the text that the student itself wrote (not the
                calculator); None if it was not requested
    """

    question: str
    set: str
    task: str
    text: str
    stop: StopReason
    grade: Grade
    answer: str | None
    index: int = 0
    likelihood: float | None = None


@dataclass(frozen=True, slots=True)
class Score:
    """The accuracy of a checkpoint on a set, which is right / n. Its 95 % interval is from `low` to `high`.

    `repeated` is the number of truncated texts that were stopped because they repeated themselves; None if texts are not
    stopped for that.

    The other fields are for sets of several tasks (BBH), and None for other sets. `macro` is the unweighted mean of the
    tasks' accuracies. The interval from `low` to `high` is valid for other questions of the same tasks. The intervals for
    other tasks are `macro_low` to `macro_high` for `macro`, and `tasks_low` to `tasks_high` for `accuracy`.
    """

    checkpoint: Checkpoint
    set: str
    split: Split
    format: str
    decoding: str
    n: int
    right: int
    no_answer: int
    truncated: int
    accuracy: float
    low: float
    high: float
    macro: float | None = None
    macro_low: float | None = None
    macro_high: float | None = None
    tasks_low: float | None = None
    tasks_high: float | None = None
    repeated: int | None = None


@dataclass(frozen=True, slots=True)
class LabelTable:
    """The answers of a checkpoint to a classification: a confusion matrix.

    labels         the labels, as in the recipe; without labels in it, the answers: yes and no, or the letters of choices
    counts         for each label, the number of its questions by answer: one number for each label, then the number of
                   other answers (no label, or several), then of texts without an answer or cut off before it
    majority       the most frequent label of the training questions; of these questions if the set is not trained on
    majority_from  the questions in which `majority` was counted
    """

    checkpoint: Checkpoint
    set: str
    split: Split
    format: str
    decoding: str
    labels: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    majority: str
    majority_from: Split

    @property
    def n(self) -> int:
        return sum(map(sum, self.counts))

    @property
    def majority_accuracy(self) -> float:
        """The accuracy of a model that always answers with `majority`: the score to beat."""
        return sum(self.counts[self.labels.index(self.majority)]) / self.n

    def recall(self, label: str) -> float | None:
        """The share of the label's questions that were answered with it; None without questions."""
        row = self.counts[self.labels.index(label)]
        return row[self.labels.index(label)] / sum(row) if any(row) else None

    def precision(self, label: str) -> float | None:
        """The share of right answers among those with this label; None if it was never answered."""
        index = self.labels.index(label)
        answered = sum(row[index] for row in self.counts)
        return self.counts[index][index] / answered if answered else None


@dataclass(frozen=True, slots=True)
class TextScore:
    """The bits that a checkpoint needs for texts: a measure of how well it predicts them.

    name   name of the texts in `evaluate.texts`
    bits   negative base-2 log-probability of each text, in order
    bytes  number of bytes of each text
    """

    checkpoint: Checkpoint
    name: str
    bits: tuple[float, ...]
    bytes: tuple[int, ...]

    @property
    def bits_per_byte(self) -> float:
        """The bits of all texts divided by their bytes, so that a long text counts more than a short one."""
        return math.fsum(self.bits) / sum(self.bytes)


@dataclass(frozen=True, slots=True)
class PassCurve:
    """The accuracy with k samples per question on a set of n questions, as the mean over all choices of k samples.

    how       the answer that counts. vote: the most frequent answer; best: the answer of the most likely sample; any: a
              right answer of any sample (pass@k)
    accuracy  its 95 % interval over questions is from `low` to `high`
    """

    checkpoint: Checkpoint
    set: str
    split: Split
    format: str
    drawing: str
    how: Literal["vote", "best", "any"]
    k: int
    n: int
    accuracy: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class RetentionBound:
    """The points (hundredths) of validation accuracy that a checkpoint may lose at most against the base.

    name  `generic`, for the mean over the generic sets, or the name of a set
    lost  the points that each checkpoint loses; negative if it gains
    """

    name: str
    points: float
    lost: tuple[tuple[Checkpoint, float], ...]

    def keeps(self, checkpoint: Checkpoint) -> bool:
        return dict(self.lost)[checkpoint] <= self.points + 1e-9  # 1e-9: for the rounding of decimal bounds


@dataclass(frozen=True, slots=True)
class Choice:
    """The selected checkpoint, and the rule and values by which it was selected.

    table     the value of each checkpoint by the rule
    tied      the checkpoints whose values lie in the paired interval of the best one: selection among them is by chance
    equal     the checkpoints with exactly the best value, of which the first is selected; empty in files of older versions
    optimism  the expected loss of the best value on new questions, because it is the best of several; None if unknown
    weights   (set, weight) of the rule `weighted`
    bounds    the bounds of `select.retain`
    """

    checkpoint: Checkpoint
    rule: str
    format: str
    decoding: str
    table: tuple[tuple[Checkpoint, float], ...]
    tied: tuple[Checkpoint, ...] = ()
    equal: tuple[Checkpoint, ...] = ()
    optimism: float | None = None
    weights: tuple[tuple[str, float], ...] = ()
    bounds: tuple[RetentionBound, ...] = ()


def token_spans(tokens: Sequence[bytes]) -> tuple[tuple[int, int], ...]:
    """Start and end of each token in the concatenation of the tokens, in bytes."""
    return tuple(pairwise(accumulate(map(len, tokens), initial=0)))
