"""Tokens to read: a chain's text in pieces, each with the probability that its source gave it.

    >>> chain = Chain.from_tokens("q", 0, [b"12", b" eggs"], [[(b"12", -0.7), (b"15", -0.9)], [(b" eggs", -0.01)]])
    >>> [(piece.text, round(piece.probability, 2), piece.shade) for piece in split_into_pieces(chain)]
    [('12', 0.5, 3), (' eggs', 0.99, 0)]
    >>> [(other.text, round(other.probability, 2)) for other in split_into_pieces(chain)[0].candidates]
    [('12', 0.5), ('15', 0.41)]

A token may be a part of a character: tokens that are readable only together make one piece.

What the page says in words: the run in one sentence, its controls in another, numbers as text.

>>> format_percent(0.125), format_count(12345), format_duration(272)
('12.5\\xa0%', '12\\u202f345', '4 min 32 s')

The page of a run: one self-contained HTML text and its tables as CSV. The only module that knows jinja2.

    >>> story = ReportData("demo", student="tiny", teacher="local", groups={}, recipe="seed: 1")
    >>> summary_sentence(story)
    'Nothing was compared: the run has no scores on the test split.'
    >>> html = render_report(story, figures={})
    >>> html.startswith("<!doctype html>"), "seed: 1" in html, "loss.csv" in html
    (True, True, False)

Texts of models, data and users are data: jinja escapes every value, the page has no script (its filters are style
rules over radio buttons), and its Content-Security-Policy allows none. The same story gives the same bytes. `render`
links each table as `<name>.csv` beside the page, and the files of `measured`.
"""

from __future__ import annotations

import codecs
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from itertools import groupby
from typing import Any, Final

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from potstill.errors import escape_hidden
from potstill.records import BASE, END, Candidate, Chain, Checkpoint, End, PassCurve, Score
from potstill.report.csv_tables import build_tables, times_csv
from potstill.report.model import (
    OUTCOMES,
    SET_GROUPS,
    Comparison,
    Interval,
    ReportData,
    ReportExample,
    SetGroup,
    StageTime,
    TrainingSpeed,
    format_points,
    readable_token,
)
from potstill.report.summary import (
    GroupChange,
    SummaryRow,
    group_changes,
    has_trained_choice,
    main_comparisons,
    main_format,
    outcome_of,
    scores_by_checkpoint,
    summary_rows,
)

SHADE_BOUNDS: Final = (
    0.95,
    0.8,
    0.6,
    0.4,
    0.2,
)  # below the first of them a piece is shaded, below each other one darker
MAX_CANDIDATES: Final = 6  # candidates of a piece


@dataclass(frozen=True, slots=True)
class CandidateView:
    """One candidate: its text, its probability, and whether it is the one that was drawn."""

    text: str
    probability: float
    drawn: bool


@dataclass(frozen=True, slots=True)
class TextPiece:
    """A readable piece of a chain. `probability` is None where the source gave none."""

    text: str
    probability: float | None = None
    candidates: tuple[CandidateView, ...] = ()

    @property
    def shade(self) -> int:
        """0 for a sure piece, up to the number of `SHADES` for the least likely."""
        if self.probability is None:
            return 0
        return sum(self.probability < bound for bound in SHADE_BOUNDS)


def split_into_pieces(chain: Chain) -> list[TextPiece]:
    """The text of a chain, whole and in order, and at last an empty piece for its end where that has a probability."""
    if not chain.candidates:
        return [TextPiece(chain.text)]
    found = [*_join_characters(list(_token_pieces(chain)))]
    if len(chain.candidates) > len(chain.tokens) and chain.stop == "end":
        found.append(_make_piece("", END, chain.candidates[-1]))
    return found


def _token_pieces(chain: Chain) -> Iterator[tuple[bytes, TextPiece]]:
    """Each token's own bytes with its piece, and what lies between tokens without one."""
    at = 0
    for (start, end), token, step in zip(chain.spans, chain.tokens, chain.candidates, strict=False):
        if start > at:
            yield chain.content[at:start], TextPiece("")
        yield chain.content[max(at, start) : end], _make_piece("", token, step)
        at = max(at, end)
    if at < len(chain.content):
        yield chain.content[at:], TextPiece("")


