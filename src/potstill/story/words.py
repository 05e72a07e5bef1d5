"""Words of a story: numbers with their sign, and texts in which nothing hides."""

from __future__ import annotations

from typing import Final

from potstill.errors import visible
from potstill.records import END, End

__all__ = ["ONE_SEED", "THESE_WEIGHTS", "percent", "points", "readable", "visible"]


ONE_SEED: Final = (
    "Intervals are over questions, for one seed of each training. They do not include the variation between seeds: two"
    " runs of one recipe that differ in the seed alone can lie further apart than their interval says."
)
THESE_WEIGHTS: Final = "Intervals and p are over questions, for these weights: another seed would train others."


def points(difference: float) -> str:
    """A difference of shares in percentage points, with its sign where it is not zero.

    >>> points(0.125), points(-0.0004)
    ('+12.5', '0.0')
    """
    text = f"{100 * difference:+.1f}".replace("-", "\N{MINUS SIGN}")
    return text[1:] if text[1:] == "0.0" else text


def percent(share: float) -> str:
    """A share in percent, without the sign.

    >>> percent(0.125), percent(1.0)
    ('12.5', '100.0')
    """
    return f"{100 * share:.1f}"


def readable(what: bytes | End) -> str:
    r"""A token as one short word: white space spelt out, bytes that are no text as numbers.

    >>> readable(b" 12"), readable(b"\n"), readable(b"\xe2\x82"), readable(END), readable(b"")
    ('␣12', '⏎', 'E2 82', 'end', '∅')
    """
    if what is END:
        return "end"
    assert isinstance(what, bytes)
    try:
        text = what.decode("utf-8")
    except UnicodeDecodeError:
        return " ".join(f"{byte:02X}" for byte in what)
    return text.replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥") or "∅"
