"""Certainty of a teacher: the accuracy of single samples, and the entropy at positions with several right tokens.

    >>> branching_offsets("Tom has 3 + 4 = 7 apples. They have 7 + 2 = 9 apples.\\nThe answer is 9")
    ({0, 26}, {8, 36})

Solutions of the toy task branch at two kinds of positions: the start of a sentence, and the first number of a sum. If a
teacher were certain there, matching its distributions would equal copying its texts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from potstill import inference
from potstill.grading import grade
from potstill.inference import Decode, Request
from potstill.models import Student
from potstill.records import Question
from tools.toy_models import acceptance, task_mix
from tools.toy_models.acceptance import AcceptanceTest

# Of single samples, by teacher. The demo's is uncertain about wording; the unsure one about the problem, too.
ACCURACY_BOUNDS: Final = {"teacher": (0.55, 0.85), "teacher-unsure": (0.3, 0.55)}
# Nats at the start of a sentence. With less, the distributions teach nothing that the texts do not.
MIN_SENTENCE_ENTROPY: Final = 0.3
TEMPERATURE: Final = 1.0
CANDIDATES: Final = 5
_SENTENCE_START = re.compile(r"(?:^|(?<=\. ))[A-Z]")
_SUM_START = re.compile(r"(?<!\d)(\d+) [-+*/] \d+ =")


@dataclass(frozen=True, slots=True)
class BranchEntropy:
    """Mean entropy in nats over the likeliest candidates; the missing probability counts as one more outcome.

    tokens     over all tokens of the sampled texts
    sentences  where a sentence begins
    sums       at the first number of a sum
    """

    tokens: float
    sentences: float
    sums: float


def measure_teacher(
    name: str,
    student: Student,
    source: task_mix.DataSource,
    questions: Sequence[Question],
    temperature: float = TEMPERATURE,
) -> tuple[AcceptanceTest, BranchEntropy]:
    """One sample per question of the teacher `name`: the share of right ones, and the entropies while it wrote them."""
    engine = inference.open_engine(student)
    requests = [
        Request((question.id, 0), engine.encode(acceptance.question_prompt(question, source))) for question in questions
    ]
    right = 0
    entropies: dict[str, list[float]] = {"tokens": [], "sentences": [], "sums": []}
    by_id = {question.id: question for question in questions}
    for batch in inference.batch_requests(requests, acceptance.BUDGET, max_tokens=acceptance.LONGEST):
        texts = engine.generate(
            [requests[index] for index in batch],
            Decode(
                max_tokens=acceptance.LONGEST, temperature=temperature, top_logprobs=CANDIDATES, stop_at_answer="line"
            ),
        )
        for text in texts:
            question = by_id[text.key[0]]
            right += grade(text.text, question.gold, question.task).grade == "right"
            sentences, sums = branching_offsets(text.text)
            position = 0
            for token, step in zip(text.tokens, text.candidates, strict=False):
                value = entropy([log for _, log in step])
                entropies["tokens"].append(value)
                begins = position + len(token) - len(token.lstrip())  # a token may begin with its space
                for place, offsets in (("sentences", sentences), ("sums", sums)):
                    if begins in offsets and token.strip():
                        entropies[place].append(value)
                position += len(token)
    means = {name: round(sum(values) / max(1, len(values)), 4) for name, values in entropies.items()}
    return AcceptanceTest(
        f"one sample at temperature {temperature:g}", len(questions), right, *ACCURACY_BOUNDS[name]
    ), BranchEntropy(**means)


def branching_offsets(text: str) -> tuple[set[int], set[int]]:
    """Offsets in the rationale of an English text: of the starts of sentences, and of the first numbers of sums."""
    rationale = text.partition("\n")[0]
    return {m.start() for m in _SENTENCE_START.finditer(rationale)}, {m.start() for m in _SUM_START.finditer(rationale)}


def entropy(logs: Sequence[float]) -> float:
    """Entropy in nats of outcomes with these natural log-probabilities; the missing probability is one more outcome.

    >>> round(entropy([math.log(0.5), math.log(0.25)]), 4) == round(1.5 * math.log(2), 4)
    True
    """
    shares = [math.exp(log) for log in logs]
    rest = 1 - sum(shares)
    return -sum(share * math.log(share) for share in [*shares, rest] if share > 1e-9)
