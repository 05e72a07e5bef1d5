"""The grader on hard cases, on every gold answer of the data sets, and on texts that would take quadratic time."""

from __future__ import annotations

import ast
import inspect
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grading_cases import CASES, GOLDS, LONG_TEXTS, TRUNCATED
from potstill import data, grading
from potstill.data import SETS, load_set
from potstill.errors import UserError
from potstill.grading import canonicalize_gold, grade, infer_answer_type
from potstill.records import Verdict
from real_sets import real_set

PAIRS = [(category, *case) for category, cases in CASES.items() for case in cases]


@pytest.mark.parametrize(("category", "text", "gold", "task", "expected"), PAIRS)
def test_hard_case(category: str, text: str, gold: str, task: str | None, expected: str) -> None:
    verdict = grade(text, gold, task)
    assert verdict.grade == expected, f"{category}: found {verdict.answer!r}"
    assert (verdict.answer is None) == (expected == "no answer")


def test_there_are_hundreds_of_hard_cases() -> None:
    assert len(PAIRS) == len(set(PAIRS)) >= 300


@pytest.mark.parametrize(("text", "gold", "task"), TRUNCATED)
def test_a_truncated_text_without_a_marked_answer_is_truncated(text: str, gold: str, task: str | None) -> None:
    assert grade(text, gold, task, stop="length").grade == "truncated"
    assert grade(text, gold, task, stop="end").grade != "truncated"


def test_a_truncated_text_with_a_marked_answer_is_graded() -> None:
    assert grade("The answer is 18. And then", "18", stop="length").grade == "right"
    assert grade("The answer is 17. And then", "18", stop="length").grade == "wrong"


@pytest.fixture(scope="module", params=SETS)
def real(data: Path, request: pytest.FixtureRequest) -> list[data.Question]:
    return real_set(request.param, data)


@pytest.mark.parametrize("template", ["{}", "The answer is {}", "So the answer is {}.", "#### {}", "Answer: {}"])
def test_every_real_gold_is_right_for_itself(real: list[data.Question], template: str) -> None:
    wrong = [q.id for q in real if grade(template.format(q.gold), q.gold, q.task).grade != "right"]
    assert wrong == []


def test_no_real_gold_is_right_for_another(real: list[data.Question]) -> None:
    golds: dict[str, dict[str, str]] = {}
    for q in real:
        golds.setdefault(q.task, {})[canonicalize_gold(q.gold, infer_answer_type(q.gold, q.task))] = q.gold
    accepted = []
    for task, by_value in golds.items():
        values = list(by_value.values())
        for distance in range(1, min(12, len(values))):
            for gold, other in zip(values, values[distance:] + values[:distance], strict=True):
                if grade(f"The answer is {other}.", gold, task).grade == "right":
                    accepted.append((task, gold, other))
    assert accepted == []


def test_every_gsm8k_reference_solution_is_right(data: Path) -> None:
    lines = [line for part in ("train", "test") for line in (data / "gsm8k" / f"{part}.jsonl").open(encoding="utf-8")]
    loaded = load_set("gsm8k", data)
    assert len(lines) == len(loaded) == 8792
    for line, question in zip(lines, loaded, strict=True):
        for text in (json.loads(line)["answer"], f"{question.rationale}\nThe answer is {question.gold}"):
            assert grade(text, question.gold, "gsm8k").grade == "right", question.id


def test_the_answer_types_of_asdiv(data: Path) -> None:
    counts = Counter(infer_answer_type(q.gold, q.task) for q in real_set("asdiv", data))
    assert counts == {"number": 2095, "several": 90, "text": 55, "ratio": 32, "time": 28, "boolean": 5}


@given(st.integers(-(10**12), 10**12), st.sampled_from(["{}", "{:,}", "${:,}", "{}.00", "{} apples", "**{}**"]))
def test_a_number_is_right_in_every_notation(n: int, notation: str) -> None:
    text = f"So the answer is {notation.format(n)}."
    assert grade(text, str(n)).grade == "right"
    assert grade(text, str(n + 1)).grade == "wrong"
    assert grade(text, str(n)).answer == str(n)


@given(st.fractions(max_denominator=1000))
def test_canonical_is_a_fixed_point(value) -> None:
    once = canonicalize_gold(str(value), "number")
    assert canonicalize_gold(once, "number") == once
    assert grade(f"The answer is {once}", str(value)).grade == "right"


@given(st.text(), st.sampled_from(sorted(grading.ANSWER_TYPES)), st.sampled_from([None, "end", "length"]))
def test_any_text_gets_a_verdict(text: str, name: str, stop: str | None) -> None:
    gold = GOLDS.get(name, "some words")
    verdict = grade(text, gold, name, stop)
    assert (verdict.answer is None) == (verdict.grade in ("no answer", "truncated"))
    assert verdict.answer is None or len(verdict.answer) <= 2000


