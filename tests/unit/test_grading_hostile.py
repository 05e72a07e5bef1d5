"""The grader on hostile texts: properties of any text, huge numbers, nesting, regular expressions, running time."""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grading_cases import GOLDS, LONG_TEXTS
from grading_mistakes import KINDS
from potstill import grading
from potstill.errors import UserError
from potstill.grading import expressions, grade
from potstill.process import WorkerProcess

ROWS = [(kind, *row) for kind, rows in KINDS.items() for row in rows]
SAMPLES = {**GOLDS, "math": "\\frac{1}{2}", "regex": "[0-9]+"}


@pytest.mark.parametrize(("kind", "text", "gold", "task", "stop", "expected"), ROWS)
def test_further_cases(kind: str, text: str, gold: str, task: str | None, stop: str | None, expected: str) -> None:
    verdict = grade(text, gold, task, stop)
    assert verdict.grade == expected or (expected == "not right" and verdict.grade in ("wrong", "no answer")), verdict


def test_every_reported_case(data: Path) -> None:
    path = data / "cases" / "grading.jsonl"
    if not path.is_file():
        pytest.skip(f"no file {path}: the reported cases are not part of the project")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    failing = []
    for row in rows:
        given = row["input"]
        found = grade(given["text"], given["gold"], given.get("task"), given.get("stop")).grade
        if found != row["expected"] and not (row["expected"] == "wrong" and found == "no answer"):
            failing.append((row["kind"], given, found))
    assert rows and failing == []


# The principle: the text before the last marker makes no difference.
BEFORE = st.lists(
    st.sampled_from(
        ["It is 5. ", "(B) is a fact. ", "Yes, so it seems. ", "True! ", "3 + 2 = 5\n", "He is Tom.\n", "ant bee cat\n",
         "\\frac{1}{2} ", "The answer is 7. ", "\\boxed{5} ", "#### 5\n", "Answer: (B)\n", "5:30 or 2:3. ", "] }\n"]
    ),
    max_size=5,
).map("".join)  # fmt: skip
MARKERS = [
    "The answer is",
    "So the answer is:",
    "Answer:",
    "Final answer:",
    "#### ",
    "The answer (a word) is",
    "### Answer\n",
]
BEHIND = ["", " 5", " (B)", " yes", " Tom", " unknown", " none of the above.", " it depends", " either C or B",
          " not 5",
          " cannot be determined", " 18 or 20", " below", " 2:3", " ...", " ?", " most likely B", " that we cannot say",
          " \\boxed{}", " **", " ] }", " ant bee cat"]  # fmt: skip
FORMS = [name for name in grading.ANSWER_TYPES if not name.startswith("paper") and name not in ("json", "math")]


@given(
    BEFORE,
    st.sampled_from(MARKERS),
    st.sampled_from(BEHIND),
    st.sampled_from(FORMS),
    st.sampled_from(["end", "length"]),
)
def test_the_text_before_the_last_marker_makes_no_difference(
    before: str, mark: str, behind: str, form: str, stop: str
) -> None:
    gold = SAMPLES.get(form, "Tom")
    if behind == " below" and form not in ("text", "list", "exact", "regex"):
        behind = f" below: {gold}"  # the only one of these words that also occurs in prose
    assert grade(before + mark + behind, gold, form, stop) == grade(mark + behind, gold, form, stop)


MARKUPS = ["{} apples", "${}", "{} dollars", "{} km", "{}%", "\u20ac{}", "**{}**", "`{}`", "${}$", "{} square feet",
           "\\({}\\)", "<b>{}</b>", "{}.", "{} kg", "\\text{{{}}}", "{} m^2", "{} (in all)", "_{}_",
           "{} cm\u00b2", "{} hours"]  # fmt: skip
SENTENCES = ["The answer is {}", "So the answer is: {}", "#### {}", "\\boxed{{{}}}", "It comes to {}"]