def _join_characters(parts: Sequence[tuple[bytes, TextPiece]]) -> Iterator[TextPiece]:
    """The pieces with their texts; one whose bytes end within a character waits for the next and lends it its odds."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    waiting: TextPiece | None = None
    for number, (content, piece) in enumerate(parts):
        text = decoder.decode(content, final=number == len(parts) - 1)
        if waiting is not None:
            piece = replace(waiting, probability=_multiply(waiting.probability, piece.probability))
        waiting = None if text or not content else piece
        if waiting is None:
            yield replace(piece, text=text)


def _multiply(a: float | None, b: float | None) -> float | None:
    return a if b is None else b if a is None else a * b


def _make_piece(text: str, drawn: bytes | End, step: Sequence[Candidate]) -> TextPiece:
    ranked = sorted(step, key=lambda candidate: -candidate[1])
    shown = ranked[:MAX_CANDIDATES] + [candidate for candidate in ranked[MAX_CANDIDATES:] if candidate[0] == drawn]
    others = tuple(CandidateView(readable_token(what), math.exp(value), what == drawn) for what, value in shown)
    own = [other.probability for other in others if other.drawn]
    return TextPiece(text, own[0] if own else None, others)


GROUP_PHRASES = {
    "in-distribution": "in-distribution",
    "out-of-distribution": "out-of-distribution",
    "generic": "on generic tasks",
}


def summary_sentence(story: ReportData) -> str:
    """The run in one sentence: base against chosen on the test split, group by group, with paired 95 % intervals."""
    found = group_changes(story)
    if not found:
        return "Nothing was compared: the run has no scores on the test split."
    if story.choice and story.choice.checkpoint == BASE:
        scores = ", ".join(
            f"{format_percent(each.base)} {GROUP_PHRASES[each.group]} ({_describe_sets(each)}; 95\xa0% interval {_format_bounds(each.base)})"
            for each in found
        )
        return f"The rule chose step 0, the student before training; its accuracy on the test split: {scores}."
    parts = [
        f"from {format_percent(each.base)} to {format_percent(each.chosen)} {GROUP_PHRASES[each.group]} ({_describe_sets(each)}; "
        f"{format_points(each.difference.value)} points, "
        f"95\xa0% interval {format_points(each.difference.low)} to {format_points(each.difference.high)})"
        for each in found
    ]
    step = f"After {_format_steps(story.choice.checkpoint)}" if story.choice else "After training"
    return f"{step}, accuracy on the test split went {_join_words(parts)}."


def controls_sentence(story: ReportData) -> str:
    """What the controls reached from the same base on the same items; empty without controls."""
    shown = summary_rows(story)[2:]
    if not shown:
        return ""
    steps = {each.name: each.steps for each in story.controls}
    parts = [
        f"{format_count(steps[each.name])} steps on {each.taught} reached {_list_accuracies(each)}" for each in shown
    ]
    return f"For comparison, from the same base, each with one seed: {'; '.join(parts)}."


def format_percent(share: float | Interval) -> str:
    """A share as a percentage."""
    return f"{100 * (share.value if isinstance(share, Interval) else share):.1f}\N{NO-BREAK SPACE}%"


def format_count(number: int) -> str:
    """An integer with its thousands set apart."""
    return f"{number:,}".replace(",", "\N{NARROW NO-BREAK SPACE}") if abs(number) > 9999 else str(number)


def checkpoint_label(who: Checkpoint) -> str:
    """A checkpoint in a table or beside a word: its step, its share where it is a mix, and its steps of repair.

    >>> checkpoint_label(Checkpoint(350)), checkpoint_label(Checkpoint(350, 0.3))
    ('350', '350 × 0.3')
    """
    return f"{format_count(who.step)}{who.suffix}"


def format_duration(seconds: float) -> str:
    """Seconds as a person says them."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"


