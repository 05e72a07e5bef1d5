"""The rules `span` and `paper`, which transfer each step of the teacher alone, and functions on chains for all rules.

>>> chain = Chain.from_tokens("q", 0, [b"a"], [[(b"a", -0.5), (b"b", -2.0), (b"b", -2.0)]])
>>> [{outcome: round(p, 3) for outcome, p in step.items()} for step in step_distributions(chain)]
[{b'a': 0.607, b'b': 0.271}]

>>> original_offsets(b"a\\xff\\xe2\\x82b").tolist()  # of a\\ufffd\\ufffdb, which has eight bytes
[0, 1, 1, 1, 2, 2, 2, 4, 5]
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, TypeVar

import numpy as np

from potstill.alignment.char_spans import SpanAlignment, align_spans
from potstill.alignment.time_warping import dtw
from potstill.errors import UserError
from potstill.records import Chain, End
from potstill.tokenization.encoder import Encoder
from potstill.tokenization.vocabulary import Vocabulary

MAX_LOG_PROBABILITY: Final = 0.01  # rounding may raise a logarithm a little above 0; a larger value is a probability
Distribution = dict[int, float]
StepProbabilities = Mapping[bytes | End, float]
Outcome = TypeVar("Outcome", int, bytes | End)


def check_chain(chain: object) -> None:
    """Raises UserError unless the object is a Chain."""
    if not isinstance(chain, Chain):
        raise UserError(
            "the argument is not a chain",
            code="E-align-not-a-chain",
            found=type(chain).__name__,
            hint="make one with potstill.Chain.from_tokens or .from_text",
        )


def encode_chain_text(chain: Chain, encoder: Encoder) -> tuple[list[int], np.ndarray]:
    """The token ids of the chain's text, and their offsets [n, 2] int64 in its content, in bytes."""
    encoding = encoder.encode(chain.text)
    offsets = np.asarray(encoding.spans, np.int64).reshape(-1, 2)
    original = original_offsets(chain.content)
    return encoding.ids, offsets if original is None else original[offsets]


def tokens_in_spans(offsets: np.ndarray, spans: Iterable[tuple[int, int]]) -> set[int]:
    """The indices of the tokens that overlap one of the spans. A token without width overlaps a span that begins there.

    offsets  [n, 2] as `encode_chain_text` returns them
    """
    low, high = offsets[:, 0], offsets[:, 1]
    touched = [np.flatnonzero((low < end) & ((high > start) | (low >= start))) for start, end in spans]
    return {int(token) for tokens in touched for token in tokens}


def align_chain(chain: Chain, offsets: np.ndarray) -> SpanAlignment:
    """Align the chain's tokens with the student's tokens of its text. `offsets` [n, 2] are those of the student's tokens."""
    return align_spans(np.asarray(chain.spans, np.int64).reshape(-1, 2), offsets)


def original_offsets(content: bytes) -> np.ndarray | None:
    """[bytes of the decoded text + 1] the offset of each byte in the content; None if the content is UTF-8, so that the
    offsets are the same.

    All three bytes of a U+FFFD have the offset of the invalid bytes, so a student token that ends inside it has no width.
    """
    if not _invalid_length(content):
        return None
    offsets: list[int] = []
    start = 0
    for character in content.decode("utf-8", "replace"):
        width = len(character.encode())
        # The content itself may contain a U+FFFD.
        invalid = _invalid_length(content[start : start + 4], at_start=True) if character == "\ufffd" else 0
        offsets += [start] * width if invalid else range(start, start + width)
        start += invalid or width
    return np.array([*offsets, start], np.int64)


def _invalid_length(data: bytes, at_start: bool = False) -> int:
    """The end of the first invalid UTF-8 sequence, which decodes to one U+FFFD; 0 if there is none. With `at_start`, only
    a sequence at the start of the data counts."""
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        return 0 if at_start and error.start else error.end
    return 0


def step_distributions(chain: Chain) -> list[dict[bytes | End, float]]:
    """The probability of each outcome at each step. The probabilities of a step add up to at most 1.

    The probabilities of equal outcomes are added; outcomes whose probability is 0 in floating point are left out. Raises
    UserError if a log-probability is not a number, or is above 0 by more than a rounding error.
    """
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
    where = f"chain {chain.key} step {step}"
    if math.isnan(value):
        raise UserError(
            "a log-probability is not a number",
            code="E-align-not-a-number",
            where=where,
            hint="drop the chain, or its candidates",
        )
    if value > MAX_LOG_PROBABILITY:
        raise UserError(
            "a log-probability is above 0",
            code="E-align-not-a-log-probability",
            where=where,
            found=value,
            hint="give the natural logarithms of the probabilities",
        )
    return 1.0


