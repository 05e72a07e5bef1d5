"""Entries: what a server says of each token of a text, step by step, whichever form it says it in.

>>> listing = Listing(tokens=[" 4", "token_id:17"], token_logprobs=[-0.1, -0.2])
>>> steps(Choice(text=" 4", logprobs=listing), Reader("teacher", "raw"))[1]
Step(piece=b'', name=17, value=-0.2, tops=[])
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from potstill.records import END, End, Semantics
from potstill.teachers.openai.body import Alternative, Choice, Listing, raw

Learn = Literal["both", "reasoning", "answer"]
# None: another special token, or bytes that cannot be told; empty: only bytes of an unfinished character
Piece = bytes | End | None


@dataclass(frozen=True, slots=True)
class Reader:
    """What is known of a server when its bodies are read.

    pieces  id and position in the text -> what the token means there, where the teacher's tokenizer is at hand
    ends    the strings by which the server names the end
    learn   which part of a reasoning model's answer becomes the chain
    stops   whether stop strings were sent: then a text that ends without an entry for the end was cut at one
    """

    source: str
    semantics: Semantics
    pieces: Callable[[int, int], Piece] | None = None
    ends: frozenset[str] = frozenset()
    learn: Learn = "both"
    stops: bool = False


class Step(NamedTuple):
    """One entry. `name` is its id, else its string; tops are (piece, name, log-probability or None)."""

    piece: Piece
    name: int | str
    value: float | None
    tops: Sequence[tuple[Piece, int | str, float | None]]


def steps(choice: Choice, reader: Reader) -> list[Step]:
    """The entries of a choice, in order; none where it has no log-probabilities."""
    listing = choice.logprobs
    if listing is None:
        return []
    if listing.content is not None:
        return [_entry(entry, position, reader) for position, entry in enumerate(listing.content)]
    return _parallel(listing, reader)


def _entry(entry: Alternative, position: int, reader: Reader) -> Step:
    tops = [
        (_piece(one.token, raw(one), one.id, position, reader), _name(one), one.logprob)
        for one in getattr(entry, "top_logprobs", None) or ()
    ]
    name, piece = _name(entry), _piece(entry.token, raw(entry), entry.id, position, reader)
    if isinstance(name, int) and reader.pieces is None:
        # The bytes of an entry may also hold those of entries that were left out; among the outcomes they are its own.
        piece = next((own for own, other, _ in tops if other == name), piece)
    return Step(piece, name, entry.logprob, tops)


def _parallel(listing: Listing, reader: Reader) -> list[Step]:
    tokens, values = listing.tokens or [], listing.token_logprobs or []
    tops = listing.top_logprobs or []
    found = []
    for position, token in enumerate(tokens):
        shown = (tops[position] if position < len(tops) else None) or {}
        found.append(
            Step(
                _piece(token or "", None, None, position, reader),
                _id(token or ""),
                values[position] if position < len(values) else None,
                [(_piece(what, None, None, position, reader), _id(what), value) for what, value in shown.items()],
            )
        )
    return found


def _name(one: Alternative) -> int | str:
    return one.id if one.id is not None else _id(one.token)


def _id(token: str) -> int | str:
    """vLLM writes `token_id:17` if it is asked to."""
    told = token[9:19] if token.startswith("token_id:") else ""
    return int(told) if len(token) < 20 and told.isascii() and told.isdecimal() else token


def _piece(token: str, told: bytes | None, number: int | None, position: int, reader: Reader) -> Piece:
    if number is None and isinstance(known := _id(token), int):
        number, token = known, ""
    if number is not None and reader.pieces is not None:
        return reader.pieces(number, position)
    if token in reader.ends:
        return END
    if told and (told != b"\xef\xbf\xbd" or "�" not in token):
        return told
    return token.encode("utf-8", "replace") if "�" not in token else None
