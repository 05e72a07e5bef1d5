"""`potstill compare` for many runs: groups of runs by recipe; the table is the plain formula on the stored answers."""

from __future__ import annotations

import json
import re
import shutil
import statistics
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import potstill as ps
import tiny
from potstill import cli, runner
from potstill.errors import UserError
from potstill.evaluation import intervals
from potstill.recipe import load_recipe, recipe_to_yaml
from potstill.records import Checkpoint
from potstill.report.group_files import read_groups, read_run
from potstill.report.group_scores import score_groups

CHANGES = {
    "forward-1": ["seed=1"],
    "forward-2": ["seed=1", "train.seed=2"],
    "reverse-1": ["seed=1", "train.prompts_per_step=7"],
    "reverse-2": ["seed=2", "train.prompts_per_step=7"],
}
GRADE = re.compile(r'"grade":"(right|wrong|no answer|truncated)"')


@pytest.fixture
def runs(finished: Path, tmp_path: Path) -> dict[str, Path]:
    """Four copies of a run, of two recipes with two seeds each. The second recipe answers every other question otherwise."""
    copies = {}
    for number, (name, changes) in enumerate(CHANGES.items()):
        copies[name] = copy = tmp_path / name
        for part in ("collect", "select", "test", "evaluate"):
            shutil.copytree(finished / part, copy / part)
        recipe = load_recipe(finished / "recipe.yaml", changes)
        (copy / "recipe.yaml").write_text(recipe_to_yaml(recipe), "utf-8")
        for path in (copy / "test").glob("*/*.jsonl") if name.startswith("reverse") else ():
            lines = path.read_text("utf-8").splitlines(keepends=True)
            for index in range(number % 2, len(lines), 2):
                old, new = GRADE.search(lines[index])[0], '"grade":"right"'  # pyright: ignore[reportOptionalSubscript]
                lines[index] = lines[index].replace(old, new.ljust(len(old)))  # a run notices a file of another size
            path.write_text("".join(lines), "utf-8")
    return copies


def compare(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, ["compare", *map(str, arguments)], env={"COLUMNS": "160"})


def right(run: Path, set_name: str) -> list[float]:
    answers = {row.question: row for row in ps.open_run(run).predictions("test") if row.set == set_name}
    return [float(answers[question].grade == "right") for question in sorted(answers)]


def test_the_table_is_the_plain_formula_on_the_stored_answers(runs: dict[str, Path]) -> None:
    result = compare("--seeds", *runs.values(), "--json")
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    assert [group["label"] for group in printed["groups"]] == ["train.prompts_per_step=5", "train.prompts_per_step=7"]
    assert [group["seeds"] for group in printed["groups"]] == [[1, 2], [1, 2]]
    rows = [row for row in printed["scores"] if row["answers"] == "zero-shot-rationale.greedy"]
    assert {row["set"] for row in rows if row["of"] == "set"} == {"sums", "other", "more"}
    for name in ("sums", "other", "more"):
        first, second = [row for row in rows if row["set"] == name]
        tables = [[right(runs[f"{group}-{seed}"], name) for seed in (1, 2)] for group in ("forward", "reverse")]
        assert first["by_seed"] == [statistics.fmean(row) for row in tables[0]] and first["difference"] is None
        assert (second["share"], second["low"], second["high"]) == intervals.seeds_share(tables[1])
        change, low, high = intervals.seeds_difference(tables[1], tables[0])
        assert (second["difference"], second["difference_low"], second["difference_high"]) == (
            change,
            max(low, -1),
            min(high, 1),
        )
        assert second["n"] == len(tables[0][0])
    assert any(row["difference"] for row in rows), "the groups differ"


def test_the_terminal_shows_groups_runs_and_what_the_intervals_are(runs: dict[str, Path]) -> None:
    result = compare("--seeds", *runs.values())
    assert result.exit_code == 0, result.output
    assert "zero-shot-rationale.greedy, test: percent right, mean over seeds" in result.stdout
    assert result.stdout.count("train.prompts_per_step=7  ") >= 3
    assert f"train.prompts_per_step=7: {runs['reverse-1']} (seed 1), {runs['reverse-2']} (seed 2)" in " ".join(
        result.stdout.split()
    )
    assert "other seeds and other questions" in result.stdout
    alone = compare("--seeds", runs["forward-1"], runs["forward-2"])
    assert alone.exit_code == 0 and f"  {runs['forward-1']}" in alone.stdout


def test_a_group_needs_two_seeds(runs: dict[str, Path], tmp_path: Path) -> None:
    def refused(*arguments: object) -> UserError:
        error = compare("--seeds", *arguments).exception
        assert isinstance(error, UserError)
        return error

    error = refused(runs["forward-1"], runs["forward-2"], runs["reverse-1"])
    assert error.code == "E-cli-compare-seeds"
    assert "train.prompts_per_step=7" in error.found, "the message shows how the runs were grouped"
    again = shutil.copytree(runs["forward-1"], tmp_path / "again")
    assert refused(runs["forward-1"], again).code == "E-report-same-seeds"


