"""Output to a terminal that cannot show every character: a similar one instead of a traceback.

    >>> "−0.5 × “a” → é ␣ 猫".encode("ascii", NEAREST_HANDLER)
    b'-0.5 x "a" -> e _ ?'

The C locale and PYTHONIOENCODING=ascii need it. Files and the output of `export` are always UTF-8.
"""

from __future__ import annotations

import codecs
import io
import sys
import unicodedata
from typing import Final

NEAREST_HANDLER: Final = "potstill.nearest"  # the name of the error handler
_SIMILAR: Final = {
    "\N{MINUS SIGN}": "-",
    "\N{EN DASH}": "-",
    "\N{EM DASH}": "-",
    "\N{MULTIPLICATION SIGN}": "x",
    "\N{DIVISION SIGN}": "/",
    "\N{PLUS-MINUS SIGN}": "+-",
    "\N{LEFT DOUBLE QUOTATION MARK}": '"',
    "\N{RIGHT DOUBLE QUOTATION MARK}": '"',
    "\N{LEFT SINGLE QUOTATION MARK}": "'",
    "\N{RIGHT SINGLE QUOTATION MARK}": "'",
    "\N{MATHEMATICAL LEFT ANGLE BRACKET}": "<",
    "\N{MATHEMATICAL RIGHT ANGLE BRACKET}": ">",
    "\N{RIGHTWARDS ARROW}": "->",
    "\N{LEFTWARDS ARROW}": "<-",
    "\N{RETURN SYMBOL}": "\\n",
    "\N{RIGHTWARDS ARROW TO BAR}": "\\t",
    "\N{OPEN BOX}": "_",
    "\N{EMPTY SET}": "(empty)",
    "\N{BULLET}": "*",
    "\N{MIDDLE DOT}": ".",
}


def replace_unencodable() -> None:
    """Makes standard output and error replace characters that they cannot encode."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=NEAREST_HANDLER)


def _nearest(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError), "only encoding"
    return "".join(map(_similar_character, error.object[error.start : error.end])), error.end


def _similar_character(character: str) -> str:
    if character in _SIMILAR:
        return _SIMILAR[character]
    plain = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    box = 0x2500 <= ord(character) < 0x2580
    return plain or ("-" if box and ord(character) % 4 < 2 else "|" if box else "" if _is_combining(character) else "?")


def _is_combining(character: str) -> bool:
    """Whether a character only modifies the one before it."""
    return unicodedata.category(character) in ("Mn", "Me", "Cf")


codecs.register_error(NEAREST_HANDLER, _nearest)
