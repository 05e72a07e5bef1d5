"""Study files: the runs of a grid, their names, and one message with its place for every fault."""

from __future__ import annotations

from pathlib import Path

import pytest

from potstill.errors import UserError
from potstill.recipe.study import ExperimentSection, QuickSection, StudySection, load_study, parse_study
from potstill.study.grid import Study, expand_study
from potstill.study.shared_stages import count_shared, stage_keys

GRID = "{transfer.rule: [one-hot, span], train.seed: [1, 2, 3]}"


def expand(text: str, *changes: str, quick: bool = False) -> Study:
    return expand_study(parse_study(text, "s.yaml", quick=quick), changes)


def names(study: Study) -> list[str]:
    return [run.name for run in study.runs]


def test_a_grid_has_all_combinations_and_the_last_axis_varies_fastest() -> None:
    study = expand(f"name: s\nrecipe: demo\nset: {{train.steps: 7}}\ngrid: {GRID}\n")
    assert names(study) == [f"{rule}.seed-{seed}" for rule in ("one-hot", "span") for seed in (1, 2, 3)]
    assert [(run.recipe.transfer.rule, run.recipe.training_seed) for run in study.runs[2:4]] == [
        ("one-hot", 3),
        ("span", 1),
    ]
    assert {run.recipe.train.steps for run in study.runs} == {7}
    choices = study.experiments[0].choices
    assert choices["one-hot.seed-1"] == {"transfer.rule": "one-hot", "train.seed": "seed-1"}
    assert study.runs[0].run_dir == Path("runs/s/one-hot.seed-1") and study.runs[0].recipe.name == "one-hot.seed-1"


def test_all_runs_share_the_answers_of_the_base_unless_the_recipe_has_a_cache() -> None:
    assert expand("{name: s, recipe: demo}").runs[0].recipe.evaluate.cache == "runs/s/answers"
    other = expand("{name: s, recipe: demo, set: {evaluate.cache: mine}}")
    assert other.runs[0].recipe.evaluate.cache == "mine"


def test_a_named_choice_changes_several_keys() -> None:
    study = expand(
        "name: s\nrecipe: demo\ngrid:\n  length:\n    short: {train.steps: 3, train.checkpoint_every: 3}\n    long: {}\n"
    )
    assert names(study) == ["short", "long"]
    assert [run.recipe.train.steps for run in study.runs] == [3, 1280]


def test_experiments_add_the_axes_of_the_study_and_share_equal_runs() -> None:
    study = expand(
        """
name: s
recipe: demo
grid: {train.seed: [1, 2]}
experiments:
  rules: {title: Does the rule matter?, grid: {transfer.rule: [text, span]}}
  steps: {grid: {train.steps: [1280, 9]}}
  seeds: {grid: {train.seed: [1, 2, 3]}}
"""
    )
    assert [one.runs for one in study.experiments] == [
        ("rules.text.seed-1", "rules.text.seed-2", "rules.span.seed-1", "rules.span.seed-2"),
        ("rules.text.seed-1", "rules.text.seed-2", "steps.steps-9.seed-1", "steps.steps-9.seed-2"),
        ("rules.text.seed-1", "rules.text.seed-2", "seeds.seed-3"),
    ]
    assert study.experiments[1].choices["rules.text.seed-2"] == {"train.steps": "steps-1280", "train.seed": "seed-2"}
    assert len(study.runs) == 7 and study.experiments[0].title == "Does the rule matter?"


def test_quick_replaces_axes_and_values_last() -> None:
    text = f"name: s\nrecipe: demo\ngrid: {GRID}\nquick: {{set: {{train.steps: 2}}, grid: {{train.seed: [1]}}}}\n"
    study = expand(text, quick=True)
    assert study.name == "s-quick" and names(study) == ["one-hot.seed-1", "span.seed-1"]
    assert {run.recipe.train.steps for run in study.runs} == {2}
    assert len(expand(text).runs) == 6


