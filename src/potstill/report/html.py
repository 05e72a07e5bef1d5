"""Renders the page of a run as one self-contained HTML text. Only this module uses jinja2.

    >>> data = ReportData("demo", student="tiny", teacher="local", groups={}, recipe="seed: 1")
    >>> html = render_report(data, figures={})
    >>> html.startswith("<!doctype html>"), "seed: 1" in html, "loss.csv" in html
    (True, True, False)

Texts of models, data and users stay text: jinja2 escapes every value. The filters are CSS rules for radio buttons. The one
script of the page (`page.js`) searches the questions. The Content-Security-Policy allows it by its SHA-256 digest, and
forbids every other script. The same data give the same bytes. The page links every table as `<name>.csv` in its folder,
and the files of `render_times`.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import resources
from itertools import groupby
from typing import Any, Final

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup, escape

from potstill.errors import escape_hidden
from potstill.records import BASE, Checkpoint, PassCurve, Score
from potstill.report import label_views, question_views, sentences, summary
from potstill.report.csv_tables import build_tables, times_csv
from potstill.report.group_scores import GroupScore
from potstill.report.model import (
    OUTCOMES,
    SET_GROUPS,
    Comparison,
    Interval,
    QuotedScore,
    ReportData,
    SetGroup,
    StageTime,
    TaskScore,
    TrainingSpeed,
)
from potstill.report.model_comparison import ModelComparison
from potstill.report.own_text_panels import list_panels
from potstill.report.score_tables import HEADER, build_score_tables, table_notes
from potstill.report.study_model import StudyReport

VERSION: Final = 12  # of the content of the page and its tables; stored in the manifest of the stage `report`
SECTIONS: Final = (
    ("before-after", "Before and after"),
    ("labels", "Labels"),
    ("tradeoff", "Gained and lost"),
    ("training", "Through training"),
    ("own-texts", "Its own texts"),
    ("repair-texts", "Its own texts after the selection"),
    ("selection", "Selection"),
    ("teacher", "Teacher and filter"),
    ("calibration", "How sure they are"),
    ("alignment", "Alignment"),
    ("cost", "What it took"),
    ("read", "Questions to read"),
    ("made", "How it was made"),
)
# The sections of a run that only evaluates a model.
EVALUATION_SECTIONS: Final = (
    ("before-after", "Accuracy"),
    ("labels", "Labels"),
    ("calibration", "How sure it is"),
    ("cost", "What it took"),
    ("read", "Questions to read"),
    ("made", "How it was made"),
)


def render_report(data: ReportData, figures: Mapping[str, str]) -> str:
    """The page as HTML text.

    figures  the result of `draw_figures`, which is inserted without escaping. Missing figures are left out
    """
    questions, checkpoints = question_views.view_questions(data), summary.scores_by_checkpoint(data)
    outcomes, sets = question_views.outcome_choices(data, questions), question_views.set_choices(data, questions)
    script = _read_asset("page.js") if questions else ""
    # The first question whose chains have different grades is open when the page loads.
    grades = [{verdict.grade for _, verdict in example.chains} for example in data.examples]
    values: dict[str, Any] = {
        "figures": {name: Markup(svg) for name, svg in figures.items()},
        "sections": [
            row
            for row in (SECTIONS if data.is_trained else EVALUATION_SECTIONS)
            if row[0] not in _missing_sections(data)
        ],
        "script": Markup(script),
        "policy": _content_policy(script),
        "headline": sentences.headline_sentence(data),
        "sentence": sentences.summary_sentence(data),
        "controls": sentences.controls_sentence(data),
        "changes": [(change, summary.judge_change(change.difference)) for change in summary.group_changes(data)],
        "group_meanings": sentences.group_meanings(data),
        "checkpoints": checkpoints,
        "students": (students := summary.summary_rows(data)),
        "truncated": any(cell.truncated for row in students for cell in row.sets.values()),
        "quoted": _quoted_columns(data.quoted),
        "main": summary.main_comparisons(data),
        "rule": sentences.describe_rule(data.choice) if data.choice else "",
        "selection_sentences": sentences.selection_sentences(data),
        "rules": [(row, summary.changes_by_group(row.tested, data.groups)) for row in data.rules],
        "formats": _score_tables(data),
        "task_tables": _task_tables(data),
        "pass_curves": _pass_curve_tables(data),
        "labels": label_views.view_labels(data),
        "trained": summary.has_trained_choice(data),
        "interpolated": any(row.checkpoint.share != 1 for row in checkpoints),
        "on_policy": any(row.checkpoint.on_policy_steps for row in checkpoints),
        "written": [(texts, dict(SECTIONS)[texts.name], list_panels(texts)) for texts in data.written],
        "non_finite": sum(not math.isfinite(loss) for _, loss in data.losses),
        "groups": [group for group in SET_GROUPS if group in data.groups.values()],
        "costs": [(stage, list(rows)) for stage, rows in groupby(data.costs, lambda cost: cost.stage)],
        "questions": questions,
        "first_open": next((index for index, different in enumerate(grades) if len(different) > 1), 0),
        "outcome_choices": outcomes,
        "set_choices": sets,
        "empty_combinations": question_views.empty_combinations(questions, outcomes, sets),
        "outcome_names": OUTCOMES if data.is_trained else ("right", "not right"),
        "outcome_totals": sum((Counter(counts) for counts in data.outcomes.values()), Counter[str]()),
        "run_path": question_views.run_path(data),
        "shaded": any(piece.shade for view in questions for _, _, pieces in view.chains for piece in pieces),
        "shades": [f"under {100 * bound:.0f}\N{NO-BREAK SPACE}%" for bound in question_views.SHADE_BOUNDS],
        "tables": build_tables(data),
    }
    return _render("page.html.jinja", data, values)


def _missing_sections(data: ReportData) -> list[str]:
    """The sections that only some runs have, and this run does not have."""
    has = {"labels": data.labels, "own-texts": data.own_texts, "repair-texts": data.repair_texts}
    return [name for name, part in has.items() if not part]


def render_times(data: ReportData, times: Sequence[StageTime], speed: TrainingSpeed | None = None) -> dict[str, str]:
    """The page and the table of seconds and memory, which depend on the machine, as texts by file name."""
    return {
        "time.html": _render("time.html.jinja", data, {"times": times, "speed": speed, "policy": _content_policy("")}),
        "time.csv": times_csv(times),
    }


def render_comparison(comparison: ModelComparison) -> str:
    """The page of `potstill compare` as HTML text."""
    script = _read_asset("page.js") if comparison.questions else ""
    sets = dict.fromkeys(row.question.set for row in comparison.questions)
    by_answers = [(name, list(rows)) for name, rows in groupby(comparison.sets, lambda row: row.answers)]
    values: dict[str, Any] = {
        "script": Markup(script),
        "policy": _content_policy(script),
        "tables": by_answers,
        "judgements": sentences.describe_judgements(comparison),
        "group_meanings": sentences.EVALUATED_MEANINGS,
        "groups": SET_GROUPS,
        "recipe_tables": build_score_tables(comparison.recipes, comparison.recipe_scores),
        "recipe_notes": table_notes(comparison.recipes, comparison.recipe_scores),
        "quoted": _quoted_columns(comparison.quoted),
        "recipe_columns": HEADER[1:],
        "sets": [
            (f"set-{number}", name, sum(row.question.set == name for row in comparison.questions))
            for number, name in enumerate(sets)
        ],
    }
    return _render("compare.html.jinja", comparison, values)


def _quoted_columns(quoted: Sequence[QuotedScore]) -> dict[tuple[str, str], dict[str, QuotedScore]]:
    """(name, source) -> set -> figure, in the order of the recipe."""
    columns: dict[tuple[str, str], dict[str, QuotedScore]] = {}
    for row in quoted:
        columns.setdefault((row.name, row.source), {})[row.set] = row
    return columns


def render_study(data: StudyReport, figures: Mapping[str, Mapping[str, str]]) -> str:
    """The page of `potstill study` as HTML text.

    figures  experiment -> the figures of `draw_experiment`, which are inserted without escaping
    """
    values: dict[str, Any] = {
        "policy": _content_policy(""),
        "figures": {name: {key: Markup(svg) for key, svg in drawn.items()} for name, drawn in figures.items()},
        "quoted": {view.name: _quoted_columns(view.quoted) for view in data.experiments},
        "groups": SET_GROUPS,
    }
    return _render("study.html.jinja", data, values)


def _content_policy(script: str) -> str:
    """The Content-Security-Policy of the page: it loads nothing, and runs no script except this one."""
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    allowed = f" script-src 'sha256-{digest}';" if script else ""
    return f"default-src 'none';{allowed} style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def _render(template: str, data: ReportData | ModelComparison | StudyReport, values: Mapping[str, Any]) -> str:
    html = _jinja_environment().get_template(template).render(data=data, css=Markup(_read_asset("page.css")), **values)
    return escape_hidden(html).strip() + "\n"  # escapes control and direction characters in all texts


@functools.cache
def _jinja_environment() -> Environment:
    environment = Environment(
        loader=FunctionLoader(_read_asset),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        percent=summary.format_percent,
        points=summary.format_points,
        count=summary.format_count,
        duration=summary.format_duration,
        label=summary.checkpoint_label,
        bits=summary.format_bits,
        lost=sentences.format_lost,
        marks=summary.checkpoint_marks,
        judgement=summary.judge_change,
        score_judgement=_judge_score,
        run_recipe=question_views.recipe_path,
        breakable=_allow_breaks,
    )
    return environment


def _allow_breaks(name: str) -> Markup:
    """The name of a run, which a narrow column may break after its dots.

    >>> _allow_breaks("retention.<b>.seed-1")
    Markup('retention.<wbr>&lt;b&gt;.<wbr>seed-1')
    """
    return Markup(".<wbr>").join(escape(name).split("."))


def _judge_score(score: GroupScore) -> summary.Judgement:
    """What the change of a group from its baseline is called."""
    assert score.difference is not None and score.difference_low is not None and score.difference_high is not None
    return summary.judge_change(Interval(score.difference, score.difference_low, score.difference_high))


def _read_asset(name: str) -> str:
    return resources.files("potstill.report").joinpath("page", name).read_text("utf-8")


# Tables of the page

StudentRow = tuple[str, Score, Comparison | None]
GroupRows = list[tuple[SetGroup, list[list[StudentRow]]]]


def _score_tables(data: ReportData) -> list[tuple[str, str, bool, GroupRows]]:
    """The tables of all counts, as (format, decoding, whether a set has several tasks, rows).

    The rows are by group and set, with one row for each student. The table of the main format comes first, and includes
    the controls.
    """
    main, trained = summary.main_format(data), summary.has_trained_choice(data)
    tables: dict[tuple[str, str], list[list[StudentRow]]] = {}
    for comparison in data.comparisons:
        score, key = comparison.chosen, (comparison.chosen.format, comparison.chosen.decoding)
        rows: list[StudentRow] = [("base" if data.is_trained else "model", comparison.base, None)]
        if trained:
            rows.append((_checkpoint_name(score.checkpoint), score, comparison))
        for control in data.controls if trained and key == main else ():
            of_set = [row for row in control.comparisons if row.chosen.set == score.set]
            rows += [(control.training, row.chosen, row) for row in of_set]
        tables.setdefault(key, []).append(rows)
    views = []
    for key, sets in sorted(tables.items(), key=lambda table: table[0] != main):
        has_tasks = any(score.macro is not None for rows in sets for _, score, _ in rows)
        groups: GroupRows = [
            (group, [rows for rows in sets if data.groups[rows[0][1].set] == group]) for group in SET_GROUPS
        ]
        views.append((*key, has_tasks, groups))
    return views


def _task_tables(
    data: ReportData,
) -> list[tuple[str, list[tuple[str, bool]], list[tuple[str, list[TaskScore | None]]]]]:
    """The scores by task, as (set, formats, rows). A row is a task, and its scores in these formats.

    Each format comes with whether it asks for a chain of thought. Formats for the answer only come first.
    """
    tables = []
    for name in dict.fromkeys(row.set for row in data.tasks):
        rows = {(row.task, row.format): row for row in data.tasks if row.set == name}
        formats = sorted({(row.format, row.rationale) for row in rows.values()}, key=lambda pair: (pair[1], pair[0]))
        tasks = dict.fromkeys(task for task, _ in rows)
        tables.append((name, formats, [(task, [rows.get((task, each)) for each, _ in formats]) for task in tasks]))
    return tables


def _pass_curve_tables(data: ReportData) -> list[tuple[str, str, list[tuple[str, str, int, list[PassCurve]]]]]:
    """The tables of accuracies by number of samples, as (format, sampling, rows).

    There is a row for each set, student and number of samples (1, 2, 4, ..., and the largest). Its cells are for the most
    frequent answer, the most likely text, and any right answer.
    """
    by_sampling: dict[tuple[str, str], dict[tuple[str, Checkpoint, int], list[PassCurve]]] = {}
    for curve in data.pass_curves:
        rows = by_sampling.setdefault((curve.format, curve.drawing), {})
        rows.setdefault((curve.set, curve.checkpoint, curve.k), []).append(curve)
    order = [name for group in SET_GROUPS for name in data.groups if data.groups[name] == group]
    tables = []
    for (format, sampling), rows in by_sampling.items():
        largest = max(k for _, _, k in rows)
        keys = [key for key in rows if key[2] & (key[2] - 1) == 0 or key[2] == largest]
        keys.sort(key=lambda key: (order.index(key[0]), *key[1:]))
        tables.append((format, sampling, [(key[0], _checkpoint_name(key[1]), key[2], rows[key]) for key in keys]))
    return tables


def _checkpoint_name(checkpoint: Checkpoint) -> str:
    return "base" if checkpoint == BASE else f"step {checkpoint.label}"
