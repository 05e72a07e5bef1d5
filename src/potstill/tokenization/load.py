"""Loads a tokenizer from a folder, which has a `tokenizer.json` (Hugging Face) or the files of a tiktoken encoding.

>>> _read_special_tokens({"tokenizer_config.json": b'{"eos_token": {"content": "</s>"}, "pad_token": null}'}, Path("t5"))
{'eos': '</s>'}
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

import tokenizers as library

from potstill import storage
from potstill.errors import UserError
from potstill.records import End
from potstill.tokenization.encoder import Encoder, Encoding, copy_without_special_tokens
from potstill.tokenization.vocabulary import (
    Vocabulary,
    hash_vocabulary,
    parse_tokenizer_json,
    replace_special_tokens,
)

if TYPE_CHECKING:
    import tiktoken

PROBE_TEXT: Final = "Q: Tom has 2 apples.\nA: The answer is 2"
TOKENIZER_FILES: Final = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
    *("spiece.model", "tokenizer.model", "sentencepiece.bpe.model", "vocab.json", "merges.txt", "vocab.txt"),
)


@dataclass(frozen=True, eq=False, repr=False)
class Tokenizer:
    """A vocabulary, its encoder, and the tokenizer's files, which are copied into the folder of a model.

    eos     the id of the end token
    pad     the id of the padding token; if there is none, the end token. Padding is recognized by its position in a
            batch, never by its id
    prefix  the ids that the tokenizer's own template puts before a text (BOS)
    files   file name to content
    """

    encoder: Encoder
    eos: int
    pad: int
    prefix: tuple[int, ...]
    files: Mapping[str, bytes]

    def __repr__(self) -> str:
        return f"Tokenizer({self.size} tokens, eos={self.eos}, pad={self.pad}, digest={self.digest[:12]!r})"

    @property
    def vocabulary(self) -> Vocabulary:
        return self.encoder.vocabulary

    @property
    def size(self) -> int:
        """The largest id plus 1. A model's output may have more rows (padding), never fewer."""
        return self.vocabulary.size

    @property
    def digest(self) -> str:
        """The digest of everything that decides the ids of a text. It does not depend on how the tokenizer was loaded."""
        return self.vocabulary.digest

    def encode(self, text: str) -> Encoding:
        """The ids and byte spans of a text, without a template and without truncation. `</s>` in the text is text. Raises
        UserError for lone surrogates."""
        return self.encoder.encode(text)

    def encode_batch(self, texts: Sequence[str]) -> list[Encoding]:
        return self.encoder.encode_batch(texts)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the tokens, without special tokens. Bytes that are not UTF-8 are replaced by U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """The exact bytes of the tokens' text, without special tokens."""
        return b"".join(self.vocabulary.split(ids))

    def split(self, ids: Sequence[int]) -> list[bytes]:
        """The bytes of each token in the tokens' text, without a dummy space; empty for a special token."""
        return self.vocabulary.split(ids)

    def spell(self, ids: Sequence[int]) -> list[bytes]:
        """The same as `split`, but special tokens that are tags of thoughts have their names: `<think>` is b"<think>"."""
        names = self.vocabulary.thought_tags
        return [names.get(token, piece) for token, piece in zip(ids, self.vocabulary.split(ids), strict=True)]

    def token_bytes(self, token: int) -> bytes:
        """The bytes of a token inside a text (`▁We` is b" We"); empty for a special token."""
        return self.vocabulary.bytes_of(token) or b""

    def candidate(self, token: int, position: int) -> bytes | End | None:
        """The token as an outcome of a chain, at a position of its text: bytes, END, or None for any other special
        token."""
        return self.vocabulary.candidate(token, position)


