"""Finite languages of arithmetic reasoning: how likely every next token is, under any tokenizer, by counting.

Some questions, each with hundreds of weighted texts: other orders, wordings, line breaks, ways to write a number, and
wrong results. A teacher's distribution behind some tokens is the share of the texts that go on with each token; so is
the student's behind some pieces. Both are exact, and so is the *ceiling*: what a transfer would give that saw the
teacher's k likeliest outcomes and knew perfectly how each of them goes on.

    >>> language = make(seed=1, questions=2, texts=50)
    >>> len(language), len(language[0].texts), round(sum(language[0].weights), 6)
    (2, 50, 1.0)
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from languages import LANGUAGES
from potstill.records import END, Candidate, Chain
from potstill.tokenization import Tokenizer


@dataclass(frozen=True)
class AnswerTexts:
    """The texts that answer one question, each once, and their weights, which add up to 1."""

    texts: tuple[str, ...]
    weights: tuple[float, ...]


def make(seed: int = 0, questions: int = 8, texts: int = 3000, language: str = "sums") -> list[AnswerTexts]:
    """The texts of some questions of a language: a pure function of its arguments."""
    return [_answer_texts(random.Random(f"{seed} {question}"), texts, language) for question in range(questions)]


def sampled(answers: AnswerTexts, n: int, seed: object) -> list[int]:
    """Indices of n texts, drawn by weight with replacement."""
    return random.Random(f"draw {seed}").choices(range(len(answers.texts)), answers.weights, k=n)


def _answer_texts(draw: random.Random, count: int, language: str) -> AnswerTexts:
    write = LANGUAGES[language](draw)
    tastes: dict[tuple[str, ...], list[float]] = {}
    probability = [1.0]

    def pick(*options: str) -> str:
        """One of the options. Which ones are likelier is a taste of the question, the same in all of its texts."""
        taste = tastes.get(options)
        if taste is None:
            strengths = [draw.gammavariate(1.0, 1.0) + 0.02 for _ in options]
            taste = tastes[options] = [value / sum(strengths) for value in strengths]
        choice = draw.choices(range(len(options)), taste)[0]
        probability[0] *= taste[choice]
        return options[choice]

    found: dict[str, float] = {}
    for _ in range(200 * count):
        probability[0] = 1.0
        text = write(pick)
        found[text] = probability[0]
        if len(found) == count:
            break
    total = math.fsum(found.values())
    return AnswerTexts(tuple(found), tuple(value / total for value in found.values()))


def _as_written(answers: AnswerTexts, teacher: Tokenizer) -> AnswerTexts:
    found: dict[str, float] = {}
    for encoding, weight in zip(teacher.encode_batch(answers.texts), answers.weights, strict=True):
        text = teacher.decode(encoding.ids)
        found[text] = found.get(text, 0.0) + weight
    return AnswerTexts(tuple(found), tuple(found.values()))


def variation(row: Mapping[int, float], truth: Mapping[int, float], unigram: np.ndarray) -> float:
    """Total variation between a sparse distribution, its tail filled by how often tokens come, and the truth."""
    tail = max(0.0, 1.0 - math.fsum(row.values()))
    own = row.keys() | truth.keys()
    apart = math.fsum(abs(row.get(token, 0.0) + tail * unigram[token] - truth.get(token, 0.0)) for token in own)
    return (apart + tail * (1.0 - math.fsum(unigram[token] for token in own))) / 2


def divergence(row: Mapping[int, float], truth: Mapping[int, float], unigram: np.ndarray) -> float:
    """Kullback-Leibler divergence of the truth from the filled distribution, in nats, with a floor of 1e-6."""
    tail = max(0.0, 1.0 - math.fsum(row.values()))
    filled = {token: max(row.get(token, 0.0) + tail * unigram[token], 1e-6) for token in truth}
    return math.fsum(p * math.log(p / filled[token]) for token, p in truth.items() if p > 0.0)


class Tree:
    """The texts of one question under one tokenizer: token rows, and which of them are still possible.

    rows  [texts, length] tokens, the end included, filled with -1
    """

    def __init__(self, answers: AnswerTexts, tokenizer: Tokenizer) -> None:
        self.answers, self.tokenizer = answers, tokenizer
        encodings = tokenizer.encode_batch(answers.texts)
        self.ids = [[*encoding.ids, tokenizer.eos] for encoding in encodings]
        self.spans = [encoding.spans for encoding in encodings]
        self.rows = np.full((len(self.ids), max(map(len, self.ids))), -1, np.int64)
        for row, ids in zip(self.rows, self.ids, strict=True):
            row[: len(ids)] = ids
        self.weights = np.array(answers.weights)

    def along(self, text_id: int) -> Iterator[np.ndarray]:
        """At each position of a text, [texts] which of them begin with the tokens before it."""
        alive = np.ones(len(self.ids), bool)
        for position, token in enumerate(self.ids[text_id]):
            yield alive.copy()
            alive &= self.rows[:, position] == token

    def shares(self, position: int, alive: np.ndarray) -> dict[int, float]:
        """Token to its share of the weight of these texts."""
        own = self.weights[alive]
        tokens, inverse = np.unique(self.rows[alive, position], return_inverse=True)
        return dict(zip(tokens.tolist(), (np.bincount(inverse, own) / own.sum()).tolist(), strict=True))


class Oracle:
    """A language between a teacher's tokenizer and a student's. `k` None shows every outcome."""

    def __init__(self, language: Sequence[AnswerTexts], teacher: Tokenizer, student: Tokenizer) -> None:
        # A teacher that drops line breaks never wrote them.
        self.language = [_as_written(answers, teacher) for answers in language]
        self.teacher, self.student = teacher, student
        self._trees: dict[tuple[int, bool], Tree] = {}

    def tree(self, question: int, *, student: bool) -> Tree:
        key = (question, student)
        if key not in self._trees:
            self._trees[key] = Tree(self.language[question], self.student if student else self.teacher)
        return self._trees[key]

    def chain(self, question: int, text_id: int, index: int, k: int | None) -> Chain:
        """A text as a teacher would return it: at each step its k likeliest outcomes, and the sampled one."""
        tree = self.tree(question, student=False)
        pieces = self.teacher.split(tree.ids[text_id][:-1])
        steps = [
            [self._outcome(tree, token, position, probability) for token, probability in shown]
            for position, shown in enumerate(self._shown_outcomes(tree, text_id, k))
        ]
        return Chain.from_tokens(f"q{question}", index, pieces, steps)

    def _shown_outcomes(self, tree: Tree, text_id: int, k: int | None) -> Iterator[list[tuple[int, float]]]:
        for position, alive in enumerate(tree.along(text_id)):
            ranked = sorted(tree.shares(position, alive).items(), key=lambda pair: (-pair[1], pair[0]))
            own = tree.ids[text_id][position]
            yield [pair for rank, pair in enumerate(ranked) if k is None or rank < k or pair[0] == own]

    def _outcome(self, tree: Tree, token: int, position: int, probability: float) -> Candidate:
        outcome = END if token == self.teacher.eos else self.teacher.vocabulary.candidate(token, position)
        assert outcome is not None
        return outcome, math.log(probability)

    def exact(self, question: int, text_id: int) -> list[dict[int, float]]:
        """The student's distribution at every position of a text, the end included."""
        tree = self.tree(question, student=True)
        return [tree.shares(position, alive) for position, alive in enumerate(tree.along(text_id))]

    def ceiling(self, question: int, text_id: int, k: int | None) -> list[dict[int, float]]:
        """What perfect completion of the shown outcomes gives, along this chain.

        A text counts as known if it is the chain's up to the current pre-token (the one that holds the token before)
        and then leaves the teacher's path by a shown outcome, or after the current step. A text that leaves it by an
        outcome that was not shown is tail. A text that left it earlier, but looks the same to the student, is not
        shown by any outcome of these steps.
        """
        student_tree, teacher_tree = self.tree(question, student=True), self.tree(question, student=False)
        shown = [{token for token, _ in row} for row in self._shown_outcomes(teacher_tree, text_id, k)]
        own = teacher_tree.rows[text_id]
        differs = teacher_tree.rows != own
        first = np.where(differs.any(axis=1), differs.argmax(axis=1), teacher_tree.rows.shape[1])
        seen = np.array(
            [
                at >= len(shown) or int(row[at]) in shown[at]
                for at, row in zip(first.tolist(), teacher_tree.rows, strict=True)
            ]
        )
        ends = [end for _, end in teacher_tree.spans[text_id]]
        content = self.language[question].texts[text_id].encode()
        boundaries = [0, *(match.start() for match in re.finditer(rb"(?<=\S)\s", content))]
        rows = []
        for position, alive in enumerate(student_tree.along(text_id)):
            # Whitespace that the student drops belongs to the token after it.
            start = max((end for _, end in student_tree.spans[text_id][:position]), default=0)
            pre_token = max(boundary for boundary in boundaries if boundary < start or boundary == 0)
            known = alive & (first >= sum(end <= pre_token for end in ends))
            counted = known & (seen | (first > sum(end <= start for end in ends)))
            total, kept = student_tree.weights[known].sum(), student_tree.weights[counted].sum()
            row = student_tree.shares(position, counted) if kept else {}
            rows.append({token: share * kept / total for token, share in row.items()})
        return rows

    @cached_property
    def unigram(self) -> np.ndarray:
        """[size] how often each token of the student comes in the language."""
        counts = np.zeros(self.student.size)
        for question in range(len(self.language)):
            tree = self.tree(question, student=True)
            for ids, weight in zip(tree.ids, tree.weights, strict=True):
                np.add.at(counts, ids, weight)
        return counts / counts.sum()
