"""A chain as one line of a segment, and the line read again as far as a table needs it.

    >>> from potstill.records import END
    >>> chain = Chain.from_tokens("q1", 0, [b"4"], [[(b"4", -0.5), (END, -2.5)]])
    >>> line(chain)[:56]
    b'{"question":"q1","source":"teacher","index":0,"text":"4"'
    >>> read(line(chain)).candidates
    [[('4', -0.5), (None, -2.5)]]

What is read keeps its strings as strings: of a chain's hundreds of outcomes no bytes are made that a table puts back.
"""

from __future__ import annotations

import json
from typing import Final

import msgspec

from potstill.encoding import from_json, to_json
from potstill.files import disk
from potstill.records import Chain


class Odd(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """Bytes that are no text."""

    base64: str


class Line(msgspec.Struct, gc=False):
    """The fields of a chain as its line has them: bytes as text or `Odd`, END as None, spans only where they do not run
    from token to token."""

    question: str
    source: str
    index: int
    content: str | Odd = msgspec.field(name="text")
    tokens: list[str | Odd] = []
    spans: list[tuple[int, int]] | None = None
    candidates: list[list[tuple[str | Odd | None, float]]] = []
    stop: str = "end"
    semantics: str = "none"
    defects: list[str] = []

    def __post_init__(self) -> None:
        count = len(self.tokens)
        if (self.spans is not None and len(self.spans) != count) or len(self.candidates) not in (0, count, count + 1):
            raise ValueError("parts that do not fit each other")


_encode: Final = msgspec.json.Encoder().encode  # five times json's speed
_decode: Final = msgspec.json.Decoder(Line).decode


def line(chain: Chain) -> bytes:
    """A chain as one line. Raises ValueError for a log-probability that is no finite number."""
    row = to_json(chain)
    try:
        data = _encode(row)
    except UnicodeEncodeError:  # half of a surrogate pair in a name
        return disk.line(row)
    if b",null]" in data:  # what the encoder writes for such a number, if it is not part of a text
        return disk.line(row)
    return data + b"\n"


def read(data: bytes) -> Line | Chain:
    """The reverse of `line`. Raises KeyError, TypeError, ValueError, AttributeError, AssertionError or RecursionError
    where the line is no chain."""
    try:
        return _decode(data)
    except msgspec.DecodeError:  # stricter than the standard's reader, and says less of what is wrong
        return from_json(Chain, json.loads(data))
