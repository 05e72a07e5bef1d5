"""Rewriting of a chain before it is aligned: text, token bytes and candidates in step.

    >>> times = " ×".encode()
    >>> steps = [[(b"3", 0.0)], [(times, -0.7), (b" *", -0.7)], [(b" 4", -0.1)]]
    >>> plainer = rewrite(Chain.from_tokens("q", 0, [b"3", times, b" 4"], steps), {"×": "*"})
    >>> plainer.text, plainer.tokens, [(what, round(value, 3)) for what, value in plainer.candidates[1]]
    ('3 * 4', (b'3', b' *', b' 4'), [(b' *', -0.007)])

A student whose vocabulary lacks a character (T5: `× ÷ − ~ < {`) would be taught its unknown token. What a recipe writes
in its place is a choice: `3 x 4` and `3 * 4` are other texts than the teacher's. `marks` does the same for the marks of
a calculator.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from potstill.records import END, Candidate, Chain, End
from potstill.rewriting.marks import Marks, Places, with_marks
from potstill.rewriting.moved import Moved

VERSION: Final = 1  # of rewritten chains; stored in the manifest of the stage that aligns
Step = tuple[Candidate, ...]


def prepared(chain: Chain, characters: Mapping[str, str], marks: Marks | None) -> tuple[Chain, Places]:
    """The chain as a recipe has it aligned, the chain itself where that changes nothing; and the stretches of its
    content, in bytes, that the teacher did not write: hard targets."""
    return with_marks(rewrite(chain, characters), marks)


def rewrite(chain: Chain, characters: Mapping[str, str]) -> Chain:
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
    joined = _joined(chain, places)
    moved = Moved(places, [len(written[chain.content[start:end]]) for start, end in places])
    made = replace(
        joined,
        content=plain(chain.content),
        tokens=tuple(map(plain, joined.tokens)),
        spans=tuple((moved.at(start), moved.at(end)) for start, end in joined.spans),
        candidates=tuple(
            merged([(what if isinstance(what, End) else plain(what), value) for what, value in step])
            for step in joined.candidates
        ),
    )
    return chain if made == chain else made


def _joined(chain: Chain, places: Sequence[tuple[int, int]]) -> Chain:
    """The chain in which no place lies in more than one token."""
    owners = [[i for i, (low, high) in enumerate(chain.spans) if low < end and high > start] for start, end in places]
    runs: list[tuple[int, int]] = []
    for owner in (owner for owner in owners if len(owner) > 1):
        if runs and owner[0] < runs[-1][1]:
            runs[-1] = (runs[-1][0], max(runs[-1][1], owner[-1] + 1))
        else:
            runs.append((owner[0], owner[-1] + 1))
    for first, last in reversed(runs):
        chain = _one(chain, first, last)
    return chain


def _one(chain: Chain, first: int, last: int) -> Chain:
    """Tokens first to last - 1 as one."""
    steps: tuple[Step, ...] = ()
    if chain.candidates:
        own = _chained(chain.tokens[first:last], chain.candidates[first:last])
        steps = (*chain.candidates[:first], own, *chain.candidates[last:])
    span = (chain.spans[first][0], chain.spans[last - 1][1])
    return replace(
        chain,
        tokens=(*chain.tokens[:first], b"".join(chain.tokens[first:last]), *chain.tokens[last:]),
        spans=(*chain.spans[:first], span, *chain.spans[last:]),
        candidates=steps,
    )


def _chained(tokens: Sequence[bytes], steps: Sequence[Step]) -> Step:
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


def merged(step: Sequence[Candidate], decimals: int | None = None) -> Step:
    """Each outcome once, in the order of first appearance; the probabilities of equal ones are added.

    decimals  that a sum is rounded to; None leaves it as it is
    """
    found: dict[bytes | End, list[float]] = {}
    for what, value in step:
        found.setdefault(what, []).append(value)
    return tuple((what, own[0] if len(own) == 1 else _sum(own, decimals)) for what, own in found.items())


def _sum(values: Sequence[float], decimals: int | None) -> float:
    highest = max(values)
    if highest == -math.inf:
        return highest
    total = min(0.0, highest + math.log(math.fsum(math.exp(value - highest) for value in values)))
    return total if decimals is None else round(total, decimals) + 0.0  # never "-0.0"
