"""The canonical text: what tokenizers leave of a text whatever they normalise, with the way back to its bytes.

    >>> found = canonical("Caf\\u00e9 \\ufb01ve\\r\\n".encode())
    >>> found.text, found.starts[3], found.ends[3]  # the accented letter has two bytes, the ligature gives two letters
    ('cafefive', 3, 5)
    >>> found.starts[4:6], found.ends[4:6]
    ([6, 6], [9, 9])

No white space (`▁` is some), no control characters, no combining marks, compatibility forms decomposed, case folded. It
only serves to find places: whether two tokens are the same is not decided by it.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from functools import lru_cache

_BAD = "\ufffd"


@dataclass(frozen=True, slots=True)
class Canonical:
    """text          letters without what tokenizers add, drop or fold
    starts, ends  of each letter: the bytes of the original that it stands for
    """

    text: str
    starts: list[int]
    ends: list[int]


def canonical(data: bytes) -> Canonical:
    """The canonical text of some bytes. Bytes that are not UTF-8 are U+FFFD, one each."""
    letters: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    at = 0
    for letter in data.decode("utf-8", "surrogateescape"):
        width = 1 if "\udc80" <= letter <= "\udcff" else len(letter.encode("utf-8"))
        for plain in _plain(letter):
            letters.append(plain)
            starts.append(at)
            ends.append(at + width)
        at += width
    return Canonical("".join(letters), starts, ends)


@lru_cache(maxsize=1 << 14)
def _plain(letter: str) -> str:
    if "\udc80" <= letter <= "\udcff":
        return _BAD
    plain = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", letter).casefold())
    return "".join(one for one in plain if unicodedata.category(one)[0] not in "CMZ" and one != "▁")
