"""Teachers whose chains already exist as texts. They require only `read_chains`; a scorer may add log-probabilities.

>>> class Echo(TextTeacher):
...     def read_chains(self, questions, other_questions=()):
...         yield [Chain.from_text(question.id, 0, question.text, source=self.source) for question in questions]
>>> question = Question("mine/1", "What is 1 + 1?", "2", "mine", "train", "number")
>>> teacher = Echo(Recipe(name="mine"))
>>> [[chain.text for chain in batch] for batch in teacher.sample([question])]
[['What is 1 + 1?']]
>>> teacher.describe_scores(), teacher.forecast_scores([question])
('without log-probabilities', [])
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from potstill.recipe import Recipe
from potstill.records import Chain, Question
from potstill.teachers.protocol import SamplingState, Scorer, Teacher

__all__ = ["Chain", "Question", "TextTeacher"]


class TextTeacher(Teacher, Protocol):
    """A teacher whose chains already exist as texts. A scorer may add log-probabilities to them."""

    scorer: Scorer | None
    metered: bool = False  # whether the scorer is

    def __init__(self, recipe: Recipe, scorer: Scorer | None = None) -> None:
        super().__init__(recipe)
        self.scorer = scorer
        self.metered = scorer is not None and scorer.metered

    @abstractmethod
    def read_chains(
        self, questions: Sequence[Question], other_questions: Iterable[Question] = ()
    ) -> Iterator[list[Chain]]:
        """All chains of the questions, in batches of a fixed order. other_questions: see `SamplingState`."""
        ...

    def sample(self, questions: Sequence[Question], state: SamplingState | None = None) -> Iterator[list[Chain]]:
        state = state or SamplingState()
        shard, batches = state.shard, self.read_chains(questions, state.other_questions)
        batches = (batch for number, batch in enumerate(batches) if number % shard.count == shard.number - 1)
        batches = (batch for batch in batches if not all(chain.key in state.stored for chain in batch))
        return batches if self.scorer is None else self.scorer.score(questions, batches, state)

    def inputs(self) -> dict[str, str]:
        return super().inputs() | ({} if self.scorer is None else self.scorer.inputs())

    def free_keys(self) -> set[str]:
        return super().free_keys() if self.scorer is None else self.scorer.free_keys()

    def checks(self, *, weights: bool = True) -> Iterator[Callable[[], object]]:
        return iter(()) if self.scorer is None else self.scorer.checks(weights=weights)

    def tokenizer_folder(self) -> Path | None:
        return None if self.scorer is None else self.scorer.tokenizer_folder()

    # --- The plan

    def read_texts(self, questions: Sequence[Question]) -> Iterator[tuple[Question, str]]:
        """The question and the text of every chain, for the plan. A teacher that checks its chains overrides it, because the
        plan lists errors elsewhere."""
        by_id = {question.id: question for question in questions}
        for batch in self.read_chains(questions):
            yield from ((by_id[chain.question], chain.text) for chain in batch)

    def describe_scores(self) -> str:
        """A phrase for the plan: which model scores the chains."""
        score = self.recipe.teacher.score
        return "without log-probabilities" if score is None else f"scored by {score.model}"

    def forecast_scores(
        self, questions: Sequence[Question], stored: Mapping[str, int] | None = None, scores: Path | None = None
    ) -> list[str]:
        """The part of `forecast` about the scores; empty without a scorer. The first chains of a question count as stored."""
        if self.scorer is None:
            return []
        left, missing = dict(stored or {}), list[tuple[Question, str]]()
        for question, text in self.read_texts(questions):
            if left.get(question.id, 0):
                left[question.id] -= 1
            else:
                missing.append((question, text))
        return self.scorer.forecast_scores(missing, scores)
