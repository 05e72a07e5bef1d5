"""Tokenizers opened from a folder.

>>> _named({"tokenizer_config.json": b'{"eos_token": {"content": "</s>"}, "pad_token": null}'}, Path("t5"))
{'eos': '</s>'}
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import tokenizers as library

from potstill.errors import UserError
from potstill.records import End
from potstill.vocabulary import Encoding, Fast, Vocabulary, chosen, digest, from_json, plain

if TYPE_CHECKING:
    import tiktoken

PROBE: Final = "Q: Tom has 2 apples.\nA: The answer is 2"
Bytes = bytes  # inside the class, `bytes` is a method

SHIPPED: Final = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
    *("spiece.model", "tokenizer.model", "sentencepiece.bpe.model", "vocab.json", "merges.txt", "vocab.txt"),
)


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """A vocabulary, its encoder, and the files to ship it with.

    fast    encoder and vocabulary
    eos     the token that ends a text
    pad     the token that fills rows. The end token stands in for it where a tokenizer has none: what is padding is
            known by its place in a batch, never by its id
    prefix  what the tokenizer's own template puts before a text (BOS)
    files   name to content: everything that must lie beside a model
    """

    fast: Fast
    eos: int
    pad: int
    prefix: tuple[int, ...]
    files: Mapping[str, Bytes]

    @property
    def vocabulary(self) -> Vocabulary:
        return self.fast.vocabulary

    @property
    def size(self) -> int:
        """One more than the largest id; a model's output may have more rows (padding), never fewer."""
        return self.vocabulary.size

    @property
    def digest(self) -> str:
        """Of all that decides which ids a text gets; the same however the tokenizer was opened."""
        return self.vocabulary.digest

    def encode(self, text: str) -> Encoding:
        """Ids and byte spans, no template, no truncation; `</s>` written in the text is text. UserError: surrogates."""
        return self.fast.encode(text)

    def encode_batch(self, texts: Sequence[str]) -> list[Encoding]:
        return self.fast.encode_batch(texts)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the tokens, special ones skipped, bytes that are not UTF-8 replaced by U+FFFD."""
        return self.text(ids).decode("utf-8", "replace")

    def text(self, ids: Sequence[int]) -> Bytes:
        """The exact bytes of the text that the tokens make."""
        return b"".join(self.vocabulary.split(ids))

    def pieces(self, ids: Sequence[int]) -> list[Bytes]:
        """The bytes of each token in the text that they make: `text` cut into tokens, empty for special ones. The first
        one loses its dummy space."""
        return self.vocabulary.split(ids)

    def bytes(self, token: int) -> Bytes:
        """The bytes that the token adds inside a text, empty for a special one (`▁We` is b" We"). At the start of a
        text its dummy space must go: that is the caller's business, or `pieces` or `candidate`."""
        return self.vocabulary.bytes_of(token) or b""

    def candidate(self, token: int, position: int) -> Bytes | End | None:
        """What the token would mean as the position-th token of a text: bytes, END, or None for another special one,
        which is no outcome that a chain could hold."""
        return self.vocabulary.candidate(token, position)


def open(folder: Path | str, *, eos: int | str | None = None, pad: int | str | None = None) -> Tokenizer:
    """The tokenizer of a Hugging Face folder (`tokenizer.json`) or of a tiktoken one (`NAME.tiktoken`, `NAME.json`).

    eos, pad  id or name; without them as `tokenizer_config.json`, `special_tokens_map.json` or a well-known name says
    Raises UserError where there is no such file, where it cannot be read, and where no token is known to end a text.
    """
    where = Path(folder)
    if (where / "tokenizer.json").is_file():
        fast, files = _open_json(where)
    elif ranks := sorted(where.glob("*.tiktoken")):
        if len(ranks) > 1:
            raise UserError("several tiktoken files", where=where, found=", ".join(path.name for path in ranks))
        fast, files = _open_tiktoken(ranks[0])
    else:
        do = "give a folder with tokenizer.json (a fast tokenizer's save_pretrained writes it)"
        raise UserError("no tokenizer in this folder" if where.is_dir() else "no such folder", where=where, do=do)
    named = _named(files, where)
    try:
        vocabulary = chosen(fast.vocabulary, eos=named.get("eos") if eos is None else eos)
        vocabulary = chosen(vocabulary, pad=named.get("pad") if pad is None else pad)
    except UserError as error:
        raise UserError(error.what, where=where, found=error.found, do=error.do) from None
    if vocabulary.eos is None:
        do = "say which token it is: `eos_token` in tokenizer_config.json"
        raise UserError("cannot tell which token ends a text", where=where, found=", ".join(vocabulary.specials), do=do)
    with _library(where / "tokenizer.json"):
        tokenizer = finish(Fast(vocabulary, fast.library), files)
        tokenizer.encode(PROBE)  # some files are read, and fail at the first text
    return tokenizer


