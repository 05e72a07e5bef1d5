"""The tokens of a chain's text, and where they stand in its content.

>>> original_offsets(b"a\\xff\\xe2\\x82b").tolist()  # of a\\ufffd\\ufffdb, which has eight bytes
[0, 1, 1, 1, 2, 2, 2, 4, 5]

What a chain's source saw at each step, and the rules that read one step at a time: `span` and `paper`.

>>> chain = Chain.from_tokens("q", 0, [b"a"], [[(b"a", -0.5), (b"b", -2.0), (b"b", -2.0)]])
>>> [{what: round(p, 3) for what, p in step.items()} for step in step_distributions(chain)]
[{b'a': 0.607, b'b': 0.271}]
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from potstill.alignment import dtw, spans
from potstill.errors import UserError
from potstill.records import Chain, End
from potstill.tokenization.encoder import Encoder
from potstill.tokenization.vocabulary import Vocabulary

_REPLACEMENT = "\ufffd"


def encode_chain_text(chain: Chain, coder: Encoder) -> tuple[list[int], np.ndarray]:
    """Ids of the chain's text, and [n, 2] their spans in its content, in bytes."""
    encoding = coder.encode(chain.text)
    places = np.asarray(encoding.spans, np.int64).reshape(-1, 2)
    if (there := original_offsets(chain.content)) is not None:
        places = there[places]
    return encoding.ids, places


def tokens_in_spans(places: np.ndarray, certain: Iterable[tuple[int, int]]) -> set[int]:
    """The tokens that stretches of the content touch. A token without width belongs to a stretch that begins there.

    places  [n, 2], as `encoded` gives them
    """
    low, high = places[:, 0], places[:, 1]
    found = [np.flatnonzero((low < end) & ((high > start) | (low >= start))) for start, end in certain]
    return {int(place) for own in found for place in own}


def original_offsets(content: bytes) -> np.ndarray | None:
    """Where each byte of the readable text stands in the content; None where the content is UTF-8, so the same.

    Of the three bytes of U+FFFD all stand where the bad bytes begin: a student token that ends inside it has no width.
    """
    try:
        content.decode("utf-8")
        return None
    except UnicodeDecodeError:
        pass
    places: list[int] = []
    start = 0
    for letter in content.decode("utf-8", "replace"):
        width = len(letter.encode())
        if letter == _REPLACEMENT and (bad := _invalid_prefix_length(content[start : start + 4])):
            places += [start] * width
            start += bad
        else:
            places += range(start, start + width)
            start += width
    return np.array([*places, start], np.int64)


def _invalid_prefix_length(data: bytes) -> int:
    """How many of the first bytes make one U+FFFD; 0 where they are a character."""
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.end if error.start == 0 else 0
    return 0


Distribution = dict[int, float]
StepProbabilities = Mapping[bytes | End, float]
Outcome = TypeVar("Outcome", bound=Hashable)


def step_distributions(chain: Chain) -> list[dict[bytes | End, float]]:
    """The probability of each outcome at each step, at most 1 together; equal outcomes are added up, and those too
    unlikely for a number are left out. Raises UserError for a log-probability that is no number."""
    made = []
    for place, step in enumerate(chain.candidates):
        row: dict[bytes | End, float] = {}
        for what, value in step:
            probability = _to_probability(value, chain, place)
            if probability > 0.0:
                row[what] = row[what] + probability if what in row else probability
        made.append(_cap_total(row))
    return made


def _to_probability(value: float, chain: Chain, step: int) -> float:
    if value < 0.0:
        return math.exp(value)
    if math.isnan(value):
        hint = "drop the chain, or its candidates"
        raise UserError("a log-probability is not a number", where=f"chain {chain.key} step {step}", hint=hint)
    return 1.0


def _cap_total(row: dict[Outcome, float]) -> dict[Outcome, float]:
    """Rounded logarithms can add up to a little more than 1; a distribution cannot."""
    total = math.fsum(row.values())
    return {what: value / total for what, value in row.items()} if total > 1.0 else row


