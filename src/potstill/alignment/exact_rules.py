"""The rules that read one step of the teacher at a time (`span`, `paper`), and what all rules read of a chain.

>>> chain = Chain.from_tokens("q", 0, [b"a"], [[(b"a", -0.5), (b"b", -2.0), (b"b", -2.0)]])
>>> [{outcome: round(p, 3) for outcome, p in step.items()} for step in step_distributions(chain)]
[{b'a': 0.607, b'b': 0.271}]

>>> original_offsets(b"a\\xff\\xe2\\x82b").tolist()  # of a\\ufffd\\ufffdb, which has eight bytes
[0, 1, 1, 1, 2, 2, 2, 4, 5]
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Final, TypeVar

import numpy as np

from potstill.alignment.char_spans import align_spans
from potstill.alignment.time_warping import dtw
from potstill.errors import UserError
from potstill.records import Chain, End
from potstill.tokenization.encoder import Encoder
from potstill.tokenization.vocabulary import Vocabulary

_REPLACEMENT = "\ufffd"
MAX_LOG_PROBABILITY: Final = 0.01  # a larger value is not a rounded 0, but a probability
Distribution = dict[int, float]
StepProbabilities = Mapping[bytes | End, float]
Outcome = TypeVar("Outcome", bound=Hashable)


def encode_chain_text(chain: Chain, encoder: Encoder) -> tuple[list[int], np.ndarray]:
    """Ids of the chain's text, and [n, 2] int64 their offsets in its content, in bytes."""
    encoding = encoder.encode(chain.text)
    offsets = np.asarray(encoding.spans, np.int64).reshape(-1, 2)
    if (original := original_offsets(chain.content)) is not None:
        offsets = original[offsets]
    return encoding.ids, offsets


def tokens_in_spans(offsets: np.ndarray, spans: Iterable[tuple[int, int]]) -> set[int]:
    """The tokens that some spans of the content touch. A token without width belongs to a span that begins there.

    offsets  [n, 2] as `encode_chain_text` returns them
    """
    low, high = offsets[:, 0], offsets[:, 1]
    touched = [np.flatnonzero((low < end) & ((high > start) | (low >= start))) for start, end in spans]
    return {int(token) for tokens in touched for token in tokens}


def original_offsets(content: bytes) -> np.ndarray | None:
    """[bytes of the readable text + 1] the offset of each byte in the content; None where the content is UTF-8, so that
    they are the same.

    All three bytes of a U+FFFD lie where the invalid bytes begin: a student token that ends inside it has no width.
    """
    try:
        content.decode("utf-8")
        return None
    except UnicodeDecodeError:
        pass
    offsets: list[int] = []
    start = 0
    for character in content.decode("utf-8", "replace"):
        width = len(character.encode())
        if character == _REPLACEMENT and (invalid := _invalid_prefix_length(content[start : start + 4])):
            offsets += [start] * width
            start += invalid
        else:
            offsets += range(start, start + width)
            start += width
    return np.array([*offsets, start], np.int64)


def _invalid_prefix_length(data: bytes) -> int:
    """How many of the first bytes make one U+FFFD; 0 where they are a character."""
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.end if error.start == 0 else 0
    return 0


def step_distributions(chain: Chain) -> list[dict[bytes | End, float]]:
    """The probability of each outcome at each step, at most 1 in sum. Equal outcomes are added up; those whose
    probability is below the smallest number are left out. Raises UserError for a log-probability that is not a number, or
    above 0 by more than rounding."""
    steps = []
    for index, candidates in enumerate(chain.candidates):
        row: dict[bytes | End, float] = {}
        for outcome, value in candidates:
            probability = _to_probability(value, chain, index)
            if probability > 0.0:
                row[outcome] = row[outcome] + probability if outcome in row else probability
        steps.append(_cap_total(row))
    return steps


