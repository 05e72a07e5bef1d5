"""Rewrites a chain before it is aligned: text, token bytes and candidates stay in step.

Characters that the student's vocabulary lacks:

    >>> times = " ×".encode()
    >>> steps = [[(b"3", 0.0)], [(times, -0.7), (b" *", -0.7)], [(b" 4", -0.1)]]
    >>> replaced = replace_characters(Chain.from_tokens("q", 0, [b"3", times, b" 4"], steps), {"×": "*"})
    >>> replaced.text, replaced.tokens, [(outcome, round(value, 3)) for outcome, value in replaced.candidates[1]]
    ('3 * 4', (b'3', b' *', b' 4'), [(b' *', -0.007)])

Without it a student whose vocabulary lacks a character (T5: `× ÷ − ~ < {`) would be taught its unknown token. A recipe
chooses what to write instead: `3 x 4` and `3 * 4` are other texts than the teacher's.

GSM8K's calculator annotations, inserted or removed:

    >>> chain = Chain.from_tokens("q", 0, [b"3 *", b" 4", b" =", b" 12", b"."], [[(b"?", -1.0)]] * 5)
    >>> annotated, certain = edit_calculator_annotations(chain, "insert")
    >>> annotated.text, annotated.tokens[3], annotated.candidates[3], certain
    ('3 * 4 = <<3*4=12>>12.', b' <<3*4=12>>12', ((b' <<3*4=12>>12', 0.0),), ((7, 20),))
    >>> edit_calculator_annotations(annotated, "remove")[0].text
    '3 * 4 = 12.'

The teacher gave no probability of an annotation, nor of the text after one. So the tokens that an annotation touches, and
the number after it, become one token that is certain: hard targets, whose spans are in `certain`.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Final, Literal

from potstill.calculator import equations
from potstill.calculator.equations import Edit
from potstill.records import END, Candidate, Chain, End

VERSION: Final = 1  # of rewritten chains; stored in the manifest of the stage that aligns
DECODE_ERRORS: Final = "surrogateescape"  # keeps bytes that are not UTF-8
CalculatorMarks = Literal["insert", "remove"]
Span = tuple[int, int]
Spans = tuple[Span, ...]
Candidates = tuple[Candidate, ...]


def prepare_chain(chain: Chain, characters: Mapping[str, str], marks: CalculatorMarks | None) -> tuple[Chain, Spans]:
    """The chain as a recipe has it aligned, or the chain itself where that changes nothing; and the spans of its content,
    in bytes, that the teacher did not write (hard targets)."""
    return edit_calculator_annotations(replace_characters(chain, characters), marks)


def edit_calculator_annotations(chain: Chain, marks: CalculatorMarks | None) -> tuple[Chain, Spans]:
    """The chain with annotations before the results of its equations, or without any; the chain itself where that
    changes nothing. And the spans of the new content, in bytes, that the rewriting made certain."""
    if marks == "insert":
        return _apply_edits(chain, equations.find_mark_insertions, ())
    certain: Spans = ()
    while marks == "remove" and b"<<" in chain.content:  # again, because an annotation may stand inside another
        before = chain
        chain, certain = _apply_edits(before, equations.find_mark_removals, certain)
        if chain is before:
            break
    return chain, certain


def _apply_edits(chain: Chain, find: Callable[[str], Sequence[Edit]], earlier: Spans) -> tuple[Chain, Spans]:
    """The chain with the edits that `find` finds in its text, and its certain spans, `earlier` ones included."""
    text = chain.content.decode("utf-8", DECODE_ERRORS)
    edits = find(text)
    if not edits:
        return chain, earlier

    def to_bytes(characters: int) -> int:
        return len(text[:characters].encode("utf-8", DECODE_ERRORS))

    in_bytes = [(to_bytes(e.start), to_bytes(e.end), e.text.encode(), to_bytes(e.number_end)) for e in edits]
    certain: list[Span] = []
    for start, end, new, until in reversed(in_bytes):  # from the back, so that the offsets before stay
        chain, span = _apply_edit(chain, start, end, new, until)
        shift = len(new) - (end - start)
        certain = [span, *((max(low + shift, span[1]), high + shift) for low, high in certain)]
    new_offset = _offset_map([(start, end) for start, end, _, _ in in_bytes], [len(new) for _, _, new, _ in in_bytes])
    certain += [(new_offset(low), new_offset(high)) for low, high in earlier]
    return chain, tuple(sorted(span for span in certain if span[1] > span[0]))


def _apply_edit(chain: Chain, start: int, end: int, new: bytes, until: int) -> tuple[Chain, Span]:
    """Bytes start to end written as `new`; the tokens that touch them and the bytes up to `until` become one certain
    token, whose span is returned."""
    touched = [i for i, (low, high) in enumerate(chain.spans) if low < until and high > start]
    low, high = start, until
    first = after = sum(span[1] <= start for span in chain.spans)
    if touched:
        first, after = touched[0], touched[-1] + 1
        low, high = min(low, chain.spans[first][0]), max(high, chain.spans[after - 1][1])
    shift = len(new) - (end - start)
    span, written = (low, high + shift), chain.content[low:start] + new + chain.content[end:high]
    token = (written, span, ((written, 0.0),)) if touched and written else None
    content = chain.content[:low] + written + chain.content[high:]
    return _splice_token(chain, first, after, token, content, shift), span


def _splice_token(
    chain: Chain,
    first: int,
    after: int,
    token: tuple[bytes, Span, Candidates] | None,
    content: bytes | None = None,
    shift: int = 0,
) -> Chain:
    """The chain with one token, or None, in place of tokens first to after - 1.

    content  the new content, with the text of the later tokens moved by `shift` bytes
    """
    tokens, spans, steps = ((part,) for part in token) if token else ((), (), ())
    return replace(
        chain,
        content=chain.content if content is None else content,
        tokens=(*chain.tokens[:first], *tokens, *chain.tokens[after:]),
        spans=(*chain.spans[:first], *spans, *((low + shift, high + shift) for low, high in chain.spans[after:])),
        candidates=(*chain.candidates[:first], *steps, *chain.candidates[after:]) if chain.candidates else (),
    )


def _offset_map(spans: Sequence[Span], lengths: Sequence[int]) -> Callable[[int], int]:
    """Maps offsets of a text to a text in which parts of it (spans in order, without overlap) have other lengths. An
    offset inside a part becomes the end of that part; so does the offset at which something was inserted."""
    ends = [end for _, end in spans]
    changes = [length - (end - start) for (start, end), length in zip(spans, lengths, strict=True)]
    shifts = list(accumulate(changes, initial=0))

    def new_offset(offset: int) -> int:
        part = bisect_right(ends, offset)
        is_inside = part < len(spans) and offset > spans[part][0]
        return ends[part] + shifts[part + 1] if is_inside else offset + shifts[part]

    return new_offset


def replace_characters(chain: Chain, characters: Mapping[str, str]) -> Chain:
    """The chain with each key of `characters` replaced by its value; the chain itself if it has none of the keys.

    Candidates that become equal are one, with the sum of their probabilities. Tokens that share a replaced character
    become one token: its candidates are those of its first part, and the continuations of the parts that were sampled,
    by the chain rule. Replaced text is not searched again.
    """
    if not characters:
        return chain
    written = {key.encode(): value.encode() for key, value in characters.items()}
    keys = re.compile(b"|".join(re.escape(key) for key in sorted(written, key=len, reverse=True)))

    def replaced(data: bytes) -> bytes:
        return keys.sub(lambda match: written[match[0]], data)

    spans = [match.span() for match in keys.finditer(chain.content)]
    merged = _merge_shared_tokens(chain, spans)
    new_offset = _offset_map(spans, [len(written[chain.content[start:end]]) for start, end in spans])
    rewritten = replace(
        merged,
        content=replaced(chain.content),
        tokens=tuple(map(replaced, merged.tokens)),
        spans=tuple((new_offset(start), new_offset(end)) for start, end in merged.spans),
        candidates=tuple(
            merge_candidates([(o if isinstance(o, End) else replaced(o), value) for o, value in step])
            for step in merged.candidates
        ),
    )
    return chain if rewritten == chain else rewritten


def _merge_shared_tokens(chain: Chain, spans: Sequence[tuple[int, int]]) -> Chain:
    """The chain with tokens merged until no span lies in more than one of them."""
    touched = [[i for i, (low, high) in enumerate(chain.spans) if low < end and high > start] for start, end in spans]
    runs: list[tuple[int, int]] = []
    for tokens in (tokens for tokens in touched if len(tokens) > 1):
        if runs and tokens[0] < runs[-1][1]:
            runs[-1] = (runs[-1][0], max(runs[-1][1], tokens[-1] + 1))
        else:
            runs.append((tokens[0], tokens[-1] + 1))
    for first, after in reversed(runs):
        span = (chain.spans[first][0], chain.spans[after - 1][1])
        step = _chain_candidates(chain.tokens[first:after], chain.candidates[first:after])
        chain = _splice_token(chain, first, after, (b"".join(chain.tokens[first:after]), span, step))
    return chain


def _chain_candidates(tokens: Sequence[bytes], steps: Sequence[Candidates]) -> Candidates:
    """The candidates of several tokens as one token, by the chain rule; none where a step does not show its own token."""
    candidates: list[Candidate] = []
    written, log_probability = b"", 0.0
    for index, (token, step) in enumerate(zip(tokens, steps, strict=False)):
        drawn = next((value for outcome, value in step if outcome == token), None)
        if drawn is None:
            return ()
        for outcome, value in step:
            if outcome is END:  # a text cannot end inside a character
                if not index:
                    candidates.append((END, value))
            elif outcome != token or index == len(tokens) - 1:
                assert isinstance(outcome, bytes)
                candidates.append((written + outcome, log_probability + value))
        written, log_probability = written + token, log_probability + drawn
    return tuple(candidates)


def merge_candidates(step: Sequence[Candidate], decimals: int | None = None) -> Candidates:
    """Each outcome once, in the order of first appearance; the probabilities of equal ones are added.

    decimals  that a sum of several is rounded to; None leaves it as it is
    """
    values: dict[bytes | End, list[float]] = {}
    for outcome, value in step:
        values.setdefault(outcome, []).append(value)
    return tuple((outcome, logs[0] if len(logs) == 1 else _log_sum(logs, decimals)) for outcome, logs in values.items())


def _log_sum(values: Sequence[float], decimals: int | None) -> float:
    """The logarithm of the sum of the exponentials, at most 0."""
    highest = max(values)
    if highest == -math.inf:
        return highest
    total = min(0.0, highest + math.log(math.fsum(math.exp(value - highest) for value in values)))
    return total if decimals is None else round(total, decimals) + 0.0  # never "-0.0"
