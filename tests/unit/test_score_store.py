"""The store of scores: what is appended is read again, whatever happened to the end of the file."""

from __future__ import annotations

import json
import math
import random
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crashing import Crash, crash
from potstill.errors import UserError
from potstill.records import END, Chain
from potstill.storage.scores import KEY_CHARS, ScoreStore, decode_scores, encode_scores

PIECES = st.one_of(st.just(END), st.binary(max_size=6), st.text(max_size=4).map(str.encode))
VALUES = st.integers(-10_000_000_000, 0).map(lambda units: units / 10**6)
STEPS = st.lists(st.tuples(PIECES, VALUES), max_size=5).map(tuple)


@st.composite
def chains(draw) -> Chain:
    tokens = draw(st.lists(st.binary(min_size=1, max_size=5), max_size=8))
    content = b"".join(tokens) + draw(st.binary(max_size=3))
    ends = [sum(map(len, tokens[: place + 1])) for place in range(len(tokens))]
    spans = [(end - len(token), end) for token, end in zip(tokens, ends, strict=True)]
    steps = draw(st.sampled_from([0, len(tokens), len(tokens) + 1]))
    candidates = tuple(draw(STEPS) for _ in range(steps))
    defects = tuple(draw(st.lists(st.text(max_size=8), max_size=2)))
    return Chain("", "", 0, content, tuple(tokens), tuple(spans), candidates, "end", "raw", defects)


@given(chains())
def test_what_is_encoded_is_decoded(chain: Chain) -> None:
    found = decode_scores(encode_scores(chain))
    assert found == chain
    assert all(math.copysign(1, value) == -1 or value == 0 for step in found.candidates for _, value in step)


def key(number: int) -> str:
    return f"{number:0{KEY_CHARS}x}"


@given(st.lists(chains(), min_size=1, max_size=5), st.data())
def test_a_file_that_is_cut_anywhere_keeps_its_complete_lines(texts: list[Chain], data) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scores.jsonl"
        with ScoreStore(path) as store:
            for number, chain in enumerate(texts):
                store.append(key(number), chain)
        whole = path.read_bytes()
        cut = data.draw(st.integers(0, len(whole)))
        path.write_bytes(whole[:cut])
        kept = whole[:cut].count(b"\n")
        with ScoreStore(path) as store:
            assert [key(number) in store for number in range(len(texts))] == [n < kept for n in range(len(texts))]
            for number in range(kept, len(texts)):
                store.append(key(number), texts[number])
            assert [store.read(key(number)) for number in range(len(texts))] == texts
        assert path.read_bytes() == whole
        assert all(set(json.loads(line)) == {"key", "scores"} for line in whole.splitlines())


def test_a_crash_at_any_moment_keeps_what_was_stored_before(tmp_path: Path) -> None:
    chain = Chain.from_tokens("", 0, [b"4"], [[(b"4", -0.5)]], source="")
    for number in range(12):
        path = tmp_path / str(number) / "scores.jsonl"
        returned = 0
        with crash(number), pytest.raises(Crash):
            store = ScoreStore(path)
            for text in range(9):
                store.append(key(text), chain)
                returned += 1
        assert returned <= len(ScoreStore(path)) <= returned + 1


def test_lines_that_a_power_loss_damaged_are_passed_over(tmp_path: Path) -> None:
    path, chain = tmp_path / "scores.jsonl", Chain.from_tokens("", 0, [b"4"], [[(b"4", -0.5)]], source="")
    with ScoreStore(path) as store:
        for number in range(3):
            store.append(key(number), chain)
    first, second, third = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + b"\0" * (len(second) - 1) + b"\n" + third)
    with ScoreStore(path) as store:
        assert [key(number) in store for number in range(3)] == [True, False, True] and store.read(key(2)) == chain
        store.append(key(1), chain)
        assert store.read(key(1)) == chain and len(ScoreStore(path)) == 3


@pytest.mark.parametrize("line", [b"{}\n", b'{"key":"x","scores":""}\n', b"scores\n"])
def test_a_line_of_another_kind_is_refused(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "scores.jsonl"
    path.write_bytes(line)
    with pytest.raises(UserError, match=r"scores\.jsonl line 1(.|\n)*E-storage-invalid-record"):
        ScoreStore(path)


def test_changed_scores_are_refused(tmp_path: Path) -> None:
    path, chain = tmp_path / "scores.jsonl", Chain.from_tokens("", 0, [b"4"], [[(b"4", -0.5)]], source="")
    with ScoreStore(path) as store:
        store.append(key(0), chain)
    data = path.read_bytes()
    path.write_bytes(data[:60] + b"AAAA" + data[64:])
    with pytest.raises(UserError, match="E-storage-invalid-record"):
        ScoreStore(path).read(key(0))


def test_a_text_takes_few_bytes() -> None:
    """100 tokens with 20 alternatives of a vocabulary of 3,000: a third of the JSON."""
    draw = random.Random(0)
    steps = [[(b" %d" % draw.randint(0, 3000), -round(draw.uniform(0, 12), 6)) for _ in range(20)] for _ in range(101)]
    chain = Chain.from_tokens("", 0, [step[0][0] for step in steps[:100]], steps, source="")
    assert len(encode_scores(chain)) < 15_000
