"""Reads the answers of finished runs for `group_scores`.

    groups = read_groups([Path("runs/forward-1"), Path("runs/forward-2"), Path("runs/reverse-1")], base=True)
    scores = score_groups(groups, baseline="own base")

This module reads the answers that a stage wrote, and names their questions (`run_questions.question_key`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

from potstill import storage
from potstill.data import run_questions
from potstill.errors import UserError
from potstill.evaluation import checkpoint as checkpoints
from potstill.recipe import Recipe, flatten_keys, load_recipe
from potstill.records import BASE, Checkpoint, Prediction, Split
from potstill.report.group_scores import SEED_KEYS, STEP_KEY, RunAnswers, SeedGroup, group_runs
from potstill.report.model import QuotedScore, set_groups
from potstill.storage import manifest

STAGES: Final[dict[Literal["validation", "test"], str]] = {"test": "test", "validation": "evaluate"}
# Sections that decide the base and what it is asked.
BASE_SECTIONS: Final = ("data", "sets", "questions", "student", "evaluate")


def read_groups(
    run_dirs: Sequence[Path],
    by: Sequence[str] | None = None,
    *,
    base: bool = False,
    split: Literal["validation", "test"] = "test",
) -> tuple[SeedGroup, ...]:
    """The groups of runs that differ only in seeds, with the answers of each run's chosen checkpoint.

    by    as in `group_runs`
    base  whether the base (step 0) of each student is a group of its own. These come first

    A folder that is named twice counts once. Raises UserError as `read_run` and `group_runs` do.
    """
    runs, bases = [], dict[str, RunAnswers]()
    for run_dir in dict.fromkeys(run_dirs):
        runs.append(read_run(run_dir, split=split))
        if base:
            run = read_run(run_dir, BASE, split=split, as_base=True)
            student = [sorted(run.keys.items()), None if run.is_fixed else run.seeds["seed"]]
            bases.setdefault(json.dumps(student), run)
    return group_runs([*bases.values(), *runs], by)


def read_run(
    run_dir: Path,
    checkpoint: Checkpoint | None = None,
    *,
    name: str = "",
    split: Literal["validation", "test"] = "test",
    as_base: bool = False,
) -> RunAnswers:
    """The answers of a checkpoint: of the chosen one by default, or of the model of a run that only evaluates.

    name     the run as it was named; its folder by default
    as_base  whether it stands for the base beside the run itself, and not for the run

    Raises UserError if the folder has no recipe, or if the checkpoint was not evaluated on the split.
    """
    recipe = load_recipe(run_dir / "recipe.yaml")
    named, by_rule = checkpoint, checkpoint is None
    checkpoint = find_checkpoint(run_dir, STAGES[split]) if checkpoint is None else checkpoint
    if checkpoint is None or manifest.read_finished(run_dir / STAGES[split] / checkpoint.name) is None:
        what = f"this run, or its named checkpoint, has not been evaluated on {split}"
        answered = checkpoints.list_answered_checkpoints(run_dir / STAGES[split])
        found = f"answered checkpoints: {', '.join(row.name for row in answered) or 'none'}"
        hint = f"finish the run: potstill run {run_dir}"
        raise UserError(what, code="E-report-not-evaluated", where=run_dir, found=found, hint=hint)
    keys, sets = compared_keys(recipe), recipe.questions
    if as_base:
        keys = _base_keys(recipe, keys)
    elif named is not None:
        keys[STEP_KEY] = named.label
    groups = set_groups(sets.in_distribution, sets.out_of_distribution, sets.generic)
    asked = read_question_keys(run_dir, groups, split)
    return RunAnswers(
        name or str(run_dir),
        keys,
        {
            "seed": recipe.seed,
            "train.seed": recipe.training_seed,
            "teacher.seed": recipe.sampling_seed,
            "evaluate.seed": recipe.evaluation_seed,
        },
        {
            path.stem: {
                asked[row.question]: (row.set, row.grade == "right")
                for row in storage.iter_records(Prediction, path)
                if row.index == 0
            }
            for path in sorted((run_dir / STAGES[split] / checkpoint.name).glob("*.jsonl"))
        },
        groups,
        training="" if checkpoint == BASE else training_digest(run_dir),
        quoted=quoted_scores(recipe),
        # A rule that chose step 0 could choose another step after training with another seed.
        is_fixed=checkpoint == BASE and recipe.student.model is not None and not (recipe.has_teacher and by_rule),
        is_base=as_base,
    )


def read_question_keys(run_dir: Path, sets: Iterable[str], split: Split) -> dict[str, str]:
    """Question id -> its name among several runs."""
    return {row.id: run_questions.question_key(row) for row in run_questions.read_questions(run_dir, sets, split)}


def quoted_scores(recipe: Recipe) -> tuple[QuotedScore, ...]:
    """The figures from the literature that the recipe quotes."""
    return tuple(QuotedScore(row.name, row.source, row.set, row.value / 100, row.n) for row in recipe.report.references)


def find_checkpoint(run_dir: Path, stage: str) -> Checkpoint | None:
    """The chosen checkpoint, or the only checkpoint of a run that only evaluates; None without answers."""
    if (run_dir / "select" / checkpoints.CHOICE_FILE).is_file():
        return checkpoints.read_choice(run_dir).checkpoint
    answered = checkpoints.list_answered_checkpoints(run_dir / stage)
    return answered[0] if len(answered) == 1 else None


def training_digest(run_dir: Path) -> str:
    """Which training made a run's weights: a copy of the run has the same digest. Without a finished training, it is the
    run's folder."""
    finished = manifest.read_finished(run_dir / "train")
    return str(run_dir.resolve()) if finished is None else finished.digest


def compared_keys(recipe: Recipe) -> dict[str, Any]:
    """Every key that makes two recipes different, apart from their seeds and the folder of cached answers."""
    sections = [name for name in type(recipe).model_fields if name not in ("name", "seed", "report")]
    left_out = (*SEED_KEYS, "evaluate.cache")
    keys = {key: value for key, value in flatten_keys(recipe, *sections).items() if key not in left_out}
    return keys if recipe.teachers is None else _without_teacher_defaults(keys)


def _base_keys(recipe: Recipe, keys: Mapping[str, Any]) -> dict[str, Any]:
    """The keys on which the base's answers depend."""
    unused = {*checkpoints.list_unused_keys(recipe, "test"), *flatten_keys(recipe, "evaluate.texts")}
    return {key: value for key, value in keys.items() if key.split(".")[0] in BASE_SECTIONS and key not in unused}


def _without_teacher_defaults(keys: dict[str, Any]) -> dict[str, Any]:
    """The keys of a recipe with several teachers, without those that would only lengthen its label: the keys of the teachers
    that have their defaults, except `kind`."""
    defaults = flatten_keys(Recipe(name="defaults"), "teacher")
    kept = {}
    for key, value in keys.items():
        own = key.split(".", 2)[-1] if key.startswith("teachers.") else ""  # the key without `teachers.NAME.`
        if own in ("", "kind") or value != defaults.get(f"teacher.{own}"):
            kept[key] = value
    return kept
