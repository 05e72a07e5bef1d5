"""Every kind of tokenizer as the student's and as the teacher's."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill import errors, tokenization
from potstill.alignment.cross_tokenizer import transfer
from potstill.records import END, Chain
from potstill.tokenization.encoder import build_id_encoder
from tokenizer_kinds import KINDS, LOSSY, TEXTS, opened

HARD_TEXTS = ["", " ", "\n", "a", "  two  spaces\t\n", "日本 🥃 é", "4\r\n5", "<|endoftext|></s>[SEP]", "▁Weng ng"]
LOSSLESS = [kind for kind in KINDS if kind not in LOSSY]


def spoken(kind: str, text: str) -> Chain:
    """A chain of a teacher of this kind, of the text that its tokens make; all candidates are tokens of its own."""
    teacher = opened(kind)
    ids = teacher.encode(text).ids
    pieces = teacher.split(ids)  # a dummy space alone has no bytes
    others = [teacher.token_bytes(token) for token in range(teacher.size) if teacher.token_bytes(token)][
        :: teacher.size // 7
    ]
    steps = []
    for piece in pieces:
        rest = [other for other in others if other != piece]
        steps.append([(piece, math.log(0.7)), *((other, math.log(0.25 / len(rest))) for other in rest)])
    return Chain.from_tokens("q", 0, pieces, [*steps, [(END, math.log(0.9)), (b".", math.log(0.1))]])


def spelled(kind: str, text: str) -> bool:
    """Whether a lossless kind tells this text from every other. Metaspace puts its space before a text only where none
    stands, so that a first one is not told apart; and `▁` is how kinds with fallback to bytes write a space."""
    if kind == "mistral" and text[:1].isspace():
        return False
    return not (kind in ("llama-2", "mistral", "gemma") and "▁" in text)


@pytest.mark.parametrize(
    ("text", "kind"),
    [(text, kind) for text in (*TEXTS[:3], *HARD_TEXTS) for kind in LOSSLESS if spelled(kind, text)],
)
def test_the_pieces_of_a_lossless_kind_spell_any_text(text: str, kind: str) -> None:
    student = opened(kind)
    encoding = student.encode(text)
    assert b"".join(student.split(encoding.ids)) == text.encode() == student.decode_bytes(encoding.ids)
    assert b"".join(text.encode()[start:end] for start, end in encoding.spans) == text.encode()
    assert not set(encoding.ids) & set(student.vocabulary.specials.values()), "names of special tokens are text"


@pytest.mark.parametrize("kind", LOSSY)
@pytest.mark.parametrize("text", [*TEXTS[:3], *HARD_TEXTS])
def test_the_spans_of_a_lossy_kind_stand_on_their_text(kind: str, text: str) -> None:
    student, data = opened(kind), text.encode()
    encoding = student.encode(text)
    places = {position for start, end in encoding.spans for position in range(start, end)}
    assert not b"".join(
        data[position : position + 1] for position in range(len(data)) if position not in places
    ).strip()
    for token, (start, end) in zip(encoding.ids, encoding.spans, strict=True):
        piece = student.token_bytes(token).strip()
        if piece and data[start:end].isascii():
            assert piece.decode().casefold() in data[start:end].decode().casefold()


def test_kinds_are_what_they_stand_for() -> None:
    numbers = [
        [data for data in opened(kind).vocabulary.table if data and data.isdigit()] for kind in ("qwen", "llama-3")
    ]
    assert max(map(len, numbers[0])) == 1 < max(map(len, numbers[1])) <= 3
    assert [opened(kind).vocabulary.dummy for kind in ("llama-2", "mistral", "gemma")] == [True, True, False]
    assert all(opened(kind).vocabulary.fallback for kind in ("llama-2", "mistral", "gemma"))
    assert opened("llama-3").prefix and not opened("qwen").prefix
    assert opened("bert").token_bytes(opened("bert").encode("NAÏVE").ids[0]).startswith(b" n")
    assert opened("tiktoken").encode(TEXTS[0]).ids and opened("tiktoken").size == 257 + len(
        [data for data in opened("qwen").vocabulary.table if data and len(data) > 1]
    )


@pytest.mark.parametrize("teacher, student", list(itertools.product(KINDS, KINDS)))
def test_every_teacher_teaches_every_student(teacher: str, student: str) -> None:
    tokenizer = opened(student)
    for text in ("She earns $12\nSo 日",):
        chain = spoken(teacher, text)
        soft = {}
        for rule in ("one-hot", "span", "text"):
            target = transfer(chain, tokenizer, rule)
            assert list(target.ids) == [*tokenizer.encode(chain.text).ids, tokenizer.eos]
            for position in range(len(target)):
                shares = target.distribution(position)
                assert shares and all(0 < share <= 1 for share in shares.values())
                assert sum(shares.values()) + target.tail(position) == pytest.approx(1)
                assert all(0 <= token < tokenizer.size for token in shares)
            soft[rule] = sum(kind not in ("hard", "end") for kind in target.kinds)
            assert target.kinds[-1] == "end"
        assert soft["one-hot"] == 0 and soft["span"] <= soft["text"], "a text is never less than a span"


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_tokenizer_on_both_sides_is_the_identity(kind: str) -> None:
    tokenizer = opened(kind)
    chain = spoken(kind, "She earns $12 an hour")
    if kind in LOSSY and tokenizer.split(tokenizer.encode(chain.text).ids) != list(chain.tokens):
        pytest.skip("this text is not what its own tokens make")
    target = transfer(chain, tokenizer, "text", teacher=tokenizer)
    for position, (token, step) in enumerate(zip(chain.tokens, chain.candidates, strict=False)):
        shown = {
            tokenizer.vocabulary.candidate(one, position): share for one, share in target.distribution(position).items()
        }
        wanted = {what: math.exp(value) for what, value in step}
        assert shown[token] == pytest.approx(0.7)
        missing = [what for what in wanted if what not in shown and position]
        assert not missing or kind in LOSSY, "every candidate is a token of its own"
    assert target.distribution(len(target) - 1)[tokenizer.eos] == pytest.approx(0.9)


@settings(max_examples=15, deadline=None)
@given(st.text(max_size=30), st.sampled_from(KINDS), st.sampled_from(KINDS))
def test_any_text_between_any_two_kinds(text: str, teacher: str, student: str) -> None:
    target = transfer(spoken(teacher, text), opened(student), "text")
    assert all(sum(target.distribution(position).values()) <= 1 + 1e-9 for position in range(len(target)))


def test_llama_3_ranks_without_a_description_say_what_is_missing(tmp_path: Path) -> None:
    from tokenizer_kinds import tiktoken_files

    (tmp_path / "tiny.tiktoken").write_bytes(tiktoken_files()["tiny.tiktoken"])
    with pytest.raises(errors.UserError, match="E-tokenizer-no-description"):
        tokenization.load_tokenizer(tmp_path)


PLAIN = st.text(st.sampled_from(" ,.$0123456789abehnstuwABW<>/=*'`^~"), max_size=16)


@pytest.mark.parametrize("kind", KINDS)
@given(text=PLAIN)
@settings(max_examples=60, deadline=None)
def test_words_have_the_ids_of_the_long_way(kind: str, text: str) -> None:
    library = opened(kind).encoder.library
    for whole in (text, f"a {text}"):
        assert _short(kind)(whole) == library.encode(whole, add_special_tokens=False).ids


@cache
def _short(kind: str) -> Callable[[str], list[int]]:
    return build_id_encoder(opened(kind).encoder.library)


def test_the_models_of_sentencepiece_are_asked_directly() -> None:
    asked = {kind for kind in KINDS if _short(kind).__name__ == "encode_plain"}
    assert asked == {"t5", "llama-2", "mistral"}


@pytest.mark.parametrize("name", ["t5", "mistral"])
def test_real_words_have_the_ids_of_the_long_way(data: Path, name: str) -> None:
    library = tokenization.load_tokenizer(data / "tokenizers" / name).encoder.library
    short = build_id_encoder(library)
    assert short.__name__ == "encode_plain"
    lines = (data / "gsm8k" / "train.jsonl").read_text("utf-8").splitlines()[:200]
    for text in {f"a {word}" for line in lines for word in json.loads(line)["answer"].split()}:
        assert short(text) == library.encode(text, add_special_tokens=False).ids
