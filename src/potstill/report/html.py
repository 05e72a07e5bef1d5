"""Renders the page of a run as one self-contained HTML text. Only this module uses jinja2.

    >>> data = ReportData("demo", student="tiny", teacher="local", groups={}, recipe="seed: 1")
    >>> summary_sentence(data)
    'Nothing was compared: the run has no scores on the test split.'
    >>> html = render_report(data, figures={})
    >>> html.startswith("<!doctype html>"), "seed: 1" in html, "loss.csv" in html
    (True, True, False)

Texts of models, data and users stay text: jinja2 escapes every value, the page has no script (its filters are CSS rules
for radio buttons), and its Content-Security-Policy forbids scripts. The same data give the same bytes. The page links
every table as `<name>.csv` in its folder, and the files of `render_times`.

A chain is shown in pieces, with the probability that its source gave to each piece:

    >>> chain = Chain.from_tokens("q", 0, [b"12", b" eggs"], [[(b"12", -0.7), (b"15", -0.9)], [(b" eggs", -0.01)]])
    >>> [(piece.text, round(piece.probability, 2), piece.shade) for piece in split_into_pieces(chain)]
    [('12', 0.5, 3), (' eggs', 0.99, 0)]
    >>> [(other.text, round(other.probability, 2)) for other in split_into_pieces(chain)[0].candidates]
    [('12', 0.5), ('15', 0.41)]
"""

from __future__ import annotations

import codecs
import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from itertools import groupby
from typing import Any, Final

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from potstill.errors import escape_hidden
from potstill.records import BASE, END, Candidate, Chain, Checkpoint, End, PassCurve, Score
from potstill.report import label_views, summary
from potstill.report.csv_tables import build_tables, times_csv
from potstill.report.model import (
    OUTCOMES,
    SET_GROUPS,
    Comparison,
    ReportData,
    ReportExample,
    SetGroup,
    StageTime,
    TrainingSpeed,
)

VERSION: Final = 6  # of the content of the page and its tables; stored in the manifest of the stage `report`
SECTIONS: Final = (
    ("before-after", "Before and after"),
    ("labels", "Labels"),
    ("tradeoff", "Gained and lost"),
    ("training", "Through training"),
    ("selection", "Selection"),
    ("teacher", "Teacher and filter"),
    ("alignment", "Alignment"),
    ("cost", "What it took"),
    ("read", "Questions to read"),
    ("made", "How it was made"),
)
SHADE_BOUNDS: Final = (
    0.95,
    0.8,
    0.6,
    0.4,
    0.2,
)  # a piece is one shade darker for each bound that is above its probability
MAX_CANDIDATES: Final = 6  # candidates shown for a piece


def render_report(data: ReportData, figures: Mapping[str, str]) -> str:
    """The page as HTML text.

    figures  the result of `draw_figures`, which is inserted without escaping. Missing figures are left out
    """
    examples, checkpoints = _view_examples(data), summary.scores_by_checkpoint(data)
    # The first question whose chains have different grades is open when the page loads.
    grades = [{verdict.grade for _, verdict in example.chains} for example in data.examples]
    values: dict[str, Any] = {
        "figures": {name: Markup(svg) for name, svg in figures.items()},
        "sections": [row for row in SECTIONS if data.labels or row[0] != "labels"],
        "sentence": summary_sentence(data),
        "controls": controls_sentence(data),
        "changes": _group_changes(data),
        "checkpoints": checkpoints,
        "students": (students := summary.summary_rows(data)),
        "truncated": any(cell.truncated for row in students for cell in row.sets.values()),
        "main": summary.main_comparisons(data),
        "formats": _score_tables(data),
        "pass_curves": _pass_curve_tables(data),
        "labels": label_views.view_labels(data),
        "trained": summary.has_trained_choice(data),
        "interpolated": any(row.checkpoint.share != 1 for row in checkpoints),
        "on_policy": any(row.checkpoint.on_policy_steps for row in checkpoints),
        "non_finite": sum(not math.isfinite(loss) for _, loss in data.losses),
        "groups": [group for group in SET_GROUPS if group in data.groups.values()],
        "costs": [(stage, list(rows)) for stage, rows in groupby(data.costs, lambda cost: cost.stage)],
        "examples": examples,
        "first_open": next((index for index, different in enumerate(grades) if len(different) > 1), 0),
        "kinds": _filter_choices([kind for _, kind, _ in examples]),
        "shaded": any(piece.shade for _, _, chains in examples for _, _, pieces in chains for piece in pieces),
        "shades": [f"under {100 * bound:.0f}\N{NO-BREAK SPACE}%" for bound in SHADE_BOUNDS],
        "tables": build_tables(data),
    }
    return _render("page.html.jinja", data, values)