def test_named_keys_are_the_rows_and_other_keys_are_refused(runs: dict[str, Path]) -> None:
    folders = list(map(str, runs.values()))
    by_rate = compare(*folders, "--by", "train.prompts_per_step", "--json")
    assert by_rate.exit_code == 0, by_rate.output
    groups = json.loads(by_rate.stdout)["groups"]
    assert [group["seeds"] for group in groups] == [[1, 2], [1, 2]] and groups[0]["runs"] == folders[:2]
    by_seed = json.loads(compare(*folders, "--by", "train,train.seed", "--json").stdout)
    assert [group["label"] for group in by_seed["groups"]] == [
        f"train.prompts_per_step={prompts}, train.seed={seed}" for prompts in (5, 7) for seed in (1, 2)
    ]
    assert {row["interval_over"] for row in by_seed["scores"]} == {"questions, one seed"}
    error = compare(*folders, "--by", "train.seed").exception
    assert isinstance(error, UserError)
    assert (error.code, error.found) == ("E-report-unnamed-keys", "train.prompts_per_step")


def test_more_than_two_runs_are_a_table_which_marks_single_seeds(runs: dict[str, Path]) -> None:
    result = compare(runs["forward-1"], runs["forward-2"], runs["reverse-1"])
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.stdout.splitlines()]
    assert any(line[:2] == ["train.prompts_per_step=5", "2"] for line in lines)
    assert any(line[:3] == ["train.prompts_per_step=7", "one", "seed"] for line in lines)
    assert "Other seeds of a recipe can differ by several points." in result.stdout


def test_a_table_is_written_in_the_form_of_its_name_and_the_page_has_it(runs: dict[str, Path], tmp_path: Path) -> None:
    page, folders = tmp_path / "page.html", list(runs.values())
    for name, begin in (("t.csv", '"answers","split"'), ("t.md", "**few"), ("t.tex", "% \\usepackage{booktabs}")):
        result = compare("--seeds", *folders, "--out", tmp_path / name, "--page", page)
        assert result.exit_code == 0, result.output
        text = (tmp_path / name).read_text("utf-8")
        assert text.startswith(begin) and "train.prompts" in text
        assert str(page) in page.read_text("utf-8")
    html = page.read_text("utf-8")
    assert "<h2>Recipes</h2>" in html and html.count("<bdi>train.prompts_per_step=7</bdi>") >= 3
    assert f"compare {' '.join(map(str, folders))} --seeds --page {page}" in html
    assert "<h2>Recipes</h2>" not in render_page_of(folders, page)
    two = compare(runs["forward-1"], runs["reverse-1"], "--out", tmp_path / "two.csv")
    assert two.exit_code == 0 and (tmp_path / "two.csv").read_text("utf-8").count('"questions, one seed"') >= 6
    error = compare(*folders, "--out", tmp_path / "changed.jsonl").exception
    assert isinstance(error, UserError) and error.code == "E-cli-compare-table"


def render_page_of(folders: list[Path], page: Path) -> str:
    assert compare(*folders, "--page", page).exit_code == 0
    return page.read_text("utf-8")


REFERENCES = (
    "report.references=[{name: Some_body 2023, source: a paper, set: sums, value: 12.5, n: 40},"
    " {name: Another, source: a blog, set: more, value: 3}]"
)


def test_quoted_figures_are_in_every_table(runs: dict[str, Path], tmp_path: Path) -> None:
    for name in ("forward-1", "reverse-1"):
        path = runs[name] / "recipe.yaml"
        path.write_text(recipe_to_yaml(load_recipe(path, [REFERENCES])), "utf-8")
    folders, page = list(runs.values()), tmp_path / "page.html"
    printed = compare("--seeds", *folders, "--page", page)
    assert printed.exit_code == 0, printed.output
    lines = [" ".join(line.split()) for line in printed.stdout.splitlines()]
    assert lines.count("Some_body 2023 (quoted: a paper, 40 questions) quoted 12.5") == 2, "one in each format"
    assert "Quoted: from the literature" in printed.stdout and page.read_text("utf-8").count("quoted: <bdi>a blog") >= 1
    told = json.loads(compare("--seeds", *folders, "--json").stdout)
    assert [(row["name"], row["share"], row["n"]) for row in told["quoted"]] == [
        ("Some_body 2023", 0.125, 40),
        ("Another", 0.03, None),
    ]
    for name, wanted in (
        ("t.csv", '"quoted","sums","Some_body 2023 (quoted: a paper, 40 questions)"'),
        ("t.md", "| Some\\_body 2023 (quoted: a paper, 40 questions) | quoted | 12.5 |"),
        ("t.tex", "Some\\_body 2023 (quoted: a paper, 40 questions) & quoted & 12.5 &"),
    ):
        assert compare("--seeds", *folders, "--out", tmp_path / name).exit_code == 0
        assert wanted in (tmp_path / name).read_text("utf-8")
    two = compare(runs["forward-1"], runs["reverse-1"])
    assert "quoted for sums: Some_body 2023 12.5 (a paper, 40 questions)" in two.stdout


