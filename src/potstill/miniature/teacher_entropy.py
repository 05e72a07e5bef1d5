"""How certain a teacher is: its single samples, and its entropy where several next tokens are right.

    >>> branching_offsets("Tom has 3 + 4 = 7 apples. They have 7 + 2 = 9 apples.\\nThe answer is 9")
    ({0, 26}, {8, 36})

In the solutions of the world two kinds of places branch: how a sentence begins, and which sum comes first, so also
with which number. A teacher that is certain there would make matching its distributions the same as copying its texts.
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
from potstill.miniature import acceptance, task_mix
from potstill.miniature.acceptance import AcceptanceTest
from potstill.models import Student
from potstill.records import Question

ACCURACY_BOUNDS: Final = (0.55, 0.85)  # of single samples
MIN_SENTENCE_ENTROPY: Final = (
    0.3  # nats where a sentence begins; a teacher below it teaches nothing that its texts do not
)
TEMPERATURE: Final = 1.0
CANDIDATES: Final = 5
_SENTENCE_START = re.compile(r"(?:^|(?<=\. ))[A-Z]")
_SUM_START = re.compile(r"(?<!\d)(\d+) [-+*/] \d+ =")


@dataclass(frozen=True, slots=True)
class BranchEntropy:
    """Mean entropy in nats over the likeliest candidates, what they lack taken as one more outcome.

    tokens     over all tokens of the sampled texts
    sentences  where a sentence begins
    sums       at the first number of a sum
    """

    tokens: float
    sentences: float
    sums: float


def measure_teacher(
    student: Student, kitchen: task_mix.DataSource, asked: Sequence[Question], temperature: float = TEMPERATURE
) -> tuple[AcceptanceTest, BranchEntropy]:
    """One sample a question, its share right, and how certain the model was while it wrote."""
    engine = inference.open_engine(student)
    requests = [
        Request((question.id, 0), engine.encode(acceptance.build_prompt(question, kitchen))) for question in asked
    ]
    right = 0
    seen: dict[str, list[float]] = {"tokens": [], "sentences": [], "sums": []}
    by_id = {question.id: question for question in asked}
    for batch in inference.batch_requests(requests, acceptance.BUDGET, max_tokens=acceptance.LONGEST):
        made = engine.generate(
            [requests[place] for place in batch],
            Decode(
                max_tokens=acceptance.LONGEST, temperature=temperature, top_logprobs=CANDIDATES, stop_at_answer="line"
            ),
        )
        for text in made:
            question = by_id[text.key[0]]
            right += grade(text.text, question.gold, question.task).grade == "right"
            sentences, sums = branching_offsets(text.text)
            at = 0
            for token, step in zip(text.tokens, text.candidates, strict=False):
                spread = entropy([log for _, log in step])
                seen["tokens"].append(spread)
                begins = at + len(token) - len(token.lstrip())  # a token may begin with its space
                for name, own in (("sentences", sentences), ("sums", sums)):
                    if begins in own and token.strip():
                        seen[name].append(spread)
                at += len(token)
    means = {name: round(sum(own) / max(1, len(own)), 4) for name, own in seen.items()}
    return AcceptanceTest(
        f"one sample at temperature {temperature:g}", len(asked), right, *ACCURACY_BOUNDS
    ), BranchEntropy(**means)


def branching_offsets(text: str) -> tuple[set[int], set[int]]:
    """Where in the rationale of an English text sentences begin, and where the first numbers of sums stand."""
    rationale = text.partition("\n")[0]
    return {m.start() for m in _SENTENCE_START.finditer(rationale)}, {m.start() for m in _SUM_START.finditer(rationale)}


def entropy(logs: Sequence[float]) -> float:
    """In nats, of some outcomes' natural log-probabilities; what is missing to 1 counts as one more outcome.

    >>> round(entropy([math.log(0.5), math.log(0.25)]), 4) == round(1.5 * math.log(2), 4)
    True
    """
    shares = [math.exp(log) for log in logs]
    rest = 1 - sum(shares)
    return -sum(share * math.log(share) for share in [*shares, rest] if share > 1e-9)
