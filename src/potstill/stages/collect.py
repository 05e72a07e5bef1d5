"""collect: the questions of the run, split into train, validation and test. No question is in two splits.

The stage reads the sets that the recipe names, and writes `collect/<set>.<split>.jsonl` and the prompt of each task.
Training questions whose canonical form is also in a validation or test set are left out and counted.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from potstill import data, progress, prompts, storage
from potstill.data import assemble, contamination, find_data_folder, labels, run_questions, splits
from potstill.data.assemble import Sets, assemble_questions, evaluated_questions, replayed_sets, training_questions
from potstill.data.custom_set import read_replay_rows
from potstill.errors import UserError
from potstill.recipe import Recipe, find_path, flatten_keys, recipe_data_folder
from potstill.records import Question
from potstill.serialization import to_json
from potstill.stages import Stage, StageResult
from potstill.storage.manifest import BUILTIN_PREFIX
from potstill.training import data_order


class Collect(Stage):
    reads = (
        *("sets", "questions", "seed", "evaluate.demonstrations", "train.demonstrations"),
        *("train.replay.sets", "train.replay.file", "on_policy.sets", "train.on_policy.scorers"),
    )
    after = ()

    def versions(self) -> dict[str, int]:
        return {
            "contamination": contamination.VERSION,
            "order": data_order.VERSION,
            "prompts": prompts.VERSION,
            "questions": data.VERSION,
            "splits": splits.VERSION,
        }

    def free(self, recipe: Recipe) -> tuple[str, ...]:
        """The sets that the student answers on-policy may change if all of them are also trained on or replayed: they have
        a training split then. The other keys of their scorers do not matter here. Of the sets, those without labels do not
        name the key."""
        trained = {*recipe.questions.train, *(recipe.train.replay.sets if recipe.train.replay else ())}
        unlabelled = [f"sets.{name}.labels" for name, custom in recipe.sets.items() if custom.labels is None]
        known = recipe.on_policy and trained.issuperset(recipe.on_policy.sets)
        section = recipe.train.on_policy
        scorers = section.scorers if section is not None else {}
        new = {f"train.on_policy.scorers.{name}.sets" for name in scorers if not trained.issuperset(scorers[name].sets)}
        unread = set(flatten_keys(recipe, "train.on_policy.scorers")) - new
        return (*unlabelled, *unread, *(["on_policy.sets"] if known else ()))

    def inputs(self, recipe: Recipe, run_dir: Path | None = None) -> dict[str, str]:
        """Name -> digest, for the files that the recipe names, for the paper's split indices if the recipe uses them, and
        for the built-in sets.

        A built-in set whose files are not on this machine is left out, so that a run can continue elsewhere.
        """
        named: dict[str, Path] = {}
        for name in recipe.sets:
            paths = assemble.set_paths(recipe, name)
            for number, path in enumerate(paths, 1):
                named[f"sets.{name}" + (f" file {number}" if len(paths) > 1 else "")] = path
        replayed = recipe.train.replay.file if recipe.train.replay else None
        for key, path in (("evaluate.demonstrations", recipe.evaluate.demonstrations), ("train.replay.file", replayed)):
            if path is not None:
                named[key] = find_path(recipe, path, key)
        if recipe.questions.splits == "paper":
            for builtin in _builtin_sets(recipe):
                if builtin.split_file is not None:
                    path = find_data_folder(recipe_data_folder(recipe)) / builtin.split_file
                    named |= {"questions.splits": path} if path.exists() else {}
        return {name: storage.file_digest(path) for name, path in named.items()} | _digest_builtin_sets(recipe)

    def make(self, run_dir: Path, recipe: Recipe) -> StageResult:
        assembled, folder = assemble_questions(recipe), run_dir / "collect"
        sets = assembled.questions
        train, evaluated = training_questions(recipe.questions.train, sets), evaluated_questions(sets)
        task_prompts = build_task_prompts(recipe, sets)
        replay_rows = _read_replay_rows(recipe)
        only_replayed = [name for name in replayed_sets(recipe) if name not in recipe.questions.train]
        replayed = training_questions(only_replayed, sets)
        texts = [question.text for question in evaluated]
        overlaps = contamination.overlap_shares({question.id: question.text for question in train}, texts)
        overlaps |= _max_overlaps([*replayed, *replay_rows], texts)

        paths, sizes = [], {}
        for name in sets:
            for split, questions in sets[name].items():
                paths.append(folder / f"{name}.{split}.jsonl")
                storage.write_jsonl(paths[-1], map(to_json, questions))
                sizes[f"{name}.{split}"] = len(questions)
        unused = (replace(question, gold="", rationale=None) for question in assembled.held_out)
        rows = {run_questions.UNUSED_FILE: unused} | ({run_questions.REPLAY_FILE: replay_rows} if replay_rows else {})
        for name, questions in rows.items():
            paths.append(folder / name)
            storage.write_jsonl(paths[-1], map(to_json, questions))
        sizes |= {"replay": len(replay_rows)} if replay_rows else {}
        values = {
            run_questions.OVERLAPS_FILE: {name: round(share, 6) for name, share in sorted(overlaps.items())},
            run_questions.TASK_PROMPTS_FILE: run_questions.task_prompts_to_json(task_prompts),
            run_questions.TEMPLATES_FILE: assembled.templates,
        }
        for name, value in values.items():
            paths.append(folder / name)
            storage.write_json(paths[-1], value)

        counts: dict[str, Any] = {"questions": sizes, "left out as leaks": assembled.leaks}
        if assembled.limited:
            counts["without questions.limit"] = assembled.limited
        if assembled.dropped:
            counts["left out as templates"] = assembled.dropped
        everything = [question for by_split in sets.values() for rows in by_split.values() for question in rows]
        contradictions = data.find_contradictions(everything)
        if contradictions:
            first, other = contradictions[0]
            count, example = len(contradictions), f"such as {first.id} and {other.id}"
            progress.print_line(f"{count} questions occur several times with different answers, {example}", "yellow")
            counts["stand twice with different answers"] = count
        return StageResult(paths, counts)


def _digest_builtin_sets(recipe: Recipe) -> dict[str, str]:
    """Name -> digest, for the built-in sets that the recipe names and this machine has."""
    section, digests = recipe.questions, {}
    named = (*section.train, *section.in_distribution, *section.out_of_distribution, *section.generic)
    names = dict.fromkeys(name.partition("/")[0] for name in (*named, *replayed_sets(recipe)))
    if (folder := recipe_data_folder(recipe)) is None:
        return {}
    for name in names:
        if name in data.SETS and (digest := data.digest_set(name, folder)) is not None:
            digests[f"{BUILTIN_PREFIX}{name}"] = digest
    return digests


def _builtin_sets(recipe: Recipe) -> list[data.BuiltinSet]:
    """The built-in sets that the recipe evaluates."""
    sets = recipe.questions
    names = [*sets.in_distribution, *sets.out_of_distribution, *sets.generic]
    return [data.SETS[name] for name in names if name in data.SETS]


def _read_replay_rows(recipe: Recipe) -> list[Question]:
    """The rows of the file `train.replay.file`; empty without one."""
    if recipe.train.replay is None or recipe.train.replay.file is None:
        return []
    return read_replay_rows(find_path(recipe, recipe.train.replay.file, "train.replay.file"))


def _max_overlaps(rows: list[Question], evaluated: list[str]) -> dict[str, float]:
    """Row id -> the larger of two overlaps: the share of the row that is in an evaluated question, and the share of an
    evaluated question that is in the row. A replayed prompt may contain several questions."""
    texts = {row.id: row.text for row in rows}
    inside, around = contamination.overlap_shares(texts, evaluated), contamination.contained_shares(texts, evaluated)
    return {name: max(inside.get(name, 0.0), around.get(name, 0.0)) for name in inside.keys() | around.keys()}


def build_task_prompts(recipe: Recipe, sets: Sets) -> dict[str, run_questions.TaskPrompt]:
    """The prompt of each task: the official prompt of a built-in set, otherwise the demonstrations of the recipe.

    The prompts do not depend on the recipe's formats, so a change of format does not change the files. Raises UserError if a
    few-shot format of the evaluation has no demonstrations, and if a demonstration is an evaluated question.
    """
    train = training_questions(recipe.questions.train, sets)
    table = {"": run_questions.TaskPrompt(prompts.PAPER_STYLE, "", _choose_demonstrations(recipe, train))}
    for builtin in _builtin_sets(recipe):
        if builtin.task_prompts is not None:
            table |= builtin.task_prompts(find_data_folder(recipe_data_folder(recipe)))
    for task, instruction in labels.instructions(recipe).items():
        table[task] = replace(table[""], instruction=instruction)
    example = Question("", "", "", "", "train", "")
    for name in recipe.evaluate.formats:  # raise errors now, not after hours of training
        run_questions.evaluation_prompt(example, prompts.FORMATS[name], {"": table[""]})
    _check_demonstrations(table, evaluated_questions(sets))
    return table


def _choose_demonstrations(recipe: Recipe, train: list[Question]) -> tuple[prompts.Demonstration, ...]:
    """The demonstrations in the recipe's file; without a file, training questions that have a rationale.

    Empty if too few training questions have a rationale.
    """
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


def _check_demonstrations(task_prompts: dict[str, run_questions.TaskPrompt], evaluated: list[Question]) -> None:
    """Raise UserError if a demonstration is an evaluated question, because the prompt would show its answer."""
    questions = {splits.canonical_question(question.text): question for question in evaluated}
    for task_prompt in task_prompts.values():
        for number, demonstration in enumerate(task_prompt.demonstrations, 1):
            question = questions.get(splits.canonical_question(demonstration.question))
            if question is not None:
                what = f"demonstration {number} is a {question.split} question"
                where, found = "evaluate.demonstrations", f"{question.id}: {demonstration.question[:80]}"
                hint = "remove the question from the file of demonstrations, or from the set"
                raise UserError(what, code="E-data-leaking-demonstration", where=where, found=found, hint=hint)
