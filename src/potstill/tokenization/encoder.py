"""Text to the ids of a tokenizer, with the bytes of the text that each of them stands for.

    >>> class Words:  # stands in for the library of a tokenizer
    ...     ids, offsets = [1, 0], [(0, 1), (1, 3)]
    ...     def encode(self, text, add_special_tokens):
    ...         return self
    >>> vocabulary = Vocabulary((b" b", b"a"), {}, None, None, None, False, "")
    >>> Encoder(vocabulary, Words()).encode("a\\nb")
    Encoding(ids=[1, 0], spans=[(0, 1), (1, 3)])

`fast(tokenizer)` does this for any fast tokenizer without importing its library: it reads the tokenizer as JSON once
and works on a private copy, in which the text `</s>` is text and never the end token.

The ids of words, without what an encoder does for texts: offsets, special tokens, alignment of normalised letters.

    >>> class Letters:  # stands in for the library of a tokenizer: one token a letter
    ...     def encode(self, text, add_special_tokens):
    ...         self.ids = list(text.encode())
    ...         return self
    >>> build_id_encoder(Letters())("So 4")
    [83, 111, 32, 52]

A tokenizer in the manner of SentencePiece does nothing to visible ASCII with single spaces but write `▁` for a space
and one before the text. Where that is so its model is asked directly, which takes a third to a half of the time. It is
tried on every pair of such characters, so it is known and not assumed; every other text goes the long way.
"""

from __future__ import annotations

import json
import re
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, Final
from unicodedata import category, normalize

import numpy as np

from potstill.errors import UserError
from potstill.tokenization.vocabulary import Vocabulary, get_model_type, parse_tokenizer_json

_TO_SPACE: Final = bytes.maketrans(b"\t\n\v\f\r", b"     ")


@dataclass(frozen=True, slots=True)
class Encoding:
    """ids    tokens of a text, without any that a template would add
    spans  [n] start and end in `text.encode()`. Where the tokenizer drops bytes (white space) no span covers them;
           where several tokens share a character that cannot be divided, their spans overlap; a dummy space has width 0
    """

    ids: list[int]
    spans: list[tuple[int, int]]


class Encoder:
    """A vocabulary with its encoder. `library` has `encode(text, add_special_tokens=...)` with `.ids` and `.offsets`
    (in characters), and `encode_batch`; offsets are read only where the pieces themselves do not spell the text."""

    def __init__(self, vocabulary: Vocabulary, library: Any) -> None:
        self.vocabulary, self.library = vocabulary, library
        self._last: tuple[str, Encoding] | None = None

    def encode(self, text: str) -> Encoding:
        """Ids and byte spans of a text. Names of special tokens in it are text. Raises UserError on lone surrogates.
        The last one is remembered: a chain that was transferred is asked for again when it is counted."""
        last = self._last
        if last is None or last[0] != text:
            data = encode_utf8(text)
            found = self.library.encode(text, add_special_tokens=False)
            last = self._last = text, self._located(text, data, found)
        return last[1]

    def encode_batch(self, texts: Sequence[str]) -> list[Encoding]:
        data = [encode_utf8(text) for text in texts]
        found = self.library.encode_batch(list(texts), add_special_tokens=False)
        return [self._located(*one) for one in zip(texts, data, found, strict=True)]

    def _located(self, text: str, data: bytes, found: Any) -> Encoding:
        ids: list[int] = found.ids
        assert not ids or max(ids) < self.vocabulary.size, "the tokenizer gives ids beyond its vocabulary"
        pieces = self.vocabulary.split(ids)
        spelled = b"".join(pieces)
        # The pieces spell the text, or do so once each white-space byte is a space and the last ones are dropped: then
        # their lengths are the spans, exact even inside a character.
        if spelled == data or (data.translate(_TO_SPACE).startswith(spelled) and not data[len(spelled) :].strip()):
            ends = [0, *accumulate(map(len, pieces))]
            return Encoding(ids, list(pairwise(ends)))
        table = [self.vocabulary.table[token] for token in ids]
        return Encoding(ids, _repair_spans(data, table, _byte_spans(text, table, found.offsets)))


