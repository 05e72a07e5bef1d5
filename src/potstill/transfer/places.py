"""The tokens of a chain's text, and where they stand in its content.

>>> original(b"a\\xff\\xe2\\x82b").tolist()  # of a\\ufffd\\ufffdb, which has eight bytes
[0, 1, 1, 1, 2, 2, 2, 4, 5]
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from potstill.records import Chain
from potstill.vocabulary import Fast

_REPLACEMENT = "\ufffd"


def encoded(chain: Chain, coder: Fast) -> tuple[list[int], np.ndarray]:
    """Ids of the chain's text, and [n, 2] their spans in its content, in bytes."""
    encoding = coder.encode(chain.text)
    places = np.asarray(encoding.spans, np.int64).reshape(-1, 2)
    if (there := original(chain.content)) is not None:
        places = there[places]
    return encoding.ids, places


def touching(places: np.ndarray, certain: Iterable[tuple[int, int]]) -> set[int]:
    """The tokens that stretches of the content touch. A token without width belongs to a stretch that begins there.

    places  [n, 2], as `encoded` gives them
    """
    low, high = places[:, 0], places[:, 1]
    found = [np.flatnonzero((low < end) & ((high > start) | (low >= start))) for start, end in certain]
    return {int(place) for own in found for place in own}


def original(content: bytes) -> np.ndarray | None:
    """Where each byte of the readable text stands in the content; None where the content is UTF-8, so the same.

    Of the three bytes of U+FFFD all stand where the bad bytes begin: a student token that ends inside it has no width.
    """
    try:
        content.decode("utf-8")
        return None
    except UnicodeDecodeError:
        pass
    places: list[int] = []
    start = 0
    for letter in content.decode("utf-8", "replace"):
        width = len(letter.encode())
        if letter == _REPLACEMENT and (bad := _bad(content[start : start + 4])):
            places += [start] * width
            start += bad
        else:
            places += range(start, start + width)
            start += width
    return np.array([*places, start], np.int64)


def _bad(data: bytes) -> int:
    """How many of the first bytes make one U+FFFD; 0 where they are a character."""
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.end if error.start == 0 else 0
    return 0
