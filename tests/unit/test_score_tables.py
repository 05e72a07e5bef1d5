"""Tables of scores as CSV, Markdown and LaTeX: readers of these forms find the names and the numbers again."""

from __future__ import annotations

import csv
import io
import re

import pytest
from markdown_it import MarkdownIt

from example_report import HOSTILE
from potstill.report.group_scores import GroupScore, RunAnswers, SeedGroup, group_runs, score_groups
from potstill.report.model import SetGroup
from potstill.report.score_tables import (
    LATEX_ESCAPES,
    build_score_tables,
    escape_latex,
    escape_markdown,
    table_notes,
    to_csv_text,
    to_latex,
    to_markdown,
)

NAMES = [*HOSTILE, "a|b", "100 % & $5 #1 {x} ~ ^ \\ _", "*bold* `code` [link](x)", "two\nlines"]


def scored(name: str = "b") -> tuple[tuple[SeedGroup, ...], tuple[GroupScore, ...]]:
    """Three seeds of one recipe, one of another, whose key has the value `name`, and the base; two sets of one kind."""
    right = {f"q{n}": ("sums", n % 3 == 0) for n in range(12)} | {f"p{n}": (name, n % 2 == 0) for n in range(4)}
    kinds: dict[str, SetGroup] = {"sums": "in-distribution", name: "in-distribution"}
    runs = [
        RunAnswers(f"runs/a-{seed}", {"k": "a"}, {"train.seed": seed}, {"greedy": right}, kinds) for seed in (1, 2, 3)
    ]
    runs.append(RunAnswers("runs/b", {"k": name}, {"train.seed": 1}, {"greedy": right}, kinds))
    runs.append(RunAnswers("base", {}, {"train.seed": 1}, {"greedy": right}, kinds, is_fixed=True, is_base=True))
    groups = group_runs(runs)
    return groups, score_groups(groups, baseline=1)


def cells_of(row: str) -> list[str]:
    """The cells of a row in LaTeX."""
    return [cell.strip() for cell in re.split(r"(?<!\\)&", row.removesuffix(r"\\"))]


def unescape_latex(text: str) -> str:
    for character, escaped in sorted(LATEX_ESCAPES.items(), key=lambda pair: -len(pair[1])):
        text = text.replace(escaped, f"⟦{ord(character)}⟧")
    return re.sub(r"⟦(\d+)⟧", lambda found: chr(int(found[1])), text)


def test_the_lines_show_seeds_intervals_and_differences() -> None:
    [(answers, sets)] = build_score_tables(*scored())
    assert answers == "greedy"
    assert [title for title, _ in sets] == [
        "b, 4 questions",
        "sums, 12 questions",
        "mean of 2 in-distribution sets, 16 questions",
    ]
    for _, lines in sets:
        assert [line.seeds for line in lines] == ["no seed", "3", "one seed"]
        assert [bool(line.difference) for line in lines] == [True, False, True]
        assert [line.group for line in lines] == ["base", "k=a", "k=b"]
    assert sets[0][1][1].right == "50.0" and re.fullmatch(r"\d+\.\d to \d+\.\d", sets[0][1][1].interval)
    assert sets[0][1][2].difference == "0.0" and re.fullmatch(
        r"−\d+\.\d to \+\d+\.\d", sets[0][1][2].difference_interval
    )


def test_the_notes_say_what_differences_are_from_and_what_intervals_hold_for() -> None:
    groups, scores = scored()
    notes = table_notes(groups, scores)
    assert notes[0] == "Differences are from k=a." and [note.split()[0] for note in notes[1:]] == [
        "Intervals",
        "One",
        "No",
    ]
    assert table_notes(groups, score_groups(groups, baseline=None))[0].startswith("Intervals")
    assert all(escape_markdown(note) in to_markdown(groups, scores, "test") for note in notes)
    assert all(escape_latex(note) in to_latex(groups, scores, "test") for note in notes)


@pytest.mark.parametrize("name", NAMES)
def test_a_csv_reader_finds_every_score(name: str) -> None:
    groups, scores = scored(name)
    rows = list(csv.DictReader(io.StringIO(to_csv_text(groups, scores, "test"))))
    assert len(rows) == len(scores)
    for row, score in zip(rows, scores, strict=True):
        assert float(row["share"]) == pytest.approx(score.share, abs=1e-6) and int(row["n"]) == score.n
        assert row["difference"] == ("" if score.difference is None else pytest.approx(row["difference"]))
        assert row["interval_over"] == score.interval_over and row["of"] == score.of
        shares = [float(share) for share in row["share_by_seed"].split()]
        assert shares == pytest.approx(score.by_seed, abs=1e-5)
    assert {row["seeds"] for row in rows} == {"", "1 2 3", "1"}
    assert {row["k"] for row in rows if row["group"] == "k=a"} == {"a"}
    texts = [row[column] for row in rows for column in ("set", "group", "k")]
    assert not any(text.startswith(("=", "+", "-", "@")) for text in texts), "a spreadsheet would run a formula"


@pytest.mark.parametrize("name", NAMES)
def test_a_markdown_reader_finds_the_cells_and_nothing_else(name: str) -> None:
    groups, scores = scored(name)
    tokens = MarkdownIt("commonmark").enable("table").parse(to_markdown(groups, scores, "test"))
    assert [token.type for token in tokens].count("table_open") == 1
    of_table = [
        token for index, token in enumerate(tokens) if token.type == "inline" and tokens[index - 1].type == "td_open"
    ]
    assert len(of_table) == 7 * len(build_score_tables(groups, scores)[0].sets) * 3
    for token in of_table:
        assert {child.type for child in token.children or ()} <= {"text", "text_special"}, token.content
    texts = {"".join(child.content for child in token.children or ()) for token in of_table}
    assert {" ".join(group.label.split()) for group in groups if group.label.isprintable()} <= texts


@pytest.mark.parametrize("name", NAMES)
def test_latex_has_every_name_escaped_and_seven_cells_in_every_row(name: str) -> None:
    groups, scores = scored(name)
    latex = to_latex(groups, scores, "test")
    assert latex.count(r"\begin{table}") == latex.count(r"\end{table}") == 1
    for rule, number in ((r"\toprule", 1), (r"\midrule", 3), (r"\bottomrule", 1)):
        assert latex.count(rule) == number
    rows = [line for line in latex.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 1 + 9 and all(len(cells_of(row)) == 7 for row in rows)
    body = "\n".join(rows)
    assert not re.search(r"(?<!\\)[%#_$]", body.replace("$-$", "")), "a character with a meaning in LaTeX"
    depth = re.sub(r"\\[{}]", "", body)
    assert depth.count("{") == depth.count("}")
    lines = [line for _, of_set in build_score_tables(groups, scores)[0].sets for line in of_set]
    for row, line in zip(rows[1:], lines, strict=True):
        if line.group.isprintable():
            assert unescape_latex(cells_of(row)[1]) == " ".join(line.group.split())
        assert unescape_latex(cells_of(row)[6]) == line.difference_interval