_encoders: weakref.WeakKeyDictionary[Any, tuple[int, Encoder]] = weakref.WeakKeyDictionary()
# Of tokenizers that cannot be referred to weakly (those of the library before 0.23) the last ones are kept alive.
_recent: list[tuple[Any, tuple[int, Encoder]]] = []
MAX_RECENT: Final = 4


def get_encoder(tokenizer: Any) -> Encoder:
    """The encoder of a potstill tokenizer, a `tokenizers.Tokenizer` or a fast tokenizer of transformers.

    The tokenizer is read once (about 0.2 s for 32 thousand pieces), never changed, and remembered as long as it lives
    and its number of tokens stays the same. Raises UserError where it is none of these.
    """
    own = getattr(tokenizer, "fast", tokenizer)
    if isinstance(own, Encoder):
        return own
    inner = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if not hasattr(inner, "to_str"):
        hint = "open it with potstill.tokenization.load_tokenizer, tokenizers or transformers (fast)"
        raise UserError("not a fast tokenizer", found=type(tokenizer).__name__, hint=hint)
    size = inner.get_vocab_size()
    try:
        known = _encoders.get(tokenizer)
    except TypeError:
        known = next((found for one, found in _recent if one is tokenizer), None)
    if known is None or known[0] != size:
        source = json.loads(inner.to_str())
        vocabulary = parse_tokenizer_json(source, eos=getattr(tokenizer, "eos_token_id", None))
        known = size, Encoder(vocabulary, copy_without_special_tokens(source, type(inner)))
        try:
            _encoders[tokenizer] = known
        except TypeError:
            _recent[:] = [*((one, found) for one, found in _recent if one is not tokenizer), (tokenizer, known)][
                -MAX_RECENT:
            ]
    return known[1]


def copy_without_special_tokens(source: Mapping[str, Any], library: Any) -> Any:
    """A private copy of a tokenizer in which every text is text: no truncation, no padding, no special token by name.

    library  the class of the copy, with `from_str`; its `encode_special_tokens` makes names of special tokens text
    """
    model, added = dict(source["model"]), list(source.get("added_tokens") or ())
    if get_model_type(model) == "Unigram":
        # A Unigram model finds `</s>` as a piece even so. No text has a space when it meets the model: a dead name.
        dead = {token["content"] for token in added if token.get("special")}
        dead |= {model["vocab"][model["unk_id"]][0]} if model.get("unk_id") is not None else set()
        model["vocab"] = [[f" {piece}" if piece in dead else piece, score] for piece, score in model["vocab"]]
        added = [token for token in added if not token.get("special")]
    changed = {"model": model, "added_tokens": added, "truncation": None, "padding": None}
    copy = library.from_str(json.dumps({**source, **changed}))
    copy.encode_special_tokens = True
    for token in added:
        if copy.token_to_id(token["content"]) != token["id"]:
            found = f"{token['content'][:80]!r}, id {token['id']}"
            raise UserError("an added token has another id in the vocabulary", found=found, hint="get the file again")
    return copy