def render_times(data: ReportData, times: Sequence[StageTime], speed: TrainingSpeed | None = None) -> dict[str, str]:
    """The page and the table of seconds and memory, which depend on the machine, as texts by file name."""
    return {
        "time.html": _render("time.html.jinja", data, {"times": times, "speed": speed}),
        "time.csv": times_csv(times),
    }


def _render(template: str, data: ReportData, values: Mapping[str, Any]) -> str:
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
    )
    return environment


def _read_asset(name: str) -> str:
    return resources.files("potstill.report").joinpath("page", name).read_text("utf-8")


# Sentences


def summary_sentence(data: ReportData) -> str:
    """One sentence that compares the base and the chosen checkpoint on the test split, by group, with paired 95 %
    intervals."""
    changes = _group_changes(data)
    if not changes:
        return "Nothing was compared: the run has no scores on the test split."
    if data.choice and data.choice.checkpoint == BASE:
        scores = ", ".join(
            f"{summary.format_percent(change.base)} {_group_phrase(change.group)} ({_describe_sets(change)}; 95\xa0% interval"
            f" {summary.format_percent(change.base.low)} to {summary.format_percent(change.base.high)})"
            for change in changes
        )
        return f"The rule chose step 0, the student before training. Its accuracy on the test split is {scores}."
    parts = [
        f"from {summary.format_percent(change.base)} to {summary.format_percent(change.chosen)} {_group_phrase(change.group)}"
        f" ({_describe_sets(change)}; {summary.format_points(change.difference.value)} points, 95\xa0% interval"
        f" {summary.format_points(change.difference.low)} to {summary.format_points(change.difference.high)})"
        for change in changes
    ]
    start = "After training"
    if data.choice:
        share = data.choice.checkpoint.share
        start = f"After {summary.format_count(data.choice.checkpoint.step)} training steps"
        start += "" if share == 1 else f", with {summary.format_percent(share)} of the change in the weights"
    return f"{start}, accuracy on the test split went {_join_words(parts)}."


def controls_sentence(data: ReportData) -> str:
    """A sentence with the accuracies of the controls, from the same base on the same questions; empty without controls."""
    steps = {control.name: control.steps for control in data.controls}
    parts = []
    for row in summary.summary_rows(data)[2:]:
        reached = [
            f"{summary.format_percent(cell.accuracy)} {_group_phrase(group)}" for group, cell in row.groups.items()
        ]
        parts.append(f"{summary.format_count(steps[row.name])} steps on {row.training} reached {_join_words(reached)}")
    return f"For comparison, from the same base, each with one seed: {'; '.join(parts)}." if parts else ""


def _group_changes(data: ReportData) -> list[summary.GroupChange]:
    """The change in every group that has a test set, in the main format and decoding."""
    return list(summary.changes_by_group(summary.main_comparisons(data), data.groups).values())


def _group_phrase(group: SetGroup) -> str:
    return "on generic tasks" if group == "generic" else group


def _join_words(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])}, and {parts[-1]}"


