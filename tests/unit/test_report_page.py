"""The report page: its content, one file with one known script, and texts that stay texts."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from example_report import GROUPS, HOSTILE, example, hostile, score
from potstill.errors import escape_hidden
from potstill.records import BASE, Checkpoint, Choice, LabelTable
from potstill.report import csv_tables, figures, html, question_views, sentences
from potstill.report.csv_tables import FORMULA_PREFIXES, build_tables, to_csv
from potstill.report.figures import draw_figures
from potstill.report.html import render_report, render_times
from potstill.report.model import Comparison, Interval, ReportData, ReportExample
from potstill.report.sentences import headline_sentence, summary_sentence
from potstill.report.summary import mean_interval

SECTIONS = [id for id, _ in html.SECTIONS if id != "labels"]  # the example has no labels
VOID = {"meta", "br", "img", "link", "input", "hr", "wbr"}


class Reader(HTMLParser):
    """Elements with their attributes, the text outside of style, and whether every element is closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.opened: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.opened.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.opened and self.opened.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        if self.opened[-1:] not in (["style"], ["script"]):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def values(self, attribute: str) -> list[str]:
        return [found for _, attributes in self.elements if (found := attributes.get(attribute)) is not None]


def built(data: ReportData) -> tuple[str, Reader]:
    html = render_report(data, figures.draw_figures(data))
    return html, Reader(html)


@pytest.fixture(scope="module")
def html() -> str:
    return built(example())[0]


@pytest.fixture(scope="module")
def reader(html: str) -> Reader:
    return Reader(html)


def test_structure(html: str, reader: Reader) -> None:
    assert html.startswith("<!doctype html>\n") and html.endswith("</html>\n")
    assert reader.opened == []
    assert [each["id"] for tag, each in reader.elements if tag == "section"] == SECTIONS
    ids = reader.values("id")
    assert len(ids) == len(set(ids))
    inner = [each[1:] for each in reader.values("href") if each.startswith("#")]
    assert set(inner) <= set(ids) and list(dict.fromkeys(each for each in inner if each in SECTIONS)) == SECTIONS
    assert [tag for tag, _ in reader.elements if tag in ("h1", "main", "header")].count("h1") == 1


def test_the_run_in_one_sentence() -> None:
    assert summary_sentence(example()).replace("\xa0", " ") == (
        "After 400 training steps, accuracy on the test split went "
        "from 6.0 % to 33.0 % in-distribution (gsm8k; +27.0 points, 95 % interval +24.0 to +29.9), "
        "from 20.0 % to 44.7 % out-of-distribution (mean of 3 sets; +24.7 points, 95 % interval +22.1 to +27.2), "
        "and from 35.0 % to 13.0 % on generic tasks (bbh; −22.0 points, 95 % interval −24.3 to −19.8)."
    )


def test_what_was_taught_and_what_was_lost_in_one_line() -> None:
    full = example()
    assert headline_sentence(full) == (
        "Taught: chains of teacher. Gained: 27.0 points in-distribution, 24.7 out-of-distribution."
        " Lost: 22.0 points on generic tasks."
    )
    unsure = tuple(replace(row, difference=Interval(0.01, -0.02, 0.04)) for row in full.comparisons)
    assert headline_sentence(replace(full, comparisons=unsure, training="")) == (
        "No clear change: in-distribution, out-of-distribution, on generic tasks."
    )
    assert headline_sentence(replace(full, comparisons=())) == ""


def test_a_loss_looks_like_a_loss(html: str, reader: Reader) -> None:
    cards = [each["class"] for tag, each in reader.elements if each.get("class", "").startswith("card ")]  # type: ignore[union-attr]
    assert cards == ["card in-distribution gained", "card out-of-distribution gained", "card generic lost"]
    changes = [
        " ".join(re.sub("<[^>]*>", " ", each).split()) for each in re.findall(r'<p class="change">.*?</p>', html)
    ]
    assert changes == ["▲ +27.0 points gained", "▲ +24.7 points gained", "▼ −22.0 points lost"]
    assert html.index('class="cards"') < html.index("accuracy on the test split went"), "the long sentence is below"
    for meaning in sentences.GROUP_MEANINGS.values():
        assert reader.text.count(meaning) == 3, "in the card, in the table of students and in the table of outcomes"