@given(
    st.integers(0, 10**6),
    st.integers(0, 2),
    st.sampled_from(MARKUPS),
    st.sampled_from(SENTENCES),
    st.sampled_from(["", "-"]),
)
def test_a_unit_a_currency_or_bold_changes_no_verdict(n: int, more: int, markup: str, sentence: str, sign: str) -> None:
    gold, number = str(n), f"{sign}{n + more}"
    plain, decorated = (grade(sentence.format(how), gold) for how in (number, markup.format(number)))
    assert plain == decorated


@given(
    st.sampled_from([("18", None), ("17", None), ("(B)", "choice"), ("no", "boolean"), ("Tom", "text"),
                     ("b_c", "exact"),
                     ("ant bee", "list"), ("] }", "brackets"), ("2:3", "ratio"), ("5; 6", "several")]),
    st.sampled_from(["18", "(B)", "B", "no", "yes", "Tom", "b_c", "ant bee", "ant\nbee", "] }", "2:3", "5 and 6"]),
    st.sampled_from(["", "The answer is:\n", "Here it is.\n", "### Answer\n\n"]),
    st.sampled_from(["```\n{}\n```", "```text\n{}\n```\n", "~~~\n{}\n~~~", "````python\n{}\n````"]),
)  # fmt: skip
def test_a_code_fence_changes_no_verdict(gold: tuple[str, str | None], text: str, before: str, fence: str) -> None:
    assert grade(before + fence.format(text), *gold) == grade(before + text, *gold)


HOSTILE = [
    "1e999999999", "-1e-999999999", "0e99999999999", "1E+400", "9" * 5000, "1/0", "0/0", "10^999", "10^{-999}", "NaN",
    "Infinity", "-0", "0x1F", "1_0_0", "1,,,2", "(" * 300, "[" * 300, "{" * 300, '{"a":' * 300, "\\frac{" * 50,
    "\\boxed{" * 50, "\\sqrt{\\sqrt{2}}", "^" * 50, "\ud800", "\udc00", "\ud83d\ude00", "\x00", "\u0301" * 300,
    "\u202e", "\u0661", "\u2460", "<think>", "</think>", "<answer>", "</answer>", "####", "the answer is", "answer:",
    "Question:", "```\n", "$", "\\(", "a" * 400, "point five", "hundred " * 50, "one and a ", "not ", "25:61",
    "00:00", "0:0", "1:0", '{"n": ', "}", "]", "\\ud800", "~~", "'000", "\\overline{3}", "0.(3)", "0.(0)",
    "\\binom{9}{4}", "9!", "<|channel|>final<|message|>", "analysisThe ", "\\pm", "\u00bd",
]  # fmt: skip
PARTS = st.lists(st.sampled_from(HOSTILE) | st.text(st.characters(), max_size=6), max_size=8).map("".join)


@given(PARTS, st.sampled_from([*grading.ANSWER_TYPES, None]), st.sampled_from([None, "end", "length"]))
def test_no_text_makes_the_grader_raise(text: str, form: str | None, stop: str | None) -> None:
    verdict = grade(text, SAMPLES.get(form or "number", "some words"), form, stop)
    (verdict.answer or "").encode("utf-8")  # the extracted answer can be written to a file


@given(PARTS, st.sampled_from([*grading.ANSWER_TYPES, None]))
def test_a_gold_answer_is_parsed_or_refused(gold: str, form: str | None) -> None:
    try:
        grade("The answer is 18", gold, form)
    except UserError:
        return


@pytest.mark.parametrize("number", ["1e999999999", "1e-999999999", "-1e999999999", "1e99999999999999999999", "1E+400"])
def test_a_number_of_json_may_be_of_any_size(number: str) -> None:
    assert grade(f'{{"n": {number}}}', '{"n": 1}', "json").grade in ("wrong", "no answer")
    assert grade('{"n": 1e999999999}', '{"n": 1.0e999999999}', "json").grade == "right"
    assert grade('{"n": 10.0}', '{"n": 1e1}', "json").grade == "right"


@pytest.mark.parametrize("form", grading.ANSWER_TYPES)
def test_a_number_of_a_million_digits_is_not_computed(form: str) -> None:
    digits = "7" * 1_000_000
    for text in (f"The answer is {digits}", f'{{"n": {digits}}}'):
        assert grade(text, SAMPLES.get(form, "some words"), form).grade in ("wrong", "no answer", "right")