def finish(fast: Fast, files: Mapping[str, Bytes]) -> Tokenizer:
    vocabulary = fast.vocabulary
    assert vocabulary.eos is not None, "checked by the caller"
    prefix: tuple[int, ...] = ()
    if isinstance(fast.library, library.Tokenizer):
        found = fast.library.encode("a")
        prefix = tuple(found.ids[: next(i for i, of in enumerate(found.sequence_ids) if of is not None)])
    pad = vocabulary.eos if vocabulary.pad is None else vocabulary.pad
    return Tokenizer(fast, vocabulary.eos, pad, prefix, files)


def _open_json(folder: Path) -> tuple[Fast, dict[str, Bytes]]:
    path = folder / "tokenizer.json"
    files = {name: (folder / name).read_bytes() for name in SHIPPED if (folder / name).is_file()}
    source = _json(files[path.name], path)
    with _library(path):
        return Fast(from_json(source), plain(source, library.Tokenizer)), files


@contextmanager
def _library(path: Path) -> Iterator[None]:
    """What the library raises where a file is not what it expects, as the user's error: bare `Exception`, and a panic
    that is no `Exception`."""
    try:
        yield
    except UserError as error:
        raise UserError(error.what, where=error.where or path, found=error.found, do=error.do) from None
    except AssertionError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        found = f"{type(error).__name__}: {error}"[:300]
        raise UserError("not a tokenizer", where=path, found=found, do="write it again with save_pretrained") from None


def _open_tiktoken(path: Path) -> tuple[Fast, dict[str, Bytes]]:
    described = path.with_suffix(".json")
    if not described.is_file():
        do = "put its pattern and special tokens beside it: {'pat_str': ..., 'special_tokens': {...}}"
        raise UserError("the tiktoken ranks lack their description", where=described, do=do)
    files = {file.name: file.read_bytes() for file in (path, described)}
    try:
        import tiktoken
    except ImportError:
        do = "pip install tiktoken, or give a folder with tokenizer.json"
        raise UserError("this folder needs the library tiktoken", where=path, do=do) from None
    about = _json(files[described.name], described)
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(files[path.name].splitlines(), 1):
        try:
            piece, rank = line.split()
            ranks[base64.b64decode(piece, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            do = "each line is: base64 of the piece, its rank"
            raise UserError("torn line", where=f"{path} line {number}", found=line[:80], do=do) from None
    try:
        specials: dict[str, int] = about["special_tokens"]
        coder = tiktoken.Encoding(path.stem, pat_str=about["pat_str"], mergeable_ranks=ranks, special_tokens=specials)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError("not the description of a tiktoken encoding", where=described, found=error) from None
    table: list[bytes | None] = [None] * (1 + max([*ranks.values(), *specials.values()], default=-1))
    for piece, rank in ranks.items():
        table[rank] = piece
    eos = specials.get("<|endoftext|>")
    seen = digest(files[path.name] + json.dumps(about, sort_keys=True).encode())
    return Fast(
        Vocabulary(tuple(table), specials, eos, None, None, False, seen), _Tiktoken(coder, about["pat_str"])
    ), files


@dataclass(frozen=True, slots=True)
class _Ids:
    ids: list[int]
    offsets: tuple[tuple[int, int], ...] = ()  # never read: the pieces spell the text


@dataclass(frozen=True, slots=True)
class _Tiktoken:
    """tiktoken with the face of a `tokenizers.Tokenizer`, as far as `Fast` looks at it."""

    coder: tiktoken.Encoding
    pattern: str

    def encode_ids(self, text: str) -> list[int]:
        return self.coder.encode_ordinary(text)

    def encode(self, text: str, add_special_tokens: bool = False) -> _Ids:
        return _Ids(self.encode_ids(text))

    def cuts(self, text: str) -> list[tuple[int, int]]:
        """The stretches that are encoded each alone, in characters."""
        import regex  # tiktoken is built on it

        return [found.span() for found in regex.finditer(self.pattern, text)]

    def encode_batch(self, texts: Sequence[str], add_special_tokens: bool = False) -> list[_Ids]:
        return [self.encode(text) for text in texts]


def _named(files: Mapping[str, Bytes], folder: Path) -> dict[str, str]:
    """The names of the end and padding tokens as the configuration beside the tokenizer tells them."""
    found: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        read = _json(files[name], folder / name) if name in files else {}
        for what in ("eos", "pad"):
            token = read.get(f"{what}_token")
            token = token.get("content") if isinstance(token, dict) else token
            if isinstance(token, str):
                found[what] = token
    return found


def _json(content: Bytes, path: Path) -> dict[str, Any]:
    try:
        read = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError("not JSON", where=path, found=error, do="copy the file anew") from None
    if not isinstance(read, dict):
        raise UserError("not a JSON object", where=path, found=str(read)[:80], do="copy the file anew")
    return read
