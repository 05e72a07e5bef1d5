"""The calculator: exact on every annotation of GSM8K, fast on any text, and silent on a text without an expression."""

from __future__ import annotations

import json
import re
import time
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.calculator import (
    MAX_DIGITS,
    complete_after_equals,
    evaluate_expression,
    find_trailing_expression,
    format_result,
)
from potstill.inference import Decode, Request
from potstill.inference.transformers import TransformersEngine
from potstill.models import Shape, random_student
from potstill.tokenization import Tokenizer
from tools.toy_models.tokenizer_training import train_bpe, train_unigram

ANNOTATION = re.compile(r"<<([^<>=]*)=([^<>]*)>>")


def test_every_annotation_of_gsm8k_comes_out_as_it_stands(data: Path) -> None:
    rows = [json.loads(line) for path in sorted((data / "gsm8k").glob("train*.jsonl")) for line in path.open()]
    found = [pair for row in rows for pair in ANNOTATION.findall(row["answer"])]
    assert len(found) == 23716
    wrong = [
        (left, right)
        for left, right in found
        if evaluate_expression(left) is None or not same(evaluate_expression(left), right)
    ]
    assert wrong == []


def same(found: Fraction | None, written: str) -> bool:
    """Whether a result is what the annotation says; these are rounded to the decimals that they have."""
    assert found is not None
    written = written.replace(",", "").lstrip("$")
    number = Fraction(written) if re.fullmatch(r"-?\d*\.?\d+|-?\d+\.", written) else evaluate_expression(written)
    assert number is not None, written
    return abs(found - number) <= Fraction(1, 10 ** max(0, len(written.partition(".")[2])))


@pytest.mark.parametrize(
    "text, result",
    [
        ("That makes 16 + 14 =", " 30"),
        ("That makes 16+14=", "30"),
        ("2 + 2 = 4. Then 4 * 3 =", " 12"),
        ("He pays $4.50 x 2 =", " $9"),
        ("$3 - $5 =", " -$2"),
        ("3 × 4 ÷ 2 − 1 =", " 5"),
        ("Of 3, 4 + 5 =", " 9"),
        ("1,200 / 5 =", " 240"),
        ("(1 + 2) * 3 =", " 9"),
        ("-5 + 2 =", " -3"),
        ("10 - 2 - 3 =", " 5"),
        ("7 / 2 =", " 3.5"),
        ("48/2 = <<48/2=", "24>>"),
        ("<<48/2=24>>24 + 1 =", " 25"),
        ("the box 3 + 4 =", " 7"),
        ("10 / 3 =", None),  # not exact in six decimals
        ("1 / 0 =", None),
        ("Then x =", None),
        ("That is 5 =", None),
        ("2 + 2 = 4", None),
        ("1 + =", None),
        ("9 ** 9 ** 9 =", None),
        ("1.2.3 + 4 =", None),
        ("1,20 + 4 =", None),
        ("3 apples + 4 =", None),
        ("<<3 apples=", None),
        ("=", None),
        ("", None),
    ],
)
def test_what_belongs_behind_the_equals_sign(text: str, result: str | None) -> None:
    assert complete_after_equals(text) == result


numbers = st.integers(0, 999).map(str) | st.decimals(0, 99, places=2).map(str)
expressions = st.recursive(
    numbers,
    lambda inner: st.builds("({} {} {})".format, inner, st.sampled_from("+-*/"), inner),
    max_leaves=9,
)


@given(expressions)
def test_a_value_is_that_of_the_language(expression: str) -> None:
    names = re.sub(r"\d+(?:\.\d+)?", lambda found: f"Fraction('{found[0]}')", expression)
    try:
        expected = eval(names, {"Fraction": Fraction})  # of a text that this test has made itself
    except ZeroDivisionError:
        expected = None
    assert evaluate_expression(expression) == expected


@given(st.fractions())
def test_what_is_shown_is_exact_or_nothing(number: Fraction) -> None:
    written = format_result(number)
    assert written is None or Fraction(written) == number


