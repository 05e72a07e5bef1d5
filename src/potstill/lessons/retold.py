"""What a model of another vocabulary says of texts that the student wrote, in the student's tokens.

The texts are scored as a teacher scores chains that exist (`teachers.local.scored`) and come into the student's
vocabulary by the rule `text` of `transfer`, as every teacher's chains do: where its token could go on in several ways,
as the texts of this step do. So a row holds the text as the student's tokenizer cuts it, which may be otherwise than it
was drawn. Positions of which nothing came through say nothing: all of them is tail, which costs the student nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from potstill import transfer
from potstill.engines import Scoring
from potstill.records import Chain, Kind, Prompt, Target
from potstill.students import Example
from potstill.teachers import local
from potstill.tokenizers import Tokenizer


def retold(
    scorer: Scoring,
    words: Tokenizer,
    own: Tokenizer,
    prompt_of: Callable[[str], Prompt],
    rows: Sequence[Example],
    *,
    candidates: int,
    budget: int,
) -> list[Example]:
    """The same rows with the distributions of `scorer`, which is asked in its own way.

    words       the scorer's tokenizer; own: the student's
    prompt_of   the question that a row names -> how it is asked
    candidates  likeliest tokens of the scorer at each of its positions, beside the one that stands there
    budget      tokens that a batch of the scorer's may hold

    Raises UserError where a text does not fit the scorer, or its logits are not numbers.
    """
    texts = [
        Chain.from_text(
            row.question,
            place,
            own.decode(row.target.ids),
            source=row.format,
            stop="end" if row.target.kinds[-1] == "end" else "length",
        )
        for place, row in enumerate(rows)
    ]
    asked = [(prompt_of(row.question), text) for row, text in zip(rows, texts, strict=True)]
    read = local.scored(scorer, asked, candidates=candidates, budget=budget)
    known = transfer.completions(read, own)
    made = [transfer.transfer(chain, own, "text", known, words) for chain in read]
    # Where the tokens make no text (special ones, cut off by the budget) the row stays, and nothing is told of it.
    return [
        replace(row, target=_known(new, "hard", "end") if len(new) else _known(row.target, *row.target.kinds))
        for row, new in zip(rows, made, strict=True)
    ]


def _known(target: Target, *kinds: Kind) -> Target:
    """The target without the certainties of these kinds, which nobody told: there everything is tail."""
    probabilities = list(target.probabilities)
    for place, kind in enumerate(target.kinds):
        first, last = target.offsets[place], target.offsets[place + 1]
        if kind in kinds and last - first == 1 and probabilities[first] == 1.0:
            probabilities[first] = 0.0
    return replace(target, probabilities=probabilities)
