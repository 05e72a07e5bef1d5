"""Rewrites a chain before it is aligned. Text, tokens and candidates are changed together.

Characters that the student's vocabulary lacks:

    >>> times = " ×".encode()
    >>> steps = [[(b"3", 0.0)], [(times, -0.7), (b" *", -0.7)], [(b" 4", -0.1)]]
    >>> replaced = replace_characters(Chain.from_tokens("q", 0, [b"3", times, b" 4"], steps), {"×": "*"})
    >>> replaced.text, replaced.tokens, [(outcome, round(value, 3)) for outcome, value in replaced.candidates[1]]
    ('3 * 4', (b'3', b' *', b' 4'), [(b' *', -0.007)])

Without this, a student whose vocabulary lacks a character (T5: `× ÷ − ~ < {`) would learn to write its unknown token. The
recipe chooses the replacement, because `3 x 4` or `3 * 4` is not the teacher's text.

GSM8K's calculator annotations, inserted or removed:

    >>> chain = Chain.from_tokens("q", 0, [b"3 *", b" 4", b" =", b" 12", b"."], [[(b"?", -1.0)]] * 5)
    >>> annotated, certain = edit_calculator_annotations(chain, "insert")
    >>> annotated.text, annotated.tokens[3], annotated.candidates[3], certain
    ('3 * 4 = <<3*4=12>>12.', b' <<3*4=12>>12', ((b' <<3*4=12>>12', 0.0),), ((7, 20),))
    >>> edit_calculator_annotations(annotated, "remove")[0].text
    '3 * 4 = 12.'

The teacher gave no probability of an annotation, or of text after an annotation. So the annotation, the tokens that it
touches and the number after it become one token with probability 1. Its span is in `certain`, and its targets are hard.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Final, Literal, NamedTuple

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
    """The chain with the changes of a recipe, and the spans of its content, in bytes, that the teacher did not write,
    whose targets are hard. The chain is the same object if nothing changes."""
    return edit_calculator_annotations(replace_characters(chain, characters), marks)


def edit_calculator_annotations(chain: Chain, marks: CalculatorMarks | None) -> tuple[Chain, Spans]:
    """Insert an annotation before the result of each equation, or remove all annotations.

    Returns the chain, which is the same object if nothing changes, and the spans of the new content, in bytes, that the
    rewriting made certain.
    """
    if marks == "insert":
        return _apply_edits(chain, equations.find_mark_insertions, ())
    certain: Spans = ()
    while marks == "remove" and b"<<" in chain.content:  # repeated, because an annotation may contain another one
        before = chain
        chain, certain = _apply_edits(before, equations.find_mark_removals, certain)
        if chain is before:
            break
    return chain, certain


def _apply_edits(chain: Chain, find: Callable[[str], Sequence[Edit]], earlier: Spans) -> tuple[Chain, Spans]:
    """The chain with the edits that `find` returns for its text, and its certain spans, including the `earlier` ones.

    Takes time proportional to the length of the chain: edits that share no token are applied to separate pieces of it.
    """
    text = chain.content.decode("utf-8", DECODE_ERRORS)
    edits = find(text)
    if not edits:
        return chain, earlier
    to_bytes = _byte_offsets(text, [offset for edit in edits for offset in (edit.start, edit.end, edit.number_end)])
    in_bytes = [(to_bytes[e.start], to_bytes[e.end], e.text.encode(), to_bytes[e.number_end]) for e in edits]
    pieces, certain = _Pieces(chain), list[Span]()
    for region, members in _group_edits(chain, in_bytes):
        low = region.low
        piece, spans = _chain_piece(chain, region), list[Span]()
        for start, end, new, until in reversed(members):  # the last edit first, so that the others' offsets stay valid
            piece, span = _apply_edit(piece, start - low, end - low, new, until - low)
            shift = len(new) - (end - start)
            spans = [span, *((max(first + shift, span[1]), last + shift) for first, last in spans)]
        moved = pieces.replace(region, piece)
        certain += [(first + moved, last + moved) for first, last in spans]
    new_offset = _offset_map([(start, end) for start, end, _, _ in in_bytes], [len(new) for _, _, new, _ in in_bytes])
    certain += [(new_offset(low), new_offset(high)) for low, high in earlier]
    return pieces.join(), tuple(sorted(span for span in certain if span[1] > span[0]))


def _byte_offsets(text: str, offsets: Iterable[int]) -> dict[int, int]:
    """Offset in characters -> offset in bytes, for these offsets of a text."""
    places, position, size = dict[int, int](), 0, 0
    for offset in sorted(set(offsets)):
        size += len(text[position:offset].encode("utf-8", DECODE_ERRORS))
        places[offset], position = size, offset
    return places


class _Region(NamedTuple):
    """A part of a chain: its bytes from `low` to `high`, and its tokens from `first` up to but not including `after`."""

    low: int
    high: int
    first: int
    after: int


def _find_region(chain: Chain, start: int, end: int) -> _Region:
    """The tokens that touch the bytes from `start` to `end`, and these bytes together with those of the tokens."""
    first = bisect_right(chain.spans, start, key=lambda span: span[1])
    after = max(first, bisect_left(chain.spans, end, key=lambda span: span[0]))
    if first == after:
        return _Region(start, end, first, after)
    return _Region(min(start, chain.spans[first][0]), max(end, chain.spans[after - 1][1]), first, after)


def _group_edits(
    chain: Chain, edits: Sequence[tuple[int, int, bytes, int]]
) -> Iterator[tuple[_Region, list[tuple[int, int, bytes, int]]]]:
    """The regions of a chain that edits change, in order, each with its edits. Edits whose regions overlap have one region.

    edits  start, end, new bytes, and the end of the number after them, as for `_apply_edit`
    """
    group: list[tuple[int, int, bytes, int]] = []
    region = _Region(0, 0, 0, 0)
    for edit in edits:
        own = _find_region(chain, edit[0], edit[3])
        if group and own.low >= region.high and own.first >= region.after:
            yield region, group
            group = []
        if group:
            region = _Region(
                min(region.low, own.low),
                max(region.high, own.high),
                min(region.first, own.first),
                max(region.after, own.after),
            )
        else:
            region = own
        group.append(edit)
    yield region, group


def _chain_piece(chain: Chain, region: _Region) -> Chain:
    """A region of a chain as a chain, with offsets that count from the start of the region."""
    low, high, first, after = region
    return replace(
        chain,
        content=chain.content[low:high],
        tokens=chain.tokens[first:after],
        spans=tuple((start - low, end - low) for start, end in chain.spans[first:after]),
        candidates=chain.candidates[first:after],
    )


class _Pieces:
    """A chain of which regions are replaced, from the first to the last, in time proportional to its length."""

    def __init__(self, chain: Chain) -> None:
        self.chain, self.low, self.first, self.shift = chain, 0, 0, 0
        self.content: list[bytes] = []
        self.tokens: list[bytes] = []
        self.spans: list[Span] = []
        self.candidates: list[Candidates] = []

    def replace(self, region: _Region, piece: Chain) -> int:
        """Replace a region by a piece. Returns the offset of the piece in the new content."""
        self._copy_until(region.low, region.first)
        start = region.low + self.shift
        self.content.append(piece.content)
        self.tokens += piece.tokens
        self.spans += [(low + start, high + start) for low, high in piece.spans]
        self.candidates += piece.candidates
        self.low, self.first = region.high, region.after
        self.shift += len(piece.content) - (region.high - region.low)
        return start

    def join(self) -> Chain:
        """The chain with all replacements."""
        self._copy_until(len(self.chain.content), max(len(self.chain.tokens), len(self.chain.candidates)))
        return replace(
            self.chain,
            content=b"".join(self.content),
            tokens=tuple(self.tokens),
            spans=tuple(self.spans),
            candidates=tuple(self.candidates),
        )

    def _copy_until(self, low: int, first: int) -> None:
        """Copy what lies before the byte `low` and the token `first`."""
        chain = self.chain
        self.content.append(chain.content[self.low : low])
        self.tokens += chain.tokens[self.first : first]
        self.spans += [(start + self.shift, end + self.shift) for start, end in chain.spans[self.first : first]]
        self.candidates += chain.candidates[self.first : first]


def _apply_edit(chain: Chain, start: int, end: int, new: bytes, until: int) -> tuple[Chain, Span]:
    """Replace the bytes from `start` to `end` by `new`. The tokens that touch the bytes from `start` to `until` become one
    certain token. Returns the chain and the span of this token."""
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
    """Replace the tokens from `first` up to but not including `after` by one token.

    token    bytes, span and candidates of the new token; None removes the tokens
    content  the new content; None keeps the chain's
    shift    the number of bytes by which the spans of later tokens move
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
    """A function from offsets in a text to offsets in the edited text, in which each span has its new length.

    The spans are in order and do not overlap. An offset inside a span is mapped to the end of the new text of the span;
    an offset at which text was inserted is mapped to the end of the inserted text.
    """
    ends = [end for _, end in spans]
    changes = [length - (end - start) for (start, end), length in zip(spans, lengths, strict=True)]
    shifts = list(accumulate(changes, initial=0))

    def new_offset(offset: int) -> int:
        part = bisect_right(ends, offset)
        is_inside = part < len(spans) and offset > spans[part][0]
        return ends[part] + shifts[part + 1] if is_inside else offset + shifts[part]

    return new_offset


