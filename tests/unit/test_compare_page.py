"""The page of `potstill compare`: the plain counts, one script, and texts that stay texts."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as some

from example_comparison import GRADES, comparison, recipes, rows
from example_report import HOSTILE
from potstill.errors import escape_hidden
from potstill.evaluation import intervals
from potstill.records import Grade
from potstill.report import model_comparison
from potstill.report.html import render_comparison
from potstill.report.model_comparison import ModelComparison, compare_sets, differing_questions
from potstill.report.sentences import describe_judgements


@given(some.lists(some.dictionaries(some.sampled_from("abcdef"), some.sampled_from(GRADES)), min_size=2, max_size=4))
def test_every_number_is_that_of_the_questions_that_all_answered(models: list[dict[str, Grade]]) -> None:
    answers = [rows({f"s/{key}": grade for key, grade in model.items()}) for model in models]
    common = [key for key in "abcdef" if all(key in model for model in models)]
    compared = list(compare_sets("greedy", answers))
    assert len(compared) == bool(common)
    for row in compared:
        right = [[model[key] == "right" for key in common] for model in models]
        assert row.n == len(common) and row.changes[0] is None
        assert [score.value for score in row.scores] == [sum(each) / len(common) for each in right]
        for index, change in enumerate(row.changes[1:], 1):
            assert change and (change.value, change.low, change.high) == intervals.paired_difference(
                right[index], right[0]
            )
            assert (row.won[index] - row.lost[index]) / row.n == pytest.approx(change.value)
    differing = [key for key in common if len({model[key] == "right" for model in models}) > 1]
    assert [key for keys in differing_questions(answers).values() for key in keys] == [f"s/{key}" for key in differing]


def test_it_says_which_model_is_better_where() -> None:
    assert describe_judgements(comparison()) == [
        ("text", "better on sums; worse on more"), ("third", "no clear difference on more, sums"),
    ]  # fmt: skip


def test_a_page_of_recipes_judges_recipes_and_not_single_seeds() -> None:
    assert describe_judgements(recipes("second")) == [("k=second", "better on sums")]
    html = render_comparison(recipes("second"))
    assert "<h2>Recipes</h2>" in html and "<h2>Every run</h2>" in html and "<h1><bdi>k=first</bdi>" in html
    assert "<td>2</td><td><b>100.0</b></td>" in html and "second (quoted: second)" in html
    assert "other seeds and other questions" in html and "from the literature" in html


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_names_of_recipes_stay_texts(text: str) -> None:
    html = render_comparison(recipes(text))
    assert html.count("<script") == 1 and "<img" not in html and escape_hidden(html) == html


def test_the_page_shows_the_change_the_questions_and_the_command() -> None:
    html = render_comparison(comparison())
    assert re.search(r'<span class="gained">\+100.0</span>', html) and re.search(
        r'<span class="lost">−100.0</span>', html
    )
    assert "won 60, lost 0" in html and html.count("<article>") == 3
    assert "potstill compare a b c --page page.html" in html and "3 answers to questions that not all" in html
    assert html.count("<script>") == 1 and "script-src &#39;sha256-" in html
    assert render_comparison(comparison()) == html


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_texts_stay_texts(text: str) -> None:
    html = render_comparison(comparison(text, text))
    assert html.count("<script") == 1 and "<img" not in html and "onload=alert" not in re.sub(r">[^<]*<", "><", html)
    assert escape_hidden(html) == html


def test_models_that_agree_have_no_questions_and_no_script() -> None:
    same = comparison()
    empty = ModelComparison(
        **{name: getattr(same, name) for name in same.__slots__} | {"questions": (), "differing": {}}
    )
    html = render_comparison(empty)
    assert "Omitted: all models have the same questions right." in html and "<script" not in html
    assert model_comparison.common_questions([{}, {}]) == []
