r"""Tables of the scores of groups of runs, as CSV, Markdown and LaTeX.

    >>> from potstill.report.group_scores import GroupScore, RunAnswers, SeedGroup
    >>> group = SeedGroup("rate_1", {"train.learning_rate": 0.1}, (RunAnswers("runs/a", {}, {"train.seed": 4}, {}),))
    >>> row = GroupScore("greedy", "set", "sums", "rate_1", 1, 60, 0.25, 0.158, 0.372, (0.25,), group.interval_over)
    >>> print(to_markdown([group], [row], "test"), end="")
    **greedy, test questions: percent right**
    <BLANKLINE>
    | set | recipe | seeds | right | 95 % interval | difference | 95 % interval |
    |---|---|---|---|---|---|---|
    | sums, 60 questions | rate\_1 | one seed | 25.0 | 15.8 to 37.2 |  |  |
    <BLANKLINE>
    One seed: the interval is over questions only. Other seeds of a recipe can differ by several points.
    >>> print(to_csv_text([group], [row], "test").splitlines()[1])
    "greedy","test","set","sums","rate_1",0.1,"4",1,60,0.25,0.158,0.372,"questions, one seed","0.25","",...

A table has a row for each set and group, with the number of seeds and of questions. A CSV file has shares in [0, 1] and a
column for each key in which the groups differ. The other forms have percentages.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Final, NamedTuple

from potstill.errors import escape_hidden
from potstill.report.csv_tables import CellValue, to_csv
from potstill.report.group_scores import GroupScore, IntervalOver, SeedGroup
from potstill.report.model import QuotedScore
from potstill.report.summary import format_points, percent_number

SEEDS_NOTE: Final = "Intervals hold for other seeds and other questions of the same kind, not for other data sets."
ONE_SEED_ROW_NOTE: Final = (
    "One seed: the interval is over questions only. Other seeds of a recipe can differ by several points."
)
QUOTED_NOTE: Final = (
    "Quoted: from the literature, measured elsewhere, and maybe on other questions and with other prompts."
)
FIXED_NOTE: Final = "No seed: the weights are from a folder, and the interval is over questions."
NO_ROW: Final = "its runs answered no two questions in common in one format."
CSV_COLUMNS: Final = (
    "seeds",
    "sets",
    "n",
    "share",
    "low",
    "high",
    "interval_over",
    "share_by_seed",
    "baseline",
    "difference",
    "difference_low",
    "difference_high",
    "difference_over",
)
HEADER: Final = ("set", "recipe", "seeds", "right", "95 % interval", "difference", "95 % interval")
LATEX_ESCAPES: Final = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\N{MINUS SIGN}": "$-$",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
}


class ScoreLine(NamedTuple):
    """A score as the cells of a line: texts, with percentages and points.

    seeds  number of seeds, `one seed`, or `no seed` for weights that no seed decided; `quoted` for a figure from the
           literature
    """

    group: str
    seeds: str
    right: str
    interval: str
    difference: str = ""
    difference_interval: str = ""


class ScoreTable(NamedTuple):
    """The scores in one format and decoding: the lines of each set, or of the mean over sets of a kind."""

    answers: str
    sets: Sequence[tuple[str, Sequence[ScoreLine]]]


def build_score_tables(groups: Sequence[SeedGroup], scores: Sequence[GroupScore]) -> list[ScoreTable]:
    """A table for each format and decoding. A mean over a single set is left out, because it is the set's own line."""
    of_group, quoted = {group.label: group for group in groups}, list_quoted(groups)
    shown = [score for score in scores if score.of == "set" or score.sets > 1]
    return [
        ScoreTable(
            answers,
            [
                (
                    title,
                    [*(_score_line(of_group[score.group], score) for score in rows), *_quoted_lines(rows[0], quoted)],
                )
                for title, of_set in groupby(of_answers, _set_title)
                for rows in [list(of_set)]
            ],
        )
        for answers, of_answers in groupby(shown, lambda score: score.answers)
    ]


def list_quoted(groups: Sequence[SeedGroup]) -> list[QuotedScore]:
    """The figures from the literature that the runs' recipes quote, each once."""
    return list(dict.fromkeys(row for group in groups for run in group.runs for row in run.quoted))


def table_notes(groups: Sequence[SeedGroup], scores: Sequence[GroupScore]) -> list[str]:
    """What the differences are from, what the intervals of a table hold for, and what quoted figures are."""
    baselines = list(dict.fromkeys(score.baseline for score in scores if score.baseline is not None))
    against = [f"Differences are from {baselines[0]}."] if len(baselines) == 1 else []
    against = ["Differences are from the base of the same student."] if len(baselines) > 1 else against
    over: set[IntervalOver] = {score.interval_over for score in scores}
    notes: dict[IntervalOver, str] = {
        "seeds and questions": SEEDS_NOTE,
        "questions, one seed": ONE_SEED_ROW_NOTE,
        "questions": FIXED_NOTE,
    }
    of_sets = {score.set for score in scores if score.of == "set"}
    quoted = [QUOTED_NOTE] if any(row.set in of_sets for row in list_quoted(groups)) else []
    scored = {score.group for score in scores}
    missing = [f"{group.label} has no row: {NO_ROW}" for group in groups if group.label not in scored]
    return [*missing, *against, *(note for kind, note in notes.items() if kind in over), *quoted]