@given(st.text("0123456789+-*/().,$ x×=<>a", max_size=400))
def test_any_text_is_read(text: str) -> None:
    found = find_trailing_expression(text)
    assert found is None or evaluate_expression(found) is not None
    complete_after_equals(text + "=")


@pytest.mark.parametrize("text", ["(" * 10**5, "1" * 10**5, "1+" * 10**5, "9*" * 10**4 + "9", "-" * 10**5 + "1"])
def test_nothing_takes_long(text: str) -> None:
    start = time.process_time()
    assert evaluate_expression(text) is None and complete_after_equals(text + "=") in (
        None,
        complete_after_equals(text[-200:] + "="),
    )
    assert time.process_time() - start < 2  # of a bound that is passed, not of a speed


def test_digits_are_bounded() -> None:
    assert evaluate_expression("9" * MAX_DIGITS) is not None and evaluate_expression("9" * (MAX_DIGITS + 1)) is None


# --- in an engine ----------------------------------------------------------------------------------------------------

TEXTS = [f"They have {a} + {b} = {a + b} pens. The answer is {a + b}" for a in range(12) for b in range(12)]


@pytest.mark.parametrize("family", ["t5", "causal"])
@pytest.mark.parametrize("sampled", [False, True])
def test_a_random_student_that_writes_sums_has_them_right(family: str, sampled: bool, monkeypatch) -> None:
    tokenizer = train_unigram(TEXTS, 90) if family == "t5" else train_bpe(TEXTS, 300)
    shape = Shape(family, d_model=16, layers=1, heads=2, d_ff=24, d_kv=8, vocabulary=tokenizer.size)  # type: ignore[arg-type]
    student = random_student(shape, tokenizer, 3)
    engine = TransformersEngine(student)
    liked = [token for text in ("3", "4", " +", " =", " 2", "7 + 5 =") for token in tokenizer.encode(text).ids]
    with_bias(monkeypatch, student, liked)
    requests = [Request((f"q{at}", index), tuple(student.encode("Sum: 3"))) for at in range(3) for index in range(16)]
    texts = engine.generate(
        requests, Decode(max_tokens=40, temperature=1.0 if sampled else 0.0, calculator=True, likelihood=True)
    )
    completed = 0
    for text in texts:
        assert b"".join(text.tokens) == text.content
        assert text.likelihood is not None and text.likelihood <= 0
        for found in re.finditer("=", text.text):
            result = complete_after_equals(text.text[: found.end()])
            if result is not None and len(text.text) > found.end() + len(result):
                assert text.text[found.end() :].startswith(result)
                assert not re.match(r"[.,]?\d", text.text[found.end() + len(result) :])
                completed += 1
    assert completed > 2 or not sampled
    alone = engine.generate(requests[:1], Decode(max_tokens=40, temperature=1.0 if sampled else 0.0, calculator=True))
    assert alone[0].ids == texts[0].ids


def with_bias(monkeypatch: pytest.MonkeyPatch, student, liked: list[int]) -> None:
    """Make some tokens likelier, whatever the student sees."""
    import torch

    kind, plain = type(student.head), type(student.head).logits
    push = torch.zeros(student.head.weight.shape[0])
    push[liked] = 4.0
    monkeypatch.setattr(kind, "logits", lambda self, hidden: plain(self, hidden) + push)


def test_a_result_that_the_vocabulary_cannot_write_is_left_to_the_model() -> None:
    from potstill.inference.sampling import CalculatorDecoding

    tokenizer: Tokenizer = train_unigram(["3 + 4 = 7"] * 9, 40)
    rows = CalculatorDecoding(1, tokenizer, lambda token, position: tokenizer.token_bytes(token))
    assert rows.result_tokens("3 + 4 =", " 7") == tokenizer.encode("7").ids
    assert rows.result_tokens("9 + 4 =", " 13") == [] or b"13" in tokenizer.decode_bytes(
        rows.result_tokens("9 + 4 =", " 13")
    )
    assert rows.result_tokens("<<3+4=", "7>>") == []