def test_every_question_has_its_key_an_anchor_and_a_command(html: str, reader: Reader) -> None:
    anchors = [each["id"] for tag, each in reader.elements if "question" in (each.get("class") or "").split()]
    assert anchors == ["q-gsm8k-1", "q-svamp-2", "q-bbh-3", "q-asdiv-4"]
    links = reader.values("href")
    for anchor, each in zip(anchors, example().examples, strict=True):
        assert f"#{anchor}" in links and reader.text.count(each.question.id) >= 2
    assert "potstill show runs/example --chain 'gsm8k/1#0'" in reader.text
    assert "potstill show runs/example --prediction bbh/3" in reader.text


def test_equal_ids_get_different_anchors() -> None:
    full = example()
    odd = [replace(full.examples[0].question, id=id) for id in ("a b", "a/b", "a_b")]
    views = question_views.view_questions(replace(full, examples=tuple(ReportExample(each) for each in odd)))
    assert [view.anchor for view in views] == ["q-a-b", "q-a-b_2", "q-a-b_3"]
    assert views[0].command == "potstill show runs/example --prediction 'a b'"


def test_what_must_be_said_is_said(reader: Reader) -> None:
    said = reader.text.replace("\xa0", " ")
    for expected in (
        "One seed (7): other seeds of this recipe can differ by several points, which the intervals do not include, so they",
        "another model quoted: a paper, table 2 a third quoted: a blog",
        "41.2 % quoted, 1319 questions",
        "30.0 % quoted",
        "These numbers are made up to try the page.",
        "Rule: mean accuracy over the out-of-distribution validation sets, at most 22 points of generic lost , on validation",
        "The log-probabilities are those of the distribution after temperature.",
        "right, dropped: duplicate",
        "chosen, tied",
        "learning_rate: 5.0e-4",
        "✓ right: 27",
        "task answer only zero-shot-answer chain of thought zero-shot-rationale",
        "bbh/navigate 40.0 % → 20.0 %, n 250 48.0 % → 20.0 %, n 250",
        "money, in the currency of teacher.budget.prices 3.2500",
        "potstill run runs/example/recipe.yaml --redo report",
        "potstill run runs/example-answers/recipe.yaml",
    ):
        assert expected in said, expected


def test_one_file_with_one_script(html: str, reader: Reader) -> None:
    policy = [
        element["content"] for tag, element in reader.elements if element.get("http-equiv") == "Content-Security-Policy"
    ]
    [script] = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy == [
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    ]
    assert not {tag for tag, _ in reader.elements} & {
        "img",
        "link",
        "iframe",
        "object",
        "embed",
        "form",
        "base",
    }
    beside = {f"{name}.csv" for name in build_tables(example())} | set(render_times(example(), ()))
    for value in reader.values("src") + reader.values("href") + reader.values("xlink:href"):
        assert value.startswith("#") or value in beside, value
    assert "@import" not in html and not re.search(r"url\((?!#)", html)
    assert not re.findall(r'(?<!xmlns=")(?<!xmlns:xlink=")https?://', html)


def test_every_table_is_one_click_away(reader: Reader) -> None:
    linked = {link for link in reader.values("href") if not link.startswith("#")}
    assert linked == {f"{name}.csv" for name in csv_tables.build_tables(example())} | set(render_times(example(), ()))


@pytest.mark.parametrize("text", [*HOSTILE, "".join(HOSTILE)])
def test_hostile_texts_stay_texts(text: str, html: str) -> None:
    data, figures = hostile(text), draw_figures(hostile(text)) if len(text) > 100 else {}
    written = render_report(data, figures)
    found, plain = Reader(written), Reader(html)
    assert found.opened == []
    assert {tag for tag, _ in found.elements} <= {tag for tag, _ in plain.elements}
    assert [tag for tag, _ in found.elements].count("script") == 1
    assert not [name for _, attributes in found.elements for name in attributes if name.startswith("on")]
    links = {link for link in found.values("href") if not link.startswith("#")}
    assert links <= {f"{name}.csv" for name in build_tables(data)} | set(render_times(data, ()))
    assert found.text.count(" ".join(escape_hidden(text).split())) >= 12, "the text is not shown as it is"
    assert written.encode("utf-8").decode("utf-8") == escape_hidden(written)