def _cap_total(row: dict[Outcome, float]) -> dict[Outcome, float]:
    """Divide by the sum if it is above 1. The probabilities of rounded logarithms can add up to a little more than 1."""
    total = math.fsum(row.values())
    return {outcome: value / total for outcome, value in row.items()} if total > 1.0 else row


def apply_span_rule(
    chain: Chain, vocabulary: Vocabulary, ids: Sequence[int], offsets: np.ndarray
) -> dict[int, Distribution]:
    """The distributions by position, for student tokens on exactly the bytes of one teacher token, and for the end.

    ids, offsets  [n] and [n, 2]: the tokens of the chain's text, and their offsets in its content
    """
    soft: dict[int, Distribution] = {}
    chunks = align_chain(chain, offsets)
    for i, j, kind in zip(chunks.teacher.tolist(), chunks.student.tolist(), chunks.kinds.tolist(), strict=False):
        if kind == 0:  # "same"
            row = _student_distribution(chain, i, vocabulary, ids[j], first=bool(offsets[j][0] == 0))
            if row:
                soft[j] = row
    # The last step gives the end's distribution only if the student dropped no text after its last token.
    touching = not len(chunks) or chunks.student[-1] > chunks.student[-2]
    if len(chain.candidates) > len(chain.tokens) and chain.stop == "end" and touching and vocabulary.eos is not None:
        row = _student_distribution(chain, len(chain.tokens), vocabulary, None, first=not ids)
        if vocabulary.eos in row:
            soft[len(ids)] = row
    return soft


def apply_same_tokenizer_rule(
    chain: Chain, vocabulary: Vocabulary, ids: Sequence[int]
) -> dict[int, Distribution] | None:
    """The teacher's own distributions; None if the student's tokens of the text are not the teacher's."""
    if [vocabulary.find(token, first=i == 0) for i, token in enumerate(chain.tokens)] != list(ids):
        return None
    soft: dict[int, Distribution] = {}
    for step in range(len(chain.candidates)):
        written = ids[step] if step < len(ids) else None
        row = _student_distribution(chain, step, vocabulary, written, first=step == 0)
        if row and (written is not None or vocabulary.eos in row):
            soft[step] = row
    return soft


def apply_dtw_rule(chain: Chain, vocabulary: Vocabulary, ids: Sequence[int]) -> dict[int, Distribution]:
    """The distributions by position, by the published rule: a student token has one if it is aligned to exactly one
    teacher token and both have the same string, with the teacher's spaces written as `▁`."""
    names = {token: name for name, token in vocabulary.specials.items()}
    pieces = [(vocabulary.bytes_of(token) or b"").decode("utf-8", "replace").replace(" ", "▁") for token in ids]
    student = [piece or names.get(token, "") for piece, token in zip(pieces, ids, strict=True)]
    teacher = [token.decode("utf-8", "replace") for token in chain.tokens]
    soft: dict[int, Distribution] = {}
    for j, group in enumerate(dtw(teacher, student).groups):
        if len(group) == 1 and teacher[group[0]].replace(" ", "▁") == student[j]:
            row = _student_distribution(chain, group[0], vocabulary, ids[j], first=False, end=False)
            if row:
                soft[j] = row
    return soft


def _student_distribution(
    chain: Chain, step: int, vocabulary: Vocabulary, written: int | None, *, first: bool, end: bool = True
) -> Distribution:
    """The probabilities of a step by student token; empty if no outcome is a single student token.

    written  the student's token at this position, which counts for the sampled token even if their bytes differ; None at
             the end of the text
    first    whether the position is the start of the text
    end      whether END counts for the student's end token; otherwise it is tail
    """
    sampled = None if written is None else chain.tokens[step]
    row: Distribution = {}
    for outcome, value in chain.candidates[step]:
        probability = _to_probability(value, chain, step)
        if isinstance(outcome, End):
            token = vocabulary.eos if end else None
        else:
            token = written if outcome == sampled else vocabulary.find(outcome, first)
        if token is not None and probability > 0.0:
            row[token] = row.get(token, 0.0) + probability
    return _cap_total(row)
