"""Trains tokenizers on texts: byte-level BPE for a small teacher, a Unigram model like T5's for a small student.

>>> tokenizer = train_unigram(["4 apples and 4 pens"] * 9, 40)
>>> [tokenizer.token_bytes(token) for token in tokenizer.encode("4 pens\\n").ids]
[b' 4', b' pens']
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from math import log

import tokenizers as library

from potstill.errors import UserError
from potstill.tokenization.encoder import Encoder, copy_without_special_tokens
from potstill.tokenization.load import Tokenizer, build_tokenizer
from potstill.tokenization.vocabulary import parse_tokenizer_json


def train_bpe(texts: Sequence[str], size: int) -> Tokenizer:
    """Byte-level BPE in which every digit is a token of its own: pad 0, eos 1, at most `size` tokens, at least 258.
    The same texts give the same bytes."""
    assert size >= 258, "256 bytes and two special tokens"
    bpe = library.Tokenizer(library.models.BPE())
    digits = library.pre_tokenizers.Digits(individual_digits=True)
    bpe.pre_tokenizer = library.pre_tokenizers.Sequence(
        [digits, library.pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = library.decoders.ByteLevel()
    names = {"pad_token": "<|pad|>", "eos_token": "<|endoftext|>"}
    trainer = library.trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(names.values()),
        initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return _finish_tokenizer(bpe, names)


def train_unigram(texts: Sequence[str], size: int) -> Tokenizer:
    """A Unigram model like T5's: pad 0, eos 1, unk 2, whitespace collapsed, `▁` for a space, a dummy space at the
    start, numbers whole where they are frequent; at most `size` tokens. A character that the texts lack is unk.

    The same texts give the same bytes. The library's own Unigram trainer does not (its sums run in the order of a hash
    table), so BPE proposes the pieces, counting the best segmentation of each word fits their scores, and the least
    used pieces are dropped.
    """
    shell = library.Tokenizer(library.models.BPE())
    space = library.Regex(r"\s+")
    shell.normalizer = library.normalizers.Sequence(
        [
            library.normalizers.NFKC(),
            library.normalizers.Replace(space, " "),
            library.normalizers.Strip(left=True, right=True),
        ]
    )
    metaspace = library.pre_tokenizers.Metaspace(prepend_scheme="first")
    # No piece joins letters, digits and signs: a piece `18.` would hide the number.
    runs = library.pre_tokenizers.Split(library.Regex(r"▁?(\p{L}+|\p{N}+|[^▁])|▁"), "isolated")
    shell.pre_tokenizer = library.pre_tokenizers.Sequence([metaspace, runs])
    trainer = library.trainers.BpeTrainer(vocab_size=size + size // 3, show_progress=False)
    shell.train_from_iterator(texts, trainer)
    words = Counter(
        word for text in texts for word, _ in shell.pre_tokenizer.pre_tokenize_str(shell.normalizer.normalize_str(text))
    )
    letters = sorted({letter for word in words for letter in word} | {"▁"})
    pieces = sorted({*letters, *shell.get_vocab()})
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    if size < len(names) + len(letters):
        raise UserError(
            "the vocabulary is too small for the characters of the texts",
            code="E-tokenizer-too-small",
            found=f"{len(letters)} different characters and {len(names)} special tokens, size {size}",
            hint="raise its size",
        )
    counts = _count_pieces(shell, words)
    for round_number in range(4):
        if round_number == 2:
            longer = sorted((piece for piece in pieces if len(piece) > 1), key=lambda piece: (-counts[piece], piece))
            pieces = [*letters, *longer[: size - len(names) - len(letters)]]
        scores = _piece_scores(pieces, counts)
        counts = _count_pieces(library.Tokenizer(library.models.Unigram(scores, None, False)), words)
    frequent = sorted(_piece_scores(pieces, counts), key=lambda pair: (-pair[1], pair[0]))
    scores = [*((name, 0.0) for name in names.values()), *frequent]
    unigram = library.Tokenizer(library.models.Unigram(scores, 2, False))
    unigram.normalizer, unigram.pre_tokenizer = shell.normalizer, metaspace
    unigram.decoder = library.decoders.Metaspace(prepend_scheme="always")
    unigram.add_special_tokens([library.AddedToken(name, special=True, normalized=False) for name in names.values()])
    unigram.post_processor = library.processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return _finish_tokenizer(unigram, names)


def _count_pieces(model: library.Tokenizer, words: Mapping[str, int]) -> Counter[str]:
    # Whole numbers, so that no order of summation can show in a score.
    counts: Counter[str] = Counter()
    bare = library.Tokenizer(model.model)
    for encoding, times in zip(bare.encode_batch(list(words), add_special_tokens=False), words.values(), strict=True):
        for piece in encoding.tokens:
            counts[piece] += times
    return counts


def _piece_scores(pieces: Sequence[str], counts: Mapping[str, int]) -> list[tuple[str, float]]:
    total = sum(counts.values()) + len(pieces) / 2
    return [(piece, round(log((counts.get(piece, 0) + 0.5) / total), 6)) for piece in pieces]


def _finish_tokenizer(trained: library.Tokenizer, names: Mapping[str, str]) -> Tokenizer:
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **names}
    source = json.loads(trained.to_str())
    content = {"tokenizer.json": source, "tokenizer_config.json": config, "special_tokens_map.json": names}
    files = {name: json.dumps(value, ensure_ascii=False, indent=1).encode() for name, value in content.items()}
    vocabulary = parse_tokenizer_json(source, eos=names["eos_token"], pad=names["pad_token"])
    return build_tokenizer(Encoder(vocabulary, copy_without_special_tokens(source, library.Tokenizer)), files)
