"""Where places of a text stand once parts of it are written otherwise.

>>> moved = OffsetMap([(1, 2), (4, 4)], [3, 1])  # "*" becomes 3 bytes; 1 byte is inserted before the fifth
>>> [moved.at(place) for place in range(6)]
[0, 1, 4, 5, 7, 8]

GSM8K's calculator marks put into chains, or taken out, before they are aligned.

    >>> chain = Chain.from_tokens("q", 0, [b"3 *", b" 4", b" =", b" 12", b"."], [[(b"?", -1.0)]] * 5)
    >>> made, certain = edit_calculator_annotations(chain, "insert")
    >>> made.text, made.tokens[3], made.candidates[3], certain
    ('3 * 4 = <<3*4=12>>12.', b' <<3*4=12>>12', ((b' <<3*4=12>>12', 0.0),), ((7, 20),))
    >>> edit_calculator_annotations(made, "remove")[0].text
    '3 * 4 = 12.'

The teacher never said how likely a mark is, nor what it would write behind one. So the tokens that a mark touches, and
the number behind it, become one token that is certain: hard targets, of which `certain` says where they stand.

Rewriting of a chain before it is aligned: text, token bytes and candidates in step.

    >>> times = " ×".encode()
    >>> steps = [[(b"3", 0.0)], [(times, -0.7), (b" *", -0.7)], [(b" 4", -0.1)]]
    >>> plainer = replace_characters(Chain.from_tokens("q", 0, [b"3", times, b" 4"], steps), {"×": "*"})
    >>> plainer.text, plainer.tokens, [(what, round(value, 3)) for what, value in plainer.candidates[1]]
    ('3 * 4', (b'3', b' *', b' 4'), [(b' *', -0.007)])

A student whose vocabulary lacks a character (T5: `× ÷ − ~ < {`) would be taught its unknown token. What a recipe writes
in its place is a choice: `3 x 4` and `3 * 4` are other texts than the teacher's. `marks` does the same for the marks of
a calculator.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Final, Literal

from potstill.calculator import equations
from potstill.calculator.equations import Edit
from potstill.records import END, Candidate, Chain, End


class OffsetMap:
    """places: the parts, from and to, in order and apart; lengths: what each has become.

    What lay inside of a part is its end; so is the place where something was put in.
    """

    def __init__(self, places: Sequence[tuple[int, int]], lengths: Sequence[int]) -> None:
        self.ends = [end for _, end in places]
        self.places = places
        self.shifts = [0]
        for (start, end), length in zip(places, lengths, strict=True):
            self.shifts.append(self.shifts[-1] + length - (end - start))
        assert all(a <= b for (_, a), (b, _) in pairwise(places))

    def at(self, place: int) -> int:
        number = bisect_right(self.ends, place)
        if number < len(self.places) and place > self.places[number][0]:
            return self.ends[number] + self.shifts[number + 1]
        return place + self.shifts[number]


CalculatorMarks = Literal["insert", "remove"]
Spans = tuple[tuple[int, int], ...]
DECODE_ERRORS: Final = "surrogateescape"  # bytes that are no UTF-8 stay what they are


def edit_calculator_annotations(chain: Chain, marks: CalculatorMarks | None) -> tuple[Chain, Spans]:
    """The chain with marks before the results of its sums, or without any; the chain itself where that changes nothing.

    Returned with it: the stretches of the new content, in bytes, that the rewriting made certain.
    """
    if marks == "insert":
        return _apply_edits(chain, equations.find_mark_insertions, ())
    places: Spans = ()
    if marks == "remove":
        while b"<<" in chain.content:  # a mark may stand inside of another
            before = chain
            chain, places = _apply_edits(before, equations.find_mark_removals, places)
            if chain is before:
                break
    return chain, places


def _apply_edits(chain: Chain, find: Callable[[str], Sequence[Edit]], earlier: Spans) -> tuple[Chain, Spans]:
    text = chain.content.decode("utf-8", DECODE_ERRORS)
    edits = find(text)
    if not edits:
        return chain, earlier

    def at(place: int) -> int:
        return len(text[:place].encode("utf-8", DECODE_ERRORS))

    written = [(at(each.start), at(each.end), each.text.encode(), at(each.number_end)) for each in edits]
    places: list[tuple[int, int]] = []
    for start, end, new, until in reversed(written):  # from the back, so that the places before stay
        chain, own = _apply_edit(chain, start, end, new, until)
        shift = len(new) - (end - start)
        places = [own, *((max(low + shift, own[1]), high + shift) for low, high in places)]
    moved = OffsetMap([(start, end) for start, end, _, _ in written], [len(new) for _, _, new, _ in written])
    places += [(moved.at(low), moved.at(high)) for low, high in earlier]
    return chain, tuple(sorted(place for place in places if place[1] > place[0]))


def _apply_edit(chain: Chain, start: int, end: int, new: bytes, until: int) -> tuple[Chain, tuple[int, int]]:
    """Bytes start to end written as `new`; what they and the bytes up to `until` touch is one certain token."""
    touched = [number for number, (low, high) in enumerate(chain.spans) if low < until and high > start]
    low, high = start, until
    first = behind = sum(span[1] <= start for span in chain.spans)
    if touched:
        first, behind = touched[0], touched[-1] + 1
        low, high = min(low, chain.spans[first][0]), max(high, chain.spans[behind - 1][1])
    shift = len(new) - (end - start)
    written = chain.content[low:start] + new + chain.content[end:high]
    tokens, spans, steps = (), (), ()
    if touched and written:
        tokens, spans, steps = (written,), ((low, high + shift),), (((written, 0.0),),)
    made = replace(
        chain,
        content=chain.content[:low] + written + chain.content[high:],
        tokens=(*chain.tokens[:first], *tokens, *chain.tokens[behind:]),
        spans=(*chain.spans[:first], *spans, *((a + shift, b + shift) for a, b in chain.spans[behind:])),
        candidates=(*chain.candidates[:first], *steps, *chain.candidates[behind:]) if chain.candidates else (),
    )
    return made, (low, high + shift)


VERSION: Final = 1  # of rewritten chains; stored in the manifest of the stage that aligns
Candidates = tuple[Candidate, ...]


def prepare_chain(chain: Chain, characters: Mapping[str, str], marks: CalculatorMarks | None) -> tuple[Chain, Spans]:
    """The chain as a recipe has it aligned, the chain itself where that changes nothing; and the stretches of its
    content, in bytes, that the teacher did not write: hard targets."""
    return edit_calculator_annotations(replace_characters(chain, characters), marks)


def replace_characters(chain: Chain, characters: Mapping[str, str]) -> Chain:
    """The chain with each key of `characters` written as its value, wherever it stands; the chain itself if nowhere.

    Candidates that become equal are one, with the sum of their probabilities. Tokens that share a rewritten character
    become one token: its candidates are those of its first part, and the continuations of the parts that were drawn by
    the chain rule. What is written is not looked through again.
    """
    if not characters:
        return chain
    written = {key.encode(): value.encode() for key, value in characters.items()}
    keys = re.compile(b"|".join(re.escape(key) for key in sorted(written, key=len, reverse=True)))

    def plain(data: bytes) -> bytes:
        return keys.sub(lambda found: written[found[0]], data)

    places = [found.span() for found in keys.finditer(chain.content)]
    joined = _merge_shared_tokens(chain, places)
    moved = OffsetMap(places, [len(written[chain.content[start:end]]) for start, end in places])
    made = replace(
        joined,
        content=plain(chain.content),
        tokens=tuple(map(plain, joined.tokens)),
        spans=tuple((moved.at(start), moved.at(end)) for start, end in joined.spans),
        candidates=tuple(
            merge_candidates([(what if isinstance(what, End) else plain(what), value) for what, value in step])
            for step in joined.candidates
        ),
    )
    return chain if made == chain else made


def _merge_shared_tokens(chain: Chain, places: Sequence[tuple[int, int]]) -> Chain:
    """The chain in which no place lies in more than one token."""
    owners = [[i for i, (low, high) in enumerate(chain.spans) if low < end and high > start] for start, end in places]
    runs: list[tuple[int, int]] = []
    for owner in (owner for owner in owners if len(owner) > 1):
        if runs and owner[0] < runs[-1][1]:
            runs[-1] = (runs[-1][0], max(runs[-1][1], owner[-1] + 1))
        else:
            runs.append((owner[0], owner[-1] + 1))
    for first, last in reversed(runs):
        chain = _merge_tokens(chain, first, last)
    return chain


def _merge_tokens(chain: Chain, first: int, last: int) -> Chain:
    """Tokens first to last - 1 as one."""
    steps: tuple[Candidates, ...] = ()
    if chain.candidates:
        own = _chain_candidates(chain.tokens[first:last], chain.candidates[first:last])
        steps = (*chain.candidates[:first], own, *chain.candidates[last:])
    span = (chain.spans[first][0], chain.spans[last - 1][1])
    return replace(
        chain,
        tokens=(*chain.tokens[:first], b"".join(chain.tokens[first:last]), *chain.tokens[last:]),
        spans=(*chain.spans[:first], span, *chain.spans[last:]),
        candidates=steps,
    )


def _chain_candidates(tokens: Sequence[bytes], steps: Sequence[Candidates]) -> Candidates:
    """What several steps show of the text that they make together; nothing where one does not show what was drawn."""
    found: list[Candidate] = []
    written, value = b"", 0.0
    for place, (token, step) in enumerate(zip(tokens, steps, strict=True)):
        drawn = next((value for what, value in step if what == token), None)
        if drawn is None:
            return ()
        for what, other in step:
            if what is END:  # a text that ends inside of a character is none
                if not place:
                    found.append((END, other))
            elif what != token or place == len(tokens) - 1:
                assert isinstance(what, bytes)
                found.append((written + what, value + other))
        written, value = written + token, value + drawn
    return tuple(found)


def merge_candidates(step: Sequence[Candidate], decimals: int | None = None) -> Candidates:
    """Each outcome once, in the order of first appearance; the probabilities of equal ones are added.

    decimals  that a sum is rounded to; None leaves it as it is
    """
    found: dict[bytes | End, list[float]] = {}
    for what, value in step:
        found.setdefault(what, []).append(value)
    return tuple((what, own[0] if len(own) == 1 else _log_sum(own, decimals)) for what, own in found.items())


def _log_sum(values: Sequence[float], decimals: int | None) -> float:
    highest = max(values)
    if highest == -math.inf:
        return highest
    total = min(0.0, highest + math.log(math.fsum(math.exp(value - highest) for value in values)))
    return total if decimals is None else round(total, decimals) + 0.0  # never "-0.0"
