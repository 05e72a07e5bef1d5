"""collect: every question of the run, divided into train, validation and test, none of them in two places.

Reads the sets that the recipe names; writes `collect/<set>.<split>.jsonl` and how each task is asked. Training
questions whose canonical form also stands in a validation or test set are left out and counted.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from potstill import data, progress, prompts, storage
from potstill.data import assemble, contamination, find_data_folder, run_questions, splits
from potstill.data.assemble import AssembledQuestions, assemble_questions, replayed_sets
from potstill.data.custom_set import read_replay_rows
from potstill.errors import UserError
from potstill.recipe import Recipe, find_path, recipe_data_folder
from potstill.records import Question
from potstill.serialization import to_json
from potstill.training import data_order

__all__ = ["AssembledQuestions", "assemble_questions", "inputs", "make"]

READS = (
    "sets",
    "questions",
    "seed",
    "evaluate.demonstrations",
    "train.demonstrations",
    "train.replay.sets",
    "train.replay.file",
    "on_policy.sets",
)
AFTER: tuple[str, ...] = ()
VERSIONS = {
    "contamination": contamination.VERSION,
    "order": data_order.VERSION,
    "prompts": prompts.VERSION,
    "questions": data.VERSION,
    "splits": splits.VERSION,
}


def inputs(recipe: Recipe) -> dict[str, str]:
    """Digests of the files that the recipe names: own sets and demonstrations, and of the authors' indices where they
    decide. The five known sets do not change."""
    named: dict[str, Path] = {}
    for name in recipe.sets:
        own = assemble.set_paths(recipe, name)
        several = len(own) > 1
        named |= {f"sets.{name}{f' file {at}' if several else ''}": path for at, path in enumerate(own, 1)}
    if recipe.evaluate.demonstrations is not None:
        key = "evaluate.demonstrations"
        named[key] = find_path(recipe, recipe.evaluate.demonstrations, key)
    asked = recipe.questions
    if asked.splits == "paper":
        for name in asked.in_distribution + asked.out_of_distribution + asked.generic:
            builtin = data.SETS.get(name)
            if builtin is not None and builtin.split_file is not None:
                path = find_data_folder(recipe_data_folder(recipe)) / builtin.split_file
                named |= {"questions.splits": path} if path.exists() else {}
    if recipe.train.replay is not None and recipe.train.replay.file is not None:
        named["train.replay.file"] = find_path(recipe, recipe.train.replay.file, "train.replay.file")
    return {name: storage.file_digest(path) for name, path in named.items()}


def free(recipe: Recipe) -> tuple[str, ...]:
    """A set that is taught or replayed has a training part already."""
    there = {*recipe.questions.train, *(recipe.train.replay.sets if recipe.train.replay else ())}
    return ("on_policy.sets",) if recipe.on_policy and there.issuperset(recipe.on_policy.sets) else ()


def make(run_dir: Path, recipe: Recipe) -> tuple[list[Path], dict[str, Any]]:
    gathered = assemble_questions(recipe)
    kept = gathered.questions
    train = [question for name in recipe.questions.train for question in kept[name]["train"]]
    shots = _build_task_prompts(recipe, train)
    _check_demonstrations(shots, kept)
    paths, counts = [], {}
    for name, by_split in kept.items():
        for split, rows in by_split.items():
            paths.append(run_dir / "collect" / f"{name}.{split}.jsonl")
            storage.write_jsonl(paths[-1], (to_json(question) for question in rows))
            counts[f"{name}.{split}"] = len(rows)
    paths.append(run_dir / "collect" / run_questions.UNUSED_FILE)
    storage.write_jsonl(
        paths[-1], (to_json(replace(question, gold="", rationale=None)) for question in gathered.held_out)
    )
    paths.append(run_dir / "collect" / run_questions.OVERLAPS_FILE)
    measured = [
        q.text for by_split in kept.values() for split, rows in by_split.items() if split != "train" for q in rows
    ]
    near = contamination.overlap_shares({question.id: question.text for question in train}, measured)
    rows = _read_replay_rows(recipe)
    near |= _max_overlaps(
        [
            *(q for name in replayed_sets(recipe) if name not in recipe.questions.train for q in kept[name]["train"]),
            *rows,
        ],
        measured,
    )
    storage.write_json(paths[-1], {name: round(share, 6) for name, share in sorted(near.items())})
    if rows:
        paths.append(run_dir / "collect" / run_questions.REPLAY_FILE)
        storage.write_jsonl(paths[-1], (to_json(row) for row in rows))
        counts["replay"] = len(rows)
    paths.append(run_dir / "collect" / run_questions.TASK_PROMPTS_FILE)
    storage.write_json(paths[-1], run_questions.task_prompts_to_json(shots))
    paths.append(run_dir / "collect" / run_questions.TEMPLATES_FILE)
    storage.write_json(paths[-1], gathered.templates)
    told: dict[str, Any] = {"questions": counts, "left out as leaks": gathered.leaks}
    if gathered.dropped:
        told["left out as templates"] = gathered.dropped
    twice = data.find_contradictions([q for by_split in kept.values() for rows in by_split.values() for q in rows])
    if twice:
        first, other = twice[0]
        progress.print_line(
            f"{len(twice)} questions stand twice with different answers, first {first.id} and {other.id}", "yellow"
        )
        told["stand twice with different answers"] = len(twice)
    return paths, told


def _read_replay_rows(recipe: Recipe) -> list[Question]:
    """The rows of the file that is replayed."""
    if recipe.train.replay is None or recipe.train.replay.file is None:
        return []
    return read_replay_rows(find_path(recipe, recipe.train.replay.file, "train.replay.file"))


def _max_overlaps(rows: list[Question], measured: list[str]) -> dict[str, float]:
    """How much of each row stands in one measured question, or of a measured question in it: a prompt to replay may
    hold more than one question."""
    texts = {row.id: row.text for row in rows}
    inside, around = contamination.overlap_shares(texts, measured), contamination.contained_shares(texts, measured)
    return {name: max(inside.get(name, 0.0), around.get(name, 0.0)) for name in inside.keys() | around.keys()}


def _build_task_prompts(recipe: Recipe, train: list[Question]) -> dict[str, run_questions.TaskPrompt]:
    """The prompt of each task: a built-in set's official ones, and for the rest the demonstrations of the recipe.

    Whatever the formats of the recipe are, so that other formats do not need other files.
    """
    table = {"": run_questions.TaskPrompt(prompts.PAPER_STYLE, "", _choose_demonstrations(recipe, train))}
    asked = recipe.questions
    for name in asked.in_distribution + asked.out_of_distribution + asked.generic:
        builtin = data.SETS.get(name)
        if builtin is not None and builtin.task_prompts is not None:
            table |= builtin.task_prompts(find_data_folder(recipe_data_folder(recipe)))
    some = Question("", "", "", "", "train", "")
    for name in recipe.evaluate.formats:  # now, not after hours of training
        run_questions.evaluation_prompt(some, prompts.FORMATS[name], {"": table[""]})
    return table


def _choose_demonstrations(recipe: Recipe, train: list[Question]) -> tuple[prompts.Demonstration, ...]:
    """Those of the recipe's file, else some training questions; none if too few of these have a rationale."""
    if recipe.evaluate.demonstrations is not None:
        path = find_path(recipe, recipe.evaluate.demonstrations, "evaluate.demonstrations")
        return data.read_demonstrations(path)
    solved = {question.id: question for question in train if question.rationale}
    count = recipe.train.demonstrations
    if len(solved) < count:
        return ()
    chosen = data_order.draw_demonstrations(
        recipe.seed, 0, "", prompts.FORMATS["few-shot-rationale"], tuple(solved), count
    )
    return tuple(
        prompts.Demonstration(solved[key].text, solved[key].gold, solved[key].rationale or "") for key in chosen
    )


def _check_demonstrations(
    table: dict[str, run_questions.TaskPrompt], kept: dict[str, dict[str, list[Question]]]
) -> None:
    """No question may be asked under a prompt that shows its answer."""
    measured = {
        splits.canonical_question(question.text): question
        for by_split in kept.values()
        for split, rows in by_split.items()
        for question in rows
        if split != "train"
    }
    for entry in table.values():
        for number, shot in enumerate(entry.demonstrations, 1):
            asked = measured.get(splits.canonical_question(shot.question))
            if asked is not None:
                raise UserError(
                    f"demonstration {number} is itself a {asked.split} question",
                    where="evaluate.demonstrations",
                    found=f"{asked.id}: {shot.question[:80]}",
                    hint="take it out of the file of demonstrations, or out of the set",
                )
