"""How certain a teacher is: its single samples, and its entropy where several next tokens are right.

    >>> places("Tom has 3 + 4 = 7 apples. They have 7 + 2 = 9 apples.\\nThe answer is 9")
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

from potstill import engines
from potstill.answers import grade
from potstill.engines import Request
from potstill.miniature import diet, gates
from potstill.miniature.gates import Gate
from potstill.records import Question
from potstill.students import Student

RIGHT: Final = (0.55, 0.85)  # of single samples
LEAST: Final = 0.3  # nats where a sentence begins; a teacher below it teaches nothing that its texts do not
TEMPERATURE: Final = 1.0
CANDIDATES: Final = 5
_FIRST = re.compile(r"(?:^|(?<=\. ))[A-Z]")
_SUM = re.compile(r"(?<!\d)(\d+) [-+*/] \d+ =")


@dataclass(frozen=True, slots=True)
class Certainty:
    """Mean entropy in nats over the likeliest candidates, what they lack taken as one more outcome.

    tokens     over all tokens of the sampled texts
    sentences  where a sentence begins
    sums       at the first number of a sum
    """

    tokens: float
    sentences: float
    sums: float


def teacher(
    student: Student, kitchen: diet.Kitchen, asked: Sequence[Question], temperature: float = TEMPERATURE
) -> tuple[Gate, Certainty]:
    """One sample a question, its share right, and how certain the model was while it wrote."""
    engine = engines.open(student)
    requests = [Request((question.id, 0), engine.encode(gates.ask(question, kitchen))) for question in asked]
    right = 0
    seen: dict[str, list[float]] = {"tokens": [], "sentences": [], "sums": []}
    by_id = {question.id: question for question in asked}
    for batch in engines.batches(requests, gates.BUDGET, max_tokens=gates.LONGEST):
        made = engine.generate(
            [requests[place] for place in batch],
            max_tokens=gates.LONGEST,
            temperature=temperature,
            candidates=CANDIDATES,
            stop_at_answer="line",
        )
        for text in made:
            question = by_id[text.key[0]]
            right += grade(text.text, question.gold, question.task).grade == "right"
            sentences, sums = places(text.text)
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
    return Gate(f"one sample at temperature {temperature:g}", len(asked), right, *RIGHT), Certainty(**means)


def places(text: str) -> tuple[set[int], set[int]]:
    """Where in the rationale of an English text sentences begin, and where the first numbers of sums stand."""
    rationale = text.partition("\n")[0]
    return {m.start() for m in _FIRST.finditer(rationale)}, {m.start() for m in _SUM.finditer(rationale)}


def entropy(logs: Sequence[float]) -> float:
    """In nats, of some outcomes' natural log-probabilities; what is missing to 1 counts as one more outcome.

    >>> round(entropy([math.log(0.5), math.log(0.25)]), 4) == round(1.5 * math.log(2), 4)
    True
    """
    shares = [math.exp(log) for log in logs]
    rest = 1 - sum(shares)
    return -sum(share * math.log(share) for share in [*shares, rest] if share > 1e-9)