FORMS_OF_A_NUMBER = (
    *("{}", "-{}", "{}.5", "0.{}", "1e{}", "{}e5", "-{}e-999", "3 x 10^{}", "10^{}", "1/{}", "{}/7", "3 1/{}", "{}:{}"),
    *(
        "{}; 5",
        "[{}]",
        "{} + 1",
        "${}$",
        "\\boxed{{{}}}",
        "{} trillion",
        "{} hours and 30 minutes",
        "{},000",
        "5 and {}",
    ),
)


@pytest.mark.parametrize("form", [name for name in grading.ANSWER_TYPES if name != "math"])
@pytest.mark.parametrize("digits", [308, 309, 400, 401, 4300, 4301])
def test_a_number_beyond_floats_and_beyond_pythons_own_limit(form: str, digits: int) -> None:
    """309 digits are more than a float holds, 401 more than the grader reads, 4301 more than Python converts."""
    gold = SAMPLES.get(form, "some words")
    for shape in FORMS_OF_A_NUMBER:
        number = shape.format(*["7" * digits] * 2)
        for text in (number, f"The answer is {number}.", f"The answer is {number}\nor {number}"):
            assert grade(text, gold, form).grade in ("wrong", "no answer", "right")
        try:
            verdict = grade(f"The answer is {number}", number, form)
        except UserError as error:
            assert error.code in ("E-grade-gold-type", "E-grade-invalid-regex")
        else:
            assert verdict.grade in ("wrong", "no answer", "right")


@pytest.mark.parametrize("digits", [308, 309, 400])
def test_a_gold_number_that_no_float_holds_is_compared_digit_by_digit(digits: int) -> None:
    gold = "7" * digits
    assert grade(f"The answer is {gold}.", gold).grade == "right"
    assert grade(f"The answer is {gold[:-1]}8.", gold).grade == "wrong"


def calls(text: str, gold: str, form: str) -> int:
    """The number of function calls while a text is graded."""
    count = 0

    def see(frame, event, argument) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(see)
    try:
        grade(text, gold, form)
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("number", range(len(LONG_TEXTS)))
def test_twice_the_text_is_at_most_twice_the_work(number: int) -> None:
    for form in FORMS:
        gold, unit = SAMPLES.get(form, "some words"), "The answer is " + LONG_TEXTS[number][:2000]
        calls(unit, gold, form)  # caches are filled once
        small, large = calls(unit, gold, form), calls(unit + LONG_TEXTS[number][:2000], gold, form)
        assert large <= 2 * small + 400, (form, small, large)


def test_a_pattern_with_exponential_backtracking_takes_linear_time() -> None:
    for pattern in ("(a+)+b", "(a|aa)+$", "(a*)*c", "(.*)*x"):
        assert grade("a" * 1900, pattern, "regex").grade in ("wrong", "right")
    assert grade("aaab", "(a+)+b", "regex").grade == "right"


@pytest.mark.parametrize("pattern", [r"(a)\1", "(?=a)b", "(?<!a)b", "(", "a++", r"\Z", "a{5000}"])
def test_a_pattern_beyond_a_linear_engine_is_refused_with_its_reason(pattern: str) -> None:
    with pytest.raises(UserError) as error:
        grading.canonicalize_gold(pattern, "regex")
    assert error.value.code == "E-grade-invalid-regex" and len(error.value.found) > len(repr(pattern))


