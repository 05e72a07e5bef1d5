"""collect: every question of the run, divided into train, validation and test, none of them in two places.

Reads the sets that the recipe names; writes `collect/<set>.<split>.jsonl` and how each task is asked. Training
questions whose canonical form also stands in a validation or test set are left out and counted.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from potstill import contamination, files, order, progress, prompts, questions, recipe, splits
from potstill.encoding import to_json
from potstill.errors import UserError
from potstill.questions import bbh, collected, divided
from potstill.questions.divided import Gathered, gather, replayed
from potstill.questions.own import pairs
from potstill.recipe import Recipe
from potstill.records import Question

__all__ = ["Gathered", "gather", "inputs", "make"]

READS = (
    "sets",
    "questions",
    "seed",
    "evaluate.demonstrations",
    "train.demonstrations",
    "train.replay.sets",
    "train.replay.file",
    "repair.sets",
)
AFTER: tuple[str, ...] = ()
VERSIONS = {
    "contamination": contamination.VERSION,
    "order": order.VERSION,
    "prompts": prompts.VERSION,
    "questions": questions.VERSION,
    "splits": splits.VERSION,
}


def inputs(plan: Recipe) -> dict[str, str]:
    """Digests of the files that the recipe names: own sets and demonstrations, and of the authors' indices where they
    decide. The five known sets do not change."""
    named: dict[str, Path] = {}
    for name in plan.sets:
        own = divided.files_of(plan, name)
        several = len(own) > 1
        named |= {f"sets.{name}{f' file {at}' if several else ''}": path for at, path in enumerate(own, 1)}
    if plan.evaluate.demonstrations is not None:
        key = "evaluate.demonstrations"
        named[key] = recipe.find(plan, plan.evaluate.demonstrations, key)
    asked = plan.questions
    if asked.splits == "paper" and "multiarith" in asked.in_distribution + asked.out_of_distribution + asked.generic:
        indices = questions.indices(recipe.data_folder(plan))
        named |= {"questions.splits": indices} if indices.exists() else {}
    if plan.train.replay is not None and plan.train.replay.file is not None:
        named["train.replay.file"] = recipe.find(plan, plan.train.replay.file, "train.replay.file")
    return {name: files.digest(path) for name, path in named.items()}


def free(plan: Recipe) -> tuple[str, ...]:
    """A set that is taught or replayed has a training part already."""
    there = {*plan.questions.train, *(plan.train.replay.sets if plan.train.replay else ())}
    return ("repair.sets",) if plan.repair and there.issuperset(plan.repair.sets) else ()


def make(run: Path, plan: Recipe) -> tuple[list[Path], dict[str, Any]]:
    gathered = gather(plan)
    kept = gathered.questions
    train = [question for name in plan.questions.train for question in kept[name]["train"]]
    shots = _shots(plan, train)
    _check_shots(shots, kept)
    paths, counts = [], {}
    for name, by_split in kept.items():
        for split, rows in by_split.items():
            paths.append(run / "collect" / f"{name}.{split}.jsonl")
            files.write_jsonl(paths[-1], (to_json(question) for question in rows))
            counts[f"{name}.{split}"] = len(rows)
    paths.append(run / "collect" / collected.OTHERS)
    files.write_jsonl(paths[-1], (to_json(replace(question, gold="", rationale=None)) for question in gathered.held))
    paths.append(run / "collect" / collected.OVERLAPS)
    measured = [
        q.text for by_split in kept.values() for split, rows in by_split.items() if split != "train" for q in rows
    ]
    near = splits.overlaps({question.id: question.text for question in train}, measured)
    rows = _pairs(plan)
    near |= _near(
        [*(q for name in replayed(plan) if name not in plan.questions.train for q in kept[name]["train"]), *rows],
        measured,
    )
    files.write_json(paths[-1], {name: round(share, 6) for name, share in sorted(near.items())})
    if rows:
        paths.append(run / "collect" / collected.REPLAY)
        files.write_jsonl(paths[-1], (to_json(row) for row in rows))
        counts["replay"] = len(rows)
    paths.append(run / "collect" / collected.SHOTS)
    files.write_json(paths[-1], collected.shots_json(shots))
    paths.append(run / "collect" / collected.TEMPLATES)
    files.write_json(paths[-1], gathered.templates)
    told: dict[str, Any] = {"questions": counts, "left out as leaks": gathered.leaks}
    if gathered.dropped:
        told["left out as templates"] = gathered.dropped
    twice = questions.contradictions([q for by_split in kept.values() for rows in by_split.values() for q in rows])
    if twice:
        first, other = twice[0]
        progress.say(
            f"{len(twice)} questions stand twice with different answers, first {first.id} and {other.id}", "yellow"
        )
        told["stand twice with different answers"] = len(twice)
    return paths, told


def _pairs(plan: Recipe) -> list[Question]:
    """The rows of the file that is replayed."""
    if plan.train.replay is None or plan.train.replay.file is None:
        return []
    return pairs(recipe.find(plan, plan.train.replay.file, "train.replay.file"))


def _near(rows: list[Question], measured: list[str]) -> dict[str, float]:
    """How much of each row stands in one measured question, or of a measured question in it: a prompt to replay may
    hold more than one question."""
    texts = {row.id: row.text for row in rows}
    inside, around = splits.overlaps(texts, measured), splits.holds(texts, measured)
    return {name: max(inside.get(name, 0.0), around.get(name, 0.0)) for name in inside.keys() | around.keys()}


def _shots(plan: Recipe, train: list[Question]) -> dict[str, collected.Shots]:
    """How each task is asked: BBH with its official demonstrations, the rest with those of the recipe.

    Whatever the formats of the recipe are, so that other formats do not need other files.
    """
    table = {"": collected.Shots(prompts.PAPER, "", _demonstrations(plan, train))}
    asked = plan.questions
    if "bbh" in asked.in_distribution + asked.out_of_distribution + asked.generic:
        data = questions.folder(recipe.data_folder(plan))
        for task in bbh.TASKS:
            table[f"bbh/{task}"] = collected.Shots(bbh.style(task), *bbh.demonstrations(data, task))
    some = Question("", "", "", "", "train", "")
    for name in plan.evaluate.formats:  # now, not after hours of training
        collected.prompt_of(some, prompts.FORMATS[name], {"": table[""]})
    return table


def _demonstrations(plan: Recipe, train: list[Question]) -> tuple[prompts.Demonstration, ...]:
    """Those of the recipe's file, else some training questions; none if too few of these have a rationale."""
    if plan.evaluate.demonstrations is not None:
        path = recipe.find(plan, plan.evaluate.demonstrations, "evaluate.demonstrations")
        return questions.demonstrations(path)
    solved = {question.id: question for question in train if question.rationale}
    count = plan.train.demonstrations
    if len(solved) < count:
        return ()
    chosen = order.demonstrations(plan.seed, 0, "", prompts.FORMATS["few-shot-rationale"], tuple(solved), count)
    return tuple(
        prompts.Demonstration(solved[key].text, solved[key].gold, solved[key].rationale or "") for key in chosen
    )


def _check_shots(table: dict[str, collected.Shots], kept: dict[str, dict[str, list[Question]]]) -> None:
    """No question may be asked under a prompt that shows its answer."""
    measured = {
        splits.canonical(question.text): question
        for by_split in kept.values()
        for split, rows in by_split.items()
        for question in rows
        if split != "train"
    }
    for entry in table.values():
        for number, shot in enumerate(entry.demonstrations, 1):
            asked = measured.get(splits.canonical(shot.question))
            if asked is not None:
                raise UserError(
                    f"demonstration {number} is itself a {asked.split} question",
                    where="evaluate.demonstrations",
                    found=f"{asked.id}: {shot.question[:80]}",
                    do="take it out of the file of demonstrations, or out of the set",
                )