def to_csv_text(groups: Sequence[SeedGroup], scores: Sequence[GroupScore], split: str) -> str:
    """The table as CSV text. Seeds and the shares of single seeds are in one cell, separated by spaces."""
    of_group = {group.label: group for group in groups}
    named = dict.fromkeys(key for group in groups for key, value in group.keys.items() if value is not None)
    keys, quoted = list(named), list_quoted(groups)
    rows: list[tuple[CellValue, ...]] = []
    last = {(score.answers, score.of, score.set): score for score in scores}
    for score in scores:
        group = of_group[score.group]
        change = (score.baseline, score.difference, score.difference_low, score.difference_high, score.difference_over)
        rows.append(
            (
                *(score.answers, split, score.of, score.set, score.group),
                *(_to_cell(group.keys.get(key)) for key in keys),
                "" if score.interval_over == "questions" else " ".join(map(str, group.seeds)),
                *(score.sets, score.n, score.share, score.low, score.high, score.interval_over),
                " ".join(f"{share:.6g}" for share in score.by_seed),
                *change,
            )
        )
        if score is last[score.answers, score.of, score.set] and score.of == "set":
            for row in quoted:
                if row.set == score.set:
                    labels = (score.answers, split, "quoted", score.set, _quoted_name(row))
                    figures = ("", 1, row.n, row.share, None, None, "quoted")
                    rows.append((*labels, *((None,) * len(keys)), *figures, *((None,) * 6)))
    return to_csv(("answers", "split", "of", "set", "group", *keys, *CSV_COLUMNS), rows)


def to_markdown(groups: Sequence[SeedGroup], scores: Sequence[GroupScore], split: str) -> str:
    """A Markdown table for each format and decoding, with the notes below."""
    parts = []
    for answers, sets in build_score_tables(groups, scores):
        lines = [f"| {' | '.join(HEADER)} |", f"|{'---|' * len(HEADER)}"]
        for title, of_set in sets:
            for number, line in enumerate(of_set):
                lines.append(f"| {' | '.join(map(escape_markdown, ('' if number else title, *line)))} |")
        title = escape_markdown(f"{answers}, {split} questions: percent right")
        parts += [f"**{title}**", "\n".join(lines)]
    return "\n\n".join([*parts, *map(escape_markdown, table_notes(groups, scores))]) + "\n"


def to_latex(groups: Sequence[SeedGroup], scores: Sequence[GroupScore], split: str) -> str:
    r"""A LaTeX table for each format and decoding, for the package booktabs. Names are escaped."""
    header = [escape_latex(name[:1].upper() + name[1:]) for name in HEADER]
    parts = [r"% \usepackage{booktabs} in the preamble"]
    for answers, sets in build_score_tables(groups, scores):
        caption = " ".join([f"Percent right on {split} questions, {answers}.", *table_notes(groups, scores)])
        lines = [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{escape_latex(caption)}}}",
            r"\begin{tabular}{llrrrrr}",
            r"\toprule",
            rf"{' & '.join(header)} \\",
        ]
        for title, of_set in sets:
            lines.append(r"\midrule")
            for number, line in enumerate(of_set):
                lines.append(rf"{' & '.join(map(escape_latex, ('' if number else title, *line)))} \\")
        parts.append("\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"]))
    return "\n\n".join(parts) + "\n"


def escape_markdown(text: str) -> str:
    r"""A text as one line of a Markdown table's cell.

    >>> escape_markdown("a|b_c\n<img>")
    'a\\|b\\_c \\<img\\>'
    """
    return re.sub(r"([\\`*_\[\]<>|&~$])", r"\\\1", " ".join(escape_hidden(text).split()))


def escape_latex(text: str) -> str:
    r"""A text as LaTeX that prints it.

    >>> escape_latex("train.rate=5 % & a_b \N{MINUS SIGN}2")
    'train.rate=5 \\% \\& a\\_b $-$2'
    """
    one_line = " ".join(escape_hidden(text).split())
    return "".join(LATEX_ESCAPES.get(character, character) for character in one_line)


def _quoted_lines(score: GroupScore, quoted: Sequence[QuotedScore]) -> list[ScoreLine]:
    """The quoted figures for the set of a score; a mean over sets has none."""
    rows = [row for row in quoted if score.of == "set" and row.set == score.set]
    return [ScoreLine(_quoted_name(row), "quoted", percent_number(row.share), "") for row in rows]


def _quoted_name(row: QuotedScore) -> str:
    return f"{row.name} (quoted: {row.source}{'' if row.n is None else f', {row.n} questions'})"


def _set_title(score: GroupScore) -> str:
    name = score.set if score.of == "set" else f"mean of {score.sets} {score.set} sets"
    return f"{name}, {score.n} questions"


def _score_line(group: SeedGroup, score: GroupScore) -> ScoreLine:
    seeds = {"seeds and questions": str(len(group.runs)), "questions, one seed": "one seed", "questions": "no seed"}
    interval = f"{percent_number(score.low)} to {percent_number(score.high)}"
    line = ScoreLine(score.group, seeds[score.interval_over], percent_number(score.share), interval)
    if score.difference is None or score.difference_low is None or score.difference_high is None:
        return line
    bounds = f"{format_points(score.difference_low)} to {format_points(score.difference_high)}"
    return line._replace(difference=format_points(score.difference), difference_interval=bounds)


def _to_cell(value: object) -> CellValue:
    """The value of a key in one cell."""
    if value is None or (isinstance(value, str | int | float) and not isinstance(value, bool)):
        return value
    return json.dumps(value, ensure_ascii=False)


WRITERS: Final[Mapping[str, Callable[[Sequence[SeedGroup], Sequence[GroupScore], str], str]]] = {
    ".csv": to_csv_text,
    ".md": to_markdown,
    ".tex": to_latex,
}
