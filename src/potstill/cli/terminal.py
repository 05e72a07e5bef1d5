"""Output for a terminal that cannot show every character: the nearest one that it can, instead of a traceback.

    >>> "−0.5 × “a” → é ␣ 猫".encode("ascii", NEAREST_HANDLER)
    b'-0.5 x "a" -> e _ ?'

Such are the C locale and PYTHONIOENCODING=ascii. Files and what `export` writes are UTF-8 everywhere.
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
    """From now on standard output and error never raise for a character that they cannot write."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=NEAREST_HANDLER)


def _nearest(fault: UnicodeError) -> tuple[str, int]:
    assert isinstance(fault, UnicodeEncodeError), "only what is written"
    return "".join(map(_similar_character, fault.object[fault.start : fault.end])), fault.end


def _similar_character(character: str) -> str:
    if character in _SIMILAR:
        return _SIMILAR[character]
    plain = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    box = 0x2500 <= ord(character) < 0x2580
    return plain or ("-" if box and ord(character) % 4 < 2 else "|" if box else "" if _is_combining(character) else "?")


def _is_combining(character: str) -> bool:
    """Whether it only changes the character before it."""
    return unicodedata.category(character) in ("Mn", "Me", "Cf")


codecs.register_error(NEAREST_HANDLER, _nearest)
