"""The numbers of a study's page from planted runs, its texts and files, and the fit over sizes."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from scipy import stats

import example_study
from example_report import HOSTILE
from potstill.evaluation import intervals
from potstill.report import study_numbers
from potstill.report.model import QuotedScore
from potstill.report.study_model import Experiment, ExperimentView, StudyReport, StudyRun
from potstill.report.study_numbers import mean_path, view_experiment
from potstill.report.study_page import describe_experiment, render_study_page


def view(study: example_study.Study) -> ExperimentView:
    [experiment], runs = study
    return view_experiment(experiment, runs)


def table(content: str | bytes) -> list[dict[str, str]]:
    assert isinstance(content, str)
    return list(csv.DictReader(io.StringIO(content)))


def test_groups_are_named_by_their_choices_and_scored_over_seeds() -> None:
    made = view(example_study.rules())
    assert [(group.label, group.seeds) for group in made.groups] == [("one-hot", (1, 2, 3)), ("span", (1, 2, 3))]
    [main] = made.tables
    columns = [main.columns[place] for place in main.summary.values()]
    assert [(column.kind, column.of, column.n) for column in columns] == [
        ("in-distribution", "set", 40), ("out-of-distribution", "mean over sets", 80), ("generic", "set", 40),
    ]  # fmt: skip
    rows = {row.label: [row.cells[place] for place in main.summary.values()] for row in main.rows}
    shares = {label: [cell.score.share for cell in cells if cell] for label, cells in rows.items()}
    # Out of distribution: the mean over seeds 1 to 3 of (10 + seed) / 40 and (8 + seed) / 40.
    assert shares["base"] == pytest.approx([4 / 40, 3 / 40, 32 / 40])
    assert shares["one-hot"] == pytest.approx([20 / 40, 11 / 40, 16 / 40])
    assert shares["span"] == pytest.approx([20 / 40, 21 / 40, 16 / 40])
    cell = rows["span"][1]
    assert cell and cell.score.difference == pytest.approx(18 / 40) and cell.first.difference == pytest.approx(10 / 40)
    assert cell.score.baseline == "base" and cell.first.baseline == "one-hot"
    assert rows["one-hot"][1] and rows["one-hot"][1].first.difference is None
    assert [row.seeds for row in main.rows] == ["", "3 seeds", "3 seeds"]


def test_failed_runs_and_copies_are_named_and_in_no_number() -> None:
    [experiment], runs = example_study.rules()
    twin = replace(runs["span.seed-1"], name="copy", folder="copy")
    runs["copy"] = twin
    more = experiment._replace(runs=[*experiment.runs, ("copy", {"transfer.rule": "span"}, Path("copy"))])
    made = view_experiment(more, runs)
    assert [(name, "span.seed-1" in what) for name, _, what in made.faults] == [("text.seed-1", False), ("copy", True)]
    assert made.tables == view(example_study.rules()).tables
    page = render_study_page("rules", "", [more], runs)["index.html"]
    assert page == render_study_page("rules", "", [more], runs)["index.html"]
    assert isinstance(page, str) and "2 runs of this experiment are in no number" in page
    assert "text.seed-1" in page and 'href="text.seed-1/report/index.html"' not in page
    nothing = view_experiment(experiment._replace(runs=experiment.runs[-1:]), runs)
    assert not nothing.groups and "nothing to compare" in " ".join(describe_experiment(nothing))
    assert "index.html" in render_study_page("rules", "", [experiment._replace(runs=experiment.runs[-1:])], runs)


def test_several_experiments_have_one_table_of_all_groups() -> None:
    (rules, rule_runs), (sizes, size_runs) = example_study.rules(), example_study.sizes()
    alone, both = (
        render_study_page("both", "", experiments, {**rule_runs, **size_runs})["index.html"]
        for experiments in ([rules[0]], [rules[0], sizes[0]])
    )
    assert isinstance(alone, str) and isinstance(both, str)
    assert 'id="results"' not in alone
    results = both[both.index('id="results"') : both.index(f'<section id="x-{rules[0].name}"')]
    made = view_experiment(rules[0], rule_runs), view_experiment(sizes[0], size_runs)
    for one in made:
        assert f'href="#x-{one.name}"' in results
        for row in one.tables[0].rows:
            assert (f"<bdi>{row.label}</bdi>" in results) is not row.is_base
    assert results.count("<tr>") == 1 + sum(not row.is_base for one in made for row in one.tables[0].rows)


def test_the_front_is_over_all_runs() -> None:
    made = view(example_study.rules())
    of_kind = [point for point in made.tradeoff if point.kind == "out-of-distribution"]
    assert len(of_kind) == 18 and {point.checkpoint.step for point in of_kind if point.is_chosen} == {200}
    # Both rules have the same curves. At step 100, seed 1 keeps most; at step 200, seed 3 is best.
    front = {(point.checkpoint.step, point.seed) for point in of_kind if point.is_front}
    assert front == {(0, 1), (0, 2), (0, 3), (100, 1), (200, 3)}
    path = mean_path([point for point in of_kind if point.group == 0])
    assert path == [pytest.approx(pair) for pair in ((0.8, 0.1), (0.58, 0.2), (0.4, 0.32))]
    # On test, the second rule is better out of distribution and equal elsewhere, so the first is on no front there.
    fronts = {(point.kind, point.label): point.is_front for point in made.front}
    assert fronts["out-of-distribution", "span"] and not fronts["out-of-distribution", "one-hot"]
    assert fronts["in-distribution", "one-hot"] and fronts["out-of-distribution", "base"]


def test_losses_of_different_objectives_are_in_different_panels() -> None:
    made = view(example_study.rules())
    assert [(panel.objective, len(panel.lines)) for panel in made.losses] == [
        ("transfer.rule=one-hot", 3), ("transfer.rule=span", 3),
    ]  # fmt: skip
    assert [(panel.objective, len(panel.lines)) for panel in view(example_study.sizes()).losses] == [("", 8)]


def test_a_panel_is_named_by_its_objective() -> None:
    def named(*objectives: dict[str, Any]) -> list[str]:
        [experiment], runs = example_study.rules()
        changed = {
            name: replace(run, objective=objectives[index % len(objectives)])
            for index, (name, run) in enumerate(runs.items())
        }
        return [panel.objective for panel in view_experiment(experiment, changed).losses]

    one, other = {"student.tokenizer": "a"}, {"student.tokenizer": "b"}
    replay = {"train.replay.share": 0.2, "train.replay.sets": ["bbh"]}
    assert named(one | {"train.replay": None}, one | replay) == [
        "without train.replay", 'train.replay.share=0.2, train.replay.sets=["bbh"]'
    ]  # fmt: skip
    assert named(one, other) == ["one tokenizer of several"] * 2
    rules = [one | {"rule": "a"}, other | {"rule": "a"}, one | {"rule": "b"}]
    assert named(*rules) == ["rule=a, one tokenizer of several"] * 2 + ["rule=b"]
    assert named(one) == [""]


def test_shared_stages_cost_once() -> None:
    _, runs = example_study.rules()
    report = StudyReport("rules", "", (), runs, tuple(study_numbers.list_costs(runs)))
    assert report.total.seconds == {
        "train": 2 * (60 + 120 + 180),
        "evaluate": 180,
        "test": 36,
        "sample": 120,
        "filter": 1,
    }
    assert (report.total.tokens, report.total.money) == (12345, 1.25)
    assert not any(row.outside for row in report.costs)
    runs["one-hot.seed-1"] = replace(runs["one-hot.seed-1"], seconds={}, copied={"sample": "older"})
    outside = {row.run for row in study_numbers.list_costs(runs) if "sample" in row.outside}
    assert outside == {name for name in runs if name != "text.seed-1"}


def test_a_scaling_curve_needs_three_sizes_and_has_the_planted_slope() -> None:
    made = view(example_study.sizes())
    curves = {(curve.kind, curve.who): curve for curve in made.scaling}
    assert len(curves) == 6 and all(len(curve.points) == 4 for curve in made.scaling)
    rising, base = curves["in-distribution", "specialized"], curves["in-distribution", "base"]
    # Right of 40 for 1 M to 1 B, means of two seeds: 8.5, 17.5, 23.5, 32.5; the least-squares slope is 7.8.
    assert [score.share * 40 for _, _, score in rising.points] == pytest.approx([8.5, 17.5, 23.5, 32.5])
    assert rising.fit.slope == pytest.approx(7.8 / 40) and rising.fit.low > 0 and rising.fit.p_value < 0.05
    assert base.fit.slope == pytest.approx(0) and base.fit.low < 0 < base.fit.high and base.fit.p_value == 1
    [experiment], runs = example_study.sizes()
    two = view_experiment(experiment._replace(runs=experiment.runs[:4]), runs)
    assert not two.scaling and "these have 2 sizes" in dict(two.omitted)["the scaling curve"]
    assert "2 sizes" in " ".join(describe_experiment(two))


def test_sizes_with_another_axis_have_a_curve_for_each_of_its_choices() -> None:
    [experiment], runs = example_study.sizes()
    grid: list[tuple[str, dict[str, str], Path]] = []
    both: dict[str, StudyRun] = {}
    for rule in ("one-hot", "span"):
        for name, choices, _ in experiment.runs:
            run = runs[name]
            assert run.answers
            keys = {**run.answers.keys, "transfer.rule": rule}
            longer = f"{rule}.{name}"
            answers = replace(run.answers, name=longer, keys=keys, training=longer)
            both[longer] = replace(run, name=longer, folder=longer, answers=answers)
            grid.append((longer, {"transfer.rule": rule, **choices}, Path(longer)))
    made = view_experiment(Experiment("both", "", ("transfer.rule", "size", "train.seed"), grid), both)
    assert {(curve.label, len(curve.points)) for curve in made.scaling} == {("one-hot", 4), ("span", 4)}
    assert [row.label for row in made.tables[0].rows[:4]] == [
        "base of tiny", "base of small", "base of large", "base of huge",
    ]  # fmt: skip


def test_the_matrix_has_a_cell_for_each_training_and_format() -> None:
    made = view(example_study.formats())
    assert [matrix.kind for matrix in made.matrices] == ["in-distribution", "out-of-distribution", "generic"]
    for matrix in made.matrices:
        shares = [[cell.share for cell in cells if cell] for _, _, cells in matrix.rows]
        assert shares == [pytest.approx([0.6, 0.2]), pytest.approx([0.2, 0.6])]
    assert not view(example_study.rules()).matrices
    assert "one training seed" in " ".join(describe_experiment(made))


@pytest.mark.slow
def test_every_figure_is_there_as_svg_png_and_csv_and_is_linked() -> None:
    experiments, runs = example_study.everything()
    files = render_study_page("findings", "A study", experiments, runs)
    page = files["index.html"]
    assert isinstance(page, str)
    expected = {
        "rules": {"tradeoff", "retention", "loss"},
        "sizes": {"tradeoff", "retention", "loss", "scaling"},
        "formats": {"tradeoff", "retention", "loss", "formats"},
    }
    figures = {f"figures/{name}-{figure}" for name, of in expected.items() for figure in of}
    assert {name.rsplit(".", 1)[0] for name in files if name.endswith((".svg", ".png"))} == figures
    for name in figures:
        svg, png, rows = files[f"{name}.svg"], files[f"{name}.png"], files[f"{name}.csv"]
        assert isinstance(svg, str) and isinstance(png, bytes) and "var(" not in svg
        assert ElementTree.fromstring(svg).tag.endswith("svg") and len(table(rows)) > 3
        image = Image.open(io.BytesIO(png)).convert("RGB")
        assert image.width == 1920
        colours = {tuple(colour) for colour in np.unique(np.asarray(image).reshape(-1, 3), axis=0).tolist()}
        # The colours of the page, and none of the nearly black colours that stand for them.
        assert (255, 255, 255) in colours and (107, 102, 94) in colours
        assert not any(max(colour) < 20 for colour in colours)
    links = set(re.findall(r'href="(figures/[^"]+)"', page))
    assert links == {name for name in files if name.startswith("figures/")}
    ids = re.findall(r'\sid="([^"]+)"', page)
    assert len(ids) == len(set(ids)) and set(re.findall(r'xlink:href="#([^"]+)', page)) <= set(ids)
    assert "script-src" not in page and "<script" not in page


@pytest.mark.slow
def test_hostile_texts_stay_texts() -> None:
    experiments, runs = example_study.everything("".join(HOSTILE))
    page = render_study_page("findings", "".join(HOSTILE), experiments, runs)["index.html"]
    assert isinstance(page, str) and "<script" not in page and "<img" not in page and "&lt;script" in page


def test_quoted_figures_are_marked_in_the_tables_of_sets() -> None:
    [experiment], runs = example_study.formats()
    for name, run in runs.items():
        assert run.answers
        quoted = (QuotedScore("GPT-0", "Someone 2023", "far", 0.125),)
        runs[name] = replace(run, answers=replace(run.answers, quoted=quoted))
    page = render_study_page("formats", "", [experiment], runs)["index.html"]
    assert isinstance(page, str) and page.count("quoted: <bdi>Someone 2023</bdi>") == 2
    assert page.count("12.5\xa0%<small>quoted</small>") == 2 and "Quoted figures are from the literature" in page


# The line over sizes


def test_the_line_is_that_of_least_squares_where_questions_are_many() -> None:
    generator = np.random.Generator(np.random.PCG64(1))
    x = [6.0, 6.5, 7.2, 8.0, 9.0]
    rows = [np.clip(0.1 + 0.08 * (at - 6) + generator.normal(0, 0.03) + np.zeros(20000), 0, 1) for at in x]
    plain: Any = stats.linregress(x, [row.mean() for row in rows])
    fit = intervals.fit_line(x, [np.array(rows)])
    half = stats.t.ppf(0.975, 3) * plain.stderr
    assert (fit.slope, fit.low, fit.high) == pytest.approx((plain.slope, plain.slope - half, plain.slope + half))
    assert fit.p_value == pytest.approx(plain.pvalue)
    assert [mean for _, mean, _, _ in fit.points] == pytest.approx(
        [plain.intercept + plain.slope * at for at, *_ in fit.points]
    )


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [3, 6])
def test_its_interval_covers_the_slope(sizes: int) -> None:
    """2 000 studies, in which sizes, seeds and questions vary: the truth is in at least 95 % of the intervals."""
    generator = np.random.Generator(np.random.PCG64(sizes))
    x, slope, studies, questions, seeds = np.linspace(6, 8, sizes), 0.1, 2000, 50, 2
    covered = flat = 0
    for _ in range(studies):
        difficulty = generator.normal(0, 0.15, (1, 1, questions))
        of_size = generator.normal(0, 0.04, (sizes, 1, 1))
        of_seed = generator.normal(0, 0.03, (sizes, seeds, 1))
        noise = generator.random((sizes, seeds, questions))
        rows = [
            (noise < mean + slope_ * (x - 7)[:, None, None] + difficulty + of_size + of_seed).mean(1)
            for mean, slope_ in ((0.5, slope), (0.5, 0.0))
        ]
        fit, level = (intervals.fit_line(x.tolist(), [row]) for row in rows)
        covered += fit.low <= slope <= fit.high
        flat += level.p_value >= 0.05
        assert (level.low > 0 or level.high < 0) == (level.p_value < 0.05)
    assert covered >= 0.94 * studies and flat >= 0.94 * studies