def load_tokenizer(folder: Path | str, *, eos: int | str | None = None, pad: int | str | None = None) -> Tokenizer:
    """The tokenizer of a folder with `tokenizer.json` (Hugging Face), or `NAME.tiktoken` and `NAME.json` (tiktoken).

    eos, pad  ids or names of the end token and the padding token. By default they come from `tokenizer_config.json` or
              `special_tokens_map.json`; without an entry there, a well-known name is used

    Raises UserError if these files are missing or cannot be read, and if no end token is known.
    """
    path = Path(folder)
    ranks = sorted(path.glob("*.tiktoken"))
    if (path / "tokenizer.json").is_file():
        encoder, files = _load_json(path)
    elif len(ranks) == 1:
        encoder, files = _load_tiktoken(ranks[0])
    elif ranks:
        found = ", ".join(rank.name for rank in ranks)
        raise UserError(
            "the folder has several tiktoken files",
            code="E-tokenizer-several",
            where=path,
            found=found,
            hint="keep only one of them",
        )
    else:
        raise UserError(
            "the folder has no tokenizer" if path.is_dir() else "the folder does not exist",
            code="E-tokenizer-missing",
            where=path,
            hint="give a folder with tokenizer.json (a fast tokenizer's save_pretrained writes it)",
        )
    named = _read_special_tokens(files, path)
    with _library_errors(path):
        vocabulary = replace_special_tokens(encoder.vocabulary, eos=named.get("eos") if eos is None else eos)
        vocabulary = replace_special_tokens(vocabulary, pad=named.get("pad") if pad is None else pad)
    if vocabulary.eos is None:
        raise UserError(
            "the end token of the tokenizer is unknown",
            code="E-tokenizer-no-eos",
            where=path,
            found=", ".join(vocabulary.specials),
            hint="name the end token as `eos_token` in tokenizer_config.json",
        )
    with _library_errors(path / "tokenizer.json"):
        tokenizer = build_tokenizer(Encoder(vocabulary, encoder.library), files)
        tokenizer.encode(PROBE_TEXT)  # some broken files can be loaded and fail only at the first text
    return tokenizer


def replace_end_token(tokenizer: Tokenizer, eos: int) -> Tokenizer:
    """The same tokenizer with another token that ends a text. Its files and its digest stay the same."""
    if eos == tokenizer.eos:
        return tokenizer
    vocabulary = replace_special_tokens(tokenizer.vocabulary, eos=eos)
    return build_tokenizer(Encoder(vocabulary, tokenizer.encoder.library), tokenizer.files)


def build_tokenizer(encoder: Encoder, files: Mapping[str, bytes]) -> Tokenizer:
    vocabulary = encoder.vocabulary
    assert vocabulary.eos is not None, "checked by the caller"
    prefix: tuple[int, ...] = ()
    if isinstance(encoder.library, library.Tokenizer):
        encoding = encoder.library.encode("a")
        text_start = next(i for i, sequence in enumerate(encoding.sequence_ids) if sequence is not None)
        prefix = tuple(encoding.ids[:text_start])
    pad = vocabulary.eos if vocabulary.pad is None else vocabulary.pad
    return Tokenizer(encoder, vocabulary.eos, pad, prefix, files)


def _load_json(folder: Path) -> tuple[Encoder, dict[str, bytes]]:
    path = folder / "tokenizer.json"
    files = {name: (folder / name).read_bytes() for name in TOKENIZER_FILES if (folder / name).is_file()}
    source = _parse_json(files[path.name], path)
    with _library_errors(path):
        return Encoder(parse_tokenizer_json(source), copy_without_special_tokens(source, library.Tokenizer)), files


@contextmanager
def _library_errors(path: Path) -> Iterator[None]:
    """Turn errors of the library into UserErrors with the path. The library raises a bare `Exception` for a file that is
    not a tokenizer, or a panic, which is not even an `Exception`."""
    try:
        yield
    except UserError as error:
        error.where = error.where or str(path)
        raise
    except AssertionError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UserError(
            "the file is not a tokenizer",
            code="E-tokenizer-unreadable",
            where=path,
            found=f"{type(error).__name__}: {error}"[:300],
            hint="save the tokenizer again with save_pretrained",
        ) from None