def apply_span_rule(
    chain: Chain, vocabulary: Vocabulary, ids: Sequence[int], places: np.ndarray
) -> dict[int, Distribution]:
    """Distributions by position: of student tokens on exactly the bytes of one teacher token, and of the end."""
    soft: dict[int, Distribution] = {}
    chunks = spans(chain.spans, places)
    for i, j, kind in zip(chunks.teacher.tolist(), chunks.student.tolist(), chunks.kinds.tolist(), strict=False):
        if kind == 0:
            known = {chain.tokens[i]: ids[j]}
            row = _student_distribution(chain, i, vocabulary, known, first=bool(places[j][0] == 0))
            if row:
                soft[j] = row
    # The last step speaks of the end only if nothing that the student drops stands between its last token and the end.
    touching = not len(chunks) or chunks.student[-1] > chunks.student[-2]
    if len(chain.candidates) > len(chain.tokens) and chain.stop == "end" and touching and vocabulary.eos is not None:
        row = _student_distribution(chain, len(chain.tokens), vocabulary, {}, first=not ids)
        if vocabulary.eos in row:
            soft[len(ids)] = row
    return soft


def apply_same_tokenizer_rule(
    chain: Chain, vocabulary: Vocabulary, ids: Sequence[int]
) -> dict[int, Distribution] | None:
    """The teacher's own distributions, where its tokens are the student's; None where the text is cut differently."""
    if [vocabulary.find(token, first=place == 0) for place, token in enumerate(chain.tokens)] != list(ids):
        return None
    soft: dict[int, Distribution] = {}
    for step in range(len(chain.candidates)):
        known = {chain.tokens[step]: ids[step]} if step < len(ids) else {}
        row = _student_distribution(chain, step, vocabulary, known, first=step == 0)
        if row and (step < len(ids) or vocabulary.eos in row):
            soft[step] = row
    return soft


def apply_dtw_rule(chain: Chain, vocabulary: Vocabulary, ids: Sequence[int]) -> dict[int, Distribution]:
    """The published rule: exactly one teacher token, of the same string once its spaces are `▁`."""
    soft: dict[int, Distribution] = {}
    names = {token: name for name, token in vocabulary.specials.items()}
    theirs = [_piece_string(vocabulary.bytes_of(token)) or names.get(token, "") for token in ids]
    own = [token.decode("utf-8", "replace") for token in chain.tokens]
    for j, group in enumerate(dtw(own, theirs).groups):
        if len(group) == 1 and own[group[0]].replace(" ", "▁") == theirs[j]:
            row = _student_distribution(
                chain, group[0], vocabulary, {chain.tokens[group[0]]: ids[j]}, first=False, end=False
            )
            if row:
                soft[j] = row
    return soft


def _piece_string(piece: bytes | None) -> str:
    return "" if piece is None else piece.decode("utf-8", "replace").replace(" ", "▁")


def _student_distribution(
    chain: Chain, step: int, vocabulary: Vocabulary, known: dict[bytes, int], *, first: bool, end: bool = True
) -> Distribution:
    """What the chain's source saw at a step, by student token; empty if it saw nothing that is one.

    known  the token of the text that was really written, whatever the tokenizer made of it
    end    whether END is the student's end token, else it is tail
    """
    row: Distribution = {}
    for what, value in chain.candidates[step]:
        probability = _to_probability(value, chain, step)
        token = _outcome_token(what, vocabulary, known, first, end)
        if token is not None and probability > 0.0:
            row[token] = row.get(token, 0.0) + probability
    return _cap_total(row)


def _outcome_token(
    what: bytes | End, vocabulary: Vocabulary, known: dict[bytes, int], first: bool, end: bool
) -> int | None:
    if isinstance(what, End):
        return vocabulary.eos if end else None
    return known[what] if what in known else vocabulary.find(what, first)