def _list_accuracies(line: SummaryRow) -> str:
    return _join_words(
        [f"{format_percent(cell.accuracy)} {GROUP_PHRASES[group]}" for group, cell in line.groups.items()]
    )


def _join_words(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])}, and {parts[-1]}"


def _format_bounds(shown: Interval) -> str:
    return f"{format_percent(shown.low)} to {format_percent(shown.high)}"


def _format_steps(who: Checkpoint) -> str:
    steps = f"{format_count(who.step)} training steps"
    return steps if who.share == 1 else f"{steps}, {format_percent(who.share)} of what they changed"


def _describe_sets(change: GroupChange) -> str:
    return change.sets[0] if len(change.sets) == 1 else f"mean of {len(change.sets)} sets"


__all__ = [
    "build_tables",
    "checkpoint_label",
    "controls_sentence",
    "format_count",
    "format_percent",
    "render_report",
    "render_times",
    "summary_sentence",
]

VERSION: Final = 5  # of what the page and its tables show; stored by the stage that writes them
SECTIONS: Final = (
    ("before-after", "Before and after"),
    ("tradeoff", "Gained and lost"),
    ("training", "Through training"),
    ("selection", "Selection"),
    ("teacher", "Teacher and filter"),
    ("alignment", "Alignment"),
    ("cost", "What it took"),
    ("read", "Questions to read"),
    ("made", "How it was made"),
)


def render_report(story: ReportData, figures: Mapping[str, str]) -> str:
    """The page as HTML text. `figures` are those of `plots.draw`, trusted markup; a missing one is left out."""
    browsed = _view_examples(story)
    html = _template("page.html.jinja").render(
        story=story,
        css=Markup(_read_asset("page.css")),
        figures={name: Markup(svg) for name, svg in figures.items()},
        sections=SECTIONS,
        sentence=summary_sentence(story),
        controls=controls_sentence(story),
        changes=group_changes(story),
        checkpoints=scores_by_checkpoint(story),
        lines=summary_rows(story),
        main=main_comparisons(story),
        formats=_score_tables(story),
        tried=_pass_curve_tables(story),
        trained=has_trained_choice(story),
        mixed=any(row.checkpoint.share != 1 for row in scores_by_checkpoint(story)),
        repaired=any(row.checkpoint.on_policy_steps for row in scores_by_checkpoint(story)),
        unfinite=sum(not math.isfinite(loss) for _, loss in story.losses),
        groups=SET_GROUPS,
        costs=[(stage, list(rows)) for stage, rows in groupby(story.costs, lambda cost: cost.stage)],
        browsed=browsed,
        opened=_first_open_example(story.samples),
        kinds=_filter_choices([kind for _, kind, _ in browsed]),
        shaded=any(piece.shade for _, _, chains in browsed for _, _, cut in chains for piece in cut),
        shades=[f"under {100 * bound:.0f}\N{NO-BREAK SPACE}%" for bound in SHADE_BOUNDS],
        tables=build_tables(story),
    )
    return _finish_page(html)


def render_times(story: ReportData, times: Sequence[StageTime], speed: TrainingSpeed | None = None) -> dict[str, str]:
    """File name -> text of what depends on the machine: a page and a table of seconds and memory."""
    html = _template("time.html.jinja").render(
        story=story, css=Markup(_read_asset("page.css")), times=times, speed=speed
    )
    return {"time.html": _finish_page(html), "time.csv": times_csv(times)}


def _finish_page(html: str) -> str:
    """Once, over everything: no control or direction character of any text reaches the reader unseen."""
    return escape_hidden(html).strip() + "\n"


