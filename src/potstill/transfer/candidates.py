"""What a chain's source saw at each step, and the rules that read one step at a time: `span` and `paper`.

>>> chain = Chain.from_tokens("q", 0, [b"a"], [[(b"a", -0.5), (b"b", -2.0), (b"b", -2.0)]])
>>> [{what: round(p, 3) for what, p in step.items()} for step in steps(chain)]
[{b'a': 0.607, b'b': 0.271}]
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from potstill.alignment import dtw, spans
from potstill.errors import UserError
from potstill.records import Chain, End
from potstill.vocabulary import Vocabulary

Distribution = dict[int, float]
Step = Mapping[bytes | End, float]
Outcome = TypeVar("Outcome", bound=Hashable)


def steps(chain: Chain) -> list[dict[bytes | End, float]]:
    """The probability of each outcome at each step, at most 1 together; equal outcomes are added up, and those too
    unlikely for a number are left out. Raises UserError for a log-probability that is no number."""
    made = []
    for place, step in enumerate(chain.candidates):
        row: dict[bytes | End, float] = {}
        for what, value in step:
            probability = _probability(value, chain, place)
            if probability > 0.0:
                row[what] = row[what] + probability if what in row else probability
        made.append(_bounded(row))
    return made


def _probability(value: float, chain: Chain, step: int) -> float:
    if value < 0.0:
        return math.exp(value)
    if math.isnan(value):
        do = "drop the chain, or its candidates"
        raise UserError("a log-probability is not a number", where=f"chain {chain.key} step {step}", do=do)
    return 1.0


def _bounded(row: dict[Outcome, float]) -> dict[Outcome, float]:
    """Rounded logarithms can add up to a little more than 1; a distribution cannot."""
    total = math.fsum(row.values())
    return {what: value / total for what, value in row.items()} if total > 1.0 else row


def by_spans(chain: Chain, vocabulary: Vocabulary, ids: Sequence[int], places: np.ndarray) -> dict[int, Distribution]:
    """Distributions by position: of student tokens on exactly the bytes of one teacher token, and of the end."""
    soft: dict[int, Distribution] = {}
    chunks = spans(chain.spans, places)
    for i, j, kind in zip(chunks.teacher.tolist(), chunks.student.tolist(), chunks.kinds.tolist(), strict=False):
        if kind == 0:
            known = {chain.tokens[i]: ids[j]}
            row = _distribution(chain, i, vocabulary, known, first=bool(places[j][0] == 0))
            if row:
                soft[j] = row
    # The last step speaks of the end only if nothing that the student drops stands between its last token and the end.
    touching = not len(chunks) or chunks.student[-1] > chunks.student[-2]
    if len(chain.candidates) > len(chain.tokens) and chain.stop == "end" and touching and vocabulary.eos is not None:
        row = _distribution(chain, len(chain.tokens), vocabulary, {}, first=not ids)
        if vocabulary.eos in row:
            soft[len(ids)] = row
    return soft


def by_identity(chain: Chain, vocabulary: Vocabulary, ids: Sequence[int]) -> dict[int, Distribution] | None:
    """The teacher's own distributions, where its tokens are the student's; None where the text is cut differently."""
    if [vocabulary.find(token, first=place == 0) for place, token in enumerate(chain.tokens)] != list(ids):
        return None
    soft: dict[int, Distribution] = {}
    for step in range(len(chain.candidates)):
        known = {chain.tokens[step]: ids[step]} if step < len(ids) else {}
        row = _distribution(chain, step, vocabulary, known, first=step == 0)
        if row and (step < len(ids) or vocabulary.eos in row):
            soft[step] = row
    return soft


def by_warping(chain: Chain, vocabulary: Vocabulary, ids: Sequence[int]) -> dict[int, Distribution]:
    """The published rule: exactly one teacher token, of the same string once its spaces are `▁`."""
    soft: dict[int, Distribution] = {}
    names = {token: name for name, token in vocabulary.specials.items()}
    theirs = [_string(vocabulary.bytes_of(token)) or names.get(token, "") for token in ids]
    own = [token.decode("utf-8", "replace") for token in chain.tokens]
    for j, group in enumerate(dtw(own, theirs).groups):
        if len(group) == 1 and own[group[0]].replace(" ", "▁") == theirs[j]:
            row = _distribution(chain, group[0], vocabulary, {chain.tokens[group[0]]: ids[j]}, first=False, end=False)
            if row:
                soft[j] = row
    return soft


def _string(piece: bytes | None) -> str:
    return "" if piece is None else piece.decode("utf-8", "replace").replace(" ", "▁")


def _distribution(
    chain: Chain, step: int, vocabulary: Vocabulary, known: dict[bytes, int], *, first: bool, end: bool = True
) -> Distribution:
    """What the chain's source saw at a step, by student token; empty if it saw nothing that is one.

    known  the token of the text that was really written, whatever the tokenizer made of it
    end    whether END is the student's end token, else it is tail
    """
    row: Distribution = {}
    for what, value in chain.candidates[step]:
        probability = _probability(value, chain, step)
        token = _token(what, vocabulary, known, first, end)
        if token is not None and probability > 0.0:
            row[token] = row.get(token, 0.0) + probability
    return _bounded(row)


def _token(what: bytes | End, vocabulary: Vocabulary, known: dict[bytes, int], first: bool, end: bool) -> int | None:
    if isinstance(what, End):
        return vocabulary.eos if end else None
    return known[what] if what in known else vocabulary.find(what, first)