def _describe_sets(change: summary.GroupChange) -> str:
    return change.sets[0] if len(change.sets) == 1 else f"mean of {len(change.sets)} sets"


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
        rows: list[StudentRow] = [("base", comparison.base, None)]
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


# Example questions


def _view_examples(data: ReportData) -> list[tuple[ReportExample, str, list[tuple[Any, Any, list[TextPiece]]]]]:
    """Every example with its kind, which is a CSS class of the page, and its chains, split into pieces."""
    return [
        (
            example,
            (summary.outcome_of(example.before, example.after) or "taught").replace(" ", "-"),
            [(chain, verdict, split_into_pieces(chain)) for chain, verdict in example.chains],
        )
        for example in data.examples
    ]


def _filter_choices(kinds: Sequence[str]) -> list[tuple[str, str, int]]:
    """(id, name, number of questions) of each choice in the filter. Kinds without questions are left out."""
    names = [("taught", "teacher’s chains")] + [(outcome.replace(" ", "-"), outcome) for outcome in OUTCOMES]
    choices = [(kind, name, kinds.count(kind)) for kind, name in names if kind in kinds]
    return [("all", "all", len(kinds)), *choices]


@dataclass(frozen=True, slots=True)
class CandidateView:
    """A candidate: its text, its probability, and whether it was sampled."""

    text: str
    probability: float
    drawn: bool


@dataclass(frozen=True, slots=True)
class TextPiece:
    """A readable piece of a chain. `probability` is None if the source gave none."""

    text: str
    probability: float | None = None
    candidates: tuple[CandidateView, ...] = ()

    @property
    def shade(self) -> int:
        """The number of `SHADE_BOUNDS` that are above the probability; 0 if there is no probability."""
        return 0 if self.probability is None else sum(self.probability < bound for bound in SHADE_BOUNDS)


def split_into_pieces(chain: Chain) -> list[TextPiece]:
    """The pieces of a chain in order, with an empty piece for the end if the end has a probability.

    A token may be part of a character. Tokens that are only readable together are one piece, with the candidates of the
    first token and the product of their probabilities.
    """
    if not chain.candidates:
        return [TextPiece(chain.text)]
    parts: list[tuple[bytes, TextPiece]] = []  # the bytes of each token, and the bytes between tokens
    position = 0
    for (start, end), token, step in zip(chain.spans, chain.tokens, chain.candidates, strict=False):
        if start > position:
            parts.append((chain.content[position:start], TextPiece("")))
        parts.append((chain.content[max(position, start) : end], _make_piece(token, step)))
        position = max(position, end)
    if position < len(chain.content):
        parts.append((chain.content[position:], TextPiece("")))
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    pieces: list[TextPiece] = []
    waiting: TextPiece | None = None  # a piece whose bytes end inside a character
    for number, (content, piece) in enumerate(parts):
        text = decoder.decode(content, final=number == len(parts) - 1)
        if waiting is not None:
            known = [p for p in (waiting.probability, piece.probability) if p is not None]
            piece = replace(waiting, probability=math.prod(known) if known else None)
        waiting = None if text or not content else piece
        if waiting is None:
            pieces.append(replace(piece, text=text))
    if len(chain.candidates) > len(chain.tokens) and chain.stop == "end":
        pieces.append(_make_piece(END, chain.candidates[-1]))
    return pieces


def _make_piece(drawn: bytes | End, step: Sequence[Candidate]) -> TextPiece:
    ranked = sorted(step, key=lambda candidate: -candidate[1])
    shown = ranked[:MAX_CANDIDATES] + [candidate for candidate in ranked[MAX_CANDIDATES:] if candidate[0] == drawn]
    candidates = tuple(
        CandidateView(summary.readable_token(token), math.exp(log), token == drawn) for token, log in shown
    )
    probability = next((candidate.probability for candidate in candidates if candidate.drawn), None)
    return TextPiece("", probability, candidates)
