"""collect: every question of the run, divided into train, validation and test, none of them in two places.

Reads the sets that the recipe names; writes `collect/<set>.<split>.jsonl` and how each task is asked. Training
questions whose canonical form also stands in a validation or test set are left out and counted.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from potstill import files, order, prompts, questions, recipe, splits
from potstill.encoding import to_json
from potstill.errors import UserError
from potstill.questions import bbh, collected
from potstill.recipe import Recipe
from potstill.records import Question, Split

READS = (
    "sets",
    "questions",
    "seed",
    "evaluate.demonstrations",
    "evaluate.formats",
    "train.demonstrations",
    "train.formats",
)
AFTER: tuple[str, ...] = ()
VERSIONS = {
    "order": order.VERSION,
    "prompts": prompts.VERSION,
    "questions": questions.VERSION,
    "splits": splits.VERSION,
}


def inputs(plan: Recipe) -> dict[str, str]:
    """Digests of the files that own sets come from."""
    return {
        f"sets.{name}": files.digest(recipe.find(plan, own.file, f"sets.{name}.file"))
        for name, own in plan.sets.items()
    }


def make(run: Path, plan: Recipe) -> tuple[list[Path], dict[str, Any]]:
    kept, others = _divided(plan)
    paths, counts = [], {}
    for name, by_split in kept.items():
        for split, rows in by_split.items():
            paths.append(run / "collect" / f"{name}.{split}.jsonl")
            files.write_jsonl(paths[-1], (to_json(question) for question in rows))
            counts[f"{name}.{split}"] = len(rows)
    paths.append(run / "collect" / collected.OTHERS)
    files.write_jsonl(paths[-1], (to_json(replace(question, gold="", rationale=None)) for question in others.held))
    paths.append(run / "collect" / collected.SHOTS)
    train = [question for name in plan.questions.train for question in kept[name]["train"]]
    files.write_json(paths[-1], collected.shots_json(_shots(plan, train)))
    return paths, {"questions": counts, "left out as leaks": others.leaks}


def gather(plan: Recipe) -> dict[str, dict[str, list[Question]]]:
    """Set -> split -> the questions that the run would have, nothing written."""
    return _divided(plan)[0]


@dataclass(frozen=True, slots=True)
class _Others:
    """What is not taught: questions of the training sets that are held out or left out, and how many for leaking."""

    held: list[Question]
    leaks: int


def _divided(plan: Recipe) -> tuple[dict[str, dict[str, list[Question]]], _Others]:
    asked = plan.questions
    wanted: dict[str, tuple[Split, ...]] = dict.fromkeys(asked.train, ("train",))
    for name in asked.in_distribution + asked.out_of_distribution + asked.generic:
        wanted[name] = (*[split for split in wanted.get(name, ()) if split == "train"], "validation", "test")
    loaded = {name: _load(plan, name) for name in wanted}
    used = [question for name, found in loaded.items() for question in found if question.split in wanted[name]]
    leaked = {first.id for first, _ in questions.leaks(used)}
    kept: dict[str, dict[str, list[Question]]] = {}
    for name, found in loaded.items():
        kept[name] = {}
        for split in wanted[name]:
            rows = [question for question in found if question.split == split and question.id not in leaked]
            limit = getattr(asked.limit, split)
            kept[name][split] = rows if limit is None else _limited(rows, limit)
            if not kept[name][split]:
                raise UserError(
                    f"no question of {name} is in {split}",
                    where=f"questions ({name})",
                    found=f"{len(found)} questions in all, {len(leaked)} left out as leaks",
                    do="give the set more questions, or change questions.validation and questions.test",
                )
    taught = {question.id for name in asked.train for question in kept[name]["train"]}
    held = [question for name in asked.train for question in loaded[name] if question.id not in taught]
    return kept, _Others(held, len(leaked))


def _load(plan: Recipe, name: str) -> list[Question]:
    own = plan.sets.get(name)
    asked = plan.questions
    return questions.load(
        name,
        recipe.data_folder(plan),
        file=recipe.find(plan, own.file, f"sets.{name}.file") if own else None,
        fields=own.fields if own else None,
        task=own.task if own else None,
        splits=asked.splits,
        validation=None if asked.splits == "paper" else asked.validation,
        test=asked.test if own else None,
    )


def _limited(rows: list[Question], limit: int) -> list[Question]:
    """At most `limit` questions, as many of each task as possible."""
    tasks = sorted({question.task for question in rows})
    share = {task: limit // len(tasks) + (rank < limit % len(tasks)) for rank, task in enumerate(tasks)}
    taken = [splits.take([q for q in rows if q.task == task], share[task]) for task in tasks]
    chosen = {question.id for group in taken for question in group}
    return [question for question in rows if question.id in chosen]


def _shots(plan: Recipe, train: list[Question]) -> dict[str, collected.Shots]:
    """How each task is asked: BBH with its official demonstrations, the rest with those of the recipe."""
    table = {"": collected.Shots(prompts.PAPER, "", ())}
    if any(name.startswith("few-shot") for name in plan.evaluate.formats):
        table[""] = collected.Shots(prompts.PAPER, "", _demonstrations(plan, train))
    if "bbh" in plan.questions.generic:
        data = questions.folder(recipe.data_folder(plan))
        for task in bbh.TASKS:
            table[f"bbh/{task}"] = collected.Shots(bbh.style(task), *bbh.demonstrations(data, task))
    return table


def _demonstrations(plan: Recipe, train: list[Question]) -> tuple[prompts.Demonstration, ...]:
    if plan.evaluate.demonstrations is not None:
        path = recipe.find(plan, plan.evaluate.demonstrations, "evaluate.demonstrations")
        return questions.demonstrations(path)
    solved = {question.id: question for question in train if question.rationale}
    count = plan.train.demonstrations
    chosen = order.demonstrations(plan.seed, 0, "", prompts.FORMATS["few-shot-rationale"], tuple(solved), count)
    return tuple(
        prompts.Demonstration(solved[key].text, solved[key].gold, solved[key].rationale or "") for key in chosen
    )