@given(some.text(some.characters(exclude_categories=())))
@settings(max_examples=30, deadline=None)
def test_any_text_stays_text(text: str) -> None:
    full = hostile("x")
    data = replace(full, name=text, notes=(text,), recipe=text, validation=(), comparisons=(), losses=(), choice=None)
    html = render_report(data, {})
    found = Reader(html)
    assert found.opened == [] and [tag for tag, _ in found.elements].count("script") == 1
    assert escape_hidden(html) == html
    html.encode("utf-8")


def test_the_same_data_give_the_same_bytes(html: str) -> None:
    assert built(example())[0] == html
    assert build_tables(example()) == build_tables(example())


def test_a_classification_has_a_section_of_its_own() -> None:
    full = example()
    assert full.choice is not None
    kind = (full.choice.format, full.choice.decoding, ("spam", "<b>"))
    tables = [
        LabelTable(BASE, "gsm8k", "test", *kind, ((2, 1, 1, 0), (0, 0, 0, 4)), "spam", "train"),
        LabelTable(full.choice.checkpoint, "gsm8k", "test", *kind, ((3, 0, 0, 1), (1, 3, 0, 0)), "spam", "train"),
    ]
    html, reader = built(replace(full, labels=tuple(tables)))
    assert [each["id"] for tag, each in reader.elements if tag == "section"][1] == "labels" and "#labels" in html
    section = Reader(html.partition('<section id="labels">')[2].partition("</section>")[0]).text.replace("\xa0", " ")
    assert "Always answering “spam”, the most frequent label in training, would be right on 50.0 % of gsm8k." in section
    assert (
        "spam 4 75.0 % 50.0 % 4 75.0 % 100.0 %" in section
    )  # questions, recall, of the base, answered, precision, ...
    assert "<b> 4 75.0 % 0.0 % 3 100.0 % 0.0 %" in section and "&lt;b&gt;" in html
    assert "mean of labels 8 75.0 % 25.0 %" in section
    lines = build_tables(replace(full, labels=tuple(tables)))["confusion"].splitlines()
    assert len(lines) == 1 + 4 + 4 and f'"gsm8k","{kind[0]}","{kind[1]}",0,"<b>","(none)",4' in lines


def test_own_texts_are_shown_with_their_grades_and_measures() -> None:
    full = example()
    assert full.own_texts is not None
    page = built(full)[0]
    section = page.partition('<section id="own-texts">')[2].partition("</section>")[0]
    text = Reader(section).text.replace("\xa0", " ")
    assert "In the steps 476 to 600, which are the last quarter, 780 of 2000 texts that count were right." in text
    assert text.index("✓ right: 27") < text.index("Texts with the lowest reward") < text.index("✗ wrong: 6")
    assert "advantage +0.70" in text and "advantage −0.70" in text and "Gold answer: 27" in text
    titles = ["divergence: big", "divergence: base", "right", "mean reward", "importance ratio", "ratio capped"]
    titles.append("KL since writing")
    assert all(section.count(f">{title}<") >= 3 for title in titles), "in both figures and in the list"
    assert "clipped" not in text, "no token was clipped"
    rows = read(build_tables(full)["own-texts"])
    assert {row["step"] for row in rows} == {str(step) for step in range(101, 601)}
    assert [row["value"] for row in rows if row["scorer"] == "base" and row["step"] == "200"] == ["0.15"]
    after = page.partition('<section id="repair-texts">')[2].partition("</section>")[0]
    text = Reader(after).text.replace("\xa0", " ")
    assert "Its own texts after the selection" in text and "The grades change nothing in these steps." in text
    assert text.index("Right texts") < text.index("✓ right: 27") < text.index("Other texts") < text.index("✗ wrong: 6")
    assert "highest reward" not in text and "repair/own_texts.jsonl" in text and "dashed" not in text
    assert all(after.count(f">{title}<") >= 3 for title in ("divergence: own", "divergence: kept", "entropy, nats"))
    assert {row["scorer"] for row in read(build_tables(full)["repair-texts"])} == {"own", "kept", ""}
    no_right = replace(full.own_texts, right=0, samples=full.own_texts.samples[1:])
    assert "has fooled the grader" not in render_report(replace(full, own_texts=no_right), {})
    without = render_report(replace(full, own_texts=None, repair_texts=None), {})
    assert "own-texts" not in without and "own_texts" not in without