def _to_probability(value: float, chain: Chain, step: int) -> float:
    if value < 0.0:
        return math.exp(value)
    if math.isnan(value):
        raise UserError(
            "a log-probability is not a number",
            code="E-align-not-a-number",
            where=f"chain {chain.key} step {step}",
            hint="drop the chain, or its candidates",
        )
    if value > MAX_LOG_PROBABILITY:
        raise UserError(
            "a log-probability is above 0",
            code="E-align-not-a-log-probability",
            where=f"chain {chain.key} step {step}",
            found=value,
            hint="give natural logarithms of probabilities, not probabilities",
        )
    return 1.0


def _cap_total(row: dict[Outcome, float]) -> dict[Outcome, float]:
    """Rounded logarithms can add up to a little more than 1; a distribution cannot."""
    total = math.fsum(row.values())
    return {outcome: value / total for outcome, value in row.items()} if total > 1.0 else row


def apply_span_rule(
    chain: Chain, vocabulary: Vocabulary, ids: Sequence[int], offsets: np.ndarray
) -> dict[int, Distribution]:
    """Distributions by position: of student tokens on exactly the bytes of one teacher token, and of the end.

    ids, offsets  the tokens of the chain's text and their offsets in its content
    """
    soft: dict[int, Distribution] = {}
    chunks = align_spans(np.asarray(chain.spans, np.int64).reshape(-1, 2), offsets)
    for i, j, kind in zip(chunks.teacher.tolist(), chunks.student.tolist(), chunks.kinds.tolist(), strict=False):
        if kind == 0:  # "same"
            known = {chain.tokens[i]: ids[j]}
            row = _student_distribution(chain, i, vocabulary, known, first=bool(offsets[j][0] == 0))
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
    if [vocabulary.find(token, first=i == 0) for i, token in enumerate(chain.tokens)] != list(ids):
        return None
    soft: dict[int, Distribution] = {}
    for step in range(len(chain.candidates)):
        known = {chain.tokens[step]: ids[step]} if step < len(ids) else {}
        row = _student_distribution(chain, step, vocabulary, known, first=step == 0)
        if row and (step < len(ids) or vocabulary.eos in row):
            soft[step] = row
    return soft


def apply_dtw_rule(chain: Chain, vocabulary: Vocabulary, ids: Sequence[int]) -> dict[int, Distribution]:
    """The published rule: student tokens that are aligned to exactly one teacher token, of the same string once its
    spaces are `▁`."""
    soft: dict[int, Distribution] = {}
    names = {token: name for name, token in vocabulary.specials.items()}
    student = [_piece_string(vocabulary.bytes_of(token)) or names.get(token, "") for token in ids]
    teacher = [token.decode("utf-8", "replace") for token in chain.tokens]
    for j, group in enumerate(dtw(teacher, student).groups):
        if len(group) == 1 and teacher[group[0]].replace(" ", "▁") == student[j]:
            known = {chain.tokens[group[0]]: ids[j]}
            row = _student_distribution(chain, group[0], vocabulary, known, first=False, end=False)
            if row:
                soft[j] = row
    return soft


def _piece_string(piece: bytes | None) -> str:
    return "" if piece is None else piece.decode("utf-8", "replace").replace(" ", "▁")


def _student_distribution(
    chain: Chain, step: int, vocabulary: Vocabulary, known: dict[bytes, int], *, first: bool, end: bool = True
) -> Distribution:
    """What the chain's source saw at a step, by student token; empty if it saw nothing that is one token.

    known  the token of the text that was really written, whatever the tokenizer made of it
    first  whether the position is the start of the text
    end    whether END is the student's end token, else it is tail
    """
    row: Distribution = {}
    for outcome, value in chain.candidates[step]:
        probability = _to_probability(value, chain, step)
        token = _outcome_token(outcome, vocabulary, known, first, end)
        if token is not None and probability > 0.0:
            row[token] = row.get(token, 0.0) + probability
    return _cap_total(row)


def _outcome_token(
    outcome: bytes | End, vocabulary: Vocabulary, known: dict[bytes, int], first: bool, end: bool
) -> int | None:
    if isinstance(outcome, End):
        return vocabulary.eos if end else None
    return known[outcome] if outcome in known else vocabulary.find(outcome, first)
