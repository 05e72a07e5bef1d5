"""Splits depend on the words of a question and on nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.data import splits
from potstill.errors import UserError
from potstill.records import Question

SHARES = st.floats(0, 0.5)


def question(text: str, name: str) -> Question:
    return Question(name, text, "1", set="s", split="train", task="number")


@given(st.text())
def test_canonical_is_a_fixed_point_and_blind_to_dress(text: str) -> None:
    once = splits.canonical_question(text)
    assert splits.canonical_question(f"  {text}\n") == once
    assert splits.canonical_question(once) == splits.canonical_question(splits.canonical_question(once))


@pytest.mark.parametrize(
    ("a", "b", "equal"),
    [
        ("How many?", "how  many", True),
        ("He has 1,000.", "He has 1000", True),
        ("It's $ 3.50", "its $3.50", False),  # an apostrophe is a space: words are never joined
        ("3.5 miles", "35 miles", False),
        ("1, 2 and 3", "12 and 3", False),
        ("( True )", "(True)", True),
        ("[ [", "( (", False),
        ("5 + 3", "5 - 3", False),
        ("Caf\u00e9", "CAFE\u0301", True),
        ("\u201cYes\u201d", '"yes"', True),
    ],
)
def test_canonical_forms(a: str, b: str, equal: bool) -> None:
    assert (splits.canonical_question(a) == splits.canonical_question(b)) is equal
    assert (splits.question_digest(a) == splits.question_digest(b)) is equal


@given(st.text(), SHARES, SHARES)
def test_split_is_where_the_fraction_falls(text: str, validation: float, test: float) -> None:
    where = splits.unit_hash(text)
    assert 0 <= where < 1
    expected = "validation" if where < validation else "test" if where < validation + test else "train"
    assert splits.split_of(text, validation, test) == expected
    assert splits.split_of(f"\t{text.upper().lower()} ", validation, test) == splits.split_of(
        text.upper().lower(), validation, test
    )


@given(st.lists(st.sampled_from(["a b", "A b!", "c", "C.", "d", "e", "f", "g", "h"]), max_size=30), st.data())
def test_divide_never_tears_a_form_apart(texts: list[str], data: st.DataObject) -> None:
    counts = data.draw(st.booleans())
    validation = data.draw(st.integers(0, len(texts) // 2) if counts else SHARES)
    rest = data.draw(st.booleans())
    test = None if rest else data.draw(st.integers(0, len(texts) // 2) if counts else SHARES)
    parts = splits.split_questions(texts, validation, test)
    where: dict[str, set[str]] = {}
    for text, part in zip(texts, parts, strict=True):
        where.setdefault(splits.canonical_question(text), set()).add(part)
    assert all(len(part) == 1 for part in where.values())
    assert splits.split_questions(texts[::-1], validation, test) == parts[::-1]
    if rest:
        assert "train" not in parts
    if counts:
        assert parts.count("validation") <= validation


@given(st.sets(st.integers(0, 10**6), min_size=1, max_size=60), st.data())
def test_counts_take_exactly_the_lowest_of_different_texts(numbers: set[int], data: st.DataObject) -> None:
    texts = [f"what is {n}" for n in numbers]
    n = data.draw(st.integers(0, len(texts)))
    parts = splits.split_questions(texts, n, None)
    chosen = {text for text, part in zip(texts, parts, strict=True) if part == "validation"}
    assert chosen == set(sorted(texts, key=splits.question_digest)[:n])


def test_shares_are_about_right_and_nested() -> None:
    texts = [f"question number {i}" for i in range(4000)]
    small, large = (splits.split_questions(texts, share, None) for share in (0.1, 0.3))
    assert abs(small.count("validation") / 4000 - 0.1) < 0.02
    assert all(b == "validation" for a, b in zip(small, large, strict=True) if a == "validation")
    assert splits.split_questions(texts, 0.3, None) == [splits.split_of(text, 0.3, 0.7) for text in texts]


@given(st.integers(0, 30), st.integers(0, 30))
def test_take_is_nested_and_keeps_the_order(n: int, m: int) -> None:
    questions = [question(f"text {i % 20}", f"s/{i}") for i in range(25)]
    fewer, more = (splits.sample_by_hash(questions, k) for k in sorted((n, m)))
    assert len(fewer) == min(sorted((n, m))[0], 25)
    assert {q.id for q in fewer} <= {q.id for q in more}
    assert more == [q for q in questions if q in more]
    assert {q.id for q in splits.sample_by_hash(questions[::-1], n)} == {
        q.id for q in splits.sample_by_hash(questions, n)
    }


@pytest.mark.parametrize(
    ("validation", "test"),
    [
        (0.7, 0.7),
        (-0.1, None),
        (float("nan"), None),
        (-1, None),
        (2, 1),
        (1, 0.5),
    ],
)
def test_wrong_sizes_are_refused(validation: float, test: float | None) -> None:
    with pytest.raises(UserError) as caught:
        splits.split_questions(["a", "b"], validation, test)
    assert caught.value.code == "E-data-split-size"
