"""What can answer a run's questions and be chosen, with its label and its folder's name in one place.

>>> Checkpoint(350).name, Checkpoint(350, 0.3).name, Checkpoint(350, 0.3).label
('350', '350-0.3', '350 × 0.3')
>>> Checkpoint.read("350-0.3"), Checkpoint.read(350).written
(Checkpoint(step=350, share=0.3, repaired=0), 350)
>>> Checkpoint(350, repaired=100).name, Checkpoint.read("350-0.3+100").label
('350+100', '350 × 0.3 + 100')

The nouns: frozen values that the stages hand to each other.

    >>> chain = Chain.from_tokens("q1", 0, [b"4", b"\\xff"], [[(b"4", -0.1), (END, -2.5)], [(b"\\xff", -0.3)]])
    >>> chain.text, chain.spans
    ('4\\ufffd', ((0, 1), (1, 2)))

Natural logarithms everywhere. It imports no other library; `encoding` has the form in JSON.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Final, Literal, Self

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, order=True)
class Checkpoint:
    """What can answer and be chosen: the student after a step of training, or its weights mixed with the base's.

    share     of the student's weights, the rest are the base's; 1 is the checkpoint itself
    repaired  steps of repair that came after it; what was repaired answers, and is not chosen
    """

    step: int
    share: float = 1.0
    repaired: int = 0

    @property
    def name(self) -> str:
        """Of its folder."""
        mixed = "" if self.share == 1 else f"-{self.share!r}"
        return f"{self.step}{mixed}" + (f"+{self.repaired}" if self.repaired else "")

    @property
    def label(self) -> str:
        """For people: the step, what its weights were multiplied with, and the steps of repair after it."""
        return f"{self.step}{self.further}"

    @property
    def pure(self) -> bool:
        """Whether it is a checkpoint of training itself."""
        return self.share == 1 and not self.repaired

    @property
    def further(self) -> str:
        """What stands behind the step."""
        mixed = "" if self.share == 1 else f" × {self.share!r}"
        return mixed + (f" + {self.repaired}" if self.repaired else "")

    @property
    def written(self) -> int | str:
        """In JSON: a step is a number, anything else its name."""
        return self.step if self.pure else self.name

    @classmethod
    def read(cls, written: int | str) -> Self:
        """The reverse of `written` and of `name`. Raises ValueError on anything else."""
        chosen, _, repaired = str(written).partition("+")
        step, mixed, share = chosen.partition("-")
        found = cls(int(step), float(share) if mixed else 1.0, int(repaired or 0))
        if found.name != str(written):
            raise ValueError(f"no contender: {written!r}")
        return found


BASE: Final = Checkpoint(0)


StopReason = Literal["end", "length", "cut"]
Semantics = Literal["raw", "tempered", "truncated", "unknown", "none"]
Grade = Literal["right", "wrong", "no answer", "truncated"]
TargetKind = Literal["same", "merged", "split", "mixed", "hard", "end"]
Split = Literal["train", "validation", "test"]


class End(enum.Enum):
    """The outcome "the text stops here", whatever token a model writes it with."""

    END = "end"

    def __repr__(self) -> str:
        return "END"


END: Final = End.END
Candidate = tuple[bytes | End, float]


@dataclass(frozen=True, slots=True)
class Question:
    """One problem whose answer can be checked.

    id         unique in a run, `set/...`
    gold       the right answer as the set writes it ("72", "9 (apples)", "(A)", "valid")
    task       how it is graded and grouped: `gsm8k`, `asdiv`, `bbh/navigate`, `number`, `choice`, ...
    rationale  the set's own solution in words, without its answer sentence; None where it has none
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
    """What a model is asked, as turns. The texts of the turns put one after the other are the plain prompt, byte for
    byte; a chat model gets the same turns as messages, stripped of outer white space. `lead` is the white space that
    belongs between the plain prompt and its answer."""

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
    """One solution of one question, with what its source says about how likely each token was.

    content     the text as bytes (a sampled text need not be UTF-8); `text` is its readable form
    tokens      the bytes of each of the teacher's tokens; empty where the source knows none (a human, a text file)
    spans       start and end of each token in `content`, in bytes
    candidates  per token the alternatives that the source showed, the sampled one among them, each with its natural
                log-probability; empty, as long as `tokens`, or one longer: then the last step says how likely END was
    stop        end: the source ended the text; length: its token budget ran out; cut: we cut it after the answer
    semantics   what the log-probabilities mean: of the raw distribution, after temperature, after truncation,
                unknown, or none
    defects     what its source got wrong about it, each in a few words ("entries missing")
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
        candidates: Sequence[Sequence[Candidate]] = (),
        stop: StopReason = "end",
        *,
        source: str = "teacher",
        semantics: Semantics | None = None,
    ) -> Self:
        """A chain whose tokens, put one after the other, are its text.

        candidates  natural logarithms, the sampled token among them; one list more than tokens if the last step, at
                    which the text ended, is known.
        semantics   `raw` unless said otherwise, `none` without candidates
        """
        return cls(
            question=question,
            source=source,
            index=index,
            content=b"".join(tokens),
            tokens=tuple(tokens),
            spans=token_spans(tokens),
            candidates=tuple(tuple((what, float(value)) for what, value in step) for step in candidates),
            stop=stop,
            semantics=semantics or ("raw" if candidates else "none"),
        )

    @classmethod
    def from_text(cls, question: str, index: int, text: str, *, source: str, stop: StopReason = "end") -> Self:
        """A chain of which only the text is known: a human's, or an answer found in a file."""
        return cls(question, source, index, text.encode("utf-8"), stop=stop)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What grading found in a text, and, apart from that, why a chain was dropped if it was.

    found    the canonical answer, None where there is none
    dropped  duplicate, cap, contaminated, length, language, wrong sum; None for a chain that was not dropped
    """

    grade: Grade
    found: str | None = None
    dropped: str | None = None

    @property
    def kept(self) -> bool:
        return self.grade == "right" and self.dropped is None


@dataclass(frozen=True, slots=True, repr=False)
class Target:
    """A chain in a student's vocabulary: at every position the token and a sparse distribution.

    ids            [n] tokens of the text, the end token included where the chain has an end
    offsets        [n + 1] position p owns candidates offsets[p] to offsets[p + 1]
    candidate_ids  [m] token ids, distinct within a position
    probabilities  [m] in (0, 1]; what is missing to 1 is the position's tail
    kinds          [n] same, merged, split, mixed, hard, end
    """

    ids: Sequence[int]
    offsets: Sequence[int]
    candidate_ids: Sequence[int]
    probabilities: Sequence[float]
    kinds: Sequence[TargetKind]

    def __len__(self) -> int:
        return len(self.ids)

    def distribution(self, position: int) -> dict[int, float]:
        """Token id to probability; sums to 1 - tail."""
        own = slice(self.offsets[position], self.offsets[position + 1])
        pairs = zip(self.candidate_ids[own], self.probabilities[own], strict=True)
        return {int(token): float(probability) for token, probability in pairs}

    def tail(self, position: int) -> float:
        """Probability that lies on none of the candidates."""
        return max(0.0, 1.0 - sum(self.distribution(position).values()))

    def kind(self, position: int) -> TargetKind:
        return self.kinds[position]

    def tensors(self, k: int | None = None) -> tuple[Tensor, Tensor]:
        """The inputs of the loss: candidate ids [n, k] int64 and their probabilities [n, k] float32, the largest first.

        k  candidates of a position that are kept, None keeps all; what is dropped belongs to the tail

        Positions with fewer candidates are padded with id 0 and probability 0.
        """
        import torch  # the only use of a heavy library here: the records stay light until somebody trains

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
    """One student answer to one question, with its verdict. `index` counts samples of the same question.

    likelihood  natural log-probability of the whole text, at temperature 1 and as far as the student wrote it itself;
                None where nobody asked for it
    """

    question: str
    set: str
    task: str
    text: str
    stop: StopReason
    grade: Grade
    found: str | None
    index: int = 0
    likelihood: float | None = None


@dataclass(frozen=True, slots=True)
class Score:
    """How a checkpoint did on one set. `accuracy` is right / n; `low` and `high` bound its 95 % interval.

    For a set of several tasks (BBH), else None: `macro` is the unweighted mean over tasks of their accuracies, and
    `macro_low`, `macro_high`, `tasks_low` and `tasks_high` bound it and `accuracy` if the tasks, too, were drawn by
    chance (see `intervals.clustered`); `low` and `high` are for other questions of the same tasks.
    """

    contender: Checkpoint
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


@dataclass(frozen=True, slots=True)
class PassCurve:
    """What k samples of a question come to on one set of n questions, as the mean over all choices of k of them.

    how       vote: the most frequent value; best: the likeliest sample; any: whether one of them is right (pass@k)
    accuracy  with `low` and `high`, the bounds of its 95 % interval over questions
    """

    contender: Checkpoint
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
class Choice:
    """The selected checkpoint, the rule, and the table it was chosen from: one row a contender, with its value.

    tied  the contenders whose value lies within the paired interval of the best: choosing among them is chance
    """

    contender: Checkpoint
    rule: str
    format: str
    decoding: str
    table: tuple[tuple[Checkpoint, float], ...]
    tied: tuple[Checkpoint, ...] = ()


def token_spans(tokens: Sequence[bytes]) -> tuple[tuple[int, int], ...]:
    """Start and end of each token in the bytes that they make together."""
    return tuple(pairwise(accumulate(map(len, tokens), initial=0)))
