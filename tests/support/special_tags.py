"""Tokenizers with added tokens that are tags of thoughts, special or not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transformers import AutoTokenizer

from potstill import tokenization
from potstill.tokenization import Tokenizer
from tools.toy_models.tokenizer_training import train_bpe

TEXTS = ["Tom has 2 apples and buys 3. 2 + 3 = 5. The answer is 5", "wait, is it 4?\n\nNo."]
XML = ("<think>", "</think>")
CHANNELS = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>")


def with_tags(folder: Path, *, special: bool, names: Sequence[str] = (*XML, *CHANNELS)) -> Tokenizer:
    """A byte-level tokenizer with added tokens, as transformers saves it. Their ids do not depend on `special`."""
    folder.mkdir()
    for name, content in train_bpe(TEXTS, 300).files.items():
        (folder / name).write_bytes(content)
    library = AutoTokenizer.from_pretrained(folder)
    library.add_tokens(list(names), special_tokens=special)
    library.save_pretrained(folder)
    return tokenization.load_tokenizer(folder)


def ids_of(tokenizer: Tokenizer, pieces: Sequence[str]) -> tuple[int, ...]:
    """The ids of pieces, each a tag or a text."""
    specials = tokenizer.vocabulary.specials
    return tuple(i for p in pieces for i in ((specials[p],) if p in specials else tokenizer.encode(p).ids))