def _load_tiktoken(path: Path) -> tuple[Encoder, dict[str, bytes]]:
    description = path.with_suffix(".json")
    if not description.is_file():
        raise UserError(
            "the description of the tiktoken file is missing",
            code="E-tokenizer-no-description",
            where=description,
            hint="write its pattern and special tokens into this file: {'pat_str': ..., 'special_tokens': {...}}",
        )
    files = {file.name: file.read_bytes() for file in (path, description)}
    try:
        import tiktoken
    except ImportError:
        raise UserError(
            "the library tiktoken, which this tokenizer needs, is not installed",
            code="E-tokenizer-no-tiktoken",
            where=path,
            hint="pip install tiktoken, or give a folder with tokenizer.json",
        ) from None
    about = _parse_json(files[description.name], description)
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(files[path.name].splitlines(), 1):
        try:
            piece, rank = line.split()
            ranks[base64.b64decode(piece, validate=True)] = int(rank)
        except ValueError:
            raise UserError(
                "a line of the tiktoken file cannot be read",
                code="E-tokenizer-bad-line",
                where=f"{path} line {number}",
                found=line[:80],
                hint="a line is the piece in base64, a space and its rank",
            ) from None
    try:
        specials: dict[str, int] = about["special_tokens"]
        coder = tiktoken.Encoding(path.stem, pat_str=about["pat_str"], mergeable_ranks=ranks, special_tokens=specials)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            "the file is not the description of a tiktoken encoding",
            code="E-tokenizer-bad-description",
            where=description,
            found=error,
            hint="write `pat_str` and `special_tokens` into it",
        ) from None
    table: list[bytes | None] = [None] * (1 + max([*ranks.values(), *specials.values()], default=-1))
    for piece, rank in ranks.items():
        table[rank] = piece
    eos = specials.get("<|endoftext|>")
    digest = hash_vocabulary(files[path.name] + json.dumps(about, sort_keys=True).encode())
    vocabulary = Vocabulary(tuple(table), specials, eos, None, None, False, digest)
    return Encoder(vocabulary, _TiktokenAdapter(coder, about["pat_str"])), files


@dataclass(frozen=True, slots=True)
class _TiktokenAdapter:
    """A tiktoken encoding with the methods of a `tokenizers.Tokenizer` that `Encoder` calls."""

    coder: tiktoken.Encoding
    pattern: str

    def encode_ids(self, text: str) -> list[int]:
        return self.coder.encode_ordinary(text)

    def encode(self, text: str, add_special_tokens: bool = False) -> SimpleNamespace:
        return SimpleNamespace(ids=self.encode_ids(text), offsets=())  # never read: the joined pieces are the text

    def cuts(self, text: str) -> list[tuple[int, int]]:
        """The start and end, in characters, of the substrings that are encoded separately."""
        import regex  # a dependency of tiktoken

        return [match.span() for match in regex.finditer(self.pattern, text)]

    def encode_batch(self, texts: Sequence[str], add_special_tokens: bool = False) -> list[SimpleNamespace]:
        return [self.encode(text) for text in texts]


def thought_tags_identity(folder: Path, key: str) -> dict[str, str]:
    """Recipe key -> names of the special tokens of the tokenizer in a folder that are tags of thoughts; empty without any.

    For the identities of stages whose texts contain these names.
    """
    names = _read_thought_tags(folder, storage.folder_fingerprint(folder))
    return {f"{key} (tags of thoughts)": ", ".join(names)} if names else {}


@lru_cache(maxsize=16)
def _read_thought_tags(folder: Path, fingerprint: str) -> tuple[str, ...]:
    tags = load_tokenizer(folder).vocabulary.thought_tags
    return tuple(sorted(name.decode() for name in tags.values()))


def _read_special_tokens(files: Mapping[str, bytes], folder: Path) -> dict[str, str]:
    """The names of the end token (`eos`) and the padding token (`pad`) in the tokenizer's configuration files."""
    names: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        config = _parse_json(files[name], folder / name) if name in files else {}
        for role in ("eos", "pad"):
            token = config.get(f"{role}_token")
            token = token.get("content") if isinstance(token, dict) else token
            if isinstance(token, str):
                names[role] = token
    return names


def _parse_json(content: bytes, path: Path) -> dict[str, Any]:
    try:
        parsed = json.loads(content)
        if isinstance(parsed, dict):
            return parsed
        found: object = str(parsed)[:80]
    except (ValueError, RecursionError) as error:
        found = error
    raise UserError(
        "the file is not a JSON object",
        code="E-tokenizer-not-json",
        where=path,
        found=found,
        hint="copy the file again",
    )