SYMBOLIC = [
    ("The answer is $\\{2, 1\\}$", "\\{1,2\\}", True),
    ("\\boxed{(-\\infty, 3]}", "(-\\infty,3]", True),
    ("\\boxed{(-\\infty, 3)}", "(-\\infty,3]", False),
    ("So it is \\boxed{\\sqrt{12}}.", "2\\sqrt{3}", True),
    ("The answer is 2\u221a3", "2\\sqrt{3}", True),
    ("The answer is -i + 3.", "$3-i$", True),
    ("The answer is 3", "$3-i$", False),
    ("\\boxed{\\begin{pmatrix}1\\\\3\\end{pmatrix}}", "\\begin{pmatrix}1\\\\2\\end{pmatrix}", False),
    ("\\boxed{(x+1)^2}", "$\\boxed{x^2+2x+1}$", True),
    ("The answer is 12\u03c0 square units.", "12\\pi", True),
    ("The answer is 12", "12\\pi", False),
    ("$\\boxed{\\frac{1}{3}}$. I hope the answer is correct.", "1/3", True),
    ("\\boxed{5} maybe, but the answer is unknown", "5", False),
    ("\\boxed{5} so the answer is", "5", False),
    ("\\boxed{Evelyn}", "\\text{Evelyn}", True),
    ("\\boxed{9^{9^{9^{9}}}}", "5", False),
    ("The answer is .35625.", ".35625", True),
    ("So it is \\boxed{.35625}.", "0.35625", True),
    ("The answer is 35625.", ".35625", False),
    ("The answer is: .5", "5", False),
    ("The answer is ... 5", "5", True),
    ("The answer is $\\$18.90$.", "\\$18.90", True),
    ("The answer is 18.90", "\\$18.90", True),
    ("It costs \\$5, so $x = 3$.", "3", True),
]


@pytest.mark.parametrize(("text", "gold", "right"), SYMBOLIC)
def test_expressions_are_compared_by_value(text: str, gold: str, right: bool) -> None:
    assert (grade(text, gold, "math").grade == "right") is right


def test_an_expression_that_takes_too_long_is_wrong_and_the_next_one_is_compared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(expressions, "TIMEOUT_SECONDS", 0.0)
    assert grade("\\boxed{\\sqrt{20}}", "2\\sqrt{5}", "math").grade == "wrong"
    monkeypatch.undo()
    expressions.compare_by_value.cache_clear()
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(grade("\\boxed{\\sqrt{20}}", "2\\sqrt{5}", "math").grade))
    thread.start()
    thread.join()
    assert found == ["right"]


def test_a_worker_process_that_ends_is_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "echoing.py").write_text(
        "import sys\nprint('true', flush=True)\nfor line in sys.stdin:\n"
        "    if 'end' in line:\n        sys.exit()\n    print(line, end='', flush=True)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    worker = WorkerProcess("echoing")
    try:
        assert worker.ask(["a"], 60) == ["a"]
        assert worker.ask(["end"], 60) is None
        assert worker.ask(["b"], 60) == ["b"]
    finally:
        worker.close()


def test_the_task_math_needs_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError) as error:
        grading.canonicalize_gold("\\frac{1}{2}", "math")
    assert error.value.code == "E-grade-missing-math" and "potstill[math]" in error.value.hint


@pytest.mark.parametrize(
    ("text", "gold", "task", "expected"),
    [
        ("It is 18. Or 20", "20", "gsm8k/paper", "right"),
        ("The answer is 1,200", "7,200", "paper", "right"),  # no commas
        ("The answer is 5", "-5", "paper", "right"),  # no signs
        ("The answer is 18.00", "18", "paper", "right"),
        ("The answer is 18. That took 3 steps.", "18", "paper", "wrong"),
        ("The answer is 3", "Bryan", "paper", "right"),  # a gold answer without a number
        ("Bryan", "Bryan", "paper", "no answer"),
        ("So the answer is invalid.", "valid", "paper-bbh", "right"),  # a part of a word
        ("So the answer is no. So the answer is yes.", "yes", "paper-bbh", "wrong"),  # the first one
        ("It is valid", "valid", "paper-bbh", "no answer"),
        ("invalid", "valid", "snarks/paper-bbh-answer", "right"),
        ("(A)", "(B)", "paper-bbh-answer", "wrong"),
    ],
)
def test_the_papers_rules_have_their_faults(text: str, gold: str, task: str, expected: str) -> None:
    assert grade(text, gold, task).grade == expected
    assert grade(text, gold, task, "length").grade == expected.replace("no answer", "truncated")