@given(st.text(alphabet="answer is:#=18,.-/(A)\n$ \\boxed{}Q", max_size=60))
def test_what_follows_the_next_question_does_not_matter(text: str) -> None:
    before = grade(f"The answer is 7. Question: {text}", "7")
    assert before.grade == "right"


@pytest.mark.parametrize("number", range(len(LONG_TEXTS)))
def test_no_text_takes_long(number: int) -> None:
    for name in grading.ANSWER_TYPES:
        gold = GOLDS.get(name, "some words")
        bare = [LONG_TEXTS[number]] if name in ("number", "choice", "boolean", "text", "json") else []
        for text in ["The answer is " + LONG_TEXTS[number], *bare]:
            assert grade(text, gold, name).grade in ("right", "wrong", "no answer")
        # No time limit is asserted: quadratic time in so many characters would take minutes.


# Outside of JSON these mark an answer, end reasoning or begin the next question.
WORDS = [
    "</think>",
    "Question: a",
    "Q: b",
    "the answer is 5",
    "<answer>",
    "#### 3",
    "\\boxed{3}",
    "</s>",
    "Problem 2: x",
]
STRINGS = st.text(max_size=9) | st.sampled_from(WORDS)
SCALARS = st.none() | st.booleans() | st.integers() | STRINGS
STRUCTURES = st.lists(SCALARS, max_size=4) | st.dictionaries(STRINGS, st.lists(SCALARS, max_size=3), max_size=3)


@given(STRUCTURES)
def test_json_is_itself_in_any_order_and_layout(value) -> None:
    gold = json.dumps(value)
    for text in (
        json.dumps(value, indent=2),
        f"```json\n{json.dumps(value)}\n```",
        f"The answer is {json.dumps(value)}",
    ):
        assert grade(text, gold, "json").grade == "right"
    assert grade(json.dumps([value, 1]), gold, "json").grade == "wrong"


def test_a_grading_function_of_your_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "close.py").write_text(
        "def near(text, gold):\n    last = text.split()[-1]\n    return abs(float(last) - float(gold)) < 1, last\n"
        "def silent(text, gold):\n    return None\n"
        "def odd(text, gold):\n    return 3\n"
        "def broken(text, gold):\n    return 1 / 0\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    grading.check_task("function: close:near")
    assert grade("about 18.4", "18", "mine/function: close:near") == Verdict("right", "18.4")
    assert grade("about 19.4", "18", "function:close:near") == Verdict("wrong", "19.4")
    assert grade("?", "18", "function: close:silent").grade == "no answer"
    assert grade("?", "18", "function: close:silent", "length").grade == "truncated"
    assert grading.infer_answer_type("18", "function: close:near") == "function"
    before = grading.function_digest("close:near")
    assert len(before) == 64 and before != grading.function_digest("json:dumps")
    for task, code, where, found in (
        ("function: close:odd", "E-grade-function-result", "function close:odd", "3"),
        ("function: close:broken", "E-grade-function-failed", "function close:broken", "ZeroDivisionError: "),
        ("function: close:none", "E-grade-function-missing", "function close:none", ""),
        ("function: nowhere:f", "E-grade-function-module", "function nowhere:f", ""),
        ("function: close", "E-grade-function-name", "task 'function: close'", ""),
    ):
        with pytest.raises(UserError) as error:
            grade("x", "y", task)
        assert (error.value.code, error.value.where) == (code, where) and error.value.found.startswith(found)


def test_nothing_is_evaluated() -> None:
    for path in sorted(Path(grading.__file__).parent.glob("*.py")):
        names = {
            node.id for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Name)
        }
        assert not names & {"eval", "exec", "compile", "__import__"}, path.name


@pytest.mark.parametrize(("gold", "task"), [("many", "gsm8k"), ("", None), ("3", "boolean")])
def test_a_gold_answer_of_another_type_is_refused(gold: str, task: str | None) -> None:
    with pytest.raises(UserError) as error:
        grade("18", gold, task)
    assert (error.value.code, error.value.found) == ("E-grade-gold-type", repr(gold))


@pytest.mark.parametrize(("text", "gold"), [("18", 18), ("18", None), (b"18", "18")])
def test_a_text_or_gold_answer_that_is_no_string_is_refused(text: Any, gold: Any) -> None:
    with pytest.raises(UserError) as error:
        inspect.unwrap(grade)(text, gold)  # without the type checks of the tests
    assert error.value.code == "E-grade-not-a-string"


def test_an_unknown_task_is_refused_with_a_suggestion() -> None:
    with pytest.raises(UserError) as error:
        grade("18", "18", "bbh/navigat")
    assert error.value.code == "E-grade-unknown-task" and "'bbh/navigate'" in error.value.hint
    assert grade("b a", "b a", "miniature-sorting/list").grade == "right"
    assert grading.VERSION == 5
