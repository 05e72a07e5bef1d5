"""The ids of words, without what an encoder does for texts: offsets, special tokens, alignment of normalised letters.

    >>> class Letters:  # stands in for the library of a tokenizer: one token a letter
    ...     def encode(self, text, add_special_tokens):
    ...         self.ids = list(text.encode())
    ...         return self
    >>> encoder(Letters())("So 4")
    [83, 111, 32, 52]

A tokenizer in the manner of SentencePiece does nothing to visible ASCII with single spaces but write `▁` for a space
and one before the text. Where that is so its model is asked directly, which takes a third to a half of the time. It is
tried on every pair of such characters, so it is known and not assumed; every other text goes the long way.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

_PLAIN: Final = re.compile(r"[!-~]+(?: [!-~]+)*")
_VISIBLE: Final = [chr(code) for code in range(0x21, 0x7F)]
TRIED: Final = 200  # mixed texts on which both ways must agree, besides what is known of the steps


def encoder(library: Any) -> Callable[[str], list[int]]:
    """A function from a text to its ids, those of `library.encode`; `library.encode_ids` where it has that."""

    if direct := getattr(library, "encode_ids", None):
        return direct

    def whole(text: str) -> list[int]:
        return library.encode(text, add_special_tokens=False).ids

    split = _split(library)
    if split is None:
        return whole
    tokenize = library.model.tokenize

    def short(text: str) -> list[int]:
        if not _PLAIN.fullmatch(text):
            return whole(text)
        marked = "▁" + text.replace(" ", " ▁" if split else "▁")
        return [token.id for part in marked.split(" ") for token in tokenize(part)]

    mixed = "".join(_VISIBLE[place * (place + 3) // 2 % len(_VISIBLE)] for place in range(8 * TRIED))
    texts = [f"{mixed[8 * i : 8 * i + i % 7 + 1]} {mixed[8 * i + i % 7 + 1 : 8 * i + 8]}" for i in range(TRIED)]
    return short if all(short(text) == whole(text) for text in texts) else whole


def _split(library: Any) -> bool | None:
    """Whether the model meets each part of a plain text alone; None where its spaces are not all that is changed."""
    steps: list[Any] = [getattr(library, name, None) for name in ("model", "normalizer", "pre_tokenizer")]
    model, normalizer, before = steps[0], steps[1], steps[2]
    if type(model).__name__ not in ("Unigram", "BPE") or getattr(model, "dropout", None):
        return None
    if any(not token.special for token in library.get_added_tokens_decoder().values()):
        return None
    pairs = " ".join(a + b for a in _VISIBLE for b in _VISIBLE)
    found = pairs if normalizer is None else normalizer.normalize_str(pairs)
    if before is None:
        return False if found == "▁" + pairs.replace(" ", "▁") else None
    marks = type(before).__name__ == "Metaspace" and before.replacement == "▁" and before.prepend_scheme != "never"
    return bool(before.split) if marks and found == pairs else None
