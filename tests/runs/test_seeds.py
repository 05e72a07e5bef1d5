"""Seeds by purpose: another `train.seed` keeps the chains, and each seed changes only what it is for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import potstill as ps
import tiny
from potstill import runner
from potstill.recipe import Recipe
from potstill.training import examples


def actions(recipe: Recipe, run_dir: Path) -> dict[str, str]:
    return {plan.stage: plan.action for plan in runner.plan_stages(recipe, run_dir)}


def recorded(run_dir: Path, stage: str) -> dict[str, object]:
    return json.loads((run_dir / stage / "begun.json").read_text())["recipe"]


def chain_texts(run_dir: Path) -> list[tuple[str, int, str]]:
    return [(chain.question, chain.index, chain.text) for chain, _ in ps.open_run(run_dir).chains()]


def test_each_seed_is_the_seed_of_the_recipe_by_default() -> None:
    recipe = Recipe(name="mine", seed=7)
    assert (recipe.sampling_seed, recipe.training_seed, recipe.evaluation_seed) == (7, 7, 7)
    recipe = Recipe.model_validate(
        {
            "name": "mine", "seed": 7, "train": {"seed": 0}, "evaluate": {"seed": 2},
            "teacher": {"kind": "local", "model": "teacher", "seed": 1},
        }
    )  # fmt: skip
    assert (recipe.sampling_seed, recipe.training_seed, recipe.evaluation_seed) == (1, 0, 2)


@pytest.mark.parametrize("key", ["teacher.seed", "train.seed", "evaluate.seed"])
def test_a_seed_that_equals_the_recipes_changes_nothing(world: Path, finished: Path, key: str) -> None:
    assert set(actions(tiny.recipe(world, f"{key}=3"), finished).values()) == {"keep"}


def test_another_training_seed_keeps_the_chains(world: Path, tmp_path: Path, finished: Path) -> None:
    run_dir = Path(shutil.copytree(finished, tmp_path / "run"))
    recipe = tiny.recipe(world, "train.seed=8")
    plans = runner.plan_stages(recipe, run_dir, "train")
    assert {plan.stage for plan in plans if plan.action == "keep"} == {"collect", "sample", "filter", "align"}
    before = (run_dir / "train" / "metrics.jsonl").read_bytes(), (run_dir / "sample" / "chains.parquet").read_bytes()
    runner.run(recipe, run_dir, redo="train")
    after = (run_dir / "train" / "metrics.jsonl").read_bytes(), (run_dir / "sample" / "chains.parquet").read_bytes()
    assert after[0] != before[0] and after[1] == before[1]
    assert recorded(run_dir, "train")["train.seed"] == 8 and "train.seed" not in recorded(finished, "train")
    assert "teacher.seed" not in recorded(run_dir, "sample")


def test_the_seed_of_training_decides_the_order(world: Path) -> None:
    questions = [(f"q{number}", 2) for number in range(9)]
    seeds = [
        examples.build_data_order(tiny.recipe(world, *changes), questions).seed
        for changes in (["seed=8"], ["train.seed=8"], ["teacher.seed=8"], [])
    ]
    assert seeds == [8, 8, 3, 3]


def test_the_seed_of_the_teacher_decides_the_chains(world: Path, tmp_path: Path, finished: Path) -> None:
    for number, changes in enumerate((["seed=8"], ["teacher.seed=8"])):
        runner.run(tiny.recipe(world, *changes), tmp_path / str(number), until="filter")
    same = chain_texts(tmp_path / "0")
    assert same == chain_texts(tmp_path / "1") != chain_texts(finished)


def test_a_stage_whose_own_seed_is_set_does_not_read_the_recipes(world: Path, tmp_path: Path) -> None:
    recipe, run_dir = tiny.recipe(world, "teacher.seed=8"), tmp_path / "run"
    runner.run(recipe, run_dir, until="sample")
    keys = recorded(run_dir, "sample")
    assert keys["teacher.seed"] == 8 and "seed" not in keys
