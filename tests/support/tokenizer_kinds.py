"""Tiny tokenizers of every kind, configured as the well-known ones of their kind are."""

from __future__ import annotations

import base64
import json
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import tokenizers as library
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers

from potstill import tokenization
from potstill.tokenization import Tokenizer
from tools.toy_models.tokenizer_training import train_unigram

TEXTS = [
    "Weng earns $12 an hour for babysitting. Yesterday she did 50 minutes.",
    "She earns 12/60 = $0.20 a minute, so 50 minutes make 50 * 0.20 = $10.\nThe answer is 10",
    "naïve café costs 1,250 dollars; 4 - 2 = 2\n\nSo it's 1250. They'll pay 48 + 72 = 120",
] * 3
QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA_3 = QWEN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")


def gpt2() -> dict[str, Any]:
    made = library.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return _byte_level(made, "<|endoftext|>")


def qwen() -> dict[str, Any]:
    made = library.Tokenizer(models.BPE())
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = _split(QWEN)
    return _byte_level(made, "<|endoftext|>", "<|im_start|>", "<|im_end|>")


def llama_3() -> dict[str, Any]:
    """Whole words of the vocabulary are taken without merging; a template puts BOS before a text."""
    made = library.Tokenizer(models.BPE(ignore_merges=True))
    made.pre_tokenizer = _split(LLAMA_3)
    source = _byte_level(made, "<|end_of_text|>", "<|begin_of_text|>")
    again = library.Tokenizer.from_str(json.dumps(source))
    bos = ("<|begin_of_text|>", again.token_to_id("<|begin_of_text|>"))
    again.post_processor = processors.TemplateProcessing(single="<|begin_of_text|> $A", special_tokens=[bos])
    return json.loads(again.to_str())


def llama_2() -> dict[str, Any]:
    """Byte fallback; a space is written `▁` and put before every text by the normaliser."""
    return _fallback(normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]), None)


def mistral() -> dict[str, Any]:
    """The same with the space put there by the pre-tokenizer."""
    return _fallback(None, pre_tokenizers.Metaspace(prepend_scheme="first", split=False))


def gemma() -> dict[str, Any]:
    """Byte fallback without a space before the text."""
    return _fallback(normalizers.Replace(" ", "▁"), pre_tokenizers.Split(" ", "merged_with_previous"))


def bert() -> dict[str, Any]:
    """WordPiece: lower case, no accents, no white space, `##` inside words."""
    made = library.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    made.train_from_iterator(
        TEXTS, trainers.WordPieceTrainer(vocab_size=150, special_tokens=specials, show_progress=False)
    )
    return json.loads(made.to_str())


def tiktoken_files() -> dict[str, bytes]:
    """Ranks and their description, made from a byte-level tokenizer: its merges in order are the ranks."""
    vocabulary = opened("qwen").vocabulary
    ranks = [bytes([byte]) for byte in range(256)]
    ranks += [data for data in vocabulary.table if data and len(data) > 1]
    lines = [base64.b64encode(piece) + b" %d" % rank for rank, piece in enumerate(ranks)]
    about = {"pat_str": QWEN, "special_tokens": {"<|endoftext|>": len(ranks)}}
    return {"tiny.tiktoken": b"\n".join(lines) + b"\n", "tiny.json": json.dumps(about).encode()}


SOURCES: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "gpt2": (gpt2, "<|endoftext|>"),
    "qwen": (qwen, "<|im_end|>"),
    "llama-3": (llama_3, "<|end_of_text|>"),
    "llama-2": (llama_2, "</s>"),
    "mistral": (mistral, "</s>"),
    "gemma": (gemma, "</s>"),
    "bert": (bert, "[SEP]"),
}
KINDS = (*SOURCES, "t5", "tiktoken")
ONE_WORD = "unigram"  # in the manner of T5, but its model sees a text whole: pieces may hold spaces
LOSSY = ("t5", "bert")  # white space or letters of the text are not in the tokens


def with_piece(kind: str, piece: str) -> Tokenizer:
    """A tokenizer of a kind and the same one with one more piece, behind its model's others: what that makes of the
    piece is joined from the right, so that each part on the way is a further piece. Special tokens may move."""
    if kind == "tiktoken":
        files = tiktoken_files()
        ranks = {
            base64.b64decode(line.split()[0]): int(line.split()[1]) for line in files["tiny.tiktoken"].splitlines()
        }
        parts = [opened("tiktoken").token_bytes(token) for token in opened("tiktoken").encode(piece).ids]
        for position in range(len(parts) - 2, -1, -1):
            ranks.setdefault(b"".join(parts[position:]), len(ranks) + 1)
        lines = [base64.b64encode(data) + b" %d" % rank for data, rank in ranks.items()]
        return _written({**files, "tiny.tiktoken": b"\n".join(lines) + b"\n"})
    source = json.loads(_source(kind))
    model = source["model"]
    space = "▁" if source["normalizer"] is not None or kind in ("mistral", "t5", ONE_WORD) else " "
    size = len(model["vocab"])
    if model["type"] == "Unigram":
        model["vocab"].append([piece.replace(" ", space), -0.5])
    elif model["type"] == "WordPiece":
        model["vocab"][piece] = size
    else:
        names = {token: name for name, token in model["vocab"].items()}
        tokenizer = opened(kind)
        ids = tokenizer.encode("x" + piece).ids[len(tokenizer.encode("x").ids) :]
        parts = [
            tokenizer.token_bytes(token).decode() if token in tokenizer.vocabulary.fallback else names[token]
            for token in ids
        ]
        for part in parts:
            model["vocab"].setdefault(part, len(model["vocab"]))
        for position in range(len(parts) - 2, -1, -1):
            joined = "".join(parts[position:])
            if joined not in model["vocab"]:
                model["merges"].append([parts[position], "".join(parts[position + 1 :])])
                model["vocab"][joined] = len(model["vocab"])
    for token in source["added_tokens"]:
        token["id"] += (len(model["vocab"]) - size) * (token["id"] >= size)
    return _written({"tokenizer.json": json.dumps(source).encode()}, _ends(kind))


