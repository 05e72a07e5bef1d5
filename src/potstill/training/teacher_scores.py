"""What a model of another vocabulary says of texts that the student wrote, in the student's tokens.

The texts are scored as a teacher scores chains that exist (`teachers.local.scored`) and come into the student's
vocabulary by the rule `text` of `transfer`, as every teacher's chains do: where its token could go on in several ways,
as the texts of this step do. So a row holds the text as the student's tokenizer cuts it, which may be otherwise than it
was drawn. Positions of which nothing came through say nothing: all of them is tail, which costs the student nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate

import numpy as np

from potstill import prompts
from potstill.alignment import cross_tokenizer, text_rule_completions
from potstill.alignment.exact_rules import encode_chain_text
from potstill.inference import ScoringEngine
from potstill.models import Example
from potstill.models.score import MIN_PROBABILITY
from potstill.records import END, Chain, Prompt, StopReason, Target
from potstill.teachers import local_model
from potstill.tokenization import Tokenizer
from potstill.tokenization.encoder import Encoder, get_encoder


def rescore_across_tokenizers(
    scorer: ScoringEngine,
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
    stops: list[StopReason] = ["end" if row.target.kinds[-1] == "end" else "length" for row in rows]
    texts = [own.decode(row.target.ids) for row in rows]
    if b"\n" not in own.decode_bytes(
        own.encode("a\nb").ids
    ):  # the scorer expects the line break that the student cannot write
        texts = [prompts.restore_answer_line(text) for text in texts]
    chains = [
        Chain.from_text(row.question, place, text, source=row.format, stop=stop)
        for place, (row, text, stop) in enumerate(zip(rows, texts, stops, strict=True))
    ]
    asked = [(prompt_of(chain.question), chain) for chain in chains]
    read = local_model.score_chains(scorer, asked, candidates=candidates, budget=budget)
    known = text_rule_completions.completions(read, own)
    made = [cross_tokenizer.transfer(chain, own, "text", known, words) for chain in read]
    coder = get_encoder(own)
    return [
        # Where the tokens make no text (special ones, cut off by the budget) the row stays, and nothing is told of it.
        replace(
            row,
            target=_teacher_target(new, chain, coder)
            if len(new)
            else _target_with_rows(row.target, [{}] * len(row.target)),
        )
        for row, chain, new in zip(rows, read, made, strict=True)
    ]


def _teacher_target(target: Target, chain: Chain, coder: Encoder) -> Target:
    """The target as it teaches a student that wrote the text itself: certainties that nobody told are taken out, and
    the token that stands there is in every row, however unlikely; as tail it would cost next to nothing."""
    _, places = encode_chain_text(chain, coder)
    starts = np.array([start for start, _ in chain.spans])
    likely = np.array([dict(step)[token] for token, step in zip(chain.tokens, chain.candidates, strict=False)])
    end = dict(chain.candidates[-1]).get(END, -math.inf)
    rows = []
    for place, (token, kind) in enumerate(zip(target.ids, target.kinds, strict=True)):
        row = target.distribution(place)
        if kind == "hard" or (kind == "end" and row == {token: 1.0}):
            row = {}
        elif token not in row:
            value = end
            if kind != "end":
                value = float(likely[(starts >= places[place, 0]) & (starts < places[place, 1])].sum())
            row[token] = max(MIN_PROBABILITY, math.exp(value))
        rows.append(row)
    return _target_with_rows(target, rows)


def _target_with_rows(target: Target, rows: Sequence[Mapping[int, float]]) -> Target:
    """The target with other distributions. Of a position without one everything is tail."""
    filled = [row or {token: 0.0} for token, row in zip(target.ids, rows, strict=True)]
    return Target(
        target.ids,
        [0, *accumulate(map(len, filled))],
        [token for row in filled for token in row],
        [value for row in filled for value in row.values()],
        target.kinds,
    )
