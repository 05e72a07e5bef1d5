"""A set's own rationales as chains: one solution a question, in words, without tokens or probabilities.

    >>> question = Question("gsm8k/1", "What is 1 + 1?", "2", "gsm8k", "train", "gsm8k", rationale="1 + 1 = 2.")
    >>> [chains] = build_reference_chains([question])
    >>> chains[0].text, chains[0].semantics
    ('1 + 1 = 2.\\nThe answer is 2', 'none')

A student is taught them with hard targets.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence

from potstill import prompts
from potstill.errors import UserError
from potstill.records import Chain, Question
from potstill.teachers import ChainKey


def build_reference_chains(
    questions: Sequence[Question], *, source: str = "human", batch: int = 256, done: Container[ChainKey] = ()
) -> Iterator[list[Chain]]:
    """The chain with index 0 of every question, `batch` chains at a time, in the order of the questions.

    Raises UserError, before the first batch, if a question has no rationale.
    """
    silent = [question.id for question in questions if not question.rationale]
    if silent:
        raise UserError(
            f"{len(silent)} of {len(questions)} questions have no rationale for the human teacher",
            where="teacher",
            found=f"the first is {silent[0]}",
            hint="give each training question a rationale (sets.NAME.fields names its field), take out those that have "
            "none, or ask another teacher",
        )
    return _iter_batches(questions, source, batch, done)


def _iter_batches(
    questions: Sequence[Question], source: str, batch: int, done: Container[ChainKey]
) -> Iterator[list[Chain]]:
    for start in range(0, len(questions), batch):
        chains = [_build_chain(question, source) for question in questions[start : start + batch]]
        if not all(chain.key in done for chain in chains):
            yield chains


def _build_chain(question: Question, source: str) -> Chain:
    assert question.rationale
    return Chain.from_text(question.id, 0, prompts.format_solution(question.rationale, question.gold), source=source)