def test_quoted_figures_change_only_the_report(world: Path, finished: Path, tmp_path: Path) -> None:
    run_dir = Path(shutil.copytree(finished, tmp_path / "run"))
    with pytest.raises(UserError) as refused:
        tiny.make(world, run_dir, REFERENCES)
    assert "--redo report" in str(refused.value)
    runner.run(tiny.recipe(world, REFERENCES), run_dir, redo="report")
    before, after = tiny.contents(finished), tiny.contents(run_dir)
    changed = {name for name in before | after if before.get(name) != after.get(name)}
    assert changed <= {
        *("report/begun.json", "report/index.html", "report/manifest.json", "report/summary.csv"),
        "student/README.md",  # it contains the recipe
    }, changed
    html = (run_dir / "report" / "index.html").read_text("utf-8")
    assert "quoted: <bdi>a paper</bdi>" in html and "12.5\N{NO-BREAK SPACE}%<small>quoted, 40 questions" in html
    assert (run_dir / "report" / "summary.csv").read_text("utf-8").count('"quoted: a blog"') == 1


@pytest.mark.parametrize("references, code", [
    ("[{name: a, source: b, set: elsewhere, value: 3}]", "E-recipe-reference-set"),
    ("[{name: a, source: b, set: sums, value: 3}, {name: a, source: b, set: sums, value: 4}]", "E-recipe-named-twice"),
    ("[{name: a, source: b, set: sums, value: 130}]", "E-recipe-value"),
    ("[{name: a, set: sums, value: 13}]", "E-recipe-missing-key"),
])  # fmt: skip
def test_a_wrong_reference_is_refused(world: Path, references: str, code: str) -> None:
    with pytest.raises(UserError) as error:
        tiny.recipe(world, f"report.references={references}")
    assert error.value.code == code


def test_groups_are_read_from_folders_with_one_base_for_each_student(runs: dict[str, Path], tmp_path: Path) -> None:
    groups = read_groups([*runs.values(), runs["forward-1"]], base=True)
    assert [(group.label, group.seeds) for group in groups] == [
        ("base", (1, 2)),  # random weights: `seed` draws them, so there are two
        ("train.prompts_per_step=5", (1, 2)),
        ("train.prompts_per_step=7", (1, 2)),
    ]
    assert {score.baseline for score in score_groups(groups, "own base")} == {None, "base"}
    with pytest.raises(UserError) as error:
        read_run(runs["forward-1"], Checkpoint(3))
    assert error.value.code == "E-report-not-evaluated"


def test_equal_ids_of_other_questions_are_not_paired(runs: dict[str, Path], tmp_path: Path) -> None:
    """Two files under one set name number their rows alike; a corrected gold answer keeps the id, too."""
    first, second, third = (runs[name] for name in ("forward-1", "forward-2", "reverse-1"))
    path = second / "collect" / "sums.test.jsonl"
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    rows[0]["gold"] = "123456"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    for names in ((first, second), (first, second, third)):
        printed = json.loads(compare(*names, "--json").stdout)
        scores = printed.get("comparisons") or printed["scores"]
        assert {row["n"] for row in scores if row["set"] == "sums"} == {len(rows) - 1}
        assert {row["n"] for row in scores if row["set"] == "more"} == {len(right(first, "more"))}
    assert compare(first, second, "--page", tmp_path / "page.html").exit_code == 0
    assert f"{len(rows) - 1} questions" in (tmp_path / "page.html").read_text("utf-8")

    for path in (second / "collect").glob("*.test.jsonl"):
        lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        path.write_text("".join(json.dumps(row | {"text": f"Now {row['text']}"}) + "\n" for row in lines), "utf-8")
    result = compare(first, second)
    assert isinstance(result.exception, UserError) and result.exception.code == "E-cli-compare-nothing"
    printed = json.loads(compare(first, second, third, "--json").stdout)
    assert {row["group"] for row in printed["scores"]} == {"train.prompts_per_step=7"}
    assert "train.prompts_per_step=5 has no row" in printed["note"]


def test_runs_with_other_caches_and_interpolations_have_one_base(runs: dict[str, Path]) -> None:
    """The base's answers do not depend on these keys. The folder of the cache makes no other recipe, either."""
    changes = ({"forward-2": ["evaluate.cache=other"], "reverse-1": ["evaluate.interpolate=[0.5]"]}).items()
    for name, change in changes:
        recipe = load_recipe(runs[name] / "recipe.yaml", change)
        (runs[name] / "recipe.yaml").write_text(recipe_to_yaml(recipe), "utf-8")
    groups = read_groups([runs[name] for name in ("forward-1", "forward-2", "reverse-1")], base=True)
    assert [(len(group.runs), group.is_base) for group in groups] == [(1, True), (2, False), (1, False)]
    assert "evaluate.interpolate=[0.5]" in groups[2].label
