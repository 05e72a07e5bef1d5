"""Tokenizers opened from a folder.

>>> _read_special_tokens({"tokenizer_config.json": b'{"eos_token": {"content": "</s>"}, "pad_token": null}'}, Path("t5"))
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
from potstill.tokenization.encoder import Encoder, Encoding, copy_without_special_tokens
from potstill.tokenization.vocabulary import Vocabulary, hash_vocabulary, parse_tokenizer_json, replace_special_tokens

if TYPE_CHECKING:
    import tiktoken

PROBE_TEXT: Final = "Q: Tom has 2 apples.\nA: The answer is 2"
Bytes = bytes  # inside the class, `bytes` is a method

TOKENIZER_FILES: Final = (
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

    fast: Encoder
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


def load_tokenizer(folder: Path | str, *, eos: int | str | None = None, pad: int | str | None = None) -> Tokenizer:
    """The tokenizer of a Hugging Face folder (`tokenizer.json`) or of a tiktoken one (`NAME.tiktoken`, `NAME.json`).

    eos, pad  id or name; without them as `tokenizer_config.json`, `special_tokens_map.json` or a well-known name says
    Raises UserError where there is no such file, where it cannot be read, and where no token is known to end a text.
    """
    where = Path(folder)
    if (where / "tokenizer.json").is_file():
        fast, files = _load_json(where)
    elif ranks := sorted(where.glob("*.tiktoken")):
        if len(ranks) > 1:
            raise UserError("several tiktoken files", where=where, found=", ".join(path.name for path in ranks))
        fast, files = _load_tiktoken(ranks[0])
    else:
        hint = "give a folder with tokenizer.json (a fast tokenizer's save_pretrained writes it)"
        raise UserError("no tokenizer in this folder" if where.is_dir() else "no such folder", where=where, hint=hint)
    named = _read_special_tokens(files, where)
    try:
        vocabulary = replace_special_tokens(fast.vocabulary, eos=named.get("eos") if eos is None else eos)
        vocabulary = replace_special_tokens(vocabulary, pad=named.get("pad") if pad is None else pad)
    except UserError as error:
        raise UserError(error.what, where=where, found=error.found, hint=error.hint) from None
    if vocabulary.eos is None:
        hint = "say which token it is: `eos_token` in tokenizer_config.json"
        raise UserError(
            "cannot tell which token ends a text", where=where, found=", ".join(vocabulary.specials), hint=hint
        )
    with _library_errors(where / "tokenizer.json"):
        tokenizer = build_tokenizer(Encoder(vocabulary, fast.library), files)
        tokenizer.encode(PROBE_TEXT)  # some files are read, and fail at the first text
    return tokenizer


def build_tokenizer(fast: Encoder, files: Mapping[str, Bytes]) -> Tokenizer:
    vocabulary = fast.vocabulary
    assert vocabulary.eos is not None, "checked by the caller"
    prefix: tuple[int, ...] = ()
    if isinstance(fast.library, library.Tokenizer):
        found = fast.library.encode("a")
        prefix = tuple(found.ids[: next(i for i, of in enumerate(found.sequence_ids) if of is not None)])
    pad = vocabulary.eos if vocabulary.pad is None else vocabulary.pad
    return Tokenizer(fast, vocabulary.eos, pad, prefix, files)


def _load_json(folder: Path) -> tuple[Encoder, dict[str, Bytes]]:
    path = folder / "tokenizer.json"
    files = {name: (folder / name).read_bytes() for name in TOKENIZER_FILES if (folder / name).is_file()}
    source = _parse_json(files[path.name], path)
    with _library_errors(path):
        return Encoder(parse_tokenizer_json(source), copy_without_special_tokens(source, library.Tokenizer)), files


@contextmanager
def _library_errors(path: Path) -> Iterator[None]:
    """What the library raises where a file is not what it expects, as the user's error: bare `Exception`, and a panic
    that is no `Exception`."""
    try:
        yield
    except UserError as error:
        raise UserError(error.what, where=error.where or path, found=error.found, hint=error.hint) from None
    except AssertionError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        found = f"{type(error).__name__}: {error}"[:300]
        raise UserError(
            "not a tokenizer", where=path, found=found, hint="write it again with save_pretrained"
        ) from None


def _load_tiktoken(path: Path) -> tuple[Encoder, dict[str, Bytes]]:
    described = path.with_suffix(".json")
    if not described.is_file():
        hint = "put its pattern and special tokens beside it: {'pat_str': ..., 'special_tokens': {...}}"
        raise UserError("the tiktoken ranks lack their description", where=described, hint=hint)
    files = {file.name: file.read_bytes() for file in (path, described)}
    try:
        import tiktoken
    except ImportError:
        hint = "pip install tiktoken, or give a folder with tokenizer.json"
        raise UserError("this folder needs the library tiktoken", where=path, hint=hint) from None
    about = _parse_json(files[described.name], described)
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(files[path.name].splitlines(), 1):
        try:
            piece, rank = line.split()
            ranks[base64.b64decode(piece, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            hint = "each line is: base64 of the piece, its rank"
            raise UserError("torn line", where=f"{path} line {number}", found=line[:80], hint=hint) from None
    try:
        specials: dict[str, int] = about["special_tokens"]
        coder = tiktoken.Encoding(path.stem, pat_str=about["pat_str"], mergeable_ranks=ranks, special_tokens=specials)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError("not the description of a tiktoken encoding", where=described, found=error) from None
    table: list[bytes | None] = [None] * (1 + max([*ranks.values(), *specials.values()], default=-1))
    for piece, rank in ranks.items():
        table[rank] = piece
    eos = specials.get("<|endoftext|>")
    seen = hash_vocabulary(files[path.name] + json.dumps(about, sort_keys=True).encode())
    return Encoder(
        Vocabulary(tuple(table), specials, eos, None, None, False, seen), _TiktokenAdapter(coder, about["pat_str"])
    ), files


@dataclass(frozen=True, slots=True)
class _TiktokenEncoding:
    ids: list[int]
    offsets: tuple[tuple[int, int], ...] = ()  # never read: the pieces spell the text


@dataclass(frozen=True, slots=True)
class _TiktokenAdapter:
    """tiktoken with the face of a `tokenizers.Tokenizer`, as far as `Fast` looks at it."""

    coder: tiktoken.Encoding
    pattern: str

    def encode_ids(self, text: str) -> list[int]:
        return self.coder.encode_ordinary(text)

    def encode(self, text: str, add_special_tokens: bool = False) -> _TiktokenEncoding:
        return _TiktokenEncoding(self.encode_ids(text))

    def cuts(self, text: str) -> list[tuple[int, int]]:
        """The stretches that are encoded each alone, in characters."""
        import regex  # tiktoken is built on it

        return [found.span() for found in regex.finditer(self.pattern, text)]

    def encode_batch(self, texts: Sequence[str], add_special_tokens: bool = False) -> list[_TiktokenEncoding]:
        return [self.encode(text) for text in texts]


def _read_special_tokens(files: Mapping[str, Bytes], folder: Path) -> dict[str, str]:
    """The names of the end and padding tokens as the configuration beside the tokenizer tells them."""
    found: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        read = _parse_json(files[name], folder / name) if name in files else {}
        for what in ("eos", "pad"):
            token = read.get(f"{what}_token")
            token = token.get("content") if isinstance(token, dict) else token
            if isinstance(token, str):
                found[what] = token
    return found


def _parse_json(content: Bytes, path: Path) -> dict[str, Any]:
    try:
        read = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError("not JSON", where=path, found=error, hint="copy the file anew") from None
    if not isinstance(read, dict):
        raise UserError("not a JSON object", where=path, found=str(read)[:80], hint="copy the file anew")
    return read