@cache
def opened(kind: str) -> Tokenizer:
    if kind == "t5":
        return train_unigram(TEXTS, 150)
    if kind == "tiktoken":
        return _written(tiktoken_files())
    return _written({"tokenizer.json": _source(kind).encode()}, _ends(kind))


@cache
def _source(kind: str) -> str:
    if kind == "t5":
        return opened("t5").files["tokenizer.json"].decode()
    if kind == ONE_WORD:
        source = json.loads(opened("t5").files["tokenizer.json"])
        source["pre_tokenizer"]["split"] = False
        return json.dumps(source)
    return json.dumps(SOURCES[kind][0]())


def _ends(kind: str) -> str:
    return "</s>" if kind in ("t5", ONE_WORD) else SOURCES[kind][1]


def _written(files: dict[str, bytes], end: str | None = None) -> Tokenizer:
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            Path(folder, name).write_bytes(content)
        return tokenization.load_tokenizer(folder, eos=end)


def _split(pattern: str) -> pre_tokenizers.PreTokenizer:
    cut = pre_tokenizers.Split(library.Regex(pattern), "isolated")
    return pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _byte_level(made: library.Tokenizer, *specials: str) -> dict[str, Any]:
    letters = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=330, initial_alphabet=letters, show_progress=False))
    made.add_special_tokens([library.AddedToken(name, special=True) for name in specials])
    return json.loads(made.to_str())


def _fallback(normalizer: Any, pre_tokenizer: Any) -> dict[str, Any]:
    shell = library.Tokenizer(models.BPE())
    shell.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    shell.train_from_iterator(
        [text.replace("ï", "i") for text in TEXTS], trainers.BpeTrainer(vocab_size=110, show_progress=False)
    )
    model = json.loads(shell.to_str())["model"]
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *model["vocab"]]
    vocabulary = {name: index for index, name in enumerate(names)}
    merges = [tuple(merge) for merge in model["merges"]]
    made = library.Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    if normalizer is not None:
        made.normalizer = normalizer
    if pre_tokenizer is not None:
        made.pre_tokenizer = pre_tokenizer
    made.add_special_tokens([library.AddedToken(name, special=True) for name in ("<unk>", "<s>", "</s>")])
    return json.loads(made.to_str())


@cache
def with_added(kind: str, **flags: bool) -> Tokenizer:
    """A tokenizer of a kind with added tokens that are no special ones: a tag, one with a space, and a bare digit."""
    source = json.loads(_source(kind))
    size = 1 + max([*source["model"]["vocab"].values(), *(token["id"] for token in source["added_tokens"])])
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    names = ("<b>", "so a", "4")
    taken = {token["content"] for token in source["added_tokens"]} | set(source["model"]["vocab"])
    for content in [name for name in names if name not in taken]:
        source["added_tokens"].append({"id": size, "content": content, **plain, **flags})
        size += 1
    return _written({"tokenizer.json": json.dumps(source).encode()}, _ends(kind))


def gemma_of(mistral: Path) -> Tokenizer:
    """A stand-in for Gemma's tokenizer made of Mistral's pieces: byte fallback, no space before a text, a text whole
    before the model with `▁` for its spaces, single digits; runs of newlines and some tags as added tokens that are no
    special ones, and the one piece of Gemma's 262,144 that lies across a space, `>▁</`."""
    source = json.loads((mistral / "tokenizer.json").read_text("utf-8"))
    source["normalizer"] = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    source["pre_tokenizer"] = {
        "type": "Split",
        "pattern": {"String": " "},
        "behavior": "MergedWithPrevious",
        "invert": False,
    }
    source["post_processor"] = None
    model = source["model"]
    model["vocab"][">▁</"] = len(model["vocab"])
    model["merges"].append([">", "▁</"] if isinstance(model["merges"][0], list) else "> ▁</")
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    for content in (*("\n" * n for n in range(2, 12)), "<table>", "<td>", "</td>", "<h1>", "</h1>"):
        source["added_tokens"].append({"id": len(model["vocab"]), "content": content, **plain})
        model["vocab"][content] = len(model["vocab"])
    return _written({"tokenizer.json": json.dumps(source, ensure_ascii=False).encode()}, "</s>")
