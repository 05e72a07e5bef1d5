"""The vocabulary of a tokenizer as a plain value: the bytes of every token, the special tokens and a digest.

>>> pieces = [["</s>", 0], ["<pad>", 0], ["<unk>", 0], ["▁We", -1], ["ng", -2]]
>>> added = [{"id": 0, "content": "</s>", "special": True}, {"id": 1, "content": "<pad>", "special": True}]
>>> metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first"}
>>> model = {"type": "Unigram", "unk_id": 2, "vocab": pieces}
>>> vocabulary = parse_tokenizer_json({"model": model, "pre_tokenizer": metaspace, "added_tokens": added})
>>> vocabulary.bytes_of(3), vocabulary.bytes_of(0), vocabulary.eos, vocabulary.unk, vocabulary.size
(b' We', None, 0, 2, 5)
>>> vocabulary.split([3, 4, 0]), vocabulary.find(b"We", first=True)
([b'We', b'ng', b''], 3)
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final

from potstill import thoughts
from potstill.errors import UserError
from potstill.records import END, End

KNOWN_EOS_TOKENS: Final = ("</s>", "<|endoftext|>", "<eos>", "<|end_of_text|>", "<|eot_id|>", "<|im_end|>")
KNOWN_PAD_TOKENS: Final = ("<pad>", "[PAD]", "<|pad|>", "<|padding|>")
MAX_TOKEN_ID: Final = 2**24  # an upper bound: no vocabulary has so many tokens
_BYTE_PIECE: Final = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True, eq=False, repr=False)
class Vocabulary:
    """The pieces of a tokenizer.

    table          [size] the bytes of a token inside a text; None for special tokens, the unknown token and ids without
                   a piece
    specials       name to id of the tokens that are not text
    eos, pad, unk  the ids of the end token, the padding token and the unknown token; None if there is none, or if it is
                   not known
    dummy          whether the tokenizer puts a space before a text; `split` removes it from the first token
    digest         digest of everything that decides the ids of a text: normalizer, pre-tokenizer, model, added tokens
    fallback       ids of the tokens of single bytes, which are used for characters without a piece
    """

    table: tuple[bytes | None, ...]
    specials: Mapping[str, int]
    eos: int | None
    pad: int | None
    unk: int | None
    dummy: bool
    digest: str
    fallback: frozenset[int] = frozenset()

    def __repr__(self) -> str:
        return f"Vocabulary({self.size} tokens, eos={self.eos}, digest={self.digest[:12]!r})"

    @property
    def size(self) -> int:
        """The largest id plus 1. A model may have more rows than that (padding), never fewer."""
        return len(self.table)

    def bytes_of(self, token: int) -> bytes | None:
        """The bytes of a token inside a text; None for a token that is not text."""
        return self.table[token]

    def split(self, ids: Sequence[int]) -> list[bytes]:
        """The bytes of each token in the tokens' text, so that the joined bytes are the text. The first token of text has
        no dummy space; a token that is not text is empty."""
        pieces = [self.table[token] or b"" for token in ids]
        if self.dummy:
            first = next((i for i, token in enumerate(ids) if self.table[token] is not None), None)
            if first is not None and pieces[first].startswith(b" "):
                pieces[first] = pieces[first][1:]
        return pieces

    @cached_property
    def thought_tags(self) -> Mapping[int, bytes]:
        """Token -> name, for the special tokens that are tags of thoughts, or parts of tags."""
        return {token: name.encode() for name, token in self.specials.items() if thoughts.is_tag_token(name)}

    def candidate(self, token: int, position: int) -> bytes | End | None:
        """The token as an outcome of a chain, at a position of its text: bytes, END, or None for any other special
        token."""
        if token == self.eos:
            return END
        data = self.table[token]
        return data[1:] if data and self.dummy and position == 0 and data.startswith(b" ") else data

    def find(self, data: bytes, first: bool = False) -> int | None:
        """The token that has exactly these bytes, at the start of a text if `first`; None if there is no such token."""
        if first and self.dummy and (token := self._ids.get(b" " + data)) is not None:
            return token
        return self._ids.get(data)

    @cached_property
    def _ids(self) -> dict[bytes, int]:
        # `<0x41>` and `A` have the same bytes. The piece `A` comes first, because the tokenizer uses it.
        order = sorted(range(self.size), key=self.fallback.__contains__)
        ids: dict[bytes, int] = {}
        for token in order:
            if data := self.table[token]:
                ids.setdefault(data, token)
        return ids


def parse_tokenizer_json(
    source: str | Mapping[str, Any], *, eos: int | str | None = None, pad: int | str | None = None
) -> Vocabulary:
    """The vocabulary of a `tokenizer.json`.

    eos, pad  ids or names of the end token and the padding token; by default the special token with a well-known name,
              or no token if none or several of these names exist

    Raises UserError for a kind of model whose pieces have no fixed bytes, for an id that cannot be a row of an
    embedding, and for a name that is not a token.
    """
    read: Mapping[str, Any] = json.loads(source) if isinstance(source, str) else source
    model = read["model"]
    kind = get_model_type(model)
    if kind not in ("BPE", "Unigram", "WordPiece") or model.get("end_of_word_suffix"):
        raise UserError(
            "unsupported tokenizer model",
            code="E-tokenizer-unsupported-model",
            found=f"{kind} with end_of_word_suffix" if model.get("end_of_word_suffix") else kind,
            hint="use a BPE, Unigram or WordPiece tokenizer",
        )
    pairs = [(p, i) for i, (p, _) in enumerate(model["vocab"])] if kind == "Unigram" else list(model["vocab"].items())
    added = list(read.get("added_tokens") or ())
    steps = [*_flatten_steps(read.get("normalizer")), *_flatten_steps(read.get("pre_tokenizer"))]
    byte_level = any(step["type"] == "ByteLevel" for step in steps)
    space = next((character for step in steps if (character := _space_character(step))), None)
    ids = [*(i for _, i in pairs), *(token["id"] for token in added)]
    # Checked before the table of all ids is created, because a huge id would make it larger than memory.
    wrong = next((token for token in ids if type(token) is not int or not 0 <= token < MAX_TOKEN_ID), None)
    if wrong is not None:
        raise UserError(
            f"the id of a token is not a whole number from 0 to {MAX_TOKEN_ID - 1}",
            code="E-tokenizer-bad-id",
            found=str(wrong)[:40],
            hint="download the tokenizer's files again",
        )
    # Convert pieces to bytes by the convention of the model's kind.
    table: list[bytes | None] = [None] * (1 + max(ids, default=-1))
    fallback = set()
    for piece, token in pairs:
        if kind == "WordPiece":
            prefix = model.get("continuing_subword_prefix", "##")
            table[token] = (piece[len(prefix) :] if piece.startswith(prefix) else f" {piece}").encode()
        elif byte_level:
            table[token] = _decode_byte_level(piece)
        elif model.get("byte_fallback") and (match := _BYTE_PIECE.fullmatch(piece)):
            table[token] = bytes([int(match[1], 16)])
            fallback.add(token)
        else:
            table[token] = (piece.replace(space, " ") if space else piece).encode()
    # Special tokens are not text.
    specials: dict[str, int] = {}
    for token in added:
        text = token["content"].replace(space, " ") if space and not byte_level else token["content"]
        table[token["id"]] = None if token.get("special") else text.encode()
        if token.get("special"):
            specials[token["content"]] = token["id"]
    names: dict[str, int] = {**dict(pairs), **{token["content"]: token["id"] for token in added}}
    unk: int | None = model.get("unk_id") if kind == "Unigram" else names.get(model.get("unk_token") or "")
    if unk is not None:
        table[unk] = None
        specials.setdefault(next(name for name, token in names.items() if token == unk), unk)
    given_eos, given_pad = (_resolve_token(*row, names, len(table)) for row in (("eos", eos), ("pad", pad)))
    eos_id = _find_well_known(KNOWN_EOS_TOKENS, specials) if eos is None else given_eos
    pad_id = _find_well_known(KNOWN_PAD_TOKENS, specials) if pad is None else given_pad
    for name, token in names.items():
        if token in (eos_id, pad_id):
            table[token] = None
            specials[name] = token
    digested = {key: read.get(key) for key in ("normalizer", "pre_tokenizer", "model")}
    digested["added"] = [[token["id"], token["content"], bool(token.get("special"))] for token in added]
    return Vocabulary(
        table=tuple(table),
        specials=specials,
        eos=eos_id,
        pad=pad_id,
        unk=unk,
        dummy=kind == "WordPiece" or any(_adds_dummy_space(step) for step in steps),
        digest=hash_vocabulary(json.dumps(digested, sort_keys=True).encode()),
        fallback=frozenset(fallback),
    )


def get_model_type(model: Mapping[str, Any]) -> str | None:
    """Unigram, BPE, WordPiece or another. Files from before 2021 do not name it, so its vocabulary decides."""
    by_shape = "Unigram" if isinstance(model.get("vocab"), list) else "BPE" if "merges" in model else None
    return model.get("type") or by_shape


def replace_special_tokens(
    vocabulary: Vocabulary, *, eos: int | str | None = None, pad: int | str | None = None
) -> Vocabulary:
    """The same vocabulary with another end or padding token, given by id or name. Raises UserError if it does not have
    that token."""
    names = {**{d.decode("utf-8", "replace"): i for i, d in enumerate(vocabulary.table) if d}, **vocabulary.specials}
    eos_id = _resolve_token("eos", eos, names, vocabulary.size) if eos is not None else vocabulary.eos
    pad_id = _resolve_token("pad", pad, names, vocabulary.size) if pad is not None else vocabulary.pad
    table = tuple(None if token in (eos_id, pad_id) else data for token, data in enumerate(vocabulary.table))
    return replace(vocabulary, table=table, eos=eos_id, pad=pad_id)


def hash_vocabulary(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _flatten_steps(step: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    """The steps of a normalizer or pre-tokenizer, with each sequence replaced by its steps."""
    if step and step["type"] == "Sequence":
        for inner in step.get("normalizers") or step.get("pretokenizers") or ():
            yield from _flatten_steps(inner)
    elif step:
        yield step


def _space_character(step: Mapping[str, Any]) -> str | None:
    """The character that represents a space in the pieces; None if the step does not define one."""
    if step["type"] == "Metaspace":
        return step.get("replacement", "▁")
    if step["type"] == "Replace" and step.get("pattern") == {"String": " "} and "content" in step:
        return step["content"]
    return None


def _adds_dummy_space(step: Mapping[str, Any]) -> bool:
    if step["type"] == "Metaspace":
        return step.get("prepend_scheme", "always" if step.get("add_prefix_space", True) else "never") != "never"
    return step["type"] == "Prepend" or (step["type"] == "ByteLevel" and bool(step.get("add_prefix_space")))


def _decode_byte_level(piece: str) -> bytes:
    try:
        return bytes(_BYTE_OF[character] for character in piece)
    except KeyError:  # an added token, which the vocabulary lists as plain text
        return piece.encode()


# Byte-level BPE writes a byte as a printable character: a visible byte as itself, any other as the next one from 256 on.
_VISIBLE: Final = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_HIDDEN: Final = [byte for byte in range(256) if byte not in _VISIBLE]
_BYTE_OF: Final = {chr(byte): byte for byte in _VISIBLE} | {chr(256 + i): byte for i, byte in enumerate(_HIDDEN)}


def _find_well_known(names: Sequence[str], specials: Mapping[str, int]) -> int | None:
    present = [specials[name] for name in names if name in specials]
    return present[0] if len(present) == 1 else None


def _resolve_token(role: str, wanted: int | str | None, names: Mapping[str, int], size: int) -> int | None:
    """The id of a token given by id or name. Raises UserError if there is no such token."""
    token = names.get(wanted) if isinstance(wanted, str) else wanted
    if wanted is not None and (token is None or not 0 <= token < size):
        raise UserError(
            f"the tokenizer has no such {role} token",
            code="E-tokenizer-no-such-token",
            found=repr(wanted),
            hint="name a token of the tokenizer, or give its id",
        )
    return token