def replace_characters(chain: Chain, characters: Mapping[str, str]) -> Chain:
    """The chain with each key of `characters` replaced by its value; the same object if the chain contains no key.

    Candidates that become equal are merged, and their probabilities are added. Tokens that share a replaced character
    become one token. A candidate of a later part is then written after the sampled parts before it, and its probability
    is multiplied by their probabilities (chain rule). Replaced text is not searched again.
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
    """The chain with tokens merged so that each span lies in one token."""
    runs: list[_Region] = []
    for start, end in spans:
        region = _find_region(chain, start, end)
        if region.after - region.first < 2:
            continue
        if runs and region.first < runs[-1].after:
            region = _Region(runs[-1].low, region.high, runs[-1].first, max(runs[-1].after, region.after))
            runs.pop()
        runs.append(region)
    pieces = _Pieces(chain)
    for region in runs:
        piece = _chain_piece(chain, region)
        step = _chain_candidates(piece.tokens, piece.candidates)
        token = (b"".join(piece.tokens), (piece.spans[0][0], piece.spans[-1][1]), step)
        pieces.replace(region, _splice_token(piece, 0, len(piece.tokens), token))
    return pieces.join() if runs else chain


def _chain_candidates(tokens: Sequence[bytes], steps: Sequence[Candidates]) -> Candidates:
    """The candidates of several tokens merged into one, by the chain rule; empty if a step lacks its own token."""
    candidates: list[Candidate] = []
    written, log_probability = b"", 0.0
    for index, (token, step) in enumerate(zip(tokens, steps, strict=False)):
        drawn = next((value for outcome, value in step if outcome == token), None)
        if drawn is None:
            return ()
        for outcome, value in step:
            if outcome is END:  # after the first part it is dropped: a text cannot end inside a character
                if not index:
                    candidates.append((END, value))
            elif outcome != token or index == len(tokens) - 1:
                assert isinstance(outcome, bytes)
                candidates.append((written + outcome, log_probability + value))
        written, log_probability = written + token, log_probability + drawn
    return tuple(candidates)


def merge_candidates(step: Sequence[Candidate], decimals: int | None = None) -> Candidates:
    """Merge equal outcomes and add their probabilities. The outcomes keep the order of their first appearance.

    step      outcomes with natural log-probabilities
    decimals  round the log-probability of merged outcomes to so many decimals; None does not round
    """
    values: dict[bytes | End, list[float]] = {}
    for outcome, value in step:
        values.setdefault(outcome, []).append(value)
    return tuple((outcome, logs[0] if len(logs) == 1 else _log_sum(logs, decimals)) for outcome, logs in values.items())


def _log_sum(values: Sequence[float], decimals: int | None) -> float:
    """The natural logarithm of the sum of the exponentials, at most 0."""
    highest = max(values)
    if highest == -math.inf:
        return highest
    total = min(0.0, highest + math.log(math.fsum(math.exp(value - highest) for value in values)))
    return total if decimals is None else round(total, decimals) + 0.0  # never "-0.0"