def test_empty_pieces_say_why() -> None:
    html, reader = built(ReportData("empty", student="s", teacher="t", groups={}, recipe="seed: 1"))
    assert build_tables(ReportData("empty", student="s", teacher="t", groups={}, recipe="")) == {}
    assert [element["id"] for tag, element in reader.elements if tag == "section"] == [
        id for id in SECTIONS if id not in ("own-texts", "repair-texts")
    ]
    assert reader.text.count("Omitted: ") == 10
    assert "<script" not in html and "script-src" not in html
    assert "<table" not in html and "<figure" not in html and ".csv" not in html.split("</style>")[1]


def test_the_untrained_student_may_be_the_choice() -> None:
    full = example()
    base = score("gsm8k", 0, 0.06, 1319, "test")
    data = replace(
        full,
        choice=Choice(BASE, "a rule", "zero-shot-rationale", "greedy", ((BASE, 0.2), (Checkpoint(100), 0.1))),
        comparisons=(Comparison(base, base, Interval(0.0, 0.0, 0.0), 0, 0),),
    )
    html, reader = built(data)
    assert summary_sentence(data).startswith("The rule chose step 0, the student before training. Its accuracy")
    assert "there is one checkpoint and nothing to compare" in reader.text
    assert "card in-distribution level" in html and "points</small>" not in html, "a level, and no change"


def test_without_generic_sets_the_tradeoff_is_left_out() -> None:
    full = example()
    keep = {name: group for name, group in GROUPS.items() if group != "generic"}
    data = replace(
        full,
        groups=keep,
        validation=tuple(each for each in full.validation if each.set in keep),
        comparisons=tuple(each for each in full.comparisons if each.chosen.set in keep),
        controls=(),
        rules=(),
        outcomes={name: counts for name, counts in full.outcomes.items() if name in keep},
    )
    _, reader = built(data)
    assert "Omitted: this figure needs validation scores of a generic set and a specialized set" in reader.text
    assert "generic" not in summary_sentence(data)


def test_the_page_says_what_the_choice_cost() -> None:
    page = render_report(example(), {})
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))
    for said in (
        "at most 22 points of generic lost",
        "step 400 loses 22.0. 2 of 7 steps lose more, and were excluded.",
        "the best of 5 steps is partly the best by luck",
        "to be lower by about 1.2 points (43.5 %)",
        "Test price: against step 500, the choice without the bounds, step 400 has",
        "What each rule would choose",
        "in-distribution 600 36.0 % 36.0 % not tested",
    ):
        assert said in re.sub(r" +([.,)])", r"\1", text), said


def test_what_the_price_is_not_known_for_is_said() -> None:
    full = example()
    assert full.choice is not None
    untested = replace(full, rules=tuple(replace(rule, tested=(), price=()) for rule in full.rules))
    said = sentences.selection_sentences(untested)
    assert any("its price on test is not known" in sentence and "step 500" in sentence for sentence in said)
    same = replace(full, rules=(full.rules[0], replace(full.rules[1], checkpoint=Checkpoint(400), price=())))
    assert "Without the bounds, the choice would be the same." in sentences.selection_sentences(same)
    equal = replace(full, choice=replace(full.choice, equal=(Checkpoint(400), Checkpoint(600)), optimism=None))
    said = sentences.selection_sentences(equal)
    assert "Steps 400 and 600 have exactly the same value, the best one. The first of them was chosen." in said
    assert any("not estimated" in sentence for sentence in said)


def test_a_test_score_among_the_validation_scores_is_our_fault() -> None:
    full = example()
    with pytest.raises(AssertionError, match="a test score"):
        replace(full, validation=(*full.validation, replace(full.validation[0], split="test")))


def test_a_set_without_a_group_is_our_fault() -> None:
    with pytest.raises(AssertionError, match="without a group"):
        replace(example(), groups={})


