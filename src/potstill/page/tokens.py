"""Tokens to read: a chain's text in pieces, each with the probability that its source gave it.

    >>> chain = Chain.from_tokens("q", 0, [b"12", b" eggs"], [[(b"12", -0.7), (b"15", -0.9)], [(b" eggs", -0.01)]])
    >>> [(piece.text, round(piece.probability, 2), piece.shade) for piece in pieces(chain)]
    [('12', 0.5, 3), (' eggs', 0.99, 0)]
    >>> [(other.text, round(other.probability, 2)) for other in pieces(chain)[0].candidates]
    [('12', 0.5), ('15', 0.41)]

A token may be a part of a character: tokens that are readable only together make one piece.
"""

from __future__ import annotations

import codecs
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from potstill.records import END, Candidate, Chain, End
from potstill.story import readable

SHADES: Final = (0.95, 0.8, 0.6, 0.4, 0.2)  # below the first of them a piece is shaded, below each other one darker
SHOWN: Final = 6  # candidates of a piece


@dataclass(frozen=True, slots=True)
class Other:
    """One candidate: its text, its probability, and whether it is the one that was drawn."""

    text: str
    probability: float
    drawn: bool


@dataclass(frozen=True, slots=True)
class Piece:
    """A readable piece of a chain. `probability` is None where the source gave none."""

    text: str
    probability: float | None = None
    candidates: tuple[Other, ...] = ()

    @property
    def shade(self) -> int:
        """0 for a sure piece, up to the number of `SHADES` for the least likely."""
        if self.probability is None:
            return 0
        return sum(self.probability < bound for bound in SHADES)


def pieces(chain: Chain) -> list[Piece]:
    """The text of a chain, whole and in order, and at last an empty piece for its end where that has a probability."""
    if not chain.candidates:
        return [Piece(chain.text)]
    found = [*_joined(list(_cut(chain)))]
    if len(chain.candidates) > len(chain.tokens) and chain.stop == "end":
        found.append(_piece("", END, chain.candidates[-1]))
    return found


def _cut(chain: Chain) -> Iterator[tuple[bytes, Piece]]:
    """Each token's own bytes with its piece, and what lies between tokens without one."""
    at = 0
    for (start, end), token, step in zip(chain.spans, chain.tokens, chain.candidates, strict=False):
        if start > at:
            yield chain.content[at:start], Piece("")
        yield chain.content[max(at, start) : end], _piece("", token, step)
        at = max(at, end)
    if at < len(chain.content):
        yield chain.content[at:], Piece("")


def _joined(parts: Sequence[tuple[bytes, Piece]]) -> Iterator[Piece]:
    """The pieces with their texts; one whose bytes end within a character waits for the next and lends it its odds."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    waiting: Piece | None = None
    for number, (content, piece) in enumerate(parts):
        text = decoder.decode(content, final=number == len(parts) - 1)
        if waiting is not None:
            piece = replace(waiting, probability=_times(waiting.probability, piece.probability))
        waiting = None if text or not content else piece
        if waiting is None:
            yield replace(piece, text=text)


def _times(a: float | None, b: float | None) -> float | None:
    return a if b is None else b if a is None else a * b


def _piece(text: str, drawn: bytes | End, step: Sequence[Candidate]) -> Piece:
    ranked = sorted(step, key=lambda candidate: -candidate[1])
    shown = ranked[:SHOWN] + [candidate for candidate in ranked[SHOWN:] if candidate[0] == drawn]
    others = tuple(Other(readable(what), math.exp(value), what == drawn) for what, value in shown)
    own = [other.probability for other in others if other.drawn]
    return Piece(text, own[0] if own else None, others)