def test_changes_of_the_command_line_come_last() -> None:
    study = expand(f"{{name: s, recipe: demo, grid: {GRID}}}", "train.steps=5", "transfer.rule=span")
    assert {run.recipe.train.steps for run in study.runs} == {5}
    assert len(study.runs) == 3, "the rules are equal now"


@pytest.mark.parametrize(
    "text, where, code",
    [
        ("- a\n", "s.yaml", "E-recipe-not-a-mapping"),
        ("name: s\nrecipe: demo\ngird: {}\n", "s.yaml line 3", "E-recipe-unknown-key"),
        ("name: s\n", "s.yaml", "E-recipe-missing-key"),
        ("name: s/t\nrecipe: demo\n", "s.yaml line 1", "E-recipe-value"),
        ("name: s\nrecipe: missing.yaml\n", "s.yaml: recipe", "E-study-recipe"),
        ("name: s\nrecipe: demo\ngrid:\n  train.seed: 1\n", "s.yaml line 4", "E-study-axis"),
        ("name: s\nstudent: {model: m}\nseed: 3\n", "s.yaml", "E-study-is-recipe"),
        ("name: s\nrecipe: demo\ngrid:\n  train.seed: []\n", "s.yaml line 4", "E-study-axis"),
        ("name: s\nrecipe: demo\ngrid:\n  train.seed: [1, 1]\n", "s.yaml line 4", "E-study-axis"),
        ("name: s\nrecipe: demo\ngrid:\n  train.betas: [[0.9, 0.9]]\n", "s.yaml line 4", "E-study-axis"),
        ("name: s\nrecipe: demo\ngrid:\n  size: {a/b: {train.steps: 1}}\n", "s.yaml line 4", "E-study-axis"),
        ("name: s\nrecipe: demo\ngrid:\n  size: {a: 3}\n", "s.yaml line 4", "E-study-axis"),
        (
            "name: s\nrecipe: demo\nquick: {grid: {train.sed: [1]}}\ngrid: {train.seed: [1]}\n",
            "s.yaml line 3",
            "E-study-axis",
        ),
        ("name: s\nrecipe: demo\nquick: {}\n", "s.yaml", "E-study-no-quick"),
        ("name: s\nrecipe: demo\ngrid: {name: [a, b]}\n", "s.yaml", "E-study-name-key"),
        ("name: s\nrecipe: demo\nset: {name: a}\n", "s.yaml", "E-study-name-key"),
        (
            "name: s\nrecipe: demo\ngrid: {size: {a: {}, b: {train.seed: 5}}, train.seed: [1, 2]}\n",
            "s.yaml",
            "E-study-axis",
        ),
        (
            "name: s\nrecipe: demo\ngrid: {x: {a: {train.replay: {share: 0.1}}}, y: {b: {train.replay.share: 0.2}}}\n",
            "s.yaml",
            "E-study-axis",
        ),
        ("name: s\nrecipe: demo\ngrid: {size: {index.html: {seed: 4}}}\n", "s.yaml", "E-study-same-name"),
        (
            "name: s\nrecipe: demo\ngrid: {train.stepz: [1]}\n",
            "s.yaml, run stepz-1: train.stepz=1",
            "E-recipe-unknown-key",
        ),
        ("name: s\nrecipe: demo\ngrid: {size: {logs: {}}}\n", "s.yaml", "E-study-same-name"),
        ("name: s\nrecipe: demo\ngrid: {size: {a: {seed: 4}, A: {seed: 5}}}\n", "s.yaml", "E-study-same-name"),
        (
            f"name: s\nrecipe: demo\ngrid: {{size: {{{'a' * 60}: {{}}}}, other: {{{'b' * 60}: {{}}}}}}\n",
            "s.yaml",
            "E-study-long-name",
        ),
    ],
)  # fmt: skip
def test_a_fault_is_one_message_with_its_place(text: str, where: str, code: str) -> None:
    with pytest.raises(UserError) as caught:
        expand(text, quick="quick" in text)
    assert (caught.value.where, caught.value.code) == (where, code)
    assert caught.value.hint or code == "E-recipe-not-a-mapping"


