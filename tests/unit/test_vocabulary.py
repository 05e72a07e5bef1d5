"""Vocabulary pieces as bytes, and encodings whose spans are positions in the text."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any
from unicodedata import category

import pytest
import tokenizers as library
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill import tokenization
from potstill.errors import UserError
from potstill.records import END
from potstill.tokenization.encoder import MAX_RECENT, get_encoder
from potstill.tokenization.vocabulary import Vocabulary, parse_tokenizer_json, replace_special_tokens
from tools.toy_models.tokenizer_training import train_bpe, train_unigram

TEXTS = ["She earns $12.50 for 3 hours.\nSo 4 * 12 = 48.", "Weng has 7 apples, naïve café", "a  b\tc"] * 4


def added(*tokens: tuple[int, str, bool]) -> list[dict[str, Any]]:
    return [{"id": number, "content": content, "special": special} for number, content, special in tokens]


def byte_fallback(**more: Any) -> dict[str, Any]:
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2, "<0x0A>": 3, "<0x61>": 4, "▁a": 5, "a": 6, "▁▁": 7}
    prepend = {"type": "Prepend", "prepend": "▁"}
    space = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    return {
        "normalizer": {"type": "Sequence", "normalizers": [prepend, space]},
        "model": {"type": "BPE", "unk_token": "<unk>", "byte_fallback": True, "vocab": vocab, "merges": []},
        "added_tokens": added((0, "<unk>", True), (1, "<s>", True), (2, "</s>", True)),
        **more,
    }


def test_byte_fallback_pieces_are_bytes_and_pieces_proper_win() -> None:
    vocabulary = parse_tokenizer_json(byte_fallback())
    assert vocabulary.table == (None, None, None, b"\n", b"a", b" a", b"a", b"  ")
    assert (vocabulary.eos, vocabulary.pad, vocabulary.unk, vocabulary.dummy) == (2, None, 0, True)
    assert vocabulary.find(b"a") == 6, "the piece, not the byte <0x61>"
    assert vocabulary.find(b"a", first=True) == 5, "at the start of a text a space goes before it"
    assert vocabulary.find(b"b") is None and vocabulary.find(b"") is None


def test_the_first_text_token_loses_its_dummy_space_and_specials_are_empty() -> None:
    vocabulary = parse_tokenizer_json(byte_fallback())
    assert vocabulary.split([1, 5, 5, 2]) == [b"", b"a", b" a", b""]
    assert vocabulary.split([7, 6]) == [b" ", b"a"]
    assert vocabulary.split([]) == []
    assert vocabulary.candidate(5, 0) == b"a" and vocabulary.candidate(5, 3) == b" a"
    assert vocabulary.candidate(2, 0) is END and vocabulary.candidate(1, 0) is None


def test_byte_level_pieces_are_bytes_and_added_tokens_are_their_own_text() -> None:
    vocab = {"a": 0, "Ġ": 1, "Ċ": 2, "Ã": 3, "©": 4, "<|endoftext|>": 5}
    source = {
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True},
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
        "added_tokens": added((5, "<|endoftext|>", True), (6, "é", False), (9, "<tool>", False)),
    }
    vocabulary = parse_tokenizer_json(json.dumps(source))
    expected = (b"a", b" ", b"\n", b"\xc3", b"\xa9", None, "é".encode(), None, None, b"<tool>")
    assert vocabulary.table == expected, "é is two bytes, though é is also the stand-in of the byte e9"
    assert vocabulary.size == 10 and vocabulary.dummy is False and vocabulary.eos == 5


def test_word_pieces() -> None:
    source = {
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "vocab": {"[UNK]": 0, "play": 1, "##ing": 2}},
        "added_tokens": added((0, "[UNK]", True)),
    }
    vocabulary = parse_tokenizer_json(source)
    assert vocabulary.table == (None, b" play", b"ing")
    assert vocabulary.find(b" play") == 1 == vocabulary.find(b"play", first=True)
    assert vocabulary.find(b"play") is None


def test_a_file_of_before_models_had_types() -> None:
    source = byte_fallback()
    del source["model"]["type"]
    assert parse_tokenizer_json(source).table == parse_tokenizer_json(byte_fallback()).table


@pytest.mark.parametrize("model", [{"type": "WordLevel", "vocab": {}}, {"type": "BPE", "end_of_word_suffix": "</w>"}])
def test_a_model_whose_pieces_have_no_fixed_bytes_is_refused(model: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="E-tokenizer-unsupported-model"):
        parse_tokenizer_json({"model": model})


def test_end_tokens_are_named_known_or_unknown() -> None:
    source = byte_fallback(added_tokens=added((1, "<|eot_id|>", True), (2, "</s>", True)))
    assert parse_tokenizer_json(source).eos is None, "two well-known names: no guess"
    assert parse_tokenizer_json(source, eos="</s>").eos == 2 and parse_tokenizer_json(source, eos=1).eos == 1
    assert replace_special_tokens(parse_tokenizer_json(source), eos="</s>", pad=3).pad == 3
    assert replace_special_tokens(parse_tokenizer_json(source), pad=6).bytes_of(6) is None, (
        "what ends or pads is no text"
    )
    with pytest.raises(UserError, match="E-tokenizer-no-such-token"):
        parse_tokenizer_json(source, eos="<nothing>")
    with pytest.raises(UserError, match="E-tokenizer-no-such-token"):
        replace_special_tokens(parse_tokenizer_json(source), pad=99)


def test_the_digest_is_of_what_decides_ids() -> None:
    same = byte_fallback(decoder={"type": "Fuse"}, truncation={"max_length": 3})
    assert parse_tokenizer_json(same).digest == parse_tokenizer_json(byte_fallback()).digest
    other = byte_fallback(normalizer=None)
    assert parse_tokenizer_json(other).digest != parse_tokenizer_json(byte_fallback()).digest


@cache
def small() -> dict[str, tokenization.Tokenizer]:
    return {"bpe": train_bpe(TEXTS, 300), "unigram": train_unigram(TEXTS, 80)}


def test_fast_reads_once_changes_nothing_and_ignores_truncation() -> None:
    theirs = library.Tokenizer.from_str(small()["unigram"].files["tokenizer.json"].decode())
    theirs.enable_truncation(3)
    theirs.enable_padding(length=50)
    before = theirs.to_str()
    ours = get_encoder(theirs)
    assert get_encoder(theirs) is ours
    assert len(ours.encode("Weng has 7 apples, naïve café").ids) > 3
    assert theirs.to_str() == before and theirs.encode_special_tokens is False
    assert theirs.encode("</s>", add_special_tokens=False).ids[0] == 1, "the library reads the name as the token"
    assert 1 not in ours.encode("a </s> b").ids, "we do not"
    theirs.add_tokens(["grows"])
    assert get_encoder(theirs) is not ours, "it has grown: it is read again"


def test_fast_takes_transformers_and_refuses_others() -> None:
    from transformers import PreTrainedTokenizerFast

    inner = library.Tokenizer.from_str(small()["bpe"].files["tokenizer.json"].decode())
    theirs = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|endoftext|>")
    assert get_encoder(theirs).encode("7 apples").ids == small()["bpe"].encode("7 apples").ids
    assert get_encoder(theirs).vocabulary.eos == theirs.eos_token_id
    assert get_encoder(small()["bpe"]) is small()["bpe"].encoder
    with pytest.raises(UserError, match="E-tokenizer-not-fast"):
        get_encoder("t5-small")


def test_half_a_surrogate_pair_is_the_users_to_mend() -> None:
    with pytest.raises(UserError, match="E-tokenizer-not-unicode"):
        small()["bpe"].encode("a \ud83d b")


SPECIALS = ["</s>", "<unk>", "<pad>", "<|endoftext|>", "<s>", "<extra_id_0>", "▁", "<0x0A>", "\r\n", "\u0301", "\ufffd"]
TEXT = st.lists(st.one_of(st.text(max_size=8), st.sampled_from([*SPECIALS, " ", "\n", "12", "ﬁ", "½"]))).map("".join)


def visible(data: bytes) -> str:
    """Without white space and what T5 takes for it or takes away."""
    return "".join(
        c for c in data.decode() if not c.isspace() and c not in "\ufffd▁\u0e33" and category(c)[0] not in "CM"
    )


def check(tokenizer: tokenization.Tokenizer, text: str) -> None:
    encoding, data, vocabulary = tokenizer.encode(text), text.encode(), tokenizer.vocabulary
    assert len(encoding.ids) == len(encoding.spans)
    special = set(vocabulary.specials.values()) - {vocabulary.unk}
    assert not special & set(encoding.ids), "a name in a text is text"
    reached = 0
    for position, (token, (start, end)) in enumerate(zip(encoding.ids, encoding.spans, strict=True)):
        assert 0 <= start <= end <= len(data)
        assert start <= reached or not visible(data[reached:start]), "only what cannot be seen is dropped"
        alone = reached <= start and (position + 1 == len(encoding.ids) or end <= encoding.spans[position + 1][0])
        reached = max(reached, end)
        piece = vocabulary.bytes_of(token)
        if alone and piece is not None and piece.isascii() and data[start:end].isascii() and end > start:
            assert visible(piece) == visible(data[start:end]), "where nothing was normalised the piece is the text"
    assert not visible(data[reached:]), "only what cannot be seen is dropped"


@settings(max_examples=120, deadline=None)
@given(TEXT)
def test_spans_of_any_text(text: str) -> None:
    for tokenizer in small().values():
        check(tokenizer, text)
    bpe = small()["bpe"]
    encoding = bpe.encode(text)
    assert bpe.decode_bytes(encoding.ids) == text.encode()
    assert [text.encode()[a:b] for a, b in encoding.spans] == bpe.split(encoding.ids)


def test_offsets_that_stay_behind_are_not_believed(data: Path) -> None:
    text = "\x1f¼ hello world"
    theirs = library.Tokenizer.from_file(str(data / "tokenizers" / "t5" / "tokenizer.json"))
    start, end = theirs.encode(text, add_special_tokens=False).offsets[-1]
    assert text[start:end] == "o worl", "the library's own are one behind"
    encoding = real(data, "t5").encode(text)
    assert len(set(encoding.spans)) == 1, "no token has a place of its own"
    text = "so ½ of  48 is\r\n24 and ﬁve"
    unharmed = [text.encode()[a:b].decode() for a, b in real(data, "t5").encode(text).spans]
    assert unharmed == ["so", " ½", "½", "½", " of", " 48", " is", "\r\n24", " and", " ﬁve"]


@cache
def real(folder: Path, name: str) -> tokenization.Tokenizer:
    return tokenization.load_tokenizer(folder / "tokenizers" / name)


@pytest.mark.parametrize("name", ["t5", "mistral", "gpt2", "cl100k_base"])
def test_spans_of_any_text_under_real_tokenizers(data: Path, name: str) -> None:
    @settings(max_examples=120, deadline=None)
    @given(TEXT)
    def any_text(text: str) -> None:
        check(real(data, name), text)

    any_text()


def test_a_vocabulary_is_data() -> None:
    vocabulary = Vocabulary((b"a",), {}, None, None, None, False, "")
    with pytest.raises(AttributeError):
        vocabulary.eos = 1  # type: ignore[misc]


class Counting:
    """A library's tokenizer that counts how often it is read."""

    def __init__(self, inner: library.Tokenizer) -> None:
        self.inner, self.read = inner, 0

    def get_vocab_size(self) -> int:
        return self.inner.get_vocab_size()

    def to_str(self) -> str:
        self.read += 1
        return self.inner.to_str()

    @staticmethod
    def from_str(text: str) -> library.Tokenizer:
        return library.Tokenizer.from_str(text)


def test_a_tokenizer_is_read_once_while_it_is_in_use() -> None:
    own = small()["bpe"]
    made = [Counting(library.Tokenizer.from_str(own.files["tokenizer.json"].decode())) for _ in range(MAX_RECENT + 1)]
    for tokenizer in made:
        assert get_encoder(tokenizer).encode("2 + 2 = 4") == own.encode("2 + 2 = 4")
        assert get_encoder(tokenizer) is get_encoder(tokenizer) and tokenizer.read == 1
    get_encoder(made[0])
    assert made[0].read == 2, "it was the one used longest ago"
