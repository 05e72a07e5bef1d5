"""Solutions from the formulas of a set: right arithmetic, one operation a sentence, or none."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill import grading, prompts, teachers
from potstill.data import load_set
from potstill.data.formulas import solution_from_formula
from potstill.errors import UserError
from potstill.recipe import parse_recipe
from potstill.records import Question


@pytest.mark.parametrize(
    ("formula", "solution"),
    [
        ("7+2=9", "7 + 2 = 9."),
        ("89-24-43=22", "89 - 24 = 65. 65 - 43 = 22."),
        ("(24-11)+(24-18)=19", "24 - 11 = 13. 24 - 18 = 6. 13 + 6 = 19."),
        ("52 (km)/4 = 13 (km); 13*1000 (m/km) = 13000 (m)", "52 / 4 = 13. 13 * 1000 = 13000."),
        ("1/4*2=0.5", "1 / 4 = 0.25. 0.25 * 2 = 0.5."),
        ("3-5=-2", "3 - 5 = -2."),
        ("7+2=10", None),  # a wrong result
        ("61/6=10 r1", None),
        ("10/3=3.333", None),
        ("22:18=11:9", None),
        ("x:The number; x-32=23", None),
        ("2*25+3*10=80 cents > 75 cents", None),
        ("5/0=1", None),
        ("9=9", None),  # no operation
        ("", None),
        ("__import__('os')=1", None),
    ],
)
def test_a_formula_becomes_one_operation_a_sentence_or_nothing(formula: str, solution: str | None) -> None:
    assert solution_from_formula(formula) == solution


terms = st.integers(0, 99).map(str)
expressions = st.recursive(
    terms,
    lambda part: st.tuples(part, st.sampled_from("+-*"), part).map(lambda p: f"({p[0]}{p[1]}{p[2]})"),
    max_leaves=6,
).filter(lambda expression: not expression.isdigit())


@given(expressions)
def test_every_sentence_is_true_and_the_last_value_is_the_result(expression: str) -> None:
    value = eval(expression, {})
    solution = solution_from_formula(f"{expression}={value}")
    assert solution is not None and solution.endswith(f"= {value}.")
    for sentence in solution.removesuffix(".").split(". "):
        left, result = sentence.split(" = ")
        assert eval(left, {}) == int(result)


def test_asdiv_has_solutions_that_the_grader_accepts(data: Path) -> None:
    questions = load_set("asdiv", data)
    solved = [question for question in questions if question.rationale]
    assert (len(solved), len(questions)) == (1577, 2305)
    texts = [prompts.format_solution(question.rationale or "", question.gold) for question in solved]
    grades = [grading.grade(text, q.gold, task=q.task).grade for text, q in zip(texts, solved, strict=True)]
    assert set(grades) == {"right"}


def test_a_built_in_set_that_is_trained_on_has_three_splits(data: Path) -> None:
    trained = load_set("asdiv", data, validation=0.25, test=0.25)
    evaluated = load_set("asdiv", data, validation=0.25)
    assert {question.split for question in trained} == {"train", "validation", "test"}
    for question, other in zip(trained, evaluated, strict=True):
        assert (question.split == "validation") == (other.split == "validation")
    own = load_set("gsm8k", data, validation=0.25, test=0.25)
    assert own == load_set("gsm8k", data, validation=0.25), "a set whose files name their training questions keeps them"


def test_questions_without_a_solution_stop_the_teacher_or_are_skipped() -> None:
    questions = [
        Question(f"s/{i}", "What?", "2", "s", "train", "number", rationale=r)
        for i, r in enumerate(("1 + 1 = 2.", None))
    ]
    teacher = "teacher={kind: human, unsolved: %s}"
    skipping, stopping = (
        teachers.from_recipe(parse_recipe("name: x", "x", [teacher % way])) for way in ("skip", "stop")
    )
    assert [chain.question for batch in skipping.sample(questions) for chain in batch] == ["s/0"]
    assert any("skip" in line for line in skipping.forecast(questions))
    with pytest.raises(UserError) as error:
        list(stopping.sample(questions))
    assert error.value.code == "E-teacher-no-solutions"