def test_a_key_that_was_mistyped_gets_a_suggestion_from_the_study_not_from_the_recipe() -> None:
    with pytest.raises(UserError) as caught:
        expand("name: s\nrecipe: demo\nexperiment: {}\n")
    assert "experiments" in caught.value.hint


def test_a_file_that_is_missing_or_no_text(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9\n")
    for name, code in (("none.yaml", "E-study-unreadable"), ("latin.yaml", "E-study-utf8")):
        with pytest.raises(UserError) as caught:
            load_study(tmp_path / name)
        assert caught.value.code == code and caught.value.hint


def test_an_unknown_run_is_refused() -> None:
    with pytest.raises(UserError) as caught:
        expand("{name: s, recipe: demo}").find("other")
    assert caught.value.code == "E-study-unknown-run"


def test_runs_share_a_stage_only_if_it_reads_nothing_that_differs() -> None:
    keys = [
        stage_keys(run.recipe)
        for run in expand("{name: s, recipe: demo, grid: {size: {a: {}, b: {filter.max_per_question: 1}}}}").runs
    ]
    shared = [name for name in keys[0] if keys[0][name] == keys[1][name]]
    assert shared == ["collect", "sample"]
    keys = [
        stage_keys(run.recipe)
        for run in expand(
            "{name: s, recipe: demo, grid: {select.rule: [in-distribution, mean-out-of-distribution]}}"
        ).runs
    ]
    shared = [name for name in keys[0] if keys[0][name] == keys[1][name]]
    assert shared == ["collect", "sample", "filter", "align", "train", "evaluate"]


def test_the_seed_of_the_teacher_and_of_training_are_shared_as_far_as_possible() -> None:
    counts = count_shared(expand("{name: s, recipe: demo, grid: {teacher.seed: [1, 2], train.seed: [1, 2, 3]}}"))
    assert counts["collect"] == 1 and counts["sample"] == counts["align"] == 2 and counts["train"] == 6
    counts = count_shared(expand("{name: s, recipe: demo, grid: {seed: [1, 2]}}"))
    assert counts["collect"] == counts["sample"] == 2, "the seed of the recipe splits the questions"


def test_every_key_of_a_study_is_described() -> None:
    for section in (StudySection, ExperimentSection, QuickSection):
        for name, field in section.model_fields.items():
            assert field.description and field.description.endswith("."), f"{section.__name__}.{name}"


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[2] / "studies").glob("*.yaml")), ids=lambda path: path.stem
)
def test_the_studies_of_the_repository_have_runs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parents[1])
    for quick in (False, True):
        study = expand_study(load_study(path, quick=quick))
        assert len(study.runs) > 1 and all(one.runs for one in study.experiments)
        seeds = {run.recipe.training_seed for run in study.runs}
        assert len(seeds) == 2 if quick else len(seeds) >= 3


def test_a_run_may_be_named_by_a_number() -> None:
    study = expand("name: s\nrecipe: demo\ngrid: {size: {'1': {train.seed: 1}, '2': {train.seed: 2}}}\n")
    assert names(study) == ["1", "2"] and [run.recipe.name for run in study.runs] == ["1", "2"]


def test_a_study_has_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "s").mkdir(parents=True)
    (tmp_path / "runs" / "s" / "recipe.yaml").write_text("name: s\n", "utf-8")
    with pytest.raises(UserError) as caught:
        expand("{name: s, recipe: demo}")
    assert caught.value.code == "E-study-folder"


def test_another_revision_or_data_folder_is_not_shared(tmp_path: Path) -> None:
    for key, values in (("teacher.revision", ["one", "two"]), ("student.revision", ["one", "two"])):
        study = expand(f"{{name: s, recipe: demo, grid: {{{key}: {values}}}}}")
        counts = count_shared(study)
        assert counts["train"] == 2 and counts["sample"] == (2 if key == "teacher.revision" else 1), key
    assert count_shared(expand("{name: s, recipe: demo, grid: {data: [runs, elsewhere]}}"))["sample"] == 2
