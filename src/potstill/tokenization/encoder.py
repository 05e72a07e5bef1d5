"""Encodes a text: the token ids, and the bytes of the text that each token stands for.

    >>> from tokenizers import Tokenizer, models
    >>> tokenizer = Tokenizer(models.BPE({"a": 0, "½": 1, "ab": 2, "b": 3}, [("a", "b")]))
    >>> get_encoder(tokenizer).encode("½aab")
    Encoding(ids=[1, 0, 2], spans=[(0, 2), (2, 3), (3, 5)])

`encode(text, tokenizer)` does the same in one call. `get_encoder(tokenizer)` returns the encoder of any fast tokenizer,
without importing its library. It reads the tokenizer as JSON once and works on a private copy, in which `</s>` in a text
is text and never the end token.
"""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, Final
from unicodedata import category, normalize

import numpy as np

from potstill.errors import UserError
from potstill.tokenization.vocabulary import Vocabulary, get_model_type, parse_tokenizer_json

_TO_SPACE: Final = bytes.maketrans(b"\t\n\v\f\r", b"     ")


@dataclass(frozen=True, slots=True, repr=False)
class Encoding:
    """The tokens of a text.

    ids    [n] the token ids, without tokens that a template adds
    spans  [n] the start and end of each token in `text.encode()`. No span covers bytes that the tokenizer drops
           (whitespace); the spans of tokens that share a character overlap; a dummy space has width 0
    """

    ids: list[int]
    spans: list[tuple[int, int]]

    def __repr__(self) -> str:
        return f"Encoding(ids={reprlib.repr(self.ids)}, spans={reprlib.repr(self.spans)})"


class Encoder:
    """Encodes texts with a vocabulary.

    library  an object with `encode(text, add_special_tokens=...)` and `encode_batch`, whose results have `.ids` and
             `.offsets` (in characters). The offsets are used only if the joined pieces are not the text
    """

    def __init__(self, vocabulary: Vocabulary, library: Any) -> None:
        self.vocabulary, self.library = vocabulary, library
        self._last: tuple[str, Encoding] | None = None

    def __repr__(self) -> str:
        return f"Encoder({self.vocabulary!r})"

    def encode(self, text: str) -> Encoding:
        """The ids and byte spans of a text. Names of special tokens in it are text. Raises UserError for lone surrogates.

        The last encoding is cached, because `transfer` and then `Coverage` encode the same chain.
        """
        last = self._last
        if last is None or last[0] != text:
            data = encode_utf8(text)
            last = self._last = text, self._locate(text, data, self.library.encode(text, add_special_tokens=False))
        return last[1]

    def encode_batch(self, texts: Sequence[str]) -> list[Encoding]:
        data = [encode_utf8(text) for text in texts]
        encodings = self.library.encode_batch(list(texts), add_special_tokens=False)
        return [self._locate(*row) for row in zip(texts, data, encodings, strict=True)]

    def _locate(self, text: str, data: bytes, encoding: Any) -> Encoding:
        """The library's encoding with byte spans."""
        ids: list[int] = encoding.ids
        assert not ids or max(ids) < self.vocabulary.size, "the tokenizer gives ids beyond its vocabulary"
        pieces = self.vocabulary.split(ids)
        spelled = b"".join(pieces)
        # If the joined pieces are the text, the lengths of the pieces give the spans, which are exact even inside a
        # character. The text's whitespace may have become spaces, and whitespace at its end may be missing.
        if spelled == data or (data.translate(_TO_SPACE).startswith(spelled) and not data[len(spelled) :].strip()):
            ends = [0, *accumulate(map(len, pieces))]
            return Encoding(ids, list(pairwise(ends)))
        table = [self.vocabulary.table[token] for token in ids]
        return Encoding(ids, _repair_spans(data, table, _byte_spans(text, table, encoding.offsets)))


_recent: list[
    tuple[Any, int, Encoder]
] = []  # the last tokenizers in use: (tokenizer, its number of tokens, its encoder)
MAX_RECENT: Final = 4


def encode(text: str, tokenizer: Any) -> Encoding:
    """The ids of a text, and the bytes of the text that each token stands for, without tokens that a template adds.

    tokenizer  from `load_tokenizer`, a `tokenizers.Tokenizer`, or a fast tokenizer of transformers

    Raises UserError for any other object, and for a text with lone surrogates.
    """
    return get_encoder(tokenizer).encode(text)