@functools.cache
def _jinja_environment() -> Environment:
    made = Environment(
        loader=FunctionLoader(_read_asset),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(
        percent=format_percent,
        points=format_points,
        count=format_count,
        duration=format_duration,
        label=checkpoint_label,
    )
    return made


def _template(name: str) -> Any:
    return _jinja_environment().get_template(name)


def _read_asset(name: str) -> str:
    return resources.files("potstill.report").joinpath(name).read_text("utf-8")


def _view_examples(story: ReportData) -> list[tuple[Any, str, list[tuple[Any, Any, Any]]]]:
    """Every sample with its kind (a class of the page's style) and its chains cut into pieces."""
    return [
        (
            sample,
            (outcome_of(sample.before, sample.after) or "taught").replace(" ", "-"),
            [(chain, verdict, split_into_pieces(chain)) for chain, verdict in sample.chains],
        )
        for sample in story.samples
    ]


def _first_open_example(samples: Sequence[ReportExample]) -> int:
    """Which question stands open at first: one whose chains are not all of one mind, else the first."""
    graded = [{verdict.grade for _, verdict in sample.chains} for sample in samples]
    return next((at for at, grades in enumerate(graded) if len(grades) > 1), 0)


def _filter_choices(found: Sequence[str]) -> list[tuple[str, str, int]]:
    """The choices of the filter: id, name, number; those of which there is none are left out."""
    names = [("taught", "teacher’s chains")] + [(kind.replace(" ", "-"), kind) for kind in OUTCOMES]
    counted = [(kind, name, found.count(kind)) for kind, name in names]
    return [("all", "all", len(found)), *(each for each in counted if each[2])]


StudentRow = tuple[str, Score, Comparison | None]


def _score_tables(story: ReportData) -> list[tuple[str, str, bool, list[tuple[SetGroup, list[list[StudentRow]]]]]]:
    """Every count by format and decoding, the main one first and with the controls: by group and set, a row a student.

    The third value says whether any set of them consists of several tasks.
    """
    keys = list(dict.fromkeys((each.chosen.format, each.chosen.decoding) for each in story.comparisons))
    found = []
    for key in sorted(keys, key=lambda key: key != main_format(story)):
        parts: list[tuple[SetGroup, list[list[StudentRow]]]] = []
        for group in SET_GROUPS:
            own = [
                _set_rows(story, each, key == main_format(story))
                for each in story.comparisons
                if (each.chosen.format, each.chosen.decoding) == key and story.groups[each.chosen.set] == group
            ]
            if own:
                parts.append((group, own))
        tasks = any(score.macro is not None for _, sets in parts for rows in sets for _, score, _ in rows)
        found.append((*key, tasks, parts))
    return found


def _pass_curve_tables(story: ReportData) -> list[tuple[str, str, list[tuple[str, str, int, list[PassCurve]]]]]:
    """Of every format and drawing the rows by set, student and number of samples (1, 2, 4, ... and all of them), each
    with a cell for the vote, the likeliest, and any right one."""
    found: dict[tuple[str, str], dict[tuple[str, Checkpoint, int], list[PassCurve]]] = {}
    for each in story.tries:
        rows = found.setdefault((each.format, each.drawing), {})
        rows.setdefault((each.set, each.checkpoint, each.k), []).append(each)
    told = []
    for (format, drawing), rows in found.items():
        most = max(k for _, _, k in rows)
        shown = {key: cells for key, cells in rows.items() if key[2] & (key[2] - 1) == 0 or key[2] == most}
        order = [name for group in SET_GROUPS for name in story.groups if story.groups[name] == group]
        keys = sorted(shown, key=lambda key: (order.index(key[0]), *key[1:]))
        told.append((format, drawing, [(key[0], _checkpoint_name(key[1]), key[2], shown[key]) for key in keys]))
    return told


def _checkpoint_name(who: Checkpoint) -> str:
    return "base" if who == BASE else f"step {who.label}"


def _set_rows(story: ReportData, row: Comparison, main: bool) -> list[StudentRow]:
    """The rows of one set: base, chosen checkpoint, and the controls where they are compared with."""
    rows: list[StudentRow] = [("base", row.base, None)]
    if has_trained_choice(story):
        rows.append((_checkpoint_name(row.chosen.checkpoint), row.chosen, row))
        for control in story.controls if main else ():
            rows += [
                (control.taught, each.chosen, each) for each in control.comparisons if each.chosen.set == row.chosen.set
            ]
    return rows