def encode_utf8(text: str) -> bytes:
    """The text as UTF-8. Raises UserError where it holds half a surrogate pair, which is no character."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        found = ascii(text[max(0, error.start - 10) : error.end + 10])
        raise UserError("the text is not Unicode: half a surrogate pair", found=found, hint="mend the text") from None


def _byte_spans(text: str, pieces: list[bytes | None], offsets: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    widths = 1 + (codes >= 0x80).astype(np.int64) + (codes >= 0x800) + (codes >= 0x10000)
    at = np.concatenate([[0], np.cumsum(widths)])
    spans: list[tuple[int, int]] = []
    reached = 0
    for place, (start, end) in enumerate(offsets):
        if pieces[place] == b" " and place + 1 < len(offsets) and offsets[place + 1][0] == start < end:
            end = start  # a dummy space: the library gives it the first character of the token after it
        # Characters that the normaliser took away belong to the token before them (a combining mark, a joiner).
        while spans and reached < start and not text[reached].isspace():
            reached += 1
            spans[-1] = (spans[-1][0], int(at[reached]))
        spans.append((int(at[start]), int(at[end])))
        reached = max(reached, end)
    while spans and reached < len(text) and not text[reached].isspace():
        reached += 1
        spans[-1] = (spans[-1][0], int(at[reached]))
    return spans


def _repair_spans(data: bytes, pieces: Sequence[bytes | None], spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans that the text does not contradict. Where the normaliser takes a character away and soon makes two of one,
    the offsets of the library stay behind, now and then for good: such tokens share what they and their neighbours
    cover, so that they lose their place and never have a false one."""
    agrees = [_span_matches(data, pieces, spans, place) for place in range(len(spans))]
    place = 0
    while place < len(spans):
        end = place
        while end < len(spans) and agrees[end] is not True:
            end += 1
        if False in agrees[place:end]:
            low, high = max(place - 1, 0), min(end + 1, len(spans))
            shared = (min(start for start, _ in spans[low:high]), max(stop for _, stop in spans[low:high]))
            spans[low:high] = [shared] * (high - low)
        place = end + 1
    return spans


def _span_matches(
    data: bytes, pieces: Sequence[bytes | None], spans: Sequence[tuple[int, int]], place: int
) -> bool | None:
    """Whether a piece is what stands at its span; None where nobody can say: not visible ASCII, or shared bytes."""
    piece, (start, end) = pieces[place], spans[place]
    shared = (place and spans[place - 1][1] > start) or (place + 1 < len(spans) and spans[place + 1][0] < end)
    if shared or piece is None or not piece.isascii() or not (shown := piece.decode().strip().casefold()):
        return None
    there = data[start:end]
    return piece.strip() == there.strip() or shown == _visible_letters(there)


def _visible_letters(data: bytes) -> str:
    letters = normalize("NFKD", data.decode("utf-8", "replace"))
    return "".join(letter for letter in letters if category(letter)[0] not in "CMZ").casefold()


_PLAIN: Final = re.compile(r"[!-~]+(?: [!-~]+)*")
_VISIBLE: Final = [chr(code) for code in range(0x21, 0x7F)]
NUM_TRIAL_TEXTS: Final = 200  # mixed texts on which both ways must agree, besides what is known of the steps


def build_id_encoder(library: Any) -> Callable[[str], list[int]]:
    """A function from a text to its ids, those of `library.encode`; `library.encode_ids` where it has that."""

    if direct := getattr(library, "encode_ids", None):
        return direct

    def whole(text: str) -> list[int]:
        return library.encode(text, add_special_tokens=False).ids

    split = _splits_at_spaces(library)
    if split is None:
        return whole
    tokenize = library.model.tokenize

    def short(text: str) -> list[int]:
        if not _PLAIN.fullmatch(text):
            return whole(text)
        marked = "▁" + text.replace(" ", " ▁" if split else "▁")
        return [token.id for part in marked.split(" ") for token in tokenize(part)]

    mixed = "".join(_VISIBLE[place * (place + 3) // 2 % len(_VISIBLE)] for place in range(8 * NUM_TRIAL_TEXTS))
    texts = [
        f"{mixed[8 * i : 8 * i + i % 7 + 1]} {mixed[8 * i + i % 7 + 1 : 8 * i + 8]}" for i in range(NUM_TRIAL_TEXTS)
    ]
    return short if all(short(text) == whole(text) for text in texts) else whole


def _splits_at_spaces(library: Any) -> bool | None:
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