def get_encoder(tokenizer: Any) -> Encoder:
    """The encoder of a potstill tokenizer, a `tokenizers.Tokenizer` or a fast tokenizer of transformers.

    It reads the tokenizer once (about 0.2 s for 32,000 pieces), and again if its number of tokens has changed. It does
    not change the tokenizer. The encoders of the last MAX_RECENT tokenizers are cached. Raises UserError for any other
    object.
    """
    encoder = getattr(tokenizer, "encoder", tokenizer)
    if isinstance(encoder, Encoder):
        return encoder
    inner = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if not hasattr(inner, "to_str"):
        raise UserError(
            "not a fast tokenizer",
            code="E-tokenizer-not-fast",
            found=type(tokenizer).__name__,
            hint="load it with potstill.load_tokenizer, tokenizers or transformers (fast)",
        )
    size = inner.get_vocab_size()
    for known, known_size, encoder in _recent:
        if known is tokenizer and known_size == size:
            return encoder
    source = json.loads(inner.to_str())
    vocabulary = parse_tokenizer_json(source, eos=getattr(tokenizer, "eos_token_id", None))
    encoder = Encoder(vocabulary, copy_without_special_tokens(source, type(inner)))
    _recent[:] = [*(row for row in _recent if row[0] is not tokenizer), (tokenizer, size, encoder)][-MAX_RECENT:]
    return encoder


def copy_without_special_tokens(source: Mapping[str, Any], library: Any) -> Any:
    """A private copy of a tokenizer that does not truncate or pad, and encodes names of special tokens as text.

    source   the tokenizer's `tokenizer.json`
    library  the class of the copy, with `from_str`, and with `encode_special_tokens` to encode names of special tokens
             as text
    """
    model, added = dict(source["model"]), list(source.get("added_tokens") or ())
    if get_model_type(model) == "Unigram":
        # Even so, a Unigram model finds `</s>` if it is a piece. Rename the piece to begin with a space: it is never found,
        # because a text has no spaces left when it reaches the model.
        dead = {token["content"] for token in added if token.get("special")}
        dead |= {model["vocab"][model["unk_id"]][0]} if model.get("unk_id") is not None else set()
        model["vocab"] = [[f" {piece}" if piece in dead else piece, score] for piece, score in model["vocab"]]
        added = [token for token in added if not token.get("special")]
    changed = {"model": model, "added_tokens": added, "truncation": None, "padding": None}
    copy = library.from_str(json.dumps({**source, **changed}))
    copy.encode_special_tokens = True
    for token in added:
        if copy.token_to_id(token["content"]) != token["id"]:
            raise UserError(
                "the id of an added token is not its id in the vocabulary",
                code="E-tokenizer-bad-added-token",
                found=f"{token['content'][:80]!r}, id {token['id']}",
                hint="download the tokenizer's files again",
            )
    return copy


def encode_utf8(text: str) -> bytes:
    """The text as UTF-8. Raises UserError if it is not a string, or contains half of a surrogate pair."""
    if not isinstance(text, str):
        raise UserError(
            "only a string can be encoded",
            code="E-tokenizer-not-text",
            found=type(text).__name__,
            hint="give a string, for example data.decode()",
        )
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            "the text is not valid Unicode: it contains half of a surrogate pair",
            code="E-tokenizer-not-unicode",
            found=ascii(text[max(0, error.start - 10) : error.end + 10]),
            hint="correct the text",
        ) from None