def read(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_tables_hold_the_numbers() -> None:
    made = csv_tables.build_tables(example())
    assert list(made) == [
        "summary", "before-after", "tradeoff", "validation", "loss", "loss-kinds", "own-texts", "repair-texts", "tasks",
        "calibration", "pareto", "selection", "retain", "rules", "teacher", "chain", "alignment", "cost", "outcomes",
        "samples",
    ]  # fmt: skip
    rows = read(made["before-after"])
    assert len(rows) == 2 * len(example().comparisons) + 2 * len(GROUPS)
    bbh = next(row for row in rows if (row["set"], row["checkpoint"]) == ("bbh", "chosen"))
    assert float(bbh["difference"]) == pytest.approx(-0.22, abs=0.001) and bbh["step"] == "400"
    assert (int(bbh["n"]), int(bbh["right"])) == (2311, 300)
    chosen = [row for row in read(made["selection"]) if row["chosen"]]
    assert [(row["step"], row["tied"]) for row in chosen] == [("400", "tied")]
    assert [row["step"] for row in read(made["retain"]) if row["excluded"]] == ["500", "600"]
    priced = [row for row in read(made["rules"]) if row["price"]]
    assert {(row["rule"], row["split"]) for row in priced} == {("without-retain", "test")}
    generic = next(row for row in priced if row["group"] == "generic")
    found = [float(generic[name]) for name in ("price", "mean_accuracy")]
    assert found == pytest.approx([0.03, 0.1], abs=1e-3)
    front = [row["step"] for row in read(made["pareto"]) if row["front"] and row["group"] == "out-of-distribution"]
    assert front == ["0", "100", "200", "300", "400"], "500 and 600 are worse on both"
    assert len(read(made["loss"])) == 600 and len(read(made["validation"])) == len(example().validation)
    verdicts = {row["of"]: int(row["number"]) for row in read(made["teacher"]) if row["what"] == "verdict"}
    assert verdicts == {"right": 18572, "wrong": 9100, "no answer": 420, "truncated": 1000}


def test_quoted_figures_are_marked_and_have_no_interval() -> None:
    rows = [row for row in read(csv_tables.build_tables(example())["summary"]) if row["of"] == "quoted"]
    assert [(row["student"], row["taught"], row["name"], row["group"]) for row in rows] == [
        ("another model", "quoted: a paper, table 2", "gsm8k", "in-distribution"),
        ("a third", "quoted: a blog", "bbh", "generic"),
    ]
    assert [(row["accuracy"], row["n"]) for row in rows] == [("0.412", "1319"), ("0.3", "")]
    assert all(row[name] == "" for row in rows for name in ("step", "low", "high", "difference", "interval_over"))


@given(some.lists(some.lists(some.one_of(some.text(), some.integers(), some.floats(-9, 9)), min_size=2, max_size=2)))
@settings(max_examples=200, deadline=None)
def test_no_cell_of_text_is_a_formula(rows: list[list[str | int | float]]) -> None:
    text = to_csv(["a", "b"], rows)
    found = list(csv.reader(io.StringIO(text, newline="")))[1:]
    assert len(found) == len(rows)
    for row, cells in zip(rows, found, strict=True):
        for value, cell in zip(row, cells, strict=True):
            if isinstance(value, str):
                assert not cell.startswith(FORMULA_PREFIXES) and cell.removeprefix("'") in (
                    escape_hidden(value),
                    escape_hidden(value)[1:],
                )
            else:
                assert float(cell) == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n", " =", "\ufeff="])
def test_a_text_that_begins_like_a_formula_is_marked(start: str) -> None:
    cell = list(csv.reader(io.StringIO(to_csv(["a"], [[start + "1"]]), newline="")))[1][0]
    assert cell == "'" + start + "1" if start[0] not in "\r\ufeff" else cell.startswith("⟨U+")


def test_negative_numbers_stay_numbers() -> None:
    assert to_csv(["a", "b"], [[-0.25, -3]]) == '"a","b"\n-0.25,-3\n'


@given(some.lists(some.tuples(some.floats(0, 1), some.floats(0, 1), some.floats(0, 1)), min_size=1, max_size=6))
def test_the_mean_of_intervals(triples: list[tuple[float, float, float]]) -> None:
    intervals = [Interval(*(sorted(each)[at] for at in (1, 0, 2))) for each in triples]
    found = mean_interval(intervals)
    assert found.low <= found.value <= found.high
    n = len(intervals)
    assert found.low >= sum(each.low for each in intervals) / n - 1e-12
    assert found.high <= sum(each.high for each in intervals) / n + 1e-12
    assert found.low >= -1e-12 and found.high <= 1 + 1e-12
