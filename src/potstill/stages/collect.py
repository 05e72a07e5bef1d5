"""collect: every question of the run, divided into train, validation and test, none of them in two places.

Reads the sets that the recipe names; writes `collect/<set>.<split>.jsonl` and how each task is asked. Training
questions whose canonical form also stands in a validation or test set are left out and counted.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from potstill import files, order, progress, prompts, questions, recipe, splits
from potstill.encoding import to_json
from potstill.errors import UserError
from potstill.questions import bbh, collected, fetched
from potstill.questions.own import pairs
from potstill.recipe import Column, Recipe
from potstill.records import Question, Split

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
    "order": order.VERSION,
    "prompts": prompts.VERSION,
    "questions": questions.VERSION,
    "splits": splits.VERSION,
}


MEASURED: Final[tuple[Split, ...]] = ("validation", "test")
Templates = dict[str, dict[Split, list[str]]]


def inputs(plan: Recipe) -> dict[str, str]:
    """Digests of the files that the recipe names: own sets and demonstrations, and of the authors' indices where they
    decide. The five known sets do not change."""
    named: dict[str, Path] = {}
    for name in plan.sets:
        own = _own(plan, name)
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
    kept, others = _divided(plan)
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
    files.write_jsonl(paths[-1], (to_json(replace(question, gold="", rationale=None)) for question in others.held))
    paths.append(run / "collect" / collected.OVERLAPS)
    measured = [
        q.text for by_split in kept.values() for split, rows in by_split.items() if split != "train" for q in rows
    ]
    near = splits.overlaps({question.id: question.text for question in train}, measured)
    rows = _pairs(plan)
    near |= _near(
        [*(q for name in _replayed(plan) if name not in plan.questions.train for q in kept[name]["train"]), *rows],
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
    files.write_json(paths[-1], others.templates)
    told: dict[str, Any] = {"questions": counts, "left out as leaks": others.leaks}
    if others.dropped:
        told["left out as templates"] = others.dropped
    twice = questions.contradictions([q for by_split in kept.values() for rows in by_split.values() for q in rows])
    if twice:
        first, other = twice[0]
        progress.say(
            f"{len(twice)} questions stand twice with different answers, first {first.id} and {other.id}", "yellow"
        )
        told["stand twice with different answers"] = len(twice)
    return paths, told


@dataclass(frozen=True, slots=True)
class Gathered:
    """What a run would have.

    questions  set -> split -> its questions
    unused     set -> how many are neither taught nor asked
    templates  set -> split -> ids of its questions that are training questions but for numbers and names
    dropped    training questions that were left out for that
    """

    questions: dict[str, dict[str, list[Question]]]
    unused: dict[str, int]
    templates: Templates
    dropped: int


def gather(plan: Recipe) -> Gathered:
    """The questions that the run would have; nothing is written."""
    kept, others = _divided(plan)
    return Gathered(kept, others.unused, others.templates, others.dropped)


@dataclass(frozen=True, slots=True)
class _Others:
    """What is not taught: questions of the training sets that are held out or left out, and how many for leaking or for
    their templates; and of every set how many are neither taught nor asked."""

    held: list[Question]
    leaks: int
    unused: dict[str, int]
    templates: Templates
    dropped: int


def _divided(plan: Recipe) -> tuple[dict[str, dict[str, list[Question]]], _Others]:
    asked = plan.questions
    wanted: dict[str, tuple[Split, ...]] = dict.fromkeys(asked.train, ("train",))
    for name in asked.in_distribution + asked.out_of_distribution + asked.generic:
        wanted[name] = (*[split for split in wanted.get(name, ()) if split == "train"], "validation", "test")
    for name in _replayed(plan):
        wanted[name] = ("train", *(split for split in wanted.get(name, ()) if split != "train"))
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
    templates, dropped = _templates(plan, kept)
    taught = {question.id for name in asked.train for question in kept[name]["train"]}
    held = [question for name in asked.train for question in loaded[name] if question.id not in taught]
    unused = {name: len(found) - sum(map(len, kept[name].values())) for name, found in loaded.items()}
    return kept, _Others(held, len(leaked), unused, templates, dropped)


def _templates(plan: Recipe, kept: dict[str, dict[str, list[Question]]]) -> tuple[Templates, int]:
    """Which measured questions are training questions but for numbers and names. Where the recipe drops such training
    questions, they are taken out of `kept`, and how many there were is returned beside what is left: nothing."""
    train = {q.id: q.text for by_split in kept.values() for q in by_split.get("train", ())}
    measured = {q.id: q.text for by_split in kept.values() for part in MEASURED for q in by_split.get(part, ())}
    taking, found = splits.repeated(train, measured)
    if plan.questions.templates == "keep":
        templates: Templates = {}
        for name, by_split in kept.items():
            own: dict[Split, list[str]] = {
                part: [q.id for q in by_split.get(part, ()) if q.id in found] for part in MEASURED
            }
            if any(own.values()):
                templates[name] = own
        return templates, 0
    for name, by_split in kept.items():
        rows = by_split.get("train")
        if rows is not None:
            by_split["train"] = [question for question in rows if question.id not in taking]
            if not by_split["train"]:
                raise UserError(
                    f"no training question of {name} is left",
                    where="questions.templates",
                    found=f"{len(rows)} are validation or test questions but for numbers and names",
                    do="give the set other questions, or set questions.templates: keep",
                )
    return {}, len(taking)


def _replayed(plan: Recipe) -> list[str]:
    """The sets whose training questions are replayed, or answered by the student that is repaired."""
    sections = (plan.train.replay, plan.repair)
    return list(dict.fromkeys(name for asked in sections if asked for name in asked.sets))


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


def _load(plan: Recipe, name: str) -> list[Question]:
    own = plan.sets.get(name)
    asked = plan.questions
    taught = name in asked.train or name in _replayed(plan)
    test = asked.test if taught else 1.0 - asked.validation  # what is not taught needs no training part
    return questions.load(
        name,
        recipe.data_folder(plan),
        file=_own(plan, name) if own else None,
        fields={ours: _column(named) for ours, named in own.fields.items()} if own else None,
        task=own.task if own else None,
        splits=asked.splits,
        validation=None if asked.splits == "paper" else asked.validation,
        test=test if own else None,
        others=tuple(plan.sets),
    )


def _own(plan: Recipe, name: str) -> list[Path]:
    """The files of a set of one's own: where the recipe says, or the verified copies of what it says to fetch."""
    own, key = plan.sets[name], f"sets.{name}"
    if own.url is not None:
        return [fetched.fetch(fetched.from_url(key, own.url, own.sha256 or ""))]
    if own.hub is not None:
        commit = own.revision or ""
        return [fetched.fetch(fetched.from_hub(key, own.hub, path, commit, own.sha256)) for path in own.paths]
    return [found for path in own.paths for found in recipe.find_all(plan, path, f"{key}.file")]


def _column(named: str | Column) -> str | dict[str, Any]:
    return named if isinstance(named, str) else named.model_dump()


def _limited(rows: list[Question], limit: int) -> list[Question]:
    """At most `limit` questions, as many of each task as possible."""
    tasks = sorted({question.task for question in rows})
    share = {task: limit // len(tasks) + (rank < limit % len(tasks)) for rank, task in enumerate(tasks)}
    taken = [splits.take([q for q in rows if q.task == task], share[task]) for task in tasks]
    chosen = {question.id for group in taken for question in group}
    return [question for question in rows if question.id in chosen]


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
