"""Defects that other projects have in alignment and transfer, and potstill must not have: one test for each."""

from __future__ import annotations

import json
import math
import os
import random
import sys
from functools import cache
from pathlib import Path

import pytest
import tokenizers as library

from potstill import tokenization
from potstill.alignment.cross_tokenizer import transfer
from potstill.alignment.text_rule_completions import completions
from potstill.records import END, Candidate, Chain, Target
from potstill.tokenization import Tokenizer
from tools.toy_models.tokenizer_training import train_bpe, train_unigram

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import fuzz

TEXTS = [f"She earns ${n}.50 for {n} hours.\nSo {n} * 12 = {12 * n}." for n in range(3, 40)] + ["Weng naïve café"] * 3


@cache
def small(kind: str) -> Tokenizer:
    return train_bpe(TEXTS, 330) if kind == "bpe" else train_unigram(TEXTS, 150)


def spoken(teacher: Tokenizer, text: str, top: float = 0.8, *before: bytes) -> Chain:
    """A text in a teacher's tokens, each of them shown with one other outcome."""
    tokens = [*before, *teacher.split(teacher.encode(text).ids)]
    steps: list[list[Candidate]] = [[(token, math.log(top)), (b" never", math.log(0.1))] for token in tokens]
    return Chain.from_tokens("q", 0, tokens, [*steps, [(END, math.log(0.9))]])


def soft(target: Target) -> list[bool]:
    return [target.distribution(position) != {token: 1.0} for position, token in enumerate(target.ids)]


def test_one_invalid_byte_misaligns_nothing_behind_it() -> None:
    text = " ".join(TEXTS[:16])
    clean = transfer(spoken(small("bpe"), text), small("unigram"))
    dirty = transfer(spoken(small("bpe"), text, 0.8, b"\xff"), small("unigram"))
    assert dirty.kinds[-250:] == clean.kinds[-250:] and dirty.ids[-250:] == clean.ids[-250:]
    for position in range(1, 250):
        assert dirty.distribution(len(dirty) - position) == pytest.approx(clean.distribution(len(clean) - position))


def test_added_tokens_that_are_not_ascii_have_their_own_bytes() -> None:
    source = json.loads(small("bpe").files["tokenizer.json"])
    made = library.Tokenizer.from_str(json.dumps(source))
    made.add_tokens(["→résultat"])
    chain = spoken(small("bpe"), "So →résultat 12 hours.")
    target = transfer(chain, made)
    added = made.token_to_id("→résultat")
    assert added in target.ids
    place = target.ids.index(added)
    assert target.kind(place) == "merged" and target.kinds[place + 1 :].count("same") >= 3, (
        "what follows keeps its place"
    )


@pytest.mark.parametrize("name", ["t5", "mistral", "gpt2", "cl100k_base"])
def test_no_kind_of_tokenizer_is_refused(data: Path, name: str) -> None:
    """A peer takes byte-level BPE alone: T5, Llama-2 and Gemma raise."""
    chain = spoken(small("bpe"), "She earns $12.50 for 3 hours.\nSo 3 * 12 = 36.")
    target = transfer(chain, tokenization.load_tokenizer(data / "tokenizers" / name), completions=None)
    assert "hard" not in target.kinds


def test_the_first_token_is_distilled_and_no_row_is_its_neighbours() -> None:
    """Two peers are off by one: the first answer token gets nothing; or a row holds the token before its own."""
    for student in (small("unigram"), small("bpe")):
        chain = spoken(small("bpe"), "So 12 * 3 = 36.")
        for rule in ("one-hot", "paper", "span", "text"):
            target = transfer(chain, student, rule)
            assert all(token in target.distribution(position) for position, token in enumerate(target.ids))
        assert soft(transfer(chain, student))[0]


def test_what_was_not_seen_is_never_shared_out_among_what_was() -> None:
    """A peer renormalises the top k always; a peer's merge gives a perfect student a loss."""
    teacher = student = small("bpe")
    target = transfer(spoken(teacher, "So 12"), student, teacher=teacher)
    for position in range(len(target) - 1):
        assert target.distribution(position)[target.ids[position]] == pytest.approx(0.8)
        assert target.tail(position) == pytest.approx(0.1 if len(target.distribution(position)) > 1 else 0.2)


def test_numbers_that_are_cut_differently_keep_their_distribution() -> None:
    """The rule "one to one and equal" keeps 20 % of digit tokens from GPT-2 to Llama-2."""
    teacher, student = small("unigram"), small("bpe")
    text = "So 12 * 30 = 360 and 36 * 12 = 432."
    for own, other in ((teacher, student), (student, teacher)):
        chain = spoken(own, text)
        run = completions([chain], other)
        digits = [any(48 <= b <= 57 for b in other.token_bytes(token)) for token in other.encode(text).ids]
        by_text = [s for s, digit in zip(soft(transfer(chain, other, completions=run)), digits, strict=False) if digit]
        by_paper = [s for s, digit in zip(soft(transfer(chain, other, "paper")), digits, strict=False) if digit]
        assert sum(by_text) > sum(by_paper) and sum(by_text) >= 0.5 * len(by_text)


def test_line_starts_keep_their_distribution() -> None:
    teacher, student = small("bpe"), small("unigram")
    chain = spoken(teacher, "She earns 12.\nSo 12 * 3 = 36.")
    place = [student.token_bytes(token) for token in student.encode(chain.text).ids].index(b" So")
    assert soft(transfer(chain, student))[place] and not soft(transfer(chain, student, "span"))[place]


def test_a_tokenizer_with_fewer_ids_than_rows_gives_no_id_beyond_it() -> None:
    """Vocabularies are padded (152,064 rows for 151,936 tokens): a target never names a row without a token."""
    for student in (small("unigram"), small("bpe")):
        target = transfer(spoken(small("bpe"), "So 12 never"), student)
        assert max(target.candidate_ids) < student.size


def test_random_pairs() -> None:
    """`benchmarks/fuzz.py` on a small count; POTSTILL_FUZZ sets another."""
    count = int(os.environ.get("POTSTILL_FUZZ", "150"))
    for number in range(count):
        fuzz.check(random.Random(f"suite {number}"), [small("unigram"), small("bpe")], number)