def _byte_spans(text: str, pieces: list[bytes | None], offsets: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The library's character offsets as byte spans, extended so that they cover all of the text except whitespace."""
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    widths = 1 + (codes >= 0x80).astype(np.int64) + (codes >= 0x800) + (codes >= 0x10000)
    byte_of = np.concatenate([[0], np.cumsum(widths)])
    spans: list[tuple[int, int]] = []
    reached = 0
    for i, (start, end) in enumerate(offsets):
        if pieces[i] == b" " and i + 1 < len(offsets) and offsets[i + 1][0] == start < end:
            end = start  # a dummy space, to which the library assigns the first character of the next token
        # Characters that the normalizer removed belong to the token before them (a combining mark, a joiner).
        while spans and reached < start and not text[reached].isspace():
            reached += 1
            spans[-1] = (spans[-1][0], int(byte_of[reached]))
        spans.append((int(byte_of[start]), int(byte_of[end])))
        reached = max(reached, end)
    while spans and reached < len(text) and not text[reached].isspace():
        reached += 1
        spans[-1] = (spans[-1][0], int(byte_of[reached]))
    return spans


def _repair_spans(data: bytes, pieces: Sequence[bytes | None], spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The spans, with wide ones in place of those that the text contradicts.

    If the normalizer removes a character and soon after replaces a character by two, the library's offsets are shifted,
    in some texts up to the end. These tokens get one common span, which covers them and their neighbours: it is too
    wide, but not wrong.
    """
    matches = [_span_matches(data, pieces, spans, i) for i in range(len(spans))]
    start = 0
    while start < len(spans):
        # The tokens up to the next one whose span is surely right. If one of their spans is wrong, all of them may be.
        end = start
        while end < len(spans) and matches[end] is not True:
            end += 1
        if False in matches[start:end]:
            low, high = max(start - 1, 0), min(end + 1, len(spans))
            shared = (min(begin for begin, _ in spans[low:high]), max(stop for _, stop in spans[low:high]))
            spans[low:high] = [shared] * (high - low)
        start = end + 1
    return spans


def _span_matches(data: bytes, pieces: Sequence[bytes | None], spans: Sequence[tuple[int, int]], i: int) -> bool | None:
    """Whether the bytes of a span are its piece. None if that is unknown, because the piece is not visible ASCII or shares
    bytes with its neighbours."""
    piece, (start, end) = pieces[i], spans[i]
    shared = (i and spans[i - 1][1] > start) or (i + 1 < len(spans) and spans[i + 1][0] < end)
    if shared or piece is None or not piece.isascii() or not (letters := piece.decode().strip().casefold()):
        return None
    return piece.strip() == data[start:end].strip() or letters == _visible_letters(data[start:end])


def _visible_letters(data: bytes) -> str:
    letters = normalize("NFKD", data.decode("utf-8", "replace"))
    return "".join(letter for letter in letters if category(letter)[0] not in "CMZ").casefold()


_PLAIN: Final = re.compile(r"[!-~]+(?: [!-~]+)*")
_VISIBLE: Final = [chr(code) for code in range(0x21, 0x7F)]
NUM_TRIAL_TEXTS: Final = 200  # texts of mixed characters on which the fast and the plain way of encoding must agree


def build_id_encoder(library: Any) -> Callable[[str], list[int]]:
    """A function from a text to its token ids, which are those of `library.encode`. It computes no offsets.

    The function is `library.encode_ids` if the library has it. Otherwise it is faster for visible ASCII with single
    spaces: there, most SentencePiece tokenizers only replace each space by `▁` and put one `▁` before the text, so the
    function calls the model directly, which takes a third to a half of the time. It does so only for a tokenizer that
    passes a test on every pair of such characters. Every other text goes through `library.encode`.
    """
    if encode_ids := getattr(library, "encode_ids", None):
        return encode_ids

    def encode(text: str) -> list[int]:
        return library.encode(text, add_special_tokens=False).ids

    split = _splits_at_spaces(library)
    if split is None:
        return encode
    tokenize = library.model.tokenize

    def encode_plain(text: str) -> list[int]:
        if not _PLAIN.fullmatch(text):
            return encode(text)
        marked = "▁" + text.replace(" ", " ▁" if split else "▁")
        return [token.id for part in marked.split(" ") for token in tokenize(part)]

    mixed = "".join(_VISIBLE[i * (i + 3) // 2 % len(_VISIBLE)] for i in range(8 * NUM_TRIAL_TEXTS))
    cuts = [(8 * i, 8 * i + i % 7 + 1, 8 * i + 8) for i in range(NUM_TRIAL_TEXTS)]
    texts = [f"{mixed[low:cut]} {mixed[cut:high]}" for low, cut, high in cuts]
    return encode_plain if all(encode_plain(text) == encode(text) for text in texts) else encode


def _splits_at_spaces(library: Any) -> bool | None:
    """Whether the model gets each word of a plain text separately; None if more than the spaces is changed before the
    model, so that it cannot be called directly."""
    steps: list[Any] = [getattr(library, name, None) for name in ("model", "normalizer", "pre_tokenizer")]
    model, normalizer, pre_tokenizer = steps
    if type(model).__name__ not in ("Unigram", "BPE") or getattr(model, "dropout", None):
        return None
    if any(not token.special for token in library.get_added_tokens_decoder().values()):
        return None
    pairs = " ".join(a + b for a in _VISIBLE for b in _VISIBLE)
    normalized = pairs if normalizer is None else normalizer.normalize_str(pairs)
    if pre_tokenizer is None:
        return False if normalized == "▁" + pairs.replace(" ", "▁") else None
    is_metaspace = type(pre_tokenizer).__name__ == "Metaspace"
    marks = is_metaspace and pre_tokenizer.replacement == "▁" and pre_tokenizer.prepend_scheme != "never"
    return bool(pre_tokenizer.split) if marks and normalized == pairs else None
