"""Tokenizers from folders and trained on texts: which open, which are refused, and that their bytes are the text."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import tokenizers as library
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill import tokenization
from potstill.errors import UserError
from potstill.records import END
from potstill.tokenization import Tokenizer
from tools.toy_models.tokenizer_training import train_bpe, train_unigram

TEXTS = ["She earns $12.50 for 3 hours.\nSo 4 * 12 = 48.", "Weng has 7 apples, naïve café"] * 4
REAL = ["t5", "mistral", "gpt2", "p50k_base", "cl100k_base"]


@cache
def small(kind: str) -> Tokenizer:
    return train_bpe(TEXTS, 300) if kind == "bpe" else train_unigram(TEXTS, 80)


@cache
def real(folder: Path, name: str) -> Tokenizer:
    return tokenization.load_tokenizer(folder / "tokenizers" / name)


def write(tokenizer: Tokenizer, folder: Path) -> Path:
    for name, content in tokenizer.files.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_files_open_again_here_and_in_transformers(kind: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    made = small(kind)
    opened = tokenization.load_tokenizer(write(made, tmp_path))
    assert (opened.digest, opened.eos, opened.pad, opened.size) == (made.digest, 1, 0, made.size)
    assert dict(opened.files) == dict(made.files)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert (theirs.eos_token_id, theirs.pad_token_id) == (1, 0)
    ids = made.encode(TEXTS[0]).ids
    assert theirs(TEXTS[0], add_special_tokens=False).input_ids == ids
    assert theirs.decode(ids) == made.decode(ids)


def test_bpe_has_single_digits_and_every_byte() -> None:
    made = small("bpe")
    assert made.split(made.encode("= 12").ids)[-2:] == [b"1", b"2"]
    assert made.decode(made.encode("日本\t🥃 </s>").ids) == "日本\t🥃 </s>"
    assert made.size <= 300


def test_unigram_is_like_t5() -> None:
    made = small("unigram")
    assert made.size <= 80 and made.vocabulary.unk == 2
    assert made.encode("7  apples \n").ids == made.encode("7 apples").ids, "white space is collapsed and dropped"
    assert made.split(made.encode("7 apples").ids)[0] == b"7", "the dummy space is not text"
    assert 2 in made.encode("7 × 日").ids and 2 not in made.encode("7 apples").ids
    pieces = [piece.decode().strip() for piece in made.vocabulary.table if piece]
    assert all(len(piece) < 2 or piece.isalpha() or piece.isdigit() for piece in pieces), "18. is a number and a sign"


def test_training_is_the_same_in_every_process() -> None:
    code = (
        "import hashlib\nfrom tools.toy_models.tokenizer_training import train_bpe, train_unigram\n"
        f"for train, size in ((train_bpe, 300), (train_unigram, 80)):\n"
        f"    files = train({TEXTS!r}, size).files\n"
        "    print(hashlib.sha256(b''.join(files.values())).hexdigest())\n"
    )
    runs = {subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout for _ in range(2)}
    assert len(runs) == 1 and len(runs.pop().split()) == 2


def test_too_small_a_vocabulary_is_refused() -> None:
    with pytest.raises(UserError, match="E-tokenizer-too-small"):
        train_unigram(TEXTS, 10)


@pytest.mark.parametrize(
    ("name", "size", "eos", "pad", "prefix"),
    [
        ("t5", 32_100, 1, 0, ()),
        ("gpt2", 50_257, 50_256, 50_256, ()),
        ("mistral", 32_000, 2, 2, (1,)),
        ("p50k_base", 50_281, 50_256, 50_256, ()),
        ("cl100k_base", 100_277, 100_257, 100_257, ()),
    ],
)
def test_real_tokenizers(data: Path, name: str, size: int, eos: int, pad: int, prefix: tuple[int, ...]) -> None:
    tokenizer = real(data, name)
    assert (tokenizer.size, tokenizer.eos, tokenizer.pad, tokenizer.prefix) == (size, eos, pad, prefix)
    text = "Weng earns $12 an hour, so 0.2 x 50 = $10."
    encoding = tokenizer.encode(text)
    assert tokenizer.decode([*encoding.ids, tokenizer.eos]) == text
    assert [text.encode()[a:b] for a, b in encoding.spans] == tokenizer.split(encoding.ids)
    assert tokenizer.candidate(tokenizer.eos, 5) is END


def test_real_t5_facts(data: Path) -> None:
    t5 = real(data, "t5")
    assert [t5.token_bytes(token) for token in t5.encode("a 1300 ÷").ids] == [b" ", b"a", b" 1", b"300", b" ", b""]
    assert t5.encode("a\n b \n").ids == t5.encode("a b").ids
    with_name = t5.encode("x </s> <extra_id_0> <pad>")
    assert not {0, 1, 32_099} & set(with_name.ids)


@pytest.mark.parametrize("name", ["t5", "mistral", "gpt2"])
def test_ids_are_the_librarys_own(data: Path, name: str) -> None:
    theirs = library.Tokenizer.from_file(str(data / "tokenizers" / name / "tokenizer.json"))
    ours = real(data, name)

    @settings(max_examples=100, deadline=None)
    @given(st.text().filter(lambda text: not any(name in text for name in ours.vocabulary.specials)))
    def any_text(text: str) -> None:
        assert ours.encode(text).ids == theirs.encode(text, add_special_tokens=False).ids
        assert ours.encode_batch([text, "a"]) == [ours.encode(text), ours.encode("a")]

    any_text()


@pytest.mark.parametrize("name", REAL)
def test_pieces_of_any_ids_are_what_the_library_decodes(data: Path, name: str) -> None:
    ours = real(data, name)
    folder = data / "tokenizers" / name
    theirs = library.Tokenizer.from_file(str(folder / "tokenizer.json")) if name in REAL[:3] else None

    @settings(max_examples=100, deadline=None)
    @given(st.lists(st.integers(0, 31_999), max_size=12))
    def any_ids(ids: list[int]) -> None:
        assert b"".join(ours.split(ids)) == ours.decode_bytes(ids)
        assert len(ours.split(ids)) == len(ids)
        text = ours.decode_bytes(ids).decode("utf-8", "ignore")
        if theirs is not None and text.encode() == ours.decode_bytes(ids):
            assert theirs.decode(ids, skip_special_tokens=True) == text == ours.decode(ids)
        for position, token in enumerate(ids[:1]):
            assert ours.candidate(token, position) in (ours.split(ids)[position], END, None)

    any_ids()


def refused(folder: Path) -> tuple[str, str, str]:
    """The code, the place relative to the folder, and what was found."""
    with pytest.raises(UserError) as caught:
        tokenization.load_tokenizer(folder)
    return caught.value.code, caught.value.where.removeprefix(str(folder)).strip("/"), caught.value.found


def test_folders_that_are_no_tokenizer(tmp_path: Path) -> None:
    assert refused(tmp_path / "none") == refused(tmp_path) == ("E-tokenizer-missing", "", "")
    broken = tmp_path / "tokenizer.json"
    broken.write_text('{"model": ')
    assert refused(tmp_path)[:2] == ("E-tokenizer-not-json", "tokenizer.json")
    broken.write_text("[1]")
    assert refused(tmp_path) == ("E-tokenizer-not-json", "tokenizer.json", "[1]")
    broken.write_text("{}")
    assert refused(tmp_path)[:2] == ("E-tokenizer-unreadable", "tokenizer.json")
    broken.write_text(json.dumps({"model": {"type": "WordLevel", "vocab": {}}}))
    assert refused(tmp_path) == ("E-tokenizer-unsupported-model", "tokenizer.json", "WordLevel")


def test_an_end_token_must_be_known(tmp_path: Path) -> None:
    source = json.loads(small("bpe").files["tokenizer.json"])
    for token in source["added_tokens"]:
        token["content"] = {"<|endoftext|>": "<|stop|>"}.get(token["content"], token["content"])
    source["model"]["vocab"] = {
        {"<|endoftext|>": "<|stop|>"}.get(piece, piece): token for piece, token in source["model"]["vocab"].items()
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(source))
    assert refused(tmp_path) == ("E-tokenizer-no-eos", "", "<|pad|>, <|stop|>")
    assert tokenization.load_tokenizer(tmp_path, eos="<|stop|>").eos == 1
    assert tokenization.load_tokenizer(tmp_path, eos="<|stop|>", pad=1).pad == 1
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<|stop|>"}}))
    assert tokenization.load_tokenizer(tmp_path).eos == 1
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|nothing|>"}))
    assert refused(tmp_path) == ("E-tokenizer-no-such-token", "", "'<|nothing|>'")


def test_tiktoken_folders(tmp_path: Path) -> None:
    ranks = tmp_path / "tiny.tiktoken"
    lines = [f"{base64.b64encode(bytes([byte])).decode()} {byte}" for byte in range(256)]
    ranks.write_text("\n".join(lines))
    assert refused(tmp_path)[:2] == ("E-tokenizer-no-description", "tiny.json")
    about = tmp_path / "tiny.json"
    about.write_text('{"pat_str": "."}')
    assert refused(tmp_path)[:2] == ("E-tokenizer-bad-description", "tiny.json")
    about.write_text(json.dumps({"pat_str": "(?s:.)", "special_tokens": {"<|endoftext|>": 256}}))
    opened = tokenization.load_tokenizer(tmp_path)
    assert (opened.eos, opened.size) == (256, 257)
    assert opened.encode("<|endoftext|>é").ids == list("<|endoftext|>é".encode())
    ranks.write_text("\n".join([*lines, "not base64 at all"]))
    assert refused(tmp_path)[:2] == ("E-tokenizer-bad-line", "tiny.tiktoken line 257")
    (tmp_path / "other.tiktoken").write_text("")
    assert refused(tmp_path) == ("E-tokenizer-several", "", "other.tiktoken, tiny.tiktoken")
